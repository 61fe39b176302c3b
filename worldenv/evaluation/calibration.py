"""Is the reflector's reward a probability of success, and does it stop where the task is done?"""

import numpy as np

BINS = 10


def calibration(
    reward: np.ndarray,  # [...] in [0, 1], after a frame
    success: np.ndarray,  # [...] bool, whether the task was done in that frame, in truth
) -> dict:
    """The reliability curve over 10 equal bins of reward, and the expected calibration error (Guo et al. 2017, eq. 3).

        ECE = sum over bins of  (n_bin / n) |mean reward - share of success|

    A bin without frames has None for both means. Raises ValueError if there is no frame, or the shapes differ.
    """
    reward, success = np.asarray(reward, dtype=np.float64), np.asarray(success, dtype=bool)
    if not reward.size or reward.shape != success.shape:
        raise ValueError(f"reward is {reward.shape}, success {success.shape}: they should be equal, and not empty")
    index = np.minimum((reward * BINS).astype(int), BINS - 1).ravel()
    count, rewards, done = (np.bincount(index, w, BINS) for w in (None, reward.ravel(), success.ravel()))
    bins = [
        {"reward": float(r / n) if n else None, "success": float(d / n) if n else None, "n": int(n)}
        for n, r, d in zip(count, rewards, done, strict=True)
    ]
    return {"ece": float(np.abs(rewards - done).sum() / reward.size), "n": reward.size, "bins": bins}


def stop_errors(
    stop: np.ndarray,  # [N, T] bool, where the reflector would stop
    success: np.ndarray,  # [N, T] bool, whether the task was done, in truth
) -> dict[str, float]:
    """`false_stop`: share of all episodes whose first stop is in a state without success. `missed_stop`: share of
    episodes without a stop, of those that succeed at some time."""
    stopped, done = stop.any(1), success.any(1)
    at_stop = success[np.arange(len(stop)), stop.argmax(1)]
    return {
        "false_stop": float((stopped & ~at_stop).mean()),
        "missed_stop": float((~stopped & done).sum() / max(1, done.sum())),
    }
