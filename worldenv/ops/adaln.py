"""Op `adaln`: a gated residual, layer normalisation, and a condition's scale and shift, in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops

EPS = 1e-5


def adaln_reference(
    x: Tensor,  # [B, N, D]
    scale: Tensor,  # [B, D]
    shift: Tensor,  # [B, D]
    branch: Tensor | None = None,  # [B, N, D]
    gate: Tensor | None = None,  # [B, D]
) -> tuple[Tensor, Tensor]:
    """The meaning of `adaln`, in plain PyTorch; it has a gradient."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide, copy=True) if branch is None else x.to(wide) + gate[:, None].to(wide) * branch.to(wide)
    y = F.layer_norm(total, x.shape[-1:], eps=EPS) * (1 + scale[:, None].to(wide)) + shift[:, None].to(wide)
    return total.to(x.dtype), y.to(x.dtype)


def adaln(
    x: Tensor,  # [B, N, D] float32, bfloat16 or float16, and so are the others
    scale: Tensor,  # [B, D]
    shift: Tensor,  # [B, D]
    branch: Tensor | None = None,  # [B, N, D], what a layer adds to x
    gate: Tensor | None = None,  # [B, D], given with branch
) -> tuple[Tensor, Tensor]:  # x and y: [B, N, D], dtype of x
    """Adaptive layer normalisation with its gate (Peebles & Xie 2023, "adaLN-Zero").

        x <- x + gate * branch
        y = layer_norm(x) * (1 + scale) + shift

    A row is read and written once, computed in float32 and rounded once: y is that of the sum before its rounding. Has
    a gradient, computed by a face of its own.

    Raises ValueError if a shape, dtype or device is another one.
    """
    _check(x, scale, shift, branch, gate)
    if ops.BACKEND == "reference":
        return adaln_reference(x, scale, shift, branch, gate)
    out = torch.ops.worldenv.adaln(x, scale, shift, branch, gate)
    return (x if branch is None else out[0]), out[1]


def _check(x: Tensor, scale: Tensor, shift: Tensor, branch: Tensor | None, gate: Tensor | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [B, N, D]")
    if (branch is None) != (gate is None):
        raise ValueError("branch and gate are given together or not at all")
    b, _, d = x.shape
    wanted = {"x": (x, x.shape), "scale": (scale, (b, d)), "shift": (shift, (b, d))}
    if branch is not None:
        wanted |= {"branch": (branch, x.shape), "gate": (gate, (b, d))}
    ops.check_tensors(wanted, ops.FLOATS)


def _face(x, scale, shift, branch, gate):
    total, y = adaln_reference(x, scale, shift, branch, gate)
    return x.new_empty(0) if branch is None else total, y


def adaln_backward_reference(
    grad_sum: Tensor, grad_y: Tensor, total: Tensor, scale: Tensor, branch: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, scale, shift, branch and gate, in plain PyTorch; without a branch the last two are empty."""
    dtype, wide = total.dtype, torch.promote_types(total.dtype, torch.float32)
    grad_sum, grad_y, total, scale = (t.to(wide) for t in (grad_sum, grad_y, total, scale))
    centred = total - total.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    z, up = centred * inverse, grad_y * (1 + scale[:, None])
    grad_x = grad_sum + inverse * (up - up.mean(-1, keepdim=True) - z * (up * z).mean(-1, keepdim=True))
    empty = total.new_empty(0, *total.shape[1:]), total.new_empty(0, total.shape[2])
    ends = empty if branch is None else (gate.to(wide)[:, None] * grad_x, (grad_x * branch.to(wide)).sum(1))
    return tuple(t.to(dtype) for t in (grad_x, (grad_y * z).sum(1), grad_y.sum(1), *ends))


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::adaln", "CompositeExplicitAutograd")(_face)
torch.library.impl("worldenv::adaln_backward", "CompositeExplicitAutograd")(adaln_backward_reference)


@torch.library.register_fake("worldenv::adaln")
def _(x, scale, shift, branch, gate):
    return x.new_empty(0) if branch is None else torch.empty_like(x), torch.empty_like(x)


@torch.library.register_fake("worldenv::adaln_backward")
def _(grad_sum, grad_y, total, scale, branch, gate):
    b, n, d = total.shape
    b = 0 if branch is None else b
    return tuple(total.new_empty(shape) for shape in (total.shape, scale.shape, scale.shape, (b, n, d), (b, d)))


def _save(ctx, inputs, output) -> None:
    x, scale, _, branch, gate = inputs
    ctx.save_for_backward(x if branch is None else output[0], scale, branch, gate)


def _backward(ctx, grad_sum, grad_y):
    total, scale, branch, gate = ctx.saved_tensors
    grad_sum = torch.zeros_like(total) if branch is None or grad_sum is None else grad_sum
    grads = torch.ops.worldenv.adaln_backward(grad_sum, grad_y, total, scale, branch, gate)
    return *grads[:3], *((None, None) if branch is None else grads[3:])


torch.library.register_autograd("worldenv::adaln", _backward, setup_context=_save)
