"""Train the reflector on recorded episodes: per-frame binary cross-entropy with hard negatives.

The head alone, on features that never change (`reward_loss`), or encoder and head together (`picture_loss`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.data.clips import Clips
from worldenv.interfaces.suite import Task
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.reflector.small import SmallReflector
from worldenv.training.share import Share

FRAMES = 8  # of an episode, beside the first one, in a step in which the encoder learns
CONTRAST, BRIGHTNESS = 0.2, 0.15  # largest change of pictures then, for pixels in [-1, 1]
NOISE = 0.02  # standard deviation of the noise on these pixels

Rivals = Callable[[str], Sequence[Task]]  # name of a task -> tasks that are not done where it is acted out


class Taught(Protocol):
    """A reflector whose head can be trained on features of frames that never change."""

    every: int  # frames between two judgements: others are not learned from
    config: object  # with `threshold`

    def features(self, frames: Tensor, texts: Sequence[str]) -> Tensor:
        """Frames [N, T, V, H, W, 3] uint8 of whole episodes, each under its instruction -> [N, T, D] float32."""

    def logit(self, feature: Tensor, first: Tensor, mean: Tensor) -> Tensor:
        """The head: features [..., D] of a frame, of the first frame, and their mean so far -> logits [...]."""


@dataclass(frozen=True)
class Features:
    """Frozen features of every frame, under the episode's own instruction and under another task's."""

    own: Tensor  # [N, T + 1, D] float32
    other: Tensor  # [N, T + 1, D] float32
    success: Tensor  # [N, T + 1] bool
    length: Tensor  # [N] int64


def other_instructions(clips: Clips, seed: int, rivals: Rivals) -> list[str]:  # N
    """For each episode the instruction of another task that could be asked for there: same frames, nothing done."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for name in clips.tasks:
        others = rivals(name)
        rival = others[int(torch.randint(len(others), (1,), generator=generator))]
        texts.append(rival.instructions[int(torch.randint(len(rival.instructions), (1,), generator=generator))])
    return texts


def join(parts: Sequence[Features]) -> Features:
    """All episodes of several sets of features; those of the shorter sets are padded with their last frame."""
    return Features(*(_joined([getattr(part, field.name) for part in parts]) for field in fields(Features)))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    steps = torch.arange(max(part.shape[1] for part in parts))
    return torch.cat([part[:, steps.clamp(max=part.shape[1] - 1)] for part in parts])


def read_features(
    reflector: Taught, clips: Clips, seed: int, rivals: Rivals, report: Callable[[int], None], ranks: Ranks = ALONE
) -> Features:
    """Encode everything once: the encoder is frozen. `report(n)` is called as clips are read.

    Several ranks share the clips, and all return all of them.
    """
    others, every = other_instructions(clips, seed, rivals), torch.arange(clips.proprio.shape[1])
    if len(clips) < ranks.count:
        ranks = ALONE
    own, other = [], []
    for episodes in torch.arange(len(clips))[ranks.part(len(clips))].split(8):
        part = slice(int(episodes[0]), int(episodes[-1]) + 1)
        frames = clips.frames_at(episodes, every.expand(len(episodes), -1))
        for texts, store in ((clips.instructions, own), (others, other)):
            store.append(reflector.features(frames, texts[part]))
        report(len(episodes) * ranks.count)
    return Features(*ranks.gather(torch.cat(own), torch.cat(other)), clips.success, clips.length)


def settled(success: Tensor) -> Tensor:  # [N, T + 1] bool
    """Whether the task is done and was so one step before: a judge that errs by one frame still stops in success."""
    return torch.cat([torch.zeros_like(success[:, :1]), success[:, 1:] & success[:, :-1]], dim=1)


