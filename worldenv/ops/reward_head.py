"""Op `reward_head`: from features of new frames to rewards and stop flags, in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops

EPS = 1e-5


def reward_head_reference(
    feature: Tensor,  # [B, K, D]
    first: Tensor,  # [B, D]
    total: Tensor,  # [B, D]
    count: Tensor,  # [B, 1]
    gain: Tensor,  # [3 D]
    shift: Tensor,  # [3 D]
    weight1: Tensor,  # [D1, 3 D]
    bias1: Tensor,  # [D1]
    weight2: Tensor,  # [D2, D1]
    bias2: Tensor,  # [D2]
    weight3: Tensor,  # [1, D2]
    bias3: Tensor,  # [1]
    threshold: float,
) -> tuple[Tensor, Tensor]:  # [B, K], [B, K]
    """The meaning of `reward_head`, in plain PyTorch."""
    k = feature.shape[1]
    totals = total[:, None] + feature.cumsum(1)
    counts = count + torch.arange(1, k + 1, device=count.device)
    total.copy_(totals[:, -1])
    count.copy_(counts[:, -1:])
    x = torch.cat([feature, feature - first[:, None], totals / counts[..., None]], dim=-1)
    x = F.layer_norm(x, x.shape[-1:], gain, shift, EPS)
    x = F.linear(F.relu(F.linear(F.relu(F.linear(x, weight1, bias1)), weight2, bias2)), weight3, bias3)
    reward = torch.sigmoid(x[..., 0])
    return reward, reward > threshold


def reward_head(
    feature: Tensor,  # [B, K, D] float32, of the new frames, in order
    first: Tensor,  # [B, D] float32, of the episode's first frame
    total: Tensor,  # [B, D] float32, sum over the frames so far; moved on in place
    count: Tensor,  # [B, 1] float32, how many they are; moved on in place
    gain: Tensor,  # [3 D] float32, of the layer normalisation
    shift: Tensor,  # [3 D] float32
    weight1: Tensor,  # [D1, 3 D] float32
    bias1: Tensor,  # [D1] float32
    weight2: Tensor,  # [D2, D1] float32
    bias2: Tensor,  # [D2] float32
    weight3: Tensor,  # [1, D2] float32
    bias3: Tensor,  # [1] float32
    threshold: float,  # eta: stop where the reward is above it
) -> tuple[Tensor, Tensor]:  # reward [B, K] float32 in [0, 1]; stop [B, K] bool
    """The reflector's judgement of every new frame (World-Env, arXiv 2509.24948, reflector):

        pooled = (feature, feature - first, mean of the features so far)
        reward = sigmoid(weight3 relu(weight2 relu(weight1 layer_norm(pooled))))
        stop   = reward > threshold

    A reward that is not a number stops nothing. No gradient. Raises ValueError if a shape, dtype or device is another
    one.
    """
    if feature.ndim != 3 or weight1.ndim != 2 or weight2.ndim != 2 or not feature.shape[1]:
        raise ValueError(
            f"feature has shape {list(feature.shape)}, weight1 {list(weight1.shape)} and weight2 "
            f"{list(weight2.shape)}; they should be [B, K >= 1, D], [D1, 3 D] and [D2, D1]"
        )
    (b, _, d), d1, d2 = feature.shape, len(weight1), len(weight2)
    ops.check_tensors(
        {
            "feature": (feature, feature.shape),
            "first": (first, (b, d)),
            "total": (total, (b, d)),
            "count": (count, (b, 1)),
            "gain": (gain, (3 * d,)),
            "shift": (shift, (3 * d,)),
            "weight1": (weight1, (d1, 3 * d)),
            "bias1": (bias1, (d1,)),
            "weight2": (weight2, (d2, d1)),
            "bias2": (bias2, (d2,)),
            "weight3": (weight3, (1, d2)),
            "bias3": (bias3, (1,)),
        }
    )
    for name, tensor in {"total": total, "count": count}.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is written in place; it should be contiguous")
    weights = (gain, shift, weight1, bias1, weight2, bias2, weight3, bias3)
    arguments = (feature.detach(), first, total, count, *(weight.detach() for weight in weights), threshold)
    if ops.BACKEND == "reference":
        return reward_head_reference(*arguments)
    return torch.ops.worldenv.reward_head(*arguments)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::reward_head", "CompositeExplicitAutograd")(reward_head_reference)


@torch.library.register_fake("worldenv::reward_head")
def _(feature, first, total, count, gain, shift, weight1, bias1, weight2, bias2, weight3, bias3, threshold):
    b, k, _ = feature.shape
    return feature.new_empty(b, k), feature.new_empty(b, k, dtype=torch.bool)
