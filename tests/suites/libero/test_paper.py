"""The preset `paper-libero` on its own suite, with tiny parts: it practises, is resumed, writes the policy back."""

import json
from dataclasses import replace
from functools import partial

import pytest

import worldenv
from worldenv.assemble import SUITES, costs
from worldenv.commands import cli
from worldenv.config import presets
from worldenv.evaluation import measure
from worldenv.records.checksum import checksum
from worldenv.suites.libero.panda import panda
from worldenv.suites.libero.suite import LiberoSuite

SMALL = ["--engine.horizon", "8", "--eval.episodes", "10", "--eval.imagined", "2", "--eval.quality", "1"]
SMALL += ["--eval.videos", "0", "--rl.iterations", "1", "--rl.starts", "2", "--rl.siblings", "2"]
SUITE = "libero_spatial-official"


@pytest.fixture(scope="module")
def folders(writers, pair_names, tmp_path_factory):
    """An L1 policy of one view that reads proprioception, a U-Net like Stable Video Diffusion's, a Qwen as judge."""
    path = tmp_path_factory.mktemp("paper")
    release = writers("policy/openvla_oft").write_release(path / "policy", "l1")
    release.write_json("worldenv.json", {"views": ["agentview"], "lora": 4})
    pipeline = writers("worlds/video").write_pipeline(path / "svd", steps=1)
    return {
        "policy": f"openvla-oft:{path / 'policy'}",
        "world": f"svd:{pipeline}",
        "reflector": pair_names["reflector"],
    }


@pytest.mark.parametrize("preset", ["paper-libero", "libero-long"])
def test_the_suite_of_the_preset_has_the_robot_that_the_world_model_needs(folders, preset):
    """Without LIBERO: `worldenv-info` says what fits before anything is installed."""
    suite, found = costs(replace(presets()[preset][1], **folders))
    assert suite.robot == panda(1, suite.name) and set(found) == {"policy", "world", "reflector"}


def test_it_practises_goes_on_and_leaves_a_policy(folders, libero, tmp_path, capsys, monkeypatch):
    small = {"tasks": (2,), "size": 64, "horizon": 8, "workers": 2}
    monkeypatch.setitem(SUITES, SUITE, partial(LiberoSuite, "libero_spatial", pictures="official", **small))
    monkeypatch.setattr(measure, "PRACTICE_STARTS", 4)
    run = tmp_path / "run"
    words = [word for option, name in folders.items() for word in (f"--{option}", name)]
    cli.train(["paper-libero", *words, "--run", str(run), *SMALL])
    cli.train(["--resume", "--run", str(run), "--rl.iterations", "2"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["counts"]["groups"], second["counts"]["groups"]) == (2, 4)
    assert second["counts"]["skipped_steps"] == second["counts"]["broken_episodes"] == 0

    parts = worldenv.load_run(run)
    parts.suite.close()
    assert parts.world.robot == panda(1, parts.suite.name)
    of = [
        parts.policy,
        *(
            worldenv.load_openvla_oft(path, parts.suite)
            for path in (run / "policy", folders["policy"].partition(":")[2])
        ),
    ]
    practised, again, untouched = (checksum({}, policy.state_dict()) for policy in of)
    assert practised != untouched and again != untouched
