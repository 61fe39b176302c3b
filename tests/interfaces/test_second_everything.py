"""A second suite, policy, world model and reflector come in as files of their own, and everything works with them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import worldenv

SECOND = Path(__file__).parent / "second"
PARTS = {
    "suite": "second_suite:suite",
    "policy": "second_models:policy",
    "world": "second_models:world",
    "reflector": "second_models:reflector",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SECOND))


@pytest.fixture
def parts():
    return worldenv.load(**PARTS)


def train_config(run, **rl):
    rl = {"iterations": 12, "starts": 16, "siblings": 8, "learning_rate": 2e-2, "minibatch": 128, "signal": 0.0} | rl
    return worldenv.TrainConfig(
        **PARTS,
        run=run,
        rl=worldenv.PostTrainConfig(**rl),
        eval=worldenv.EvalConfig(episodes=20, imagined=20, quality=4, videos=1),
    )


def test_the_parts_are_as_different_as_they_claim(parts):
    starts = worldenv.practice_starts(parts.suite, 0)
    assert starts.seen.frames.shape[1:] == (2, 48, 80, 3)
    assert (parts.world.robot.proprio_size, parts.world.robot.action_size, parts.policy.chunk) == (9, 6, 3)
    assert all(len(text.split()) > 20 and any(c.isdigit() for c in text) for text in starts.texts)
    assert len({tuple(camera.flatten().tolist()) for camera in starts.seen.camera[:50]}) == 50
    assert parts.world.robot.kinematics is None
    for role in ("Policy", "WorldModel", "Reflector", "Suite"):
        part = getattr(parts, {"WorldModel": "world"}.get(role, role.lower()))
        assert isinstance(part, getattr(worldenv, role))


def test_engine_imagines_the_same_episodes_in_any_number_of_slots(parts):
    starts = worldenv.practice_starts(parts.suite, 0).pick(torch.arange(10))
    one, other = (
        worldenv.make_engine(parts, worldenv.EngineConfig(capacity=capacity)).run(starts, 3, seed=0)
        for capacity in (7, None)
    )
    assert one.action.shape == (30, 4, 3, 6)
    for mine, others in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(mine, others, atol=1e-5, rtol=1e-5)
    assert one.record.frames.shape == (30, 4, 2, 48, 80, 3)


def test_gymnasium_steps_it(parts):
    pytest.importorskip("gymnasium")
    starts = worldenv.practice_starts(parts.suite, 0)
    env = worldenv.make_env(parts, starts, worldenv.EnvConfig(envs=5, horizon=6))
    envs = worldenv.WorldModelVectorEnv(env)
    observation, _ = envs.reset(seed=0)
    assert observation["frames"].shape == (5, 2, 48, 80, 3) and envs.action_space.shape == (5, 3, 6)
    ends = 0
    for _ in range(4):
        observation, reward, terminated, truncated, _ = envs.step(torch.zeros(5, 3, 6))
        ends += int((terminated | truncated).sum())
    assert ends == 10 and observation["proprio"].shape == (5, 9)
    assert ((reward >= 0) & (reward <= 1)).all()


def test_torchrl_rolls_it_out(parts):
    pytest.importorskip("torchrl")
    from torchrl.envs.utils import check_env_specs

    starts = worldenv.practice_starts(parts.suite, 0)
    env = worldenv.TorchRLWorldModelEnv(worldenv.make_env(parts, starts, worldenv.EnvConfig(envs=4, horizon=6)))
    check_env_specs(env)
    data = env.rollout(3, break_when_any_done=False)
    assert data["next", "frames"].shape == (4, 3, 2, 48, 80, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "second"
    sys.path.insert(0, str(SECOND))
    result = worldenv.train(train_config(folder))
    sys.path.remove(str(SECOND))
    return folder, result


def test_practice_raises_the_imagined_reward_and_the_true_success(trained):
    folder, result = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reward = [line["reward"] for line in lines if line["stage"] == "post_train"]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.1
    assert result["success_after"]["own_stop"] > result["success_before"]["own_stop"] + 0.2


def test_the_run_has_its_report_and_is_evaluated_with_the_parts_it_used(trained, tmp_path):
    folder, result = trained
    assert "marker number 1" in (folder / "report.html").read_text() and list((folder / "videos").glob("*.webp"))
    config = worldenv.EvaluateConfig(models=folder, run=tmp_path / "eval", eval=train_config(folder).eval)
    again = worldenv.evaluate(config)
    assert again["success"]["oracle"] == result["success_after"]["oracle"]
    assert min(again["world_model"]["ssim"]) > 0.95  # the fitted world model is exact but for rounding


def test_an_interrupted_run_goes_on_to_the_same_policy(tmp_path, monkeypatch):
    from worldenv.rl import practice_state

    original, calls = practice_state.save_state, []
    worldenv.train(train_config(tmp_path / "whole", iterations=4))

    def interrupted(*args, **state):
        original(*args, **state)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(practice_state, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worldenv.train(train_config(tmp_path / "parts", iterations=4))
    monkeypatch.setattr(practice_state, "save_state", original)
    config = train_config(tmp_path / "parts", iterations=4)
    worldenv.train(worldenv.TrainConfig(**{**vars(config), "resume": True}))
    files = (tmp_path / run / "checkpoints" / "policy.safetensors" for run in ("whole", "parts"))
    whole, parts = map(load_file, files)
    for name, weights in whole.items():  # sums of matrices may differ in the last bits from run to run
        torch.testing.assert_close(parts[name], weights, atol=1e-4, rtol=1e-4)
