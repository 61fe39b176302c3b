"""Data sets on disk: what is written is read, and nothing that is whole gets lost."""

import errno
import fcntl
import os
import signal

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from worldenv.data import trajectories
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError


@pytest.fixture
def write(make):
    def write(folder, count=3, per_file=2, **kind):
        made = [make(seed, steps=3 + seed, **kind) for seed in range(count)]
        with TrajectoryWriter(folder, per_file) as writer:
            for trajectory in made:
                writer.write(trajectory)
        return made

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".writer.lock")


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        (1, {"size": (1, 1)}),
        (16, {"size": (5, 7), "views": ("agentview", "eye_in_hand"), "camera": False}),
        (17, {"size": (64, 64), "proprio": 1, "actions": 1}),
        (150, {"size": (3, 33), "views": ("a", "b", "..."), "proprio": 43, "actions": 23}),
    ],
)
def test_what_is_read_is_what_was_written(make, same, tmp_path, steps, kind):
    trajectory = make(1, steps, **kind)
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(trajectory)
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader[0], trajectory)
    with TrajectoryReader(tmp_path / "a" / "part-00000.h5") as reader:
        same(reader[0], trajectory)


def test_eleven_trajectories_keep_their_order_and_tasks_over_the_parts(write, same, tmp_path):
    made = write(tmp_path / "a", 11, per_file=4)
    assert names(tmp_path / "a") == ["part-00000.h5", "part-00001.h5", "part-00002.h5"]
    with TrajectoryReader(tmp_path / "a") as reader:
        assert len(reader) == 11 and reader.tasks == ["task 0", "task 1"]
        same(reader, made)
        same(reader[-1], made[-1])
        with pytest.raises(IndexError):
            reader[11]
        reader.close()
        same(reader[0], made[0])  # opened again


def test_part_appears_when_it_is_full_and_counts_before(make, tmp_path):
    with TrajectoryWriter(tmp_path / "a", per_file=2) as writer:
        for count, visible in ((1, 0), (2, 1), (3, 1)):
            writer.write(make())
            assert len(writer) == count and len(list((tmp_path / "a").glob("part-*"))) == visible
    assert len(names(tmp_path / "a")) == 2


def test_part_gets_its_name_once_it_is_on_disk(make, tmp_path, monkeypatch):
    fsync, rename, done = os.fsync, trajectories.Path.rename, []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(trajectories.Path, "rename", lambda *paths: done.append("rename") or rename(*paths))
    with TrajectoryWriter(tmp_path / "a", per_file=1) as writer:
        writer.write(make())
    part, renamed, folder = done
    assert os.path.basename(part).startswith(".part-00000.") and renamed == "rename" and folder == str(tmp_path / "a")


def test_room_that_was_reserved_is_given_back(make, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        for seed in range(3):
            writer.write(make(seed))
            (part,) = (tmp_path / "a").glob(".part-*")
            assert part.stat().st_size < 60_000
    assert (tmp_path / "a/part-00000.h5").stat().st_size < 60_000


def test_parts_can_be_read_by_old_versions_of_hdf5(write, tmp_path):
    write(tmp_path / "a", 1)
    assert (tmp_path / "a/part-00000.h5").read_bytes()[8] == 0  # version of the superblock
    with h5py.File(tmp_path / "a/part-00000.h5") as file:
        assert file["data/demo_0/obs/agentview_rgb"].chunks[0] == 3 and len(file) == 1


@pytest.mark.parametrize("leave", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_block_that_is_left_by_an_error_keeps_every_whole_trajectory(make, same, tmp_path, leave):
    with pytest.raises(leave), TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(1))
        raise leave
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(1)])
    with pytest.raises(leave), TrajectoryWriter(tmp_path / "b") as writer:
        raise leave
    assert names(tmp_path / "b") == []


def test_folder_that_is_not_empty_is_not_added_to_unasked(write, make, same, tmp_path):
    made = write(tmp_path / "a", 3)
    with pytest.raises(UserError, match="append=True"):
        TrajectoryWriter(tmp_path / "a")
    with TrajectoryWriter(tmp_path / "a", append=True) as writer:
        assert len(writer) == 3
        writer.write(make(9))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [*made, make(9)])


