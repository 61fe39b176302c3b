"""Kinematics fitted to recordings by least squares, and how far they are off."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from worldenv.errors import UserError
from worldenv.robot.fitted import FittedKinematics, commanded
from worldenv.robot.kinematics import NUMBERS, composed

AXES = ("x", "y", "z", "rx", "ry", "rz", "opening")
ACTIONS = tuple(f"d{axis}" for axis in AXES[:6]) + ("close",)
LEAST_ROWS = 10  # recorded steps for each unknown of an axis
LEAST_MOVE = 1e-6  # m, rad: what moves less stands still
LEAST_SHARE = 1e-3  # of an action's size: what varies less by itself cannot be told apart
SMALLEST = 1e-6  # singular value, relative: of what cannot be told apart, the smallest numbers are taken
STANDS = 0.1  # of the gripper's fastest move: slower fingers have met something, each other or their end;
SLOWS = 0.95  # so have those that are slower than before under the same command
OUTLIER = 1.5  # residuals, in standard deviations: those of contacts count less
ROUNDS = 6  # of reweighting
LEAST_SPAN_M = 0.02  # of the reach along each axis, to tell how motion depends on it
EXTREME = 0.01  # share of the recorded positions that lies outside the reach, at either end of each axis
Episode = tuple[np.ndarray, np.ndarray]  # proprio [T + 1, 7] (m, rad, opening), actions [T, 7] in [-1, 1]


def fit_kinematics(episodes: Iterable[Episode], by_place: bool = False) -> FittedKinematics:
    """The kinematics of an arm from recorded poses, and the actions that were carried out between them.

    Of every axis, the next move is explained by the last move, this action and the one before, all six numbers of each;
    of the opening, by its own. Moves that contacts have stopped count less. It needs some hundred steps in which every
    number of the action changes, and not in step with another one. With `by_place`, all coefficients but the opening's
    are linear in the gripper's position; this needs four times as many steps, spread over the workspace. Where
    demonstrations record an action that was disturbed as it was carried out, the disturbed one is needed. Raises
    UserError if the episodes are not such arrays, are too few, or do not determine the fit, with the number that lacks.
    """
    checked = _checked(episodes)
    moves, last, now, before, where = (np.concatenate(part) for part in zip(*map(_rows, checked), strict=True))
    pose, ones = slice(0, 6), np.ones((len(moves), 1))
    names = [f"the move of {axis}" for axis in AXES[:6]] + [f"the action {name}" for name in ACTIONS[:6]]
    others, reach, place = np.c_[last[:, pose], before[:, pose], ones], None, ones
    _check_enough(len(moves), (3 * 6 + 1) * (4 if by_place else 1), "in which an action follows another")
    if by_place:
        reach = _reach(where)
        place = np.c_[ones, where.clip(*reach) - reach.mean(0)]
    _check_moves(np.c_[moves[:, pose], now[:, pose]], names)
    _check_determined(now[:, pose], others, ACTIONS[:6])
    causes = np.c_[now[:, pose], others]
    found = _explained((place[:, :, None] * causes[:, None]).reshape(len(moves), -1), moves[:, pose])
    step, inertia, after, drift = np.split(found.reshape(place.shape[1], -1, 6), [6, 12, 18], axis=1)
    grip_inertia, grip_step, grip_after = _grip(moves[:, 6], last[:, 6], now[:, 6], before[:, 6])
    span = np.concatenate([proprio[:, 6] for proprio, _ in checked])
    return FittedKinematics(
        _with_grip(step, grip_step),
        _with_grip(after, grip_after),
        _with_grip(inertia, grip_inertia),
        np.pad(drift[:, 0], ((0, 0), (0, 1))).ravel().tolist(),
        (float(span.min()), float(span.max())),
        reach=None if reach is None else reach.tolist(),
    )


def chunk_errors(
    kinematics: FittedKinematics,
    episodes: Iterable[Episode],
    chunk: int = 8,  # K
) -> tuple[np.ndarray, np.ndarray]:  # [N, K] m; [N, K] rad
    """How far the gripper is from where it was recorded, in place and in rotation, after each action of a chunk.

    Every whole chunk of every episode begins in the recorded pose, with the motion that the step before it shows.
    Measure it on episodes that were not fitted. Raises UserError as `fit_kinematics`, and if no episode has a chunk.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise UserError(f"chunk is {chunk!r:.50}; it should be a positive integer")
    begun, motion, actions, truth = [], [], [], []
    for episode in _checked(episodes):
        proprio, action = map(torch.from_numpy, episode)
        for first in range(0, len(action) - chunk + 1, chunk):
            pose, past = proprio[first], slice(first - 1, first)
            begun.append(pose)
            seen = (proprio[past][0], action[past][0], pose) if first else None
            motion.append(kinematics.after_move(*seen) if seen else kinematics.rest(pose))
            actions.append(action[first : first + chunk])
            truth.append(proprio[first + 1 : first + chunk + 1])
    if not begun:
        raise UserError(f"no episode has {chunk} actions, as a chunk")
    found, _ = kinematics.follow(*map(torch.stack, (begun, motion, actions)))
    true = torch.stack(truth)
    turn = _turn(true, found)
    return (found[..., :3] - true[..., :3]).norm(dim=-1).numpy(), turn.norm(dim=-1).numpy()


