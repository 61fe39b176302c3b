"""Start the ranks of a job on this machine, as `torchrun -m worldenv` does, by its agent."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worldenv.errors import UserError
from worldenv.launch.config import LaunchConfig
from worldenv.launch.join import JOIN_S

LEAVE_S = 5.0  # in which the ranks of other machines end, too: this one may hold the store of their agents
LOOK_S = 0.5
LOCAL = ("localhost", "127.0.0.1")


def start(words: Sequence[str], launch: LaunchConfig) -> int:
    """Run `python -m worldenv WORDS` in several processes to the end; returns the exit code. `WORDS` begin with `train`
    or `eval`.

    It is that of the first rank that failed (1 if a signal killed it), or 128 + the signal that ended this process.
    Raises UserError if the machines do not find each other. On one of several nodes, a signal ends the process here.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig as Agent
    from torch.distributed.launcher.api import elastic_launch

    told = logging.getLogger("torch.distributed.elastic")
    told.addHandler(logging.NullHandler())
    told.propagate = False  # the ranks say themselves what is wrong
    address = launch.address if launch.nodes > 1 else "localhost:0"
    host = address.rpartition(":")[0]
    agent = Agent(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes,
        run_id="worldenv",
        rdzv_backend="c10d",
        rdzv_endpoint=address,
        rdzv_configs={"join_timeout": JOIN_S},
        local_addr=host if host in LOCAL else None,
        max_restarts=0,
    )
    if launch.nodes > 1:
        threading.Thread(target=_end_after_ranks, daemon=True).start()
    try:
        elastic_launch(agent, sys.executable)("-P", "-m", "worldenv", *words)
    except SignalException as error:
        return _ended(128 + int(error.sigval), launch)
    except ChildFailedError as error:
        if launch.nodes > 1:
            time.sleep(LEAVE_S)
        codes = [failure.exitcode for failure in error.failures.values()]
        if len(codes) == launch.processes and max(codes) < 0:  # nobody is left to say it
            raise UserError(
                f"all ranks of this machine were killed by {signal.Signals(-codes[0]).name}: look for the reason in "
                "the log of the system or of the scheduler"
            ) from None
        return max(1, error.get_first_failure()[1].exitcode)
    except RendezvousError as error:
        raise UserError(
            f"{launch.nodes} machines did not come together at {address} within {JOIN_S:.0f} s, or lost each other "
            f"({type(error).__name__}): run the same command on each; --launch.address is HOST:PORT of the first "
            "machine, with a free port"
        ) from error
    return 0


def _ended(code: int, launch: LaunchConfig) -> int:
    """The exit code after a signal. On one of several nodes, ends this process with it.

    A thread of torch's agent asks the agents' store every few seconds, and goes on after a signal. C++ aborts a process
    whose interpreter ends while that thread waits for an answer.
    """
    if launch.nodes > 1:
        time.sleep(LEAVE_S)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_after_ranks() -> None:
    """End this process if its ranks have ended and torch's agent, which started them, does not notice.

    If the network is cut, the agent waits minutes for an answer of its store. The ranks watch each other, so by then
    they have reported the loss and ended.
    """
    while True:
        time.sleep(LOOK_S)
        if ended := _ended_ranks():
            time.sleep(LEAVE_S)  # the agent looks ten times a second
            left = _ended_ranks()
            for rank in ended.keys() & left.keys():
                os._exit(left[rank])


def _ended_ranks() -> dict[int, int]:
    """Exit codes (1 for a signal) of the ranks that nobody has waited for, by process; none while one rank lives.

    A rank is a child that leads a session. Other children were there before `exec`, or are orphans of a container whose
    first process this is.
    """
    codes = {}
    with suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):  # the agent has waited for it just now
        children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
        for child in map(int, children.split()):
            if os.getsid(child) == child:
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return {}
                codes[child] = ended.si_status if ended.si_code == os.CLD_EXITED else 1
        return codes
    return {}
