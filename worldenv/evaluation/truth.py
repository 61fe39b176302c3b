"""The policy in the true environment, stopped three ways: by an oracle, by the reflector, not at all."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldenv.data.record import Record
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.observation import Key, Observation, Starts, table_of
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.suite import Suite, Task
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records.intervals import wilson_interval
from worldenv.records.progress import Progress
from worldenv.rollout.checks import (
    Untouched,
    check_begun,
    check_count,
    check_judged,
    check_members,
    check_rewards,
    check_seed,
    check_state,
    check_stepped,
    check_suite,
    given_tensor,
)
from worldenv.rollout.decide import check_views, decide
from worldenv.rollout.modes import own_modes

RULES = ("oracle", "own_stop", "no_stop")
POLICY_BATCH, REFLECTOR_BATCH, FRAMES_AT_ONCE = 128, 64, 8
Act = Callable[[Observation, int], np.ndarray]  # observation and number of the chunk -> actions [E, K, A] in [-1, 1]


def act_in_true(
    policy: Policy,
    suite: Suite,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    perturb: float | Tensor = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """One true episode per (task, start state) up to the horizon, in chunks.

    action = mean + perturb * (draw - mean). `perturb` is one number, or one for each episode [E]; 0 gives the mean.
    A suite that holds fewer episodes acts them out group by group, with the same random numbers; `progress` advances by
    one after each group (`groups_of` counts them). Several ranks share the episodes: rank 0 returns
    all, the others nothing.

    Raises UserError for arguments of another kind, and if suite or policy do not return what their interfaces say.
    """
    return in_order(_acted(policy, suite, tasks, starts, split, perturb, seed, progress, ranks), ranks)


def act_and_judge(
    policy: Policy,
    suite: Suite,
    reflector: Reflector,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[Trajectory], np.ndarray, np.ndarray]:  # E episodes; [E, T] float32; [E, T] bool
    """True episodes of the mean action, with the reflector's rewards and stops.

    As `act_in_true` and `judge_trajectories`: each rank judges what it has acted out. Ranks but the first one return
    nothing.
    """
    own = dict(sorted(_acted(policy, suite, tasks, starts, split, 0.0, 0, progress, ranks).items()))
    judged = judge_trajectories(reflector, [*own.values()]) if own else ((), ())
    found = in_order(dict(zip(own, zip(own.values(), *judged, strict=True), strict=True)), ranks)
    if not found:
        return [], np.zeros((0, 0), np.float32), np.zeros((0, 0), bool)
    trajectories, reward, stop = zip(*found, strict=True)
    return [*trajectories], np.stack(reward), np.stack(stop)


def _acted(
    policy: Policy,
    suite: Suite,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    perturb: float | Tensor,
    seed: int,
    progress: Progress | None,
    ranks: Ranks,
) -> dict[int, Trajectory]:
    """The episodes of this rank, by row."""

    def recorded(rows: list[int], begun: Starts, act: Act) -> list[Trajectory]:
        seen, record = begun.seen, Record(suite, begun)
        for step in range(suite.horizon):
            k = step % policy.chunk
            if k == 0:
                chunk = act(seen, step // policy.chunk)
            seen = record.step(chunk[:, k])
            check_stepped(seen, record.success[-1], begun)
        return record.trajectories(_of(tasks, rows), _of(starts, rows), split, "policy")

    return _in_groups(policy, suite, tasks, starts, split, perturb, seed, progress, recorded, ranks)


def steps_to_success(
    policy: Policy,
    suite: Suite,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:  # [E] int64
    """After how many actions each task is first done, with the mean action; 0: not before the horizon.

    The oracle stop of `act_in_true` without records: a suite that can `carry_out` chunks draws only what the policy
    looks at, and a group ends when all its tasks are done. Raises UserError as `act_in_true` does.
    """

    def counted(rows: list[int], begun: Starts, act: Act) -> list[int]:
        seen, first, step = begun.seen, np.zeros(len(rows), dtype=np.int64), 0
        while step < suite.horizon and not first.all():
            chunk = act(seen, step // policy.chunk)[:, : suite.horizon - step]
            seen, done = _carried_out(suite, chunk, begun)
            step += chunk.shape[1]
            new = done.any(1) & (first == 0)
            first[new] = step - chunk.shape[1] + 1 + done.argmax(1)[new]
        return first.tolist()

    steps = _in_groups(policy, suite, tasks, starts, split, 0.0, seed, progress, counted)
    return np.array([steps[row] for row in range(len(tasks))], dtype=np.int64)


def in_order(own: dict[int, Any], ranks: Ranks) -> list:
    """What all ranks have made, each for its rows of 0 .. E - 1, in the order of the rows: at rank 0 alone."""
    found = ranks.to_first(own)
    if found is None:
        return []
    out = {row: one for part in found for row, one in part.items()}
    return [out[row] for row in range(len(out))]


def groups_of(suite: Suite, tasks: Sequence[Task], ranks: Ranks = ALONE) -> list[list[int]]:
    """The episodes that a suite can hold together, by rows of `tasks`: all at once, unless it says otherwise.

    Of several ranks, each gets its share of the rows. Raises UserError unless every row is in one group.
    """
    groups = [list(range(len(tasks)))]
    if hasattr(suite, "groups"):
        groups = [list(rows) for rows in suite.groups(tasks)]
        if not all(groups) or sorted(row for rows in groups for row in rows) != list(range(len(tasks))):
            raise UserError(
                f"the suite's `groups` returned {shown(groups)}; each of {len(tasks)} rows should be in one"
            )
    rows = [row for group in groups for row in group]
    own = set(rows[ranks.part(len(rows))])
    parts = [[row for row in group if row in own] for group in groups]
    return [part for part in parts if part]


def _in_groups(
    policy: Policy,
    suite: Suite,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    perturb: float | Tensor,
    seed: int,
    progress: Progress | None,
    acted: Callable[[list[int], Starts, Act], list],
    ranks: Ranks = ALONE,
) -> dict[int, Any]:
    """What `acted` returns for every episode of this rank, by row."""
    scale = _checked_scale(perturb, len(_checked_episodes(suite, tasks, starts)))
    check_seed(seed)
    check_members("policy", policy, Policy)
    check_count("chunk of the policy", policy.chunk)
    check_views(policy, suite.views, "the suite")
    device, out, texts, read = device_of(policy), {}, None, None
    for rows in groups_of(suite, tasks, ranks):
        begun = suite.reset(_of(tasks, rows), _of(starts, rows), split)
        check_begun(begun, suite, len(rows))
        with own_modes(device, policy):
            if begun.texts != texts:
                texts, read = begun.texts, policy.read(begun.texts)
            own = scale if len(scale) == 1 else scale[rows]
            act = partial(_act, policy, suite, read, seed, own, device, torch.tensor(rows))
            out |= zip(rows, acted(rows, begun, act), strict=True)
        if progress is not None:
            progress.advance()
    return out


def _of(all_of_them: Sequence, rows: list[int]) -> Sequence:
    return all_of_them if rows == list(range(len(all_of_them))) else [all_of_them[row] for row in rows]


def _carried_out(suite: Suite, chunk: np.ndarray, begun: Starts) -> tuple[Observation, np.ndarray]:
    done = []
    if not hasattr(suite, "carry_out"):
        for k in range(chunk.shape[1]):
            seen, each = suite.step(chunk[:, k])
            done.append(copy.copy(each))  # a suite may write the next one into the same array
    else:
        seen, together = suite.carry_out(chunk)
        if np.shape(together) != chunk.shape[:2]:
            got, want = (list(shape) for shape in (np.shape(together), chunk.shape[:2]))
            raise UserError(f"the suite's `carry_out` returned done {got}; it should be {want}")
        done = list(together.T)
    for each in done:
        check_stepped(seen, each, begun)
    return seen, np.stack(done, axis=1)


def _checked_episodes(suite: Suite, tasks: Sequence[Task], starts: Sequence[int]) -> Sequence[Task]:
    check_suite(suite)
    if not isinstance(tasks, Sequence) or not all(hasattr(task, "instructions") for task in tasks):
        raise UserError(f"tasks is {shown(tasks)}; it should be a sequence of tasks of the suite: suite.tasks[:3]")
    counted = isinstance(starts, Sequence | np.ndarray | Tensor) and all(
        isinstance(start, Integral) for start in starts
    )
    if not counted or len(starts) != len(tasks) or not len(tasks):
        raise UserError(
            f"there are {len(tasks)} tasks, and starts is {shown(starts)}; it should be an integer for every task"
        )
    return tasks


def _checked_scale(perturb: float | Tensor, episodes: int) -> Tensor:  # [1, 1, 1] or [E, 1, 1] float32
    scale = given_tensor("perturb", perturb, torch.device("cpu"), torch.float32)
    if scale.ndim > 1 or scale.numel() not in (1, episodes) or not scale.isfinite().all():
        raise UserError(f"perturb is {shown(perturb)}; it should be a finite number, or one for each episode")
    return scale.view(-1, 1, 1)


def _act(
    policy: Policy,
    suite: Suite,
    read: object,
    seed: int,
    scale: Tensor,
    device: torch.device,
    ids: Tensor,
    seen: Observation,
    number: int,
) -> np.ndarray:  # [E, K, A] float32 in [-1, 1]
    out = []
    for first in range(0, len(seen), POLICY_BATCH):
        part = slice(first, first + POLICY_BATCH)
        here, row = seen[part].each(lambda tensor: tensor.to(device)), ids[part].to(device)
        key, given = Key(seed, row, torch.full_like(row, number)), Untouched((list(here.tensors()), read))
        mean = decide(policy, suite.views, suite.robot.action_size, here, read, key, explore=False).action
        given.check("the policy's `act`")
        if scale.any():
            drawn = decide(policy, suite.views, suite.robot.action_size, here, read, key, explore=True).action
            mean = mean + (scale if len(scale) == 1 else scale[part]).to(device) * (drawn - mean)
        out.append(mean.float().cpu())
    action = torch.cat(out)
    if not action.isfinite().all():
        raise UserError("the policy's actions in true episodes are not all finite")
    return action.clamp(-1, 1).numpy()


def device_of(part: object) -> torch.device:
    """The device of a policy or reflector; the CPU if it has no parameters."""
    parameters = part.parameters() if isinstance(part, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def starts_of(trajectories: Sequence[Trajectory]) -> Starts:
    """The first observations of recorded episodes of the same views."""
    texts, row = table_of([t.instruction for t in trajectories])
    cameras = [t.first_camera for t in trajectories]
    seen = Observation(
        torch.from_numpy(np.stack([t.frames[0] for t in trajectories])),
        torch.from_numpy(np.stack([t.proprio[0] for t in trajectories])),
        None if any(camera is None for camera in cameras) else torch.from_numpy(np.stack(cameras)),
        row,
    )
    return Starts(seen, texts)


def judge_trajectories(reflector: Reflector, trajectories: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
    """Reward float32 and stop bool after every step, [N, T]; the trajectories must have one length."""
    parts = []
    for first in range(0, len(trajectories), REFLECTOR_BATCH):
        some = trajectories[first : first + REFLECTOR_BATCH]
        frames = torch.from_numpy(np.stack([t.frames for t in some]))
        parts.append([tensor.numpy() for tensor in judge_frames(reflector, starts_of(some), frames)])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def judge_frames(reflector: Reflector, starts: Starts, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Reward and stop [N, T] after every frame [N, T + 1, V, H, W, 3] but the first, on the CPU."""
    device, judged = device_of(reflector), []
    seen = starts.to(device).seen
    with own_modes(device, reflector):
        state = reflector.begin(seen, reflector.read(starts.texts))
        check_state("the reflector", state, seen)
        state = state.each(torch.clone)  # as in slots: `begin` may share tensors with others, or expand them
        for part in frames[:, 1:].split(FRAMES_AT_ONCE, 1):
            judged.append(reflector.judge(part.to(device), state))
            check_judged(judged[-1], *part.shape[:2])
            check_rewards(judged[-1][0])
            if not judged[-1][0].isfinite().all():
                raise UserError("the reflector's rewards of true frames are not all finite")
        return tuple(torch.cat(part, dim=1).cpu() for part in zip(*judged, strict=True))


