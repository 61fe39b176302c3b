"""Engines, environments and parts can be copied, and sent to other processes; copies go on like the original."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from worldenv.assemble import load, make_engine, make_env
from worldenv.envs.world_model_env import EnvConfig
from worldenv.evaluation.measure import practice_starts
from worldenv.nn.int8 import is_allowed
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

SEED = 5
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
PRECISIONS = ["float32", pytest.param("int8", marks=pytest.mark.skipif(not is_allowed(), reason="slow here"))]


@pytest.fixture(scope="module")
def parts():
    return load()


@pytest.fixture(scope="module")
def starts(parts):
    return practice_starts(parts.suite, 0).pick(torch.arange(3))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("how", COPIES)
def test_copy_of_an_engine_imagines_the_same_and_has_weights_of_its_own(parts, starts, how, precision):
    engine = make_engine(parts, EngineConfig(horizon=8), precision)
    expected = engine.run(starts, 2, SEED).action
    other = COPIES[how](engine)
    assert torch.equal(other.run(starts, 2, SEED).action, expected)
    with torch.no_grad():
        for parameter in other.policy.trainable():
            parameter.mul_(1.1)
    assert not torch.equal(other.run(starts, 2, SEED).action, expected)
    assert torch.equal(engine.run(starts, 2, SEED).action, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("how", COPIES)
def test_copy_of_an_environment_goes_on_from_where_it_is(parts, starts, how, precision):
    env = make_env(parts, starts, EnvConfig(envs=2, horizon=12), precision)
    env.seed(SEED)
    env.reset()
    action = torch.full((2, 4, 7), 0.3)
    env.step(action)
    other = COPIES[how](env)
    env.step(-action)  # which leaves the copy alone
    env.seed(SEED)
    env.reset()
    env.step(action)
    mine, others = env.step(action), other.step(action)
    assert torch.equal(mine[0]["frames"], others[0]["frames"]) and torch.equal(mine[1], others[1])


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_the_suite_goes_on_from_where_it_is(how):
    suite = COPIES[how](TabletopSuite(16))
    suite.reset(TASKS[:2], [0, 1], "test")
    suite.step(np.full((2, 7), 0.5, np.float32))
    other = COPIES[how](suite)
    for action in np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32):
        (seen, done), (others, other_done) = suite.step(action), other.step(action)
        assert torch.equal(seen.frames, others.frames) and torch.equal(seen.proprio, others.proprio)
        assert np.array_equal(done, other_done)


def test_an_engine_runs_in_a_spawned_process(tiny):
    engine, starts = tiny.engine(horizon=8), tiny.starts(3)
    spawn = multiprocessing.get_context("spawn")
    # The function is the package's own: a spawned process may not find this module.
    with ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.submit(engine.run, starts, 2, SEED).result()
    assert torch.equal(found.action, engine.run(starts, 2, SEED).action)
