"""Ray starts the ranks of a job: Ray Train's TorchTrainer takes the place of torchrun, and starts lost ranks again."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from worldenv.errors import Terminated, UserError
from worldenv.launch.config import RayConfig
from worldenv.launch.join import EXCHANGE_S
from worldenv.launch.ray_rank import Said, Work, do
from worldenv.launch.share import number
from worldenv.terminal import not_printed, print_result

FREE_S = 10  # seconds within which the resources of a job that has ended become free
UNITS = 10_000  # Ray counts in ten-thousandths of a resource
LOOK_S = 0.2  # seconds between two looks at what the ranks have printed


def start(work: Work, given: RayConfig, device: str) -> int:
    """Do the work in the workers of a Ray cluster, to the end; returns the exit code. What rank 0 prints appears here.

    The cluster is the one that RAY_ADDRESS names, or else the one on this machine; if there is none, one is started.
    Raises UserError, before the work begins, if Ray is not installed, or if the cluster has no room for the workers.
    """
    if number("WORLD_SIZE", 1) > 1:
        raise UserError("--launch.ray.workers lets Ray start the ranks, and torchrun has started some: leave one out")
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise UserError(f'--launch.ray.workers needs Ray ({error}): pip install "worldenv[ray]"') from error
    asked = {"use_gpu": device == "cuda", "resources_per_worker": given.resources}
    try:
        each = ScalingConfig(num_workers=1, **asked).total_resources
    except ValueError as error:
        raise UserError(f"--launch.ray.resources-per-worker does not fit --device {device}: {error}") from error
    with _connected(ray, work.run) as out:
        _check_room(ray, given, each)
        said = ray.remote(num_cpus=0)(Said).remote()
        is_new = not (work.run / "config.json").exists()
        limits = {"max_failures": given.max_failures, "controller_failure_limit": given.max_failures}
        trainer = partial(
            TorchTrainer,
            partial(do, work, is_new, said),
            scaling_config=ScalingConfig(num_workers=given.workers, **asked),
            run_config=RunConfig(storage_path=given.storage, failure_config=FailureConfig(**limits)),
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout_s=int(EXCHANGE_S)),
        )
        return _followed(ray, partial(_fit, ray, trainer, given.max_failures), said, work, out)


@contextmanager
def _connected(ray: Any, run: Path) -> Iterator[TextIO]:
    """Inside the block there is a Ray cluster, whose own messages go to stderr. Yields stdout."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # prints would appear twice, and the result on stderr too
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    is_main, out = threading.current_thread() is threading.main_thread(), sys.stdout
    asked = [KeyboardInterrupt()]

    def terminate(*_: object) -> None:
        asked.append(Terminated())
        raise asked[-1]

    try:
        with chdir("/"):  # Ray's workers search the current folder first: that may be a clone without compiled modules
            ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"the Ray cluster cannot be reached: {error}; look at RAY_ADDRESS and `ray status`") from error
    try:
        if is_main:
            signal.signal(signal.SIGTERM, terminate)
        with redirect_stdout(sys.stderr):
            yield out
    except (KeyboardInterrupt, SystemExit):  # Ray turns both signals into these
        if (run / "config.json").exists():
            asked[-1].add_note(str(run))
        raise asked[-1] from None
    finally:
        ray.shutdown()
        for kind, handler in handlers.items() if is_main else ():
            signal.signal(kind, handler)


def _check_room(ray: Any, given: RayConfig, each: Mapping[str, float]) -> None:
    """Raise UserError if the cluster cannot run all workers at once: Ray would wait for other machines for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: _units(need) for name, need in each.items() if _units(need)}
    fits = [
        min((_units(node.get(name, 0)) // n for name, n in needed.items()), default=given.workers) for node in nodes
    ]
    room = sum(fits)
    needs = " ".join(f"{name}={amount:g}" for name, amount in each.items())
    asked = f"--launch.ray.workers is {given.workers}, each with {needs}"
    if room < given.workers:
        raise UserError(f"{asked}, and the Ray cluster has room for {room}: start fewer, or add machines to it")
    if len(nodes) > 1 and given.storage_path is None:
        raise UserError(
            f"the Ray cluster has {len(nodes)} machines: give a folder that they share, --launch.ray.storage-path"
        )
    until = time.monotonic() + FREE_S
    while any(_units(ray.available_resources().get(name, 0)) < given.workers * n for name, n in needed.items()):
        if time.monotonic() > until:
            raise UserError(f"{asked}, and other jobs use too much of the Ray cluster: look at `ray status`")
        time.sleep(LOOK_S)


def _units(amount: float) -> int:
    """The amount of a resource in the units of Ray. In floats, 1 // 0.2 is 4."""
    return round(UNITS * amount)


def _fit(ray: Any, trainer: Callable[[], Any], left: int) -> None:
    """Train to the end. Where a worker dies while Ray starts the workers, Ray gives up: then this begins again.

    left: how often it may begin again; -1: without a limit.
    """
    while True:
        try:
            trainer().fit()
            return
        except (ray.train.ControllerError, ray.exceptions.RayActorError) as error:
            failure = getattr(error, "controller_failure", error)
            if not left or not isinstance(failure, ray.exceptions.RayActorError):
                raise
            left -= 1


def _followed(ray: Any, fit: Callable[[], None], said: Any, work: Work, out: TextIO) -> int:
    """Train to the end, and print what the ranks print; returns the exit code."""
    refused, failure, result = False, None, io.StringIO()
    try:
        with _printed(ray, said, result):
            fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        failure = error
    with suppress(ray.exceptions.RayError):
        refused = ray.get(said.is_refused.remote())
    if refused:
        return 2
    text = result.getvalue().rstrip("\n")
    if text and (problem := print_result(text, out)):
        print(f"{work.program}: {not_printed(problem, work.run)}", file=sys.stderr)
        return 1
    if failure is None:
        return 0
    can_go_on = work.program == "worldenv-train" and (work.run / "config.json").exists()
    advice = f"; continue with: {work.program} --resume --run {work.run}" if can_go_on else ""
    print(f"{work.program}: Ray gave up: {_reason(failure)}{advice}", file=sys.stderr)
    return 1


def _reason(failure: Exception) -> str:
    ranks = sorted(getattr(failure, "worker_failures", ()))
    if ranks:
        return f"{', '.join(f'rank {rank}' for rank in ranks)} was lost or failed"
    lines = str(failure).split("\n")  # the last line of a traceback says what was wrong
    return next((line.strip() for line in reversed(lines) if line.strip()), type(failure).__name__)[:300]


@contextmanager
def _printed(ray: Any, said: Any, result: TextIO) -> Iterator[None]:
    """Inside the block, what the ranks print to stderr appears here, and what they print to stdout in `result`."""
    over, streams = threading.Event(), {"stdout": result, "stderr": sys.stderr}

    def work() -> None:
        is_last = False
        with suppress(ray.exceptions.RayError):  # the cluster is gone, which is reported elsewhere
            while not is_last:
                is_last = over.wait(LOOK_S)
                for stream, text in ray.get(said.take.remote()):
                    print(text, file=streams[stream], end="", flush=True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
