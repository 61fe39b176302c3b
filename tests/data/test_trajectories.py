"""Trajectory files: what is written is read, and what is wrong with a file is named."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import worldenv
from worldenv.data import journal
from worldenv.data.trajectories import Trajectory, TrajectoryFormatError, TrajectoryReader, TrajectoryWriter

ARRAYS = ("frames", "proprio", "actions", "success")
LABELS = ("instruction", "task", "start", "split", "source")


def make_trajectory(seed: int = 0, steps: int = 5, size: tuple[int, int] = (7, 9)) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(
        frames=rng.integers(0, 256, (steps + 1, *size, 3), dtype=np.uint8),
        proprio=rng.normal(size=(steps + 1, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        success=rng.random(steps) > 0.5,
        instruction=f"put block {seed} into the bowl",
        task=f"task {seed % 2}",
        start=seed,
        split="train",
        source="policy" if seed % 2 else "expert",
    )


def write_file(path: Path, count: int = 3) -> list[Trajectory]:
    trajectories = [make_trajectory(seed, steps=3 + seed) for seed in range(count)]
    with TrajectoryWriter(path) as writer:
        for trajectory in trajectories:
            writer.write(trajectory)
    return trajectories


def write_libero_file(path: Path, steps: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    array = {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "rewards": np.eye(steps, dtype=np.uint8)[-1],
        "dones": np.eye(steps, dtype=np.uint8)[-1],
        "obs/agentview_rgb": rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8),
        "obs/ee_states": rng.normal(size=(steps, 6)),
        "obs/gripper_states": np.array([[0.04, -0.04], [0.02, -0.02], [0, 0], [0.05, -0.05], [0.01, -0.03], [0, 0]]),
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["num_demos"] = 1
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["open ", "the drawer"]})
        for name, value in array.items():
            data[f"demo_0/{name}"] = value
    return array


def run_python(code: str, path: Path) -> subprocess.CompletedProcess:
    root = Path(worldenv.__file__).parents[1]
    setup = f"import sys; sys.path[:0] = [{str(root)!r}, {str(Path(__file__).parent)!r}]\nimport os, h5py\n"
    setup += "from test_trajectories import make_trajectory\nfrom worldenv.data import journal, trajectories\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def assert_same(found: Trajectory, expected: Trajectory) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    assert [getattr(found, name) for name in LABELS] == [getattr(expected, name) for name in LABELS]


@pytest.mark.parametrize(("steps", "size"), [(1, (1, 1)), (16, (5, 7)), (17, (64, 64)), (63, (33, 3))])
def test_what_is_read_is_what_was_written(tmp_path, steps, size):
    trajectory = make_trajectory(1, steps, size)
    with TrajectoryWriter(tmp_path / "a.hdf5") as writer:
        writer.write(trajectory)
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        assert_same(reader[0], trajectory)


def test_eleven_trajectories_keep_their_order_and_tasks(tmp_path):
    trajectories = write_file(tmp_path / "a.hdf5", 11)
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        assert len(reader) == 11 and reader.tasks == ["task 0", "task 1"]
        for found, expected in zip(reader, trajectories, strict=True):
            assert_same(found, expected)
        assert_same(reader[-1], trajectories[-1])
        with pytest.raises(IndexError):
            reader[11]


def test_file_has_the_layout_of_libero(tmp_path):
    trajectories = write_file(tmp_path / "a.hdf5", 2)
    with h5py.File(tmp_path / "a.hdf5") as file:
        data, demo = file["data"], file["data/demo_1"]
        assert data.attrs["num_demos"] == 2 and data.attrs["total"] == 7
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == trajectories[0].instruction
        assert isinstance(json.loads(data.attrs["env_args"]), dict)
        assert demo.attrs["num_samples"] == 4
        np.testing.assert_array_equal(demo["dones"][()], np.array([0, 0, 0, 1], np.uint8), strict=True)
        np.testing.assert_array_equal(demo["rewards"][()], trajectories[1].success.astype(np.uint8), strict=True)
        np.testing.assert_array_equal(demo["obs/agentview_rgb"][()], trajectories[1].frames[:-1])
        np.testing.assert_array_equal(demo["final_obs/ee_states"][()], trajectories[1].proprio[-1:, :6])
        assert demo["obs/gripper_states"].shape == (4, 1)


def test_file_of_libero_itself_opens(tmp_path):
    path = tmp_path / "open_the_drawer_demo.hdf5"
    array = write_libero_file(path)
    with TrajectoryReader(path) as reader:
        found = reader[0]
    np.testing.assert_array_equal(found.frames, array["obs/agentview_rgb"])
    np.testing.assert_array_equal(found.actions, array["actions"][:-1].astype(np.float32))
    np.testing.assert_allclose(found.proprio[:, 6], [1, 0.5, 0, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(found.success, [False, False, False, False, True])
    assert found.instruction == "open the drawer" and found.task == "open_the_drawer" and found.source == "expert"


def test_existing_file_is_neither_overwritten_nor_appended_to_unasked(tmp_path):
    path = tmp_path / "a.hdf5"
    write_file(path, 1)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="append=True"):
        TrajectoryWriter(path)
    assert path.read_bytes() == before


def test_appended_trajectories_follow_the_old_ones(tmp_path):
    trajectories = write_file(tmp_path / "a.hdf5", 2)
    with TrajectoryWriter(tmp_path / "a.hdf5", append=True) as writer:
        assert len(writer) == 2
        writer.write(make_trajectory(9))
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        for found, expected in zip(reader, [*trajectories, make_trajectory(9)], strict=True):
            assert_same(found, expected)


def test_append_refuses_foreign_files_untouched(tmp_path):
    write_libero_file(tmp_path / "a.hdf5")
    before = (tmp_path / "a.hdf5").read_bytes()
    with pytest.raises(TrajectoryFormatError, match="worldenv_format"):
        TrajectoryWriter(tmp_path / "a.hdf5", append=True)
    assert (tmp_path / "a.hdf5").read_bytes() == before


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.3, 0.7, 0.999])
def test_truncated_file_is_named_with_what_is_wrong(tmp_path, fraction):
    path = tmp_path / "cut.hdf5"
    write_file(path)
    os.truncate(path, int(fraction * path.stat().st_size))
    for use in (TrajectoryReader, lambda p: TrajectoryWriter(p, append=True)):
        with pytest.raises(TrajectoryFormatError, match=r"cut\.hdf5: (truncated|not an HDF5 file, or cut off)"):
            use(path)


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
    TrajectoryWriter(tmp_path / "d.hdf5").close()
    with pytest.raises(TrajectoryFormatError, match=r"d\.hdf5: /data has no trajectories"):
        TrajectoryReader(tmp_path / "d.hdf5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", None, "the dataset actions is missing"),
        ("final_obs/agentview_rgb", None, "the dataset final_obs/agentview_rgb is missing"),
        ("obs/ee_states", np.zeros((4, 5), np.float32), r"obs/ee_states is float32 \[4, 5\], it should be float"),
        ("obs/agentview_rgb", np.zeros((4, 7, 9, 3), np.float32), "obs/agentview_rgb is float32"),
        ("rewards", np.zeros(3, np.uint8), "lengths differ: rewards has 3 rows, it should have 4"),
        ("obs/gripper_states", np.full((4, 1), np.nan, np.float32), "obs/gripper_states has values that are not fin"),
        ("actions", np.zeros((0, 7), np.float32), "lengths differ|is empty"),
        ("final_obs/agentview_rgb", np.zeros((1, 8, 9, 3), np.uint8), "another image size"),
    ],
)
def test_damaged_trajectory_is_refused_on_opening_by_group_and_reason(tmp_path, key, value, message):
    write_file(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        del file[f"data/demo_1/{key}"]
        if value is not None:
            file[f"data/demo_1/{key}"] = value
    with pytest.raises(TrajectoryFormatError, match=rf"a\.hdf5: /data/demo_1: .*({message})"):
        TrajectoryReader(tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((5, 7, 9, 3), np.uint8)}, r"frames is uint8 \[5, 7, 9, 3\]"),
        ({"frames": np.zeros((6, 7, 9, 3), np.float32)}, "frames is float32"),
        ({"proprio": np.zeros((6, 7))}, "proprio is float64"),
        ({"actions": np.full((5, 7), 1.5, np.float32)}, r"actions reach 1.5.*\[-1, 1\]"),
        ({"actions": np.full((5, 7), np.inf, np.float32)}, "actions has values that are not finite"),
        ({"actions": np.zeros((0, 7), np.float32)}, "at least one action"),
        ({"success": np.zeros(5, np.uint8)}, "success is uint8"),
        ({"source": "human"}, "source is 'human': it should be one of expert, policy"),
        ({"instruction": ""}, "instruction is ''"),
        ({"start": 1.5}, "start is 1.5"),
    ],
)
def test_wrong_trajectory_is_refused_where_it_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_trajectory(), **change)


@pytest.mark.parametrize("last", ["rewards", "final_obs", "flush", "commit", "_apply"])
def test_process_killed_in_a_write_loses_only_that_trajectory(tmp_path, last):
    path = tmp_path / "a.hdf5"
    trajectories = write_file(path, 3)
    before = path.read_bytes()
    result = run_python(
        f"""
