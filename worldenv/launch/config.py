"""How many processes a job has: the fields of `worldenv-train --launch.*`."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from worldenv.fields import MOST, FieldError, Within, check_fields

MOST_PROCESSES = 1024  # on one machine
MOST_NODES = 65_536


@dataclass(frozen=True)
class RayConfig:
    """Ray starts the ranks, as the workers of its TorchTrainer (docs/clusters.md)."""

    workers: int = 0  # ranks that Ray starts; 0: Ray is not used
    resources_per_worker: tuple[str, ...] = ()  # such as CPU=2 GPU=1; default: CPU=1, with --device cuda GPU=1
    max_failures: int = 0  # how often Ray starts all ranks again after one is lost or fails; -1: any number of times
    storage_path: str | None = None  # folder for Ray's own files, shared by all machines; default: ~/ray_results

    def __post_init__(self) -> None:
        check_fields(self, workers=Within(0, MOST_NODES), max_failures=Within(-1, MOST))
        for word in self.resources_per_worker:
            name, _, number = word.partition("=")
            if not name or not _is_amount(number):
                raise FieldError(f"resources_per_worker has {word!r}; it should be NAME=NUMBER, such as CPU=2")
        if not self.workers and any(vars(self).values()):
            raise FieldError("workers is 0, and other options of Ray are given: say how many workers Ray should start")

    @property
    def storage(self) -> str | None:
        """The storage path as Ray needs it: absolute, or the address of a store."""
        path = self.storage_path
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    @property
    def resources(self) -> dict[str, float] | None:
        """What Ray reserves for a worker; None: its own default."""
        pairs = (word.partition("=") for word in self.resources_per_worker)
        return {name: float(number) for name, _, number in pairs} or None


def _is_amount(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


@dataclass(frozen=True)
class LaunchConfig:
    """Several processes, each a rank that does its share of the work (docs/clusters.md)."""

    processes: int = 1  # on this machine
    nodes: int = 1  # machines; the command is given on each of them, with the same options
    address: str | None = None  # HOST:PORT of the first machine, where the others find it; needed for several
    shard: bool = False  # a large policy: weights, gradients and moments are shared out while it learns (FSDP2)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        check_fields(self, processes=Within(1, MOST_PROCESSES), nodes=Within(1, MOST_NODES))
        host, _, port = (self.address or "").rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal()):
            raise FieldError(
                f"address is {self.address!r}; with several nodes it should be HOST:PORT of the first machine"
            )
        if self.ray.workers and self.processes * self.nodes > 1:
            raise FieldError(
                f"ray.workers is {self.ray.workers}: Ray starts the ranks on its machines, so leave out "
                "--launch.processes and --launch.nodes"
            )

    @property
    def count(self) -> int:
        """Ranks of the job."""
        return self.ray.workers or self.processes * self.nodes
