"""The Gymnasium face: its own checks and wrappers run on it, and an episode that ends hands over in the same step."""

import importlib
import sys
import warnings

import numpy as np
import pytest
import torch

gym = pytest.importorskip("gymnasium")

from gymnasium.utils import env_checker  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics  # noqa: E402

from worldenv.envs.gymnasium_env import WorldModelVectorEnv  # noqa: E402
from worldenv.errors import UserError  # noqa: E402


@pytest.fixture
def make(tiny):
    return lambda envs=5, horizon=8, **config: WorldModelVectorEnv(tiny.env(7, envs=envs, horizon=horizon, **config))


def steps(envs, count, seed=0):
    """(action, what step gave) for random actions."""
    envs.action_space.seed(seed)
    for _ in range(count):
        action = torch.as_tensor(envs.action_space.sample())
        yield action, envs.step(action)


class One(gym.Env):
    """The only sub-environment of a vector environment, in NumPy: what Gymnasium's checker can look at.

    Its last observation is that of info["final_obs"], as the checker expects it of an environment without autoreset.
    """

    def __init__(self, envs):
        assert envs.num_envs == 1
        self.envs, self.spec, self.metadata = envs, None, {"render_modes": []}
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        observation, info = self.envs.reset(seed=seed, options=options)
        return as_numpy(observation), as_numpy(info)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.envs.step(torch.from_numpy(action)[None])
        if terminated or truncated:
            observation, info = info["final_obs"], info["final_info"]
        return as_numpy(observation), reward.item(), terminated.item(), truncated.item(), as_numpy(info)


def as_numpy(values):
    return {name: value[0].numpy() for name, value in values.items()}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("chunk", [3, 4])
