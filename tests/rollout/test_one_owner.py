"""One engine or environment in two threads is refused; models that two of them share are not disturbed."""

import subprocess
import sys
import threading

import pytest
import torch

from worldenv.errors import UserError
from worldenv.nn.int8 import in_int8, measured
from worldenv.rollout.engine import Engine, EngineConfig

IN_USE = "this engine or environment is in use, by another thread or by the call that led here: make one for each"


def held(owner, hook, use):
    """Call `use` in another thread, and hold it inside of `hook`; returns what lets it go on."""
    reached, go_on = threading.Event(), threading.Event()
    inside = getattr(owner, hook)

    def wait(*given, **named):
        reached.set()
        assert go_on.wait(30)
        return inside(*given, **named)

    setattr(owner, hook, wait)
    thread = threading.Thread(target=use)
    thread.start()
    assert reached.wait(30)
    setattr(owner, hook, inside)

    def release():
        go_on.set()
        thread.join(30)

    return release


def test_a_second_run_of_an_engine_in_another_thread_is_refused_at_once_and_the_first_is_not_disturbed(tiny):
    engine, starts, out = tiny.engine(), tiny.starts(5), []
    expected = tiny.engine().run(starts, 2, 0)
    release = held(engine.world, "imagine", lambda: out.append(engine.run(starts, 2, 0)))
    try:
        for use in (lambda: engine.run(starts, 1, 3), lambda: engine.bytes_per_episode(starts)):
            with pytest.raises(UserError, match=IN_USE):
                use()
    finally:
        release()
    assert all(torch.equal(a, b) for a, b in zip(out[0].tensors(), expected.tensors(), strict=True))
    engine.run(starts, 1, 3)  # it is free again


def test_a_second_step_or_reset_of_an_environment_in_another_thread_is_refused_and_changes_nothing(tiny):
    seen, action = [], torch.full((5, 4, 7), 0.2)
    for disturbed in (False, True):
        env = tiny.env(5, envs=5)
        env.seed(0)
        env.reset()
        out = []
        release = held(env.world, "imagine", lambda env=env, out=out: out.append(env.step(action)))
        try:
            for use in (env.reset, lambda env=env: env.step(-action)) if disturbed else ():
                with pytest.raises(UserError, match=IN_USE):
                    use()
        finally:
            release()
        seen.append([*out[0][0].values(), *env.step(action)[1:], *env.info().values()])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_an_engine_that_its_own_policy_runs_again_is_refused(tiny):
    engine, starts = tiny.engine(), tiny.starts(3)
    act = engine.policy.act
    engine.policy.act = lambda *given: [engine.run(starts, 1, 0), act(*given)][1]
    with pytest.raises(UserError, match=IN_USE):
        engine.run(starts, 1, 0)
    engine.policy.act = act
    engine.run(starts, 1, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("in_8_bits", [False, True])
def test_two_engines_in_two_threads_that_share_their_models_imagine_as_if_alone(tiny, threads, in_8_bits):
    models, starts = (tiny.policy(), tiny.world(), tiny.reflector()), [tiny.starts(8), tiny.starts(8, seed=1)]
    if in_8_bits:
        models = shrunk(models, starts[0])
    config = EngineConfig(horizon=16, capacity=6, batch=3)
    rounding = 0.0 if in_8_bits else 5e-3  # a pixel that is rounded to the next level moves an action by less
    engines, out = [Engine(*models, config) for _ in starts], {}

    def work(number):
        torch.set_num_threads(threads)
        out[number] = [engines[number].run(starts[number], 2, 0) for _ in range(4)]

    try:
        torch.set_num_threads(threads)  # floats are rounded a little differently in parts of another size
        expected = [Engine(*models, config).run(some, 2, 0) for some in starts]
        both = [threading.Thread(target=work, args=[number]) for number in (0, 1)]
        [thread.start() for thread in both]
        [thread.join(60) for thread in both]
    finally:
        torch.set_num_threads(1)
    for number, one in enumerate(expected):
        for other in out[number]:
            for mine, value in zip(other.tensors(), one.tensors(), strict=True):
                torch.testing.assert_close(mine, value, atol=rounding, rtol=0)


def shrunk(models, starts):
    engine, found = Engine(*models, EngineConfig(horizon=4)), []
    for part in models:
        with measured(getattr(part, "network", part)) as ranges:
            engine.run(starts, 1, 0)
        found.append(ranges)
    return in_int8(models[0], found[0]), models[1].in_int8(found[1]), in_int8(models[2], found[2])


FORKED = """
import os, sys, warnings, torch
torch.set_num_threads(int(sys.argv[1]))
from worldenv.assemble import load, make_engine
from worldenv.rollout.engine import EngineConfig
parts = load()
starts = parts.suite.reset(parts.suite.tasks, range(10), "train")
engine = make_engine(parts, EngineConfig(horizon=4, batch=4))
expected = engine.run(starts, 1, 0).action
(torch.ones(1 << 22) + 1).sum()  # on all threads
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with warnings.catch_warnings(record=True) as said:
    same = torch.allclose(engine.run(starts, 1, 0).action, expected, atol=1e-4)
(torch.ones(1 << 22) + 1).sum()
print(same, [str(w.message)[:65] for w in said], flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_goes_on_in_a_forked_process_where_the_threads_of_its_parent_are_gone(threads):
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORKED, str(threads)], capture_output=True, text=True, timeout=120, check=True
    )
    says = "this process was forked, and torch's 2 threads do not exist in it: i"
    assert done.stdout.strip() == f"True {[says[:65]] if threads == 2 else []}"
