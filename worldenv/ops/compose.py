"""Op `compose`: the end of the simulator, each pixel chosen among known pictures and corrected."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops

SUB = 4  # the 2 x 2 pixels of one cell


def compose_reference(
    raw: Tensor,  # [B, h, w, (3 + S) * K * 4] float32
    bias: Tensor,  # [(3 + S) * K * 4] float32
    memory: Tensor,  # [B, M, 3, 2 h, 2 w] float32
    carried: Tensor,  # [B, P, 3, 2 h, 2 w] float32
    plate: Tensor,  # [3, 2 h, 2 w] float32
    smallest_share: float,
    smallest_correction: float,
) -> Tensor:  # [B, K, 3, 2 h, 2 w] float32
    """The meaning of `compose`, in plain PyTorch; it has a gradient."""
    b, h, w, channels = raw.shape
    s = memory.shape[1] + carried.shape[1] + 1
    cells = (raw + bias).view(b, h, w, 3 + s, channels // ((3 + s) * SUB), 2, 2)
    out, choice = cells.permute(0, 4, 3, 1, 5, 2, 6).flatten(5).flatten(3, 4).split((3, s), dim=2)
    choice = choice.softmax(2)
    out = F.softshrink(out, smallest_correction)
    choice = (choice - smallest_share).relu()
    choice = choice / choice.sum(2, keepdim=True)
    pictures = (*memory.unbind(1), *carried.unbind(1), plate[None])
    for share, picture in zip(choice.split(1, dim=2), pictures, strict=True):
        out = torch.addcmul(out, share, picture[:, None])
    return out


def compose(
    raw: Tensor,  # [B, h, w, (3 + S) * K * 4] float32
    bias: Tensor,  # [(3 + S) * K * 4] float32, S = M + P + 1
    memory: Tensor,  # [B, M, 3, 2 h, 2 w] float32
    carried: Tensor,  # [B, P, 3, 2 h, 2 w] float32
    plate: Tensor,  # [3, 2 h, 2 w] float32
    smallest_share: float,  # in [0, 1 / S)
    smallest_correction: float,  # >= 0
) -> Tensor:  # [B, K, 3, 2 h, 2 w] float32
    """Compose K frames, pixel by pixel, from S known pictures (memory, carried, plate, in this order).

        correction, choice = raw + bias
        share = relu(softmax(choice) - smallest_share), scaled to sum 1, over the S pictures
        frame = softshrink(correction, smallest_correction) + sum of share * picture

    `raw` is the head of a network at half the resolution, before its bias: each cell (y, x) holds, for its 3
    corrections and S choices, for every frame, the four pixels (2 y, 2 x), (2 y, 2 x + 1), (2 y + 1, 2 x) and
    (2 y + 1, 2 x + 1). Where shares are cut (smallest_share > 0), what one picture wins by far is copied exactly.
    Computed in float32. Where a gradient is wanted, the reference is what runs.

    Raises ValueError if a shape, dtype or device is another one, or smallest_share could leave a pixel without share.
    """
    _check(raw, bias, memory, carried, plate, smallest_share, smallest_correction)
    arguments = (raw, bias, memory, carried, plate, smallest_share, smallest_correction)
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments[:5])
    if ops.BACKEND == "reference" or wants_gradient:
        return compose_reference(*arguments)
    return torch.ops.worldenv.compose(*arguments)


def _check(
    raw: Tensor, bias: Tensor, memory: Tensor, carried: Tensor, plate: Tensor, share: float, correction: float
) -> None:
    tensors = {"raw": raw, "bias": bias, "memory": memory, "carried": carried, "plate": plate}
    for (name, tensor), rank in zip(tensors.items(), (4, 1, 5, 5, 3), strict=True):
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it should have {rank} dimensions")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; it should be torch.float32: pass {name}.float()")
        if tensor.device != raw.device:
            raise ValueError(f"{name} is on {tensor.device}; it should be on {raw.device}, as raw is")
    b, h, w, channels = raw.shape
    s = memory.shape[1] + carried.shape[1] + 1
    for name, begin in {"memory": (b, memory.shape[1]), "carried": (b, carried.shape[1]), "plate": ()}.items():
        shape = (*begin, 3, 2 * h, 2 * w)
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {list(tensors[name].shape)}; it should be {list(shape)}")
    if not channels or channels % ((3 + s) * SUB):
        raise ValueError(
            f"raw has {channels} channels; with {s} pictures it should have {(3 + s) * SUB} for every frame"
        )
    if len(bias) != channels:
        raise ValueError(f"bias has {len(bias)} numbers; it should have {channels}, one for each channel of raw")
    if not 0 <= share < 1 / s or not correction >= 0:
        raise ValueError(
            f"smallest_share is {share} and smallest_correction {correction}; they should lie in [0, 1 / {s}) and be "
            "at least 0"
        )


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::compose", "CompositeExplicitAutograd")(compose_reference)


@torch.library.register_fake("worldenv::compose")
def _(raw, bias, memory, carried, plate, smallest_share, smallest_correction):
    b, h, w, channels = raw.shape
    s = memory.shape[1] + carried.shape[1] + 1
    return raw.new_empty(b, channels // ((3 + s) * SUB), 3, 2 * h, 2 * w)