def _rows(episode: Episode) -> tuple[np.ndarray, ...]:
    """Moves, last moves, actions, actions before [T - 1, 7] each; the places in which the moves begin [T - 1, 3]."""
    proprio, actions = map(torch.from_numpy, episode)
    moves, u = moves_of(proprio), commanded(actions)
    return tuple(part.numpy() for part in (moves[1:], moves[:-1], u[1:], u[:-1], proprio[1:-1, :3].double()))


def moves_of(proprio: torch.Tensor) -> torch.Tensor:  # [T + 1, 7] -> [T, 7] float64
    """The recorded moves: m, rad about the world's axes, opening."""
    far = proprio.double()
    return torch.cat([far[1:, :3] - far[:-1, :3], _turn(far[:-1], far[1:]), far[1:, 6:] - far[:-1, 6:]], dim=1)


def _reach(where: np.ndarray) -> np.ndarray:  # [R, 3] m -> [2, 3]
    reach = np.quantile(where, (EXTREME, 1 - EXTREME), axis=0)
    for axis, span in zip(AXES, np.ptp(reach, axis=0), strict=False):
        if span < LEAST_SPAN_M:
            raise UserError(
                f"the gripper's {axis} varies by {100 * span:.1f} cm in these recordings, so they do not tell how "
                f"motion depends on {axis}: record episodes in other places, or fit without by_place"
            )
    return reach


