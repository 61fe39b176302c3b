"""All models from nothing, at the smallest size: every stage once, continued after a kill, repeated for nothing."""

import os
import shutil
from dataclasses import make_dataclass, replace

import numpy as np
import pytest
import torch

from worldenv.assemble import load
from worldenv.config import presets
from worldenv.data.clips import Clips
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder
from worldenv.records.stage_times import stage_seconds
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.things import TabletopThings
from worldenv.training import pipeline, world_stages
from worldenv.training.config import ScratchConfig
from worldenv.training.lessons import TabletopLessons
from worldenv.training.pipeline import EXPLORATION_START, Pipeline

CONFIG = presets()["tabletop-quick"][1].scratch
MODELS = ("base", "finetuned", "policy", "teacher_base", "teacher", "contact", "composer", "reflector")


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for module, name, sizes in (
            (pipeline, "SmallPolicyConfig", {"width": 64, "channels": 16, "blocks": 1}),
            (pipeline, "SmallReflectorConfig", {"width": 64, "channels": 16, "blocks": 1}),
            (world_stages, "ComposerConfig", {"widths": (8, 16, 32), "layers": 1, "heads": 2}),
        ):
            config = getattr(module, name)
            fields = [(field, type(size), size) for field, size in sizes.items()]
            patch.setattr(module, name, make_dataclass(name, fields, bases=(config,), frozen=True))
        yield patch


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = RunFolder.create(tmp_path_factory.mktemp("scratch") / "run", {})
    assert Pipeline(folder, CONFIG, 1, "composer").run() == folder.path / "models"
    return folder


def written(folder):
    return {path: os.stat(path).st_mtime_ns for name in ("models", "data") for path in (folder.path / name).iterdir()}


def weights(folder):
    return {name: pipeline.load_weights(folder.path / "models" / f"{name}.safetensors")[0] for name in MODELS}


def test_every_stage_leaves_its_model_its_data_and_its_card(folder):
    expected = {f"{name}.{kind}" for name in MODELS for kind in ("safetensors", "md")}
    expected |= {"demonstrations", "exploration", "again", "labels", "ranges.json"}
    assert {path.name for path in written(folder)} == expected
    ranges = load(folder.path / "models").ranges
    assert {"down1", "layers.0.mlp.2", "fine_out.1.conv2"} <= ranges["world"].keys()
    assert ranges["policy"].keys() == ranges["reflector"].keys()
    card = (folder.path / "models" / "teacher.md").read_text()
    assert "--from-scratch --world composer --seed 1" in card
    assert f"- configuration: pretraining_episodes={CONFIG.pretraining_episodes}," in card
    for name in MODELS:
        _, metadata = pipeline.load_weights(folder.path / "models" / f"{name}.safetensors")
        assert metadata["made"]["seed"] == 1 and metadata["made"]["steps"] == 4 and metadata["made"]["metrics"]["loss"]
    stages = ["base", "finetune", "teacher_pretraining", "teacher", "contact", "student", "adapt", "reflector"]
    assert folder.stages() == stages


def test_the_world_model_decides_on_contacts_as_the_contact_network_learned_to(folder):
    found = weights(folder)
    for name, weight in found["contact"].items():
        assert torch.equal(found["composer"][f"contact.{name}"], weight.half())  # as models are stored
    assert not torch.equal(found["teacher"]["contact.masks.weight"], found["contact"]["masks.weight"])


def test_reflector_reads_with_the_encoder_of_the_base(folder):
    found = weights(folder)
    for name, weight in found["reflector"].items():
        if name.startswith("encoder."):
            assert torch.equal(weight, found["base"][f"policy.{name}"])
        if name.startswith("done."):
            assert torch.equal(weight, found["base"][name])


def test_encoder_of_the_reflector_learns_after_the_head_and_that_of_the_base_is_kept(
    folder, tmp_path, monkeypatch, same_weights
):
    config, save, made = replace(CONFIG, train_encoder=True), pipeline.save_model, []
    for is_killed in (False, True):
        place = RunFolder.create(tmp_path / str(is_killed), {})
        shutil.copytree(folder.path, place.path, dirs_exist_ok=True, ignore=lambda *_: ["checkpoints"])
        for name in ("reflector.safetensors", "ranges.json"):
            (place.path / "models" / name).unlink()
        if is_killed:
            monkeypatch.setattr(pipeline, "save_model", lambda *_: pytest.fail("killed"))
            with pytest.raises(pytest.fail.Exception):
                Pipeline(place, config, 1, "composer").run()
            monkeypatch.setattr(pipeline, "save_model", save)
        Pipeline(place, config, 1, "composer").run()
        assert place.stages()[-2:] == ["reflector", "reflector_encoder"]
        made.append(weights(place)["reflector"])
    assert same_weights(*made)
    found, base = made[0], weights(folder)["base"]
    for part, kept in (("base", "policy.encoder"), ("done", "done")):
        names = [name for name in found if name.startswith(f"{part}.")]
        assert names and all(torch.equal(found[n], base[n.replace(part, kept, 1)]) for n in names)
    learned = {n for n in found if n.startswith("encoder.") and not torch.equal(found[n], found[f"base{n[7:]}"])}
    assert learned and not any(".text." in name for name in learned)
    ranges = load(place.path / "models").ranges["reflector"]
    assert any(name.startswith("encoder.") for name in ranges) and not any(name.startswith("base.") for name in ranges)
    judge = load(place.path / "models", reflector="zero-shot").to_imagine("auto").reflector
    assert judge.asked is judge.base and judge.read(("red block on the green pad",)).shape == (1, judge.encoder.context)


