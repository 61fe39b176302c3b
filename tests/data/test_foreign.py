"""Files of LIBERO, regenerated ones, and robomimic's."""

import json

import h5py
import numpy as np
import pytest

from worldenv.data.clips import Clips
from worldenv.data.formats.foreign import axis_angle
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader
from worldenv.errors import UserError


def write_libero_file(path, steps=6, views=("agentview",), numbers=(0,), attributes=("num_demos", "problem_info")):
    rng = np.random.default_rng(0)
    array = {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "rewards": np.eye(steps, dtype=np.uint8)[-1],
        "dones": np.eye(steps, dtype=np.uint8)[-1],
        "obs/ee_states": rng.normal(size=(steps, 6)),
        "obs/gripper_states": np.array([[0.04, -0.04], [0.02, -0.02], [0, 0], [0.05, -0.05], [0.01, -0.03], [0, 0]]),
    }
    for view in views:
        array[f"obs/{view}_rgb"] = rng.integers(0, 256, (steps, 8, 6, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        found = {
            "num_demos": len(numbers),
            "problem_info": json.dumps({"language_instruction": ["open ", "the drawer"]}),
        }
        data.attrs.update({name: found[name] for name in attributes})
        for number in numbers:
            for name, value in array.items():
                data[f"demo_{number}/{name}"] = value
    return array


def test_file_of_libero_itself_opens(tmp_path):
    path = tmp_path / "open_the_drawer_demo.hdf5"
    array = write_libero_file(path)
    with TrajectoryReader(path) as reader:
        found = reader[0]
    np.testing.assert_array_equal(found.frames[:, 0], array["obs/agentview_rgb"])
    np.testing.assert_array_equal(found.actions, array["actions"][1:].astype(np.float32))  # of obs[t], obs[t + 1]
    np.testing.assert_allclose(found.proprio[:, 6], [1, 0.5, 0, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(found.success, [False, False, False, False, True])
    assert found.instruction == "open the drawer" and found.task == "open_the_drawer" and found.source == "expert"
    assert found.camera is None and found.views == ("agentview",)


def test_wrist_camera_of_libero_is_the_second_view(tmp_path):
    array = write_libero_file(tmp_path / "a.hdf5", views=("agentview", "eye_in_hand"))
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        assert reader[0].views == ("agentview", "eye_in_hand")
        np.testing.assert_array_equal(reader[0].frames[:, 1], array["obs/eye_in_hand_rgb"])


@pytest.mark.parametrize("attributes", [(), ("problem_info",)])
def test_regenerated_libero_opens_with_gaps_and_success_where_it_belongs(tmp_path, attributes):
    path = tmp_path / "KITCHEN_SCENE3_open_the_drawer_demo.hdf5"
    write_libero_file(path, numbers=(0, 2, 10), attributes=attributes)
    with h5py.File(path, "r+") as file:
        file["data/demo_2/rewards"][3] = 1
    with TrajectoryReader(path) as reader:
        assert len(reader) == 3 and [t.start for t in reader] == [0, 1, 2]
        assert reader[1].instruction == "open the drawer"
        assert reader[1].success.tolist() == [False, False, False, True, False]  # obs[t] is before actions[t]


def test_rewards_in_floats_and_a_first_demo_of_another_number_are_read(tmp_path):
    write_libero_file(tmp_path / "a.hdf5", numbers=(1,))
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        del file["data/demo_1/rewards"]
        file["data/demo_1/rewards"] = np.array([0, 0, 0, 1.0, 0, 1.0])
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        assert reader[0].success.tolist() == [False, False, True, False, True]


def write_robomimic_file(path, steps=5, number=3, **attributes):
    """A file as robomimic leaves it; returns what it holds."""
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(steps + 1, 4))
    seen = {
        "agentview_image": rng.integers(0, 256, (steps + 1, 8, 6, 3), dtype=np.uint8),
        "robot0_eye_in_hand_image": rng.integers(0, 256, (steps + 1, 8, 6, 3), dtype=np.uint8),
        "robot0_eef_pos": rng.normal(size=(steps + 1, 3)),
        "robot0_eef_quat": turn / np.linalg.norm(turn, axis=1, keepdims=True),
        "robot0_gripper_qpos": np.linspace((0.04, -0.04), (0, 0), steps + 1),
        "object": rng.normal(size=(steps + 1, 10)),
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"total": steps, "env_args": json.dumps({"env_name": "Lift", "type": 1}), **attributes})
        demo = data.create_group(f"demo_{number}")
        demo.attrs["num_samples"] = steps
        demo["actions"], demo["states"] = rng.uniform(-1, 1, (steps, 7)), rng.normal(size=(steps, 32))
        demo["rewards"] = demo["dones"] = np.eye(steps)[-1]
        for name, value in seen.items():
            demo[f"obs/{name}"], demo[f"next_obs/{name}"] = value[:-1], value[1:]
        file["mask/valid"] = np.array([f"demo_{number}".encode()])
    return seen


def test_robomimic_opens_with_the_frame_after_the_last_action(tmp_path):
    seen = write_robomimic_file(tmp_path / "image.hdf5")
    with TrajectoryReader(tmp_path / "image.hdf5", instruction="lift the cube") as reader:
        found = reader[0]
    assert found.views == ("agentview", "eye_in_hand") and len(found.actions) == 5
    np.testing.assert_array_equal(found.frames[:, 0], seen["agentview_image"])
    np.testing.assert_array_equal(found.frames[:, 1], seen["robot0_eye_in_hand_image"])
    np.testing.assert_array_equal(found.proprio[:, :3], seen["robot0_eef_pos"].astype(np.float32))
    np.testing.assert_allclose(found.proprio[:, 6], [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-6)
    assert found.success.tolist() == [False, False, False, False, True]
    assert (found.instruction, found.task, found.split) == ("lift the cube", "Lift", "valid")


def test_robomimic_without_next_obs_has_no_frame_after_the_last_action(tmp_path):
    seen = write_robomimic_file(tmp_path / "image.hdf5")
    with h5py.File(tmp_path / "image.hdf5", "r+") as file:
        del file["data/demo_3/next_obs"]
    with TrajectoryReader(tmp_path / "image.hdf5", instruction="lift the cube") as reader:
        assert len(reader[0].actions) == 4 and not reader[0].success.any()
        np.testing.assert_array_equal(reader[0].frames[:, 0], seen["agentview_image"][:-1])
    clips = Clips.open(tmp_path / "image.hdf5", "lift the cube")
    assert clips.instructions == ("lift the cube",) and clips.frame_shape == (2, 8, 6)


def test_instruction_is_where_it_is_or_asked_for(tmp_path):
    path = tmp_path / "image.hdf5"
    write_robomimic_file(path)
    with pytest.raises(TrajectoryFormatError, match=r"has no instruction: give it, TrajectoryReader\(path, instruct"):
        TrajectoryReader(path)
    with h5py.File(path, "r+") as file:
        file["data/demo_3"].attrs["ep_meta"] = json.dumps({"lang": "lift it"})
    assert TrajectoryReader(path)[0].instruction == "lift it"
    write_robomimic_file(path, problem_info=np.bytes_(json.dumps({"language_instruction": '"grasp it"'})))
    assert TrajectoryReader(path)[0].instruction == "grasp it"
    assert TrajectoryReader(path, instruction="take it")[0].instruction == "take it"
    write_robomimic_file(path, problem_info="{")
    with pytest.raises(TrajectoryFormatError, match="/data: the attribute problem_info is not JSON"):
        TrajectoryReader(path)
    with pytest.raises(UserError, match="instruction is ''"):
        TrajectoryReader(path, instruction="")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewards", np.linspace(0.1, 1, 5), "rewards is 0.1 at row 0: success is told by rewards of 0 and 1"),
        ("obs/robot0_eef_quat", np.zeros((5, 4)), "a quaternion is no rotation: its length is 0 at row 0"),
        ("obs/robot0_eef_quat", None, r"obs has not ee_states \[T, 6\], or .* \(found agentview_image, object"),
        ("next_obs/agentview_image", None, "the dataset next_obs/agentview_image is missing"),
        (
            "obs/agentview_image",
            np.zeros((5, 9, 6, 3), np.uint8),
            "obs/robot0_eye_in_hand_image has another image size",
        ),
        ("next_obs", np.zeros(3), "next_obs is not a group"),
        ("actions", np.full((5, 7), 2.0), r"actions reach 2: they should be in \[-1, 1\]"),
    ],
)
def test_robomimic_file_that_cannot_be_read_says_what_is_in_it(tmp_path, key, value, message):
    path = tmp_path / "lift_demo.hdf5"
    write_robomimic_file(path)
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_3/{key}"]
        if value is not None:
            file[f"data/demo_3/{key}"] = value
    with pytest.raises(TrajectoryFormatError, match=f"lift_demo.hdf5: /data/demo_3: {message}"):
        TrajectoryReader(path)


def test_number_of_samples_that_differs_is_refused(tmp_path):
    write_robomimic_file(tmp_path / "lift_demo.hdf5")
    with h5py.File(tmp_path / "lift_demo.hdf5", "r+") as file:
        file["data/demo_3"].attrs["num_samples"] = 7
    with pytest.raises(TrajectoryFormatError, match="has num_samples 7, but 5 actions"):
        TrajectoryReader(tmp_path / "lift_demo.hdf5")


def test_pictures_and_poses_of_either_name_go_together(tmp_path):
    write_libero_file(tmp_path / "a_demo.hdf5", attributes=())
    with h5py.File(tmp_path / "a_demo.hdf5", "r+") as file:
        obs = file["data/demo_0/obs"]
        obs.move("agentview_rgb", "agentview_image")
        pose = obs["ee_states"][()]
        del obs["ee_states"]
        obs["ee_pos"], obs["ee_ori"] = pose[:, :3], pose[:, 3:]
    with TrajectoryReader(tmp_path / "a_demo.hdf5") as reader:
        np.testing.assert_array_equal(reader[0].proprio[:, :6], pose.astype(np.float32))


def test_big_endian_and_double_precision_are_read_as_they_are(tmp_path):
    write_libero_file(tmp_path / "a.hdf5")
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        before = reader[0]
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        for name, dtype in (("actions", ">f8"), ("obs/ee_states", ">f4"), ("rewards", ">i8")):
            value = file[f"data/demo_0/{name}"][()].astype(dtype)
            del file[f"data/demo_0/{name}"]
            file[f"data/demo_0/{name}"] = value
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        np.testing.assert_array_equal(reader[0].actions, before.actions)
        np.testing.assert_array_equal(reader[0].proprio, before.proprio)
        np.testing.assert_array_equal(reader[0].success, before.success)


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ((0, 0, 0, 1), (0, 0, 0)),
        ((1, 0, 0, 0), (np.pi, 0, 0)),  # a hand that looks down
        ((0, 0.5**0.5, 0, 0.5**0.5), (0, np.pi / 2, 0)),
        ((0, 0, -(0.5**0.5), 0.5**0.5), (0, 0, -np.pi / 2)),
        ((0.5, 0.5, 0.5, 0.5), (2 * np.pi / 3 / 3**0.5,) * 3),  # x -> y -> z
        ((0, 0, 0.5**0.5, -(0.5**0.5)), (0, 0, 1.5 * np.pi)),  # not shortened, as in ee_states
        ((1e-9, 0, 0, 1), (2e-9, 0, 0)),
    ],
)
def test_quaternion_becomes_axis_times_angle(quaternion, expected):
    np.testing.assert_allclose(axis_angle(np.array([quaternion])), [expected], rtol=1e-9, atol=1e-15)


def test_axis_times_angle_turns_vectors_as_the_quaternion_does():
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(50, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    vector = rng.normal(size=(50, 3))
    turn, w = quaternion[:, :3], quaternion[:, 3:]
    expected = vector + 2 * np.cross(turn, np.cross(turn, vector) + w * vector)
    found = axis_angle(quaternion)
    angle = np.linalg.norm(found, axis=1, keepdims=True)
    axis = found / angle
    along = axis * (axis * vector).sum(1, keepdims=True)
    rodrigues = along + np.cos(angle) * (vector - along) + np.sin(angle) * np.cross(axis, vector)
    np.testing.assert_allclose(rodrigues, expected, atol=1e-12)
