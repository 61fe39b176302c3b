"""Triton face of `philox`, and its words for the kernels that draw numbers of their own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

USES = tl.constexpr(256)  # per chunk
BLOCK = 256  # counters of a program, four numbers each


@triton.jit
def philox_words(seed, b_episode, b_chunk, use, o_counter):
    """Four words of 32 bits for every counter: key = seed, counter = (o_counter, 256 chunk + use, episode)."""
    low, high = b_episode.to(tl.uint32), (b_episode >> 32).to(tl.uint32)
    return tl.philox(seed, o_counter.to(tl.uint32), (b_chunk * USES + use).to(tl.uint32), low, high)


@triton.jit
def philox_uniform(seed, b_episode, b_chunk, use, o_counter):
    """Four blocks of numbers in [0, 1), exactly those of the reference."""
    w0, w1, w2, w3 = philox_words(seed, b_episode, b_chunk, use, o_counter)
    return _unit(w0), _unit(w1), _unit(w2), _unit(w3)


@triton.jit
def _unit(word):
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def philox_normal(seed, b_episode, b_chunk, use, o_counter):
    """Four blocks of standard normal numbers."""
    u0, u1, u2, u3 = philox_uniform(seed, b_episode, b_chunk, use, o_counter)
    n0, n1 = _box_muller(u0, u1)
    n2, n3 = _box_muller(u2, u3)
    return n0, n1, n2, n3


@triton.jit
def _box_muller(u, v):
    radius = tl.sqrt_rn(-2.0 * tl.log(u + 5.9604644775390625e-08))
    angle = 6.283185307179586 * v
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def in_order(b0, b1, b2, b3):
    """b0[0], b1[0], b2[0], b3[0], b0[1], ...: the four numbers of a counter side by side, along the last axis."""
    return tl.interleave(tl.interleave(b0, b2), tl.interleave(b1, b3))


@triton.jit(do_not_specialize=["seed"])
def _philox(seed: tl.int64, p_episode, p_chunk, p_out, use, count, NORMAL: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(count, 4 * BLOCK)
    i_b, i_n = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    b_episode, b_chunk = tl.load(p_episode + i_b), tl.load(p_chunk + i_b)
    o_counter = i_n * BLOCK + tl.arange(0, BLOCK)
    if NORMAL:
        b0, b1, b2, b3 = philox_normal(seed, b_episode, b_chunk, use, o_counter)
    else:
        b0, b1, b2, b3 = philox_uniform(seed, b_episode, b_chunk, use, o_counter)
    o_n = i_n * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    tl.store(p_out + i_b * count + o_n, in_order(b0, b1, b2, b3), mask=o_n < count)


@face
def philox(
    seed: int,
    episode: Tensor,  # [B] int64
    chunk: Tensor,  # [B] int64
    use: int,
    count: int,
    normal: bool,
) -> Tensor:  # [B, count] float32
    """A program per episode and 1,024 numbers. Uniform numbers are bit for bit those of the reference."""
    out = torch.empty(len(episode), count, device=episode.device)
    grid = (len(episode) * triton.cdiv(count, 4 * BLOCK),)
    if out.numel():
        _philox[grid](seed, episode.contiguous(), chunk.contiguous(), out, use, count, NORMAL=normal, BLOCK=BLOCK)
    return out
