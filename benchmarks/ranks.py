"""Practice on several ranks of this machine: how much faster than on one.

    python benchmarks/ranks.py [--ranks 1 2 4] [--rounds 3] [--slower 4] [--off-policy] [--name NAME]
    python benchmarks/ranks.py --predict

sleep: models that sleep instead of computing, so that the ranks share processors only for the Python around the models.
--slower 4: they sleep four times as long, as larger models would. real: the shipped models, on one rank of two threads
and on two ranks of one. Each round times all of these once. The first iteration of a job is not timed. --off-policy:
practice is one step off policy (--rl.off-policy), which the cost model leaves out. --predict prints what the cost model
predicts for many GPUs, and measures nothing. Ends in one JSON line; --name writes it to results/ranks-NAME.json.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "rollout"))

import torch  # noqa: E402
from document import commit, machine  # noqa: E402
from null_models import WIDTH, K, NullReflector, NullWorld, null_starts  # noqa: E402
from torch import nn  # noqa: E402

from worldenv import load, make_engine, practice_starts  # noqa: E402
from worldenv.interfaces.policy import Decision  # noqa: E402
from worldenv.launch.join import joined  # noqa: E402
from worldenv.policy.laplace import SeenFeature  # noqa: E402
from worldenv.records.progress import table  # noqa: E402
from worldenv.records.run_folder import RunFolder  # noqa: E402
from worldenv.rl.config import PostTrainConfig  # noqa: E402
from worldenv.rl.iteration_cost import Links, Practice, bottleneck, efficiency, iteration_s  # noqa: E402
from worldenv.rl.loop import post_train  # noqa: E402
from worldenv.rollout.engine import Engine, EngineConfig  # noqa: E402

HORIZON, LEARNS = 20, 100_000
PARTS = ("rollout_s", "update_s")  # of the seconds of an iteration
IMAGINE_S, LEARN_S = 0.004, 0.0005  # that a chunk of an episode sleeps
HERE = Links(bytes_s=1e9, message_s=1e-4, disk_bytes_s=5e8)  # a guess
# rlinf-wan-libero on H200s, counted from the headers of its files (LOG.md, "Does the pair that can be downloaded fit a
# card?"): 76.9 TFLOP a chunk to imagine and 9.9 to learn from, at 40 % (a guess) of 790 TFLOP/s.
RATE = 0.4 * 790e12
LARGE = Practice(8, 8, 28, 1, 4, 107_900_000, imagine_s=76.9e12 / RATE, learn_s=9.9e12 / RATE)
CLUSTER = Links(bytes_s=4e10, message_s=2e-5, disk_bytes_s=1e9)  # a guess: 400 Gbit/s a GPU, at 80 %


class SleepPolicy(nn.Module):
    chunk, views = K, ("agentview",)

    def __init__(self, slower: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(LEARNS))
        self.imagine_s, self.learn_s = slower * IMAGINE_S / 2, slower * LEARN_S

    def read(self, texts):
        return torch.zeros(len(texts), 1)

    def act(self, seen, read, key, explore):
        n = len(seen)
        time.sleep(n * self.imagine_s)
        record = SeenFeature(torch.zeros(n, WIDTH), seen.proprio)
        return Decision(torch.full((n, K, 7), 0.5), torch.full((n,), -2.0), record)

    def log_prob(self, record, action):
        time.sleep(len(action) * self.learn_s)
        return self.weight.mean() * action.mean((1, 2)) - 2.0

    def trainable(self):
        return [self.weight]


class SleepWorld(NullWorld):
    def __init__(self, episodes: int, size: int, slower: float):
        super().__init__(episodes, size)
        self.imagine_s = slower * IMAGINE_S / 2

    def imagine(self, memory, seen, action, key):
        time.sleep(len(seen) * self.imagine_s)
        return super().imagine(memory, seen, action, key)


class Reflector(NullReflector):
    """Stops nothing, and likes every other episode."""

    def __init__(self, episodes: int):
        super().__init__(episodes)
        self.reward[:] = (torch.arange(episodes) % 2)[:, None]
        self.stop[:] = False


def parts_of(what: str, episodes: int, horizon: int, slower: float) -> tuple:
    """Engine and starts."""
    if what == "real":
        parts = load()
        return make_engine(parts, EngineConfig(horizon=horizon)), practice_starts(parts.suite, seed=0)
    models = SleepPolicy(slower), SleepWorld(episodes, 8, slower), Reflector(episodes)
    return Engine(*models, EngineConfig(horizon, episodes)), null_starts(episodes, 8)


def as_rank(given: dict) -> None:
    """Practise, and print the seconds of an iteration at rank 0."""
    torch.set_num_threads(given["threads"])
    config = PostTrainConfig(**given["config"])
    engine, starts = parts_of(given["what"], config.starts * config.siblings, given["horizon"], given["slower"])
    with joined("ranks") as ranks:
        path = Path(given["folder"])
        folder = RunFolder.create(path, {}) if ranks.first else None
        ranks.every(None)
        post_train(engine, starts, config, folder or RunFolder(path), 0, ranks=ranks)
        if ranks.first:
            lines = folder.metrics("post_train")
            took = (lines[-1]["time_s"] - lines[0]["time_s"]) / (len(lines) - 1)
            parts = {name: statistics.mean(line[name] for line in lines[1:]) for name in PARTS}
            print(json.dumps({"iteration_s": took} | parts | {name: lines[-1][name] for name in ("reward", "chunks")}))


def timed(what: str, ranks: int, threads: int, config: dict, sizes: dict) -> dict:
    """What rank 0 of a job printed."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        given = {"what": what, "threads": threads, "config": config, "folder": f"{folder}/run"} | sizes
        shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(ranks):
            own = {name: str(value) for name, value in (shared | {"RANK": rank, "OMP_NUM_THREADS": threads}).items()}
            command = [sys.executable, __file__, "--as-rank", json.dumps(given)]
            out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            started.append(subprocess.Popen(command, env=os.environ | own, stdout=out, text=True))
        printed, _ = started[0].communicate()
        if any(process.wait() for process in started):
            sys.exit(f"{what} on {ranks} ranks failed; the lines above say why")
    return json.loads(printed.splitlines()[-1])


