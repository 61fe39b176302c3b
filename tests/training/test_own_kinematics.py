"""Kinematics fitted to a run's own episodes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv.launch.ranks import ALONE
from worldenv.records.checkpoint import CheckpointError
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.training import own_kinematics
from worldenv.training.own_kinematics import fit_own
from worldenv.training.pipeline import KINEMATICS, Pipeline

STEPS = 40


def arm(step):
    return FittedKinematics(step * np.eye(7), 0.01 * np.eye(7), 0.3 * np.eye(7), (0.0,) * 7, (0.0, 1.0))


def acted_out(shown, kinematics, episodes):
    """Clips of an arm with these kinematics, from places all around and with random actions."""
    draw = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(episodes, STEPS, 7, generator=draw) - 1
    begin = torch.rand(episodes, 7, generator=draw) * torch.tensor([0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 1.0])
    poses, _ = kinematics.follow(begin, kinematics.rest(begin), actions)
    clips, length = shown.pick(torch.zeros(episodes, dtype=torch.int64)), torch.full((episodes,), STEPS)
    return replace(clips, proprio=torch.cat([begin[:, None], poses], dim=1), actions=actions, length=length)


def test_kinematics_are_fitted_to_the_episodes_by_place_if_these_suffice(shown):
    clips = acted_out(shown, arm(0.03), 40)
    clips.length[1:] -= 5  # what comes after an episode's end is no motion of the arm
    clips.proprio[1:, -5:] = 0
    for episodes, by_place in ((40, True), (8, False)):
        found = fit_own(clips.pick(torch.arange(episodes)), arm(0.02))
        assert (found.reach is not None) == by_place and np.diag(found.step)[:3] == pytest.approx(0.03, abs=1e-3)


def test_what_was_fitted_gets_a_correction_from_the_same_episodes(shown, monkeypatch):
    given = []
    monkeypatch.setattr(own_kinematics, "with_correction", lambda *both: given.append(both) or "corrected")
    assert fit_own(acted_out(shown, arm(0.03), 8), arm(0.02)) == "corrected"
    ((fitted, episodes),) = given
    assert np.diag(fitted.step)[:3] == pytest.approx(0.03, abs=1e-3) and len(episodes) == 8


def test_kinematics_of_the_suite_stay_where_episodes_do_not_determine_a_fit(shown, capsys):
    assert fit_own(acted_out(shown, arm(0.03), 3), arm(0.02)) == arm(0.02)
    told = capsys.readouterr().err
    assert told.startswith("kinematics: not fitted to this run's episodes, those of the suite stay: there are 117")
    assert told.count("\n") == 1


class Lagging(Pipeline):
    """The pipeline of an arm that lags, of whose episodes these were carried out."""

    def __init__(self, folder, clips, kinematics, extra_data=True, records_what_is_done=False):
        self.suite = SimpleNamespace(robot=replace(moved_gripper(Kinematics()), kinematics=kinematics))
        self.config = SimpleNamespace(extra_data=extra_data)
        self.lessons = SimpleNamespace(records_what_is_done=records_what_is_done)
        self.world, self.folder = SimpleNamespace(stages=lambda: [], has_ranges=False), SimpleNamespace(path=folder)
        self.models, self.data, self.ranks, self.command = folder / "models", folder / "data", ALONE, "a test"
        self.carried_out = lambda: clips

    def made(self):
        """The stage that fits kinematics, if there is one, and the kinematics of the stages after it."""
        stages = [(path, make) for path, make in self.stages() if path.name == KINEMATICS]
        for path, make in stages:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make(path, make)
        return bool(stages), self.robot.kinematics


def test_a_run_fits_its_kinematics_once(shown, tmp_path):
    is_made, found = Lagging(tmp_path, acted_out(shown, arm(0.03), 40), arm(0.02)).made()
    assert is_made and found.reach is not None
    again = Lagging(tmp_path, acted_out(shown, arm(0.05), 40), arm(0.02)).made()
    assert again == (True, found)  # what is there is not made again
    assert "40" in (tmp_path / "models" / KINEMATICS).with_suffix(".md").read_text()


@pytest.mark.parametrize(("extra_data", "records_what_is_done"), [(True, False), (False, True), (False, False)])
def test_only_what_was_carried_out_is_fitted(shown, tmp_path, extra_data, records_what_is_done):
    """Of episodes whose actions are not those that were carried out, kinematics cannot be learned."""
    clips = acted_out(shown, arm(0.03), 40)
    is_made, found = Lagging(tmp_path, clips, arm(0.02), extra_data, records_what_is_done).made()
    assert is_made == (found != arm(0.02)) == (extra_data or records_what_is_done)


def test_exact_kinematics_are_not_fitted(shown, tmp_path):
    clips = acted_out(shown, arm(0.03), 40)
    assert Lagging(tmp_path, clips, Kinematics()).made() == (False, Kinematics())


def test_damaged_kinematics_are_named(shown, tmp_path):
    run = Lagging(tmp_path, acted_out(shown, arm(0.03), 40), arm(0.02))
    run.made()
    path = tmp_path / "models" / KINEMATICS
    path.write_bytes(path.read_bytes().replace(b"inertia", b"inertio"))
    with pytest.raises(CheckpointError, match=f"{KINEMATICS}: damaged"):
        Lagging(tmp_path, shown, arm(0.02)).made()
