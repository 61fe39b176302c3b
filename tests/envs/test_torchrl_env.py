"""The TorchRL face: its own check, rollouts and collectors run on it, and resets are partial."""

import pytest
import torch

pytest.importorskip("torchrl")

from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.envs import RewardSum, TransformedEnv  # noqa: E402
from torchrl.envs.utils import check_env_specs  # noqa: E402

from worldenv.envs.torchrl_env import TorchRLWorldModelEnv  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Observation  # noqa: E402


@pytest.fixture
def make(tiny):
    return lambda envs=5, horizon=12, **config: TorchRLWorldModelEnv(tiny.env(7, envs=envs, horizon=horizon, **config))


@pytest.fixture
def policy(tiny):
    own, texts = tiny.policy(), tiny.starts(7).texts
    read = own.read(texts)

    def mean(frames, proprio, text):
        seen = Observation(frames, proprio, None, text)
        return own.heads(own.see(seen, read), proprio)[0]

    return TensorDictModule(mean, in_keys=["frames", "proprio", "text"], out_keys=["action"])


@pytest.mark.parametrize("config", [{}, {"chunk": 3}, {"chunk": 8}, {"frame_dtype": torch.bfloat16}, {"envs": 1}])
def test_torchrls_check_passes(make, config):
    check_env_specs(make(**config), seed=0)
    check_env_specs(make(horizon=8, **config), break_when_any_done="both")


def test_done_is_terminated_or_truncated_and_an_episode_that_ends_gives_way(make):
    env = make()
    env.set_seed(3)
    out = env.rollout(9, break_when_any_done=False)
    done, later = out["next", "done"], out[:, 1:]
    assert out.batch_size == (5, 9) and out["action"].shape == (5, 9, 4, 7)
    assert torch.equal(done, out["next", "terminated"] | out["next", "truncated"])
    assert not (out["next", "terminated"] & out["next", "truncated"]).any()
    assert done.sum() >= 15 and not out["done"].any()
    reward = out["next", "reward"]
    assert reward.shape == (5, 9, 1) and not reward[~done].any() and (reward[done] > 0).all()
    follows = ~done[:, :-1, 0]
    assert torch.equal(out["next", "frames"][:, :-1][follows], later["frames"][follows])
    starts = env.env.starts.seen.frames
    for frames in later["frames"][~follows]:
        assert (frames == starts).flatten(1).all(1).any()


def test_reset_of_some_begins_those_and_keeps_the_others(make):
    env = make()
    env.set_seed(36)
    before = env.step(env.rand_action(env.reset()))["next"]
    mask = torch.tensor([[True], [False], [False], [True], [False]])
    assert before["done"][:, 0].tolist() == [False, False, False, True, False]  # one has ended, one is cut off
    expected, ids = before["frames"].clone(), env.env.info()["id"]
    after = env.reset(before.clone().set("_reset", mask))
    assert torch.equal(after["frames"][~mask[:, 0]], expected[~mask[:, 0]])
    assert env.env.info()["id"].tolist() == [5, 1, 2, 6, 4] and ids.tolist() == [0, 1, 2, 3, 4]
    assert not after["done"].any()


def test_rollout_until_all_are_done_leaves_those_that_are_as_they_are(make):
    env = make(horizon=16)
    env.set_seed(3)
    out = env.rollout(20, break_when_any_done=False, break_when_all_done=True)
    last, done = out["next"][:, -1], out["next", "done"][..., 0]
    assert 2 <= out.shape[1] <= 4 and last["done"].all() and not done.all(1).all() and done[:, 0].any()
    assert torch.equal(last["frames"], env.env.observe()["frames"]) and env.env.info()["id"].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(last["reward"][:, 0], env.env.info()["score"])
    with pytest.raises(UserError, match="_step leaves out episodes that have not ended"):
        env.step(env.rand_action(env.reset()).set("_step", torch.tensor([[True], [True], [False], [True], [True]])))


def test_seed_fixes_the_rollout(make, policy):
    env, frames = make(), []
    for seed in (2, 2, 4):
        env.set_seed(seed)
        frames.append(env.rollout(5, policy, break_when_any_done=False)["next", "frames"])
    assert torch.equal(frames[0], frames[1]) and not torch.equal(frames[0], frames[2])


def test_broken_episode_is_truncated_and_flagged(make):
    env = make()
    env.set_seed(0)
    first = env.reset().set("action", torch.zeros(5, 4, 7))
    first["action"][2] = torch.nan
    after = env.step(first)["next"]
    expected = [[i == 2] for i in range(5)]
    assert after["broken"].tolist() == expected == after["truncated"].tolist() and after["reward"][2] == 0


def test_collector_and_transforms_run_on_it(make, policy):
    collectors = pytest.importorskip("torchrl.collectors")
    env, count = TransformedEnv(make(), RewardSum()), 0
    collector = collectors.Collector(
        env, policy, frames_per_batch=30, total_frames=60, auto_register_policy_transforms=False
    )
    for batch in collector:
        done = batch["next", "done"]
        torch.testing.assert_close(batch["next", "episode_reward"][done], batch["next", "reward"][done])
        count += batch.numel()
    collector.shutdown()
    assert count == 60


def test_starts_may_be_chosen_and_nothing_else_is_swallowed(make):
    env = make(envs=3)
    env.reset(starts=torch.tensor([5, 2]))
    assert env.env.info()["start"].tolist() == [5, 2, 5]
    with pytest.raises(TypeError, match="options"):
        env.reset(options={"starts": [5]})
