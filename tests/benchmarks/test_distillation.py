"""The benchmark of distillation, in tiny: it trains, measures every way, goes on where it stopped, and says so."""

import json

import pytest

pytest.importorskip("diffusers")

import distillation  # noqa: E402

import worldenv  # noqa: E402

WORDS = ["--steps", "2", "--student-steps", "1", "--episodes", "10", "--tests", "10", "--width", "32", "--layers", "1"]
WORDS += ["--autoencoder-width", "4", "--autoencoder-steps", "2", "--consistency-steps", "1"]
STEPS = 3  # of the teacher, here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("distillation") / "run"


@pytest.fixture
def small(tiny, monkeypatch):
    """Tiny parts in place of the shipped ones, and a process that is left as it is."""
    monkeypatch.setattr(distillation, "load", lambda: tiny.parts(size=64))
    monkeypatch.setattr(distillation, "keep_freed_memory", lambda: None)
    for name, value in (("ROUNDS", 1), ("SHOWN", 8), ("STEPS", STEPS), ("STUDENTS", {1: (1.0,)})):
        monkeypatch.setattr(distillation, name, value)


def test_teacher_and_student_are_measured(run, small, capsys):
    distillation.main(["--run", str(run), *WORDS])
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    few = {f"{name}, 1 steps" for name in ("teacher", "student", "consistency")}
    assert found["ways"].keys() == few | {f"teacher, {STEPS} steps"}
    for name, way in found["ways"].items():
        assert len(way["quality"]["psnr"]) == 10 and way["chunk_s"]["median"] > 0 and name in err
        assert way["things"]["by_chunk"].keys() == {"imagined", "replayed", "true"}
        assert 0 <= way["agreement"]["share"] <= 1 and 0 <= way["success"]["true"] <= 1
    assert found["autoencoder_psnr"] > 0 and found["settings"]["teacher_steps"] == STEPS
    assert len({str(found["ways"][name]["quality"]) for name in few}) == 3


def test_a_run_goes_on_where_it_was(run, small, monkeypatch, same_weights):
    """Here, at its end: nothing is trained again."""
    monkeypatch.setattr("worldenv.training.fit._step", lambda *_: pytest.fail("it was trained again"))
    seen = {}
    monkeypatch.setattr(distillation, "measure", lambda parts, worlds, *_: seen.update(worlds) or {"ways": {}})
    monkeypatch.setattr(distillation, "show", lambda found: None)
    kept = worldenv.load(world=f"causal-latents:{run / 'student-1-steps'}").world.network
    distillation.main(["--run", str(run), *WORDS])
    again = {name: weight.half().float() for name, weight in seen["student, 1 steps"].network.state_dict().items()}
    assert same_weights(again, kept)  # weights are stored in half precision


def test_the_student_is_kept_as_a_folder_that_the_commands_take(run, small):
    world = worldenv.load(world=f"causal-latents:{run / 'student-1-steps'}").world
    assert world.levels == (1.0,) and world.network.tokenizer.side == 2


def test_other_settings_do_not_continue_a_run(run, small, capsys):
    with pytest.raises(SystemExit):
        distillation.main(["--run", str(run), *WORDS[2:]])
    assert "was begun with" in capsys.readouterr().err
