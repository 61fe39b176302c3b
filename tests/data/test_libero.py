"""Files of LIBERO's own layout: written, read back, and read as LIBERO means them."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from worldenv.data.formats.libero import write_libero
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader
from worldenv.errors import UserError
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS

VIEWS = ("agentview", "eye_in_hand")


@pytest.fixture
def made(make):
    """Two demonstrations of one task, with poses as LIBERO has them."""
    found = [make(seed, steps=5 + seed, size=(8, 6), views=VIEWS, camera=False) for seed in range(2)]
    for trajectory in found:
        trajectory.proprio[:, 6] = np.random.default_rng(0).uniform(0, 1, len(trajectory.proprio))
    return [replace(t, instruction="open the drawer", task="open_the_drawer", source="expert") for t in found]


def later(trajectory, start=0):
    """What is left of a trajectory in the layout: all from the second frame on."""
    parts = {name: getattr(trajectory, name)[1:] for name in ("frames", "proprio", "actions", "success")}
    return replace(trajectory, **parts, start=start, camera=None)


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_what_is_written_comes_back_bit_for_bit_from_the_second_frame_on(made, same, tmp_path, convention):
    path = tmp_path / "open_the_drawer_demo.hdf5"
    assert write_libero(path, iter(made), convention=convention) == 2
    with TrajectoryReader(path) as reader:
        same(reader, [later(t, i) for i, t in enumerate(made)])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_camera_that_moves_comes_back_for_every_frame(made, same, tmp_path):
    random, path = np.random.default_rng(1), tmp_path / "open_the_drawer_demo.hdf5"
    moving = [replace(t, camera=random.random((len(t.proprio), 2, 3, 4), dtype=np.float32)) for t in made]
    write_libero(path, moving)
    with TrajectoryReader(path) as reader:
        same(reader, [replace(later(t, i), camera=t.camera[1:]) for i, t in enumerate(moving)])


def test_cameras_come_back_where_all_views_have_one(made, same, tmp_path):
    path, random = tmp_path / "open_the_drawer_demo.hdf5", np.random.default_rng(0)
    cameras = [random.normal(size=(2, 3, 4)).astype(np.float32) for _ in made]
    seen = [replace(t, views=("wrist", "agentview"), camera=c) for t, c in zip(made, cameras, strict=True)]
    write_libero(path, seen)
    with TrajectoryReader(path) as reader:
        assert [t.views for t in reader] == [("agentview", "wrist")] * 2
        assert all(np.array_equal(t.camera, c[::-1]) for t, c in zip(reader, cameras, strict=True))
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/camera/wrist"]
        file["data/demo_1/camera/agentview"][0, 0] = np.inf
    with pytest.raises(TrajectoryFormatError, match="demo_1.*camera/agentview has values that are not finite"):
        TrajectoryReader(path)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/camera/agentview"]
    with TrajectoryReader(path) as reader:
        assert [t.camera for t in reader] == [None, None]


def test_layout_is_that_of_libero(made, tmp_path):
    path, rng = tmp_path / "open_the_drawer_demo.hdf5", np.random.default_rng(0)
    extras = [
        {
            "states": rng.normal(size=(len(t.actions), 11)),
            "obs/joint_states": np.zeros((len(t.actions), 7)),
            "model_file": "<mujoco/>",
        }
        for t in made
    ]
    write_libero(path, made, extras, about={"bddl_file_name": "open_the_drawer.bddl", "env_name": "Kitchen"})
    with h5py.File(path) as file:
        data, demo, first = file["data"], file["data/demo_1"], made[1]
        assert data.attrs["num_demos"] == 2 and data.attrs["total"] == 11
        assert data.attrs["macros_image_convention"] == "opengl" and data.attrs["env_name"] == "Kitchen"
        assert data.attrs["bddl_file_name"] == "open_the_drawer.bddl"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "open the drawer"
        assert json.loads(data.attrs["env_args"])["type"] == 1
        assert demo.attrs["num_samples"] == 6 and demo.attrs["model_file"] == "<mujoco/>"
        np.testing.assert_array_equal(demo.attrs["init_state"], extras[1]["states"][0])
        np.testing.assert_array_equal(demo["states"], extras[1]["states"])
        np.testing.assert_array_equal(demo["actions"], first.actions)  # row t: what was seen after the action
        np.testing.assert_array_equal(demo["obs/eye_in_hand_rgb"], first.frames[1:, 1, ::-1])
        np.testing.assert_array_equal(demo["obs/ee_states"], first.proprio[1:, :6])
        np.testing.assert_array_equal(demo["obs/ee_ori"], first.proprio[1:, 3:6])
        np.testing.assert_allclose(demo["obs/gripper_states"][:, 0], 0.04 * first.proprio[1:, 6], rtol=1e-6)
        np.testing.assert_array_equal(demo["rewards"], first.success.astype(np.uint8))
        assert demo["dones"][()].tolist() == [0] * 5 + [1]
        assert demo["obs/joint_states"].shape == (6, 7) and demo["actions"].dtype == np.float64


def test_each_action_leads_to_the_next_frame(tmp_path):
    """A suite whose actions move the gripper: what is read obeys the same kinematics as what was recorded."""
    made = demonstrate(TASKS[:1], [0], "train")
    write_libero(tmp_path / "a_demo.hdf5", made)
    (found,) = TrajectoryReader(tmp_path / "a_demo.hdf5")
    for trajectory in (made[0], found):
        moved = np.diff(trajectory.proprio[:, :3], axis=0)
        wanted = 0.035 * trajectory.actions[:, :3]  # m, of the suite's kinematics
        assert np.abs(moved - wanted).max() < 1e-6
    assert found.success.tolist() == made[0].success[1:].tolist()


def test_orientation_of_the_file_is_followed_and_overruled(made, tmp_path):
    path = tmp_path / "open_the_drawer_demo.hdf5"
    write_libero(path, made)
    stored = TrajectoryReader(path, orientation="upright")[0].frames
    np.testing.assert_array_equal(stored, made[0].frames[1:, :, ::-1])
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = "directx"
    with pytest.raises(TrajectoryFormatError, match="macros_image_convention is 'directx'; known are opencv, opengl"):
        TrajectoryReader(path)


def test_regenerated_files_are_read_upright_where_the_orientation_is_given(made, tmp_path):
    """They have no attributes, gaps, obs before the action, and pictures as OpenGL renders them."""
    path = tmp_path / "KITCHEN_SCENE3_open_the_drawer_demo.hdf5"
    with h5py.File(path, "w") as file:
        for number, trajectory in zip((0, 3), made, strict=True):
            demo, steps = file.create_group(f"data/demo_{number}"), len(trajectory.actions)
            demo["actions"] = trajectory.actions.astype(np.float64)
            demo["states"], demo["robot_states"] = np.zeros((steps, 79)), np.zeros((steps, 9))
            demo["rewards"] = demo["dones"] = np.eye(steps, dtype=np.uint8)[-1]
            demo["obs/ee_states"] = trajectory.proprio[:-1, :6].astype(np.float64)
            demo["obs/gripper_states"] = trajectory.proprio[:-1, 6:].astype(np.float64) * [[0.04, -0.04]]
            for view, name in enumerate(VIEWS):
                demo[f"obs/{name}_rgb"] = trajectory.frames[:-1, view, ::-1]
    with TrajectoryReader(path, orientation="flipped") as reader:
        assert len(reader) == 2
        for found, trajectory in zip(reader, made, strict=True):
            np.testing.assert_array_equal(found.frames, trajectory.frames[:-1])
            np.testing.assert_array_equal(found.actions, trajectory.actions[:-1])
            np.testing.assert_array_equal(found.proprio, trajectory.proprio[:-1])
            assert found.instruction == "open the drawer" and not found.success.any()


def test_what_the_layout_cannot_hold_is_refused_and_nothing_is_left(made, make, tmp_path):
    path = tmp_path / "open_the_drawer_demo.hdf5"
    other = replace(made[1], instruction="close the drawer")
    states = {"states": np.zeros((5, 3))}
    for trajectories, extras, message in [
        ([], None, "there are no trajectories to write"),
        ([made[0], other], None, "trajectory 1 has another instruction than trajectory 0: 'close the drawer', not"),
        ([make(proprio=5)], None, "proprio has 5 numbers; the layout of LIBERO has 7"),
        ([make(steps=1)], None, "trajectory 0 has one action"),
        ([made[0], make()], None, "trajectory 1 differs from trajectory 0 in views"),
        (["x"], None, "trajectory 0 is a str"),
        (made, [states], "extras ends before trajectory 1"),
        (made, [{"actions": np.zeros((5, 7))}], "actions of extras is written from the trajectory"),
        (made, [{"obs/side_rgb": np.zeros((5, 7))}], "obs/side_rgb of extras is written"),
        (made, [{"states": np.zeros((4, 3))}], r"states of extras is float64 \[4, 3\]; it should be numbers with 5"),
        (made, [{"states": np.full((5, 3), np.nan)}], "states of extras has values that are not finite"),
    ]:
        with pytest.raises(UserError, match=message):
            write_libero(path, trajectories, extras)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="a file of LIBERO is called <task>_demo.hdf5"):
        write_libero(tmp_path / "a.hdf5", made)
    with pytest.raises(UserError, match="convention is 'vulkan'; it should be opengl or opencv"):
        write_libero(path, made, convention="vulkan")
