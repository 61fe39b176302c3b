"""Does imagination know when it is wrong? How unsure it was of each episode, against the true outcomes."""

import numpy as np

Z = 1.96


def guard(
    unsure: np.ndarray,  # [N] how unsure imagination was of each episode; only the order counts
    wrong: np.ndarray,  # [N] bool, whether the imagined outcome is not the true one of the same start
) -> dict:
    """`auroc`: the chance that imagination was less sure of a wrong outcome than of a right one; a tie counts half.

    The 95 % interval is that of DeLong et al. 1988, from the placements of wrong ones among right ones and the reverse.
    `right`, `wrong`: means of `unsure`. Without a wrong or without a right outcome there is no AUROC: None. With only
    one of either, or if the AUROC is 0 or 1, there is no interval.

    Raises ValueError if there is no episode, the lengths differ, or `unsure` is not finite.
    """
    unsure, wrong = np.asarray(unsure, dtype=np.float64), np.asarray(wrong, dtype=bool)
    if not unsure.size or unsure.ndim != 1 or unsure.shape != wrong.shape:
        raise ValueError(f"unsure is {unsure.shape}, wrong {wrong.shape}: they should be equal, [N], and not empty")
    if not np.isfinite(unsure).all():
        raise ValueError("unsure has numbers that are not finite")
    high, low = unsure[wrong], unsure[~wrong]
    out = {"auroc": None, "interval": None, "n": len(unsure), "n_wrong": len(high)}
    out |= {name: float(part.mean()) if len(part) else None for name, part in (("right", low), ("wrong", high))}
    if not len(high) or not len(low):
        return out
    of_high, of_low = _placement(high, low), 1 - _placement(low, high)
    out["auroc"] = float(of_high.mean())
    if min(len(high), len(low)) > 1 and 0 < out["auroc"] < 1:
        half = Z * np.sqrt(of_high.var(ddof=1) / len(high) + of_low.var(ddof=1) / len(low))
        out["interval"] = [float(max(0.0, out["auroc"] - half)), float(min(1.0, out["auroc"] + half))]
    return out


def _placement(values: np.ndarray, others: np.ndarray) -> np.ndarray:  # [M], [N] -> [M]
    """The share of the others that is smaller than each value; those that are equal count half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))
