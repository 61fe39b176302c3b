"""Whether the parts of a run fit a card together, and how long a run takes there: arithmetic, nothing is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from worldenv.nn.cost import Cost

WORK_SHARE = 0.1  # of a card's memory that is left for passes without a gradient and for fragments
# Of each number that learns, beside its weight: gradient and two moments of Adam in float32, the sum of gradients and
# its place in the exchanged buffer in float64.
OPTIMISER_BYTES = 28


@dataclass(frozen=True)
class Card:
    """What is assumed of a device."""

    gigabytes: float  # 10^9 bytes
    tflops: float | None  # matrix peak in the dtype of the weights, 10^12 a second; None: not known
    share: float  # of it that a run reaches
    link: float = 10.0  # 10^9 bytes a second between card and host memory: a guess


@dataclass(frozen=True)
class Work:
    """How much a run is to do. Every episode is counted as if it went to the horizon."""

    episodes: int  # of an iteration, N x G
    chunks: int  # of an episode, T
    iterations: int
    epochs: int
    at_once: int  # chunks of a backward pass
    frame_bytes: int  # of the frames that a resident episode shows
    off_policy: bool = False  # a copy of the weights that learn acts, and the records of two iterations are kept


@dataclass(frozen=True)
class Fit:
    """What a card can hold, and hours; None where a part is not counted."""

    weight_bytes: int
    learning_bytes: int  # gradients and moments; off policy, also the copy that acts
    update_bytes: int  # activations of a backward pass
    record_bytes: int  # of all episodes of an iteration
    slot_bytes: int  # of one episode
    room_bytes: int  # that is left for slots; below 0: it does not fit
    resident: int  # episodes that fit, at most those of an iteration
    idle_bytes: int  # weights that nothing reads during the update
    apart_room_bytes: int  # that is left for slots if the idle parts are in host memory meanwhile
    apart_resident: int  # episodes that fit then
    apart_s: float  # seconds of an iteration that moving them takes
    rollout_hours: float | None
    update_hours: float | None


def fit(policy: Cost, others: Sequence[Cost], card: Card, work: Work) -> Fit:
    """Slots and the activations of the update are not needed at one time, but the allocator may keep both: they add up.

    Where the idle parts are in host memory during the update, the slots are given up, too: then rollout and update have
    to fit each by itself. What is not counted of a part adds nothing.
    """
    parts = [policy, *others]
    weights = sum(part.weight_bytes for part in parts)
    learning = (OPTIMISER_BYTES + 4 * work.off_policy) * policy.learns
    update = work.at_once * (policy.update_bytes or 0)
    slot = work.frame_bytes + sum(part.slot_bytes or 0 for part in parts)
    records = (1 + work.off_policy) * work.episodes * work.chunks * (policy.record_bytes or 0)
    idle = sum(part.weight_bytes for part in others)
    room = int((1 - WORK_SHARE) * card.gigabytes * 1e9) - weights - learning - update - records
    while_learning = room + idle
    apart = room + update if while_learning >= 0 else while_learning
    resident, apart_resident = (min(work.episodes, max(0, left) // slot) for left in (room, apart))
    chunks, an_hour = work.iterations * work.episodes * work.chunks, card.share * (card.tflops or 0) * 1e12 * 3600
    counted = [part.chunk_flops for part in parts]
    rollout = None if None in counted or not an_hour else chunks * sum(counted) / an_hour
    learnt = (
        None if policy.update_flops is None or not an_hour else chunks * work.epochs * policy.update_flops / an_hour
    )
    beside = idle, apart, apart_resident, 2 * idle / (card.link * 1e9)
    return Fit(weights, learning, update, records, slot, room, resident, *beside, rollout, learnt)
