"""Keys and values of the past frames of an episode: a ring buffer of tokens for every slot and layer."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldenv.interfaces.slots import Slots


def ring_dtype(cache: Literal["float", "int8"], own: torch.dtype) -> torch.dtype:
    return torch.int8 if cache == "int8" else own


class Layer(NamedTuple):
    """One layer of some slots' rings, as the ops take it."""

    keys: Tensor  # [B, G, C, D]
    values: Tensor  # [B, G, C, D]
    key_scale: Tensor | None  # [B, G, C] float32, with int8
    value_scale: Tensor | None


@dataclass
class Ring(Slots):
    """Written by `rope_cache_write`, read by `windowed_attention`; a slot's ring is one block of memory."""

    keys: Tensor  # [E, layers, G, C, D] float or int8
    values: Tensor  # likewise
    key_scale: Tensor  # [E, layers, G, C] float32 with int8, otherwise [E, layers, G, 0]
    value_scale: Tensor
    motion: Tensor | None = None  # [E, P] float32, of an arm that coasts; None: the kinematics have none

    @classmethod
    def new(
        cls,
        episodes: int,
        layers: int,
        key_heads: int,
        places: int,
        head: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Ring":
        rows = (episodes, layers, key_heads)
        tokens = [torch.empty(*rows, places, head, dtype=dtype, device=device) for _ in range(2)]
        scaled = places if dtype == torch.int8 else 0
        return cls(*tokens, *(torch.empty(*rows, scaled, dtype=torch.float32, device=device) for _ in range(2)))

    def layer(self, number: int) -> Layer:
        scales = (scale[:, number] if scale.shape[-1] else None for scale in (self.key_scale, self.value_scale))
        return Layer(self.keys[:, number], self.values[:, number], *scales)
