"""The connected parts of what a detector tells apart."""

import numpy as np
import pytest

from worldenv.interfaces.suite import PARTS
from worldenv.suites.parts import LEAST_PX, find_parts


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 63), (5, 17, 9), (2, 40, 40)])
@pytest.mark.parametrize("colors", [1, 3])
def test_parts_are_those_of_a_flood_fill(shape, colors):
    random = np.random.default_rng(sum(shape) + colors)
    color = (random.integers(1, colors + 1, shape) * (random.random(shape) < 0.7)).astype(np.uint8)
    area, centre = find_parts(color, colors)
    for frame in range(shape[0]):
        for look in range(colors):
            parts = sorted(flood(color[frame] == look + 1), key=len, reverse=True)
            sizes = [len(part) for part in parts if len(part) >= LEAST_PX][:PARTS]
            assert area[frame, look].tolist() == sizes + [0] * (PARTS - len(sizes))
            assert np.isnan(centre[frame, look, len(sizes) :]).all()
            if sizes and sizes.count(sizes[0]) == 1:
                y, x = np.mean(parts[0], axis=0) + 0.5
                assert centre[frame, look, 0] == pytest.approx([x, y], abs=1e-4)


def flood(mask):
    mask, parts = mask.copy(), []
    while mask.any():
        part, edge = [], [tuple(np.argwhere(mask)[0])]
        mask[edge[0]] = False
        while edge:
            y, x = edge.pop()
            part.append((y, x))
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1] and mask[place]:
                    mask[place] = False
                    edge.append(place)
        parts.append(part)
    return parts
