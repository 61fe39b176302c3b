"""The embedded vision-language-action policy: image, instruction and proprioception in, K Laplace actions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.fields import LARGEST, FieldError, Within, check_fields
from worldenv.interfaces.observation import Observation
from worldenv.interfaces.pieces import Piece
from worldenv.nn.cost import FLOAT32, Cost, matrices, size_of
from worldenv.nn.encoder import Text, VisionLanguageEncoder
from worldenv.nn.int8 import by_rows
from worldenv.ops.constants import constant
from worldenv.policy.laplace import LaplacePolicy, SeenFeature
from worldenv.records.model_files import load_model


@dataclass(frozen=True)
class SmallPolicyConfig:
    """Sizes of the embedded policy."""

    chunk: int = 4  # K, actions per decision
    width: int = 256  # D
    channels: int = 64
    blocks: int = 2
    # Bounds of exp(beta), in units of the action. A change of mu changes the log-probability by |change| / scale, so a
    # small scale lets one number rule the ratio of PPO. Rotation and gripper tolerate noise: their least scale is high.
    # One for each number of an action, A of them.
    scale_low: tuple[float, ...] = (0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 0.3)
    scale_high: float = 0.5
    view: str = "agentview"  # that it looks at
    text: Text = "words"  # how instructions are read; "sentences": any, which needs worldenv[sentences]

    def __post_init__(self) -> None:
        size, scale = Within(1, LARGEST), Within(0.0, LARGEST, open_low=True)
        sizes = dict.fromkeys(("chunk", "width", "channels"), size) | {"blocks": Within(0, LARGEST)}
        check_fields(self, scale_low=scale, scale_high=scale, **sizes)
        if not self.scale_low or max(self.scale_low) >= self.scale_high:
            raise FieldError(
                f"scale_low is {self.scale_low}; it should be A numbers below scale_high, {self.scale_high}"
            )


class SmallPolicy(LaplacePolicy):
    """Laplace(mu, exp(beta)) over chunks of K actions (World-Env, arXiv 2509.24948, action and scale heads).

    `mu` comes from the action head (trained by L1), `beta` from the scale head (Laplace negative log-likelihood). It
    looks at one view. Reinforcement learning does not change the encoder, so the features that were computed while
    imagining stay valid. With few rollouts, an update of the whole network is mostly noise (benchmarks/LOG.md,
    "Practise with a frozen encoder").
    """

    def __init__(self, config: SmallPolicyConfig):
        super().__init__()
        self.config, self.chunk, self.views = config, config.chunk, (config.view,)
        d, numbers = config.width, len(config.scale_low) * config.chunk
        self.encoder = VisionLanguageEncoder(d, config.channels, config.blocks, text=config.text)
        self.proprio = nn.Linear(7, 64)
        self.trunk = nn.Sequential(nn.Linear(d + 64, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())
        self.action_head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, numbers))
        self.scale_head = nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, numbers))

    @classmethod
    def load(cls, path: Path) -> "SmallPolicy":
        """From a file that `save_model` wrote with the kind "policy"."""
        return load_model(path, "policy", cls, SmallPolicyConfig)[0]

    def forward(
        self,
        frames: Tensor,  # [B, H, W, 3] uint8
        proprio: Tensor,  # [B, 7] float32
        tokens: Tensor,  # [B, L, ...] of the encoder's `text.tokenize`, or what `read` made of them
    ) -> tuple[Tensor, Tensor]:  # mu, beta: [B, K, A] float32
        """The mean of each action and the logarithm of its scale, bounded softly to the configured range."""
        return self.heads(self.encoder(frames, tokens), proprio)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:  # [M, C] float32
        """The instructions as the encoder reads them. Raises UserError as its `tokenize` does."""
        text, device = self.encoder.text, next(self.parameters()).device
        return text(text.tokenize(texts).to(device))

    def see(self, seen: Observation, read: Tensor) -> Tensor:  # [B, D] float32
        """The features of a picture, from which an update of the heads starts."""
        return self.encoder(seen.frames[:, 0], read[seen.text])

    def trainable(self) -> list[nn.Parameter]:
        """Trunk and heads."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("encoder.")]

    def head_parameters(self) -> list[nn.Parameter]:
        """The action head: what --rl.head-learning-rate is for."""
        return list(self.action_head.parameters())

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        """mu and beta from the features of `see` [B, D]."""
        x = torch.cat([F.relu(feature), F.relu(self.proprio(_scaled(proprio)))], dim=-1)
        f = self.trunk(x)
        mu = self.action_head(f).view(-1, self.config.chunk, len(self.config.scale_low))
        low, high = constant(tuple(self.config.scale_low), proprio).log(), log(self.config.scale_high)
        beta = low + (high - low) * by_rows(torch.sigmoid, self.scale_head(f)).view_as(mu)
        return mu, beta

    def value_input(self, record: SeenFeature) -> Tensor:  # [..., D + 7] float32
        """What a critic reads of recorded moments."""
        return torch.cat([F.relu(record.feature), _scaled(record.proprio)], dim=-1)

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The encoder, which takes an instruction as `read` gives it, and the heads on its features."""

        def feature(rows: int) -> dict[str, Tensor]:
            return {"feature": torch.randn(rows, self.config.width), "proprio": torch.rand(rows, 7)}

        return {
            "encoder": self.encoder.piece(size),
            "heads": Piece(self, self.heads, feature, ("mu", "beta")),
        }


def _scaled(proprio: Tensor) -> Tensor:  # [..., 7] -> [..., 7]
    return proprio * constant((5, 5, 5, 1, 1, 1, 1), proprio)  # metres to numbers around 1


def small_policy_cost(policy: SmallPolicy, size: int, proprio: int) -> Cost:
    """Of a chunk that is decided on from a frame of `size` x `size`, and of one that is learnt from: the heads alone.

    `proprio` numbers are recorded. Only the sizes of the policy are read.
    """
    layers = [policy.proprio, *policy.trunk[::2], *policy.action_head[::2], *policy.scale_head[::2]]
    heads = 2.0 * sum(map(matrices, layers))
    return Cost(
        *size_of(policy),
        sum(parameter.numel() for parameter in policy.trainable()),
        policy.chunk,
        record_bytes=FLOAT32 * (policy.config.width + proprio),
        chunk_flops=policy.encoder.flops(size) + heads,
        update_flops=3 * heads,  # back, weights and inputs need a gradient
        update_bytes=FLOAT32 * sum(layer.in_features + layer.out_features for layer in layers),
    )
