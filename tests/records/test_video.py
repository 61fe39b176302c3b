"""Videos: what is on each frame, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from worldenv.errors import UserError
from worldenv.records.video import BACKGROUND, CURVE, MARGIN, PLOT_HEIGHT, STOP, side_by_side, write_video

SCALE, H, W = 3, 9, 64
TOP = 40  # of the frames, below two lines of title


def panel(length, value):
    """Frames of one grey level that grows by one per frame, so that a frame tells its number."""
    return np.full((length, H, W, 3), value, np.uint8) + np.arange(length, dtype=np.uint8)[:, None, None, None]


def picture(video, t, i):
    left = MARGIN + i * (W * SCALE + MARGIN)
    return video[t, TOP : TOP + H * SCALE, left : left + W * SCALE]


def plot(video, t, i):
    left = MARGIN + i * (W * SCALE + MARGIN)
    return video[t, TOP + H * SCALE + MARGIN :, left : left + W * SCALE]


def shows(pixels, color):
    return (pixels == color).all(-1)


def test_panels_are_enlarged_by_nearest_neighbour_and_stand_side_by_side():
    rng = np.random.default_rng(0)
    panels = [rng.integers(0, 255, (4, H, W, 3), np.uint8) for _ in range(2)]
    video = side_by_side(panels, ["imagined", "true"], [np.zeros(4)] * 2, [None, None], SCALE)
    assert video.dtype == np.uint8
    assert video.shape == (4, TOP + H * SCALE + 2 * MARGIN + PLOT_HEIGHT, 3 * MARGIN + 2 * W * SCALE, 3)
    for t in range(4):
        for i in range(2):
            np.testing.assert_array_equal(picture(video, t, i), panels[i][t].repeat(SCALE, 0).repeat(SCALE, 1))


def test_stopped_panel_freezes_at_its_stop_with_a_border_from_then_on():
    curves = [np.linspace(0, 1, 8), np.linspace(0, 1, 6)]
    video = side_by_side([panel(8, 100), panel(6, 50)], ["a", "b"], curves, [3, None], SCALE)
    assert len(video) == 6  # the first ends at frame 3, the second at its last
    for t in range(6):
        centres = [picture(video, t, i)[H * SCALE // 2, W * SCALE // 2, 0] for i in range(2)]
        assert centres == [100 + min(t, 3), 50 + t]
        assert shows(picture(video, t, 0)[0, 0], STOP) == (t >= 3)
        assert shows(plot(video, t, 0), STOP).any() == (t >= 3)
        assert not shows(video[t, :, MARGIN + W * SCALE :], STOP).any()  # nothing of the first in the second


def test_reward_curve_grows_with_the_frames_and_rises_with_the_reward():
    curve = np.linspace(0, 1, 5)
    video = side_by_side([panel(5, 0)], ["a"], [curve], [None], SCALE)
    reach, height = [], []
    for t in range(5):
        rows, columns = np.nonzero(shows(plot(video, t, 0), CURVE))
        reach.append(columns.max())
        height.append(rows.min())
    assert np.all(np.diff(reach[:4]) > 30) and np.all(np.diff(height) < -5)
    assert np.all(np.abs(np.array(reach[:4]) - np.arange(4) / 4 * (W * SCALE - 1)) <= 3)


def test_threshold_line_crosses_the_curve_at_the_threshold():
    for threshold in (0.25, 0.75):
        video = side_by_side([panel(2, 0)], ["a"], [np.full(2, threshold)], [None], SCALE, threshold=threshold)
        rows, columns = np.nonzero(shows(plot(video, 1, 0), CURVE))
        first = side_by_side([panel(2, 0)], ["a"], [np.zeros(2)], [None], SCALE, threshold=threshold)
        dashes = np.nonzero((plot(first, 0, 0)[20:-12] != BACKGROUND).any(-1).sum(1) > W * SCALE // 3)[0] + 20
        assert abs(dashes.mean() - np.median(rows)) <= 1.5


def test_long_title_keeps_to_two_lines_of_its_panel():
    long = side_by_side([panel(1, 0)], ["put the very small red block " * 6], [np.zeros(1)], [None], SCALE)
    empty = side_by_side([panel(1, 0)], [""], [np.zeros(1)], [None], SCALE)
    rows, columns = np.nonzero((long[0] != empty[0]).any(-1))
    assert rows.max() < TOP and columns.max() < MARGIN + W * SCALE


def test_reward_that_is_not_finite_leaves_a_gap_in_the_curve():
    video = side_by_side([panel(3, 0)], ["a"], [np.array([np.nan, np.inf, np.nan])], [None], SCALE)
    assert not shows(video, CURVE).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panels": [panel(4, 0).astype(np.float32)]}, r"panels\[0\].*uint8.*float32"),
        ({"panels": [panel(4, 0)[..., :2]]}, r"panels\[0\].*\[4, 9, 64, 2\].*\[T, H, W, 3\]"),
        ({"titles": ["a", "b"]}, "equally many.*'titles': 2"),
        ({"curves": [np.zeros(3)]}, r"curves\[0\].*\[3\].*4 frames"),
        ({"stops": [4]}, r"stops\[0\]=4.*4 frames"),
        ({"scale": 0}, "scale=0"),
        (
            {"panels": [panel(4, 0), panel(4, 0)[:, 1:]], "titles": "ab", "curves": [np.zeros(4)] * 2, "stops": [1, 1]},
            r"panels\[1\].*\(8, 64\)",
        ),
    ],
)
def test_panels_that_do_not_fit_are_refused_by_name(change, message):
    arguments = {"panels": [panel(4, 0)], "titles": ["a"], "curves": [np.zeros(4)], "stops": [None], "scale": 3}
    with pytest.raises(UserError, match=message):
        side_by_side(**(arguments | change))


def test_video_file_keeps_the_detail_of_its_frames(tmp_path):
    y, x = np.mgrid[:64, :64]
    detail = np.uint8(128 + 60 * np.sin(x / 3) * np.cos(y / 4))
    write_video(tmp_path / "a.webp", np.repeat(detail[None, :, :, None], 3, axis=3), fps=8)
    with Image.open(tmp_path / "a.webp") as image:
        error = np.asarray(image.convert("RGB")).astype(float) - detail[..., None]
    assert np.sqrt((error**2).mean()) < 4


def test_video_file_has_every_frame_at_its_rate_and_close_to_the_original(tmp_path):
    frames = np.stack([panel(1, 40 * t)[0] for t in range(5)])
    write_video(tmp_path / "episode.webp", frames, fps=8, caption="start 7: é")
    with Image.open(tmp_path / "episode.webp") as image:
        assert image.n_frames == 5 and image.info["loop"] == 0
        for t in range(5):
            image.seek(t)
            image.load()
            assert image.info["duration"] == 125
            error = np.asarray(image.convert("RGB")).astype(int) - frames[t]
            assert np.abs(error).max() <= 6
    assert (tmp_path / "episode.txt").read_text(encoding="utf-8") == "start 7: é"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode.txt", "episode.webp"]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        ("a.gif", panel(2, 0), 8, r"must end in \.webp"),
        ("absent/a.webp", panel(2, 0), 8, "absent does not exist"),
        ("a.webp", panel(2, 0), 0, "fps=0"),
        ("a.webp", panel(2, 0), float("nan"), "fps=nan"),
        ("a.webp", panel(2, 0)[:0], 8, r"\[0, 9, 64, 3\].*at least one frame"),
        ("a.webp", [[0]], 8, "uint8"),
    ],
)
def test_video_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, frames, fps, message):
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())
