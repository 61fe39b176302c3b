"""Stills of LIBERO Object: pictures of its scenes with the things in other places, and an answer for every thing.

They are made from recorded states of the expert's episodes. Many have a plan, too: the next actions of the expert with
a thing that some of these episodes' tasks ask for. No plan is made for other things. A file keeps `PART` of the stills
as soon as they are made, so an interrupted run loses at most one file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldenv.data.demonstration import Demonstration
from worldenv.data.disturbed import Stills
from worldenv.errors import UserError
from worldenv.records.checksum import checksum
from worldenv.records.kept import Kept
from worldenv.records.progress import Progress
from worldenv.suites.libero.rearranged import OPEN, Rearranged
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.suites.libero.tasks import thing_of

AT_ONCE = 50  # stills of one request to a process: some seconds
PART = 500  # stills of a file, give or take some: a minute
OPEN_SHARE = 0.75  # of the stills show an open hand, for which there is mostly a plan
VERSION = 3  # of what is drawn from the same states


def draw_stills(count: int, acted: Sequence[Demonstration], suite: LiberoSuite, chunk: int, folder: Path) -> Stills:
    """Make `count` stills from the successful episodes, with plans of `chunk` actions.

    Each episode gives the same number, or one more. Places are measured from the base of the robot. The stills do not
    depend on the number of workers. Raises UserError if no episode is successful.
    """
    shown = sorted((demo for demo in acted if demo.success), key=lambda demo: demo.trajectory.task)
    if not shown:
        raise UserError(
            f"the expert failed in all {len(acted)} episodes for pretraining on {suite.name}, so there are no scenes "
            "to draw stills in; give more --scratch.pretraining-episodes"
        )
    how = sorted({f"{thing_of(demo.trajectory.task)}_1" for demo in shown}), chunk, suite.repeat
    kept = Kept(folder, checksum([VERSION, suite.size, suite.views[0], suite.pictures, *how], {}))
    each = [len(part) for part in np.array_split(np.arange(count), len(shown))]
    requests = [request for pair in zip(shown, each, strict=True) for request in _requests(*pair)]
    made: list[Rearranged] = []
    with Progress(count, f"stills of {suite.name}") as progress:
        for number, first in enumerate(range(0, len(requests), PART // AT_ONCE)):
            some = requests[first : first + PART // AT_ONCE]
            made += _kept(suite, some, how, kept, f"stills-{number}")
            progress.advance(sum(len(states) for _, states, _ in some))
    return _joined(made, suite)


Request = tuple[Demonstration, np.ndarray, list[int]]  # an episode, states of it [M, S], and the seed of new places


def _requests(demo: Demonstration, count: int) -> list[Request]:
    """`count` random states of an episode, some in each request. The same count always gives the same states."""
    states, start = np.asarray(demo.extras["states"]), demo.trajectory.start % 2**64
    is_open = demo.trajectory.proprio[: len(states), 6] > OPEN
    share = np.where(is_open, OPEN_SHARE / max(is_open.sum(), 1), (1 - OPEN_SHARE) / max((~is_open).sum(), 1))
    chosen = np.random.default_rng(start).choice(len(states), count, p=share / share.sum())
    return [(demo, states[chosen[first : first + AT_ONCE]], [start, first]) for first in range(0, count, AT_ONCE)]


def _kept(suite: LiberoSuite, requests: Sequence[Request], how: tuple, kept: Kept, name: str) -> list[Rearranged]:
    """What the suite's processes make of requests, or have made of them before."""
    episodes = [(demo.trajectory.task, demo.trajectory.start, demo.trajectory.split) for demo, _, _ in requests]
    states, seeds = [own for _, own, _ in requests], [seed for _, _, seed in requests]

    def make() -> dict[str, np.ndarray]:
        given = [(*one, *how) for one in zip(states, seeds, strict=True)]
        made = enumerate(suite.ask("rearrange", episodes, given))
        return {f"{i} {field}": value for i, one in made for field, value in one._asdict().items()}

    found = kept.arrays(name, make, np.array(seeds, dtype=np.uint64), *states)
    return [Rearranged(*(found[f"{i} {field}"] for field in Rearranged._fields)) for i in range(len(requests))]


def _joined(parts: Sequence[Rearranged], suite: LiberoSuite) -> Stills:
    """Pictures of scenes with different things, with columns for the things of all tasks of the suite."""
    told = {thing_of(task.name): task.instruction for task in suite.listed}
    column = {thing: i for i, thing in enumerate(told)}
    m = sum(len(part.frames) for part in parts)
    shown, done = np.zeros((2, m, len(told)), dtype=bool)
    place, row = np.zeros((m, len(told), 6), dtype=np.float32), 0
    asked = np.full(m, -1)
    for part in parts:
        columns = np.array([column[name.rpartition("_")[0]] for name in part.names.tolist()])  # milk_1 is a milk
        rows = np.arange(row, row + len(part.frames))
        at = np.ix_(rows, columns)
        shown[at], done[at] = True, part.done
        asked[rows] = np.where(part.asked < 0, -1, columns[part.asked])
        goal = np.broadcast_to(part.goal[:, None], part.place.shape)
        place[at] = np.concatenate([part.place, goal], axis=-1)
        row += len(rows)
    names = "frames", "proprio", "plan"
    frames, proprio, plan = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    return Stills(frames, proprio, shown, place, done, asked, plan, tuple(told.values()))
