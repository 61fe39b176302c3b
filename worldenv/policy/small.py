"""The embedded vision-language-action policy: image, instruction and proprioception in, K Laplace actions out."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.nn.int8 import by_rows
from worldenv.ops.constants import constant


@dataclass(frozen=True)
class PolicyConfig:
    chunk: int = 4  # K, actions per decision
    width: int = 256  # D
    channels: int = 64
    blocks: int = 2
    # Bounds of exp(beta), in units of the action. Where noise does no harm (rotation, gripper) a high floor keeps the
    # ratio of PPO from being ruled by numbers that do not matter: log-probabilities change as |change of mu| / scale.
    scale_low: tuple[float, ...] = (0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 0.3)
    scale_high: float = 0.5

    def __post_init__(self) -> None:
        ordered = 0 < min(self.scale_low) <= max(self.scale_low) < self.scale_high
        if self.chunk < 1 or len(self.scale_low) != 7 or not ordered:
            raise ValueError(
                f"chunk {self.chunk} must be >= 1, and scale_low {self.scale_low} seven numbers between 0 and "
                f"scale_high {self.scale_high}"
            )


class Policy(nn.Module):
    """Laplace(mu, exp(beta)) over chunks of K actions (World-Env, arXiv 2509.24948, action and scale heads).

    `mu` comes from the action head (trained by L1), `beta` from the scale head (Laplace negative log-likelihood).
    """

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        d = config.width
        self.encoder = VisionLanguageEncoder(d, config.channels, config.blocks)
        self.proprio = nn.Linear(7, 64)
        self.trunk = nn.Sequential(nn.Linear(d + 64, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())
        self.action_head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 7 * config.chunk))
        self.scale_head = nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 7 * config.chunk))

    def forward(
        self,
        frames: Tensor,  # [B, H, W, 3] uint8
        proprio: Tensor,  # [B, 7] float32
        tokens: Tensor,  # [B, L] int64, or what `read` made of them
    ) -> tuple[Tensor, Tensor]:  # mu, beta: [B, K, 7] float32
        """The mean of each action and the logarithm of its scale, bounded softly to the configured range."""
        return self.heads(self.see(frames, tokens), proprio)

    @property
    def features(self) -> int:
        """D, what `see` makes of a frame."""
        return self.config.width

    def see(self, frames: Tensor, tokens: Tensor) -> Tensor:  # as `forward` -> [B, D] float32
        """What an update of the heads needs of a frame, so that it need not see it again."""
        return self.encoder(frames, tokens)

    def read(self, tokens: Tensor) -> Tensor:  # [B, L] int64 -> [B, C] float32
        """What `forward` needs of an instruction, so that an episode's is read but once."""
        return self.encoder.text(tokens)

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        """mu and beta from what `see` made of the frames [B, D]."""
        scale = constant((5, 5, 5, 1, 1, 1, 1), proprio)  # metres to numbers around 1
        x = torch.cat([F.relu(feature), F.relu(self.proprio(proprio * scale))], dim=-1)
        f = self.trunk(x)
        mu = self.action_head(f).view(-1, self.config.chunk, 7)
        low, high = constant(tuple(self.config.scale_low), proprio).log(), log(self.config.scale_high)
        beta = low + (high - low) * by_rows(torch.sigmoid, self.scale_head(f)).view_as(mu)
        return mu, beta


def laplace_sample(mu: Tensor, beta: Tensor, uniform: Tensor) -> Tensor:
    """A Laplace draw by inversion from `uniform` in [0, 1), shaped as mu; it is not clipped to [-1, 1]."""
    u = uniform - 0.5
    return mu - torch.exp(beta) * u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 1e-7))
