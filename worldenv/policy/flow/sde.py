"""A step of a flow with noise in it: the stochastic equation whose distributions at all times are those of the flow.

With x at time t = (1 - t) action + t noise and the velocity v = noise - action, the step from t to t - d is

    s     =  level * sqrt(t / (1 - t))                    (at t = 1 the divisor is d)
    mean  =  x - d v - d s^2 / (2 t) * (x + (1 - t) v)    (in brackets: the noise that v means)
    after =  mean + s sqrt(d) * normal

(Flow-GRPO, Liu et al. 2025, arXiv 2505.05470; as `flow_sde` in RLinf.)
"""

from math import log, pi

import torch
from torch import Tensor

from worldenv.interfaces.observation import Key
from worldenv.ops.philox import Use, philox


def drawn(key: Key, steps: int) -> Tensor:  # [B] int64, below `steps`
    """Which step is a stochastic one."""
    return (philox(*key, Use.STEP, (1,))[:, 0] * steps).long().clamp(max=steps - 1)


def transition(
    x: Tensor,  # [B, K, D] float32
    velocity: Tensor,  # [B, K, D] float32
    time: Tensor,  # [B] float32, at which the step begins: 1 to 1 / steps
    steps: int,
    level: float,
) -> tuple[Tensor, Tensor]:
    """Mean [B, K, D] of where the step ends, and its standard deviation [B, 1, 1]."""
    t, d = time[:, None, None], 1 / steps
    deviation = level * (t / (1 - t).clamp(min=d)).sqrt()
    mean = x - d * velocity - d * deviation.square() / (2 * t) * (x + (1 - t) * velocity)
    return mean, deviation * d**0.5


def density(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:  # [B, K, A], [B, K, A], [B, 1, 1] -> [B]
    """Logarithm of the normal density of x, summed over its numbers."""
    z = (x - mean) / deviation
    return -(0.5 * z.square() + torch.log(deviation) + 0.5 * log(2 * pi)).sum((1, 2))
