"""The embedded reflector: a frozen vision-language encoder, pooled over the frames so far, and a small trained head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldenv.interfaces.slots import Slots
from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.nn.int8 import by_rows
from worldenv.ops.reward_head import reward_head


@dataclass(frozen=True)
class ReflectorConfig:
    width: int = 256  # D of the encoder
    channels: int = 64
    blocks: int = 2
    threshold: float = 0.5  # eta: stop when R > eta

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must lie between 0 and 1")


@dataclass
class Pooled(Slots):
    """What the reflector remembers of each episode: its first and its summed features, so that a frame is read once."""

    instruction: Tensor  # [E, C] float32, as it was read
    first: Tensor  # [E, D] float32
    total: Tensor  # [E, D] float32
    count: Tensor  # [E, 1] float32, frames


class Reflector(nn.Module):
    """R_t = sigmoid(head(pool(encoder(o_1..o_t, g)))) in [0, 1] (World-Env, arXiv 2509.24948, reflector).

    The pooled state is (present feature, its change since the first frame, the mean so far). With `zero_shot` the
    judge is the encoder's own answer to "is it done?" from pretraining, read off the last frame; nothing is trained.
    """

    def __init__(self, config: ReflectorConfig, zero_shot: bool = False):
        super().__init__()
        d = config.width
        self.config, self.zero_shot = config, zero_shot
        self.encoder = VisionLanguageEncoder(d, config.channels, config.blocks).requires_grad_(False)
        self.done = nn.Sequential(nn.ReLU(), nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 1)).requires_grad_(False)
        self.head = nn.Sequential(
            nn.LayerNorm(3 * d), nn.Linear(3 * d, d), nn.ReLU(), nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:  # [B, L] int64 -> [B, C] float32
        """What judging needs of an instruction, so that it is read but once."""
        return self.encoder.text(tokens)

    @torch.no_grad()
    def begin(self, frames: Tensor, tokens: Tensor) -> Pooled:
        """Read the first frames [B, H, W, 3] uint8 of new episodes; tokens [B, L] int64, or as they were read."""
        instruction = self.read(tokens)
        feature = self.encode(frames, instruction)
        return Pooled(instruction, feature, feature.clone(), feature.new_ones(len(feature), 1))

    @torch.no_grad()
    def encode(self, frames: Tensor, tokens: Tensor) -> Tensor:  # [B, D]
        return self.encoder(frames, tokens)

    @torch.no_grad()
    def judge(
        self,
        frames: Tensor,  # [B, K, H, W, 3] uint8, the new frames
        pooled: Pooled,  # moved on in place
    ) -> Tensor:  # [B, K] float32 in [0, 1]
        """The reward after each new frame; only the new frames are read."""
        b, k = frames.shape[:2]
        feature = self.encode(frames.flatten(0, 1), pooled.instruction.repeat_interleave(k, 0)).view(b, k, -1)
        if self.zero_shot:
            return by_rows(torch.sigmoid, self.done(feature))[..., 0]
        norm, layers = self.head[0], self.head[1::2]
        weights = (part for layer in (norm, *layers) for part in (layer.weight, layer.bias))
        reward, _ = reward_head(feature, pooled.first, pooled.total, pooled.count, *weights, self.config.threshold)
        return reward

    @torch.no_grad()
    def judge_again(
        self,
        frames: Tensor,  # [B, T, H, W, 3] uint8, all so far
        tokens: Tensor,  # [B, L] int64, or as they were read
        samples: int = 32,
    ) -> Tensor:  # [B] in [0, 1]
        """The reward after the last frame, from `samples` frames spread over the whole, first and last among them.

        The paper's way, for comparison: every judged frame has all of them read anew. As long as there are no more than
        `samples` frames `judge` says the same and reads each once; after that, its mean goes over all of them.
        """
        b, t = frames.shape[:2]
        chosen = torch.linspace(0, t - 1, min(t, samples), device=frames.device).round().long()
        instruction = self.read(tokens).repeat_interleave(len(chosen), 0)
        feature = self.encode(frames[:, chosen].flatten(0, 1), instruction).view(b, len(chosen), -1)
        return torch.sigmoid(self.logit(feature[:, -1], feature[:, 0], feature.mean(1)))

    def logit(self, feature: Tensor, first: Tensor, mean: Tensor) -> Tensor:
        """[..., D] features -> [...] logits."""
        if self.zero_shot:
            return self.done(feature)[..., 0]
        return self.head(torch.cat([feature, feature - first, mean], dim=-1))[..., 0]
