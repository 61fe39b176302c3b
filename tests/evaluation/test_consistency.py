"""The whole document: clean where imagination is the truth, red where a part of it lies; suites without a detector."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv.data.record import Record
from worldenv.errors import UserError
from worldenv.evaluation.consistency import consistency, look_at_all
from worldenv.evaluation.divergence import PHASES, begin_of_divergence
from worldenv.evaluation.replayed import Replayed
from worldenv.evaluation.truth import judge_outcome
from worldenv.interfaces.suite import Things
from worldenv.rollout.episodes import Rollouts
from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

K, STEPS, WHITE_CAN = 4, 40, 9


@pytest.fixture(scope="module")
def suite():
    return TabletopSuite()


def expert(suite, tasks, change=lambda step, action: action):
    """One episode of each task, by the expert, whose actions may be changed."""
    made = Record(suite, suite.reset(tasks, range(len(tasks)), "train"))
    for step in range(STEPS):
        made.step(change(step, expert_action(suite.physics)))
    return made.trajectories(tasks, range(len(tasks)), "train", "expert")


@pytest.fixture(scope="module")
def true(suite):
    return expert(suite, TASKS)


@pytest.fixture(scope="module")
def failed(suite):
    """The same, but the gripper never closes, except for a push: what should be grasped stays."""

    def open_handed(step, action):
        action[[task.family != "push" for task in TASKS], 6] = -1
        return action

    return expert(suite, TASKS, open_handed)


class Imagined(SimpleNamespace):
    """Rollouts of which only some tensors are known."""

    succeeded = Rollouts.succeeded


def imagined_as(trajectories):
    """Rollouts that imagine these true episodes and stop at each one's first success."""
    success = np.stack([t.success for t in trajectories])
    return Imagined(
        action=torch.zeros(len(success), STEPS // K, K, 7),
        reward=torch.zeros(len(success), STEPS // K, K),
        stopped=torch.from_numpy(success.any(1)),
        stop=torch.from_numpy(np.where(success.any(1), success.argmax(1) + 1, STEPS)),
        video=torch.from_numpy(np.stack([t.frames for t in trajectories])),
        proprio=torch.from_numpy(np.stack([t.proprio for t in trajectories])),
        broken=torch.zeros(len(success), dtype=torch.bool),
        unsure=lambda: torch.linspace(0, 0.9, len(success)),
    )


def replayed_as(trajectories):
    success = np.stack([t.success for t in trajectories])
    frames = torch.from_numpy(np.stack([t.frames for t in trajectories]))
    return Replayed(trajectories, frames, success.astype(np.float32), success)


def measured(suite, true, imagined=None, replayed=None, tasks=TASKS):
    success = np.stack([t.success for t in true])
    outcome = judge_outcome(true, success.astype(np.float32), success)
    return consistency(suite, tasks, true, outcome, imagined or imagined_as(true), replayed or replayed_as(true[:3]), 0)


def test_imagination_that_is_the_truth_is_consistent(suite, true):
    found = measured(suite, true)
    assert found["agreement"]["share"] == 1.0 and found["agreement"]["largest_gap"] == 0.0
    assert found["agreement"]["begins"] == dict.fromkeys(PHASES, 0)
    for frames in ("true", "replayed"):
        errors = {key: found["reflector"][frames][key] for key in ("ece", "false_stop", "missed_stop")}
        assert errors == {"ece": 0.0, "false_stop": 0.0, "missed_stop": 0.0}
    things = found["things"]
    assert things["moved_thing"]["imagined"] == things["moved_thing"]["true"] and things["not_followed"] == [
        TASKS[WHITE_CAN].name
    ]
    assert things["moved_thing"]["true"]["n"] == 27 and things["moved_thing"]["replayed"]["n"] == 9
    assert things["by_chunk"]["imagined"] == things["by_chunk"]["true"]
    assert len(things["by_chunk"]["true"]["moved"]["vanished"]) == STEPS // K


def test_each_column_sees_its_own_frames(suite, true):
    imagined, replayed = imagined_as(true), replayed_as(true[:3])
    imagined.video = imagined.video.clone()
    imagined.video[:, 20:] = 0
    replayed.frames[:, 39:] = 0
    found = measured(suite, true, imagined, replayed)["things"]["moved_thing"]
    assert found["imagined"]["below_35"] == 1.0 and found["replayed"]["below_35"] == pytest.approx(1 / 3)
    assert found["true"]["below_35"] == 0.0


def test_flipped_outcomes_and_their_begin_are_found(suite, true, failed):
    found = measured(suite, true, imagined_as(failed))
    grasping = [task.family != "push" for task in TASKS]
    lost = [t.success.any() and not f.success.any() for t, f in zip(true, failed, strict=True)]
    assert sum(lost) >= 7 and not any(np.array(lost) & ~np.array(grasping))
    assert found["agreement"]["share"] == pytest.approx(1 - sum(lost) / 10)
    begins = found["agreement"]["begins"]
    assert begins["grasp"] == sum(lost[:WHITE_CAN]) and begins["unknown"] == lost[WHITE_CAN]
    assert sum(begins.values()) == sum(lost)
    for name, part in found["agreement"]["per_task"].items():
        assert part["gap"] == -float(lost[[task.name for task in TASKS].index(name)])


def test_an_outcome_that_differs_where_nothing_else_does_is_the_reflectors(suite, true):
    imagined = imagined_as(true)
    imagined.stopped[:] = False
    found = measured(suite, true, imagined)["agreement"]
    assert found["begins"]["reflector"] == sum(t.success.any() for t in true[:WHITE_CAN]) >= 7


def test_guard_is_right_where_the_episodes_that_imagination_is_least_sure_of_are_the_wrong_ones(suite, true):
    imagined = imagined_as(true)
    imagined.stopped[[i for i, t in enumerate(true) if t.success.any()][-3:]] = False
    imagined.unsure = lambda: 1.0 - imagined.stopped.float()
    assert measured(suite, true, imagined)["guard"]["auroc"] > 0.85
    imagined.unsure = lambda: torch.zeros(len(true))
    found = measured(suite, true, imagined)["guard"]
    assert found["auroc"] == 0.5 and found["n_wrong"] == 3
    imagined.unsure = lambda: imagined.stopped.float()
    assert measured(suite, true, imagined)["guard"]["auroc"] < 0.15
    assert measured(suite, true)["guard"]["auroc"] is None  # nothing is wrong


def phases(suite, tasks, true, imagined):
    looked = look_at_all(suite, tasks, true, imagined_as(imagined), replayed_as(true))
    return begin_of_divergence(looked["true"].chunks, looked["imagined"].chunks)


def goes_away(begin):  # with closed fingers
    return lambda step, action: np.array([[1, 0, 0.5, 0, 0, 0, 1]], np.float32) if step >= begin else action


def lets_go(begin):
    return lambda step, action: np.array([[0, 0, 0, 0, 0, 0, -1]], np.float32) if step >= begin else action


@pytest.mark.parametrize(
    ("task", "change", "chunk", "phase"),
    [  # the expert grasps the block in step 7, is half-way in step 9 and lets go in step 14
        (0, goes_away(4), 3, "grasp"),
        (0, goes_away(9), 3, "carry"),
        (0, lets_go(9), 3, "release"),
        (0, goes_away(13), 4, "release"),
        (4, goes_away(6), None, "push"),
        (0, lambda step, action: action, 0, "reflector"),
        (WHITE_CAN, goes_away(4), 0, "unknown"),
    ],
)
def test_phase_is_that_of_what_went_wrong(suite, task, change, chunk, phase):
    tasks = [TASKS[task]]
    true, imagined = expert(suite, tasks), expert(suite, tasks, change)
    looked = look_at_all(suite, tasks, true, imagined_as(imagined), replayed_as(true))
    (begin,), (found,) = begin_of_divergence(looked["true"].chunks, looked["imagined"].chunks)
    assert found == phase and begin == (begin if chunk is None else chunk)
    assert begin > 0 or phase in ("reflector", "unknown")


def test_suite_without_a_detector_is_measured_without_things(suite, true):
    blind = SimpleNamespace(name="blind")
    imagined = imagined_as(true)
    imagined.video = imagined.proprio = None
    found = measured(blind, true, imagined)
    assert found.keys() == {"agreement", "guard", "reflector"} and "begins" not in found["agreement"]


def test_robot_that_cannot_be_projected_gives_states_and_no_events(suite, true):
    other = SimpleNamespace(find_things=suite.find_things, robot=replace(suite.robot, gripper=None))
    found = measured(other, true)
    assert "teleported" not in found["things"]["by_chunk"]["true"]["moved"]
    assert found["things"]["moved_thing"] == measured(suite, true)["things"]["moved_thing"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: None, "returned a NoneType; it should be Things"),
        (lambda found: replace(found, area=found.area[:, 1:]), "returned area "),
        (lambda found: replace(found, centre=found.centre[..., :1]), "returned centre "),
        (lambda found: replace(found, aim=found.aim[1:]), "returned aim "),
        (lambda found: replace(found, aim=found.aim + 20), "an aim outside -1 to 7"),
        (lambda found: Things(found.area, found.centre, found.known[0], found.aim), "returned known "),
    ],
)
def test_detector_that_does_not_return_things_is_refused(suite, true, change, message):
    wrong = SimpleNamespace(find_things=lambda *given: change(suite.find_things(*given)), robot=suite.robot)
    with pytest.raises(UserError, match=f"the suite's `find_things` {message}|the suite's `find_things`.*{message}"):
        measured(wrong, true)
