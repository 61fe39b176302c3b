"""The network of the causal world model: a flow transformer over chunks of frames that reads the past from a cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.fields import LARGEST, FieldError, Within, check_fields
from worldenv.ops.action_map import CHANNELS as MAP_CHANNELS
from worldenv.ops.adaln import adaln
from worldenv.ops.constants import constant
from worldenv.ops.rope_cache_write import angles, normalise, rope_cache_write, rotate
from worldenv.ops.windowed_attention import windowed_attention
from worldenv.worlds.causal.ring import Ring, ring_dtype
from worldenv.worlds.causal.tokenizer import PatchTokenizer

MOST_WEIGHTS = 10**10  # layers times width squared, a twelfth of the network's weights
MULTIPLES = (("image_size", "patch"), ("patch", "map_shrink"), ("window", "chunk"), ("heads", "key_heads"))
ROTARY_BASE = 100.0  # slowest rotation: 1 / 100 rad per place
Attend = Callable[[int, Tensor], Tensor]  # number of the layer, qkv -> [B, M, H, D]


@dataclass(frozen=True)
class CausalConfig:
    image_size: int = 64
    patch: int = 8  # pixels along a token's side
    channels: int = 32  # C of a token's latent
    chunk: int = 4  # K, frames per pass
    window: int = 8  # F, past frames that a chunk sees besides the first of the episode
    width: int = 256  # D
    layers: int = 4
    heads: int = 4
    key_heads: int = 2  # G: heads / G query heads share one (Ainslie et al. 2023)
    map_shrink: int = 4  # the action map is drawn this much smaller than the frame
    cache: Literal["float", "int8"] = "float"  # dtype of keys and values in the ring; float: that of the network

    def __post_init__(self) -> None:
        size = Within(1, LARGEST)
        names = ("image_size", "patch", "channels", "chunk", "width", "layers", "heads", "key_heads", "map_shrink")
        check_fields(self, window=Within(0, LARGEST), **dict.fromkeys(names, size))
        for name, part in MULTIPLES:
            whole, divisor = getattr(self, name), getattr(self, part)
            if whole % divisor:
                raise FieldError(f"{name} is {whole}; it should be a multiple of {part}, {divisor}")
        if self.width % (8 * self.heads):
            raise FieldError(f"width is {self.width}; it should be a multiple of 8 heads, {8 * self.heads}")
        if self.layers * self.width**2 > MOST_WEIGHTS:
            raise FieldError(
                f"width is {self.width} and layers {self.layers}, which no memory holds; take smaller ones"
            )
        if self.channels > 3 * self.patch**2:
            raise FieldError(f"channels is {self.channels}; a patch has only {3 * self.patch**2} numbers")

    @property
    def tokens(self) -> int:
        """L, tokens of a frame."""
        return (self.image_size // self.patch) ** 2

    @property
    def head(self) -> int:
        """Numbers of a head."""
        return self.width // self.heads

    @property
    def places(self) -> int:
        """Tokens that a ring holds: the first frame, the window, and the chunk in the making."""
        return self.tokens * (1 + self.window + self.chunk)


# What LIBERO asks for at full size: ~400 M parameters, 7.0 MiB of cache an episode. No trained weights yet.
LIBERO_BASE = CausalConfig(
    image_size=256, patch=32, channels=64, chunk=4, window=8, width=1536, layers=16, heads=12, key_heads=2, cache="int8"
)


class CausalLayer(nn.Module):
    """Attention to the past and to the chunk, then an MLP; both scaled, shifted and gated by the noise level.

    The modulation is one for the network plus a table for each layer ("adaLN-single", Chen et al. 2023).
    """

    def __init__(self, config: CausalConfig):
        super().__init__()
        d, head = config.width, config.head
        self.qkv = nn.Linear(d, (config.heads + 2 * config.key_heads) * head, bias=False)
        self.query_gain, self.key_gain = nn.Parameter(torch.ones(head)), nn.Parameter(torch.ones(head))
        self.merge = nn.Linear(d, d, bias=False)
        self.expand, self.contract = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.table = nn.Parameter(torch.randn(6, d) / math.sqrt(d))

    def forward(
        self,
        x: Tensor,  # [B, M, D]
        branch: Tensor | None,  # [B, M, D], the output of the layer before, not yet added to x
        gate: Tensor | None,  # [B, D], times this
        modulation: Tensor,  # [B, 6, D]
        attend: Callable[[Tensor], Tensor],  # qkv -> [B, M, H, D]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, and branch and gate for the next layer, which adds them to x as it normalises."""
        scale1, shift1, gate1, scale2, shift2, gate2 = (modulation + self.table).unbind(1)
        x, h = adaln(x, scale1, shift1, branch, gate)
        h = self.merge(attend(self.qkv(h)).flatten(2))
        x, h = adaln(x, scale2, shift2, h, gate1)
        return x, self.contract(F.gelu(self.expand(h), approximate="tanh")), gate2