@dataclass(frozen=True)
class Outcome:
    """How each true episode ended under each stopping rule."""

    success: dict[str, np.ndarray]  # rule -> [N] bool
    stop: np.ndarray  # [N] int, steps until the reflector's stop, the horizon if none
    stopped: np.ndarray  # [N] bool
    reward: np.ndarray  # [N, T] float32
    tasks: tuple[str, ...]  # [N]

    @property
    def false_stop(self) -> float:
        """Share of all episodes that the reflector stopped in a state without success."""
        return float((self.stopped & ~self.success["own_stop"]).mean())

    @property
    def missed_stop(self) -> float:
        """Of the episodes that succeeded at some time, the share that the reflector never stopped."""
        return float((~self.stopped & self.success["oracle"]).sum() / max(1, self.success["oracle"].sum()))

    def document(self, instruction_of: dict[str, str]) -> dict:
        """The JSON of result.json: success by rule with Wilson 95 % intervals, overall and per task."""
        n = len(self.tasks)
        out: dict = {rule: float(self.success[rule].mean()) for rule in RULES}
        out["n"] = n
        out["intervals"] = {rule: list(wilson_interval(int(self.success[rule].sum()), n)) for rule in RULES}
        out["per_task"] = {}
        for task in sorted(set(self.tasks)):
            rows = np.array([name == task for name in self.tasks])
            part = {rule: float(self.success[rule][rows].mean()) for rule in RULES}
            low_high = {
                rule: list(wilson_interval(int(self.success[rule][rows].sum()), int(rows.sum()))) for rule in RULES
            }
            out["per_task"][task] = {
                **part,
                "n": int(rows.sum()),
                "intervals": low_high,
                "instruction": instruction_of.get(task, ""),
            }
        return out


def judge_outcome(trajectories: Sequence[Trajectory], reward: np.ndarray, stop: np.ndarray) -> Outcome:
    """Apply the three stopping rules to episodes that were recorded to the horizon.

    oracle: an episode succeeds if any step does. own_stop: the state at the reflector's first stop decides, or the
    state at the horizon if there is no stop. no_stop: the state at the horizon decides.
    """
    success = np.stack([t.success for t in trajectories])
    stopped = stop.any(1)
    step = np.where(stopped, stop.argmax(1), success.shape[1] - 1)
    rules = {"oracle": success.any(1), "own_stop": success[np.arange(len(success)), step], "no_stop": success[:, -1]}
    return Outcome(rules, step + 1, stopped, reward, tuple(t.task for t in trajectories))
