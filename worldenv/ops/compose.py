"""Op `compose`: the end of the composer, each pixel chosen among known pictures and corrected."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.patchify import PATCH, unit

SUB = 4  # the 2 x 2 pixels of a patch


def compose_reference(
    raw: Tensor, bias: Tensor, pictures: Tensor, plate: Tensor, smallest_share: float, smallest_correction: float
) -> Tensor:
    """The meaning of `compose`, in plain PyTorch; it has a gradient."""
    b, h, w, channels = raw.shape
    s = pictures.shape[3] + 1
    cells = (raw + bias).view(b, h, w, 3 + s, channels // ((3 + s) * SUB), SUB)
    correction, choice = cells.split((3, s), dim=3)
    share = (choice.softmax(3) - smallest_share).relu()
    share = share / share.sum(3, keepdim=True)
    known = torch.cat([unit(pictures), plate[None, :, :, None].expand(b, -1, -1, -1, -1)], dim=3).unflatten(4, (3, SUB))
    if smallest_correction:  # softshrink by 0 is no change, but has no gradient at 0, where a new network begins
        correction = F.softshrink(correction, smallest_correction)
    out = correction.transpose(3, 4)  # [B, h, w, K, 3, 4]
    return (out + torch.einsum("bhwskp,bhwscp->bhwkcp", share, known)).flatten(4)


def compose(
    raw: Tensor,  # [B, h, w, (3 + S) * K * 4] float32
    bias: Tensor,  # [(3 + S) * K * 4] float32
    pictures: Tensor,  # [B, h, w, S - 1, 12] patches, uint8 in [0, 255] or float32 in [-1, 1]
    plate: Tensor,  # [h, w, 12] float32, the last of the S pictures, the same for all
    smallest_share: float,  # in [0, 1 / S)
    smallest_correction: float,  # >= 0
) -> Tensor:  # [B, h, w, K, 12] float32, patches
    """Compose K frames, pixel by pixel, from S known pictures.

        correction, choice = raw + bias
        share = relu(softmax(choice) - smallest_share), scaled to sum 1, over the S pictures
        frame = softshrink(correction, smallest_correction) + sum of share * picture

    `raw` is the head of a network over patches, before its bias: for each patch its 3 corrections and S choices, for
    every frame, each for the four pixels. Where shares are cut (smallest_share > 0), what one picture wins by far is
    copied exactly. Computed in float32. Where a gradient is wanted, the reference is what runs.

    Raises ValueError if a shape, dtype or device is another one, or smallest_share could leave a pixel without share.
    """
    _check(raw, bias, pictures, plate, smallest_share, smallest_correction)
    arguments = (raw, bias, pictures, plate, smallest_share, smallest_correction)
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments[:4])
    if ops.BACKEND == "reference" or wants_gradient:
        return compose_reference(*arguments)
    return torch.ops.worldenv.compose(*arguments)


def _check(raw: Tensor, bias: Tensor, pictures: Tensor, plate: Tensor, share: float, correction: float) -> None:
    tensors = {"raw": raw, "bias": bias, "pictures": pictures, "plate": plate}
    for (name, tensor), rank in zip(tensors.items(), (4, 1, 5, 3), strict=True):
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it should have {rank} dimensions")
        if tensor.dtype != torch.float32 and not (name == "pictures" and tensor.dtype == torch.uint8):
            raise ValueError(f"{name} is {tensor.dtype}; it should be torch.float32: pass {name}.float()")
        if tensor.device != raw.device:
            raise ValueError(f"{name} is on {tensor.device}; it should be on {raw.device}, as raw is")
    b, h, w, channels = raw.shape
    s = pictures.shape[3] + 1
    for name, shape in {"pictures": (b, h, w, s - 1, PATCH), "plate": (h, w, PATCH)}.items():
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
def _(raw, bias, pictures, plate, smallest_share, smallest_correction):
    b, h, w, channels = raw.shape
    return raw.new_empty(b, h, w, channels // ((4 + pictures.shape[3]) * SUB), PATCH)
