"""Intervals of success rates and of means over seeds."""

import math
from collections.abc import Sequence

T_QUANTILES_975 = (
    12.70620,
    4.30265,
    3.18245,
    2.77645,
    2.57058,
    2.44691,
    2.36462,
    2.30600,
    2.26216,
    2.22814,
    2.20099,
    2.17881,
    2.16037,
    2.14479,
    2.13145,
    2.11991,
    2.10982,
    2.10092,
    2.09302,
    2.08596,
    2.07961,
    2.07387,
    2.06866,
    2.06390,
    2.05954,
    2.05553,
    2.05183,
    2.04841,
    2.04523,
    2.04227,
)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927), which stays inside [0, 1] and is valid near its ends.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = successes / n

    Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes = {successes}, trials = {trials}: need trials >= 1 and 0 <= successes <= trials")
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / scale
    # The formula gives exactly 0 and 1 at the two ends, floating point does not.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def difference_interval(
    successes_1: int, trials_1: int, successes_2: int, trials_2: int, z: float = 1.96
) -> tuple[float, float]:
    """Interval of the difference p1 - p2 of two independent success rates.

        low  = d - sqrt((p1 - l1)^2 + (u2 - p2)^2)
        high = d + sqrt((u1 - p1)^2 + (p2 - l2)^2),   d = p1 - p2, (l, u) = Wilson intervals

    The hybrid score interval without continuity correction: method 10 of R. G. Newcombe, "Interval estimation for the
    difference between independent proportions", Statistics in Medicine 17 (1998). Raises like `wilson_interval`.
    """
    low_1, high_1 = wilson_interval(successes_1, trials_1, z)
    low_2, high_2 = wilson_interval(successes_2, trials_2, z)
    rate_1, rate_2 = successes_1 / trials_1, successes_2 / trials_2
    difference = rate_1 - rate_2
    low = difference - math.hypot(rate_1 - low_1, high_2 - rate_2)
    high = difference + math.hypot(high_1 - rate_1, rate_2 - low_2)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few independent values (one per seed), by Student's t.

        mean -+ t(0.975, n - 1) s / sqrt(n)

    Raises ValueError for fewer than two values, or if one is not finite.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"values has {count} entries: an interval of the mean needs at least 2 (run more seeds)")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values = {list(values)}: every entry must be finite")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _t_quantile(count - 1) * deviation / math.sqrt(count)
    return mean - half, mean + half


def _t_quantile(freedom: int) -> float:
    if freedom <= len(T_QUANTILES_975):
        return T_QUANTILES_975[freedom - 1]
    # Cornish-Fisher expansion around the normal quantile: 1e-6 off at 31 degrees of freedom, less beyond.
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
