"""LiberoSuite without LIBERO: which episodes are held together, and what happens when their processes go wrong."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import worldenv
from worldenv.evaluation.truth import groups_of
from worldenv.rollout.checks import check_begun, check_suite
from worldenv.suites import actors
from worldenv.suites.libero.panda import KINEMATICS, PANDA
from worldenv.suites.libero.suite import LiberoSuite

FAKE = Path(__file__).with_name("fake_process.py")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 2, 7)).astype(np.float32)


@pytest.fixture
def make(tmp_path):
    """Makes suites that a fake process simulates."""
    made = []

    def build(name="libero_object", wrong="", **given):
        program = (sys.executable, str(FAKE), wrong, str(tmp_path / "went-wrong"))
        suite = LiberoSuite(name, **{"size": 8, "workers": 2, "program": program, "timeout_s": 20.0} | given)
        made.append(suite)
        return suite

    yield build
    for suite in made:
        suite.close()


def acted(suite, actions=ACTIONS):
    """Proprioception, frames and success of two episodes, step by step."""
    starts = suite.reset(suite.tasks[1:3], [4, 5], "test")
    steps = [suite.step(action) for action in actions]
    seen = [starts.seen, *(seen for seen, _ in steps)]
    return (
        torch.stack([one.proprio for one in seen]),
        torch.stack([one.frames for one in seen]),
        np.stack([done for _, done in steps]),
    )


def test_it_is_a_suite(make):
    suite = make(views=("agentview", "wrist"))
    check_suite(suite)
    assert isinstance(suite, worldenv.Suite) and suite.name == "libero_object" and suite.horizon == 280
    assert [task.instructions for task in suite.tasks][:2] == [("put the red can down",), ("put the green can down",)]
    starts = suite.reset(suite.tasks[:2], [4, 5], "test")
    check_begun(starts, suite, 2)
    assert starts.instructions == ["put the red can down", "put the green can down"]
    assert starts.seen.frames.shape == (2, 2, 8, 8, 3)
    assert suite.about()["package"] == "fake" and suite.about()["repeated_episodes"] == 0


def test_its_robot_moves_as_often_as_an_action_is_carried_out(make):
    for repeat in (1, 2):
        robot = make(repeat=repeat).robot
        assert replace(robot, clear_m=None) == replace(PANDA, kinematics=replace(KINEMATICS, repeat=repeat))
        assert robot.clear_m > robot.ground_m == 0  # the things of libero_object stand on the floor
    assert make(repeat=2, robot=PANDA).robot is PANDA


def test_requests_do_not_wait_for_each_other_and_scenes_are_built_once(make):
    suite = make()
    slow, quick = [("task_2", 4, "test")], [("task_1", start, "test") for start in range(8)]
    begun, seconds = quick[:4] + slow + quick[4:], [(0.0,)] * 4 + [(3.0,)] + [(0.0,)] * 4
    answers = suite.ask("pause", begun, seconds)
    assert [answer[:2] for answer in answers] == [(int(name[-1]), start) for name, start, _ in begun]
    processes = {number: {pid for task, _, pid in answers if task == number} for number in (1, 2)}
    assert len(processes[1]) == len(processes[2]) == 1  # the other one is busy with the slow request
    again = suite.ask("pause", begun[::-1], seconds[::-1])
    assert {pid for *_, pid in again} == processes[1] | processes[2]  # no scene was built again


@pytest.mark.parametrize("wrong", ["crash", "hang", "raise"])
def test_a_request_is_repeated_if_its_process_goes_wrong(make, wrong):
    suite = make(wrong=wrong, timeout_s=2.0)
    begun = [(f"task_{i % 3}", i, "test") for i in range(6)]
    answers = suite.ask("pause", begun, [(0.0,)] * 6)
    assert [answer[:2] for answer in answers] == [(i % 3, i) for i in range(6)] and suite.repeated >= 1


def test_some_of_the_tasks_can_be_taken_by_number_or_name(make):
    suite = make(tasks=(2, "task_0"))
    assert [(task.number, task.name) for task in suite.tasks] == [(2, "task_2"), (0, "task_0")]
    assert suite.reset(suite.tasks, [4, 5], "test").seen.proprio[:, 0].tolist() == [2, 0] and len(suite.listed) == 4
    with pytest.raises(worldenv.UserError, match="is no task of libero_object"):
        suite.reset(suite.listed[:2], [4, 5], "test")


def test_test_starts_are_the_official_states_and_the_splits_share_no_seed(make):
    suite = make()
    one = [suite.tasks[0]] * 2
    test = suite.reset(one, [4, 54], "test").seen.proprio
    assert test[:, 1].tolist() == [4, 4] and test[0, 2] != test[1, 2]
    train, held_out = (suite.reset(one, [4, 4], split).seen.proprio for split in ("train", "validation"))
    assert train[:, 1].tolist() == [-1, -1] and train[0, 2] == train[1, 2] != held_out[0, 2] != test[0, 2]
    assert suite.reset(one, [-1, 2**40], "test").seen.proprio[:, 1].tolist() == [49, 2**40 % 50]


def test_groups_hold_every_row_once_and_build_few_scenes(make):
    suite = make(workers=3)
    tasks = [suite.tasks[i % 4] for i in range(22)]
    groups = groups_of(suite, tasks)
    assert sorted(sum(groups, [])) == list(range(22)) and max(map(len, groups)) == 3 and len(groups) == 8
    by_actor = [[tasks[rows[i]].number for rows in groups if i < len(rows)] for i in range(3)]
    changes = sum(1 + int((np.diff(numbers) != 0).sum()) for numbers in by_actor)
    assert changes == 4 + 3 - 1 and all(numbers == sorted(numbers) for numbers in by_actor)


def test_more_episodes_than_are_held_can_be_begun_and_not_stepped(make, capfd):
    suite = make()
    tasks, numbers = [suite.tasks[i] for i in (3, 0, 2, 0, 1)], [5, 6, 7, 8, 9]
    starts = suite.reset(tasks, numbers, "test")
    assert starts.seen.proprio[:, :2].tolist() == [[3, 5], [0, 6], [2, 7], [0, 8], [1, 9]]
    assert starts.instructions == [task.instruction for task in tasks]
    assert "start states of libero_object  5/5" in capfd.readouterr().err
    with pytest.raises(worldenv.UserError, match="there are no episodes to step: begin at most 2 at once"):
        suite.step(np.zeros((5, 7)))


def test_rows_keep_their_order_whatever_their_tasks(make):
    suite = make()
    suite.reset([suite.tasks[2], suite.tasks[0]], [1, 2], "test")
    seen, _ = suite.step(np.array([[0.5] * 7, [-0.5] * 7]))
    assert seen.proprio[:, 0].tolist() == [2.5, -0.5] and seen.proprio[:, 3].tolist() == [0.5, -0.5]


def test_a_chunk_at_once_is_its_steps_and_draws_once(make):
    suite = make()
    proprio, frames, success = acted(suite)
    suite.reset(suite.tasks[1:3], [4, 5], "test")
    seen, done = suite.carry_out(ACTIONS.transpose(1, 0, 2))
    assert torch.equal(seen.proprio, proprio[-1]) and torch.equal(seen.frames, frames[-1])
    assert np.array_equal(done, success.T) and done.any()


def test_a_repeated_action_is_done_if_it_was_done_at_any_time(make):
    suite = make(repeat=3)
    assert suite.horizon == 93
    suite.reset(suite.tasks[:2], [4, 5], "test")
    seen, done = suite.carry_out(np.full((2, 2, 7), 0.25))
    assert done.tolist() == [[False, True]] * 2  # done after the fourth of six
    assert seen.proprio[:, 3].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("wrong", ["crash", "raise", "hang"])
def test_an_episode_whose_process_goes_wrong_is_repeated_and_counted(make, wrong):
    expected = acted(make())
    suite = make(wrong=wrong)
    if wrong == "hang":
        for actor in suite._actors:
            actor.timeout_s = 4.0  # a new process needs some of them to start
    for mine, other in zip(acted(suite), expected, strict=True):
        assert np.array_equal(mine, other)
    # Both episodes reach the place together: the first marks it, and the other may have looked before.
    assert suite.repeated == suite.about()["repeated_episodes"] in (1, 2)


def test_a_killed_process_is_replaced_between_requests_too(make):
    suite = make()
    suite.reset(suite.tasks[:2], [4, 5], "test")
    suite.step(ACTIONS[0])
    suite._actors[1].process.popen.kill()
    seen, _ = suite.step(ACTIONS[1])
    assert seen.proprio[1, 3].item() == pytest.approx(float(ACTIONS[0, 1, 3] + ACTIONS[1, 1, 3]))
    suite._actors[0].process.popen.kill()
    assert suite.reset(suite.tasks[:2], [6, 7], "test").seen.proprio[:, 1].tolist() == [6, 7]
    assert suite.repeated == 2


@pytest.mark.parametrize(("wrong", "why"), [("crash", "SIGABRT and said: .*the last words"), ("raise", "exploded")])
def test_an_episode_that_always_goes_wrong_is_given_up_in_one_line(make, wrong, why):
    suite = make(wrong=f"always-{wrong}")
    with pytest.raises(worldenv.UserError, match=f"failed {actors.ATTEMPTS} times at the same step .*{why}") as found:
        acted(suite)
    assert "\n" not in str(found.value)
    assert suite.reset(suite.tasks[:2], [6, 7], "test").seen.proprio[:, 1].tolist() == [6, 7]  # and others go on


def test_a_policy_acts_in_groups_as_it_acts_in_all_episodes_at_once(make, tiny):
    few, many = (make(size=16, horizon=6, workers=workers) for workers in (2, 5))
    tasks, numbers = [few.tasks[i] for i in (3, 0, 2, 0, 1)], [5, 6, 7, 8, 9]
    mine, other = (
        worldenv.act_in_true(tiny.policy(), suite, tasks, numbers, "test", 1.0, seed=3) for suite in (few, many)
    )
    for one, whole, task, number in zip(mine, other, tasks, numbers, strict=True):
        assert (one.task, one.start, one.instruction) == (task.name, number, task.instruction)
        assert np.allclose(one.actions, whole.actions, atol=1e-4) and np.array_equal(one.success, whole.success)
    steps = worldenv.steps_to_success(tiny.policy(), few, tasks, numbers, "test")
    assert steps.tolist() == [4] * 5  # after the fourth action the fake says so


def test_what_the_simulator_refuses_is_told(make):
    with pytest.raises(worldenv.UserError, match="^the fake has no long tasks$"):
        make("libero_10")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "libero_objekt"}, 'unknown suite of LIBERO .* did you mean "libero_object"'),
        ({"name": ["libero_object"]}, "unknown suite of LIBERO"),
        ({"views": ("top",)}, "views is .*LIBERO has agentview, wrist"),
        ({"views": ()}, "views is"),
        ({"views": "wrist"}, "views is 'wrist'; it should be a tuple"),
        ({"views": ("wrist", "wrist")}, "views is"),
        ({"timeout_s": 0}, "timeout_s is 0; it should be a positive number of seconds"),
        ({"pictures": "nice"}, "fast or official"),
        ({"repeat": 0}, "repeat is 0; it should be a positive integer"),
        ({"workers": 0}, "workers is 0"),
        ({"size": 8.5}, "size is 8.5"),
        ({"tasks": ()}, "tasks is .*; it should be a tuple of numbers or names of tasks"),
        ({"tasks": (0, 7)}, "tasks has 7, no task of this suite: numbers are 0 to 3"),
        ({"tasks": ("task_11",)}, "tasks has 'task_11', no task of this suite.*did you mean"),
        ({"tasks": (1, "task_1")}, "it has a task twice"),
        ({"practice_starts": 0}, "practice_starts is 0"),
        ({"name": "libero_goal", "shuffled": True}, "shuffled is for libero_object, .*not for libero_goal"),
    ],
)
def test_wrong_argument_is_refused(make, given, why):
    with pytest.raises(worldenv.UserError, match=why):
        make(**given)


def test_wrong_episodes_and_actions_are_refused(make):
    suite, other = make(), type("Task", (), {"name": "stack", "instructions": ("stack",)})()
    for tasks, starts, split, why in (
        ([other], [0], "test", "is no task of libero_object"),
        (suite.tasks[:1], [0, 1], "test", "1 tasks and 2 start states"),
        ([], [], "test", "0 tasks"),
        (suite.tasks[:1], [0], "trian", "one of train, validation, test"),
        (suite.tasks[:1], [0.5], "test", "a start state is 0.5; it should be an integer"),
    ):
        with pytest.raises(worldenv.UserError, match=why):
            suite.reset(tasks, starts, split)
    suite.reset(suite.tasks[:2], [0, 1], "test")
    for actions, why in ((np.zeros((2, 6)), r"\[2, K, 7\]"), (np.full((2, 7), np.nan), "not finite")):
        with pytest.raises(worldenv.UserError, match=why):
            suite.step(actions)


PARENT = """
import os, sys, time
from worldenv.suites.actors import Process
process = Process({program!r})
process.ask(("load", "libero_object", 0, 8, ("agentview",), "fast", False))
process.ask(("begin", 0, 0, False))
process.answer(20)
print(process.popen.pid, flush=True)
time.sleep(1000)
"""


def test_processes_end_with_their_parent(tmp_path):
    program = (sys.executable, str(FAKE), "", str(tmp_path / "no"))
    code = PARENT.format(program=program)
    path = os.environ | {"PYTHONPATH": str(actors.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=path) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":  # ended, and nobody has asked how
            return
        time.sleep(0.1)
    pytest.fail("the process lives on")
