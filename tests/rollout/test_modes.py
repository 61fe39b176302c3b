"""The modes of torch that a caller is in change no bit of a rollout, whatever the number of threads."""

from contextlib import ExitStack, contextmanager

import pytest
import torch

from worldenv.assemble import load, make_engine
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rollout.engine import EngineConfig


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "grad": torch.enable_grad,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
    "autocast, bfloat16, inference": lambda: several("autocast", "bfloat16", "inference"),
}


def several(*names):
    stack = ExitStack()
    for name in names:
        stack.enter_context(MODES[name]())
    return stack


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def assert_same(mine, others):
    for a, b in zip(mine, others, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_imagines_the_same_in_every_mode_of_its_caller(tiny, mode, threads):
    starts = tiny.starts(8)
    plain = tiny.engine(batch=4).run(starts, 1, 0, video=True)
    engine = tiny.engine(batch=4)
    with MODES[mode]():
        out = engine.run(starts, 1, 0, video=True)
    assert_same(out.tensors(), plain.tensors())
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in out.tensors())


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_sees_the_same_modes_with_one_thread_and_with_several(tiny, mode, threads):
    engine, seen = tiny.engine(batch=4), []
    decide = engine.runner.decide

    def look(*given):
        modes = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        seen.append((*modes, torch.get_default_device().type))
        return decide(*given)

    engine.runner.decide, starts = look, tiny.starts(8)
    with MODES[mode]():
        engine.run(starts, 1, 0)
    assert set(seen) == {(False, False, False, "meta" if mode == "meta" else "cpu")}


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_imagines_the_same_in_every_mode_of_its_caller(tiny, mode, threads):
    seen, models, starts = [], (tiny.world(), tiny.reflector()), tiny.starts(6)
    for context in (ExitStack, MODES[mode]):
        with context():
            env = WorldModelEnv(*models, starts, EnvConfig(envs=6, horizon=40, batch=3))
            env.seed(0)
            observation = env.reset()
            action = torch.full((6, 4, 7), 0.3, dtype=torch.float32, device="cpu")
            steps = [env.step(action) for _ in range(3)]
        seen.append([*observation.values(), *(t for seen, *others in steps for t in (*seen.values(), *others))])
    assert_same(*seen)


@pytest.mark.parametrize("mode", MODES)
def test_a_learner_updates_the_same_in_every_mode_of_its_caller(tiny, mode):
    rollouts = tiny.engine().run(tiny.starts(8), 1, 0)
    advantage, ended = torch.linspace(-1, 1, 8), []
    for context in (ExitStack, MODES[mode]):
        policy = tiny.policy()
        with context():
            learner = Learner(policy, PostTrainConfig(minibatch=8))
            figures = learner.update(rollouts, advantage, torch.Generator("cpu").manual_seed(0))
        ended.append((figures, policy.state_dict()))
    assert ended[0][0] == ended[1][0] and ended[0][0]["loss"]
    assert_same(ended[0][1].values(), ended[1][1].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_are_loaded_and_used_the_same_whatever_the_default_dtype(dtype):
    imagined = []
    for default in (torch.float32, dtype):
        with default_dtype(default):
            parts = load()
            starts = parts.suite.reset(parts.suite.tasks[:3], range(3), "train")
            rollouts = make_engine(parts, EngineConfig(horizon=4)).run(starts, 2, 0, video=True)
        weights = [value for network in parts.networks().values() for value in network.state_dict().values()]
        imagined.append([*weights, *rollouts.tensors()])
        assert torch.get_default_dtype() == default or default != torch.float32
    assert_same(*imagined)
