"""Op `residual_int8`: two normalised convolutions in 8 bits and what they are added to, in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.adagn import ACTIVATIONS, adagn_reference
from worldenv.ops.packed import FOUR, Layer, Packed, check_layer, multiply, quantise


def residual_int8_reference(
    x: Tensor,
    more: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    weight1: Tensor | None,
    bias1: Tensor | None,
    conv1: Tensor,
    affine1: Tensor,
    step1: float,
    zero1: int,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    conv2: Tensor,
    affine2: Tensor,
    step2: float,
    zero2: int,
    skip: Tensor | None,
    affine3: Tensor | None,
    step3: float,
    zero3: int,
) -> Tensor:  # [B, H, W, O] float32
    """The meaning of `residual_int8`, in plain PyTorch; tensors are channels last by shape."""
    if more is not None:
        x = torch.cat([x, F.pixel_shuffle(more.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)], dim=3)

    def normalised(x: Tensor, *others) -> Tensor:
        return adagn_reference(x.permute(0, 3, 1, 2), groups, *others).permute(0, 2, 3, 1)

    h = x if weight1 is None else normalised(x, weight1, bias1, None, None, activation, eps)
    h = multiply(quantise(h, step1, zero1), Packed(conv1, affine1), len(weight2), zero1)
    h = normalised(h, weight2, bias2, scale, shift, activation, eps)
    h = multiply(quantise(h, step2, zero2), Packed(conv2, affine2), len(weight2), zero2)
    if skip is not None:
        x = multiply(quantise(x, step3, zero3), Packed(skip, affine3), len(weight2), zero3)
    return h + x


def residual_int8(
    x: Tensor,  # [B, C, H, W] float32, channels last in memory (other layouts are copied)
    groups: int,  # of both normalisations
    activation: str,  # none, relu or silu, after each of them
    norm1: tuple[Tensor, Tensor] | None,  # weight and bias [C + M]; None: the first convolution reads x as it is
    conv1: Layer,  # from C + M to O
    norm2: tuple[Tensor, Tensor],  # weight and bias [O]
    condition: tuple[Tensor, Tensor] | None,  # scale and shift [B, O] after the second normalisation
    conv2: Layer,  # from O to O
    skip: Layer | None = None,  # from C + M to O, window 1; None: C + M = O
    more: Tensor | None = None,  # [B, 4 M, H / 2, W / 2] float32, M further channels, from depth to space
    eps: float = 1e-5,
) -> Tensor:  # [B, O, H, W] float32, channels last
    """A residual block in 8 bits:

        x <- cat(x, pixel_shuffle(more))
        h = conv1(quantise(activation(group_norm(x))))
        y = conv2(quantise(activation(group_norm(h) * (1 + scale) + shift))) + skip(quantise(x))

    An episode at a time: what lies between x and y, about a megabyte, never leaves the cache of a core. No gradient.

    Raises ValueError if a shape, dtype or device is another one, the activation is unknown, or a grid is none.
    """
    _check(x, more, groups, activation, norm1, conv1, norm2, condition, conv2, skip)
    rows = x.detach().permute(0, 2, 3, 1).contiguous()
    more = None if more is None else more.detach().permute(0, 2, 3, 1).contiguous()
    last = (None, None, 0.0, 0) if skip is None else (*skip.packed, *skip[1:])
    norm1, norm2, (scale, shift) = (
        (None, None) if pair is None else [t.detach().contiguous() for t in pair] for pair in (norm1, norm2, condition)
    )
    face = residual_int8_reference if ops.BACKEND == "reference" else torch.ops.worldenv.residual_int8
    y = face(
        rows,
        more,
        groups,
        eps,
        activation,
        *norm1,
        *conv1.packed,
        *conv1[1:],
        *norm2,
        scale,
        shift,
        *conv2.packed,
        *conv2[1:],
        *last,
    )
    return y.permute(0, 3, 1, 2)


def _check(x, more, groups, activation, norm1, conv1, norm2, condition, conv2, skip) -> None:
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [B, C, H, W]")
    b, channels, height, width = x.shape
    outputs = len(norm2[0])
    wanted = {"x": (x, x.shape)}
    if more is not None:
        if more.ndim != 4 or more.shape[1] % 4 or height % 2 or width % 2:
            raise ValueError(f"more has shape {list(more.shape)}; it should be [B, 4 M, H / 2, W / 2], H and W even")
        wanted |= {"more": (more, (b, more.shape[1], height // 2, width // 2))}
        channels += more.shape[1] // 4
    if groups < 1 or channels % groups or outputs % groups or channels % FOUR or outputs % FOUR:
        raise ValueError(f"groups is {groups}; it and {FOUR} should divide the {channels} and the {outputs} channels")
    if skip is None and channels != outputs:
        raise ValueError(f"{channels} channels go in and {outputs} come out; that needs skip")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it should be one of {', '.join(ACTIVATIONS)}")
    for name, pair, size in (
        ("norm1", norm1, (channels,)),
        ("norm2", norm2, (outputs,)),
        ("condition", condition, (b, outputs)),
    ):
        if pair is not None:
            wanted |= {f"{name}[{i}]": (tensor, size) for i, tensor in enumerate(pair)}
    rows = conv1.packed.weights.shape[1] if conv1.packed.weights.ndim == 5 else 1
    wanted |= check_layer("conv1", conv1, channels, outputs, rows) | check_layer("conv2", conv2, outputs, outputs, rows)
    if skip is not None:
        wanted |= check_layer("skip", skip, channels, outputs, 1)
    ops.check_tensors(wanted)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::residual_int8", "CompositeExplicitAutograd")(residual_int8_reference)


@torch.library.register_fake("worldenv::residual_int8")
def _(x, more, groups, eps, activation, weight1, bias1, conv1, affine1, step1, zero1, weight2, *others):
    return x.new_empty(*x.shape[:3], len(weight2))
