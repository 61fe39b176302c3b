"""A run from scratch in which a file of an earlier stage is damaged or gone."""

import os
import shutil

import pytest

from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder
from worldenv.training import pipeline
from worldenv.training.config import tiny_scratch
from worldenv.training.pipeline import Pipeline

CONFIG = tiny_scratch()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A run whose demonstrations and exploration are there; a made model is an empty file."""
    for name in ("base", "finetuned", "policy", "reflector", "ranges"):
        monkeypatch.setattr(Pipeline, f"make_{name}", lambda self, path: path.touch())
    monkeypatch.setattr(pipeline, "write_card", lambda path: None)
    scratch = Pipeline(RunFolder.create(tmp_path / "run", {}), CONFIG, 1, "composer")
    monkeypatch.setattr(scratch.world, "stages", list)
    scratch.data.mkdir()
    scratch.record_demonstrations(scratch.data / "demonstrations")
    demonstrations = list(TrajectoryReader(scratch.data / "demonstrations"))
    with TrajectoryWriter(scratch.data / "exploration", per_file=7) as writer:
        for i in range(CONFIG.exploration * len(scratch.suite.tasks)):
            writer.write(demonstrations[i % len(demonstrations)])
    return scratch


def flip(path):
    content = bytearray(path.read_bytes())
    for at in range(2000, len(content), 97):
        content[at] ^= 255
    path.write_bytes(content)


def test_damaged_part_is_named_with_the_folder_to_delete(scratch):
    flip(scratch.data / "exploration" / "part-00001.h5")
    folder = scratch.data / "exploration"
    with pytest.raises(UserError, match=rf"part-00001\.h5.*; to have it made again, delete {folder}, then resume$"):
        scratch.run()


def test_data_set_without_one_of_its_parts_is_refused(scratch):
    (scratch.data / "exploration" / "part-00001.h5").unlink()
    with pytest.raises(
        UserError, match=r"exploration: 13 of 20 episodes are there; to have it .*delete .*exploration,"
    ):
        scratch.run()
    with pytest.raises(UserError, match="exploration: 13 of 20 episodes are there"):
        scratch.recorded("demonstrations", "exploration")
    scratch.recorded("demonstrations")


def test_damaged_part_of_what_is_being_recorded_is_named_with_the_folder_to_delete(scratch, monkeypatch):
    partial = scratch.data / "exploration.partial"
    (scratch.data / "exploration").rename(partial)
    flip(partial / "part-00000.h5")
    monkeypatch.setattr(pipeline.SmallPolicy, "load", lambda path: None)
    with pytest.raises(UserError, match=rf"part-00000\.h5.*delete {partial}, then resume$"):
        scratch.run()
    shutil.rmtree(partial)
    demonstration = TrajectoryReader(scratch.data / "demonstrations")[0]
    monkeypatch.setattr(pipeline, "act_in_true", lambda policy, suite, tasks, *rest: [demonstration] * len(tasks))
    monkeypatch.setattr(pipeline, "act_again", lambda trajectories, *rest: trajectories)
    scratch.run()
    assert len(scratch.clips()) > 20


def test_damaged_model_of_an_earlier_stage_is_named_with_the_file_to_delete(scratch, monkeypatch):
    monkeypatch.undo()
    base = scratch.models / "base.safetensors"
    scratch.models.mkdir()
    base.write_bytes(os.urandom(2000))
    base.with_suffix(".md").touch()
    with pytest.raises(UserError, match=rf"{base}.*; to have it made again, delete {base}, then resume$"):
        scratch.run()


def test_damaged_state_of_a_stage_is_named_with_the_file_to_delete(scratch, monkeypatch):
    monkeypatch.undo()
    state = scratch.folder.checkpoints / "base.state.safetensors"
    state.write_bytes(os.urandom(2000))
    with pytest.raises(UserError, match=rf"{state}.*; to have it made again, delete {state}, then resume$"):
        scratch.run()


def test_error_that_is_not_about_this_run_stays_as_it_is(scratch):
    error = pipeline.TrajectoryFormatError("/elsewhere/part-00000.h5: damaged")
    assert scratch._explained(error) is error
