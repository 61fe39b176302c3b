"""Op `rowwise_linear`: a linear layer in floats whose result for a row depends, bit by bit, on that row alone."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops


def rowwise_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The meaning of `rowwise_linear`, in plain PyTorch, which rounds by how many rows there are."""
    return F.linear(x, weight, bias)


def rowwise_linear(
    x: Tensor,  # [..., I] float32
    weight: Tensor,  # [O, I] float32
    bias: Tensor | None = None,  # [O] float32
) -> Tensor:  # [..., O] float32
    """x @ weight.T + bias, summed in one order whatever the number of rows, of threads and where they lie.

    Where a gradient is wanted it is torch's own linear layer, which rounds by the batch. Raises ValueError if a shape,
    dtype or device is another one.
    """
    if not x.ndim or weight.ndim != 2:
        raise ValueError(
            f"x has shape {list(x.shape)} and weight {list(weight.shape)}; they should be [..., I] and [O, I]"
        )
    o, i = weight.shape
    wanted = {"x": (x, (*x.shape[:-1], i)), "weight": (weight, (o, i))}
    ops.check_tensors(wanted if bias is None else wanted | {"bias": (bias, (o,))})
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return F.linear(x, weight, bias)
    face = rowwise_linear_reference if ops.BACKEND == "reference" else torch.ops.worldenv.rowwise_linear
    return face(x, weight, bias)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::rowwise_linear", "CompositeExplicitAutograd")(rowwise_linear_reference)


@torch.library.register_fake("worldenv::rowwise_linear")
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], len(weight))
