"""The supervised training loop that every stage shares: resumable, logged, stopped by numbers that are not finite."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from worldenv.errors import UserError
from worldenv.fields import COUNT, MOST, SHARE, Within, check_fields
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records.checkpoint import CheckpointError, load_state, save_state
from worldenv.records.progress import Progress
from worldenv.records.resumption import check_state, identity
from worldenv.records.run_folder import RunFolder

PARTS = {"module": dict, "rate": dict, "step": int, "skipped": int, "mean": dict, "seconds": float}  # of a state
MAX_SKIPPED_SHARE = 0.05  # of the steps; more non-finite ones than this end the run


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns: a linear warm-up, then a cosine to zero."""

    steps: int
    batch: int
    learning_rate: float
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 1e-4
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            steps=Within(1, 1_000 * MOST),
            batch=COUNT,
            learning_rate=Within(0, 10, open_low=True),
            warmup=SHARE,
            weight_decay=Within(0, 10),
            save_every_s=Within(0, MOST),
        )

    def of(self, optimizer: torch.optim.Optimizer) -> SequentialLR:
        """The scheduler of an optimizer that has not stepped yet."""
        warm = max(1, round(self.warmup * self.steps))
        rise = LinearLR(optimizer, 1 / warm, 1.0, total_iters=warm - 1)
        fall = CosineAnnealingLR(optimizer, max(1, self.steps - warm))
        return SequentialLR(optimizer, [rise, fall], [warm])


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    stage: str,
    folder: RunFolder,
    seed: int,
    ranks: Ranks = ALONE,
) -> float:
    """Minimise `loss`, which draws its own batch from the generator it is given and returns figures to log.

    Returns the seconds that the steps took, those before an interruption included. Of several ranks, each returns what
    its share of the batch adds to loss and figures (worldenv/training/share.py); all make the same step of the sum, and
    rank 0 writes the folder, which all can read.

    Each step's generator is seeded by (seed, step), so a resumed run sees the batches it would have seen. The state
    lies in checkpoints/<stage>.state.safetensors. A non-finite loss or gradient skips the step; more than
    MAX_SKIPPED_SHARE of such steps raise UserError.
    """
    state_path = folder.checkpoints / f"{stage}.state.safetensors"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, schedule.learning_rate, weight_decay=schedule.weight_decay)
    rate = schedule.of(optimizer)
    run = identity(seed, module)
    first, skipped, mean, before_s = _resume(state_path, module, optimizer, rate, run, schedule.steps)
    ranks.every(None)  # all have read the state
    if ranks.first:
        folder.truncate(stage, first + 1)  # a line counts the steps that are done
    began = saved_at = time.monotonic()
    with Progress(schedule.steps, stage.replace("_", " "), done=first) as progress:
        for step in range(first, schedule.steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            used = rate.get_last_lr()[0]
            ok, figures = _step(loss, generator, optimizer, parameters, ranks)
            skipped += not ok
            rate.step()
            if skipped > max(10, MAX_SKIPPED_SHARE * schedule.steps):
                raise UserError(
                    f"{stage}: {skipped} of {step + 1} steps had a non-finite loss or gradient; lower the learning rate"
                )
            if ok:
                mean = {k: 0.98 * mean.get(k, v) + 0.02 * v for k, v in figures.items()}
            progress.advance(**mean)
            if not ranks.first:
                continue
            if (step + 1) % 50 == 0 or step + 1 == schedule.steps:
                folder.log(stage, step + 1, **mean, skipped_steps=skipped, learning_rate=used)
            if time.monotonic() - saved_at > schedule.save_every_s or step + 1 == schedule.steps:
                saved_at = time.monotonic()
                done = {"step": step + 1, "skipped": skipped, "mean": mean, "seconds": before_s + saved_at - began}
                _save(state_path, module, optimizer, rate, run=run, **done)
    return before_s + time.monotonic() - began


def _step(
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    ranks: Ranks,
) -> tuple[bool, dict[str, float]]:
    value, figures = loss(generator)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if ranks.count > 1:
        value, *sums = ranks.add_gradients(parameters, value.detach(), *map(value.new_tensor, figures.values()))
        figures = {name: total.item() for name, total in zip(figures, sums, strict=True)}
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    if not (torch.isfinite(value) and torch.isfinite(norm)):
        return False, figures
    optimizer.step()
    return True, {"loss": value.item(), **figures}


def _resume(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: SequentialLR,
    run: dict[str, Any],
    steps: int,
) -> tuple[int, int, dict[str, float], float]:  # steps done, steps skipped, running means, seconds spent
    if not os.path.lexists(path):
        return 0, 0, {}, 0.0
    state = load_state(path)
    check_state(path, state, PARTS, run, module, "module", optimizer)
    if not 0 <= state["step"] <= steps:
        raise CheckpointError(f"{path}: has {state['step']} steps, and the stage is to have {steps}; use another --run")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    rate.load_state_dict(state["rate"])
    return state["step"], state["skipped"], state["mean"], state["seconds"]


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rate: SequentialLR, **rest: Any) -> None:
    parts = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "rate": rate.state_dict()}
    save_state(path, **parts, **rest)
