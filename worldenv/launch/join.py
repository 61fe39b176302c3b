"""A process becomes a rank: it finds the others by the variables of its environment that torchrun sets."""

import gc
import json
import os
import platform
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta

import torch
import torch.distributed.nn.functional  # before a group is made: else its functions hold the group for ever
from torch import distributed
from torch.distributed import PrefixStore, TCPStore

import worldenv
from worldenv.errors import Terminated, UserError
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.launch.share import number, own_cpus, ranks_here
from worldenv.launch.watch import Watch, beat_of, first_line

JOIN_S = 120.0  # from the first rank to the last
LINGER_S = 4.0  # under Ray, which ends all ranks when one has ended: time for another to say why
EXCHANGE_S = 6 * 3600.0  # that a rank may wait for a slower one: rank 0 does some work alone


@contextmanager
def joined(program: str) -> Iterator[Ranks]:
    """The ranks of the job that this process belongs to; ALONE if the environment names none.

    Ranks but the first one print neither progress nor warnings. When one of them fails, all end, and one says why.
    Raises UserError if a rank does not come, or is of another version.
    """
    ranks = _join(program)
    if ranks.count == 1:
        yield ranks
        return
    try:
        with open(os.devnull, "w") as nowhere:
            if ranks.first:
                yield ranks
            else:
                with redirect_stderr(nowhere):
                    yield ranks
        ranks.every(None)  # who is done does not leave before the others: they would miss it
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            for repeated in (signal.SIGTERM, signal.SIGINT):  # by who started the ranks, when the first has ended
                signal.signal(repeated, signal.SIG_IGN)
        if isinstance(error, RuntimeError) or (isinstance(error, Terminated) and not ranks.asked):
            ranks.watch.roll_call()  # an exchange failed, or who started the ranks ends them: has one died?
        ranks.watch.leave(error)
        raise
    ranks.watch.end()
    gc.collect()  # frees sharded models, which hold a reference to the group
    distributed.destroy_process_group()  # ends gloo's threads: C++ aborts a process that ends before them


def _join(program: str) -> Ranks:
    count = number("WORLD_SIZE", 1)
    if count <= 1:
        return ALONE
    rank = number("RANK")
    if not 0 <= rank < count:
        raise UserError(f"the environment variable RANK is {rank}; it should be below WORLD_SIZE, {count}")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(own_cpus())
    if ranks_here() == count:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of the machine may lead nowhere
    if torch.cuda.is_available():
        torch.cuda.set_device(number("LOCAL_RANK", 0) % torch.cuda.device_count())
    job = f"worldenv/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = PrefixStore(job, _store(rank))
    own = {"name": f"rank {rank} ({socket.gethostname()}, process {os.getpid()})", "versions": _versions()}
    store.set(beat_of(rank), "1")  # a sign of life, before others can look for one
    store.set(f"here/{rank}", json.dumps(own))
    others = _all_come(store, rank, count)
    has_group = distributed.is_initialized()  # made by Ray
    linger_s = LINGER_S if has_group else 0.0
    watch = Watch(store, rank, [other["name"] for other in others], program, linger_s)
    watch.begin()  # from here on nobody waits for one that has died
    if not has_group:
        _make_group(store, rank, count, watch)
    return Ranks(rank, count, watch)


def _make_group(store: PrefixStore, rank: int, count: int, watch: Watch) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    own_store = PrefixStore(
        "group", store.clone()
    )  # a client waits for one thing at a time, and the watch has to go on
    given = {"store": own_store, "rank": rank, "world_size": count, "timeout": timedelta(seconds=EXCHANGE_S)}
    try:
        distributed.init_process_group(backend, **given)
    except RuntimeError as error:
        watch.roll_call()  # has one died?
        told = UserError(
            f"the ranks cannot connect to each other ({first_line(error)}): a machine may know its own name by an "
            "address that others do not reach, such as 127.0.1.1; set GLOO_SOCKET_IFNAME, and for CUDA also "
            "NCCL_SOCKET_IFNAME, to the network interface that leads to the others, such as eth0"
        )
        watch.leave(told)
        raise told from error


def _store(rank: int) -> TCPStore:
    """The store of torchrun or Ray, or one that rank 0 makes."""
    address, port = os.environ.get("MASTER_ADDR", ""), number("MASTER_PORT")
    if not address:
        raise UserError(
            "the environment variable MASTER_ADDR is not set; start the ranks with torchrun, or with "
            "--launch.processes (docs/clusters.md)"
        )
    is_made = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or distributed.is_initialized()
    is_master = rank == 0 and not is_made
    made: list[TCPStore | RuntimeError] = []

    def connect() -> None:
        given = {"is_master": is_master, "timeout": timedelta(seconds=JOIN_S), "wait_for_workers": False}
        try:
            made.append(TCPStore(address, port, None, **given))
        except RuntimeError as error:
            made.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(JOIN_S + 1)  # it waits for ever where something else listens that never answers
    found = made[0] if made else RuntimeError("no answer")
    if isinstance(found, TCPStore):
        return found
    if is_master:
        said = " ".join(str(found).split())[:120]
        raise UserError(f"rank 0 cannot listen on port {port} ({said}): choose another MASTER_PORT") from found
    raise UserError(
        f"rank {rank} finds no rank 0 at {address}:{port} within {JOIN_S:.0f} s: start all ranks, and let MASTER_ADDR "
        "and MASTER_PORT name the machine of rank 0 and a free port on it"
    ) from found


def _versions() -> dict[str, str]:
    return {
        "worldenv": worldenv.__version__,
        "torch": torch.__version__.partition("+")[0],
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def _all_come(store: PrefixStore, rank: int, count: int) -> list[dict]:
    """What every rank says of itself. Raises UserError for one that does not come, or has another version.

    Where rank 0 finds the same, it alone says so: the others raise SystemExit.
    """
    keys = [f"here/{other}" for other in range(count)]
    try:
        store.wait(keys, timedelta(seconds=JOIN_S))
        found = [json.loads(store.get(key)) for key in keys]
    except RuntimeError as error:
        missing = _missing(store, keys)
        if rank and 0 not in missing:
            raise SystemExit(2) from error
        raise UserError(
            f"{len(missing)} of {count} ranks did not start within {JOIN_S:.0f} s: {', '.join(map(str, missing[:8]))}"
            f"{' ...' * (len(missing) > 8)}; start all ranks, and look for an error in the output of the missing ones"
        ) from error
    first = found[0]
    for other in found:
        for name, version in other["versions"].items():
            if version != first["versions"][name]:
                if rank:
                    raise SystemExit(2)
                raise UserError(
                    f"{other['name']} has {name} {version}, {first['name']} has {first['versions'][name]}; install the "
                    "same version for all ranks"
                )
    return found


def _missing(store: PrefixStore, keys: list[str]) -> list[int]:
    try:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]
    except RuntimeError:  # rank 0 is gone, with its store
        return []
