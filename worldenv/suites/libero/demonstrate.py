"""Episodes of LIBERO's scripted expert, to show tasks and to pretrain on.

Each is kept in a file of its own as soon as it has been acted out, so an interrupted recording goes on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldenv.data.demonstration import Demonstration, load_demonstration, save_demonstration
from worldenv.data.disturbed import Disturbed, Stills
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.files import remove_temporary
from worldenv.records.progress import Progress
from worldenv.suites.libero.stills import draw_stills
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.suites.libero.tasks import HORIZONS, PICKED, LiberoTask

PRETRAINING = "libero_90"
_TRIES, _APART = 3, 1_000_000_000  # start states that are tried in place of one, and how far their numbers are apart
_MIDDLE_M = np.array([0.6, 0.0, 0.1] * 2, dtype=np.float32)  # of what lies before the robot, from its base


def demonstrate(
    suite: LiberoSuite, tasks: Sequence[LiberoTask], starts: Sequence[int], split: str, folder: Path
) -> list[Trajectory]:
    """One expert episode for each (task, start); where the expert fails, from another start state in its place.

    What is carried out has noise, of another scale in every episode; what is recorded is what the expert wanted.
    Raises UserError if it fails there again and again.
    """
    made = _acted_out(suite, tasks, starts, split, folder)
    for task, demo in zip(tasks, made, strict=True):
        if not demo.success:
            raise UserError(f"the expert failed at {task.name} from {_TRIES} start states; the last time: {demo.told}")
    return [demo.trajectory for demo in made]


def disturb(episodes: int, stills: int, seed: int, chunk: int, like: LiberoSuite, folder: Path) -> Disturbed:
    """Noisy episodes of the expert at other tasks than a suite has: of its benchmark and of libero_90, in turn.

    The plan from a state are the actions that the expert wants from then on, along the disturbed way. An episode in
    which it fails is left out. Where things are shuffled, the hand begins at a random place, which shows the way to a
    thing from everywhere. All are as long as the longest: they go on as they ended. `stills` pictures are drawn in the
    scenes of the benchmark's episodes. Raises UserError if all episodes fail; with stills, also if all of the benchmark
    fail, or if the suite leaves none of its benchmark's tasks out.
    """
    made: dict[int, Demonstration] = {}
    drawn: Stills | None = None
    rows = {like.name: range(0, episodes, 2), PRETRAINING: range(1, episodes, 2)}
    if all(task.name in like.known for task in like.listed):  # it leaves none of its benchmark out
        rows = {PRETRAINING: range(episodes)}
        if stills:
            raise UserError(f"stills need tasks of {like.name} that the suite leaves out, and it has all of them")
    for name, numbers in rows.items():
        if numbers:
            suite = _to_pretrain_on(name, like)
            tasks = [task for task in suite.tasks if _is_for_pretraining(task, name, like)]
            chosen = [tasks[i % len(tasks)] for i in range(len(numbers))]
            try:
                starts = [seed * 1_000_000 + i for i in numbers]
                acted = _acted_out(suite, chosen, starts, "train", folder, detour=suite.shuffled)
                if stills and name == like.name:
                    drawn = draw_stills(stills, acted, suite, chunk, folder)
            finally:
                suite.close()
            made |= {i: demo for i, demo in zip(numbers, acted, strict=True) if demo.success}
    if not made:
        raise UserError(
            f"the expert failed in all {episodes} episodes for pretraining; the first time: {acted[0].told}; give more "
            "--scratch.pretraining-episodes"
        )
    if drawn is not None:
        drawn = replace(drawn, place=drawn.place - _MIDDLE_M)
    return replace(_stacked([made[i] for i in sorted(made)], chunk), stills=drawn)


def _to_pretrain_on(name: str, like: LiberoSuite) -> LiberoSuite:
    """All tasks of a benchmark, as the tasks of another suite are shown and carried out."""
    return LiberoSuite(
        name,
        size=like.size,
        views=like.views,
        repeat=like.repeat,
        pictures=like.pictures,
        workers=like.workers,
        shuffled=like.shuffled and name == like.name,
        program=like.program,
    )


def _is_for_pretraining(task: LiberoTask, name: str, like: LiberoSuite) -> bool:
    if name == PRETRAINING:
        return task.name.endswith(PICKED) and "stack" not in task.name
    return task.name not in like.known


def _acted_out(
    suite: LiberoSuite,
    tasks: Sequence[LiberoTask],
    starts: Sequence[int],
    split: str,
    folder: Path,
    detour: bool = False,
) -> list[Demonstration]:
    """For each (task, start) the first episode that succeeds, or the last one that was tried. `folder` keeps all."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    horizon = HORIZONS[suite.name] // suite.repeat
    numbers, made = list(starts), {}

    def path(row: int) -> Path:
        return folder / f"{suite.name}.{tasks[row].name}.{split}.{numbers[row]}{'.detour' * detour}.npz"

    there = sum(path(row).exists() for row in range(len(tasks)))
    with Progress(len(tasks), f"the expert of {suite.name}", done=there) as progress:
        for attempt in range(_TRIES):
            left = [row for row in range(len(tasks)) if row not in made or not made[row].success]
            numbers = [start + attempt * _APART for start in starts]
            new = [row for row in left if not path(row).exists()]
            made |= {row: load_demonstration(path(row)) for row in left if row not in new}
            for group in suite.groups([tasks[row] for row in new]):
                rows = [new[i] for i in group]
                given = [tasks[row] for row in rows], [numbers[row] for row in rows], split
                for row, demo in zip(rows, suite.demonstrate(*given, horizon=horizon, detour=detour), strict=True):
                    save_demonstration(path(row), demo)
                    made[row] = demo
                progress.advance(len(rows) * (attempt == 0), failed=sum(not demo.success for demo in made.values()))
    return [made[row] for row in range(len(tasks))]


def _stacked(made: Sequence[Demonstration], chunk: int) -> Disturbed:
    shown = [demo.trajectory for demo in made]
    steps = max(len(one.actions) for one in shown)

    def padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:  # [n, ...] each -> [N, length, ...]
        return np.stack([array[np.minimum(np.arange(length), len(array) - 1)] for array in arrays])

    ahead = np.arange(steps)[:, None] + np.arange(chunk)
    return Disturbed(
        frames=padded([one.frames[:, 0] for one in shown], steps + 1),
        proprio=padded([one.proprio for one in shown], steps + 1),
        actions=padded([one.actions for one in shown], steps),
        plans=np.stack([one.actions[np.minimum(ahead, len(one.actions) - 1)] for one in shown]),
        success=padded([np.r_[False, one.success] for one in shown], steps + 1),
        place=padded([demo.places for demo in made], steps + 1) - _MIDDLE_M,
        states=None,
        instructions=tuple(one.instruction for one in shown),
    )