def test_gymnasiums_checker_passes_without_a_warning(make, dtype, chunk):
    env = One(make(envs=1, chunk=chunk, frame_dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env_checker.check_env(env, skip_render_check=True)


def test_reset_that_is_refused_changes_nothing(make):
    envs, plain = make(envs=3), make(envs=3)
    for each in (envs, plain):
        each.reset(seed=0)
    with pytest.raises(UserError):
        envs.reset(seed=1, options={"reset_mask": torch.tensor([True, False, True])})
    for (_, one), (_, other) in zip(steps(envs, 12), steps(plain, 12), strict=True):  # past the first ends
        assert torch.equal(one[1], other[1]) and torch.equal(one[0]["frames"], other[0]["frames"])


def test_observations_and_actions_lie_in_the_declared_spaces(make):
    envs = make()
    observation, _ = envs.reset(seed=1)
    for action, (after, *_) in [(envs.action_space.sample(), (observation,)), *steps(envs, 5)]:
        assert np.asarray(action) in envs.action_space
        assert {name: value.numpy() for name, value in after.items()} in envs.observation_space
        assert all(isinstance(value, torch.Tensor) for value in after.values())
    assert envs.single_action_space.shape == (4, 7) and envs.action_space.shape == (5, 4, 7)
    frames, text = envs.observation_space["frames"], envs.observation_space["text"]
    assert frames.dtype == np.uint8 and frames.shape == (5, 1, 16, 16, 3)
    assert text.dtype == np.int64 and text.shape == (5,) and text.high.max() == len(envs.env.starts.texts) - 1


def test_autoreset_is_declared_and_happens_in_the_same_step(make, tiny):
    envs, plain = make(), tiny.env(7, envs=5, horizon=8)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    envs.reset(seed=3)
    plain.seed(3)
    plain.reset()
    ended = 0
    for action, (observation, reward, terminated, truncated, info) in steps(envs, 6):
        last, expected, *flags = plain.step(action)
        about, done = plain.info(), terminated | truncated
        first = plain.reset(done)
        assert torch.equal(reward, expected) and torch.equal(terminated, flags[0]) and torch.equal(truncated, flags[1])
        assert all(torch.equal(observation[name], first[name]) for name in first)
        assert ("final_obs" in info) == bool(done.any())
        if done.any():
            ended += int(done.sum())
            assert torch.equal(info["_final_obs"], done) and torch.equal(info["_final_info"], done)
            assert all(torch.equal(info["final_obs"][name][done], last[name][done]) for name in last)
            assert all(torch.equal(info["final_info"][name][done], about[name][done]) for name in about)
            assert torch.equal(info["final_info"]["_score"], done) and info["_score"].all()
            assert not info["steps"][done].any() and info["id"][done].min() >= 5
            torch.testing.assert_close(info["final_info"]["score"][done], reward[done])
    assert ended >= 15


def test_seed_fixes_everything_and_no_seed_goes_on(make):
    envs = make()

    def record(**reset):
        first, info = envs.reset(**reset)
        taken = [given for _, given in steps(envs, 3)]
        return [first["frames"], info["id"], *(given[0]["frames"] for given in taken), *(given[1] for given in taken)]

    one, other, after = record(seed=5), record(seed=5), record()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert after[1].min() > one[1].max()
    assert not torch.equal(record(seed=6)[2], one[2])


def test_options_choose_starts_and_episodes(make):
    envs = make()
    _, info = envs.reset(seed=0, options={"starts": torch.tensor([6, 6, 2])})
    assert info["start"].tolist() == [6, 6, 2, 6, 6]
    envs.step(torch.zeros(5, 4, 7))
    for mask in (np.array([True] + 4 * [False]), torch.tensor([True] + 4 * [False])):
        _, info = envs.reset(options={"reset_mask": mask})
    assert info["id"].tolist() == [6, 1, 2, 3, 4] and info["steps"].tolist() == [0, 4, 4, 4, 4]
    assert info["start"][0] == 6
    with pytest.raises(UserError, match=r"options has \['start'\]; it takes starts and reset_mask"):
        envs.reset(options={"start": 1})


def test_broken_episode_is_truncated_flagged_and_replaced(make):
    envs = make()
    envs.reset(seed=0)
    action = torch.zeros(5, 4, 7)
    action[3, 0, 0] = torch.nan
    observation, reward, terminated, truncated, info = envs.step(action)
    assert truncated.tolist() == [i == 3 for i in range(5)] and not terminated.any() and reward[3] == 0
    assert info["final_info"]["broken"].tolist() == truncated.tolist() and not info["broken"].any()
    assert observation["proprio"].isfinite().all() and info["final_obs"]["proprio"].isfinite().all()


@pytest.fixture
def in_numpy(make):
    pytest.importorskip("array_api_compat", reason="of gymnasium[array-api]")
    from gymnasium.wrappers.vector import ArrayConversion

    return lambda **config: ArrayConversion(make(**config), env_xp=torch, target_xp=np)


def numpy_steps(envs, count):
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(count):
        yield envs.step(envs.action_space.sample())


def test_gymnasiums_conversion_to_numpy_runs_on_it(in_numpy):
    envs = in_numpy()
    for observation, reward, terminated, truncated, info in numpy_steps(envs, 5):
        assert observation in envs.observation_space
        assert all(isinstance(x, np.ndarray) for x in (reward, terminated, truncated, info["steps"]))


def test_gymnasiums_statistics_of_episodes_are_the_scores_and_lengths(in_numpy):
    envs, returns, lengths = RecordEpisodeStatistics(in_numpy(horizon=12)), [], []
    for _, _, terminated, truncated, info in numpy_steps(envs, 9):
        done = terminated | truncated
        if done.any():
            final = {name: value[done] for name, value in info["final_info"].items()}
            np.testing.assert_allclose(info["episode"]["r"][done], final["score"], rtol=1e-6)
            returns += final["score"].tolist()
            lengths += (-(-final["steps"] // 4)).tolist()
    assert len(returns) >= 15 and list(envs.length_queue) == lengths
    np.testing.assert_allclose(envs.return_queue, returns, rtol=1e-6)


def test_info_can_be_taken_apart_by_gymnasium(in_numpy):
    for *_, terminated, truncated, infos in numpy_steps(DictInfoToList(in_numpy()), 4):
        done = terminated | truncated
        assert [("final_obs" in info) for info in infos] == done.tolist()
        assert [("final_info" in info) for info in infos] == done.tolist()
        assert all(info["steps"] == (0 if over else info["steps"]) for info, over in zip(infos, done, strict=True))


def test_dtype_that_numpy_lacks_is_refused(make):
    with pytest.raises(UserError, match="has no torch.bfloat16; take another frame_dtype"):
        make(frame_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("library", "module"),
    [("gymnasium", "gymnasium_env"), ("torchrl.data", "torchrl_env"), ("tensordict", "torchrl_env")],
)
def test_without_the_library_the_import_says_what_to_install(monkeypatch, library, module):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"worldenv.envs.{module}", raising=False)
    extra = module.removesuffix("_env")
    with pytest.raises(ImportError, match=rf'pip install "worldenv\[{extra}\]"'):
        importlib.import_module(f"worldenv.envs.{module}")


def test_closed_environment_and_options_and_seeds_of_another_kind_are_refused(make):
    envs = make()
    for options in (3, [1], "starts"):
        with pytest.raises(UserError, match="options is a .*; it should be a dict"):
            envs.reset(options=options)
    for seed in ("a", 1.5, 2**63):
        with pytest.raises(UserError, match="seed is .*; it should be an integer of 64 bits"):
            envs.reset(seed=seed)
    envs.reset(seed=0)
    envs.close()
    for use in (envs.reset, lambda: envs.step(torch.zeros(5, 4, 7))):
        with pytest.raises(UserError, match="the environment is closed"):
            use()


@pytest.mark.parametrize("version", ["1.3.0", "0.29.1", "1.2.0a1"])
def test_gymnasium_that_counts_episodes_wrongly_is_refused_in_one_line(monkeypatch, version):
    monkeypatch.setattr(gym, "__version__", version)
    monkeypatch.delitem(sys.modules, "worldenv.envs.gymnasium_env")
    with pytest.raises(UserError, match=f"^gymnasium {version} counts .*; install 1.4 or newer: .*$"):
        importlib.import_module("worldenv.envs.gymnasium_env")
