"""Do imagination and truth come to the same end, episode by episode? Same policy, same start, no noise."""

from collections.abc import Sequence
from math import comb

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.records.intervals import difference_interval, wilson_interval
from worldenv.rollout.episodes import Rollouts

RESAMPLES = 1000  # for the intervals of the mean and the largest gap


def outcomes(
    imagined: Rollouts,  # n, on the CPU
    trajectories: Sequence[Trajectory],  # at least n; the first n from the same starts
    likely: float | None = None,  # of the reflector
) -> tuple[np.ndarray, np.ndarray]:  # [n] bool, [n] bool
    """Which episodes succeed in imagination, as `Rollouts.succeeded` says, and which in truth at some time.

    Both over as many steps.
    """
    count, horizon = len(imagined.stopped), len(trajectories[0].actions)
    steps = min(imagined.reward[0].numel(), horizon)
    return imagined.succeeded(likely, steps).numpy(), np.array([t.success[:steps].any() for t in trajectories[:count]])


def agreement(
    imagined: np.ndarray,  # [N] bool, imagined outcome
    true: np.ndarray,  # [N] bool, true outcome of the same start
    tasks: Sequence[str],  # N names
    seed: int = 0,
) -> dict:
    """Share of episodes whose outcomes agree, and the gap of each task: imagined minus true success.

    The gap of a task has Newcombe's 95 % interval, as if both were independent: too wide, if anything. The mean and the
    largest |gap| over the tasks have percentile intervals over resampled episodes. `by_chance` is the mean |gap| that
    would be expected without any real gap: if each episode that disagrees erred either way with equal chance. It is not
    small for few episodes, and neither, then, is the mean.

    Raises ValueError if there is no episode, or the lengths differ.
    """
    imagined, true, names = np.asarray(imagined, bool), np.asarray(true, bool), np.asarray(tasks)
    if not len(true) or not len(imagined) == len(true) == len(names):
        raise ValueError(f"{len(imagined)} imagined and {len(true)} true outcomes of {len(names)} tasks: need as many")
    random, same, per_task, drawn, chance = np.random.default_rng(seed), imagined == true, {}, [], []
    for name in dict.fromkeys(tasks):
        rows = np.flatnonzero(names == name)
        n, differ = len(rows), imagined[rows].astype(int) - true[rows]
        counts = int(imagined[rows].sum()), n, int(true[rows].sum()), n
        shares = {"imagined": counts[0] / n, "true": counts[2] / n, "gap": differ.mean().item()}
        per_task[name] = shares | {"interval": list(difference_interval(*counts)), "n": n}
        drawn.append(np.abs(differ[random.integers(0, n, (RESAMPLES, n))].mean(1)))
        m = int((differ != 0).sum())
        chance.append(sum(comb(m, k) * abs(m - 2 * k) for k in range(m + 1)) / 2**m / n)
    gaps, drawn = [abs(part["gap"]) for part in per_task.values()], np.stack(drawn)
    return {
        "share": same.mean().item(),
        "interval": list(wilson_interval(int(same.sum()), len(same))),
        "n": len(same),
        "mean_gap": float(np.mean(gaps)),
        "mean_gap_interval": np.quantile(drawn.mean(0), (0.025, 0.975)).tolist(),
        "mean_gap_by_chance": float(np.mean(chance)),
        "largest_gap": max(gaps),
        "largest_gap_interval": np.quantile(drawn.max(0), (0.025, 0.975)).tolist(),
        "per_task": per_task,
    }
