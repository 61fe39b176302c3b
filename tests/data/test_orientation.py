"""Which way up pictures are, and whether the camera agrees."""

from dataclasses import replace

import numpy as np
import pytest

from worldenv.data.clips import Clips
from worldenv.data.orientation import STEPS, agreement, check_upright, upright
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS


@pytest.fixture(scope="module")
def demos():
    """Episodes of the embedded suite, whose camera is known."""
    return demonstrate(TASKS[:3], [0, 1, 2], "train")


def turned(trajectory, orientation):
    return replace(trajectory, frames=np.ascontiguousarray(upright(trajectory.frames, orientation)))


def test_each_orientation_is_its_own_inverse_and_does_what_it_says():
    frame = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    for orientation in STEPS:
        np.testing.assert_array_equal(upright(upright(frame, orientation), orientation), frame)
    np.testing.assert_array_equal(upright(frame, "flipped"), frame[::-1])
    np.testing.assert_array_equal(upright(frame, "turned"), frame[:, ::-1])
    np.testing.assert_array_equal(upright(frame, "turned"), np.rot90(upright(frame, "flipped"), 2))
    np.testing.assert_array_equal(upright(frame, "upside-down"), np.rot90(frame, 2))


@pytest.mark.parametrize("orientation", STEPS)
def test_camera_tells_how_the_pictures_are_stored(demos, orientation):
    found = agreement([turned(t, orientation) for t in demos])
    rows, columns = STEPS[orientation]
    assert found.orientation == orientation and found.changes > 30
    assert found.across * columns > 0.5 and found.down * rows > 0.5


@pytest.mark.parametrize("read_as", STEPS)
def test_wrong_orientation_is_refused_with_the_right_one(demos, read_as):
    """The pictures are stored flipped; whatever they were read as, the error names that."""
    stored = [turned(t, "flipped") for t in demos]
    found = [turned(t, read_as) for t in stored]
    if read_as == "flipped":
        assert check_upright(found, read_as=read_as).orientation == "upright"
        return
    with pytest.raises(UserError, match="do not agree with the camera.*read them with the orientation 'flipped'"):
        check_upright(found, read_as=read_as)


def test_what_does_not_move_tells_nothing(demos, make):
    still = replace(demos[0], frames=np.repeat(demos[0].frames[:1], len(demos[0].frames), axis=0))
    assert agreement([still]).orientation is None and agreement([]).orientation is None
    here = replace(demos[0], proprio=np.repeat(demos[0].proprio[:1], len(demos[0].frames), axis=0))
    assert agreement([here]).orientation is None
    assert agreement([make(seed, steps=20) for seed in range(3)]).orientation is None  # noise follows nothing
    with pytest.raises(UserError, match="have no camera"):
        agreement([replace(demos[0], camera=None)])
    with pytest.raises(UserError, match="fewer than 3 numbers"):
        agreement([make(proprio=2)])


def test_pictures_of_files_are_returned_upright(make, tmp_path, same):
    with TrajectoryWriter(tmp_path / "set") as writer:
        writer.write(turned(make(), "turned"))
    assert TrajectoryReader(tmp_path / "set")[0].frames[0, 0, 0, 0].tolist() != make().frames[0, 0, 0, 0].tolist()
    with TrajectoryReader(tmp_path / "set", orientation="turned") as reader:
        same(reader[0], make())
    clips = Clips.open(tmp_path / "set", orientation="turned").in_memory()
    np.testing.assert_array_equal(clips.stored.rows.numpy(), make().frames)
    with pytest.raises(UserError, match="orientation is 'up'"):
        TrajectoryReader(tmp_path / "set", orientation="up")
