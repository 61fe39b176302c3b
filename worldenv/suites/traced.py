"""The true things of recorded episodes of a suite whose processes can carry out the recorded actions again."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self

import numpy as np

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.interfaces.true_things import Beside
from worldenv.records.kept import NOT_KEPT, Kept
from worldenv.records.progress import Progress
from worldenv.suites.held import HeldSuite
from worldenv.suites.offscreen import Trace

SAME = 1e-3  # largest difference of proprioception between a recorded episode and its repetition
THERE = 0.1 * 255  # a thing is in a pixel if it covers more of it than this; 255: all


class TracedThings:
    """`TrueThings` of N episodes: rigid bodies in MuJoCo. The recorded actions have to be those that were carried out.

    The suite's processes find and draw the things (worldenv/suites/bodies.py). `of` raises UserError if an episode
    differs from the recording when its actions are carried out again.
    """

    held_follows = False

    def __init__(
        self,
        suite: HeldSuite,
        episodes: Sequence[tuple[str, int, str]],  # N: task, start state, split
        actions: Sequence[np.ndarray],  # N, [n, repeat, A] each, from the beginning of each episode
        traces: Sequence[Trace],  # N: of the episodes, or of chunks that were tried in them
        steps: int,  # T, the actions of the longest trace
    ):
        self.suite, self.episodes, self.actions = suite, episodes, actions
        self._qpos = [trace.qpos for trace in traces]
        self.size = suite.size, suite.size
        most = max(trace.centre.shape[1] for trace in traces)
        number = [np.minimum(np.arange(steps + 1), len(trace.held) - 1) for trace in traces]
        more = [((0, 0), (0, most - trace.centre.shape[1]), (0, 0)) for trace in traces]
        self.centre = np.stack([np.pad(t.centre, add)[i] for t, add, i in zip(traces, more, number, strict=True)])
        self.held = np.stack([trace.held[i] for trace, i in zip(traces, number, strict=True)])
        self.movable = np.stack([np.arange(most) < trace.centre.shape[1] for trace in traces])

    @classmethod
    def of(cls, clips: Clips, suite: HeldSuite, kept: Kept = NOT_KEPT) -> Self:
        """The true things of recorded episodes of the suite, whose actions are carried out again. Traces are kept."""
        lengths, repeated = clips.length.tolist(), _as_carried_out(clips.actions.numpy(), suite)
        actions = [own[:length] for own, length in zip(repeated, lengths, strict=True)]

        def make() -> dict[str, np.ndarray]:
            traces = enumerate(_traces(clips, suite, actions))
            return {f"{i} {name}": value for i, trace in traces for name, value in trace._asdict().items()}

        found = kept.arrays("traces", make)
        traces = [Trace(*(found[f"{i} {name}"] for name in Trace._fields)) for i in range(len(clips))]
        return cls(suite, clips.begun(), actions, traces, clips.actions.shape[1])

    def coverage(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> np.ndarray:  # [M] int64 each
        return self._outlines(episode, step, thing, True)[0]

    def occlusion(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        alone, among = self._outlines(episode, step, thing, True, False).astype(np.float32)
        is_there = alone > THERE
        hidden = np.where(is_there, 255 * (1 - among / alone.clip(1)).clip(0, 1), 0)
        return is_there, hidden.round().astype(np.uint8)

    def _outlines(
        self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray, *alone: bool
    ) -> np.ndarray:  # [n, M, H, W] uint8, for each of the n values of `alone`
        ends = np.array([len(qpos) - 1 for qpos in self._qpos])
        keys = np.stack([episode, np.minimum(step, ends[episode]), thing], axis=1)
        keys, row = np.unique(keys, axis=0, return_inverse=True)  # neighbouring chunks need the same pictures
        poses = [self._qpos[e][t] for e, t, _ in keys]

        def given(rows: list[int]) -> tuple:
            return np.stack([poses[row] for row in rows]), keys[rows, 2], alone

        began = [self.episodes[e] for e in keys[:, 0]]
        return np.stack(self._asked("outlines", keys[:, 0], began, given), axis=1)[:, row.ravel()]

    def beside(self, episode: np.ndarray, step: np.ndarray, offset: np.ndarray, actions: np.ndarray) -> Beside:
        """At steps of episodes, move the hand by offsets [M, 3] (m) and carry out actions [M, K, A]."""
        tried = _as_carried_out(actions, self.suite)

        def given(rows: list[int]) -> tuple:
            return self.actions[episode[rows[0]]], step[rows], offset[rows], tried[rows]

        frames, traces = zip(*self._asked("beside", episode, episode.tolist(), given), strict=True)
        own = [self.episodes[e] for e in episode], [self.actions[e] for e in episode]
        things = TracedThings(self.suite, *own, traces, actions.shape[1])
        return Beside(np.stack(frames), np.stack([trace.proprio for trace in traces]), things)

    def _asked(
        self,
        request: str,
        episode: np.ndarray,  # [M] int64
        alike: Sequence[Hashable],  # M: rows with equal values go into one request
        given: Callable[[list[int]], tuple],  # rows of one request -> its arguments
    ) -> list[Any]:  # M answers
        groups: dict[Hashable, list[int]] = {}
        for row, key in enumerate(alike):
            groups.setdefault(key, []).append(row)
        parts, out = list(groups.values()), {}
        answers = self.suite.ask(request, [self.episodes[episode[rows[0]]] for rows in parts], list(map(given, parts)))
        for rows, answer in zip(parts, answers, strict=True):
            out |= zip(rows, answer, strict=True)
        return [out[row] for row in range(len(alike))]


def _traces(clips: Clips, suite: HeldSuite, actions: Sequence[np.ndarray]) -> list[Trace]:
    """Carry out the actions of recorded episodes again. Raises UserError if one differs from the recording."""
    episodes = clips.begun()
    with Progress(len(episodes), f"true things of {suite.name}") as progress:
        traces = suite.ask("trace", episodes, [(own,) for own in actions], progress)
    for (task, start, _), trace, proprio in zip(episodes, traces, clips.proprio.numpy(), strict=True):
        apart = np.abs(trace.proprio - proprio[: len(trace.proprio)]).max()
        if apart > SAME:
            raise UserError(
                f"an episode of {task} (start {start}) differs from its recording when its actions are carried out "
                f"again: proprioception is off by {apart:.2g}. The labels of the composer need recorded actions "
                "that were carried out, and the simulator that recorded them: record the episodes on this machine"
            )
    return traces


def _as_carried_out(actions: np.ndarray, suite: HeldSuite) -> np.ndarray:  # [N, T, A] -> [N, T, repeat, A] float64
    return actions.astype(np.float64).clip(-1, 1)[:, :, None].repeat(suite.repeat, axis=2)