class CausalNetwork(nn.Module):
    """Predicts the velocity (noise - clean) of a chunk's latents from the past, the action map and the poses."""

    def __init__(self, config: CausalConfig):
        super().__init__()
        self.config = config
        d, side = config.width, config.patch // config.map_shrink
        self.tokenizer = PatchTokenizer(config.patch, config.channels)
        self.see = nn.Linear(config.channels, d)
        self.see_map = nn.Linear(MAP_CHANNELS * side**2, d, bias=False)
        self.see_pose = nn.Linear(7, d, bias=False)
        self.noise_level = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 6 * d))
        self.layers = nn.ModuleList(CausalLayer(config) for _ in range(config.layers))
        self.last_table = nn.Parameter(torch.randn(2, d) / math.sqrt(d))
        self.head = nn.Linear(d, config.channels)
        self._place_angles()

    def _place_angles(self) -> None:
        time_angle, space_angle = rotary_angles(self.config.image_size // self.config.patch, self.config.head)
        self.time_angle, self.space_angle = (x.to(self.see.weight.device) for x in (time_angle, space_angle))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._place_angles()  # float32 in any network: in bfloat16, frames 256 and 257 are the same number
        return self

    def condition(
        self,
        action_map: Tensor,  # [B, N, MAP_CHANNELS, h, w] float32 in [0, 1], shrunk
        poses: Tensor,  # [B, N, 7] float32
    ) -> Tensor:  # [B, N L, D]
        """The conditioning of every token of N frames on the gripper."""
        (b, n, c, height, width), side = action_map.shape, self.config.patch // self.config.map_shrink
        cells = action_map.view(b, n, c, height // side, side, width // side, side).permute(0, 1, 3, 5, 2, 4, 6)
        dtype = self.see_map.weight.dtype
        seen = self.see_map(cells.reshape(b, n, -1, c * side**2).to(dtype))
        scaled = poses * constant((5, 5, 5, 1, 1, 1, 1), poses)  # metres to numbers around 1
        return (seen + self.see_pose(scaled.to(dtype))[:, :, None]).flatten(1, 2)

    def velocity(
        self,
        latents: Tensor,  # [B, M, C]: (1 - t) clean + t noise, of the chunk's frames
        t: Tensor,  # [B] float32 in [0, 1]
        condition: Tensor,  # [B, M, D]
        ring: Ring,  # of these B episodes; the chunk's keys and values are written into it
        place: Tensor,  # [B] int32, where
        frame: Tensor,  # [B] int32, number of the chunk's first frame
        length: Tensor,  # [B] int32, tokens in the ring once the chunk is written
    ) -> Tensor:  # [B, M, C]
        """One pass over a chunk that reads the past from the ring."""

        def attend(number: int, qkv: Tensor) -> Tensor:
            layer, here = self.layers[number], ring.layer(number)
            gains = layer.query_gain.float(), layer.key_gain.float()
            query = rope_cache_write(qkv, *gains, frame, place, self.time_angle, self.space_angle, *here)
            return windowed_attention(query, here.keys, here.values, length, here.key_scale, here.value_scale)

        return self._through(latents, t, condition, attend)

    def remember(
        self,
        latents: Tensor,  # [B, M, C], clean
        condition: Tensor,
        ring: Ring,
        place: Tensor,
        frame: Tensor,
        length: Tensor,
    ) -> None:
        """Write the keys and values of a chunk's clean frames, which later chunks read."""
        self.velocity(latents, latents.new_zeros(len(latents)), condition, ring, place, frame, length)

    def velocity_of_all(
        self,
        latents: Tensor,  # [B, N, L, C], of an episode's N = 1 + chunks * K frames, each (1 - t) clean + t noise
        t: Tensor,  # [B, N] float32 in [0, 1]
        condition: Tensor,  # [B, N L, D]
        frame: Tensor | None = None,  # [N] int64, their numbers in the episode; None: from 0 on
    ) -> Tensor:  # [B, N, L, C]
        """`velocity` of all chunks at once, under a mask instead of a cache; it has a gradient.

        If all frames before a noisy chunk are clean, its result equals that of `velocity`. In training every chunk has
        a noise level of its own ("diffusion forcing", Chen et al. 2024).
        """
        b, n, tokens, _ = latents.shape
        frame = torch.arange(n, device=latents.device) if frame is None else frame
        frame = frame.repeat_interleave(tokens)
        angle = angles(frame.expand(b, -1), self.time_angle, self.space_angle)
        sees = self._mask(frame)

        def attend(number: int, qkv: Tensor) -> Tensor:  # qkv: [B N, L, ...], because t differs from frame to frame
            layer, g = self.layers[number], self.config.key_heads
            heads = qkv.float().view(b, n * tokens, -1, self.config.head)
            query, key, value = heads.split([self.config.heads, g, g], dim=2)
            query = rotate(normalise(query, layer.query_gain.float()), angle)
            key = rotate(normalise(key, layer.key_gain.float()), angle)
            heads = [x.transpose(1, 2).to(qkv.dtype) for x in (query, key, value)]
            if qkv.is_cuda:  # no fast kernel takes a mask and shared keys; one takes a mask
                heads[1:] = (x.repeat_interleave(self.config.heads // g, 1) for x in heads[1:])
            out = F.scaled_dot_product_attention(*heads, attn_mask=sees, enable_gqa=not qkv.is_cuda)
            return out.transpose(1, 2).reshape(b * n, tokens, self.config.heads, self.config.head)

        out = self._through(latents.flatten(0, 1), t.flatten(), condition.view(b * n, tokens, -1), attend)
        return out.view_as(latents)

    def _mask(self, frame: Tensor) -> Tensor:  # [M] -> [M, M] bool, whether a token sees another
        chunk = (frame + self.config.chunk - 1) // self.config.chunk  # 0: the first frame alone
        back = chunk[:, None] - chunk
        return (back >= 0) & ((back <= self.config.window // self.config.chunk) | (frame == 0))

    def _through(self, latents: Tensor, t: Tensor, condition: Tensor, attend: Attend) -> Tensor:
        x, branch, gate = self.see(latents) + condition, None, None
        level = self.noise_level(fourier(t, 256).to(x.dtype)).unflatten(1, (6, -1))
        for number, layer in enumerate(self.layers):
            x, branch, gate = layer(x, branch, gate, level, lambda qkv, number=number: attend(number, qkv))
        scale, shift = (level[:, :2] + self.last_table).unbind(1)
        _, h = adaln(x, scale, shift, branch, gate)
        return self.head(h)

    def new_ring(self, episodes: int) -> Ring:
        """Unwritten rings for a number of episodes, on the device of the network."""
        weight, config = self.see.weight, self.config
        return Ring.new(
            episodes,
            config.layers,
            config.key_heads,
            config.places,
            config.head,
            ring_dtype(config.cache, weight.dtype),
            weight.device,
        )


def rotary_angles(side: int, head: int) -> tuple[Tensor, Tensor]:  # [head / 2], [side^2, head / 2] rad
    """Angles per frame, and by a token's row and column: a quarter of the pairs for time, the rest for space."""
    pairs = head // 2
    for_row = (pairs - pairs // 4) // 2
    for_column, for_time = pairs - pairs // 4 - for_row, pairs // 4

    def rates(count: int) -> Tensor:
        return ROTARY_BASE ** (-torch.arange(count, dtype=torch.float32) / count)

    place = torch.arange(side, dtype=torch.float32)
    row, column = place.repeat_interleave(side)[:, None], place.repeat(side)[:, None]
    time = torch.cat([rates(for_time), torch.zeros(for_row + for_column, dtype=torch.float32)])
    space = torch.cat([row.new_zeros(side * side, for_time), row * rates(for_row), column * rates(for_column)], dim=1)
    return time, space


def fourier(t: Tensor, width: int) -> Tensor:  # [B] -> [B, width]
    rates = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
