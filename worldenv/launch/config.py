"""How many processes a job has: the fields of `worldenv-train --launch.*`."""

from dataclasses import dataclass

from worldenv.fields import FieldError, Within, check_fields

MOST_PROCESSES = 1024  # on one machine
MOST_NODES = 65_536


@dataclass(frozen=True)
class LaunchConfig:
    """Several processes, each a rank that does its share of the work (docs/clusters.md)."""

    processes: int = 1  # on this machine
    nodes: int = 1  # machines; the command is given on each of them, with the same options
    address: str | None = None  # HOST:PORT of the first machine, where the others find it; needed for several
    shard: bool = False  # a large policy: weights, gradients and moments are shared out while it learns (FSDP2)

    def __post_init__(self) -> None:
        check_fields(self, processes=Within(1, MOST_PROCESSES), nodes=Within(1, MOST_NODES))
        host, _, port = (self.address or "").rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal()):
            raise FieldError(
                f"address is {self.address!r}; with several nodes it should be HOST:PORT of the first machine"
            )

    @property
    def count(self) -> int:
        """Ranks of the job."""
        return self.processes * self.nodes
