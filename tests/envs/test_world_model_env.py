"""Imagined episodes that others act in: what the engine imagines, rewarded once, in slots that do not matter."""

from dataclasses import replace

import pytest
import torch

from worldenv.envs import world_model_env
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer.world import ComposerWorld

SEED = 11


def actions(count, chunk=4, seed=1):
    return 2 * torch.rand(count, chunk, 7, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module")
def engine(tiny):
    return tiny.engine(horizon=16)


@pytest.fixture(scope="module")
def rollouts(tiny, engine):
    return engine.run(tiny.starts(7), 1, SEED, stop=False, video=True)


@pytest.fixture
def env(tiny):
    """Episode i begins at start i, as the engine's do."""
    env = tiny.env(7, envs=7, horizon=16)
    env.seed(SEED)
    env.reset(starts=torch.arange(7))
    return env


def test_environment_made_and_used_in_inference_mode_goes_on_outside_of_it(tiny):
    with torch.inference_mode():
        env = tiny.env(7, envs=7, horizon=16)
        env.seed(SEED)
        env.reset()
        first = env.step(actions(7))[1]
    other = tiny.env(7, envs=7, horizon=16)
    other.seed(SEED)
    other.reset()
    assert torch.equal(other.step(actions(7))[1], first)
    assert torch.equal(env.step(actions(7))[1], other.step(actions(7))[1])
    with torch.inference_mode():
        assert replay(env.world, tiny.starts(7), torch.zeros(7, 4, 7), 0).shape == (7, 5, 1, 16, 16, 3)


def test_actions_of_the_engines_episodes_lead_to_the_same_frames_rewards_and_stops(env, rollouts):
    assert rollouts.stopped.any() and not rollouts.stopped.all()
    total, observation = torch.zeros(7), env.observe()
    for t in range(4):
        running = ~env.standing.done
        assert torch.equal(observation["frames"][running], rollouts.video[running, 4 * t])
        assert torch.equal(observation["proprio"][running], rollouts.record.proprio[running, t])
        observation, reward, terminated, truncated = env.step(rollouts.action[:, t])
        assert not reward[~(terminated | truncated)].any()
        total += reward
    assert torch.equal(total, rollouts.final_reward())
    assert torch.equal(terminated, rollouts.stopped) and torch.equal(truncated, ~rollouts.stopped)
    assert torch.equal(env.info()["steps"], rollouts.stop) and torch.equal(env.info()["score"], total)
    assert torch.equal(observation["frames"], rollouts.video[torch.arange(7), rollouts.stop])
    assert torch.equal(observation["text"], rollouts.text)


def test_reward_of_progress_adds_up_to_the_same_return(tiny, env, rollouts):
    other = tiny.env(7, envs=7, horizon=16, reward="progress")
    other.seed(SEED)
    other.reset(starts=torch.arange(7))
    rewards = torch.stack([other.step(rollouts.action[:, t])[1] for t in range(4)])
    torch.testing.assert_close(rewards.sum(0), rollouts.final_reward())
    assert (rewards[:-1] != 0).any()


def test_episode_that_is_over_stays_as_it_is_until_it_is_begun_anew(env, rollouts):
    for t in range(4):
        env.step(rollouts.action[:, t])
    before, standing = env.observe(), env.info()
    observation, reward, terminated, truncated = env.step(rollouts.action[:, 0])
    assert not reward.any() and (terminated | truncated).all()
    for found, expected in ((observation, before), (env.info(), standing)):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    env.reset(terminated)
    assert torch.equal(env.standing.done, ~terminated) and not env.info()["steps"][terminated].any()


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8])
def test_last_frame_is_that_of_the_horizon_whatever_the_chunks(tiny, chunk):
    acted = actions(5, 16)

    def last(chunk):
        env = tiny.env(5, envs=5, horizon=10, chunk=chunk)
        reflector = env.runner.reflector
        reflector.config = replace(reflector.config, threshold=1 - 1e-9)  # nobody stops
        env.seed(SEED)
        env.reset(starts=torch.arange(5))
        for t in range(-(-10 // chunk)):
            assert not env.standing.done.any()
            observation, reward, _, truncated = env.step(acted[:, t * chunk : (t + 1) * chunk])
        assert truncated.all() and (env.info()["steps"] == 10).all() and torch.equal(reward, env.info()["score"])
        return observation

    found, expected = last(chunk), last(4)
    assert torch.equal(found["proprio"], expected["proprio"])
    knows_two_more = chunk in (3, 4, 8)  # actions, of the pass that the tenth frame belongs to
    assert torch.equal(found["frames"], expected["frames"]) == knows_two_more


def test_stop_after_the_horizon_does_not_count(tiny, env, rollouts):
    row = int(torch.where(rollouts.stopped & (rollouts.stop % 4 != 1), rollouts.stop, 0).argmax())
    stop = int(rollouts.stop[row])
    assert stop % 4 != 1 and rollouts.stopped[row]
    short = tiny.env(7, envs=7, horizon=stop - 1)
    short.seed(SEED)
    short.reset(starts=torch.arange(7))
    for t in range(-(-stop // 4)):
        _, reward, terminated, truncated = short.step(rollouts.action[:, t])
    assert truncated[row] and not terminated[row] and short.info()["steps"][row] == stop - 1
    assert reward[row] == rollouts.reward[row].flatten()[stop - 2] <= 0.5


@pytest.mark.parametrize(("envs", "batch"), [(1, 64), (3, 2), (9, 4)])
def test_episode_is_the_same_in_any_slot_and_company(tiny, envs, batch):
    """Every episode acts by its own number: what it sees then depends on nothing else."""

    def run(envs, batch):
        env, seen = tiny.env(4, envs=envs, batch=batch, horizon=12), {}
        env.seed(SEED)
        env.reset()
        while len(seen) < 6 or not set(range(6)) <= seen.keys():
            info = env.info()
            ids, steps = info["id"].tolist(), info["steps"].tolist()
            acted = torch.cat([actions(1, seed=100 * i + n) for i, n in zip(ids, steps, strict=True)])
            observation, reward, terminated, truncated = env.step(acted)
            done = terminated | truncated
            for slot in done.nonzero()[:, 0].tolist():
                after = env.info()
                seen[int(info["id"][slot])] = (
                    observation["frames"][slot],
                    reward[slot],
                    after["steps"][slot],
                    info["start"][slot],
                )
            env.reset(done)
        return seen

    expected, found = run(6, 64), run(envs, batch)
    for number in range(6):
        frame, reward, *rest = found[number]
        assert ((frame.int() - expected[number][0].int()).abs() <= 1).float().mean() > 0.999
        torch.testing.assert_close(reward, expected[number][1], rtol=1e-3, atol=1e-3)
        assert rest == list(expected[number][2:])


def test_threads_change_nothing(tiny, env, rollouts):
    torch.set_num_threads(3)
    try:
        other = tiny.env(7, envs=7, horizon=16, batch=2)
        other.seed(SEED)
        other.reset(starts=torch.arange(7))
        found = other.step(rollouts.action[:, 0])
    finally:
        torch.set_num_threads(1)
    expected = env.step(rollouts.action[:, 0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(found[0]["proprio"], expected[0]["proprio"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_action_breaks_its_episode_alone(tiny, env, rollouts, bad):
    other, rest = tiny.env(7, envs=7, horizon=16), torch.arange(7) != 2
    other.seed(SEED)
    other.reset(starts=torch.arange(7))
    for each in (env, other):
        before, *_ = each.step(rollouts.action[:, 0])
    assert other.info()["score"][2] > 0 and not other.standing.done[2]
    sound, *_ = env.step(rollouts.action[:, 1])
    acted = rollouts.action[:, 1].clone()
    acted[2, 1, 3] = bad
    observation, reward, terminated, truncated = other.step(acted)
    assert other.info()["broken"].tolist() == [i == 2 for i in range(7)]
    assert truncated[2] and not terminated[2] and reward[2] == 0 and other.info()["steps"][2] == 4
    for name in observation:
        assert torch.equal(observation[name][2], before[name][2])
        assert torch.equal(observation[name][rest], sound[name][rest])
    other.reset(truncated)
    assert not other.info()["broken"].any()
    assert torch.isfinite(other.step(rollouts.action[:, 0])[1]).all() and not other.info()["broken"].any()


def test_reset_of_some_leaves_the_others_alone(env, rollouts):
    env.step(rollouts.action[:, 0])
    before, info = env.observe(), env.info()
    mask = torch.tensor([False, True, False, False, True, False, False])
    after, now = env.reset(mask), env.info()
    assert now["id"].tolist() == [0, 7, 2, 3, 8, 5, 6] and now["start"].tolist() == [0, 0, 2, 3, 1, 5, 6]
    for name in before:
        assert torch.equal(after[name][~mask], before[name][~mask])
    assert torch.equal(now["score"][~mask], info["score"][~mask]) and not now["score"][mask].any()
    assert torch.equal(after["frames"][mask], env.starts.seen.frames[:2])
    assert all(torch.equal(x, y) for x, y in zip(env.reset(~mask & mask).values(), after.values(), strict=True))


def test_starts_come_in_an_order_of_the_seed_each_as_often_as_the_others(tiny):
    env = tiny.env(5, envs=2)
    orders = []
    for seed in (0, 0, 1):
        env.seed(seed)
        rows = []
        for _ in range(5):
            env.reset()
            rows += env.info()["start"].tolist()
        assert env.info()["id"].tolist() == [8, 9]
        assert sorted(rows) == sorted(2 * list(range(5))) and rows[:5] == rows[5:]
        orders.append(rows)
    assert orders[0] == orders[1] != orders[2]
    env.reset(starts=torch.tensor([3, 1, 4]))
    rows = env.info()["start"].tolist()
    env.reset()
    assert rows + env.info()["start"].tolist() == [3, 1, 4, 3] and env.info()["id"].tolist() == [12, 13]


def test_seed_that_nobody_gives_is_drawn_from_torchs_generator(tiny):
    def first(seed):
        torch.manual_seed(seed)
        env = tiny.env(6, envs=6)
        torch.manual_seed(seed)
        env.reset()
        return env.info()["start"].tolist()

    assert first(0) == first(0) != first(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_frames_of_a_float_dtype_lie_between_minus_one_and_one(tiny, dtype):
    env, plain = (tiny.env(3, envs=3, frame_dtype=kind) for kind in (dtype, torch.uint8))
    for each in (env, plain):
        each.seed(0)
    frame, expected = env.reset()["frames"], plain.reset()["frames"]
    assert frame.dtype == dtype and expected.dtype == torch.uint8
    assert frame.min() >= -1 and frame.max() <= 1
    torch.testing.assert_close(frame.float(), expected / 127.5 - 1, atol=5e-3, rtol=0)


def test_what_is_handed_out_belongs_to_the_caller(env, rollouts):
    env.step(rollouts.action[:, 0])
    kept = {name: tensor.clone() for name, tensor in (env.observe() | env.info()).items()}
    for tensor in (env.observe() | env.info()).values():
        tensor.zero_()
    observation, reward, terminated, truncated = env.step(rollouts.action[:, 1])
    for tensor in (*observation.values(), reward, terminated, truncated):
        tensor.zero_()
    assert (env.observe()["frames"] != 0).any() and (kept["frames"] != 0).any()
    assert torch.equal(env.info()["id"], kept["id"])


def test_observations_lie_within_the_bounds(env, rollouts):
    for t in range(4):
        observation, *_ = env.step(5 * rollouts.action[:, t])
        for name, values in observation.items():
            low, high = env.bounds(name)
            assert low.shape == values.shape[1:] and low.dtype == values.dtype
            assert ((low <= values) & (values <= high)).all(), name


def test_no_tensor_is_made_where_the_others_are_not(tiny, rollouts):
    """Whatever is made without a device lands on `meta` here, and cannot be computed with."""
    for chunk in (4, 3):
        env, engine = tiny.env(7, envs=7, horizon=16, chunk=chunk), tiny.engine(horizon=8, capacity=3)
        with torch.device("meta"):
            env.seed(SEED)
            env.reset(starts=rollouts.stop - rollouts.stop)
            for t in range(4):
                observation, reward, terminated, truncated = env.step(rollouts.action[:, t, :chunk])
                env.reset(terminated | truncated)
            out = engine.run(env.starts, 2, SEED)
        for tensor in (*observation.values(), reward, *env.info().values(), out.reward, *out.record.tensors()):
            assert tensor.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_happens_on_the_device_of_the_starts(tiny):
    world = ComposerWorld(tiny.simulator().cuda(), moved_gripper(Kinematics(), clear_m=CLEAR_M), (1.0, 0.5))
    config = EnvConfig(envs=5, horizon=8, chunk=3)
    env = WorldModelEnv(world, tiny.reflector().cuda(), tiny.starts(5).to("cuda"), config)
    env.seed(SEED)
    env.reset()
    for t in range(3):
        observation, reward, terminated, truncated = env.step(actions(5, 3, seed=t))
    assert (terminated | truncated).all() and reward.isfinite().all()
    assert all(t.is_cuda for t in (*observation.values(), reward, terminated, truncated, *env.info().values()))


def test_bad_use_is_refused(tiny):
    for bad in ({"envs": 0}, {"chunk": 0}, {"horizon": 10**12}, {"batch": -1}, {"frame_dtype": "uint8"}):
        with pytest.raises(UserError, match=f"^{next(iter(bad))} is .*; it should be "):
            EnvConfig(**bad)
    with pytest.raises(UserError, match="reward is 'dense'; it should be final or progress"):
        EnvConfig(reward="dense")
    with pytest.raises(UserError, match="frame_dtype is torch.int64"):
        EnvConfig(frame_dtype=torch.int64)
    with pytest.raises(UserError, match=r"frames of the starts is .* \[2, 1, 32, 32, 3\]; the world model takes"):
        tiny.env(tiny.starts(2, size=32))
    env = tiny.env(4, envs=3)
    for use in (lambda: env.step(torch.zeros(3, 4, 7)), env.observe, env.info):
        with pytest.raises(UserError, match=r"no episodes yet; call reset\(\) first"):
            use()
    with pytest.raises(UserError, match="the first reset, or the first with a new seed, begins 1 of 3 episodes"):
        env.reset(torch.tensor([True, False, False]))
    with pytest.raises(UserError, match=r"mask is torch.int64 \[3\]; it should be torch.bool \[3\]"):
        env.reset(torch.ones(3, dtype=torch.int64))
    with pytest.raises(UserError, match="starts has rows 0 to 4; there are 4"):
        env.reset(starts=torch.tensor([0, 4]))
    with pytest.raises(UserError, match=r"starts is torch.float32 \[1\]"):
        env.reset(starts=torch.zeros(1))
    env.reset()
    with pytest.raises(UserError, match=r"action is \[3, 2, 7\]; it should be \[3, 4, 7\]"):
        env.step(torch.zeros(3, 2, 7))


def test_new_seed_waits_for_a_reset_of_all_and_moves_no_running_episode_into_another_world(tiny):
    action = torch.zeros(3, 4, 7)
    found = []
    for seeded in (False, True):
        env = tiny.env(4, envs=3)
        env.seed(1)
        env.reset()
        env.step(action)
        if seeded:
            env.seed(2)
            with pytest.raises(UserError, match="the first with a new seed, begins 2 of 3 episodes"):
                env.reset(torch.tensor([True, True, False]))
        found.append(env.step(action)[0]["frames"])
    assert torch.equal(*found)
    env.reset()
    assert env.info()["id"].tolist() == [0, 1, 2]


def test_arguments_of_which_no_tensor_can_be_made_are_refused_and_an_action_keeps_no_gradient(tiny):
    env = tiny.env(4, envs=3)
    with pytest.raises(UserError, match="mask is a str, of which no tensor can be made"):
        env.reset("all")
    with pytest.raises(UserError, match="starts is a dict, of which no tensor"):
        env.reset(starts={})
    env.reset()
    for wrong in (None, "left", torch.zeros(3, 4, 7).bool(), torch.zeros(3, 4, 7) * 1j):
        with pytest.raises(UserError, match="action is"):
            env.step(wrong)
    env.step(torch.zeros(3, 4, 7, requires_grad=True))
    assert not env.runner.episodes.action.requires_grad
    with pytest.raises(UserError, match="no bounds of 'reward'; there are bounds of frames, proprio, text, action"):
        env.bounds("reward")


def test_more_episodes_than_fit_the_memory_are_refused_with_figures(tiny, monkeypatch):
    env = tiny.env(5, envs=1000)
    monkeypatch.setattr(world_model_env, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(UserError, match=r"1,000 envs of [\d,]+ bytes take .* GB are free, .* EnvConfig\(envs=\d+\)"):
        env.reset()
    fitting = tiny.env(5, envs=5)
    fitting.reset()


@pytest.mark.parametrize(("error", "kind"), [(RuntimeError("std::bad_alloc"), UserError), (KeyError("x"), KeyError)])
def test_after_a_step_that_failed_halfway_there_are_no_episodes_until_the_next_reset(tiny, error, kind):
    env = tiny.env(5, envs=5, batch=2)
    env.seed(0)
    env.reset()
    judge, calls = env.runner.reflector.judge, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return judge(*given)

    env.runner.reflector.judge = failing
    action = torch.zeros(5, 4, 7)
    with pytest.raises(kind):
        env.step(action)
    with pytest.raises(UserError, match="there are no episodes yet; call reset"):
        env.step(action)
    env.reset()
    env.step(action)
