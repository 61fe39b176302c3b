"""A training run of a second, with the smallest models: to be killed, starved of disk and damaged."""

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Tiny
from safetensors.torch import load_file
from torch import Tensor

from worldenv.commands import job
from worldenv.config import TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation import measure
from worldenv.evaluation.config import EvalConfig
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records import events, figures, report  # noqa: F401  job imports two of them where they are first needed
from worldenv.records.model_files import save_model
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import EngineConfig

measure.PRACTICE_STARTS = 30
for plot in ("success_intervals", "task_bars", "lines", "time_bars"):  # drawing takes longer than all the rest
    setattr(figures, plot, lambda *given, **named: "<svg></svg>")
LIMIT_S = 120
TIMES = {"time_s", "rollout_s", "update_s", "wall_s", "time_shares"}  # what differs from run to run
PARTS = {
    "rl": PostTrainConfig(iterations=3, starts=2, siblings=2, signal=1e-9),
    "eval": EvalConfig(episodes=10, imagined=1, quality=1, videos=1),
    "engine": EngineConfig(horizon=8),
}


def make_models(folder: Path) -> Path:
    """The files of three tiny models."""
    tiny = Tiny()
    folder.mkdir()
    save_model(folder / "policy.safetensors", tiny.policy(), "policy", {})
    save_model(folder / "composer.safetensors", tiny.simulator(size=64), "composer", {}, levels=(1.0,))
    save_model(folder / "reflector.safetensors", tiny.reflector(), "reflector", {})
    return folder


def train(models: Path, run: Path, is_there: bool | None = None, ranks: Ranks = ALONE) -> dict[str, Any] | None:
    """What a user does: begin the run, or resume it where the folder holds one."""
    if is_there is None:
        is_there = (run / "config.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TrainConfig(models=models, run=run, resume=is_there, precision="float32", **PARTS)
        return job.train(config, ranks=ranks)


def session(models: Path, run: Path, prepare: Callable[[], Any] = lambda: None) -> tuple[int, str]:
    """A process that begins or resumes the run, after `prepare`: its exit code, and the end of what it printed.

    The code is 0, 2 for a UserError, 3 for another exception, or minus the signal that ended it. Raises TimeoutError,
    and kills the process, if it does not end.
    """
    receive, send = os.pipe()
    if not (child := os.fork()):
        os.dup2(send, 1)
        os.dup2(send, 2)
        os._exit(_exit_code(models, run, prepare))
    os.close(send)
    end, said = time.monotonic() + LIMIT_S, b""
    try:
        while select.select([receive], [], [], max(0, end - time.monotonic()))[0]:
            if not (part := os.read(receive, 1 << 16)):
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said[-4000:].decode(errors="replace")
            said += part
    finally:
        os.close(receive)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a session did not end in {LIMIT_S} s: {said!r}")


def _exit_code(models: Path, run: Path, prepare: Callable[[], Any]) -> int:
    try:
        prepare()
        train(models, run)
    except UserError as error:
        print(f"\nerror: {error}", flush=True)
        return 2
    except BaseException:
        traceback.print_exc()
        return 3
    return 0


def outcome(run: Path) -> tuple[dict[str, Tensor], list, Any]:
    """What a run found: the policy, the metrics and the result without their times and places."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    metrics = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    found = {k: v for k, v in result.items() if k not in TIMES | {"run"}}
    return load_file(run / "checkpoints" / "policy.safetensors"), metrics, found


def is_same(one: tuple, other: tuple) -> bool:
    """Whether two outcomes are equal, the weights bit by bit."""
    weights, others = one[0], other[0]
    return (
        weights.keys() == others.keys()
        and all(weights[name].equal(others[name]) for name in weights)
        and one[1:] == other[1:]
    )
