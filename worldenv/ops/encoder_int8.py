"""Op `encoder_int8`: the embedded vision encoder in 8 bits, from pixels to where its channels look, in one pass."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.conv_int8 import conv_int8_reference
from worldenv.ops.packed import FOUR, Layer, check_layer
from worldenv.ops.patchify import PATCH, patchify_reference
from worldenv.ops.residual_int8 import residual_int8_reference
from worldenv.ops.spatial_softmax import spatial_softmax_reference


def encoder_int8_reference(
    frames: Tensor,
    weights: list[Tensor],
    affines: list[Tensor],
    steps: list[float],
    zeros: list[int],
    norms: list[Tensor],
    conditions: list[Tensor],
    inner: int,
    channels: int,
    groups: int,
    eps: float,
) -> Tensor:  # [B, 3 C] float32
    """The meaning of `encoder_int8`, in plain PyTorch."""
    first, second, *blocks, look = zip(weights, affines, steps, zeros, strict=True)
    x = patchify_reference(frames[:, None]).flatten(3)
    x = conv_int8_reference(x, *first, inner, 1, True, None, *second[2:])
    x = conv_int8_reference(x, *second, channels, 2, True, None, 0.0, 0)
    for i, condition in enumerate(conditions):
        film = condition.chunk(2, dim=1)
        x = residual_int8_reference(
            x,
            None,
            groups,
            eps,
            "relu",
            None,
            None,
            *blocks[2 * i],
            *norms[2 * i : 2 * i + 2],
            *film,
            *blocks[2 * i + 1],
            None,
            None,
            0.0,
            0,
        )
    x = conv_int8_reference(x, *look, channels, 1, False, None, 0.0, 0)
    return spatial_softmax_reference(x.permute(0, 3, 1, 2))


def encoder_int8(
    frames: Tensor,  # [B, H, W, 3] uint8, H and W multiples of 4 above 4
    stem: tuple[Layer, Layer],  # windows of 3, the second with stride 2: from 12 to I and from I to C
    blocks: Sequence[tuple[Layer, Layer]],  # of each residual block, from C to C
    norms: Sequence[tuple[Tensor, Tensor]],  # weight and bias [C] float32 of each block
    conditions: Sequence[Tensor],  # [B, 2 C] float32, scale and shift of each block
    look: Layer,  # window 1, from C to C
    inner: int,  # I
    channels: int,  # C
    groups: int,  # of the normalisations
    eps: float = 1e-5,  # as nn.GroupNorm has it
) -> Tensor:  # [B, 3 C] float32
    """`VisionLanguageEncoder` up to its last linear layer (worldenv/nn/encoder.py).

        x = relu(stem2(relu(stem1(patches(frames)))))
        x <- x + conv2(relu(group_norm(conv1(x)) * (1 + scale) + shift)), for each block
        y = spatial_softmax(look(x))

    A frame at a time: what lies between, about a quarter of a megabyte, never leaves the cache of a core. No gradient.

    Raises ValueError if a shape, dtype or device is another one, or a grid is none.
    """
    layers = (*stem, *(layer for pair in blocks for layer in pair), look)
    _check(frames, layers, norms, conditions, inner, channels, groups)
    packed, steps, zeros = zip(*layers, strict=True)
    weights, affines = zip(*packed, strict=True)
    face = encoder_int8_reference if ops.BACKEND == "reference" else torch.ops.worldenv.encoder_int8
    norms = [tensor.detach().contiguous() for pair in norms for tensor in pair]
    conditions = [condition.detach().contiguous() for condition in conditions]
    lists = (list(part) for part in (weights, affines, steps, zeros, norms, conditions))
    return face(frames.contiguous(), *lists, inner, channels, groups, eps)


def _check(frames, layers, norms, conditions, inner, channels, groups) -> None:
    if frames.ndim != 4 or frames.dtype != torch.uint8 or frames.shape[3] != 3:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; they should be uint8 [B, H, W, 3]")
    if any(size % 4 or size <= 4 for size in frames.shape[1:3]):
        raise ValueError(f"frames have shape {list(frames.shape)}; H and W should be multiples of 4 above 4")
    if groups < 1 or channels % groups or channels % FOUR or inner % FOUR:
        raise ValueError(f"groups is {groups}; it and {FOUR} should divide the {channels} channels, {FOUR} the {inner}")
    if len(layers) != 2 * len(norms) + 3 or len(norms) != len(conditions):
        raise ValueError(
            f"blocks, norms and conditions are {(len(layers) - 3) // 2}, {len(norms)} and "
            f"{len(conditions)}; they should be as many"
        )
    wanted = {f"conditions[{i}]": (c, (len(frames), 2 * channels)) for i, c in enumerate(conditions)}
    for i, pair in enumerate(norms):
        wanted |= {f"norms[{i}][{j}]": (tensor, (channels,)) for j, tensor in enumerate(pair)}
    widths = (PATCH, inner, *[channels] * (len(layers) - 1))
    for i, (layer, (inputs, outputs)) in enumerate(zip(layers, pairwise(widths), strict=True)):
        wanted |= check_layer(f"layer {i}", layer, inputs, outputs, 1 if i == len(layers) - 1 else 3)
    ops.check_tensors(wanted)
    device = layers[0].packed.affine.device
    if frames.device != device:
        raise ValueError(f"frames are on {frames.device}; they should be on {device}, as the layers are")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::encoder_int8", "CompositeExplicitAutograd")(encoder_int8_reference)


@torch.library.register_fake("worldenv::encoder_int8")
def _(frames, weights, affines, steps, zeros, norms, conditions, inner, channels, groups, eps):
    return frames.new_empty(len(frames), 3 * channels, dtype=torch.float32)
