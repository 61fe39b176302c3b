"""The simulator itself, where Meta-World is installed: exact starts, pictures, cameras, kinematics, experts."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import worldenv
from worldenv.data.clips import Clips
from worldenv.data.record import Record
from worldenv.data.trajectories import TrajectoryWriter
from worldenv.errors import UserError
from worldenv.interfaces.observation import Starts
from worldenv.nn.instruction import tokenize
from worldenv.records.kept import Kept
from worldenv.rollout.checks import check_begun, check_suite
from worldenv.suites.metaworld.demonstrate import demonstrate, disturb
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.metaworld.tasks import HIGH_M, INSTRUCTIONS, PRETRAINING, MetaWorldTask
from worldenv.suites.traced import THERE, TracedThings
from worldenv.training.layers import Layers
from worldenv.training.lessons import MetaWorldLessons
from worldenv.training.pretrain import sample_base_batch

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def suite(metaworld):
    suite = MetaWorldSuite(size=32, horizon=28, most=6, workers=2)
    yield suite
    suite.close()


def acted(suite, numbers, split="test", actions=ACTIONS):
    """First observation and what follows from actions, one episode of each task."""
    starts = suite.reset(suite.tasks, numbers, split)
    steps = [suite.step(action) for action in actions]
    seen = [starts.seen, *(seen for seen, _ in steps)]
    frames, proprio = (torch.stack([getattr(one, name) for one in seen], 1) for name in ("frames", "proprio"))
    return frames, proprio, np.stack([done for _, done in steps], 1)


def test_it_is_a_suite(suite):
    check_suite(suite)
    assert isinstance(suite, worldenv.Suite) and suite.horizon == 28 and suite.about()["mujoco"] == "3.3.0"
    starts = suite.reset(suite.tasks, [0, 1, 2], "test")
    check_begun(starts, suite, 3)
    assert starts.instructions == [INSTRUCTIONS[task.name] for task in suite.tasks]
    assert starts.seen.frames.shape == (3, 1, 32, 32, 3) and starts.seen.frames.float().std() > 20


def test_a_start_state_is_the_same_whatever_was_before_and_in_a_process_of_its_own(suite):
    first = acted(suite, [3, 4, 5])
    acted(suite, [6, 7, 8], "train")
    assert all(np.array_equal(one, other) for one, other in zip(first, acted(suite, [3, 4, 5]), strict=True))
    for i, task in enumerate(suite.tasks):
        alone = MetaWorldSuite(tasks=(task.name,), size=32, workers=1)
        found = acted(alone, [3 + i], actions=ACTIONS[:, i : i + 1])
        alone.close()
        for one, other in zip(first, found, strict=True):
            assert np.array_equal(one[i], other[0])


def test_splits_share_no_start_state_and_numbers_have_no_limit(suite):
    places = []
    for split in ("train", "validation", "test"):
        suite.reset([suite.tasks[0]] * 3, [0, 1, 3 - 2**70], split)
        places += suite.places().tolist()
    assert len({tuple(place) for place in places}) == 9


def test_kinematics_say_exactly_where_the_hand_is_driven_to(suite):
    up_and_down = np.concatenate([ACTIONS, np.full((8, 3, 4), -1), np.full((20, 3, 4), 1)]).astype(np.float32)
    from_start = up_and_down[:28]  # into the lower limits, and away again
    _, proprio, _ = acted(suite, [0, 1, 2], actions=from_start)
    actions = torch.from_numpy(from_start).transpose(0, 1)
    found = worldenv.robot.kinematics.chunk_kinematics(proprio[:, 0], actions, suite.robot.kinematics)
    assert (found[..., :6] - proprio[:, 1:, :6]).abs().max() <= 1e-6
    assert proprio[:, :, 2].min() == pytest.approx(suite.robot.low[2])
    assert (found[..., 6] - proprio[:, 1:, 6]).abs().mean() < 0.1  # the fingers have a mass


def test_camera_says_where_the_fingers_are_in_an_upright_picture(metaworld):
    suite = MetaWorldSuite(tasks=("reach",), size=96, views=("corner", "top"), workers=1)
    seen = suite.reset(suite.tasks, [0], "test").seen
    suite.close()
    place = seen.proprio[0, :3]
    corner, top = seen.frames[0].int()
    # The middle of one finger, which is painted cyan; the hand, which is red, hides it from above.
    u, v = pixel(seen.camera[0, 0], place + torch.tensor([0, 0.05, 0.02]))
    red, green, blue = corner.unbind(-1)
    y, x = ((red < 100) & (green > 130) & (blue > 130)).nonzero(as_tuple=True)
    assert len(x) > 3 and abs(x.float().mean() - u) < 5 and abs(y.float().mean() - v) < 5
    u, v = pixel(seen.camera[0, 1], place + torch.tensor([0, 0, 0.1]))
    red, green, _ = top[round(v) - 2 : round(v) + 3, round(u) - 2 : round(u) + 3].unbind(-1)
    assert (red - green > 30).float().mean() > 0.5


def pixel(camera, point):
    u, v, w = (camera @ torch.cat([point, torch.ones(1)])).tolist()
    return u / w, v / w


def test_a_chunk_at_once_is_its_steps(suite):
    frames, proprio, done = acted(suite, [3, 4, 5])
    suite.reset(suite.tasks, [3, 4, 5], "test")
    seen, together = suite.carry_out(ACTIONS.swapaxes(0, 1))
    assert torch.equal(seen.frames, frames[:, -1]) and torch.equal(seen.proprio, proprio[:, -1])
    assert np.array_equal(together, done)


def test_episodes_of_a_killed_process_are_repeated_exactly(suite):
    expected, before = acted(suite, [3, 4, 5]), suite.about()["repeated_groups"]
    starts = suite.reset(suite.tasks, [3, 4, 5], "test")
    seen = [starts.seen]
    for i, action in enumerate(ACTIONS):
        if i == 3:
            suite._actors[0].process.popen.kill()
        seen.append(suite.step(action)[0])
    assert torch.equal(torch.stack([one.frames for one in seen], 1), expected[0])
    assert suite.about()["repeated_groups"] == before + 1


def test_more_episodes_than_are_held_can_be_begun(suite, capfd):
    starts = suite.reset([suite.tasks[i % 3] for i in range(7)], range(7), "test")
    assert isinstance(starts, Starts) and len(starts) == 7 and "7/7" in capfd.readouterr().err
    assert torch.equal(suite.reset(suite.tasks, [0, 1, 2], "test").seen.frames, starts.seen.frames[:3])
    with pytest.raises(worldenv.UserError, match=r"\[3, K, 4\]"):
        suite.step(np.zeros((3, 7)))


def test_demonstrations_end_in_success_and_record_what_the_expert_wanted(suite):
    tasks = [suite.tasks[i % 3] for i in range(6)]
    shown = demonstrate(suite, tasks, range(6), "train")
    assert len(shown) >= 5  # the expert holds every action for four steps, with noise
    for one in shown:
        assert one.source == "expert" and one.success.any() and not one.success[:-3].any()
        done = torch.from_numpy(np.diff(one.proprio[:, :3], axis=0)) / 0.04
        apart = (done - torch.from_numpy(one.actions[:, :3])).abs()
        assert 1e-3 < apart.mean() < 0.2
    again = demonstrate(suite, tasks, range(6), "train")
    assert all(np.array_equal(one.frames, other.frames) for one, other in zip(shown, again, strict=True))


def written(trajectories, path):
    with TrajectoryWriter(path) as writer:
        for trajectory in trajectories:
            writer.write(trajectory)
    return Clips.open(path)


def test_true_things_are_found_by_carrying_out_recorded_actions_again(suite, tmp_path, monkeypatch):
    record, places = Record(suite, suite.reset(suite.tasks, [5, 6, 7], "train")), []
    for _ in range(18):
        record.step(suite.expert_actions())
        places.append(suite.places()[:, :3])
    clips = written(record.trajectories(suite.tasks, [5, 6, 7], "train", "expert", [18, 18, 14]), tmp_path / "data")
    kept = Kept(tmp_path / "labels", "these episodes")
    things = TracedThings.of(clips, suite, kept)
    with monkeypatch.context() as patch:
        patch.setattr(suite, "ask", lambda *given: pytest.fail("actions are carried out again"))
        read = TracedThings.of(clips, suite, kept)
    for one, other in zip(things._qpos, read._qpos, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert all(np.array_equal(getattr(read, name), getattr(things, name)) for name in ("centre", "held", "movable"))
    things = read
    assert things.centre.shape == (3, 19, 1, 3) and things.movable.all() and (things.held < 0).all()
    assert (things.centre[2, 14:] == things.centre[2, 14]).all()  # past the end
    for row, task in enumerate(suite.tasks):
        end = int(clips.length[row])
        ways = np.stack(places)[:end, row], things.centre[row, 1 : end + 1, 0]
        true, found = (np.linalg.norm(way[-1] - way[0]) for way in ways)
        assert found > 0.03 and (task.name == "handle-press" or abs(true - found) < 0.01), task  # a handle turns
        covers = things.coverage(np.array([row]), np.array([0]), np.array([0]))[0]
        x, y, depth = clips.camera[row, 0].numpy() @ np.r_[things.centre[row, 0, 0], 1]
        at = np.array([part.mean() + 0.5 for part in np.nonzero(covers > 127)])
        assert np.abs(at - [y / depth, x / depth]).max() < 2, task
    which = np.array([0, 0, 2, 0]), np.array([0, 18, 18, 18]), np.zeros(4, dtype=int)
    ask, begun = suite.ask, []
    monkeypatch.setattr(
        suite, "ask", lambda name, episodes, *given: begun.extend(episodes) or ask(name, episodes, *given)
    )
    is_there, hidden = things.occlusion(*which)
    assert [task for task, *_ in begun] == [clips.tasks[0], clips.tasks[2]]  # each episode once
    alone, among = (things._outlines(*which, is_alone)[0] for is_alone in (True, False))
    assert np.array_equal(things._outlines(*which, True, False), [alone, among])
    assert np.array_equal(is_there, things.coverage(*which) > THERE) and np.array_equal(hidden[1], hidden[3])
    before, pressed = hidden.sum((1, 2), dtype=int)[:2]
    assert 3 * before < pressed and not hidden[~is_there].any()  # the box hides the button
    layers = Layers(clips.proprio, things, 4, suite.robot.clear_m)
    assert layers.moves().any(1).all() and layers.at(torch.tensor([0]), torch.tensor([12])).mask.any()


def test_chunks_are_tried_again_after_an_offset_of_the_hand(suite, tmp_path):
    record = Record(suite, suite.reset(suite.tasks, [5, 6, 7], "train"))
    for _ in range(12):
        record.step(suite.expert_actions())
    clips = written(record.trajectories(suite.tasks, [5, 6, 7], "train", "expert"), tmp_path / "data")
    things, proprio = TracedThings.of(clips, suite), clips.proprio.numpy()
    episode, step = np.array([2, 0, 2, 2]), np.array([7, 3, 5, 7])  # the plate is pushed
    offset = np.array([[0, 0, 0], [0.02, -0.01, 0], [0, 0, 0.01], [0.03, 0, 0.12]])
    ahead = step[:, None] + np.arange(4)
    found = things.beside(episode, step, offset, clips.actions.numpy()[episode[:, None], ahead])
    assert found.frames.shape == (4, 32, 32, 3) and found.poses.shape == (4, 5, 7)
    np.testing.assert_allclose(found.poses[:, 0, :3] - proprio[episode, step, :3], offset, atol=1e-6)
    recorded = things.centre[episode[:, None], np.c_[ahead, ahead[:, -1] + 1]]
    np.testing.assert_allclose(found.things.centre[0], recorded[0], atol=2e-3)  # with no offset, what was recorded
    pushed = np.linalg.norm(found.things.centre[:, -1, 0] - found.things.centre[:, 0, 0], axis=-1)
    assert pushed[0] > 0.1 and pushed[3] < pushed[0] / 2  # high above it, where the plate only slides on
    frame = clips.frames_at(torch.tensor([2]), torch.tensor([[7]]))[0, 0, 0].numpy().astype(int)
    apart = [np.abs(frame - found.frames[row]).mean() for row in (0, 3)]
    assert apart[0] < 1 < 2 < apart[1]
    rows, first, thing = np.arange(4), np.zeros(4, dtype=int), np.zeros(4, dtype=int)
    masks = found.things.coverage(rows, first, thing), things.coverage(episode, step, thing)
    assert np.abs(np.subtract(*masks, dtype=int)).max() <= 64  # things are not moved before


def test_episodes_that_differ_from_their_recording_are_refused(suite, tmp_path):
    clips = written(demonstrate(suite, suite.tasks, [0, 1, 2], "train"), tmp_path / "data")
    with pytest.raises(UserError, match=r"differs from its recording when its actions are .* recorded actions "):
        # their actions are recorded without the noise that was carried out
        TracedThings.of(clips, suite, Kept(tmp_path / "labels"))
    assert not (tmp_path / "labels").exists()


def test_disturbed_episodes_of_other_tasks_are_what_a_base_learns_from(suite):
    data = disturb(3, seed=1, like=suite)
    assert data.frames.shape == (3, 29, 32, 32, 3) and data.plans.shape == (3, 28, 4, 4)
    assert data.instructions == tuple(INSTRUCTIONS[name] for name in PRETRAINING[:3])
    assert np.array_equal(data.plans[:, 1:-4, 0], data.plans[:, :-5, 1]) and np.abs(data.place).max() < 0.6
    assert not np.allclose(data.actions[..., :3], data.plans[:, :, 0, :3])
    batch = sample_base_batch(data, tokenize(data.instructions), torch.Generator().manual_seed(0), 5, 3)
    assert batch["action"].shape == (5, 4, 4) and batch["place"].shape == (5, 6)


def test_rivals_are_the_other_tasks(metaworld):
    lessons = MetaWorldLessons()
    assert [task.name for task in lessons.rivals("handle-press")] == ["button-press-topdown", "plate-slide"]


LIMITS = """
import json, os
os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = {gl!r}
from worldenv.suites.metaworld.scene import Scene, Lens
from worldenv.suites.metaworld import scene
from worldenv.suites.metaworld.tasks import INSTRUCTIONS
scene.Lens = lambda *given: None  # nothing is drawn
limits = {{}}
for name in INSTRUCTIONS:
    env = Scene(name, 64, ("corner",), {gl!r}).env
    limits[name] = env.mocap_low.tolist(), env.mocap_high.tolist()
print(json.dumps(limits))
"""


def test_limits_are_those_of_all_fifty_tasks(metaworld):
    script = [sys.executable, "-W", "ignore", "-c", LIMITS.format(gl=metaworld["gl"])]
    done = subprocess.run(script, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name, (low, high) in json.loads(done.stdout.splitlines()[-1]).items():
        assert low == pytest.approx(MetaWorldTask(name).low_m) and high == pytest.approx(HIGH_M), name
