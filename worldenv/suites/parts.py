"""The connected parts of what a detector tells apart in pictures."""

import numpy as np

from worldenv.interfaces.suite import PARTS

LEAST_PX = 3  # of a part


def find_parts(
    look: np.ndarray,  # [M, H, W] uint8, index of what a pixel shows + 1; 0: nothing
    count: int,  # of looks (colours, say) that are told apart
) -> tuple[np.ndarray, np.ndarray]:  # area [M, count, PARTS] float32 px, centre [M, count, PARTS, 2] float32 px (x, y)
    """The connected parts of each look, largest first: pixels of one look that touch at their sides.

    Parts of fewer than 3 pixels are noise. Where there are fewer than PARTS, the area is 0 and the centre NaN.
    """
    m, height, width = look.shape
    place = np.flatnonzero(look)
    frame, y, x = np.unravel_index(place, look.shape)
    root = _joined(look, place)
    root, part = np.unique(root, return_inverse=True)
    size = np.bincount(part, minlength=len(root))
    middle = np.stack([np.bincount(part, at, len(root)) for at in (x + 0.5, y + 0.5)], axis=1) / size[:, None]
    group = frame[root] * count + look.ravel()[place[root]].astype(np.int64) - 1
    large = np.flatnonzero(size >= LEAST_PX)
    order = large[np.lexsort((-size[large], group[large]))]
    first = np.searchsorted(group[order], group[order])
    rank = np.arange(len(order)) - first
    order, rank = order[rank < PARTS], rank[rank < PARTS]
    area = np.zeros((m * count, PARTS), dtype=np.float32)
    centre = np.full((m * count, PARTS, 2), np.nan, dtype=np.float32)
    area[group[order], rank], centre[group[order], rank] = size[order], middle[order]
    return area.reshape(m, count, PARTS), centre.reshape(m, count, PARTS, 2)


def _joined(look: np.ndarray, place: np.ndarray) -> np.ndarray:  # [len(place)] int64: one number for each part
    """For each pixel that shows something the first one of its part, by joining neighbours until nothing changes."""
    number = np.full(look.shape, -1)
    number.ravel()[place] = np.arange(len(place))
    pairs = []
    for one, other in ((np.s_[:, :, :-1], np.s_[:, :, 1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        same = (look[one] == look[other]) & (look[one] > 0)
        pairs.append((number[one][same], number[other][same]))
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    root = np.arange(len(place))
    while True:
        low = np.minimum(root[a], root[b])
        before = root.copy()
        np.minimum.at(root, before[a], low)
        np.minimum.at(root, before[b], low)
        while (root != root[root]).any():
            root = root[root]
        if (root == before).all():
            return root