last = {last!r}
def die(*arguments): os._exit(9)
writer = trajectories.TrajectoryWriter(sys.argv[1], append=True)
set_item, create_group = h5py.Group.__setitem__, h5py.Group.create_group
if last == "flush": h5py.File.flush = die
elif last == "commit": journal.JournaledFile.commit = die
elif last == "_apply": journal._apply = die
h5py.Group.__setitem__ = lambda group, name, value: die() if name == last else set_item(group, name, value)
h5py.Group.create_group = lambda group, name: die() if name == last else create_group(group, name)
writer.write(make_trajectory(7, 40))
""",
        path,
    )
    assert result.returncode == 9, result.stderr
    assert path.read_bytes()[: len(before)] == before
    # Killed after its journal was complete, the trajectory counts: opening finishes the commit.
    expected = trajectories + ([make_trajectory(7, 40)] if last == "_apply" else [])
    with TrajectoryReader(path) as reader:
        for found, trajectory in zip(reader, expected, strict=True):
            assert_same(found, trajectory)
    with TrajectoryWriter(path, append=True) as writer:
        writer.write(make_trajectory(8))
    with TrajectoryReader(path) as reader:
        assert_same(reader[len(expected)], make_trajectory(8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5"]


@pytest.mark.parametrize("last", ["_apply", "unlink"])
def test_an_error_within_a_commit_loses_no_file(tmp_path, monkeypatch, last):
    path, after = tmp_path / "a.hdf5", {"_apply": False, "unlink": True}[last]
    trajectories, apply = write_file(path, 2), journal._apply

    def fail(*arguments):
        if after:
            apply(*arguments)
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"), monkeypatch.context() as patch:
        with TrajectoryWriter(path, append=True) as writer:
            patch.setattr(journal, "_apply", fail)
            writer.write(make_trajectory(7, 40))
    with TrajectoryReader(path) as reader:  # its journal was whole: opening finishes the commit
        for found, expected in zip(reader, [*trajectories, make_trajectory(7, 40)], strict=True):
            assert_same(found, expected)


def test_new_file_takes_nothing_over_from_a_deleted_one_of_its_name(tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    write_file(path, 1)
    with pytest.raises(RuntimeError), monkeypatch.context() as patch:
        with TrajectoryWriter(path, append=True) as writer:
            patch.setattr(journal, "_apply", lambda *_: (_ for _ in ()).throw(RuntimeError))
            writer.write(make_trajectory(3))
    path.unlink()
    trajectories = write_file(path, 2)
    with TrajectoryReader(path) as reader:
        for found, expected in zip(reader, trajectories, strict=True):
            assert_same(found, expected)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("method", ["readinto", "write", "commit"])
def test_ctrl_c_waits_until_the_trajectory_is_written(tmp_path, monkeypatch, ctrl_c, method):
    path, usual = tmp_path / "a.hdf5", getattr(journal.JournaledFile, method)

    def pressed(*arguments):
        signal.raise_signal(signal.SIGINT)
        return usual(*arguments)

    with pytest.raises(KeyboardInterrupt):
        with TrajectoryWriter(path) as writer:
            monkeypatch.setattr(journal.JournaledFile, method, pressed)
            writer.write(make_trajectory(1))
    monkeypatch.undo()
    with TrajectoryReader(path) as reader:
        assert_same(reader[0], make_trajectory(1))


def test_half_written_journal_is_forgotten(tmp_path):
    trajectories = write_file(tmp_path / "a.hdf5", 2)
    (tmp_path / ".a.hdf5.journal").write_bytes(b"\x01\x02\x03\x04" + bytes(12) + b"torn")
    with TrajectoryReader(tmp_path / "a.hdf5") as reader:
        assert_same(reader[1], trajectories[1])


def test_trajectory_beyond_the_count_is_ignored_on_read_and_dropped_on_append(tmp_path):
    path = tmp_path / "a.hdf5"
    trajectories = write_file(path, 2)
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"] = np.zeros((4, 7), np.float32)
    with pytest.warns(UserWarning, match="demo_2 was not written to its end: ignored"):
        reader = TrajectoryReader(path)
    with reader:
        assert len(reader) == 2
    with pytest.warns(UserWarning, match="demo_2 was not written to its end: dropped"):
        writer = TrajectoryWriter(path, append=True)
    with writer:
        writer.write(make_trajectory(5))
    with TrajectoryReader(path) as reader:
        for found, expected in zip(reader, [*trajectories, make_trajectory(5)], strict=True):
            assert_same(found, expected)


def test_full_disk_is_named_and_keeps_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    with TrajectoryWriter(path) as writer:
        writer.write(make_trajectory(0))

        def refuse(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(journal.os, "posix_fallocate", refuse)
            with pytest.raises(OSError, match=r"the disk is full.*a\.hdf5") as caught:
                writer.write(make_trajectory(1))
        assert caught.value.errno == errno.ENOSPC
        writer.write(make_trajectory(2))
    with TrajectoryReader(path) as reader:
        assert len(reader) == 2
        assert_same(reader[1], make_trajectory(2))


def test_file_being_written_is_refused_to_others(tmp_path):
    write_file(tmp_path / "a.hdf5", 1)
    with TrajectoryWriter(tmp_path / "a.hdf5", append=True):
        result = run_python("trajectories.TrajectoryReader(sys.argv[1])", tmp_path / "a.hdf5")
    assert "another process has it open" in result.stderr
