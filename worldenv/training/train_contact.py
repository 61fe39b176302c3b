"""Train the contact network: what is moved, grasped or pushed, how far, which pixels it covers, which are hidden."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.launch.ranks import ALONE, Ranks
from worldenv.training.contacts import HIDDEN_LEVELS, PICTURE_LEVELS, UNKNOWN, Contacts
from worldenv.training.share import Share
from worldenv.worlds.composer.contact import (
    COLOURS,
    GRASPED_WEIGHT,
    REST_SCALE,
    ContactNetwork,
    Touch,
    channels,
    numbers,
)

GRASP_WEIGHT, REST_WEIGHT, MASK_WEIGHT, HIDDEN_WEIGHT = 2.0, 0.5, 4.0, 2.0
PUSH_WEIGHT, OPENING_WEIGHT = 2.0, 2.0
STOP_WEIGHT, STOP_SMALL_M, STOP_FREE_M = 3.0, 0.005, 0.002  # errors above the second count linearly
BRIGHTNESS, NOISE = 0.1, 0.03  # standard deviations: of the gain of a sample's pictures, of its pixels
# See axis_across: least cosine between an axis of the world and the rows of a picture; largest coordinate of a camera.
SQUARE, MIDDLE_M = 0.999, 0.01


def contact_loss(
    network: ContactNetwork, contacts: Contacts, batch: int, ranks: Ranks = ALONE, across: int | None = 0
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Cross-entropy of `moves`, `grasps`, `mask`, `hidden`, `pushes` and `pushed_mask`, absolute error of `rest`,
    `pushed` and, if the network has them, `stop` and `opening`.

    Half of the batches are mirrored left to right: `across` is the axis of the world whose sign this changes
    (`axis_across`); None: no batch is mirrored. The colour channels of every batch are permuted. What happens to the
    things depends on neither.
    """
    mirror, share = None if across is None else _mirror(network.chunk, across), Share(batch, ranks)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part = contacts[share.own(torch.randint(len(contacts), (batch,), generator=generator))]
        pictures, plan, rest, mask = part.pictures.float() / PICTURE_LEVELS, part.numbers, part.rest, part.mask / 255
        pushed, pushed_mask = part.pushed, part.pushed_mask / 255
        is_known, hidden = part.hidden != UNKNOWN, part.hidden.clamp(max=HIDDEN_LEVELS) / HIDDEN_LEVELS
        order = torch.randperm(3, generator=generator)
        pictures = pictures[:, torch.cat([order, 3 + order, torch.arange(COLOURS, channels(network.chunk))])]
        if torch.rand((), generator=generator) < 0.5 and mirror is not None:
            pictures, mask, plan = pictures.flip(3), mask.flip(2), plan * mirror
            is_known, hidden = is_known.flip(3), hidden.flip(3)
            pushed_mask, rest, pushed = pushed_mask.flip(2), rest * _flipped(across), pushed * _flipped(across)
        gain = 1 + BRIGHTNESS * share.own(torch.randn(batch, 1, 1, 1, generator=generator))
        noise = NOISE * share.own(torch.randn(batch, COLOURS, *pictures.shape[2:], generator=generator))
        pictures = torch.cat([pictures[:, :COLOURS] * gain + noise, pictures[:, COLOURS:]], dim=1)
        said, moves = network(pictures, plan), part.moves.float()
        weight = torch.where(part.grasps, GRASPED_WEIGHT, 1.0)
        parts = {
            "moves": share.mean(F.binary_cross_entropy_with_logits(said.moves, moves)),
            "grasps": share.mean(_cross_entropy(said.grasps, part.grasps) * weight, part.closes),
            "rest_cm": share.mean((said.rest - rest).abs().mean((1, 2)) * 100, part.moves),
            "mask": share.mean(_cross_entropy(said.mask, mask).mean((1, 2)), part.moves),
            "hidden": share.mean(_cross_entropy(said.hidden, hidden), is_known),
            "pushes": share.mean(F.binary_cross_entropy_with_logits(said.pushes, part.pushes.float())),
            "pushed_cm": share.mean((said.pushed - pushed).abs().mean(1) * 100, part.pushes),
            "stop_cm": share.mean(_stop_error(said, part) * 100),
            "opening": share.mean(_opening_error(said, part), part.opening >= 0),
            "pushed_mask": share.mean(_cross_entropy(said.pushed_mask, pushed_mask).mean((1, 2)), part.pushes),
        }
        rest_loss = parts["rest_cm"] * (REST_SCALE / 100 * 3 * network.chunk)
        value = parts["moves"] + GRASP_WEIGHT * parts["grasps"] + REST_WEIGHT * rest_loss + MASK_WEIGHT * parts["mask"]
        value = value + HIDDEN_WEIGHT * parts["hidden"] + PUSH_WEIGHT * parts["pushes"]
        value = value + MASK_WEIGHT * parts["pushed_mask"] + OPENING_WEIGHT * parts["opening"]
        value = value + REST_WEIGHT * parts["pushed_cm"] * (REST_SCALE / 100 * 3) + STOP_WEIGHT * parts["stop_cm"]
        return value, {name: part.item() for name, part in parts.items()}

    return loss


def _stop_error(said: Touch, part: Contacts) -> Tensor:  # [B] m
    """The error of a predicted stop.

    If the gripper was stopped: the absolute error, smooth below STOP_SMALL_M. If not: how far the prediction lies above
    the lowest height that was reached, less STOP_FREE_M. 0 if the network predicts no stop.
    """
    if said.stop is None:
        return torch.zeros_like(part.stop)
    off = F.smooth_l1_loss(said.stop, torch.where(part.is_stopped, part.stop, 0.0), beta=STOP_SMALL_M, reduction="none")
    return torch.where(part.is_stopped, off, F.relu(said.stop - part.stop + STOP_FREE_M))


def _opening_error(said: Touch, part: Contacts) -> Tensor:  # [B]
    return torch.zeros_like(part.opening) if said.opening is None else (said.opening - part.opening).abs()


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")


def axis_across(camera: Tensor) -> int | None:  # [N, 3, 4]
    """The axis of the world (0: x, 1: y, 2: z) whose sign changes if the pictures of all these cameras are mirrored.

    It is parallel to the rows of the pictures, and the cameras' own coordinate on it is 0. None: there is no such axis.
    """
    row, axis = camera[:, 0, :3], camera[:, 2, :3]
    row = row - (row * axis).sum(1, keepdim=True) * axis
    along = (row / row.norm(dim=1, keepdim=True)).abs().amin(0)
    place = torch.linalg.solve(camera[:, :, :3].double(), -camera[:, :, 3].double())
    across = int(along.argmax())
    return across if along[across] > SQUARE and place[:, across].abs().max() < MIDDLE_M else None


def _flipped(across: int) -> Tensor:  # [3], factors of a position when pictures are mirrored
    sign = torch.ones(3)
    sign[across] = -1
    return sign


def _mirror(chunk: int, across: int = 0) -> Tensor:  # [numbers(chunk)]
    """Factors of a plan's numbers when pictures are mirrored: positions on the axis and turns about the others flip."""
    steps, sign = chunk + 1, _flipped(across)
    plan = [sign.repeat(steps), torch.ones(steps), torch.ones(chunk), -sign.repeat(steps), torch.ones(1), sign]
    assert len(torch.cat(plan)) == numbers(chunk)
    return torch.cat(plan)
