import os

import numpy as np

from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS

WORLDS = 512
GOAL_FRAMES_PER_S, GOAL_CORES = 20_000, 2


def begun(threads, worlds=WORLDS):
    env = Tabletop(64, threads=threads)
    env.reset([TASKS[i % len(TASKS)] for i in range(worlds)], range(worlds), "train")
    return env


def bench_step_and_frames(versus, capsys):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    actions = np.random.default_rng(0).uniform(-1, 1, (8, WORLDS, 7)).astype(np.float32)
    env, single = begun(cores), begun(1)
    frames = np.empty((WORLDS, 64, 64, 3), dtype=np.uint8)
    for action in actions:
        assert np.array_equal(env.step(action), single.step(action))
        assert np.array_equal(env.frames(out=frames), single.frames())

    turn = {env: 0, single: 0}

    def step_and_draw(env):
        turn[env] += 1
        env.step(actions[turn[env] % len(actions)])
        env.frames(out=frames)

    result = versus(
        lambda: step_and_draw(env),
        {"one_thread": lambda: step_and_draw(single)},
        rounds=6,
        worlds=WORLDS,
        cores=cores,
        goal={"frames_per_s": GOAL_FRAMES_PER_S, "cores": GOAL_CORES},
    )
    result["frames_per_s"] = WORLDS / result["median_s"]["new"]
    result["share_of_goal"] = result["frames_per_s"] / GOAL_FRAMES_PER_S
    with capsys.disabled():
        print(f"\n{result['frames_per_s']:,.0f} frames/s on {cores} cores; goal {GOAL_FRAMES_PER_S:,} on {GOAL_CORES}")
    assert result["frames_per_s"] > 0
