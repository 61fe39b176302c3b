"""What the shipped models imagine in 8 bits: what the floats imagine, and the same to the last bit in any company."""

import pytest
import torch

from worldenv.assemble import load, make_engine
from worldenv.evaluation.pictures import psnr
from worldenv.nn import int8
from worldenv.rollout.engine import EngineConfig
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.scenes import TASKS

needs_int8 = pytest.mark.skipif(not int8.is_allowed(), reason="8 bits are slow on this CPU")


@pytest.fixture(scope="module")
def parts():
    return load()


@pytest.fixture(scope="module")
def starts(parts):
    return parts.suite.reset(TASKS, range(500, 510), "train")


@needs_int8
def test_shipped_models_imagine_in_8_bits_what_they_imagine_in_floats(parts):
    """Where a decision is close, other rounding may decide otherwise, and the episode goes on differently."""
    starts = parts.suite.reset(TASKS * 4, range(500, 540), "train")
    exact, small = (make_engine(parts, precision=precision) for precision in ("float32", "int8"))
    action = exact.run(starts, 1, 0, explore=False, stop=False).action.flatten(1, 2)
    video, near = (replay(engine.world, starts, action, 0) for engine in (exact, small))
    apart = psnr(near[:, -4:].flatten(0, 2), video[:, -4:].flatten(0, 2)).view(len(starts), -1).amin(1)
    assert (apart > 40).float().mean() > 0.8 and apart.median() > 45 and not torch.equal(near, video)


def imagined_small(starts, siblings=2, first_episode=0, **config):
    engine = make_engine(load(), EngineConfig(horizon=8, **config), precision="int8")
    return engine.run(starts, siblings, 7, first_episode, stop=False, video=True)


@pytest.fixture(scope="module")
def one_by_one(starts):
    return imagined_small(starts, batch=1)


def assert_same(small, expected, rows=slice(None)):
    for mine, value in zip(small.tensors(), expected.tensors(), strict=True):
        assert torch.equal(mine, value[rows])


@needs_int8
@pytest.mark.parametrize(
    ("batch", "threads", "capacity"), [(1, 1, 1), (1, 1, 7), (3, 1, None), (32, 1, None), (32, 3, None), (5, 3, 13)]
)
def test_slot_batch_and_threads_change_no_bit_of_an_episode_in_8_bits(starts, one_by_one, batch, threads, capacity):
    torch.set_num_threads(threads)
    try:
        assert_same(imagined_small(starts, batch=batch, capacity=capacity), one_by_one)
    finally:
        torch.set_num_threads(1)


@needs_int8
def test_episode_in_8_bits_is_the_same_alone_and_no_other(starts, one_by_one):
    assert_same(imagined_small(starts.pick(torch.tensor([4])), 1, first_episode=9), one_by_one, slice(9, 10))
    assert not torch.equal(one_by_one.video[::2], one_by_one.video[1::2])  # of siblings
