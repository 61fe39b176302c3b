"""Op `rope_cache_write`: normalise and rotate queries and keys, write keys and values into the ring, in one pass."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.windowed_attention import check_ring

EPS = 1e-6
LEAST_SCALE = 1e-12  # of a token whose numbers are all 0


def rope_cache_write_reference(
    qkv: Tensor,  # [B, M, (H + 2 G) D]
    query_gain: Tensor,  # [D]
    key_gain: Tensor,  # [D]
    frame: Tensor,  # [B]
    place: Tensor,  # [B]
    time_angle: Tensor,  # [D / 2]
    space_angle: Tensor,  # [L, D / 2]
    keys: Tensor,  # [B, G, C, D]
    values: Tensor,  # [B, G, C, D]
    key_scale: Tensor | None = None,  # [B, G, C]
    value_scale: Tensor | None = None,  # [B, G, C]
) -> Tensor:  # [B, M, H, D]
    """The meaning of `rope_cache_write`, in plain PyTorch."""
    (b, m, _), (_, g, c, d) = qkv.shape, keys.shape
    heads = qkv.float().view(b, m, qkv.shape[2] // d, d)
    query, key, value = heads.split([heads.shape[2] - 2 * g, g, g], dim=2)
    token = torch.arange(m, device=qkv.device)
    angle = angles(frame[:, None] + token // len(space_angle), time_angle, space_angle)
    query, key = rotate(normalise(query, query_gain), angle), rotate(normalise(key, key_gain), angle)
    at = torch.arange(b, device=qkv.device)[:, None], slice(None), (place[:, None] + token) % c
    for new, ring, scale in ((key, keys, key_scale), (value, values, value_scale)):
        if scale is not None:
            scale[at] = step = (new.abs().amax(-1) / 127).clamp(min=LEAST_SCALE)
            new = (new / step[..., None]).round()
        ring[at] = new.to(ring.dtype)
    return query.to(qkv.dtype).contiguous()


def angles(
    frame: Tensor,  # [B, M], the number of each token's frame
    time_angle: Tensor,  # [D / 2] rad per frame
    space_angle: Tensor,  # [L, D / 2] rad
) -> Tensor:  # [B, M, D / 2] rad
    """How far each token of whole frames is turned."""
    place = torch.arange(frame.shape[1], device=frame.device) % len(space_angle)
    return frame[..., None] * time_angle + space_angle[place]


def normalise(x: Tensor, gain: Tensor) -> Tensor:  # [..., D], [D]
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * gain


def rotate(x: Tensor, angle: Tensor) -> Tensor:  # [B, M, H, D], [B, M, D / 2] rad
    cosine, sine = angle.cos()[:, :, None], angle.sin()[:, :, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def rope_cache_write(
    qkv: Tensor,  # [B, M, (H + 2 G) D] float32, bfloat16 or float16: query, key and value heads, as a layer gives them
    query_gain: Tensor,  # [D] float32
    key_gain: Tensor,  # [D] float32
    frame: Tensor,  # [B] int32, number of the chunk's first frame in its episode
    place: Tensor,  # [B] int32 >= 0, where in the ring its first token goes
    time_angle: Tensor,  # [D / 2] float32, rad per frame
    space_angle: Tensor,  # [L, D / 2] float32, rad, by the token's place in its frame; M is a multiple of L
    keys: Tensor,  # [B, G, C, D] as qkv, or int8; written; the batch may be strided: a layer of the slots' rings
    values: Tensor,  # [B, G, C, D] likewise
    key_scale: Tensor | None = None,  # [B, G, C] float32, with int8 keys; written
    value_scale: Tensor | None = None,  # [B, G, C] float32
) -> Tensor:  # [B, M, H, D], dtype of qkv: the queries
    """What attention needs of a chunk, between the projection and `windowed_attention`.

        query, key  <- rotate(x * rsqrt(mean(x^2) + 1e-6) * gain, angle)
        angle[m]    =  (frame + m / L) * time_angle + space_angle[m mod L]

    Rotation turns the pairs (x[i], x[i + D / 2]) (Su et al. 2021, over time and space as Agarwal et al. 2025). Token m
    is written at (place + m) mod C; what a later token lands on is gone. int8: a scale for each token and head,
    max |x| / 127. Computed in float32 and rounded once. No gradient.

    Raises ValueError if a shape, dtype or device is another one.
    """
    _check(qkv, query_gain, key_gain, frame, place, time_angle, space_angle, keys)
    check_ring(qkv, qkv.shape[0], *keys.shape[1:], keys, values, key_scale, value_scale)
    arguments = (
        qkv.detach(),
        query_gain.detach(),
        key_gain.detach(),
        frame,
        place,
        time_angle,
        space_angle,
        keys,
        values,
        key_scale,
        value_scale,
    )
    if ops.BACKEND == "reference":
        return rope_cache_write_reference(*arguments)
    return ops.attention_face("rope_cache_write", keys)(*arguments)


def _check(qkv, query_gain, key_gain, frame, place, time_angle, space_angle, keys) -> None:
    if qkv.ndim != 3 or keys.ndim != 4 or space_angle.ndim != 2:
        raise ValueError(
            f"qkv has shape {list(qkv.shape)}, keys {list(keys.shape)} and space_angle {list(space_angle.shape)}; they "
            "should be [B, M, (H + 2 G) D], [B, G, C, D] and [L, D / 2]"
        )
    (b, m, width), (_, g, c, d), tokens = qkv.shape, keys.shape, len(space_angle)
    ops.check_tensors({"qkv": (qkv, qkv.shape)}, ops.FLOATS)
    if d % 2 or width % d or width // d <= 2 * g or (width // d) % g:
        raise ValueError(
            f"qkv has {width} numbers a token; with {g} key heads of {d} it should be (H + {2 * g}) * {d}, H a "
            f"multiple of {g} and {d} even"
        )
    if not tokens or m % tokens or m > c:
        raise ValueError(f"qkv has {m} tokens; it should be a multiple of the {tokens} of a frame, and at most {c}")
    ops.check_tensors(
        {
            "query_gain": (query_gain, (d,)),
            "key_gain": (key_gain, (d,)),
            "time_angle": (time_angle, (d // 2,)),
            "space_angle": (space_angle, (tokens, d // 2)),
        }
    )
    for name, tensor in {"frame": frame, "place": place}.items():
        if tensor.shape != (b,) or tensor.dtype != torch.int32:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; it should be torch.int32 [{b}]")
    for name, tensor in {"query_gain": query_gain, "frame": frame, "place": place}.items():
        if tensor.device != qkv.device:
            raise ValueError(f"{name} is on {tensor.device}; it should be on {qkv.device}, as qkv is")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::rope_cache_write", "CompositeExplicitAutograd")(rope_cache_write_reference)


@torch.library.register_fake("worldenv::rope_cache_write")
def _(qkv, query_gain, key_gain, frame, place, time_angle, space_angle, keys, values, key_scale=None, value_scale=None):
    b, m, width = qkv.shape
    g, d = keys.shape[1], keys.shape[3]
    return qkv.new_empty(b, m, width // d - 2 * g, d)
