"""The benchmark at the real size: its outlines have the published sizes, and the whole of it runs with tiny ones."""

import json
from dataclasses import replace

import pytest

for package in ("transformers", "diffusers", "peft"):
    pytest.importorskip(package)

import real_size  # noqa: E402
from document import load  # noqa: E402


def test_outlines_have_the_published_numbers_of_parameters(capsys):
    real_size.main(["--count"])
    found = json.loads(capsys.readouterr().out)
    policy, world, judge = (found["costs"][role] for role in ("policy", "world", "reflector"))
    # OpenVLA 7B has 7.541 B; the last blocks of both towers and SigLIP's pooling, which nothing reads, are not built
    assert policy["parameters"] - policy["learns"] == pytest.approx(7.50e9, rel=0.005)
    assert judge["parameters"] == pytest.approx(8.292e9, rel=0.001)
    # 1.42 B with the text embedding, in whose place the actions' is; the autoencoder of Wan 2.2: 0.705 B
    assert world["parameters"] == pytest.approx(1.42e9 + 0.705e9, rel=0.02)
    assert judge["weight_bytes"] == 2 * judge["parameters"] and found["resident"]["80 GB"] > 0


def test_everything_is_measured_with_tiny_parts(tmp_path, capsys):
    path = tmp_path / "found.json"
    words = ["--tiny", "--device", "cpu", "--episodes", "2", "4", "--chunks", "2", "--learn", "2", "--out"]
    real_size.main([*words, str(path)])
    found = load(path)
    first, second, update = (row["extra_info"] for row in found["benchmarks"])
    assert (first["resident"], second["resident"], update["chunks"]) == (2, 4, 4)
    assert first["broken"] == second["broken"] == update["skipped_steps"] == 0
    assert min(first["frames_per_s"], update["chunk_s"], found["slot_bytes"], found["episode_flops"]) > 0
    assert update["chunk_flops"] == pytest.approx(found["costs"]["policy"]["update_flops"], rel=0.25)
    assert found["episode_flops"] > 2 * sum(cost["chunk_flops"] for cost in found["costs"].values())  # and its begin
    for role, part in found["parts"].items():
        assert part["parameters"] == found["costs"][role]["parameters"], role
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["update"]["chunks"] == 4
    with pytest.raises(SystemExit):  # and what is there is not overwritten
        real_size.main([*words, str(path)])


def measured(tmp_path, *words):
    path = tmp_path / "found.json"
    real_size.main(["--tiny", "--device", "cpu", "--chunks", "2", "--learn", "2", *words, "--out", str(path)])
    return load(path)


def test_rollouts_that_would_take_too_long_or_do_not_fit_are_named_and_not_measured(tmp_path, monkeypatch, capsys):
    late = measured(tmp_path, "--limit", "0", "--episodes", "2", "4")
    assert [row["name"] for row in late["benchmarks"]] == ["rollout[2]", "update"]
    assert late["skipped"] == ["4 episodes: they would end after the limit of 0 s"]
    predicted = real_size.predicted
    monkeypatch.setattr(real_size, "predicted", lambda *given: replace(predicted(*given), resident=3))
    (tmp_path / "found.json").unlink()
    large = measured(tmp_path, "--episodes", "2", "4")
    assert [row["name"] for row in large["benchmarks"]] == ["rollout[2]", "update"]
    assert large["skipped"] == ["4 episodes: 3 are predicted to fit"]
    (tmp_path / "found.json").unlink()
    with pytest.raises(SystemExit):
        measured(tmp_path, "--episodes", "4")
    assert "no rollout was measured (4 episodes: 3 are predicted to fit)" in capsys.readouterr().err


def test_without_a_card_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(real_size.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        real_size.main([])
    assert "finds no CUDA device" in capsys.readouterr().err
