"""Meta-World where it is not installed: what lacks is told in one line, and what needs no simulator holds."""

import ctypes.util
import os

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.evaluation.truth import groups_of
from worldenv.nn.instruction import tokenize
from worldenv.suites import offscreen
from worldenv.suites.metaworld import suite as module
from worldenv.suites.metaworld.installed import installed
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.metaworld.tasks import INSTRUCTIONS, MT10, PRETRAINING, SETS, THREE

WHOLE = {"metaworld": "3.1.1", "mujoco": "3.3.0"}


@pytest.fixture
def machine(monkeypatch):
    """Pretends that some packages and libraries are installed."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"})

    def pretend(packages=WHOLE, libraries=("OSMesa",), **variables):
        monkeypatch.setattr(offscreen, "version_of", lambda name: packages.get(name, ""))
        monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}" if name in libraries else None)
        os.environ.update(variables)

    return pretend


@pytest.mark.parametrize(
    ("pretended", "why"),
    [
        ({"packages": {}}, r'^Meta-World is not installed: pip install "worldenv\[metaworld\]"$'),
        ({"packages": WHOLE | {"mujoco": "3.4.0"}}, "^mujoco 3.4.0 is installed, and Meta-World needs 3.3.0: pip"),
        ({"packages": {"metaworld": "3.1.1"}}, "^no mujoco is installed"),
        ({"libraries": ()}, "no library here draws without a screen: apt-get install .* libosmesa6"),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL is 'glfw'; Meta-World is drawn without a screen, by osmesa or egl"),
    ],
)
def test_what_lacks_is_told_in_one_line_before_anything_starts(machine, pretended, why):
    machine(**pretended)
    with pytest.raises(UserError, match=why) as found:
        MetaWorldSuite()
    assert "\n" not in str(found.value)


def test_a_whole_machine_says_what_it_has_and_keeps_its_variables(machine):
    machine()
    assert installed() == {"package": "metaworld 3.1.1", "mujoco": "3.3.0", "gl": "osmesa"}
    assert "MUJOCO_GL" not in os.environ  # only the processes that draw get it


def test_every_task_of_the_fifty_has_a_sentence_of_its_own():
    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 50
    assert all(1 <= len(text.split()) <= 12 for text in INSTRUCTIONS.values())
    assert all(name in INSTRUCTIONS for chosen, _ in SETS.values() for name in chosen) and len(MT10) == 10


def test_pretraining_shares_no_task_with_the_three_and_the_vocabulary_tells_all_of_each_apart():
    assert not set(PRETRAINING) & set(THREE)
    for names in (PRETRAINING, THREE):
        tokens = tokenize([INSTRUCTIONS[name] for name in names])
        assert len({tuple(row) for row in tokens.tolist()}) == len(names)


@pytest.fixture
def make(monkeypatch):
    """Makes suites without a simulator."""
    monkeypatch.setattr(module, "installed", lambda: {"package": "none", "gl": "none"})
    return MetaWorldSuite


def test_groups_hold_every_row_once_and_of_every_task_about_as_many(make):
    suite = make(most=6)
    tasks = [suite.tasks[i // 10] for i in range(30)]  # ten of the first, then ten of the second ...
    groups = groups_of(suite, tasks)
    assert [len(rows) for rows in groups] == [6] * 5
    assert all(sorted(tasks[row].name for row in rows) == sorted(THREE * 2) for rows in groups)
    assert groups_of(suite, [suite.tasks[0]] * 7) == [[0, 1, 2, 3, 4, 5], [6]]


def test_robot_is_a_hand_that_does_not_turn_and_its_floor_is_the_lowest_of_its_tasks(make):
    robot = make(repeat=2).robot
    assert robot.action == ("dx", "dy", "dz", "close") and robot.proprio_size == 7
    assert robot.kinematics.translation_step == pytest.approx(0.02) and robot.low[2] == pytest.approx(0.005)
    other = make(tasks=("reach", "lever-pull")).robot
    assert other.low[2] == pytest.approx(-0.195) and other.clear_m is None  # nobody has looked how high its things are
    assert robot.clear_m > robot.ground_m


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "metaworl"}, 'unknown suite of Meta-World .* did you mean "metaworld"'),
        ({"tasks": ("reach", "reech")}, 'unknown task of Meta-World .* did you mean "reach"'),
        ({"tasks": ("reach", "reach")}, "none twice"),
        ({"tasks": ()}, "at least one"),
        ({"views": ("wrist",)}, "views is .*Meta-World has corner, top"),
        ({"size": 0}, "size is 0; it should be a positive integer"),
        ({"most": True}, "most is True"),
        ({"workers": 0}, "workers is 0"),
        ({"timeout_s": -1}, "timeout_s is -1; it should be a positive number of seconds"),
        ({"repeat": 4, "horizon": 126}, "horizon is 126, of actions that are repeated 4 times; .* at most 500 steps"),
    ],
)
def test_wrong_argument_is_refused(make, given, why):
    with pytest.raises(UserError, match=why):
        make(**given)


def test_nothing_goes_on_before_it_is_begun(make):
    suite = make()
    for ask in (suite.expert_actions, suite.places, lambda: suite.step(np.zeros((1, 4)))):
        with pytest.raises(UserError, match="there are no episodes to step: begin at most 24 at once"):
            ask()
