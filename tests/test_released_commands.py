"""`worldenv-train` with released parts of every kind: practise, go on, and the policy in its authors' layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import worldenv
from worldenv.commands import cli
from worldenv.errors import UserError
from worldenv.evaluation import measure
from worldenv.records.checksum import checksum
from worldenv.records.released import Release

SMALL = ["--engine.horizon", "8", "--eval.episodes", "10", "--eval.imagined", "2", "--eval.quality", "1"]
SMALL += ["--eval.videos", "0", "--rl.iterations", "1", "--rl.starts", "2", "--rl.siblings", "2", "--rl.signal", "0"]
SMALL += ["--rl.learning-rate", "1e-2", "--rl.warmup", "1"]


def with_flow(writers, path: Path, kind: str) -> str:
    release = writers("policy/flow").write_release(path / kind, kind)
    release.write_json("worldenv.json", {"lora": 4})
    return f"{kind}:{release.path}"


# Judges: tests/reflector/vlm/test_job.py. OpenVLA-OFT's L1 head: tests/policy/openvla_oft/test_commands.py
SYSTEMS = {
    "pi0 in a U-Net": lambda writers, path, pair: {
        "policy": with_flow(writers, path, "pi0"),
        "world": f"svd:{writers('worlds/video').write_pipeline(path / 'svd', steps=1)}",
    },
    "smolvla in latents": lambda writers, path, pair: {
        "policy": with_flow(writers, path, "smolvla"),
        "world": f"causal-latents:{writers('worlds/causal').write_latents(path / 'latents')}",
    },
    "tokens in RLinf's world": lambda writers, path, pair: pair | {"reflector": pair["world"]},
}


@pytest.fixture(scope="module")
def small_models(tiny, tmp_path_factory):
    """What the parts that are none of the released ones are loaded from."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder)
    return folder


@pytest.fixture(params=SYSTEMS)
def names(request, writers, tmp_path, pair_names):
    return SYSTEMS[request.param](writers, tmp_path, pair_names)


def weights(parts: worldenv.Parts) -> dict[str, str]:
    return {role: checksum({}, network.state_dict()) for role, network in parts.networks().items()}


def test_a_run_practises_goes_on_and_leaves_a_policy_that_is_loaded_again(
    names, small_models, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(measure, "PRACTICE_STARTS", 10)
    run, given = tmp_path / "run", {"models": small_models} | names
    words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
    cli.train(["tabletop", *words, "--run", str(run), *SMALL])
    cli.train(["--resume", "--run", str(run), "--rl.iterations", "2"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["counts"]["groups"], second["counts"]["groups"]) == (2, 4)
    assert second["counts"]["skipped_steps"] == second["counts"]["broken_episodes"] == 0

    untouched, practised = worldenv.load(**given), worldenv.load_run(run)
    before, after = weights(untouched), weights(practised)
    assert {role for role in before if before[role] != after[role]} == {"policy"}

    back = f"{names['policy'].partition(':')[0]}:{run / 'policy'}"
    again = worldenv.load(**given | {"policy": back}).policy
    starts = worldenv.practice_starts(untouched.suite, 0).pick(torch.arange(3))
    key = worldenv.Key(0, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    decision = practised.policy.act(starts.seen, practised.policy.read(starts.texts), key, True)
    with torch.no_grad():
        its, old = (one.log_prob(decision.record, decision.action) for one in (again, untouched.policy))
    torch.testing.assert_close(its, decision.log_prob, atol=1e-2, rtol=0)
    assert (old - decision.log_prob).abs().max() > 0.1


@pytest.mark.parametrize(("lacks", "message"), [("vae", "svd has no folder vae"), (None, "reflector.safetensors")])
def test_every_other_part_is_looked_at_before_a_large_one_is_read(writers, tmp_path, monkeypatch, lacks, message):
    names = SYSTEMS["pi0 in a U-Net"](writers, tmp_path, {})
    if lacks:
        shutil.rmtree(tmp_path / "svd" / lacks)

    def refuse(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Release, "fill", refuse)
    with pytest.raises(UserError, match=message):
        worldenv.load(tmp_path, **names)
