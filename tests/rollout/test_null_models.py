"""The models that the engine's own cost is measured with: they really run through it, and it holds on to nothing."""

from pathlib import Path
from resource import getpagesize

import pytest
import torch
from null_models import STOPS, null_engine, null_starts

from worldenv.assemble import load, make_engine
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.world import WorldModel

MOST_BYTES = 60_000  # of an episode of 40 actions, with its records


def resident_bytes():
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except OSError:
        pytest.skip("no /proc here")


def test_null_models_are_what_the_interfaces_ask_for():
    engine = null_engine(4, size=16)
    assert isinstance(engine.policy, Policy) and isinstance(engine.world, WorldModel)
    assert isinstance(engine.reflector, Reflector)


def test_null_models_run_through_the_engine_and_recycle_its_slots():
    engine, sizes = null_engine(64, size=16, batch=32), []
    think = engine.runner.think
    engine.runner.think = lambda live, *given: sizes.append(len(live)) or think(live, *given)
    out = engine.run(null_starts(100, size=16), 2, 0, video=True)
    assert len(engine.runner.episodes) == 64 and sum(sizes) == out.chunks.sum() and max(sizes) == 32
    assert not out.broken.any() and out.stopped.any() and not out.stopped.all()
    assert (out.stop[out.stopped] % 4 == 3).all() and (out.chunks[~out.stopped] == 10).all()
    stopped_at_once = out.stopped & (out.chunks == 1)
    assert stopped_at_once.sum() > 64 // STOPS  # more than one wave of slots
    assert (out.video[:, 0] == 1).all() and (out.video[~out.stopped, 1:] == 7).all()
    assert (out.action != 0).all(3).all(2)[out.log_prob != 0].all() and (out.log_prob[:, 0] != 0).all()


def test_null_models_keep_what_the_shipped_ones_keep():
    starts = null_starts(2)
    kept = null_engine(2).bytes_per_episode(starts)
    assert kept == make_engine(load()).bytes_per_episode(starts)
    assert sum(kept) <= MOST_BYTES


def test_memory_stays_flat_however_many_episodes_pass():
    engine, starts = null_engine(64, size=16, batch=32), null_starts(128, size=16)
    for _ in range(4):
        engine.run(starts, 2, 0)
    before = resident_bytes()
    for _ in range(20):
        out = engine.run(starts, 2, 0)
    records = sum(tensor.nbytes for tensor in out.tensors())
    assert records > 2**20 and resident_bytes() - before < 5 * records


def test_bytes_are_moved_as_words_only_where_rows_are_whole_words():
    engine = null_engine(8, size=5)  # 75 bytes a frame
    out = engine.run(null_starts(12, size=5), 1, 0, video=True)
    assert (out.video[:, 0] == 1).all() and (out.video[~out.stopped, 1:] == 7).all()
    frames = engine.runner.episodes.seen.frames
    assert torch.equal(frames, torch.full_like(frames, 7))
