"""Cameras that move: one matrix for each frame, kept by the formats that can hold it; others stay as they were."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import worldenv
from worldenv.data.clips import Clips
from worldenv.data.orientation import agreement
from worldenv.data.record import Record
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError
from worldenv.evaluation.truth import starts_of
from worldenv.interfaces.observation import Observation, Starts, table_of

VIEWS = ("agentview", "wrist")


@pytest.fixture
def moving(make):
    """A trajectory whose second camera moves, and the first stands still."""

    def made(seed=0, steps=5, **more):
        still = make(seed, steps, views=VIEWS, **more)
        camera = np.repeat(still.camera[None], steps + 1, axis=0)
        camera[:, 1] += np.random.default_rng(seed).normal(size=(steps + 1, 3, 4)).astype(np.float32)
        return replace(still, camera=camera)

    return made


def written(folder, trajectories):
    with TrajectoryWriter(folder) as writer:
        for trajectory in trajectories:
            writer.write(trajectory)
    return folder / "part-00000.h5"


def test_it_comes_back_bit_for_bit_beside_one_that_stands_still(moving, make, same, tmp_path):
    made = [make(2, views=VIEWS), moving(0), moving(1, steps=3)]
    part = written(tmp_path / "set", made)
    same(TrajectoryReader(tmp_path / "set"), made)
    with h5py.File(part) as file:
        assert file["data"].attrs["worldenv_format"] == 3  # older versions say that they do not know it
        assert [file[f"data/demo_{i}/camera"].shape for i in range(3)] == [(2, 3, 4), (6, 2, 3, 4), (4, 2, 3, 4)]


def test_file_of_cameras_that_stand_still_stays_as_it_was(make, tmp_path):
    with h5py.File(written(tmp_path / "set", [make(), make(1)])) as file:
        assert file["data"].attrs["worldenv_format"] == 2 and file["data/demo_1/camera"].shape == (1, 3, 4)


@pytest.mark.parametrize("shape", [(4, 2, 3, 4), (6, 1, 3, 4), (6, 2, 3), (1, 6, 2, 3, 4)])
def test_cameras_of_other_frames_or_views_are_refused(moving, tmp_path, shape):
    with pytest.raises(UserError, match=r"camera is float32 \["):
        replace(moving(), camera=np.zeros(shape, np.float32))
    part = written(tmp_path / "set", [moving()])
    with h5py.File(part, "r+") as file:
        demo = file["data/demo_0"]
        del demo["camera"], demo.attrs["crc32"]
        demo["camera"] = np.zeros(shape, np.float32)
    with pytest.raises(TrajectoryFormatError, match="demo_0: .*camera"):
        TrajectoryReader(part)


def test_damage_is_found_by_the_checksum(moving, tmp_path):
    part = written(tmp_path / "set", [moving()])
    with h5py.File(part, "r+") as file:
        file["data/demo_0/camera"][3, 1, 0, 0] += 1
    with pytest.raises(TrajectoryFormatError, match="its checksum differs"):
        TrajectoryReader(part)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_keeps_it(moving, make, same, tmp_path, version):
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    made = [moving(0), make(1, views=VIEWS), moving(2, steps=2)]
    worldenv.write_lerobot(tmp_path / "set", made, 20, version=version, pictures="png")
    same(worldenv.LeRobotReader(tmp_path / "set"), made)
    halved = worldenv.LeRobotReader(tmp_path / "set", size=(14, 18))[0]  # the camera goes with the size
    np.testing.assert_allclose(halved.camera[..., :2, :], 2 * made[0].camera[..., :2, :], rtol=1e-6)
    with pytest.raises(UserError, match=r"camera is \[6, 2, 3, 4\]; it should be finite numbers \[2, 3, 4\]"):
        worldenv.LeRobotReader(tmp_path / "set", camera=made[0].camera)


def test_clips_give_the_camera_of_each_frame(moving, make, tmp_path):
    made = [moving(0), make(1, 3, views=VIEWS), moving(2, steps=2)]
    written(tmp_path / "set", made)
    episode, step = torch.tensor([2, 0, 1]), torch.tensor([[0, 2, 5], [5, 1, 0], [0, 3, 9]])
    for clips in (Clips.of(made), Clips.open(tmp_path / "set"), Clips.open(tmp_path / "set").in_memory()):
        assert clips.camera.shape == (3, 6, 2, 3, 4)
        found = clips.cameras_at(episode, step.clamp(max=5)).numpy()
        np.testing.assert_array_equal(found[1], made[0].camera[[5, 1, 0]])
        np.testing.assert_array_equal(found[0], made[2].camera[[0, 2, 2]])  # past the end the last one
        np.testing.assert_array_equal(found[2], np.stack([made[1].camera] * 3))
        assert torch.equal(clips.pick(episode).cameras_at(torch.tensor([1]), step[:1])[0], clips.camera[0, step[0]])
        assert torch.equal(clips.still_camera(), clips.camera[:, 0])  # the first view stands still


def test_clips_of_cameras_that_stand_still_keep_one_for_each_episode(make):
    clips = Clips.of([make(i) for i in range(3)])
    assert clips.camera.shape == (3, 1, 3, 4) and clips.still_camera() is clips.camera
    found = clips.cameras_at(torch.tensor([2, 0]), torch.tensor([[0, 4], [1, 1]]))
    assert torch.equal(found, clips.camera[[2, 0]][:, None].expand(2, 2, 1, 3, 4))


def test_first_camera_that_moves_is_refused_where_it_must_stand_still(moving, make):
    made = moving()
    swapped = replace(made, camera=made.camera[:, ::-1].copy(), views=VIEWS[::-1])
    with pytest.raises(UserError, match="the camera of the view wrist moves; it should stand still here"):
        Clips.of([swapped]).still_camera()
    with pytest.raises(UserError, match="the trajectories have no camera matrix"):
        Clips.of([make(camera=False)]).still_camera()


def test_starts_of_recordings_have_the_first_cameras(moving, make):
    starts = starts_of([moving(0), make(1, views=VIEWS)])
    assert np.array_equal(starts.seen.camera[0], moving(0).camera[0])
    assert np.array_equal(starts.seen.camera[1], make(1, views=VIEWS).camera)


def test_pictures_are_compared_with_the_camera_of_their_frame(tiny):
    rng, trajectory = np.random.default_rng(0), tiny.trajectory(20)
    frames, proprio = rng.integers(0, 256, trajectory.frames.shape, np.uint8), rng.uniform(-0.15, 0.15, (21, 7))
    trajectory = replace(trajectory, frames=frames, proprio=proprio.astype(np.float32))
    still = agreement([trajectory])
    assert still.changes == 20 and still.across != 0
    same_everywhere = replace(trajectory, camera=np.repeat(trajectory.camera[None], 21, axis=0))
    assert agreement([same_everywhere]) == still
    moved = same_everywhere.camera.copy()
    moved[::2, :, 0] *= -1  # the columns are reversed in every other frame
    assert abs(agreement([replace(trajectory, camera=moved)]).across - still.across) > 0.01


class Turning:
    """A suite of one view whose camera moves, or stands still."""

    name, horizon, views = "turning", 5, ("only",)

    def __init__(self, speed):
        self.speed = speed

    def reset(self, tasks, starts, split):
        self.at, (texts, self.text) = 0, table_of(["look"] * len(tasks))
        return Starts(self.see(), texts)

    def step(self, action):
        self.at += 1
        return self.see(), np.zeros(len(action), bool)

    def see(self):
        camera = torch.eye(3, 4).repeat(len(self.text), 1, 1, 1) + self.speed * self.at
        frames = torch.zeros(len(self.text), 1, 4, 4, 3, dtype=torch.uint8)
        return Observation(frames, torch.zeros(len(self.text), 7), camera, self.text)


class Look:
    name = "look"


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_recorded_episodes_have_the_cameras_that_the_suite_showed(speed):
    suite, tasks = Turning(speed), [Look(), Look()]
    record = Record(suite, suite.reset(tasks, [0, 1], "train"))
    for _ in range(4):
        record.step(np.zeros((2, 7), np.float32))
    long, short = record.trajectories(tasks, [0, 1], "train", "expert", [4, 2])
    if not speed:
        assert long.camera.shape == (1, 3, 4) and len({id(camera) for camera in record.cameras}) == 1
        return
    assert (long.camera.shape, short.camera.shape) == ((5, 1, 3, 4), (3, 1, 3, 4))
    for step, camera in enumerate(long.camera):
        np.testing.assert_array_equal(camera[0], np.eye(3, 4) + step)


def test_a_camera_that_began_to_move_after_a_short_episode_does_not_count(tiny):
    suite, tasks = Turning(0.0), [Look()] * 2
    record = Record(suite, suite.reset(tasks, [0, 1], "train"))
    record.step(np.zeros((2, 7), np.float32))
    suite.speed = 1.0
    record.step(np.zeros((2, 7), np.float32))
    short, long = record.trajectories(tasks, [0, 1], "train", "expert", [1, 2])
    assert short.camera.shape == (1, 3, 4) and long.camera.shape == (3, 1, 3, 4)
