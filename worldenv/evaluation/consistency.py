"""Does imagination tell the truth? Things, outcomes, what it is unsure of, the reflector's calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.agreement import agreement, outcomes
from worldenv.evaluation.calibration import calibration, stop_errors
from worldenv.evaluation.divergence import PHASES, begin_of_divergence
from worldenv.evaluation.guard import guard
from worldenv.evaluation.replayed import Replayed
from worldenv.evaluation.things import Chunks, aimed_thing, late_frames, permanence, project
from worldenv.evaluation.truth import Outcome
from worldenv.interfaces.suite import PARTS, Suite, Task, Things
from worldenv.rollout.episodes import Rollouts


@dataclass(frozen=True)
class Looked:
    """Episodes that the suite's detector has looked at."""

    chunks: Chunks
    late: Things  # of the first frame and three late ones


def has_detector(suite: Suite) -> bool:
    """Whether the suite offers the optional `find_things`."""
    return hasattr(suite, "find_things")


def consistency(
    suite: Suite,
    tasks: Sequence[Task],  # of the trajectories
    trajectories: Sequence[Trajectory],
    true: Outcome,  # of them
    imagined: Rollouts,  # of the first n starts, on the CPU; to the horizon and with video if the suite has a detector
    replayed: Replayed,  # the first of the trajectories
    seed: int,
    likely: float | None = None,  # of the reflector
) -> dict:
    """What result.json holds as `consistency`; docs/results.md says what each figure means.

    `things` is there only for a suite with a detector. Raises UserError if the detector does not return what
    `interfaces.suite.Things` says.
    """
    ends = outcomes(imagined, trajectories, likely)
    names = [task.name for task in tasks]
    out = {
        "agreement": agreement(*ends, names[: len(ends[0])], seed),
        "guard": guard(imagined.unsure().numpy(), ends[0] != ends[1]),
        "reflector": _reflector(true, trajectories, replayed),
    }
    if has_detector(suite):
        looked = look_at_all(suite, tasks, trajectories, imagined, replayed)
        out["things"] = {
            "moved_thing": {name: aimed_thing(part.late) for name, part in looked.items()},
            "by_chunk": {name: permanence(part.chunks) for name, part in looked.items()},
            "not_followed": sorted(
                {name for name, aim in zip(names, looked["true"].late.aim, strict=False) if aim < 0}
            ),
        }
        _, phase = begin_of_divergence(looked["true"].chunks, looked["imagined"].chunks)
        differ = ends[0] != ends[1]
        out["agreement"]["begins"] = {name: int((phase[differ] == name).sum()) for name in PHASES}
    return out


def _reflector(true: Outcome, trajectories: Sequence[Trajectory], replayed: Replayed) -> dict:
    success = np.stack([t.success for t in trajectories])
    on_true = {"false_stop": true.false_stop, "missed_stop": true.missed_stop}
    return {
        "true": calibration(true.reward, success) | on_true,
        "replayed": calibration(replayed.reward, replayed.success) | stop_errors(replayed.stop, replayed.success),
    }


def look_at_all(
    suite: Suite,
    tasks: Sequence[Task],
    trajectories: Sequence[Trajectory],
    imagined: Rollouts,
    replayed: Replayed,
) -> dict[str, Looked]:
    """The detector's look at imagined, replayed and true episodes from the same starts, over as many chunks.

    A chunk is as long as the policy's.
    """
    some, again = trajectories[: len(imagined.stopped)], replayed.trajectories
    k = imagined.action.shape[2]
    steps = min(imagined.video.shape[1], replayed.frames.shape[1], len(some[0].frames)) - 1
    columns = {
        "imagined": (some, imagined.video.numpy(), imagined.proprio.numpy()),
        "replayed": (again, replayed.frames.numpy(), np.stack([t.proprio for t in again])),
        "true": (some, np.stack([t.frames for t in some]), np.stack([t.proprio for t in some])),
    }
    return {
        name: look(suite, tasks[: len(part)], part, frames, proprio, k, steps)
        for name, (part, frames, proprio) in columns.items()
    }


def look(
    suite: Suite,
    tasks: Sequence[Task],  # N
    trajectories: Sequence[Trajectory],  # N, from whose starts the frames come
    frames: np.ndarray,  # [N, T + 1, V, H, W, 3] uint8, true or imagined
    proprio: np.ndarray,  # [N, T + 1, P] float32
    k: int,  # actions of a chunk
    steps: int,  # T at most: what to look at
) -> Looked:
    """Show the detector the first frame, the last one of every whole chunk, and three late ones."""
    count, late = steps // k, late_frames(steps)
    whole = [k * i for i in range(count + 1)]
    found = suite.find_things(frames[:, [*whole, *late]], tasks)
    _check_things(found, len(frames), len(whole) + len(late))
    cameras, gripper = [t.camera for t in trajectories], None
    if suite.robot.gripper is not None and all(map(_stands_still, cameras)):
        seen = np.stack([t.first_camera for t in trajectories])
        gripper = project(proprio[:, : count * k + 1], seen, suite.robot)
    chunks = Chunks(found.at(range(len(whole))), gripper, k, frames.shape[4])
    return Looked(chunks, found.at([0, *range(len(whole), len(whole) + len(late))]))


def _stands_still(camera: np.ndarray | None) -> bool:
    """Whether the camera of the first view, where the detector looks, is known and one for all frames."""
    return camera is not None and (camera.ndim == 3 or bool((camera[:, 0] == camera[0, 0]).all()))


def _check_things(found: object, n: int, frames: int) -> None:
    if not isinstance(found, Things):
        raise UserError(f"the suite's `find_things` returned a {type(found).__name__}; it should be Things")
    looks = np.shape(found.known)[-1:]
    shapes = {
        "area": (n, frames, *looks, PARTS),
        "centre": (n, frames, *looks, PARTS, 2),
        "known": (n, *looks),
        "aim": (n,),
    }
    for name, shape in shapes.items():
        if np.shape(getattr(found, name)) != shape:
            got = list(np.shape(getattr(found, name)))
            raise UserError(f"the suite's `find_things` returned {name} {got}; it should be {list(shape)}")
    if len(found.aim) and not -1 <= found.aim.min() <= found.aim.max() < looks[0]:
        raise UserError(f"the suite's `find_things` returned an aim outside -1 to {looks[0] - 1}")