def _turn(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:  # [..., 7] poses -> [..., 3] rad, float64
    ways = (after[..., 3:6].double(), -before[..., 3:6].double())
    return composed(*ways, torch.zeros_like(ways[0]))


def _explained(known: np.ndarray, moves: np.ndarray) -> np.ndarray:  # [R, C], [R, M] -> [C, M]
    """Least squares; rows with large residuals count less, inversely to how large they are."""
    scale = np.maximum(np.linalg.norm(known, axis=0), LEAST_MOVE)
    known, weight = known / scale, np.ones(len(known))
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        found = np.linalg.lstsq(known * root, moves * root, rcond=SMALLEST)[0]
        residual = moves - known @ found
        usual = np.maximum(1.4826 * np.median(np.abs(residual), axis=0), 1e-9)  # the standard deviation of a normal one
        size = np.sqrt(np.square(residual / usual).mean(1))
        weight = 1 / np.maximum(1, size / OUTLIER)
    return found / scale[:, None]


def _grip(move: np.ndarray, last: np.ndarray, now: np.ndarray, before: np.ndarray) -> list[float]:  # [R] each
    """Inertia, step and after of the opening, from the rows in which the fingers move freely."""
    fastest = np.abs(move).max()
    _check_moves(np.c_[move, now], ["the move of opening", f"the action {ACTIONS[6]}"])
    free = (np.abs(move) > STANDS * fastest) & ((now != before) | (np.abs(move) >= SLOWS * np.abs(last)))
    known = np.c_[last, now, before][free]
    _check_enough(len(known), 3, "in which the gripper opens or closes")
    _check_determined(known[:, 1:2], known[:, [0, 2]], ACTIONS[6:])
    return _explained(known, move[free, None])[:, 0].tolist()


def _with_grip(causes: np.ndarray, grip: float) -> list[list[float]]:  # [P, 6 causes, 6 moves] -> [7][7 P]
    matrix = np.zeros((NUMBERS, len(causes), NUMBERS))
    matrix[:6, :, :6], matrix[6, 0, 6] = causes.transpose(2, 0, 1), grip
    return matrix.reshape(NUMBERS, -1).tolist()


def _check_enough(rows: int, unknowns: int, which: str) -> None:
    if rows < LEAST_ROWS * unknowns:
        raise UserError(
            f"there are {rows} steps {which}; at least {LEAST_ROWS * unknowns} are needed: record more episodes"
        )


def _check_moves(values: np.ndarray, names: Sequence[str]) -> None:  # [R, C]
    for name, column in zip(names, values.T, strict=True):
        if np.ptp(column) <= LEAST_MOVE:
            raise UserError(
                f"{name} is always {column[0]:.3g} in these recordings, so they do not tell how actions move the "
                "gripper: record episodes in which it changes"
            )


def _check_determined(now: np.ndarray, others: np.ndarray, names: Sequence[str]) -> None:  # [R, C], [R, D]
    """Refuse actions that follow from each other, or from what was before. What was before may follow from itself: an
    arm that does not lag makes every move as its action says."""
    scaled = now / np.linalg.norm(now, axis=0)
    left = scaled - others @ np.linalg.lstsq(others, scaled, rcond=SMALLEST)[0]
    _, size, directions = np.linalg.svd(left, full_matrices=False)
    if size[-1] <= LEAST_SHARE:
        found = [name for name, part in zip(names, directions[-1], strict=True) if abs(part) > 0.2]
        raise UserError(
            f"in these recordings the action {' always changes with '.join(found)}, or follows from the actions and "
            "moves before, so they do not tell how it moves the gripper: record episodes in which it changes by itself"
        )


def _checked(episodes: Iterable[Episode]) -> list[Episode]:  # float32
    found = list(episodes)
    if not found:
        raise UserError("there are no episodes to fit or to measure")
    for number, episode in enumerate(found):
        if not isinstance(episode, tuple | list) or len(episode) != 2:
            raise UserError(
                f"episode {number} is a {type(episode).__name__}; it should be a pair of arrays: (trajectory.proprio, "
                "trajectory.actions)"
            )
    return [_checked_arrays(number, *episode) for number, episode in enumerate(found)]


def _checked_arrays(number: int, proprio: np.ndarray, actions: np.ndarray) -> Episode:
    for name, array in (("proprio", proprio), ("actions", actions)):
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserError(f"{name} of episode {number} is {found}; it should be an array of floats, [steps, numbers]")
        if array.shape[1] != NUMBERS or not np.isfinite(array).all():
            raise UserError(
                f"{name} of episode {number} is {list(array.shape)}; it should have {NUMBERS} finite numbers: x, y, "
                "z, axis-angle, opening"
            )
    if len(proprio) != len(actions) + 1:
        raise UserError(
            f"episode {number} has {len(proprio)} poses and {len(actions)} actions; there should be one more"
        )
    return proprio.astype(np.float32), actions.astype(np.float32)
