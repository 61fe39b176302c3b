"""Does the world model look at the picture, or only at the plan? Good grasps, replayed beside the object.

    python benchmarks/picture_or_plan.py [--models FOLDER] [--policies FILE ...] [--starts 300]

Each policy acts on validation starts, with its mean action and with three times its own noise. The first grasp of
each episode is replayed, with the same actions, from a gripper that is shifted by 0 to 3 cm (in 30 % of them it is also
up to 2 cm higher), so that more than half of the grasps miss. After two chunks the imagined picture is compared with
two pictures: the true one, and the one in which the object did the opposite (stayed, or moved with the gripper).
The last line of stdout is one JSON document.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldenv.assemble import load
from worldenv.data.trajectories import Trajectory
from worldenv.evaluation.truth import act_in_true
from worldenv.interfaces.observation import Key, Observation
from worldenv.policy.small import SmallPolicy
from worldenv.records.progress import table
from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.parallel import CACHED
from worldenv.suites.tabletop.physics import HORIZON, Tabletop, task_by_name
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer.layer import POSITION, Layer
from worldenv.worlds.composer.world import ComposerWorld, Memory

FIRST_START = 8000
BESIDE_M, TOO_HIGH_M, TOO_HIGH_SHARE = 0.03, 0.02, 0.3
LIFTED_M = 0.03  # a thing that has moved less than this cannot be told from one that was left
VISIBLE = 25  # of 255: where the two true endings differ
HELD, ENTITIES = 7, 15  # columns of a state (csrc/tabletop/world.h)
PLACE = slice(2, 6)  # x, y, z, yaw of an entity


@dataclass
class Grasps:
    """Chunks in which something was to be grasped, carried out after an offset of the gripper."""

    frames: list[np.ndarray]  # the first, the clear and the present one: [M, H, W, 3] uint8
    tips: np.ndarray  # [M, 3] float32, in the first
    proprio: np.ndarray  # [M, 7] float32, as they begin
    actions: np.ndarray  # [M, 2 K, 7] float32
    took: np.ndarray  # [M] bool
    ending: np.ndarray  # [M, H, W, 3] uint8
    other_ending: np.ndarray  # [M, H, W, 3] uint8: left, where it was taken, and taken, where it was left


def replay_states(trajectories: list[Trajectory]) -> np.ndarray:  # [N, T + 1, 79]
    env = Tabletop()
    env.reset([task_by_name(t.task) for t in trajectories], [t.start for t in trajectories], "validation")
    states = [env.state()]
    for step in range(HORIZON):
        env.step(np.stack([t.actions[step] for t in trajectories]))
        states.append(env.state())
    return np.stack(states, axis=1)


def beside(trajectories: list[Trajectory], k: int, seed: int) -> Grasps:
    """The first grasp of every trajectory, carried out again after an offset of the gripper."""
    states = replay_states(trajectories)
    held = states[:, :, HELD] >= 0
    step = held.argmax(1)
    begin = (step - 1) // k * k  # the chunk that grasps
    use = np.flatnonzero(held.any(1) & (begin >= 0) & (begin + 2 * k <= HORIZON))
    begin, target = begin[use], states[use, step[use], HELD].astype(int)
    chosen, rows = [trajectories[i] for i in use], np.arange(len(use))
    random = np.random.default_rng(seed)
    reach, angle = random.uniform(0, BESIDE_M, len(use)), random.uniform(0, 2 * np.pi, len(use))
    high = random.uniform(0, TOO_HIGH_M, len(use)) * (random.random(len(use)) < TOO_HIGH_SHARE)
    offset = np.stack([reach * np.cos(angle), reach * np.sin(angle), high], axis=1)

    def moved(at: np.ndarray) -> np.ndarray:
        state = states[use, at].copy()
        state[:, :3] += offset
        return state

    def places(state: np.ndarray) -> np.ndarray:  # [M, 4], of the thing that was to be grasped
        return state[:, ENTITIES:].reshape(len(state), -1, 8)[rows, target, PLACE]

    env = Tabletop()
    env.reset([task_by_name(t.task) for t in chosen], [t.start for t in chosen], "validation")
    before = moved(begin)
    env.restore(before)
    last, proprio = env.frames(), env.proprio()
    actions = np.stack([t.actions[b : b + 2 * k] for t, b in zip(chosen, begin, strict=True)])
    for n in range(2 * k):
        env.step(actions[:, n])
    after, ending, good = env.state(), env.frames(), states[use, begin + 2 * k]
    took = after[:, HELD] == target
    lifted = np.linalg.norm(places(good)[:, :3] - places(before)[:, :3], axis=1) > LIFTED_M
    fair = (good[:, HELD] == target) & lifted & (took | (after[:, HELD] < 0))
    env.restore(_other(after, before, good, target, took))
    first, tips = (
        np.stack(part) for part in zip(*[(t.frames[0, 0], t.proprio[0, POSITION]) for t in chosen], strict=True)
    )
    clear = np.stack([t.frames[_clear_step(t, b, k), 0] for t, b in zip(chosen, begin, strict=True)])
    frames = [part[fair] for part in (first, clear, last)]
    return Grasps(frames, tips[fair], proprio[fair], actions[fair], took[fair], ending[fair], env.frames()[fair])


def _clear_step(trajectory: Trajectory, begin: int, k: int) -> int:
    """The step, of those with which chunks begin, at which the gripper was last above everything; else the first."""
    steps = np.arange(begin % k, begin + 1, k)
    return int(steps[trajectory.proprio[steps, 2] > CLEAR_M].max(initial=0))


def _other(
    after: np.ndarray, before: np.ndarray, good: np.ndarray, target: np.ndarray, took: np.ndarray
) -> np.ndarray:  # [M, 79]: the state after, had the grasp gone the other way
    out = after.copy()
    for row, was, hit, thing, taken in zip(out, before, good, target, took, strict=True):
        entity, old, carried = (s[ENTITIES:].reshape(-1, 8)[thing] for s in (row, was, hit))
        if taken:
            row[HELD], entity[PLACE] = -1, old[PLACE]
        else:
            row[HELD], entity[2:5] = thing, carried[2:5] + row[:3] - hit[:3]
    return out


@torch.no_grad()
def imagined_right(world: ComposerWorld, grasps: Grasps, camera: Tensor, seed: int) -> np.ndarray:  # [M] bool
    """Whether the imagined ending is nearer to the true one than to the other; all seen by one camera [1, 3, 4]."""
    endings = []
    for rows in torch.arange(len(grasps.took)).split(CACHED):
        first, clear, frame = (torch.from_numpy(part)[rows] for part in grasps.frames)
        tips, proprio, actions = (torch.from_numpy(p)[rows] for p in (grasps.tips, grasps.proprio, grasps.actions))
        seen = Observation(frame[:, None], proprio, camera.expand(len(rows), 1, 3, 4), torch.zeros_like(rows))
        key = Key(seed, rows, torch.zeros_like(rows))
        memory = Memory(first, tips, Layer.begin(clear, tips), None)
        endings.append(world.imagine(memory, seen, actions, key).frames[:, -1, 0])
    imagined = torch.cat(endings).numpy().astype(float)
    true, other = grasps.ending.astype(float), grasps.other_ending.astype(float)
    differ = np.abs(true - other).max(-1, keepdims=True) > VISIBLE
    error = [(differ * np.abs(imagined - part)).sum((1, 2, 3)) for part in (true, other)]
    return error[0] < error[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=None, help="folder of the models; default: the shipped ones")
    parser.add_argument("--policies", type=Path, nargs="*", default=[], help="more policies whose grasps to use")
    parser.add_argument("--starts", type=int, default=300, help="of each policy, over the grasping tasks")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    keep_freed_memory()
    parts = load(given.models)
    world, camera = parts.to_imagine("auto").world, torch.from_numpy(parts.suite.physics.camera.projection)[None]
    tasks = [task for task in TASKS if task.family != "push"]
    tasks, starts = zip(*[(tasks[i % len(tasks)], FIRST_START + i) for i in range(given.starts)], strict=True)
    rows, all_took, all_right = [], [], []
    for policy in [parts.policy, *map(SmallPolicy.load, given.policies)]:
        for noise in (0.0, 3.0):
            acted = act_in_true(policy, parts.suite, tasks, starts, "validation", noise, given.seed)
            grasps = beside(acted, policy.chunk, given.seed)
            right = imagined_right(world, grasps, camera, given.seed)
            all_took.append(grasps.took)
            all_right.append(right)
            rows.append([f"{noise:g} x its noise", *_cells(grasps.took, right)])
    took, right = np.concatenate(all_took), np.concatenate(all_right)
    rows.append(["all", *_cells(took, right)])
    columns = ["policy acts with", "missed", "taken along", "held", "left behind"]
    table("Grasps carried out again after an offset of the gripper", columns, rows)
    along, behind = float((~right[~took]).mean()), float((~right[took]).mean())
    found = {"missed": int((~took).sum()), "taken_along": along, "held": int(took.sum()), "left_behind": behind}
    print(json.dumps(found | {"mean_error": (along + behind) / 2, "seed": given.seed}))


def _cells(took: np.ndarray, right: np.ndarray) -> list[str]:
    shares = [f"{100 * (~right[mask]).mean():.1f} %" if mask.any() else "-" for mask in (~took, took)]
    return [str((~took).sum()), shares[0], str(took.sum()), shares[1]]


if __name__ == "__main__":
    main()