def test_wrong_places_are_named(write, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; make it first"):
        TrajectoryWriter(tmp_path / "nowhere" / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        TrajectoryWriter(tmp_path / "file", append=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrajectoryFormatError, match=r"no part-<number>\.h5 \(found nothing\)"):
        TrajectoryReader(tmp_path / "empty")
    with pytest.raises(ValueError, match="per_file is 0"):
        TrajectoryWriter(tmp_path / "a", per_file=0)


def test_damaged_and_foreign_parts_are_not_added_to_and_stay(write, tmp_path):
    write(tmp_path / "a", 2)
    part = tmp_path / "a/part-00000.h5"
    with h5py.File(part, "r+") as file:
        del file["data"].attrs["worldenv_format"], file["data/demo_1/actions"]
    before = part.read_bytes()
    with pytest.raises(TrajectoryFormatError, match=r"part-00000\.h5"):
        TrajectoryWriter(tmp_path / "a", append=True)
    assert part.read_bytes() == before
    os.truncate(part, 3000)
    with pytest.raises(TrajectoryFormatError, match=r"part-00000\.h5: truncated"):
        TrajectoryWriter(tmp_path / "a", append=True)


@pytest.mark.parametrize("last", ["rewards", "final_obs", "flush", "rename"])
def test_kill_loses_the_open_part_only_and_the_next_writer_clears_it_away(write, make, same, python, tmp_path, last):
    made = write(tmp_path / "a", 2)
    result = python(
        f"""
last = {last!r}
def die(*arguments): os._exit(9)
writer = trajectories.TrajectoryWriter(path, 2, append=True)
writer.write(make_trajectory(6))
set_item, create_group = h5py.Group.__setitem__, h5py.Group.create_group
if last == "flush": h5py.File.flush = die
elif last == "rename": trajectories.Path.rename = die
h5py.Group.__setitem__ = lambda group, name, value: die() if name == last else set_item(group, name, value)
h5py.Group.create_group = lambda group, name: die() if name == last else create_group(group, name)
writer.write(make_trajectory(7, 40))
""",
        tmp_path / "a",
    )
    assert result.returncode == 9, result.stderr
    left = names(tmp_path / "a")
    assert len(left) == 2 and left[0].startswith(".part-00001.")
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, made)
    with TrajectoryWriter(tmp_path / "a", append=True) as writer:
        assert len(writer) == 2
        writer.write(make(8))
    assert names(tmp_path / "a") == ["part-00000.h5", "part-00001.h5"]
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [*made, make(8)])


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["write_demo", "sync"])
def test_ctrl_c_waits_until_the_trajectory_is_written(make, same, tmp_path, monkeypatch, ctrl_c, name):
    usual = getattr(trajectories, name)

    def pressed(*arguments):
        signal.raise_signal(signal.SIGINT)
        return usual(*arguments)

    monkeypatch.setattr(trajectories, name, pressed)
    with pytest.raises(KeyboardInterrupt), TrajectoryWriter(tmp_path / "a", per_file=1) as writer:
        writer.write(make(1))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(1)])


def test_second_writer_is_refused_in_one_line(make, python, tmp_path):
    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make())
        with pytest.raises(UserError, match="another writer is at work there"):
            TrajectoryWriter(tmp_path / "a", append=True)
        result = python("trajectories.TrajectoryWriter(path, append=True)", tmp_path / "a")
        assert "UserError" in result.stderr and "another writer is at work there" in result.stderr
    assert names(tmp_path / "a") == ["part-00000.h5"]
    TrajectoryWriter(tmp_path / "a", append=True).close()


