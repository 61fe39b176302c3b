"""The true things of recorded episodes of a suite whose processes can act them out again."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.records.progress import Progress
from worldenv.suites.held import HeldSuite
from worldenv.suites.offscreen import Trace

SAME = 1e-3  # most that proprioception differs in the same episode
THERE = 0.1 * 255  # of a pixel: from there on a thing is there


class TracedThings:
    """`TrueThings` of N episodes whose recorded actions were carried out: rigid bodies in MuJoCo.

    They are found and drawn by the suite's processes (worldenv/suites/bodies.py). Raises UserError if an episode takes
    another course when it is acted out again.
    """

    def __init__(
        self,
        suite: HeldSuite,
        episodes: Sequence[tuple[str, int, str]],  # N: task, start state, split
        traces: Sequence[Trace],
        steps: int,  # T: of the longest
    ):
        self.suite, self.episodes, self._qpos = suite, episodes, [trace.qpos for trace in traces]
        self.size = suite.size, suite.size
        most = max(trace.centre.shape[1] for trace in traces)
        number = [np.minimum(np.arange(steps + 1), len(trace.held) - 1) for trace in traces]
        more = [((0, 0), (0, most - trace.centre.shape[1]), (0, 0)) for trace in traces]
        self.centre = np.stack([np.pad(t.centre, add)[i] for t, add, i in zip(traces, more, number, strict=True)])
        self.held = np.stack([trace.held[i] for trace, i in zip(traces, number, strict=True)])
        self.movable = np.stack([np.arange(most) < trace.centre.shape[1] for trace in traces])

    @classmethod
    def of(cls, clips: Clips, suite: HeldSuite) -> Self:
        """Those of recorded episodes of the suite, which are acted out again."""
        episodes, lengths = clips.begun(), clips.length.tolist()
        actions = (
            clips.actions.double().clamp(-1, 1).repeat_interleave(suite.repeat, 1).unflatten(1, (-1, suite.repeat))
        )
        given = [(own[:length].numpy(),) for own, length in zip(actions, lengths, strict=True)]
        with Progress(len(episodes), f"true things of {suite.name}") as progress:
            traces = suite.ask("trace", episodes, given, progress)
        for (task, start, _), trace, proprio in zip(episodes, traces, clips.proprio.numpy(), strict=True):
            apart = np.abs(trace.proprio - proprio[: len(trace.proprio)]).max()
            if apart > SAME:
                raise UserError(
                    f"an episode of {task} (start {start}) took another course when it was acted out again: "
                    f"proprioception is off by {apart:.2g}. The labels of the composer need recorded actions that were "
                    "carried out, and the same simulator: record the episodes here"
                )
        return cls(suite, episodes, traces, clips.actions.shape[1])

    def coverage(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> np.ndarray:  # [M] int64 each
        return self._outlines(episode, step, thing, True)

    def occlusion(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        alone, among = (self._outlines(episode, step, thing, is_alone).astype(np.float32) for is_alone in (True, False))
        is_there = alone > THERE
        hidden = np.where(is_there, 255 * (1 - among / alone.clip(1)).clip(0, 1), 0)
        return is_there, hidden.round().astype(np.uint8)

    def _outlines(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray, alone: bool) -> np.ndarray:
        if not len(episode):
            return np.zeros((0, *self.size), dtype=np.uint8)
        ends = np.array([len(qpos) - 1 for qpos in self._qpos])
        keys = np.stack([episode, np.minimum(step, ends[episode]), thing], axis=1)
        keys, row = np.unique(keys, axis=0, return_inverse=True)  # neighbouring chunks ask for the same
        found, first = np.unique(keys[:, 0], return_index=True)
        parts = np.split(keys, first[1:])
        given = [(self._qpos[e][part[:, 1]], part[:, 2], alone) for e, part in zip(found, parts, strict=True)]
        return np.concatenate(self.suite.ask("outlines", [self.episodes[e] for e in found], given))[row.ravel()]
