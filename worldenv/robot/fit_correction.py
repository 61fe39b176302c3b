"""A small network for what linear kinematics leave out, fitted to recordings (`FittedKinematics.correction`)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.robot.fit import Episode, chunk_errors, moves_of
from worldenv.robot.fitted import BENT, FittedKinematics, Matrix, commanded

HIDDEN, STEPS, BATCH, LEARNING_RATE = 64, 4000, 256, 4e-3
LEAST_STEPS = 8000  # recorded steps for a correction: more than it has weights
WEIGHT = (3.0, 3.0, 3.0, 1.0, 1.0, 1.0)  # of the errors of a move: a grasp depends on the position above all
HELD_OUT = 4  # one in so many episodes
CHUNK = 4  # actions after which held-out errors are compared
SMALL = 0.05  # of a number's spread: errors above count linearly, because contacts make some large
LEAST_SPREAD = 1e-5  # by which inputs and moves are divided


def with_correction(kinematics: FittedKinematics, episodes: Sequence[Episode], seed: int = 0) -> FittedKinematics:
    """The kinematics with a correction, if it helps on a random quarter of the episodes, which are held out.

    It helps if the mean position error after 4 actions gets smaller there. If it does not, or if the other episodes
    have fewer than 8,000 steps, the kinematics are returned as they are. Episodes are as for `fit_kinematics`.
    """
    out = is_held_out(len(episodes), seed)
    held, rest = ([e for e, is_out in zip(episodes, out, strict=True) if is_out == kind] for kind in (True, False))
    if sum(len(actions) for _, actions in rest) < LEAST_STEPS:
        return kinematics
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        corrected = _fitted(kinematics, rest)
    before, after = (_error(one, held) for one in (kinematics, corrected))
    return corrected if after < before else kinematics


def is_held_out(count: int, seed: int) -> np.ndarray:  # [count] bool
    """A quarter, at random. Recorded episodes go through the tasks in turn: every fourth one may miss some tasks."""
    return np.random.default_rng(seed).permutation(count) % HELD_OUT == HELD_OUT - 1


def _error(kinematics: FittedKinematics, episodes: Sequence[Episode]) -> float:  # m
    whole = [(proprio, actions) for proprio, actions in episodes if len(actions) >= CHUNK]
    return float(chunk_errors(kinematics, whole, CHUNK)[0][:, -1].mean()) if whole else np.inf


def _fitted(kinematics: FittedKinematics, episodes: Sequence[Episode]) -> FittedKinematics:
    parts = zip(*(_steps(kinematics, *map(torch.from_numpy, episode)) for episode in episodes), strict=True)
    seen, left, moves = (torch.cat(part) for part in parts)
    middle, spread = seen.mean(0), seen.std(0).clamp(min=LEAST_SPREAD)
    unit = moves.std(0).clamp(min=LEAST_SPREAD)
    widths = (3 * BENT, HIDDEN, HIDDEN, BENT)
    first, second, last = layers = [nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)]
    network = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    inputs, wanted, weight = (seen - middle) / spread, left / unit, torch.tensor(WEIGHT)
    for _ in range(STEPS):
        rows = torch.randint(len(seen), (BATCH,))
        off = F.smooth_l1_loss(network(inputs[rows]), wanted[rows], beta=SMALL, reduction="none")
        optimizer.zero_grad()
        (weight * off).mean().backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        most = (network(inputs) * unit).abs().amax(0)
        first.bias -= first.weight @ (middle / spread)  # inputs and outputs in m and rad
        first.weight /= spread
        last.weight *= unit[:, None]
        last.bias *= unit
        return replace(kinematics, correction=tuple(map(_matrix, layers)), most=tuple(most.tolist()))


def _steps(kinematics: FittedKinematics, proprio: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
    """Of an episode's steps: what the network sees [T, 18]; what the linear model leaves out of the recorded move, and
    this move [T, 6] each. Without the opening: things between the fingers stop it, which imagination must not know."""
    coast = kinematics.after_move(proprio[:-2], actions[:-1], proprio[1:-1])
    coast, push, pose = torch.cat([kinematics.rest(proprio[:1]), coast]), commanded(actions), proprio[:-1]
    seen = torch.cat([part[:, :BENT].float() for part in (push, coast, pose)], dim=1)
    moves = moves_of(proprio)[:, :BENT]
    return seen, (moves - kinematics.move(push, coast, pose)[:, :BENT]).float(), moves.float()


def _matrix(layer: nn.Linear) -> Matrix:
    rows = torch.cat([layer.weight, layer.bias[:, None]], dim=1).tolist()
    return tuple(tuple(float(f"{x:.6g}") for x in row) for row in rows)  # short: they are written as text
