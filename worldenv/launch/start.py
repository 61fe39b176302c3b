"""Start the ranks of a job on this machine, as `torchrun --standalone -m worldenv` does, with its own agent."""

import logging
import signal
import sys
from collections.abc import Sequence

from worldenv.errors import UserError


def start(words: Sequence[str], processes: int) -> int:
    """Run `python -m worldenv WORDS` in several processes to the end; returns the exit code.

    It is that of the first rank that failed (1 if a signal killed it), or 128 + the signal that ended this process.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks say themselves what is wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="worldenv",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "worldenv", *words)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if len(codes) == processes and max(codes) < 0:  # nobody is left to say it
            raise UserError(f"all ranks were killed by {signal.Signals(-codes[0]).name}") from None
        return max(1, error.get_first_failure()[1].exitcode)
    return 0
