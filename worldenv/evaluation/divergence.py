"""Where imagined and true episodes part: the chunk in which the thing that the task moves is first elsewhere."""

import numpy as np

from worldenv.evaluation.things import AWAY, CLOSED, FADED, NEAR, SHRUNK, VANISHED, Chunks

PHASES = ("grasp", "carry", "release", "push", "reflector", "unknown")


def begin_of_divergence(true: Chunks, imagined: Chunks) -> tuple[np.ndarray, np.ndarray]:
    """The chunk [N] int64 (from 1; 0: never) in which the two episodes of each start part, and the phase [N] of it.

    They part where the thing is 1/16 of the picture's width apart, at least 35 % of it in both, or has vanished in one
    (below 10 %) and not in the other (60 % or more).

    - push: closed fingertips came to the thing.
    - grasp: else, the thing still stands where it first stood in one of them, or the gripper has closed in neither.
    - release, carry: else, the gripper is open at the end of the chunk in one of them, or closed in both.
    - reflector: the episodes never part in the picture; the reflector judges differently, or the thing's depth differs.
    - unknown: the detector cannot follow the thing, or there is no gripper.
    """
    n, rows = len(true.things.aim), np.arange(len(true.things.aim))
    aim = true.things.aim
    known = (aim >= 0) & true.followed[rows, aim] & imagined.followed[rows, aim]
    here, there = ((c.place[rows, :, aim], c.share[rows, :, aim]) for c in (true, imagined))
    apart = np.linalg.norm(here[0] - there[0], axis=-1) > AWAY * true.width
    low, high = np.minimum(here[1], there[1]), np.maximum(here[1], there[1])
    part = (apart & (low >= FADED)) | ((low < VANISHED) & (high >= SHRUNK))
    chunk = np.where(part.any(1) & known, part.argmax(1), 0)
    if true.gripper is None or imagined.gripper is None:
        return chunk, np.full(n, "unknown")
    closed = [c.gripper.opening[:, :: c.length] < CLOSED for c in (true, imagined)]
    has_closed = np.logical_or.accumulate(closed[0] | closed[1], axis=1)[rows, chunk]
    moved = [np.linalg.norm(place - place[:, :1], axis=-1) > AWAY * true.width for place, _ in (here, there)]
    carried = has_closed & (moved[0] & moved[1])[rows, chunk]
    phase = np.where(carried, np.where((closed[0] & closed[1])[rows, chunk], "carry", "release"), "grasp")
    phase = np.where(_comes_closed(true, here[0]) | _comes_closed(imagined, there[0]), "push", phase)
    phase = np.where(chunk > 0, phase, "reflector")
    return chunk, np.where(known, phase, "unknown")


def _comes_closed(chunks: Chunks, place: np.ndarray) -> np.ndarray:  # [N, C + 1, 2] -> [N] bool
    """Whether the fingertips are closed when they first come near the thing, where it first stands."""
    gripper = chunks.gripper
    near = np.linalg.norm(gripper.pixel - place[:, :1], axis=-1) < NEAR * chunks.width
    comes = near & gripper.is_low
    first = gripper.opening[np.arange(len(comes)), comes.argmax(1)]
    return comes.any(1) & (first < CLOSED)
