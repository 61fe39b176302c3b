"""The layout of our own files, of all versions, and files that are damaged or lie."""

import json
import os
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest

from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader, TrajectoryWriter


@pytest.fixture
def part(make, tmp_path):
    """A file of two trajectories, of 3 and 4 steps."""
    with TrajectoryWriter(tmp_path / "set") as writer:
        for seed in range(2):
            writer.write(make(seed, steps=3 + seed))
    return tmp_path / "set" / "part-00000.h5"


def test_file_has_the_layout_of_libero(part, make):
    with h5py.File(part) as file:
        data, demo = file["data"], file["data/demo_1"]
        assert data.attrs["num_demos"] == 2 and data.attrs["total"] == 7
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == make(0).instruction
        assert isinstance(json.loads(data.attrs["env_args"]), dict)
        assert demo.attrs["num_samples"] == 4 and list(demo.attrs["views"]) == [b"agentview"]
        trajectory = make(1, steps=4)
        np.testing.assert_array_equal(demo["dones"][()], np.array([0, 0, 0, 1], np.uint8), strict=True)
        np.testing.assert_array_equal(demo["rewards"][()], trajectory.success.astype(np.uint8), strict=True)
        np.testing.assert_array_equal(demo["obs/agentview_rgb"][()], trajectory.frames[:-1, 0])
        np.testing.assert_array_equal(demo["final_obs/ee_states"][()], trajectory.proprio[-1:, :6])
        np.testing.assert_array_equal(demo["camera"][()], trajectory.camera)
        assert demo["obs/gripper_states"].shape == (4, 1) and "proprio" not in demo["obs"]


def test_other_proprio_and_views_have_data_sets_of_their_own(make, tmp_path):
    made = make(views=("a", "b"), proprio=5, camera=False)
    with TrajectoryWriter(tmp_path / "set") as writer:
        writer.write(made)
    with h5py.File(tmp_path / "set" / "part-00000.h5") as file:
        demo = file["data/demo_0"]
        assert sorted(demo["obs"]) == ["a_rgb", "b_rgb", "proprio"] and "camera" not in demo
        np.testing.assert_array_equal(demo["final_obs/b_rgb"][0], made.frames[-1, 1])
        np.testing.assert_array_equal(demo["obs/proprio"][()], made.proprio[:-1])


def test_file_of_version_1_opens(part, make, same):
    with h5py.File(part, "r+") as file:
        file["data"].attrs["worldenv_format"] = np.int64(1)
        for demo in file["data"].values():
            del demo["camera"], demo["frames_crc32"], demo.attrs["views"], demo.attrs["crc32"]
    with TrajectoryReader(part) as reader:
        same(reader, [replace(make(seed, steps=3 + seed), camera=None) for seed in range(2)])


@pytest.mark.parametrize("kind", ["S40", "bytes", "array", "variable"])
def test_text_of_fixed_length_or_in_bytes_is_read(part, make, same, kind):
    with h5py.File(part, "r+") as file:
        for demo in file["data"].values():
            for name in ("language_instruction", "task", "split", "source"):
                value = demo.attrs[name].decode()
                changed = {
                    "S40": np.bytes_(value.encode()),
                    "variable": value,
                    "array": np.array([value.encode()]),
                    "bytes": value.encode(),
                }
                del demo.attrs[name]
                demo.attrs.create(name, changed[kind], dtype="S40" if kind == "S40" else None)
            demo.attrs["views"] = np.array([b"agentview"], dtype="S20")
    with TrajectoryReader(part) as reader:
        same(reader, [make(seed, steps=3 + seed) for seed in range(2)])


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.3, 0.7, 0.999])
def test_truncated_file_is_named_with_what_is_wrong(part, fraction):
    os.truncate(part, int(fraction * part.stat().st_size))
    with pytest.raises(TrajectoryFormatError, match=r"00000\.h5: (truncated|not an HDF5 file, or cut off)"):
        TrajectoryReader(part)


