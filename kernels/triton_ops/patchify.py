"""Triton face of `patchify`: patches are written in the order of memory; reads of neighbours share lines of cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

PATCH = tl.constexpr(12)  # as in worldenv/ops/patchify.py
BLOCK = 128  # patches of a program


@triton.jit
def _patchify(p_frames, p_patches, N, height, width, BLOCK: tl.constexpr):
    count = (height // 2) * (width // 2) * N
    blocks = tl.cdiv(count, BLOCK)
    i_b, i_n = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_n, o_q = i_n * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 16)
    o_place, o_frame = o_n // N, o_n % N
    o_row, o_column = o_place // (width // 2) * 2, o_place % (width // 2) * 2
    o_pixel = ((i_b * N + o_frame) * height + o_row) * width + o_column
    o_in_patch = (o_q // 2 % 2) * (width * 3) + o_q % 2 * 3 + o_q // 4  # lower, right, colour
    m_n = (o_n < count)[:, None] & (o_q < PATCH)[None, :]
    b_patch = tl.load(p_frames + o_pixel[:, None] * 3 + o_in_patch[None, :], mask=m_n)
    tl.store(p_patches + (i_b * count + o_n)[:, None] * PATCH + o_q[None, :], b_patch, mask=m_n)


@face
def patchify(
    frames: Tensor,  # [B, N, H, W, 3] of any dtype; H and W even
) -> Tensor:  # [B, H / 2, W / 2, N, 12] of the same dtype
    """A program per episode and 128 patches."""
    b, n, height, width, _ = frames.shape
    patches = torch.empty(b, height // 2, width // 2, n, PATCH.value, dtype=frames.dtype, device=frames.device)
    if patches.numel():
        grid = (b * triton.cdiv(patches.numel() // (b * PATCH.value), BLOCK),)
        _patchify[grid](frames.contiguous(), patches, n, height, width, BLOCK=BLOCK)
    return patches
