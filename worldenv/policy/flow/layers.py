"""The layers that both action experts consist of, in tensors alone: Llama's and Gemma's differ in their norms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def heads(layer: nn.Module, kind: str, x: Tensor) -> Tensor:  # [B, L, D] -> [B, L, heads, size]
    return getattr(layer.self_attn, f"{kind}_proj")(x).unflatten(-1, (-1, layer.self_attn.head_dim))


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:  # [B, L, heads, size]
    one, other = x.float().chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of query [B, L, heads, size] to fewer heads of keys, where mask [B, L, M] is True: [B, L, D]."""
    groups = query.shape[2] // key.shape[2]
    q, k, v = query.transpose(1, 2), *(x.repeat_interleave(groups, 2).transpose(1, 2) for x in (key, value))
    return F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask[:, None]).transpose(1, 2).flatten(2)


def passed(layer: nn.Module, x: Tensor, attention: Tensor) -> Tensor:  # [B, L, D]
    x = x + layer.self_attn.o_proj(attention)
    return x + layer.mlp(layer.post_attention_layernorm(x))