def measure(given: argparse.Namespace) -> dict:
    """Seconds of an iteration, round by round, of every way."""
    own = {"starts": given.starts, "siblings": given.siblings, "iterations": given.iterations, "signal": 0.0}
    own |= {"off_policy": given.off_policy}
    sizes = {"horizon": given.horizon, "slower": given.slower}
    ways = [("sleep", ranks, 1) for ranks in given.ranks] + [("real", 1, 2), ("real", 2, 1)] * given.real
    found: dict = {way: [] for way in ways}
    for _ in range(given.rounds):
        for what, ranks, threads in ways:
            found[what, ranks, threads].append(timed(what, ranks, threads, own, sizes))
    done = {(one["reward"], one["chunks"]) for way, runs in found.items() if way[0] == "sleep" for one in runs}
    assert len(done) == 1, f"ranks do not do what one does: {done}"
    chunks = -(-given.horizon // K)
    asleep = given.slower * IMAGINE_S, given.slower * LEARN_S
    practice = Practice(given.starts, given.siblings, chunks, 2, 256, LEARNS, *asleep)
    rows = []
    for (what, ranks, threads), runs in found.items():
        times = [one["iteration_s"] for one in runs]
        first = next(way for way in found if way[0] == what)
        base = statistics.median(one["iteration_s"] for one in found[first])
        speedup = base / statistics.median(times)
        row = {"what": what, "ranks": ranks, "threads": threads, "iteration_s": times, "speedup": speedup}
        row |= {name: statistics.median(one[name] for one in runs) for name in PARTS}
        if what == "sleep":
            row |= {"efficiency": speedup * first[1] / ranks}
        if what == "sleep" and not given.off_policy:
            row |= {"predicted_s": sum(iteration_s(practice, HERE, ranks).values())}
        rows.append(row)
    return {"measured": True, "settings": own | sizes, "ways": rows}


def predict() -> dict:
    """Many GPUs with as many starts as GPUs: with the preset's minibatch, and with one that grows with the ranks."""
    rows = []
    for ranks in (1, 8, 64, 1024):
        for minibatch in sorted({LARGE.minibatch, LARGE.minibatch * ranks}):
            practice = replace(LARGE, starts=max(LARGE.starts, ranks), minibatch=minibatch)
            parts = iteration_s(practice, CLUSTER, ranks)
            row = {"ranks": ranks, "starts": practice.starts, "minibatch": minibatch, "parts_s": parts}
            row |= {"iteration_s": sum(parts.values()), "efficiency": efficiency(parts)}
            rows.append(row | {"first_bottleneck": bottleneck(parts)})
    return {"measured": False, "ways": rows}


def show(found: dict) -> None:
    if found["measured"]:
        columns = ["models", "ranks", "threads", "iteration", "speedup", "efficiency", "predicted"]
        rows = []
        for way in found["ways"]:
            shown = [f"{way[name]:.3f}" if name in way else "" for name in ("efficiency", "predicted_s")]
            took = f"{statistics.median(way['iteration_s']):.3f} s"
            rows.append([way["what"], way["ranks"], way["threads"], took, f"{way['speedup']:.2f}x", *shown])
        table("Seconds of an iteration (median)", columns, rows)
        return
    columns = ["GPUs", "starts", "minibatch", "iteration", "efficiency", "first bottleneck"]
    rows = [
        [*(way[name] for name in ("ranks", "starts", "minibatch")), f"{way['iteration_s']:.0f} s"]
        + [f"{100 * way['efficiency']:.0f} %", way["first_bottleneck"]]
        for way in found["ways"]
    ]
    table("rlinf-wan-libero: predicted, not measured", columns, rows)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="of the models that sleep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4, help="of each run")
    parser.add_argument("--starts", type=int, default=24)
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--horizon", type=int, default=HORIZON, help="actions")
    parser.add_argument("--slower", type=float, default=1.0, help="factor for the time that models sleep")
    parser.add_argument(
        "--real", action=argparse.BooleanOptionalAction, default=True, help="time the shipped models, too"
    )
    parser.add_argument("--off-policy", action="store_true", help="imagine an iteration while the one before is learnt")
    parser.add_argument("--predict", action="store_true", help="compute the cost model of many GPUs instead")
    parser.add_argument("--name", help="write benchmarks/results/ranks-NAME.json")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.as_rank:
        return as_rank(json.loads(given.as_rank))
    if min(given.rounds, *given.ranks) < 1 or given.iterations < 2 or max(given.ranks) > given.starts:
        parser.error("rounds and ranks are at least 1, iterations at least 2, and there is a start for each rank")
    found = predict() if given.predict else measure(given) | {"machine": machine(), "commit": commit()}
    show(found)
    if given.name:
        path = Path(__file__).parent / "results" / f"ranks-{given.name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
