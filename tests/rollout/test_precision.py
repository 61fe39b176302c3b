"""Which models imagine in 8 bits, and that what they imagine is what the floats imagine."""

import json

import pytest
import torch

from worldenv.config import TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.pictures import psnr
from worldenv.evaluation.truth import starts_of
from worldenv.job import make_engine
from worldenv.nn import int8
from worldenv.nn.int8 import Int8
from worldenv.records import model_files as module
from worldenv.records.model_files import Models, save_model, shipped
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.scenes import TASKS

needs_int8 = pytest.mark.skipif(not int8.is_fast(), reason="this CPU has no instructions for 8 bits")


@pytest.fixture
def models(tiny, tmp_path):
    parts = {"policy": tiny.policy(), "simulator": tiny.simulator(), "reflector": tiny.reflector()}
    for name, model in parts.items():
        save_model(tmp_path / f"{name}.safetensors", model, {}, levels=(1.0,))
    ranges = {"policy": {"encoder.stem.1": [-1.0, 1.0]}, "simulator": {}, "reflector": {}}
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    return Models.load(tmp_path)


def kinds(model):
    return {type(m) for m in model.modules()}


@pytest.mark.parametrize(
    ("precision", "fast", "small"),
    [("auto", True, True), ("auto", False, False), ("int8", True, True), ("float32", True, False)],
)
def test_8_bits_are_used_where_wanted_and_where_the_cpu_is_made_for_them(models, monkeypatch, precision, fast, small):
    for where in (module, int8):
        monkeypatch.setattr(where, "is_fast", lambda: fast)
    imagining = models.to_imagine(precision)
    assert (Int8 in kinds(imagining.policy)) == small and Int8 not in kinds(models.policy)
    assert imagining.levels == models.levels


def test_8_bits_that_cannot_be_had_are_refused_with_the_reason(models, monkeypatch):
    with pytest.raises(UserError, match="precision is 'fp8'; it should be one of auto, float32, int8"):
        models.to_imagine("fp8")
    with monkeypatch.context() as slow:
        slow.setattr(int8, "is_fast", lambda: False)
        for use in (models.to_imagine, lambda precision: TrainConfig(precision=precision)):
            with pytest.raises(UserError, match="this CPU has no instructions for --precision int8; take auto"):
                use("int8")
    for where in (module, int8):
        monkeypatch.setattr(where, "is_fast", lambda: True)
    ranges = models.ranges
    for wrong in ({"stem": [0.0, 1.0]}, None):
        models.ranges = {name: part for name, part in (ranges | {"simulator": wrong}).items() if part is not None}
        with pytest.raises(UserError, match="ranges.json belongs to another world: it names 1 layers"):
            models.to_imagine("int8")
    models.ranges = None
    with pytest.raises(UserError, match="the models have no ranges.json, which --precision int8 needs"):
        models.to_imagine("int8")
    assert models.to_imagine("auto") is models


@needs_int8
def test_shipped_models_imagine_in_8_bits_what_they_imagine_in_floats():
    models = Models.load(shipped())
    starts = starts_of(TASKS, range(500, 510), "train")
    exact, small = (make_engine(models, EngineConfig(), precision=precision) for precision in ("float32", "int8"))
    action = exact.run(starts, 1, 0, explore=False, stop=False).action
    after = chunk_kinematics(starts.proprio, action.flatten(1, 2), Kinematics())
    poses = torch.cat([starts.proprio[:, None], after], dim=1)
    video, near = (engine.world.replay(starts.frame, poses, 0) for engine in (exact, small))
    apart = psnr(near[:, -4:].flatten(0, 1), video[:, -4:].flatten(0, 1))
    assert apart.min() > 40 and not torch.equal(near, video)


def imagined_small(starts, siblings=2, first_episode=0, **config):
    engine = make_engine(Models.load(shipped()), EngineConfig(horizon=2, **config), precision="int8")
    return engine.run(starts, siblings, 7, first_episode, stop=False, video=True)


@pytest.fixture(scope="module")
def starts():
    return starts_of(TASKS, range(500, 510), "train")


@pytest.fixture(scope="module")
def one_by_one(starts):
    return imagined_small(starts, batch=1)


def assert_same(small, expected, rows=slice(None)):
    for name, value in vars(expected).items():
        assert torch.equal(getattr(small, name), value[rows]), name


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
