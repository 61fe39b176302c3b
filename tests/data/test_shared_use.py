"""Data sets between threads, processes, users and disks, and given in ways that are wrong."""

import os
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from worldenv.data.clips import Clips
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError


def in_threads(count, act):
    """Errors of `act(0)` .. `act(count - 1)`, each in a thread of its own."""
    errors = []

    def guarded(i):
        try:
            act(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_take_turns_in_writing(make, same, tmp_path):
    with TrajectoryWriter(tmp_path / "a", per_file=3) as writer:
        assert not in_threads(4, lambda i: [writer.write(make(10 * i + k)) for k in range(4)])
    with TrajectoryReader(tmp_path / "a") as reader:
        found = sorted(reader, key=lambda t: t.start)
    same(found, [make(10 * i + k) for i in range(4) for k in range(4)])


def test_threads_take_turns_in_reading_and_closing(make, same, tmp_path):
    made = [make(i) for i in range(6)]
    with TrajectoryWriter(tmp_path / "a", per_file=2) as writer:
        for trajectory in made:
            writer.write(trajectory)
    reader = TrajectoryReader(tmp_path / "a")

    def read(i):
        for k in range(30):
            same(reader[(i + k) % 6], made[(i + k) % 6])
            if k % 5 == i:
                reader.close()

    assert not in_threads(4, read)


def test_forked_copy_of_a_writer_writes_nothing(make, same, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(1))
        child = os.fork()
        if not child:
            try:
                writer.write(make(2))
            except UserError as error:
                writer.close()
                os._exit(0 if "belongs to process" in str(error) else 3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        writer.write(make(3))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(1), make(3)])


def test_data_set_that_is_being_written_shows_its_finished_parts(make, same, tmp_path):
    with TrajectoryWriter(tmp_path / "a", per_file=2) as writer:
        for i in range(3):
            writer.write(make(i))
        with TrajectoryReader(tmp_path / "a") as reader:
            same(reader, [make(0), make(1)])


@pytest.mark.parametrize("form", [str, Path, os.fsencode])
def test_paths_of_any_form_and_letters(make, same, tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/a", str(tmp_path / "größer als 1")):
        with TrajectoryWriter(form(name)) as writer:
            writer.write(make(1))
        with TrajectoryReader(form(name)) as reader:
            same(reader, [make(1)])
        assert len(Clips.open(form(name))) == 1
    assert (tmp_path / "a" / "part-00000.h5").exists()


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", "~nobody-of-that-name/a", ["a"]])
def test_what_is_no_path_is_refused(path):
    for use in (TrajectoryWriter, TrajectoryReader):
        with pytest.raises(UserError, match="no path|home"):
            use(path)


def test_what_is_no_trajectory_is_not_written(make, same, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        with pytest.raises(UserError, match="trajectory is a dict; it should be a Trajectory"):
            writer.write(vars(make(1)))
        changed = make(2)
        changed.actions[1, 2] = np.nan
        with pytest.raises(UserError, match="actions has values that are not finite"):
            writer.write(changed)
        writer.write(make(3))
    with pytest.raises(UserError, match="the writer is closed"):
        writer.write(make(4))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(3)])


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_told_what_he_may_not(make, python):
    with tempfile.TemporaryDirectory() as folder:  # every folder above that of tmp_path is closed to others
        _check_another_user(make, python, Path(folder))


def _check_another_user(make, python, folder):
    with TrajectoryWriter(folder / "a") as writer:
        writer.write(make(1))
    folder.chmod(0o755)
    (folder / "a" / "part-00000.h5").chmod(0o600)
    for code, message in (
        ("trajectories.TrajectoryReader(path)", "part-00000.h5: cannot be read (Permission denied)"),
        ("trajectories.TrajectoryWriter(path, append=True)", ".writer.lock: you may not write there"),
        ("trajectories.TrajectoryWriter(path + '/b')", "a/b: you may not write there"),
    ):
        result = python(f"os.setuid(65534)\n{code}", folder / "a")
        assert message in result.stderr.splitlines()[-1], result.stderr


def test_disk_that_is_full_at_any_size_loses_nothing_that_was_written(make, same, python, tmp_path):
    result = python(
        """
import resource
for size in (0, 1_000, 10_000, 100_000, 600_000, 700_000, 900_000, 1_200_000, 2_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    done = 0
    try:
        with trajectories.TrajectoryWriter(f"{path}-{size}", 3) as writer:
            for seed in range(50):
                writer.write(make_trajectory(seed, 9, (60, 60)))
                done += 1
    except trajectories.UserError as error:
        print(size, done, str(error))
""",
        tmp_path / "a",
    )
    assert result.returncode == 0, result.stderr
    ended = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert len(ended) >= 6
    for size, done, message in ended:
        assert f"a-{size}" in message and ("no room on the disk" in message or "cannot be written" in message)
        if int(done):
            with TrajectoryReader(tmp_path / f"a-{size}") as reader:
                same(reader, [make(seed, 9, (60, 60)) for seed in range(int(done))])