def test_text_file_missing_file_and_foreign_hdf5_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("frames, actions\n")
    with pytest.raises(TrajectoryFormatError, match=r"a\.txt: not an HDF5 file"):
        TrajectoryReader(tmp_path / "a.txt")
    with pytest.raises(TrajectoryFormatError, match=r"b\.hdf5: there is no such file"):
        TrajectoryReader(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file["weather"] = np.zeros(3)
    with pytest.raises(TrajectoryFormatError, match=r"c\.hdf5: /data is missing \(found weather\)"):
        TrajectoryReader(tmp_path / "c.hdf5")
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(TrajectoryFormatError, match=r"d\.hdf5: /data: has no trajectories"):
        TrajectoryReader(tmp_path / "d.hdf5")


DAMAGES = [
    ("actions", None, "the dataset actions is missing"),
    ("final_obs/agentview_rgb", None, "the dataset final_obs/agentview_rgb is missing"),
    ("obs/ee_states", np.zeros((4, 5), np.float32), r"obs/ee_states is float32 \[4, 5\], it should be float"),
    ("obs/agentview_rgb", np.zeros((4, 7, 9, 3), np.float32), "obs/agentview_rgb is float32"),
    ("rewards", np.zeros(3, np.uint8), "lengths differ: rewards has 3 rows, it should have 4"),
    ("obs/gripper_states", np.full((4, 1), np.nan, np.float32), "obs/gripper_states has values that are not fin"),
    ("actions", np.zeros((0, 7), np.float32), "lengths differ|is empty"),
    ("actions", np.full((4, 7), 2, np.float32), r"actions reach 2: they should be in \[-1, 1\]"),
    ("final_obs/agentview_rgb", np.zeros((1, 8, 9, 3), np.uint8), "another image size"),
    ("camera", np.zeros((2, 3, 4), np.float32), r"camera is float32 \[2, 3, 4\]|lengths differ: camera"),
    ("actions", h5py.ExternalLink("other.h5", "/x"), "actions is a link to another place"),
    ("rewards", h5py.SoftLink("/data/demo_0/rewards"), "rewards is a link to another place"),
]


@pytest.mark.parametrize(("key", "value", "message"), DAMAGES)
def test_damaged_trajectory_is_refused_on_opening_by_group_and_reason(part, key, value, message):
    with h5py.File(part, "r+") as file:
        del file[f"data/demo_1/{key}"]
        if value is not None:
            file[f"data/demo_1/{key}"] = value
    with pytest.raises(TrajectoryFormatError, match=rf"00000\.h5: /data/demo_1: .*({message})"):
        TrajectoryReader(part)


def test_values_in_another_file_are_never_read(part):
    with h5py.File(part, "r+") as file:
        del file["data/demo_1/final_obs/agentview_rgb"]
        file.create_dataset(
            "data/demo_1/final_obs/agentview_rgb", (1, 7, 9, 3), "u1", external=[(__file__, 0, 7 * 9 * 3)]
        )
    with pytest.raises(TrajectoryFormatError, match="final_obs/agentview_rgb has its values in another file"):
        TrajectoryReader(part)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_demos", "three", "num_demos is of another type: it should be an integer"),
        ("num_demos", np.int64(10**9), "num_demos 1000000000, but /data/demo_2 is missing"),
        ("num_demos", np.int64(-1), "num_demos -1"),
        ("num_demos", h5py.Empty("i8"), "num_demos is empty"),
        ("worldenv_format", np.int64(4), "worldenv_format 4, this version reads 1 to 3: update"),
    ],
)
def test_counts_that_lie_are_named(part, name, value, message):
    with h5py.File(part, "r+") as file:
        del file["data"].attrs[name]
        file["data"].attrs[name] = value
    with pytest.raises(TrajectoryFormatError, match=message):
        TrajectoryReader(part)


def test_arrays_that_claim_more_than_the_file_holds_take_no_memory(part):
    with h5py.File(part, "r+") as file:
        del file["data/demo_1/actions"]
        file.create_dataset("data/demo_1/actions", (10**12, 7), "f4", chunks=(1000, 7))
    with pytest.raises(TrajectoryFormatError, match="actions claims 28000000000000 bytes of values, but the file"):
        TrajectoryReader(part)


def test_trajectory_beyond_the_count_is_ignored(part, make, same):
    with h5py.File(part, "r+") as file:
        file["data/demo_2/actions"] = np.zeros((4, 7), np.float32)
    with pytest.warns(UserWarning, match="demo_2 was not written to its end: ignored"):
        reader = TrajectoryReader(part)
    with reader:
        same(reader, [make(seed, steps=3 + seed) for seed in range(2)])


@pytest.mark.parametrize("seed", range(4))
def test_file_with_broken_bytes_is_refused_or_read_as_it_was_written(part, make, same, seed):
    rng, content = np.random.default_rng(seed), part.read_bytes()
    for count in (1, 1, 8) * 20:
        broken = bytearray(content)
        for at in rng.choice(len(content), size=count):
            broken[at] = rng.integers(256)
        part.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = list(TrajectoryReader(part))
            except TrajectoryFormatError as error:
                assert str(part) in str(error)
            else:
                same(found, [make(seed, steps=3 + seed) for seed in range(2)])
