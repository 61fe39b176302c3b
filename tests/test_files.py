"""Files: whole or not at all, whoever else writes; locked by one; and read with suspicion."""

import errno
import fcntl
import os
import signal

import pytest

from worldenv import files
from worldenv.errors import UserError
from worldenv.files import lock, read_bytes, read_json, remove_temporary, replace_whole, temporary_folder, write_text


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "früher")
    write_text(tmp_path / "a.json", "später")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "später"
    monkeypatch.setattr(files.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.json", "nie")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "später" and len(list(tmp_path.iterdir())) == 1


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path):
    write_text(tmp_path / "a", "\ud800é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "\\ud800é"


@pytest.mark.parametrize("step", ["write", "sync", "replace"])
def test_failed_write_is_one_line_and_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    write_text(path, "old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    write = fail if step == "write" else lambda made: made.write_text("new")
    if step != "write":
        monkeypatch.setattr(*{"sync": (files, "sync"), "replace": (files.os, "replace")}[step], fail)
    with pytest.raises(UserError) as caught:
        replace_whole(path, write)
    assert str(caught.value).startswith(f"{path} cannot be written (No space left on device): free some space")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_writer_passes_by_what_lies_under_a_temporary_name(tmp_path, monkeypatch):
    names = iter(["00000000", "11111111"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: next(names))
    (tmp_path / "precious").mkdir()
    (tmp_path / ".a.00000000.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="File exists"):
        write_text(tmp_path / "a", "text")
    assert not any((tmp_path / "precious").iterdir()) and not (tmp_path / "a").exists()
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_two_writers_of_one_file_both_succeed_and_mix_nothing(tmp_path):
    path, size = tmp_path / "a", 300_000
    write_text(path, "0" * size)
    if not (child := os.fork()):
        while True:
            write_text(path, "1" * size)
    try:
        for _ in range(60):
            write_text(path, "0" * size)
            found = path.read_text()
            assert len(found) == size and len(set(found)) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in ("a.partial", ".a.partial", ".a.0123.partial", "b"):
        (tmp_path / name).write_text("")
    with temporary_folder(tmp_path / "a") as folder:
        (folder / "inside").write_text("half")
        remove_temporary(tmp_path)
        assert not folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.0123.partial", ".a.partial", "a.partial", "b"]


def test_lock_has_one_owner_until_it_is_closed_or_its_process_dies(tmp_path):
    path, (ready, say) = tmp_path / ".lock", os.pipe()
    if not (child := os.fork()):
        assert lock(path)
        os.write(say, b"1")
        signal.pause()
    os.read(ready, 1)
    assert lock(path) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    descriptor, is_certain = lock(path)
    assert is_certain and lock(path) is None
    os.close(descriptor)
    os.close(lock(path)[0])


def test_lock_follows_no_link(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="symbolic links"):
        lock(tmp_path / ".lock")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="the file system has no locks .*see to it that nobody else writes there"):
        descriptor, is_certain = lock(tmp_path / ".lock")
    assert not is_certain
    os.close(descriptor)


DEEP = b'{"a": ' + 60 * b"[" + 60 * b"]" + b"}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": ', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": {"seed": 1, "seed": 2}}', "'seed' is there twice"),
        (DEEP, "nested more than 50 levels deep"),
        (100_000 * b"[", "nested more than 50 levels deep"),
        (b"[1]", "holds a JSON list, no object"),
        (b"null", "holds a JSON NoneType, no object"),
    ],
)
def test_damaged_json_is_refused_by_the_name_of_the_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(str(tmp_path / "a.json")) and "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {
        "pipe": "is a folder, a pipe or a device",
        "folder": "is a folder, a pipe or a device",
        "dangling": "there is no such file",
        "absent": "there is no such file",
        "loop": "cannot be read",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name)


def test_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes; at most 10 were expected"):
        read_bytes(tmp_path / "huge", 10)
