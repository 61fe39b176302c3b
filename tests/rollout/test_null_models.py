"""The models that the engine's own cost is measured with: they really run through it, and it holds on to nothing."""

from pathlib import Path
from resource import getpagesize

import pytest
import torch
from null_models import STOPS, null_engine, null_starts

from worldenv.job import make_engine
from worldenv.records.model_files import Models, shipped
from worldenv.rollout.engine import EngineConfig


def resident_bytes():
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except OSError:
        pytest.skip("no /proc here")


def test_null_models_run_through_the_engine_and_recycle_its_slots():
    engine, sizes = null_engine(64, size=16, batch=32), []
    step = engine.step
    engine.step = lambda slots, run: sizes.append(slots.stop - slots.start) or step(slots, run)
    out = engine.run(null_starts(100, size=16), 2, 0)
    assert len(engine.episodes) == 64 and sum(sizes) == out.chunks.sum() and max(sizes) == 32
    assert not out.broken.any() and out.stopped.any() and not out.stopped.all()
    assert (out.stop[out.stopped] % 4 == 3).all() and (out.chunks[~out.stopped] == 10).all()
    stopped_at_once = out.stopped & (out.chunks == 1)
    assert stopped_at_once.sum() > 64 // STOPS  # more than one wave of slots
    assert (out.frame[:, 0] == 1).all() and (out.frame[~out.stopped, 1:] == 7).all()
    assert (out.action != 0).all(3).all(2)[out.log_prob != 0].all() and (out.log_prob[:, 0] != 0).all()


def test_null_models_keep_what_the_shipped_ones_keep():
    starts = null_starts(2)
    shipped_engine = make_engine(Models.load(shipped()), EngineConfig())
    assert null_engine(2).bytes_per_episode(starts) == shipped_engine.bytes_per_episode(starts)


def test_memory_stays_flat_however_many_episodes_pass():
    engine, starts = null_engine(64, size=16, batch=32), null_starts(128, size=16)
    for _ in range(4):
        engine.run(starts, 2, 0)
    before = resident_bytes()
    for _ in range(20):
        out = engine.run(starts, 2, 0)
    records = sum(tensor.nbytes for tensor in vars(out).values() if tensor is not None)
    assert records > 2**20 and resident_bytes() - before < 5 * records


def test_bytes_are_moved_as_words_only_where_rows_are_whole_words():
    engine = null_engine(8, size=5)  # 75 bytes a frame
    out = engine.run(null_starts(12, size=5), 1, 0)
    assert (out.frame[:, 0] == 1).all() and (out.frame[~out.stopped, 1:] == 7).all()
    assert torch.equal(engine.episodes.frame, torch.full_like(engine.episodes.frame, 7))
