"""Two losses for students of few denoising steps, of any teacher that predicts the clean latents of a chunk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from worldenv.training.share import WHOLE, Share

Loss = Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]
Method = Literal["trajectory", "consistency"]
SAME = 1e-5  # share by which two levels have to differ: students and teachers compute theirs with different roundings
Denoiser = Callable[[Tensor, float], Tensor]  # noisy [B, ...] float32, noise level -> clean [B, ...] float32


def euler(
    noisy: Tensor,  # [B, ...], at the level `before`
    clean: Tensor,  # [B, ...], as predicted from it
    before: float,
    after: float,
) -> Tensor:  # [B, ...], at the level `after`
    """One Euler step of the probability flow, the same expression for every kind of world model here.

        noisy(after) = clean + after / before (noisy(before) - clean)

    Flow matching (Lipman et al. 2023): noisy = (1 - t) clean + t noise, the level is t from 1 to 0, and the network
    predicts velocity = noise - clean, so clean = noisy - t velocity. The causal transformer and RLinf-Wan do this.

    EDM (Karras et al. 2022, equations 1 to 7): noisy = clean + sigma noise, the level is sigma from sigma_max to 0, and
    clean = c_skip noisy + c_out F(c_in noisy). Stable Video Diffusion does this: c_skip = 1 / (sigma^2 + 1), c_out =
    -sigma / sqrt(sigma^2 + 1), c_in = 1 / sqrt(sigma^2 + 1).

    Divide noisy of flow matching by 1 - t and set sigma = t / (1 - t): that is EDM. So both share the clean prediction
    at a noise level; each network computes it in its own way.
    """
    return clean + after / before * (noisy - clean)


@dataclass(frozen=True)
class Denoising:
    """A batch of B chunks that are to be denoised, each given its past and its actions."""

    noisy: Tensor  # [B, ...] float32, at the highest noise level: noise alone
    clean: Tensor  # [B, ...] float32, the recorded latents
    denoiser: Callable[[nn.Module], Denoiser]  # makes the denoiser of a network for this batch
    weight: Tensor | float = 1.0  # of each number's squared error
    # noisy, clean, before, after -> noisy; how the sampler goes on after a pass of the student
    onward: Callable[[Tensor, Tensor, float, float], Tensor] = euler


def few_step_loss(
    student: nn.Module,
    teacher: nn.Module,  # frozen from here on
    draw: Callable[[torch.Generator], Denoising],
    levels: Sequence[float],  # noise levels of the student's passes, falling; the last is 0
    teacher_levels: Sequence[float],  # of the teacher's passes, likewise; both begin with the same level
    share: Share = WHOLE,
) -> Loss:
    """Each of the student's few passes is to land where the teacher's Euler steps lead from the same noise.

    "Knowledge distillation" (Luhman & Luhman 2021), squared error. The student goes through its levels as the sampler
    does, so a later pass learns to correct what the passes before it give. The figures are the mean squared distances
    of the student's last pass from the recorded latents (`mse`) and from the teacher's (`teacher_mse`).
    """
    teacher.requires_grad_(False)
    passes = len(levels) - 1

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part = draw(generator)
        with torch.no_grad():
            target, predict = part.noisy, part.denoiser(teacher)
            for before, after in pairwise(teacher_levels):
                target = euler(target, predict(target, before), before, after)
        x, total, predict = part.noisy, 0.0, part.denoiser(student)
        for before, after in pairwise(levels):
            clean = predict(x, before)
            total = total + share.mean(part.weight * (clean - target).square()) / passes
            x = part.onward(x, clean.detach(), before, after)
        away = {"mse": part.clean, "teacher_mse": target}
        return total, {name: share.mean((clean.detach() - to).square()).item() for name, to in away.items()}

    return loss


def consistency_loss(
    student: nn.Module,
    teacher: nn.Module,  # frozen from here on
    draw: Callable[[torch.Generator], Denoising],
    levels: Sequence[float],  # noise levels of the student's passes, falling; the last is 0
    teacher_levels: Sequence[float],  # of the teacher's passes, likewise; both begin with the same level
    share: Share = WHOLE,
) -> Loss:
    """The student should predict the same clean latents before and after one Euler step of the teacher.

    The step begins at a recorded chunk with noise. "Consistency distillation" (Song et al. 2023, algorithm 2), squared
    error. The target is the student's prediction after the step, without gradient and with the present weights (no
    average of earlier ones: Song & Dhariwal 2024); if the step ends at level 0, it is the teacher's result. The step
    joins two neighbours among all levels of student and teacher, drawn once for the whole batch. So a training step
    costs two passes of the student and one of the teacher, however many steps the teacher takes. The figures are the
    mean squared distances of the prediction from the recorded latents (`mse`) and from the target (`target_mse`).
    """
    teacher.requires_grad_(False)
    near = pairwise(sorted({*levels, *teacher_levels}, reverse=True))
    grid = [high for high, low in near if low < (1 - SAME) * high] + [0.0]

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part, i = draw(generator), int(torch.randint(len(grid) - 1, (), generator=generator))
        before, after = grid[i : i + 2]
        noisy = euler(part.noisy, part.clean, grid[0], before)
        with torch.no_grad():
            target = euler(noisy, part.denoiser(teacher)(noisy, before), before, after)
            target = part.denoiser(student)(target, after) if after else target
        clean = part.denoiser(student)(noisy, before)
        total = share.mean(part.weight * (clean - target).square())
        away = {"mse": part.clean, "target_mse": target}
        return total, {name: share.mean((clean.detach() - to).square()).item() for name, to in away.items()}

    return loss


METHODS: dict[Method, Callable[..., Loss]] = {"trajectory": few_step_loss, "consistency": consistency_loss}
