"""Op `windowed_attention`: the queries of the present chunk over each episode's ring of cached keys and values."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops


def windowed_attention_reference(
    query: Tensor,  # [B, M, H, D]
    keys: Tensor,  # [B, G, C, D]
    values: Tensor,  # [B, G, C, D]
    length: Tensor,  # [B]
    key_scale: Tensor | None = None,  # [B, G, C]
    value_scale: Tensor | None = None,  # [B, G, C]
) -> Tensor:  # [B, M, H, D]
    """The meaning of `windowed_attention`, in plain PyTorch."""
    wide = [t.float() for t in (query, keys, values)]
    query32, keys32, values32 = wide
    if key_scale is not None:
        keys32, values32 = keys32 * key_scale[..., None], values32 * value_scale[..., None]
    there = torch.arange(keys.shape[2], device=keys.device) < length[:, None]  # [B, C]
    # What was never written may not be finite.
    keys32, values32 = (torch.where(there[:, None, :, None], x, 0.0) for x in (keys32, values32))
    out = F.scaled_dot_product_attention(
        query32.transpose(1, 2), keys32, values32, attn_mask=there[:, None, None], enable_gqa=True
    )
    return torch.where((length > 0)[:, None, None, None], out.transpose(1, 2), 0.0).to(query.dtype).contiguous()


def windowed_attention(
    query: Tensor,  # [B, M, H, D] float32, bfloat16 or float16
    keys: Tensor,  # [B, G, C, D] as query, or int8; the batch may be strided: a layer of the slots' rings
    values: Tensor,  # [B, G, C, D] likewise
    length: Tensor,  # [B] int32 in [0, C]: the tokens that were written, from the ring's first place on
    key_scale: Tensor | None = None,  # [B, G, C] float32, with int8 keys: a level is worth so much
    value_scale: Tensor | None = None,  # [B, G, C] float32
) -> Tensor:  # [B, M, H, D], dtype of query
    """softmax(query keys^T / sqrt(D)) values over the first `length` tokens; H / G query heads share a key head.

    Keys carry their rotary positions, so the order of a ring does not matter and none is gathered or rolled. Sums are
    in float32. An episode with length 0 gets zeros. No gradient.

    Costs 4 B M H length D FLOPs; reads a ring once for every block of queries.

    Raises ValueError if a shape, dtype or device is another one.
    """
    _check(query, keys, values, length, key_scale, value_scale)
    arguments = (query.detach(), keys, values, length, key_scale, value_scale)
    if ops.BACKEND == "reference":
        return windowed_attention_reference(*arguments)
    return ops.attention_face("windowed_attention", keys, query.dtype)(*arguments)


def _check(query, keys, values, length, key_scale, value_scale) -> None:
    if query.ndim != 4 or keys.ndim != 4:
        raise ValueError(
            f"query has shape {list(query.shape)} and keys {list(keys.shape)}; they should be [B, M, H, D] and "
            "[B, G, C, D]"
        )
    b, _, h, d = query.shape
    _, g, c, _ = keys.shape
    ops.check_tensors({"query": (query, query.shape)}, ops.FLOATS)
    if h % g:
        raise ValueError(f"query has {h} heads and keys {g}; the former should be a multiple of the latter")
    check_ring(query, b, g, c, d, keys, values, key_scale, value_scale)
    if length.shape != (b,) or length.dtype != torch.int32 or length.device != query.device:
        raise ValueError(
            f"length is {length.dtype} {list(length.shape)} on {length.device}; it should be torch.int32 [{b}] on "
            f"{query.device}"
        )


def check_ring(
    near: Tensor,
    b: int,
    g: int,
    c: int,
    d: int,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> None:
    """Raise ValueError unless a layer of the rings is whole and where `near` is."""
    if (key_scale is None) != (keys.dtype != torch.int8) or (key_scale is None) != (value_scale is None):
        raise ValueError("key_scale and value_scale are given with int8 keys and values, and only then")
    dtypes = (torch.int8,) if keys.dtype == torch.int8 else (near.dtype,)
    ops.check_tensors({"keys": (keys, (b, g, c, d)), "values": (values, (b, g, c, d))}, dtypes)
    if key_scale is not None:
        ops.check_tensors({"key_scale": (key_scale, (b, g, c)), "value_scale": (value_scale, (b, g, c))})
    for name, tensor in {"keys": keys, "values": values, "key_scale": key_scale, "value_scale": value_scale}.items():
        if tensor is None:
            continue
        if tensor.device != near.device:
            raise ValueError(f"{name} is on {tensor.device}; it should be on {near.device}")
        if tensor.numel() and not tensor[0].is_contiguous():
            raise ValueError(f"{name} of an episode is not contiguous; only the batch may be strided")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::windowed_attention", "CompositeExplicitAutograd")(windowed_attention_reference)


@torch.library.register_fake("worldenv::windowed_attention")
def _(query, keys, values, length, key_scale=None, value_scale=None):
    return torch.empty_like(query, memory_format=torch.contiguous_format)