def test_run_that_is_complete_does_nothing(folder):
    before = written(folder)
    Pipeline(folder, CONFIG, 1, "composer").run()
    assert written(folder) == before


def test_deleted_output_alone_is_made_again_of_kept_labels_and_is_the_same(folder, same_weights, monkeypatch):
    for name in ("coverage", "occlusion"):
        monkeypatch.setattr(TabletopThings, name, lambda *given: pytest.fail("labels are drawn"))
    before, models = written(folder), weights(folder)
    path = folder.path / "models" / "teacher.safetensors"
    path.unlink()
    Pipeline(folder, CONFIG, 1, "composer").run()
    after = written(folder)
    assert {name for name in after if after[name] != before[name]} == {path, path.with_suffix(".md")}
    assert all(same_weights(models[name], now) for name, now in weights(folder).items())


def recorded(folder, name):
    return list(TrajectoryReader(folder.path / "data" / name))


def test_exploration_that_is_killed_goes_on_without_losing_or_repeating_an_episode(folder, monkeypatch):
    path = folder.path / "data" / "exploration"
    shutil.rmtree(path)
    act, calls = pipeline.act_in_true, []

    def die_in_the_second(*arguments, **options):
        calls.append(list(arguments[3]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return act(*arguments, **options)

    monkeypatch.setattr(TabletopLessons, "part", 7)
    monkeypatch.setattr(pipeline, "act_in_true", die_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(folder, CONFIG, 1, "composer").run()
    assert not path.exists()
    Pipeline(folder, CONFIG, 1, "composer").run()
    found = [(t.task, t.start) for t in recorded(folder, "exploration")]
    assert found == [(TASKS[i % 10].name, EXPLORATION_START + i) for i in range(20)]
    assert [starts[0] - EXPLORATION_START for starts in calls] == [0, 7, 7, 14]
    assert not path.with_suffix(".partial").exists()


def test_recording_that_is_killed_within_a_part_goes_on_with_the_same_episodes(folder, monkeypatch):
    path, write, written_so_far = folder.path / "data" / "exploration", TrajectoryWriter.write, []
    monkeypatch.setattr(TabletopLessons, "part", 7)
    found = []
    for last in (99, 10):
        shutil.rmtree(path)

        def die(writer, trajectory, last=last):
            written_so_far.append(last)
            if written_so_far.count(10) == 10:
                raise KeyboardInterrupt
            write(writer, trajectory)

        monkeypatch.setattr(TrajectoryWriter, "write", die)
        if last == 10:
            with pytest.raises(KeyboardInterrupt):
                Pipeline(folder, CONFIG, 1, "composer").run()
            monkeypatch.setattr(TrajectoryWriter, "write", write)
        Pipeline(folder, CONFIG, 1, "composer").run()
        found.append(recorded(folder, "exploration"))
    whole, resumed = found
    assert len(whole) == len(resumed) == 20
    assert all(np.array_equal(one.actions, other.actions) for one, other in zip(whole, resumed, strict=True))


def test_model_card_that_a_kill_prevented_is_written_later(folder):
    card = folder.path / "models" / "teacher.md"
    text = card.read_text()
    card.unlink()
    Pipeline(folder, CONFIG, 1, "composer").run()
    assert card.read_text() == text


def test_explored_successes_are_acted_again_in_turn_each_with_its_own_noise(folder, tiny, tmp_path, monkeypatch):
    place, tried = RunFolder.create(tmp_path / "run", {}), recorded(folder, "exploration")
    scratch = Pipeline(place, replace(CONFIG, again=1), 1, "composer")
    scratch.data.mkdir()
    with TrajectoryWriter(scratch.data / "exploration") as writer:
        for i, trajectory in enumerate(tried):
            writer.write(replace(trajectory, success=np.full_like(trajectory.success, i in (3, 5))))
    monkeypatch.setattr(TabletopLessons, "part", 4)
    scratch.record_again(scratch.data / "again")
    again = recorded(place, "again")
    assert [t.start for t in again] == [tried[i].start for i in (3, 5)] * 5
    assert len({t.actions.tobytes() for t in again}) == 10


def test_configuration_says_what_differs_from_the_default():
    assert pipeline.ScratchConfig().describe() == "the default"
    assert pipeline.ScratchConfig(extra_data=False, unroll=3).describe() == "unroll=3, extra_data=False"


def test_without_extra_data_nothing_is_explored(folder, monkeypatch, tmp_path):
    config, made = replace(CONFIG, extra_data=False), []
    data = ("demonstrations", "exploration", "again")
    for name in (*data, "base", "finetuned", "policy", "reflector", "ranges"):
        method = f"record_{name}" if name in data else f"make_{name}"
        monkeypatch.setattr(Pipeline, method, lambda self, path: made.append(path.name))
    for name in ("teacher_base", "teacher", "contact", "student"):
        stage = f"make_{name}"
        monkeypatch.setattr(world_stages.ComposerStages, stage, lambda self, path: made.append(path.name))
    monkeypatch.setattr(pipeline, "write_card", lambda path: None)
    Pipeline(RunFolder.create(tmp_path / "run", {}), config, 1, "composer").run()
    assert "demonstrations" in made and "reflector.safetensors" in made
    assert not {"exploration", "again"} & set(made)
    monkeypatch.undo()
    assert (
        len(Pipeline(folder, config, 1, "composer").clips())
        <= 10
        < len(Pipeline(folder, CONFIG, 1, "composer").clips())
    )


def test_causal_world_model_goes_through_all_its_stages_and_continues_where_it_was_killed(small, tmp_path, monkeypatch):
    folder, make = RunFolder.create(tmp_path / "run", {}), world_stages.CausalStages.make

    def die(stages, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(world_stages.CausalStages, "make", die)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(folder, CONFIG, 1, "causal").run()
    teacher = folder.path / "models" / "causal_teacher.safetensors"
    before = os.stat(teacher).st_mtime_ns
    monkeypatch.setattr(world_stages.CausalStages, "make", make)
    models = Pipeline(folder, CONFIG, 1, "causal").run()
    assert os.stat(teacher).st_mtime_ns == before and (models / "causal.md").exists()
    parts = load(models, world="causal")
    assert parts.world.levels == CONFIG.causal_levels and parts.ranges is None
    assert not (models / "composer.safetensors").exists() and not (models / "ranges.json").exists()
    stages = ["base", "finetune", "causal_teacher", "causal_student", "adapt", "reflector"]
    assert folder.stages() == stages


def test_chunks_that_no_episode_of_the_suite_holds_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    suite = TabletopLessons()
    monkeypatch.setattr(suite.suite, "horizon", 12)
    monkeypatch.setitem(pipeline.LESSONS, "short", lambda: suite)
    with pytest.raises(UserError, match="causal-chunks is 4 chunks, which have 16 actions; .* has only 12"):
        Pipeline(RunFolder.create(tmp_path / "run", {}), ScratchConfig(), 1, "causal", suite="short")


def test_what_the_composer_cannot_learn_from_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    suite, folder = TabletopLessons(), RunFolder.create(tmp_path / "run", {})
    monkeypatch.setattr(suite.suite, "horizon", 16)
    monkeypatch.setitem(pipeline.LESSONS, "short", lambda: suite)
    with pytest.raises(UserError, match="unroll is 5 chunks, which have 20 actions; .* has only 16"):
        Pipeline(folder, ScratchConfig(), 1, "composer", suite="short")
    monkeypatch.setattr(suite, "records_what_is_done", False)
    with pytest.raises(UserError, match="no-extra-data leaves only demonstrations, and the actions"):
        Pipeline(folder, ScratchConfig(unroll=4, extra_data=False), 1, "composer", suite="short")


def test_composer_is_not_trained_on_episodes_that_are_all_too_short_for_the_student(tiny, tmp_path, monkeypatch):
    lengths, config = [19, 8], replace(CONFIG, extra_data=False)
    monkeypatch.setattr(Pipeline, "recorded", lambda *_: Clips.of([tiny.trajectory(length) for length in lengths]))
    world = Pipeline(RunFolder.create(tmp_path / "run", {}), config, 1, "composer").world
    (path, first), *_ = world.stages()
    with pytest.raises(UserError, match="unroll is 5 chunks, which have 20 actions; the longest .* has only 19"):
        first(path)
    lengths[0] = 20
    assert world.clips().length.tolist() == lengths


def test_full_disk_in_a_stage_is_one_line_that_names_what_it_was_to_make(tmp_path, monkeypatch):
    def full(pipeline, path):
        raise OSError(28, "a long story", "file")

    monkeypatch.setattr(Pipeline, "make_base", full)
    with pytest.raises(UserError, match=r"models/base.safetensors cannot be written \(No space left on device\): free"):
        Pipeline(RunFolder.create(tmp_path / "run", {}), CONFIG, 1, "composer").run()


def test_time_of_each_stage_is_recorded(folder):
    seconds = stage_seconds(folder.path)
    assert {
        "models/base",
        "data/demonstrations",
        "data/exploration",
        "models/composer",
        "models/reflector",
    } <= seconds.keys()
    assert all(value > 0 for value in seconds.values())