def reward_loss(
    reflector: Taught, data: Features, batch: int, negatives: float = 0.25, ranks: Ranks = ALONE
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """BCE over random episodes; a share `negatives` of them under another task's instruction, with label 0.

    Success and failure count alike, so that the reward is the probability of success.
    """
    share = Share(batch, ranks)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = torch.randint(len(data.own), (batch,), generator=generator)
        wrong = torch.rand(batch, generator=generator) < negatives
        episode, wrong = share.own(episode), share.own(wrong)
        feature = data.own[episode]
        feature = torch.where(wrong[:, None, None], data.other[episode], feature)
        steps = feature.shape[1]
        mean = feature.cumsum(1) / torch.arange(1, steps + 1)[:, None]
        logit = reflector.logit(feature, feature[:, :1].expand_as(feature), mean)
        label = (settled(data.success[episode]) & ~wrong[:, None]).float()
        step = torch.arange(steps)
        use = ((step <= data.length[episode, None]) & (step % reflector.every == 0)).float()
        bce = share.mean(F.binary_cross_entropy_with_logits(logit, label, reduction="none"), use)
        stops = logit.sigmoid() > reflector.config.threshold
        wrong_share = share.mean(stops != label.bool(), use)
        return bce, {"bce": bce.item(), "wrong_share": wrong_share.item()}

    return loss


def picture_loss(
    reflector: SmallReflector,
    sets: Sequence[Clips],
    rivals: Rivals,
    batch: int,
    negatives: float = 0.25,
    ranks: Ranks = ALONE,
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """As `reward_loss`, with a gradient for the encoder, too: of the first frame and FRAMES others of each episode.

    The mean over these frames stands for that over all. In expectation, all tasks count alike, and so do the successes
    and the failures of a task. Contrast, brightness and noise of an episode's pictures are drawn, and so is the other
    task of a hard negative.
    """
    share, text = Share(batch, ranks), reflector.encoder.text
    success, length = _joined([clips.success for clips in sets]), _joined([clips.length for clips in sets])
    tasks = [task for clips in sets for task in clips.tasks]
    kinds = list(zip(tasks, success.any(1).tolist(), strict=True))
    own = text.tokenize([told for clips in sets for told in clips.instructions])
    others = {name: [told for rival in rivals(name) for told in rival.instructions] for name in sorted({*tasks})}
    other = {name: text.tokenize(told) for name, told in others.items()}
    done, count = settled(success), Counter(kinds)
    chances = torch.tensor([1 / count[kind] for kind in kinds])

    def asked(episode: Tensor, negative: Tensor) -> Tensor:  # [B, L, ...]
        """The tokens of the episodes' instructions; where `negative` is in [0, 1), those of another task."""
        tokens = own[episode]
        for row in (negative >= 0).nonzero()[:, 0].tolist():
            some = other[tasks[episode[row]]]
            tokens[row] = some[int(negative[row] * len(some))]
        return tokens

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = torch.multinomial(chances, batch, replacement=True, generator=generator)
        part = torch.rand(batch, FRAMES, generator=generator) + torch.arange(FRAMES)  # of FRAMES equal ones
        negative = torch.rand(batch, generator=generator)
        negative = torch.where(negative < negatives, negative / max(negatives, 1e-9), -1)
        look = torch.rand(batch, 2, generator=generator) * 2 - 1
        seed = torch.randint(2**31, (batch,), generator=generator)
        episode, part, negative, look, seed = (share.own(x) for x in (episode, part, negative, look, seed))
        step = F.pad(1 + (part / FRAMES * length[episode, None]).long(), (1, 0)).clamp(max=length[episode, None])
        pictures, tokens = _varied(_frames_of(sets, episode, step), look, seed), asked(episode, negative)
        feature = reflector.encoder(pictures.flatten(0, 1), tokens.repeat_interleave(FRAMES + 1, 0))
        feature = feature.view(len(episode), FRAMES + 1, -1)
        mean = feature.cumsum(1) / torch.arange(1, FRAMES + 2)[:, None]
        logit = reflector.logit(feature, feature[:, :1].expand_as(feature), mean)
        label = (done[episode].gather(1, step) & (negative < 0)[:, None]).float()
        bce = share.mean(F.binary_cross_entropy_with_logits(logit, label, reduction="none"))
        stops = logit.sigmoid() > reflector.config.threshold
        wrong_share = share.mean((stops != label.bool()).float())
        return bce, {"bce": bce.item(), "wrong_share": wrong_share.item()}

    return loss


def _frames_of(sets: Sequence[Clips], episode: Tensor, step: Tensor) -> Tensor:  # [B], [B, M] -> [B, M, H, W, 3] uint8
    """Frames of the first view; the episodes of the sets are numbered one after the other."""
    found, first = {}, 0
    for clips in sets:
        rows = ((episode >= first) & (episode < first + len(clips))).nonzero()[:, 0]
        frames = clips.frames_at(episode[rows] - first, step[rows])[:, :, 0]
        found |= dict(zip(rows.tolist(), frames, strict=True))
        first += len(clips)
    return torch.stack([found[row] for row in range(len(episode))])


def _varied(
    frames: Tensor,  # [B, M, H, W, 3] uint8
    look: Tensor,  # [B, 2] in [-1, 1], contrast and brightness of an episode
    seed: Tensor,  # [B] int64, of an episode's noise
) -> Tensor:  # [B, M, H, W, 3] float32 in [-1, 1]
    contrast, brightness = (x.view(-1, 1, 1, 1, 1) for x in look.unbind(1))
    noise = [torch.randn(frames.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seed.tolist()]
    pictures = (1 + CONTRAST * contrast) * (frames / 127.5 - 1) + BRIGHTNESS * brightness
    return (pictures + NOISE * torch.stack(noise)).clamp(-1, 1)
