"""The statistics that LeRobot keeps of every feature: of an episode, and of the data set."""

from typing import Any

import numpy as np

MOST_PICTURES = 100  # of an episode, evenly drawn


def of_numbers(values: np.ndarray) -> dict[str, list]:  # [N] or [N, n]
    """Least, greatest, mean and standard deviation of every number, and N."""
    values = values.reshape(len(values), -1)
    real = values.astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": real.mean(0), "std": real.std(0)}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


def of_pictures(frames: np.ndarray) -> dict[str, list]:  # [N, H, W, 3] uint8
    """The same of every colour [3, 1, 1], of 255."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOST_PICTURES)).round().astype(int))
    some = frames[chosen].reshape(-1, 3)
    found = {"min": some.min(0), "max": some.max(0), "mean": some.mean(0), "std": some.std(0)}
    scaled = {name: (value / 255).reshape(3, 1, 1).tolist() for name, value in found.items()}
    return scaled | {"count": [len(chosen)]}


def merged(episodes: list[dict[str, dict[str, list]]]) -> dict[str, dict[str, list]]:
    """The statistics of all episodes together."""
    return {key: _merged([episode[key] for episode in episodes]) for key in episodes[0]}


def _merged(parts: list[dict[str, list]]) -> dict[str, Any]:
    least, most, mean, std = (np.array([part[name] for part in parts]) for name in ("min", "max", "mean", "std"))
    count = np.array([part["count"][0] for part in parts], np.float64)
    weight = (count / count.sum()).reshape(-1, *[1] * (mean.ndim - 1))
    middle = (weight * mean).sum(0)
    spread = np.sqrt((weight * (std**2 + (mean - middle) ** 2)).sum(0))
    found = {"min": least.min(0), "max": most.max(0), "mean": middle, "std": spread}
    return {name: value.tolist() for name, value in found.items()} | {"count": [int(count.sum())]}
