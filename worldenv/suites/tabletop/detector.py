"""Where the things of a table are in a picture, by their known colours: true frames and imagined ones alike."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from worldenv.errors import UserError
from worldenv.interfaces.suite import Things
from worldenv.suites.parts import find_parts
from worldenv.suites.tabletop.scenes import COLORS, Task

# As csrc/tabletop/render.cpp paints them. Light scales a colour and leaves its direction.
PALETTE = (
    (210, 45, 45),
    (50, 165, 70),
    (45, 85, 210),
    (235, 200, 40),
    (145, 60, 175),
    (240, 130, 35),
    (60, 190, 200),
    (235, 235, 235),
)
BACKGROUND = (
    (186, 164, 138),
    (52, 56, 64),
    (95, 75, 60),
    (70, 72, 78),
    (40, 42, 46),
)  # table, floor, tray, finger, arm
NEAREST_DEG = 10.0  # a pixel that is further from every colour is a mixture, and belongs to none
WHITE_MIN = 110  # white is a grey, too; nothing else that is grey is as light
MOVABLE = ("block", "can", "puck")
LEFT_OUT = ("white",)  # the hand of the gripper is white
BITS = 6  # of each channel that the table of colours keeps


def find_things(
    frames: np.ndarray,  # [N, T, V, H, W, 3] uint8
    tasks: Sequence[Task],  # N
) -> Things:
    """The blocks, cans and pucks of every frame, by colour; C counts the eight colours of the suite.

    A thing is left out where it cannot be told by its colour: what is white, as the hand is, and what shares its colour
    with another thing of its task. Raises UserError for frames of another kind, or not one task for each episode.
    """
    if frames.dtype != np.uint8 or frames.ndim != 6 or frames.shape[-1] != 3 or len(frames) != len(tasks):
        raise UserError(
            f"frames is {frames.dtype} {list(frames.shape)} for {len(tasks)} tasks; it should be uint8 [N, T, V, H, W, "
            "3] with one task for each of the N episodes"
        )
    n, t = frames.shape[:2]
    color = nearest_color(frames[:, :, 0])
    area, centre = find_parts(color.reshape(n * t, *color.shape[2:]), len(COLORS))
    known, aim = np.zeros((n, len(COLORS)), dtype=bool), np.full(n, -1)
    for row, task in enumerate(tasks):
        colors = [item.color for item in task.items]
        for i, item in enumerate(task.items):
            if item.kind in MOVABLE and item.color not in LEFT_OUT and colors.count(item.color) == 1:
                known[row, COLORS.index(item.color)] = True
                if i == task.object:
                    aim[row] = COLORS.index(item.color)
    return Things(area.reshape(n, t, *area.shape[1:]), centre.reshape(n, t, *centre.shape[1:]), known, aim)


def nearest_color(
    frames: np.ndarray,  # [..., 3] uint8
) -> np.ndarray:  # [...] uint8: index of the colour + 1; 0: none of them, or the background
    """The colour of each pixel, whatever the light."""
    r, g, b = np.moveaxis(frames >> (8 - BITS), -1, 0)
    return _color_table()[r, g, b]


@cache
def _color_table() -> np.ndarray:  # [64, 64, 64] uint8: index of the colour + 1, 0: none of them
    level = (np.arange(2**BITS) + 0.5) * 2 ** (8 - BITS)
    rgb = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1)
    length = np.linalg.norm(rgb, axis=-1, keepdims=True)
    directions = np.array([*PALETTE, *BACKGROUND], dtype=float)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = rgb / length @ directions.T
    nearest, near = cosine.argmax(-1), cosine.max(-1) > np.cos(np.deg2rad(NEAREST_DEG))
    white = (nearest == COLORS.index("white")) & (rgb.min(-1) <= WHITE_MIN)
    return np.where(near & ~white & (nearest < len(PALETTE)), nearest + 1, 0).astype(np.uint8)
