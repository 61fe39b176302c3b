"""Teach a released vision-language model to judge: a head on fixed features, or an adapter of its language model."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.fields import SHARE, Within, check_fields
from worldenv.records.progress import Progress
from worldenv.records.run_folder import FolderTaken, RunFolder
from worldenv.reflector.transformers_vlm import VlmConfig, VlmReflector, fingerprint, new_vlm_reflector
from worldenv.reflector.vlm.kept import frames as kept_frames
from worldenv.training.fit import Schedule, fit
from worldenv.training.lessons import rivals_in
from worldenv.training.train_reflector import other_instructions, read_features, reward_loss, settled

STAGE = "vlm"


@dataclass(frozen=True)
class VlmTraining:
    """Train head or adapter of a vision-language model on recorded episodes: the options of worldenv-reflector."""

    ask: VlmConfig  # the model, and how it is asked
    data: tuple[Path, ...]  # folders or files of episodes that say for every step whether the task is done
    run: Path  # new folder for the result; use it as --reflector vlm:RUN
    resume: bool = False  # continue the interrupted training in `run`
    seed: int = 0
    lora: int = 0  # rank of a low-rank adapter of the language model (not in mode features); 0: none
    negatives: float = 0.25  # share of episodes that are shown with another task's instruction and reward 0
    device: Literal["cpu", "cuda"] = "cpu"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=64, learning_rate=1e-3))

    def __post_init__(self) -> None:
        check_fields(self, seed=Within(0, 2**32 - 1), lora=Within(0, 4096), negatives=SHARE)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is cuda, but torch finds no CUDA device; take --device cpu")
        if not self.data:
            raise UserError("data names no recorded episodes; give at least one folder")
        if self.ask.mode == "features" and self.lora:
            raise UserError("lora adapts the language model, but mode features asks it only once: take mode language")
        if self.ask.mode == "zero-shot" and not self.lora:
            raise UserError(
                "mode zero-shot has nothing to train without an adapter: give lora a rank, or take another mode"
            )


@dataclass(frozen=True)
class Shown:
    """Tokens of every frame, which an adapter of the language model does not change."""

    tokens: Tensor  # [N, T + 1, rows, columns, row], on the CPU
    own: Tensor  # [N, P] int64, prompts
    other: Tensor  # [N, P'] int64, of another task
    label: Tensor  # [N, T + 1] bool
    length: Tensor  # [N] int64


def train_vlm(config: VlmTraining) -> dict:
    """Train, and leave in `config.run` what `vlm:RUN` reads. Returns the last figures.

    The model's own weights never change, and are not copied. An interrupted training goes on where it was, with the
    same settings, or ends at once if it had ended. Raises UserError for settings, models or recordings that do not fit.
    """
    if config.resume:
        RunFolder(config.run)  # this and the next: else said only after minutes of loading
    elif os.path.lexists(config.run):
        raise FolderTaken(f"{config.run} is there already; choose another --run, or continue it with --resume")
    clips = Clips.open(config.data)
    torch.manual_seed(config.seed)
    reflector = new_vlm_reflector(config.ask, clips.views, config.lora).to(config.device)
    is_step = torch.arange(clips.success.shape[1]) <= clips.length[:, None]
    if not (settled(clips.success) & is_step)[:, :: reflector.every].any():
        raise UserError(
            "no frame that the judge is asked about shows a success: record episodes that go on for some frames after "
            "their success, or lower `every`"
        )
    kept = {"vlm": _document(config), "model": fingerprint(config.ask.vlm)}
    with RunFolder.resume(config.run) if config.resume else RunFolder.create(config.run, kept) as folder:
        if folder.config != kept:
            raise UserError(
                f"{config.run} is no run of worldenv-reflector, or has other settings: choose another --run"
            )
        loss = _loss(reflector, clips, config)
        seconds = fit(reflector.trainable(), loss, config.schedule, STAGE, folder, config.seed)
        last = {k: v for line in folder.metrics(STAGE)[-1:] for k, v in line.items() if isinstance(v, float)}
        made = {"seed": config.seed, "steps": config.schedule.steps, "training_s": seconds, "metrics": last}
        reflector.save(folder.path, made)
        return {"reflector": f"vlm:{folder.path}", "episodes": len(clips), **made}


def _document(config: VlmTraining) -> dict:
    values = asdict(config) | {"run": None, "resume": False, "device": None}
    values["data"] = [str(path.resolve()) for path in config.data]
    values["ask"]["vlm"] = str(config.ask.vlm.resolve())
    return values


def _loss(reflector: VlmReflector, clips: Clips, config: VlmTraining) -> Callable:
    one = len({*clips.instructions}) == 1  # no other task to tell it from
    negatives = 0.0 if one else config.negatives
    with Progress(len(clips), "reading frames for the reflector") as progress:
        if config.lora:
            shown = show(reflector, clips, config.seed, progress.advance)
            return answer_loss(reflector, shown, config.schedule.batch, negatives)
        features = read_features(reflector, clips, config.seed, rivals_in(clips), progress.advance)
    reflector.head.cpu()  # as the features: it is small
    return reward_loss(reflector, features, config.schedule.batch, negatives)


def show(reflector: VlmReflector, clips: Clips, seed: int, report: Callable[[int], None]) -> Shown:
    """Let the vision tower see all frames once. `report(n)` is called as clips are read."""
    every, tokens = torch.arange(clips.proprio.shape[1]), []
    for episodes in torch.arange(len(clips)).split(8):
        tokens.append(reflector.tokens(clips.frames_at(episodes, every.expand(len(episodes), -1))).cpu())
        report(len(episodes))
    others = other_instructions(clips, seed, rivals_in(clips))
    own, other = (reflector.read(texts).cpu() for texts in (clips.instructions, others))
    return Shown(torch.cat(tokens), own, other, settled(clips.success), clips.length)


def answer_loss(
    reflector: VlmReflector, shown: Shown, batch: int, negatives: float
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """BCE of the answer at one random question of random episodes, through the language model and its adapter."""
    every, room = reflector.every, reflector.config.samples
    device = reflector.vlm.weight.device

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = torch.randint(len(shown.length), (batch,), generator=generator)
        wrong = torch.rand(batch, generator=generator) < negatives
        asked = (torch.rand(batch, generator=generator) * (shown.length[episode] // every + 1)).long() * every
        label = (shown.label[episode, asked] & ~wrong).float().to(device)
        logit = torch.zeros(batch, device=device)
        for t in asked.unique().tolist():  # as many frames each
            for is_wrong, prompts in ((False, shown.own), (True, shown.other)):
                rows = ((asked == t) & (wrong == is_wrong)).nonzero()[:, 0]
                if not len(rows):
                    continue
                seen = shown.tokens[episode[rows, None], torch.tensor(kept_frames(t + 1, room))].to(device)
                hidden = reflector.hidden(prompts[episode[rows]].to(device), seen)
                logit = logit.index_copy(0, rows.to(device), reflector.logit(hidden))
        bce = F.binary_cross_entropy_with_logits(logit, label)
        stops = logit.sigmoid() > reflector.config.threshold
        return bce, {"bce": bce.item(), "wrong_share": (stops != label.bool()).float().mean().item()}

    return loss
