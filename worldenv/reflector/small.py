"""The embedded reflector: a frozen vision-language encoder, pooled over the frames so far, and a small trained head."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from worldenv.fields import ADDED, COUNT, LARGEST, Within, check_fields
from worldenv.interfaces.observation import Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.nn.cost import FLOAT32, Cost, matrices, size_of
from worldenv.nn.encoder import Text, VisionLanguageEncoder
from worldenv.nn.int8 import by_rows
from worldenv.ops.reward_head import reward_head
from worldenv.records.model_files import load_model


@dataclass(frozen=True)
class SmallReflectorConfig:
    """Sizes of the embedded reflector."""

    width: int = 256  # D of the encoder
    channels: int = 64
    blocks: int = 2
    threshold: float = 0.5  # eta: stop when R > eta
    # Frames in a row with R > eta before it stops: a thing that still falls looks almost as if it lay at its goal.
    patience: int = field(default=1, metadata=ADDED)
    text: Text = "words"  # how instructions are read; "sentences": any, which needs worldenv[sentences]
    # Whether the encoder has learned with the head. Then that of the base is kept, too: the zero-shot judge asks it.
    learned: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        size = Within(1, LARGEST)
        share = Within(0.0, 1.0, open_low=True, open_high=True)
        given = {"width": size, "channels": size, "blocks": Within(0, LARGEST), "patience": COUNT}
        check_fields(self, **given, threshold=share)


@dataclass
class Pooled(Slots):
    """What the reflector keeps of each episode: the first features and the sum of all, so that a frame is read once."""

    instruction: Tensor  # [E, C] float32, as it was read
    first: Tensor  # [E, D] float32
    total: Tensor  # [E, D] float32
    count: Tensor  # [E, 1] float32, frames
    above: Tensor | None = None  # [E, 1] float32, frames up to now with R > eta in a row; None: patience is 1


def in_a_row(
    above: Tensor,  # [B, K] bool, frames that ask for a stop
    before: Tensor,  # [B, 1] float32, how many frames before these did, in a row; updated in place
    patience: int,
) -> Tensor:  # [B, K] bool
    """Whether this frame and the last `patience` - 1 before it all ask for a stop."""
    number = torch.arange(1, above.shape[1] + 1, device=above.device)
    other = torch.where(above, 0, number).cummax(1).values  # number of the last frame that does not; 0: none of these
    run = number - other + torch.where(other == 0, before, 0.0)
    before.copy_(run[:, -1:])
    return run >= patience


class SmallReflector(nn.Module):
    """R_t = sigmoid(head(pool(encoder(o_1..o_t, g)))) in [0, 1] (World-Env, arXiv 2509.24948, reflector).

    The pooled state is (present feature, its change since the first frame, the mean so far). With `zero_shot`
    the reward is the pretrained encoder's own answer to "is it done?" for the last frame; no head is trained.

    With `config.learned`, `encoder` has been trained together with the head, and `base` is the pretrained one.
    """

    every = 1  # frames between two judgements

    def __init__(self, config: SmallReflectorConfig, zero_shot: bool = False):
        super().__init__()
        d = config.width
        self.config, self.zero_shot = config, zero_shot
        sizes = d, config.channels, config.blocks
        encoders = [VisionLanguageEncoder(*sizes, text=config.text) for _ in range(1 + config.learned)]
        self.encoder = encoders[0].requires_grad_(False)
        self.base = encoders[1].requires_grad_(False) if config.learned else None
        self.done = nn.Sequential(nn.ReLU(), nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 1)).requires_grad_(False)
        self.head = nn.Sequential(
            nn.LayerNorm(3 * d), nn.Linear(3 * d, d), nn.ReLU(), nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    @classmethod
    def load(cls, path: Path, zero_shot: bool = False) -> "SmallReflector":
        """From a file that `save_model` wrote with the kind "reflector"."""
        return load_model(path, "reflector", cls, SmallReflectorConfig, zero_shot=zero_shot)[0]

    @property
    def likely(self) -> float | None:
        """The reward above which success is likely: 1/2, for the trained head gives probabilities."""
        return None if self.zero_shot else 0.5

    @property
    def pretrained(self) -> VisionLanguageEncoder:
        """The encoder as the base has it."""
        return self.encoder if self.base is None else self.base

    @property
    def asked(self) -> VisionLanguageEncoder:
        """The encoder whose features the reward is computed from."""
        return self.pretrained if self.zero_shot else self.encoder

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:  # [M, C] float32
        """The instructions as the encoder reads them. Raises UserError as its `tokenize` does."""
        text = self.asked.text
        return text(text.tokenize(texts).to(self.done[1].weight.device))

    @torch.no_grad()
    def begin(self, seen: Observation, read: Tensor) -> Pooled:
        """Read the first pictures of new episodes."""
        instruction = read[seen.text]
        feature = self.encode(seen.frames[:, 0], instruction)
        above = feature.new_zeros(len(feature), 1) if self.config.patience > 1 else None
        return Pooled(instruction, feature, feature.clone(), feature.new_ones(len(feature), 1), above)

    @torch.no_grad()
    def encode(self, frames: Tensor, tokens: Tensor) -> Tensor:  # [B, D]
        return self.asked(frames, tokens)

    @torch.no_grad()
    def features(self, frames: Tensor, texts: Sequence[str]) -> Tensor:  # [N, T, 1, H, W, 3] uint8 -> [N, T, D]
        """What the head gets of every frame of whole episodes, each under its instruction."""
        n, steps = frames.shape[:2]
        tokens = self.asked.text.tokenize(texts).repeat_interleave(steps, 0)
        return self.encode(frames[:, :, 0].flatten(0, 1), tokens).view(n, steps, -1)

    @torch.no_grad()
    def judge(
        self,
        frames: Tensor,  # [B, K, 1, H, W, 3] uint8, the new frames
        state: Pooled,  # moved on in place
    ) -> tuple[Tensor, Tensor]:  # [B, K] float32 in [0, 1]; [B, K] bool
        """Reward and stop after each new frame; only the new frames are read."""
        b, k = frames.shape[:2]
        feature = self.encode(frames.flatten(0, 2), state.instruction.repeat_interleave(k, 0)).view(b, k, -1)
        if self.zero_shot:
            reward = by_rows(torch.sigmoid, self.done(feature))[..., 0]
            stop = reward > self.config.threshold
        else:
            norm, layers = self.head[0], self.head[1::2]
            weights = (part for layer in (norm, *layers) for part in (layer.weight, layer.bias))
            pooled = feature, state.first, state.total, state.count
            reward, stop = reward_head(*pooled, *weights, self.config.threshold)
        return reward, stop if state.above is None else in_a_row(stop, state.above, self.config.patience)

    @torch.no_grad()
    def judge_again(
        self,
        frames: Tensor,  # [B, T, H, W, 3] uint8, all so far
        tokens: Tensor,  # [B, L, ...] of the encoder's `text.tokenize`, or as they were read
        samples: int = 32,
    ) -> Tensor:  # [B] in [0, 1]
        """The reward after the last frame, from `samples` frames spread evenly from the first to the last.

        This is the paper's way, for comparison: it reads all samples again for every judged frame. `judge` reads each
        frame once. Both agree up to `samples` frames; for longer episodes, `judge` takes the mean over all frames.
        """
        b, t = frames.shape[:2]
        chosen = torch.linspace(0, t - 1, min(t, samples), dtype=torch.float32, device=frames.device).round().long()
        instruction = self.asked.text(tokens).repeat_interleave(len(chosen), 0)
        feature = self.encode(frames[:, chosen].flatten(0, 1), instruction).view(b, len(chosen), -1)
        return torch.sigmoid(self.logit(feature[:, -1], feature[:, 0], feature.mean(1)))

    def logit(self, feature: Tensor, first: Tensor, mean: Tensor) -> Tensor:
        """[..., D] features -> [...] logits."""
        if self.zero_shot:
            return self.done(feature)[..., 0]
        return self.head(torch.cat([feature, feature - first, mean], dim=-1))[..., 0]

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The encoder, and the head on the present feature, the first one, and the mean so far."""
        names = ("feature",) if self.zero_shot else ("feature", "first", "mean")

        def given(rows: int) -> dict[str, Tensor]:
            return {name: torch.randn(rows, self.config.width) for name in names}

        def reward(feature: Tensor, first: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
            return torch.sigmoid(self.logit(feature, first, mean))

        return {"encoder": self.asked.piece(size), "head": Piece(self, reward, given, ("reward",))}


def small_reflector_cost(reflector: SmallReflector, size: int, chunk: int) -> Cost:
    """Of a policy's chunk of `chunk` frames of `size` x `size`. Only the sizes of the reflector are read."""
    head, encoder = reflector.done if reflector.zero_shot else reflector.head, reflector.asked
    kept = encoder.context + 2 * reflector.config.width + 1 + (reflector.config.patience > 1)  # as in `Pooled`
    flops = chunk * (encoder.flops(size) + 2.0 * matrices(head))
    return Cost(*size_of(reflector), slot_bytes=FLOAT32 * kept, chunk_flops=flops)
