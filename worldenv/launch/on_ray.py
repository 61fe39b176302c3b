"""Ray starts the ranks of a job: Ray Train's TorchTrainer takes the place of torchrun, and starts lost ranks again."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from worldenv.errors import UserError
from worldenv.launch.config import RayConfig
from worldenv.launch.join import EXCHANGE_S
from worldenv.launch.ray_rank import Said, Work, do
from worldenv.launch.share import number

FREE_S = 10  # in which the resources of a job that has just ended become free
LOOK_S = 0.2  # between two looks at what the ranks have printed


def start(work: Work, given: RayConfig, device: str) -> int:
    """Do the work in the workers of a Ray cluster, to the end; returns the exit code. What rank 0 prints appears here.

    The cluster is the one that RAY_ADDRESS names, or that runs on this machine, else one is started for the job. Raises
    UserError, before the work begins, if Ray is not installed, or if the cluster has no room for the workers.
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
        raise UserError(f"--launch.ray.resources-per-worker does not go with --device {device}: {error}") from error
    with _connected(ray):
        _check_room(ray, given, each)
        said = ray.remote(num_cpus=0)(Said).remote()
        limits = {"max_failures": given.max_failures, "controller_failure_limit": given.max_failures}
        trainer = TorchTrainer(
            partial(do, work, not (work.run / "config.json").exists(), said),
            scaling_config=ScalingConfig(num_workers=given.workers, **asked),
            run_config=RunConfig(storage_path=given.storage, failure_config=FailureConfig(**limits)),
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout_s=int(EXCHANGE_S)),
        )
        return _followed(ray, trainer, said, work)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"the Ray cluster cannot be reached: {error}; look at RAY_ADDRESS and `ray status`") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process without a word
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, given: RayConfig, each: Mapping[str, float]) -> None:
    """Raise UserError if the cluster cannot run all workers at once: Ray would wait for other machines for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [min((node.get(name, 0) // need for name, need in each.items()), default=given.workers) for node in nodes]
    room = int(sum(fits))
    needs = " ".join(f"{name}={amount:g}" for name, amount in each.items())
    asked = f"--launch.ray.workers is {given.workers}, each with {needs}"
    if room < given.workers:
        raise UserError(
            f"{asked}, and the Ray cluster has room for {room}: start fewer, or add machines to the cluster"
        )
    if len(nodes) > 1 and given.storage_path is None:
        raise UserError(
            f"the Ray cluster has {len(nodes)} machines: name a folder they share, --launch.ray.storage-path"
        )
    until = time.monotonic() + FREE_S
    while any(ray.available_resources().get(name, 0) < given.workers * amount for name, amount in each.items()):
        if time.monotonic() > until:
            raise UserError(f"{asked}, and other jobs use too much of the Ray cluster: look at `ray status`")
        time.sleep(LOOK_S)


def _followed(ray: Any, trainer: Any, said: Any, work: Work) -> int:
    """Fit, and print what the ranks print, until the end; returns the exit code."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failures.append(error)

    # In a thread of its own, because in the main one Ray replaces what Ctrl-C does.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while True:
            is_over = not thread.is_alive()
            for stream, text in ray.get(said.take.remote()):
                print(text, file=getattr(sys, stream), end="", flush=True)
            if is_over:
                break
            thread.join(LOOK_S)
    except KeyboardInterrupt as stop:
        stop.add_note(str(work.run))
        raise
    if ray.get(said.is_refused.remote()):
        return 2
    if failures:
        reason = " ".join(str(failures[0]).split())[:200]
        advice = f"; continue with: {work.program} --resume --run {work.run}"
        print(f"{work.program}: Ray gave up ({reason}){advice}", file=sys.stderr)
    return int(bool(failures))
