"""A demonstration in its file: as it was, failed ones too; a damaged file is named."""

from dataclasses import fields

import numpy as np
import pytest

from worldenv.data.demonstration import Demonstration, load_demonstration, save_demonstration
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError


def shown():
    random = np.random.default_rng(0)
    frames, camera = random.integers(0, 256, (4, 1, 6, 6, 3), dtype=np.uint8), np.ones((1, 3, 4), np.float32)
    numbers = [random.uniform(-1, 1, (n, 7)).astype(np.float32) for n in (4, 3)]
    labels = ("agentview",), "put it down", "task", 5, "train", "expert"
    trajectory = Trajectory(frames, *numbers, np.array([False, True, True]), camera, *labels)
    extras = {"states": random.normal(size=(3, 9)), "split": "train"}
    return Demonstration(True, 3, "put there", trajectory, extras, random.normal(size=(4, 6)).astype(np.float32))


def test_demonstration_comes_back_as_it_was(tmp_path):
    demo = shown()
    save_demonstration(tmp_path / "one.npz", demo)
    found = load_demonstration(tmp_path / "one.npz")
    assert (found.success, found.steps, found.told) == (True, 3, "put there")
    assert np.array_equal(found.places, demo.places) and found.extras["split"] == "train"
    assert np.array_equal(found.extras["states"], demo.extras["states"])
    for field in fields(Trajectory):
        assert np.array_equal(getattr(found.trajectory, field.name), getattr(demo.trajectory, field.name))


def test_failed_one_comes_back_without_a_trajectory(tmp_path):
    save_demonstration(tmp_path / "one.npz", Demonstration(False, 7, "dropped"))
    found = load_demonstration(tmp_path / "one.npz")
    assert (found.success, found.steps, found.told, found.trajectory, found.places) == (False, 7, "dropped", None, None)


def test_damaged_file_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "one.npz"
    save_demonstration(path, shown())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"trajectory proprio.npy") + 200] ^= 1
    for data in (whole[:-200], b"", bytes(flipped)):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"one.npz is damaged .*: delete it, and its episode is acted out again"):
            load_demonstration(path)