def test_reserved_name_is_never_written_through_a_link(make, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(trajectories.secrets, "token_hex", lambda n: "00")
    with TrajectoryWriter(tmp_path / "a") as writer:
        (tmp_path / "a" / ".part-00000.00.h5").symlink_to(tmp_path / "victim")
        with pytest.raises(UserError, match="File exists"):
            writer.write(make())
    assert not (tmp_path / "victim").exists()


def test_full_disk_is_named_and_keeps_what_was_written(make, same, python, tmp_path):
    result = python(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
with trajectories.TrajectoryWriter(path, 10) as writer:
    for seed in range(100):
        try:
            writer.write(make_trajectory(seed, 20, (90, 90)))
        except trajectories.UserError as error:
            print(seed, len(writer), error)
            break
""",
        tmp_path / "a",
    )
    assert result.returncode == 0, result.stderr
    assert "no room on the disk" in result.stdout and "free some, then append" in result.stdout
    assert str(tmp_path / "a") in result.stdout
    written = int(result.stdout.split()[0])
    assert written >= 2
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(seed, 20, (90, 90)) for seed in range(written)])


def test_trajectory_that_hdf5_cannot_write_is_left_out(make, same, tmp_path, monkeypatch):
    set_item = h5py.Group.__setitem__

    def fail(group, name, value):
        if name == "dones":
            raise OSError(errno.EIO, "Can't write data")
        set_item(group, name, value)

    with TrajectoryWriter(tmp_path / "a") as writer:
        writer.write(make(0))
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=r"\.part-.*cannot be written.*mend"),
        ):
            patch.setattr(h5py.Group, "__setitem__", fail)
            writer.write(make(1))
        assert len(writer) == 1
        writer.write(make(2))
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [make(0), make(2)])


def test_without_locks_both_ways_work_and_a_stranger_s_part_stays(write, make, same, tmp_path, monkeypatch):
    made, usual = write(tmp_path / "a", 2), h5py.File

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def file(*arguments, locking=None, **options):
        return usual(*arguments, locking=False, **options) if locking is False else no_locks()

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(h5py, "File", file)
    (tmp_path / "a" / ".part-00001.abcd.h5").write_text("whose?")
    with pytest.warns(UserWarning) as warned, TrajectoryWriter(tmp_path / "a", append=True) as writer:
        writer.write(make(5))
    said = "\n".join(str(warning.message) for warning in warned)
    assert "has no locks (No locks available): see to it" in said and ".part-00001.abcd.h5 may be left" in said
    assert names(tmp_path / "a") == [".part-00001.abcd.h5", "part-00000.h5", "part-00001.h5"]
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader, [*made, make(5)])


def test_file_that_another_process_writes_is_refused(write, python, tmp_path):
    write(tmp_path / "a", 1)
    with h5py.File(tmp_path / "a/part-00000.h5", "r+", locking=True):
        result = python("trajectories.TrajectoryReader(path)", tmp_path / "a")
    assert "another process has it open" in result.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_goes_to_the_workers_of_a_data_loader(write, same, tmp_path, method):
    made = write(tmp_path / "a", 9, per_file=2)
    with TrajectoryReader(tmp_path / "a") as reader:
        same(reader[3], made[3])  # open before the fork
        workers = 2 if method == "fork" else 1
        loader = DataLoader(reader, batch_size=None, num_workers=workers, multiprocessing_context=method)
        same(loader, made)
        same(reader, made)


def test_open_files_are_bounded(write, same, tmp_path, monkeypatch):
    made = write(tmp_path / "a", 8, per_file=1)
    files = trajectories.OpenFiles(limit=3)
    monkeypatch.setattr(trajectories, "OpenFiles", lambda: files)
    reader, opened = TrajectoryReader(tmp_path / "a"), []
    for i in np.random.default_rng(0).integers(8, size=40):
        same(reader[i], made[i])
        opened.append(len(files))
    assert max(opened) == 3
    reader.close()
    assert len(files) == 0


def test_forked_process_closes_the_files_of_its_parent_and_opens_its_own(write, tmp_path, monkeypatch):
    write(tmp_path / "a", 1)
    files, path = trajectories.OpenFiles(), tmp_path / "a" / "part-00000.h5"
    with files.use(path) as mine:
        pass
    with files.use(path) as again:
        assert again is mine
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with files.use(path) as other:
        assert other is not mine and not mine and other
