"""Steps per second of LIBERO behind the interface `Suite`, beside LIBERO as it comes.

    python benchmarks/libero_speed.py [--suite libero_object] [--workers 2] [--chunks 20] [--views agentview]

Both do the same actions from the same initial states, each in as many processes. The suite draws once per chunk of 8
actions, which is what a policy looks at; LIBERO draws both its cameras at every step. `official` is the suite with
LIBERO's own pictures. The last line of stdout is one JSON document.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

from worldenv.suites.libero.suite import LiberoSuite

CHUNK = 8
SIZE = 128  # pixels: LIBERO's own default


def actions_of(workers: int, chunks: int) -> np.ndarray:  # [workers, chunks * CHUNK, 7]
    return np.random.default_rng(0).uniform(-0.5, 0.5, (workers, chunks * CHUNK, 7))


def suite_rate(name: str, workers: int, chunks: int, views: tuple[str, ...], pictures: str) -> tuple[float, dict]:
    suite = LiberoSuite(name, size=SIZE, views=views, workers=workers, pictures=pictures)
    tasks, actions = suite.tasks[:1] * workers, actions_of(workers, chunks)
    suite.reset(tasks, range(workers), "test")
    suite.carry_out(actions[:, :CHUNK])  # compiles what robosuite compiles
    began = time.monotonic()
    suite.reset(tasks, range(workers), "test")
    reset_s, began = time.monotonic() - began, time.monotonic()
    for first in range(0, chunks * CHUNK, CHUNK):
        suite.carry_out(actions[:, first : first + CHUNK])
    rate, about = workers * chunks * CHUNK / (time.monotonic() - began), suite.about()
    suite.close()
    return rate, about | {"reset_s": reset_s}


def as_it_comes(name: str, worker: int, workers: int, chunks: int) -> float:
    """Steps per second of one process that uses LIBERO as its documentation shows."""
    from worldenv.suites.libero.installed import installed

    installed()
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    found = benchmark.get_benchmark_dict()[name]()
    task = found.get_task(0)
    bddl = f"{get_libero_path('bddl_files')}/{task.problem_folder}/{task.bddl_file}"
    env = OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=SIZE, camera_widths=SIZE)
    env.reset()
    env.set_init_state(found.get_task_init_states(0)[worker])
    steps = actions_of(workers, chunks)[worker]
    for action in steps[:CHUNK]:
        env.step(action)
    began = time.monotonic()
    for action in steps:
        env.step(action)
    return len(steps) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--views", nargs="+", default=["agentview"])
    parser.add_argument("--as-it-comes", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_it_comes is not None:
        print(as_it_comes(given.suite, given.as_it_comes, given.workers, given.chunks))
        return
    views, out = tuple(given.views), {"suite": given.suite, "workers": given.workers, "views": given.views}
    for pictures in ("fast", "official"):
        rate, out["about"] = suite_rate(given.suite, given.workers, given.chunks, views, pictures)
        out[pictures], out[f"{pictures}_reset_s"] = rate, out["about"].pop("reset_s")
    few = max(2, given.chunks // 4)
    options = ["--suite", given.suite, "--workers", str(given.workers), "--chunks", str(few)]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *options, "--as-it-comes", str(worker)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(given.workers)
    ]
    out["as_it_comes"] = sum(float(process.communicate()[0].splitlines()[-1]) for process in running)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
