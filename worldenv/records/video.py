"""Videos of episodes: imagined and true side by side, with the reward curve and the stop."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from worldenv.errors import UserError
from worldenv.files import replace_whole, write_text

BACKGROUND, INK, FAINT = (20, 22, 26), (232, 234, 237), (110, 116, 125)
CURVE, STOP = (94, 166, 255), (255, 159, 67)
MARGIN = 8  # pixels, around and between panels
LINE_HEIGHT = 16
TITLE_LINES = 2
PLOT_HEIGHT = 72  # the first line has the numbers
BORDER = 3


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray,  # [T, H, W, 3] uint8
    fps: float,
    caption: str = "",
) -> None:
    """Write a looping animated WebP (lossy, quality 80), completely or not at all.

    A caption goes into a text file of the same stem, where the report looks for it. Raises UserError on a wrong
    shape, type, rate or file name, if the folder is missing, if the disk refuses the file, and if Pillow was built
    without WebP.
    """
    path = Path(path)
    _check_frames("frames", frames)
    if not 0.1 <= fps <= 1000:
        raise UserError(f"fps={fps}: give a rate between 0.1 and 1000 frames per second")
    if path.suffix != ".webp":
        raise UserError(f"path={path}: videos are animated WebP, so the name must end in .webp")
    if not path.parent.is_dir():
        raise UserError(f"path={path}: the folder {path.parent} does not exist; make it first")
    if not features.check("webp"):
        raise UserError("this Pillow was built without WebP: pip install --force-reinstall pillow")
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    replace_whole(path, lambda made: first.save(made, "WEBP", quality=80, method=3, **options))
    if caption:
        write_text(path.with_suffix(".txt"), caption)


def side_by_side(
    panels: Sequence[np.ndarray],  # each [T_i, H, W, 3] uint8
    titles: Sequence[str],
    curves: Sequence[np.ndarray],  # each [T_i] float, reward in [0, 1]
    stops: Sequence[int | None],  # frame at which the episode stopped
    scale: int = 3,
    threshold: float = 0.5,
) -> np.ndarray:  # [T, H', W', 3] uint8
    """Draw episodes next to each other, each over its reward curve up to the current frame.

    A panel ends at its stop, or else at its last frame, and freezes there until the longest has ended (T frames).
    The stop is a vertical line in the curve and a border round the frame. Raises UserError if the lists differ in
    length, a curve in length from its panel, a panel in size from the first, or a stop lies outside its panel.
    """
    _check_panels(panels, titles, curves, stops, scale)
    lasts = [len(panel) - 1 if stop is None else stop for panel, stop in zip(panels, stops, strict=True)]
    length = max(lasts) + 1
    height, width = panels[0].shape[1] * scale, panels[0].shape[2] * scale
    top = MARGIN + TITLE_LINES * LINE_HEIGHT
    size = MARGIN + len(panels) * (width + MARGIN), top + height + MARGIN + PLOT_HEIGHT + MARGIN
    frames = np.empty((length, size[1], size[0], 3), np.uint8)
    for t in range(length):
        canvas = Image.new("RGB", size, BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        for i, (panel, title, curve, stop) in enumerate(zip(panels, titles, curves, stops, strict=True)):
            left, now = MARGIN + i * (width + MARGIN), min(t, lasts[i])
            _draw_title(draw, title, left, width)
            picture = Image.fromarray(panel[now]).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top))
            if now == stop:
                draw.rectangle((left, top, left + width - 1, top + height - 1), outline=STOP, width=BORDER)
            plot = (left, top + height + MARGIN, left + width - 1, size[1] - MARGIN)
            _draw_curve(draw, plot, np.asarray(curve)[: now + 1], length, stop if now == stop else None, threshold)
        frames[t] = np.asarray(canvas)
    return frames


def _check_frames(name: str, frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise UserError(f"{name}: a NumPy array of uint8 is needed, not {getattr(frames, 'dtype', type(frames))}")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UserError(f"{name}: the shape is {list(frames.shape)}, it should be [T, H, W, 3] with at least one frame")


def _check_panels(
    panels: Sequence[np.ndarray],
    titles: Sequence[str],
    curves: Sequence[np.ndarray],
    stops: Sequence[int | None],
    scale: int,
) -> None:
    counts = {"panels": len(panels), "titles": len(titles), "curves": len(curves), "stops": len(stops)}
    if len(set(counts.values())) != 1 or not panels:
        raise UserError(f"panels, titles, curves and stops must be equally many, at least one: {counts}")
    if scale < 1:
        raise UserError(f"scale={scale}: it must be a whole number from 1")
    for i, (panel, curve, stop) in enumerate(zip(panels, curves, stops, strict=True)):
        _check_frames(f"panels[{i}]", panel)
        if panel.shape[1:] != panels[0].shape[1:]:
            raise UserError(f"panels[{i}] has frames of {panel.shape[1:3]}, panels[0] of {panels[0].shape[1:3]}")
        if np.shape(curve) != (len(panel),):
            raise UserError(f"curves[{i}] has shape {list(np.shape(curve))}, its panel has {len(panel)} frames")
        if stop is not None and not 0 <= stop < len(panel):
            raise UserError(f"stops[{i}]={stop} is outside its panel of {len(panel)} frames; None means no stop")


def _draw_title(draw: ImageDraw.ImageDraw, title: str, left: int, width: int) -> None:
    font = ImageFont.load_default(12)
    lines, words = [""], title.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > TITLE_LINES:
        lines[TITLE_LINES - 1] += " ..."
    for i, line in enumerate(lines[:TITLE_LINES]):
        while font.getlength(line) > width and len(line) > 1:
            line = line.removesuffix("...").rstrip()[:-1] + "..."
        draw.text((left, MARGIN // 2 + i * LINE_HEIGHT), line, INK, font)


def _draw_curve(
    draw: ImageDraw.ImageDraw,
    plot: tuple[int, int, int, int],  # left, top, right, bottom in pixels
    curve: np.ndarray,  # [t + 1] reward so far
    length: int,
    stop: int | None,
    threshold: float,
) -> None:
    left, top, right, bottom = plot

    def x(t: int) -> float:
        return left + (right - left) * t / max(length - 1, 1)

    def y(reward: float) -> float:
        return bottom - (bottom - top - LINE_HEIGHT) * min(max(reward, 0.0), 1.0)

    font = ImageFont.load_default(10)
    draw.line((left, bottom, right, bottom), FAINT)
    for dash in range(left, right, 8):
        draw.line((dash, y(threshold), min(dash + 4, right), y(threshold)), FAINT)
    if stop is not None:
        draw.line((x(stop), top + LINE_HEIGHT, x(stop), bottom), STOP, 2)
    points = [(x(t), y(float(reward))) for t, reward in enumerate(curve) if np.isfinite(reward)]
    if points:
        draw.line(points, CURVE, 2)
        draw.ellipse((points[-1][0] - 2, points[-1][1] - 2, points[-1][0] + 2, points[-1][1] + 2), CURVE)
    draw.text((left, top), f"reward {float(curve[-1]):.2f}", INK, font)
    if stop is not None:
        draw.text((left + 66, top), f"stop at frame {stop}", STOP, font)
