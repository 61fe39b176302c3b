"""A policy measured in truth and in imagination: start states that never meet, and figures over the same starts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv.assemble import Parts, make_engine
from worldenv.errors import UserError
from worldenv.evaluation import measure as module
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import Measurement, held_out, in_turn, measure, practice_starts, world_quality
from worldenv.evaluation.pictures import psnr
from worldenv.evaluation.replayed import replay_episodes
from worldenv.evaluation.truth import judge_frames, starts_of
from worldenv.rl.advantage import group_advantage
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rollout.engine import EngineConfig
from worldenv.rollout.episodes import Rollouts
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.physics import start_state
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

SMALL = EvalConfig(episodes=10, imagined=1, quality=2, videos=2)
EXPLORATION_START = 1_000_000  # as in worldenv.training.pipeline: exploration counts its starts from there


@pytest.fixture(scope="module")
def suite():
    return TabletopSuite(16)


@pytest.fixture(scope="module")
def parts(tiny):
    return tiny.parts()


def measured(parts, config, chunks=1, start_seed=3):
    engine = make_engine(parts, EngineConfig(horizon=4 * chunks))
    return measure(parts.suite, parts.policy, parts.reflector, engine, config, start_seed, 0, "small")


def worlds(pairs, split):
    return {start_state(task, start, split)[0].tobytes() for task, start in pairs}


def test_tasks_come_in_turn(suite):
    assert [task.name for task in in_turn(suite, 12)] == [TASKS[i % 10].name for i in range(12)]


def test_held_out_starts_of_two_start_seeds_are_disjoint_and_spread_over_the_tasks(suite):
    seen = set()
    for start_seed in (-3, 0, 1, 2, 10**12):
        tasks, starts = held_out(suite, start_seed, 500)
        assert {name: tasks.count(name) for name in TASKS} == dict.fromkeys(TASKS, 50)
        found = worlds(zip(tasks, starts, strict=True), "test")
        assert len(found) == 500 and not found & seen
        seen |= found


def test_held_out_starts_never_equal_a_start_that_was_trained_on(suite, monkeypatch):
    picked = []
    begin = suite.reset
    monkeypatch.setattr(suite, "reset", lambda *given: picked.append(given) or begin(*given))
    for seed in (0, 1):
        practice_starts(suite, seed)
    practice = [set(zip(tasks, starts, strict=True)) for tasks, starts, _ in picked]
    assert [split for *_, split in picked] == ["train", "train"] and not practice[0] & practice[1]
    demonstrated = {(task, start) for task in TASKS for start in range(5)}
    explored = {(TASKS[i % len(TASKS)], EXPLORATION_START + i) for i in range(4000)}
    trained = practice[0] | practice[1] | demonstrated | explored
    assert len(trained) == sum(map(len, practice)) + len(demonstrated) + len(explored)
    held = worlds(zip(*held_out(suite, 0, 1000), strict=True), "test")
    same_numbers = worlds(trained, "test")
    assert not held & worlds(trained, "train") and len(held & same_numbers) == 50  # only the split parts these


def test_practice_starts_are_real_first_frames(monkeypatch):
    monkeypatch.setattr(module, "PRACTICE_STARTS", 20)
    starts = practice_starts(TabletopSuite(), 0)
    frames = starts.seen.frames
    assert len(starts) == 20 and frames.shape == (20, 1, 64, 64, 3) and torch.isfinite(starts.seen.proprio).all()
    assert not torch.equal(frames[0], frames[10])


def test_practice_begins_from_as_few_start_states_as_the_suite_says(monkeypatch):
    monkeypatch.setattr(module, "PRACTICE_STARTS", 20)
    suite = TabletopSuite(16)
    usual = practice_starts(suite, 1).seen
    suite.practice_starts = 5
    assert torch.equal(practice_starts(suite, 1).seen.frames, usual.frames[:5])
    suite.practice_starts = 50  # the next seed has the next ones
    assert len(practice_starts(suite, 1)) == 20


def test_imagined_and_true_episodes_begin_with_the_same_frames(parts, monkeypatch):
    engine, began = make_engine(parts, EngineConfig(horizon=4)), []
    run = engine.run
    monkeypatch.setattr(
        engine, "run", lambda starts, *given, **more: began.append(starts) or run(starts, *given, **more)
    )
    found = measure(parts.suite, parts.policy, parts.reflector, engine, replace(SMALL, imagined=10), 3, 0, "small")
    first, (starts,) = np.stack([t.frames[0] for t in found.trajectories]), began
    assert np.array_equal(starts.seen.frames.numpy(), first) and starts.instructions == [
        t.instruction for t in found.trajectories
    ]
    assert len(found.imagined.stopped) == 10 and len(found.trajectories) == 10
    assert found.instructions == {task.name: task.instructions[0] for task in TASKS}


class Blind:
    """A suite without its detector."""

    def __init__(self, suite):
        self.suite = suite

    def __getattr__(self, name):
        if name == "find_things":
            raise AttributeError(name)
        return getattr(self.suite, name)


def test_imagination_that_is_looked_at_goes_on_to_the_horizon_and_its_frames_are_dropped(parts):
    found = measured(parts, replace(SMALL, imagined=10), chunks=10)
    assert found.imagined.video is None and (found.imagined.chunks == 10).all()
    other = measured(replace(parts, suite=Blind(parts.suite)), replace(SMALL, imagined=10), chunks=10)
    assert other.imagined.chunks.min() < 10
    for name in ("stop", "stopped"):
        assert torch.equal(getattr(other.imagined, name), getattr(found.imagined, name))
    agreed, alike = (dict(one.consistency["agreement"]) for one in (found, other))
    assert sum(agreed.pop("begins").values()) == round(10 * (1 - agreed["share"]))
    assert agreed == alike and found.consistency["reflector"] == other.consistency["reflector"]
    assert "things" in found.consistency and "things" not in other.consistency


def test_validation_is_from_the_same_unseen_starts_every_time(parts, monkeypatch):
    engine, asked = make_engine(parts, EngineConfig(horizon=8)), []
    reset, step = parts.suite.reset, parts.suite.step
    monkeypatch.setattr(parts.suite, "reset", lambda *given: asked.append(given) or reset(*given))
    monkeypatch.setattr(module, "VALIDATION_EPISODES", 20)
    first, second = (module.validate(parts.suite, parts.policy, engine, 3, 0) for _ in range(2))
    assert first == second and asked[0] == asked[1]
    assert asked[0][2] == "validation" and len(asked[0][1]) == 20
    imagined = engine.run(parts.suite.reset(*asked[0]), 1, 0, explore=False)
    assert first["validation_imagined_success"] == pytest.approx(imagined.succeeded(0.5).float().mean().item())
    monkeypatch.setattr(parts.suite, "step", lambda action: (step(action)[0], np.ones(20, dtype=bool)))
    assert module.validate(parts.suite, parts.policy, engine, 3, 0)["validation_success"] == 1.0


def test_document_says_per_task_what_was_imagined(parts):
    found = measured(parts, replace(SMALL, episodes=20, imagined=11))
    assert found.document()["n"] == 20
    found.imagined.stopped[:] = torch.arange(11) < 2
    found.imagined.reward.zero_()
    imagined = {name: part["imagined"] for name, part in found.document()["per_task"].items()}
    first, second, *others = (task.name for task in TASKS)
    assert imagined == {first: 0.5, second: 1.0} | dict.fromkeys(others, 0.0)
    assert found.document()["per_task"][second]["instruction"] == TASKS[1].instructions[0]
    found.imagined = found.imagined.each(lambda tensor: tensor[:1])
    assert found.document()["per_task"][second]["imagined"] is None  # no episode of it was imagined


class Imagined(SimpleNamespace):
    """Rollouts of which only some tensors are known."""

    succeeded = Rollouts.succeeded


def test_truth_and_imagination_are_compared_over_as_many_steps():
    def trajectory(done_at):
        return SimpleNamespace(success=np.arange(40) >= done_at, actions=np.zeros((40, 7)))

    def gap(chunks, stops):  # imagined for so many chunks of 4; an episode without a stop: None
        steps = 4 * chunks
        imagined = Imagined(
            stopped=torch.tensor([stop is not None for stop in stops]),
            reward=torch.zeros(len(stops), chunks, 4),
            stop=torch.tensor([steps if stop is None else stop for stop in stops]),
            broken=torch.zeros(len(stops), dtype=torch.bool),
        )
        return Measurement(None, [trajectory(at) for at in (3, 9, 30, 99)], imagined, {}, {}).imagined_minus_true

    assert gap(10, [4, 12, None, None]) == pytest.approx(0.5 - 0.75)
    assert gap(2, [4, None, None, None]) == pytest.approx(0.25 - 0.25)  # truth beyond 8 steps is not imagined
    assert gap(20, [4, 12, 60, None]) == pytest.approx(0.5 - 0.75)  # nor is there a truth beyond 40
    assert gap(10, [4]) == pytest.approx(1.0 - 1.0)  # fewer imagined than true: the same starts


def test_quality_compares_whole_replays_chunk_by_chunk(tiny):
    engine, trajectories = tiny.engine(), [tiny.trajectory(12, i) for i in range(3)]
    replayed = replay_episodes(engine, trajectories, seed=1)
    found = world_quality(replayed, np.array([True, True, False]), engine.world.chunk)
    assert len(found["psnr"]) == len(found["ssim"]) == 3 and found["episodes"] == 3
    frames, actions = (torch.from_numpy(np.stack([getattr(t, k) for t in trajectories])) for k in ("frames", "actions"))
    starts = starts_of(trajectories)
    imagined = replay(engine.world, starts, actions, 1)
    assert found["psnr"][1] == pytest.approx(psnr(imagined[:, 5:9], frames[:, 5:9]).mean().item(), rel=1e-4)
    said = judge_frames(engine.reflector, starts, imagined)[1].any(1).numpy()
    assert found["agreement"] == pytest.approx((said == [True, True, False]).mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_policy_is_measured_as_on_the_cpu_and_learns(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config, found = replace(SMALL, imagined=10), []
    for device in ("cpu", "cuda"):
        parts: Parts = tiny.parts()
        for network in parts.networks().values():
            network.to(device)
        engine = make_engine(parts, EngineConfig(horizon=8), precision="float32")
        found.append(measure(parts.suite, parts.policy, parts.reflector, engine, config, 0, 0, "small"))
    here, there = found
    np.testing.assert_allclose(there.true.reward[:, :8], here.true.reward[:, :8], atol=5e-3)  # before roundings grow
    torch.testing.assert_close(there.imagined.reward, here.imagined.reward, atol=5e-3, rtol=0)
    np.testing.assert_allclose(there.quality["psnr"], here.quality["psnr"], atol=0.1)
    starts = practice_starts(parts.suite, 0).pick(torch.arange(4)).to(engine.world.device)
    rollouts = engine.run(starts, 4, seed=0)
    before = parts.policy.action_head[-1].weight.clone()
    learner = Learner(parts.policy, PostTrainConfig(siblings=4, signal=0.0))
    figures = learner.update(rollouts, group_advantage(rollouts, 4, 0.0)[0], torch.Generator().manual_seed(0))
    assert figures["chunks"] > 0 and learner.skipped == 0
    assert not torch.equal(parts.policy.action_head[-1].weight, before)


@pytest.mark.parametrize("horizon", [1, 3])
def test_horizon_below_a_pass_of_the_world_model_is_refused_before_any_work(tiny, parts, monkeypatch, horizon):
    suite = TabletopSuite(16)
    suite.horizon = horizon
    monkeypatch.setattr(module, "act_in_true", None)
    with pytest.raises(UserError, match=f"the horizon of the suite is {horizon}, but the world model imagines"):
        measured(replace(parts, suite=suite), SMALL)


def test_imagined_episodes_that_broke_are_told(tiny, parts):
    policy = tiny.policy()
    act = policy.act
    policy.act = lambda *given: replace(act(*given), log_prob=torch.full((len(given[0]),), torch.inf))
    with pytest.warns(UserWarning, match="small: 1 of 1 imagined episodes had numbers that are not finite"):
        measured(replace(parts, policy=policy), SMALL)
