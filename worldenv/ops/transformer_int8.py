"""Op `transformer_int8`: a transformer layer with adaptive layer normalisation, its linear layers in 8 bits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.adaln import adaln_reference
from worldenv.ops.packed import FOUR, Layer, Packed, check_layer, multiply, quantise


def transformer_int8_reference(
    x: Tensor,
    condition: Tensor,
    heads: int,
    hidden: int,
    qkv: Tensor,
    affine1: Tensor,
    step1: float,
    zero1: int,
    merge: Tensor,
    affine2: Tensor,
    step2: float,
    zero2: int,
    first: Tensor,
    affine3: Tensor,
    step3: float,
    zero3: int,
    second: Tensor,
    affine4: Tensor,
    step4: float,
    zero4: int,
) -> Tensor:
    """The meaning of `transformer_int8`, in plain PyTorch."""
    b, n, d = x.shape
    scale1, shift1, gate1, scale2, shift2, gate2 = condition.chunk(6, dim=1)

    def linear(x: Tensor, step: float, zero: int, weights: Tensor, affine: Tensor, outputs: int) -> Tensor:
        return multiply(quantise(x, step, zero)[:, None], Packed(weights, affine), outputs, zero)[:, 0]

    _, h = adaln_reference(x, scale1, shift1)
    q, k, v = linear(h, step1, zero1, qkv, affine1, 3 * d).view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
    branch = linear(h, step2, zero2, merge, affine2, d)
    x, h = adaln_reference(x, scale2, shift2, branch, gate1)
    h = F.gelu(linear(h, step3, zero3, first, affine3, hidden), approximate="tanh")
    return x + gate2[:, None] * linear(h, step4, zero4, second, affine4, d)


def transformer_int8(
    x: Tensor,  # [B, N, D] float32
    condition: Tensor,  # [B, 6 D] float32: scale, shift and gate of the attention, then of the MLP
    heads: int,
    hidden: int,  # numbers between the two layers of the MLP
    qkv: Layer,  # from D to 3 D
    merge: Layer,  # from D to D
    first: Layer,  # from D to hidden
    second: Layer,  # from hidden to D
) -> Tensor:  # [B, N, D] float32
    """Self-attention over N tokens and an MLP (Peebles & Xie 2023, "adaLN-Zero"), in 8 bits but for the attention:

        h = quantise(layer_norm(x) * (1 + scale1) + shift1)
        x <- x + gate1 * merge(quantise(attention(qkv(h))))
        h = quantise(layer_norm(x) * (1 + scale2) + shift2)
        y = x + gate2 * second(quantise(gelu(first(h))))

    An episode at a time, in the cache of a core. The scores of a head, N x N, are held at once: for dozens of tokens.
    No gradient. Raises ValueError if a shape, dtype or device is another one, or a grid is none.
    """
    if x.ndim != 3:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [B, N, D]")
    b, _, d = x.shape
    if heads < 1 or d % heads or d % FOUR or hidden % FOUR:
        raise ValueError(f"heads is {heads} and hidden {hidden}; D = {d} should be a multiple of heads, both of {FOUR}")
    wanted = {"x": (x, x.shape), "condition": (condition, (b, 6 * d))}
    sizes = {"qkv": (qkv, d, 3 * d), "merge": (merge, d, d), "first": (first, d, hidden), "second": (second, hidden, d)}
    for name, (layer, inputs, outputs) in sizes.items():
        wanted |= check_layer(name, layer, inputs, outputs, 1)
    ops.check_tensors(wanted)
    face = transformer_int8_reference if ops.BACKEND == "reference" else torch.ops.worldenv.transformer_int8
    layers = [part for layer in (qkv, merge, first, second) for part in (*layer.packed, layer.step, layer.zero)]
    return face(x.detach(), condition.detach(), heads, hidden, *layers)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::transformer_int8", "CompositeExplicitAutograd")(transformer_int8_reference)


@torch.library.register_fake("worldenv::transformer_int8")
def _(x, *others):
    return torch.empty_like(x)