def test_heap_of_texts_in_which_hdf5_would_never_end_is_refused(make, python, tmp_path):
    path = tmp_path / "open_it_demo.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["problem_info"] = '{"language_instruction": "open it"}'
        file["data/demo_0/actions"] = np.zeros((3, 7))
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)  # an object of no size
    path.write_bytes(content)
    result = python("trajectories.TrajectoryReader(path)", path)  # a process of its own: it would hang
    assert "TrajectoryFormatError" in result.stderr and "/data: the heap of texts is damaged" in result.stderr


def test_attribute_of_another_type_is_never_read(make, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(1))
    with h5py.File(tmp_path / "a" / "part-00000.h5", "r+") as file:
        demo = file["data/demo_0"]
        lists = np.empty(1, object)
        lists[0] = np.arange(3)
        del demo.attrs["task"]
        demo.attrs.create("task", lists, dtype=h5py.vlen_dtype(np.int64))
    with pytest.raises(TrajectoryFormatError, match="/data/demo_0: the attribute task is of another type"):
        TrajectoryReader(tmp_path / "a")


def test_pictures_of_another_place_are_not_taken_for_the_frames(make, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(1, steps=9))
    path = tmp_path / "a" / "part-00000.h5"
    with h5py.File(path, "r+") as file:
        frames = file["data/demo_0/obs/agentview_rgb"]
        frames[3] = frames[4]
    with (
        TrajectoryReader(path) as reader,
        pytest.raises(TrajectoryFormatError, match="frame 3 of agentview_rgb is dam"),
    ):
        reader[0]


@pytest.mark.parametrize("change", ["language_instruction", "start", "actions", "total"])
def test_change_of_anything_else_is_refused_on_opening(make, tmp_path, change):
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(1))
    path = tmp_path / "a" / "part-00000.h5"
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        if change == "actions":
            demo["actions"][2, 3] *= 0.5
        elif change == "total":
            file["data"].attrs["total"] = np.int64(4)
        else:
            value = demo.attrs[change]
            demo.attrs[change] = value + 1 if change == "start" else np.bytes_(value[::-1])
    with pytest.raises(TrajectoryFormatError, match="checksum differs|has a total of 4 steps, but .* have 5"):
        TrajectoryReader(path)


def test_what_is_no_file_of_trajectories_is_named_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.hdf5")
    with pytest.raises(TrajectoryFormatError, match=r"pipe\.hdf5: it is not a file"):  # opening it would never return
        TrajectoryReader(tmp_path / "pipe.hdf5")
    (tmp_path / "lerobot" / "meta").mkdir(parents=True)
    (tmp_path / "lerobot" / "data").mkdir()
    with pytest.raises(TrajectoryFormatError, match="lerobot: a data set of LeRobot .*: read it with LeRobotReader"):
        TrajectoryReader(tmp_path / "lerobot")
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "open_it_demo.hdf5").touch()
    with pytest.raises(TrajectoryFormatError, match=r"name one of its files \(open_it_demo\.hdf5\)"):
        TrajectoryReader(tmp_path / "libero")


def test_file_that_a_killed_writer_left_marked_as_open_is_said_to_be_so(make, tmp_path):
    with h5py.File(tmp_path / "b.hdf5", "w", libver="latest") as file:
        file.create_group("data")
        file.flush()
        (tmp_path / "a.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes())
    with pytest.raises(TrajectoryFormatError, match=r"a\.hdf5: marked as open for writing.*h5clear -s"):
        TrajectoryReader(tmp_path / "a.hdf5")


def test_trajectory_that_fails_between_its_two_counts_is_left_out(make, same, tmp_path, monkeypatch):
    modify = h5py.AttributeManager.modify

    def fail(attributes, name, value):
        if name == "num_demos" and value == 2:
            monkeypatch.setattr(h5py.AttributeManager, "modify", modify)
            raise OSError("Can't write data")
        modify(attributes, name, value)

    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(0))
        monkeypatch.setattr(h5py.AttributeManager, "modify", fail)
        with pytest.raises(UserError, match="cannot be written"):
            writer.write(make(1))
        writer.write(make(2))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(0), make(2)])
