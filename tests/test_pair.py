"""The pair that users can download, in tiny: RLinf's world model, a one-view token policy, a Qwen as judge."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import worldenv
from worldenv.config import presets
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.records.checksum import checksum
from worldenv.records.run_folder import RunFolder
from worldenv.rl.loop import STAGE, post_train
from worldenv.suites.actors import ask_once
from worldenv.suites.libero.suite import PROGRAM
from worldenv.suites.tabletop.suite import TabletopSuite

HERE = Path(__file__).parent
THEIRS = {"resize": "bicubic", "crop": 1.0, "stop": False, "orientation": "upright"}  # RLinf's, but for the last


def writers(folder: str):
    """The functions of a conftest.py that write a checkpoint as its authors do."""
    path = HERE / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"writers_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the command line would be given for the folders of the preset."""
    for package in ("transformers", "diffusers", "peft", "accelerate"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("pair")
    release = writers("policy/openvla_oft").write_release(path / "policy", "tokens")
    release.write_json("worldenv.json", {"lora": 4, "conventions": THEIRS})
    writers("worlds/wan").write_folder(path / "wan", steps=1)
    writers("reflector/vlm").write_model(path / "qwen", "qwen2_5_vl")
    judge = {"vlm": "../qwen", "every": 8, "side": 28, "samples": 4}
    (path / "judge").mkdir()
    (path / "judge" / "reflector.json").write_text(json.dumps(judge))
    return {
        "policy": f"openvla-oft:{path / 'policy'}",
        "world": f"rlinf-wan:{path / 'wan'}",
        "reflector": f"vlm:{path / 'judge'}",
    }


@pytest.fixture(scope="module", params=["tabletop", "libero"])
def suite(request):
    if request.param == "tabletop":
        return TabletopSuite()
    try:
        ask_once(PROGRAM, ("describe", "libero_spatial"), 120.0)
    except UserError as error:
        pytest.skip(str(error))
    made = worldenv.LiberoSuite("libero_spatial", workers=2)
    request.addfinalizer(made.close)
    return made


@pytest.fixture(scope="module")
def practised(names, suite, tmp_path_factory):
    """Three iterations of 64 episodes with the settings of the preset, but for a rate at which few steps are seen."""
    module = SimpleNamespace(pair=lambda: suite)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "suite_of_the_pair", module)
        parts = worldenv.load(suite="suite_of_the_pair:pair", **names)
    preset = presets()["rlinf-wan-libero"][1]
    engine = worldenv.make_engine(parts, replace(preset.engine, horizon=16))
    before = {role: checksum({}, network.state_dict()) for role, network in parts.networks().items()}
    rl = replace(preset.rl, iterations=3, learning_rate=1e-2, minibatch=32, accumulate=None)
    starts = suite.reset([suite.tasks[0]] * 4, range(4), "train")
    with RunFolder.create(tmp_path_factory.mktemp("run") / "run", {}) as folder:
        counts = post_train(engine, starts, rl, folder, seed=0)
        return SimpleNamespace(**locals())


def test_64_episodes_are_resident_and_every_iteration_teaches(practised):
    assert len(practised.engine.runner.episodes) == 64
    assert practised.counts["groups"] == 24
    assert practised.counts["broken_episodes"] == practised.counts["skipped_steps"] == 0
    lines = practised.folder.metrics(STAGE)
    assert len(lines) == 3 and all(line["chunks"] > 0 and 0 <= line["reward"] <= 1 for line in lines)


def test_the_policy_alone_has_changed(practised):
    after = {role: checksum({}, network.state_dict()) for role, network in practised.parts.networks().items()}
    changed = {role for role, known in after.items() if known != practised.before[role]}
    assert changed == {"policy"}


def test_what_is_written_back_acts_as_the_policy_that_practised(practised, names, tmp_path):
    policy, suite = practised.parts.policy, practised.suite
    again = worldenv.load_openvla_oft(policy.write_back(tmp_path / "policy"), suite)
    untouched = worldenv.load_openvla_oft(names["policy"].partition(":")[2], suite)
    starts = practised.starts
    key = Key(0, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    decision = policy.act(starts.seen, policy.read(starts.texts), key, True)
    with torch.no_grad():
        now, then = (one.log_prob(decision.record, decision.action) for one in (again, untouched))
    torch.testing.assert_close(now, decision.log_prob, atol=1e-2, rtol=0)
    assert (then - decision.log_prob).abs().max() > 0.1
