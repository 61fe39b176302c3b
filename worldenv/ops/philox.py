"""Op `philox`: counter-based random numbers, so that an episode draws the same in any slot, batch or thread."""

from enum import IntEnum
from math import pi, prod
from numbers import Integral

import torch
from torch import Tensor

from worldenv import ops

ROUNDS = 10
WORD = 0xFFFFFFFF  # 32 bits
MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
USES = 256  # per chunk
MOST = 2**31 - 1  # numbers for an episode in one call


class Use(IntEnum):
    """What an episode needs random numbers for."""

    ACTION = 0
    FRAME = 1
    AGAIN = 2  # and the uses after it, below GRASP: noise between the steps of a sampler
    GRASP = 253  # whether grasps succeed: one number for an episode, as of chunk 0
    STEP = 254  # which step of a policy's flow is drawn
    FLOW = 255  # where a policy's flow begins


def philox_reference(
    seed: int,
    episode: Tensor,  # [B] int64
    chunk: Tensor,  # [B] int64
    use: int,
    count: int,
    normal: bool,
) -> Tensor:  # [B, count] float32
    """The meaning of `philox`, in plain PyTorch: words of 32 bits in int64."""
    blocks = torch.arange(-(-count // 4), device=episode.device)
    counter = (blocks[None], (chunk * USES + use)[:, None], (episode & WORD)[:, None], (episode >> 32 & WORD)[:, None])
    x = philox_words([word.expand(len(episode), len(blocks)) for word in counter], [seed & WORD, seed >> 32 & WORD])
    uniform = (torch.stack(x, dim=-1).flatten(1) >> 8).float() * 2.0**-24
    if not normal:
        return uniform[:, :count]
    radius, angle = uniform.unflatten(1, (-1, 2)).unbind(2)
    radius = (-2 * torch.log(radius + 2.0**-24)).sqrt()
    angle = 2 * pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :count]


def philox_words(counter: list[Tensor], key: list[int]) -> list[Tensor]:
    """Philox4x32-10: four words of a counter and two of a key, as int64 in [0, 2^32), to four words."""
    x = counter
    for _ in range(ROUNDS):
        (low0, high0), (low1, high1) = _product(MULTIPLIERS[0], x[0]), _product(MULTIPLIERS[1], x[2])
        x = [high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0]
        key = [word + step & WORD for word, step in zip(key, WEYL, strict=True)]
    return x


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of factor * word; int64 overflows into the right bits."""
    whole = word * factor
    return whole & WORD, whole >> 32 & WORD


def philox(
    seed: int,
    episode: Tensor,  # [B] int64, ids
    chunk: Tensor,  # [B] int64, in [0, 2^24)
    use: int,  # what the numbers are for, in [0, 256)
    shape: tuple[int, ...],
    normal: bool = False,
) -> Tensor:  # [B, *shape] float32: uniform in [0, 1), or standard normal
    """Philox4x32-10 (Salmon et al. 2011): every number depends on (seed, episode, chunk, use, its place) alone.

    key = seed; counter = (place / 4, 256 chunk + use, episode); each counter gives four words of 32 bits, of which the
    upper 24 become a number. Normal ones come from pairs (u, v) of uniform ones (Box & Muller 1958):

        sqrt(-2 log(u + 2^-24)) * (cos(2 pi v), sin(2 pi v))

    Raises ValueError if a dtype, shape, device, seed or `use` is another one.
    """
    if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; it should be an integer of 64 bits")
    for name, tensor in (("episode", episode), ("chunk", chunk)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}; it should be a tensor torch.int64 [B]")
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; it should be torch.int64 [B]")
    if episode.shape != chunk.shape or episode.device != chunk.device:
        raise ValueError(
            f"episode is {list(episode.shape)} on {episode.device} and chunk {list(chunk.shape)} on {chunk.device}; "
            "they should agree"
        )
    if not isinstance(shape, tuple | list) or not all(isinstance(size, Integral) and size >= 0 for size in shape):
        raise ValueError(f"shape is {shape!r}; it should be a tuple of sizes")
    if prod(shape) > MOST:
        raise ValueError(f"shape is {shape!r}, {prod(shape):,} numbers for each episode; at most {MOST:,} are drawn")
    if not isinstance(use, Integral) or not 0 <= use < USES:
        raise ValueError(f"use is {use!r}; it should be an integer in [0, {USES})")
    face = philox_reference if ops.BACKEND == "reference" else torch.ops.worldenv.philox
    return face(seed, episode, chunk, use, prod(shape), normal).view(len(episode), *shape)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::philox", "CompositeExplicitAutograd")(philox_reference)


@torch.library.register_fake("worldenv::philox")
def _(seed, episode, chunk, use, count, normal):
    return episode.new_empty(len(episode), count, dtype=torch.float32)
