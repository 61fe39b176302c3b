"""Arrays that are kept: read as they were made, made anew when stale or damaged, and never half written."""

import errno

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.records.kept import NOT_KEPT, Kept

KEYS = np.arange(12).reshape(4, 3)


def arrays():
    random = np.random.default_rng(0)
    return {
        "0 qpos": random.normal(size=(5, 63)),
        "mask": (random.random((3, 17, 17)) > 0.9).astype(np.uint8).swapaxes(1, 2),
        "held": np.array([-1, 2]),
        "empty": np.zeros((0, 3), np.float32),
    }


def never():
    raise AssertionError("made anew")


def same(found, expected):
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (one.dtype, one.shape, one.tobytes())
        for name, one in expected.items()
    )


@pytest.fixture
def kept(tmp_path):
    kept = Kept(tmp_path / "data" / "labels", "episodes")
    assert same(kept.arrays("a", arrays, KEYS), arrays())
    return kept


def test_kept_arrays_are_read_to_the_bit_and_not_made_again(kept, capsys):
    assert same(kept.arrays("a", never, KEYS), arrays())
    assert [path.name for path in kept.folder.iterdir()] == ["a.npz"] and not capsys.readouterr().err


@pytest.mark.parametrize(("made_of", "keys"), [("others", KEYS), ("episodes", KEYS + 1), ("episodes", KEYS[:3])])
def test_arrays_that_were_made_of_something_else_are_made_anew_and_replaced(kept, made_of, keys, capsys):
    new = {"b": np.ones(2)}
    other = Kept(kept.folder, made_of)
    assert same(other.arrays("a", lambda: new, keys), new) and same(other.arrays("a", never, keys), new)
    assert not capsys.readouterr().err  # nothing is damaged
    assert same(kept.arrays("a", arrays, KEYS), arrays())


def test_damaged_file_is_made_anew_with_one_line_that_says_so(kept, capsys):
    path = kept.folder / "a.npz"
    whole = path.read_bytes()
    for data in (b"", b"PK", whole[:100], whole[: len(whole) // 2], whole[:-1], b"\x93NUMPY" + whole[6:]):
        path.write_bytes(data)
        assert same(kept.arrays("a", arrays, KEYS), arrays())
        said = capsys.readouterr().err
        assert said.startswith(f"{path} is damaged (") and said.endswith("made anew\n") and said.count("\n") == 1, said
        assert same(kept.arrays("a", never, KEYS), arrays())


def test_whatever_byte_is_changed_the_arrays_are_the_true_ones(kept):
    path, made = kept.folder / "a.npz", []
    whole = path.read_bytes()
    reader = Kept(kept.folder, kept.made_of, writes=False)
    for at in [*range(0, len(whole) - 500, 7), *range(len(whole) - 500, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert same(reader.arrays("a", lambda at=at: made.append(at) or arrays(), KEYS), arrays()), at
    assert len(made) > len(whole) / 7 / 2


def test_file_whose_damage_makes_an_array_shorter_is_not_used(tmp_path, monkeypatch):
    kept, true = Kept(tmp_path), {"mask": (np.arange(30000) % 251).astype(np.uint8).reshape(3, 10000)}
    monkeypatch.setattr(np, "savez_compressed", np.savez)  # so that the shape can be found in it
    kept.arrays("a", lambda: true)
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    assert whole.count(b"(3, 10000)") == 1
    path.write_bytes(whole.replace(b"(3, 10000)", b"(1, 10000)"))
    assert same(kept.arrays("a", lambda: true), true)


def test_pickle_in_a_file_is_not_loaded(kept):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    path = kept.folder / "a.npz"
    np.savez_compressed(path, content=np.array([Trap()], dtype=object), mask=np.array([Trap()], dtype=object))
    assert same(kept.arrays("a", arrays, KEYS), arrays()) and same(kept.arrays("a", never, KEYS), arrays())


def test_interrupted_write_leaves_no_file_that_is_read(kept, monkeypatch):
    def half(file, **given):
        file.write(b"PK\x03\x04" + bytes(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", half)
        with pytest.raises(KeyboardInterrupt):
            kept.arrays("b", arrays)
    assert [path.name for path in kept.folder.iterdir()] == ["a.npz"]
    assert same(kept.arrays("b", arrays), arrays()) and same(kept.arrays("b", never), arrays())


def test_full_disk_is_one_line_that_names_the_file(kept, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"labels/b.npz cannot be written \(No space left on device\): free some"):
        kept.arrays("b", arrays)
    assert same(kept.arrays("a", never, KEYS), arrays())


def test_only_who_writes_leaves_files_and_without_a_folder_nobody(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = Kept(kept.folder, kept.made_of, writes=False)
    assert same(reader.arrays("a", never, KEYS), arrays())
    for one in (reader, NOT_KEPT):
        assert same(one.arrays("b", arrays), arrays())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npz")] == ["data/labels/a.npz"]
