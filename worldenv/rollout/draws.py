"""Counter-based randomness: each draw is Philox(seed, episode, chunk, use), so an episode is the same in any batch."""

from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_THREADS = ThreadPoolExecutor()  # numpy lets go of the interpreter while it draws


class Use(IntEnum):
    ACTION = 0
    FRAME = 1


def _generator(seed: int, episode: int, chunk: int, use: Use) -> np.random.Generator:
    key = np.array([seed, episode], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, chunk, use, 0], dtype=np.uint64)))


def uniform(seed: int, episodes: Tensor, chunk: int, use: Use, shape: tuple[int, ...]) -> Tensor:
    """float32 [B, *shape] in [0, 1) for the episodes [B] int64."""
    rows = [_generator(seed, int(e), chunk, use).random(shape, dtype=np.float32) for e in episodes]
    return torch.from_numpy(np.stack(rows))


def normal(seed: int, episodes: Tensor, chunk: int, use: Use, shape: tuple[int, ...]) -> Tensor:
    """float32 [B, *shape], standard normal, for the episodes [B] int64."""
    out = torch.empty(len(episodes), *shape)
    generators = [_generator(seed, int(e), chunk, use) for e in episodes]
    list(_THREADS.map(lambda g, row: g.standard_normal(out=row, dtype=np.float32), generators, out.numpy()))
    return out
