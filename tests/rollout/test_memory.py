"""Freed memory is kept, where the C library can."""

import ctypes
import errno
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.rollout import memory

FAULTS = """
import resource, torch
from worldenv.rollout.memory import keep_freed_memory
{first}
faults = []
for _ in range(24):
    torch.ones(1 << 24)  # 64 MiB, written, freed
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_once_used_costs_no_page_faults_again():
    def faults(first):
        code = FAULTS.format(first=first)
        return int(
            subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
        )

    assert faults("keep_freed_memory()") < 100 < faults("")


HOLES = """
import ctypes
from worldenv.rollout import memory
memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
freed, before, size, places = memory.FreedMemory(), memory.resident_bytes(), 40 << 20, []
for _ in range(10):
    places.append(libc.malloc(size))
    ctypes.memset(places[-1], 1, size)
    libc.malloc(2000)  # stays, so that what is freed are holes
for place in places:
    libc.free(place)
for memory.GROWTH_BYTES in (1 << 30, 100 << 20):
    freed.check()
    print((memory.resident_bytes() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_is_returned_once_the_process_has_grown():
    done = subprocess.run([sys.executable, "-P", "-c", HOLES], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept > 350 and returned < 50


def test_every_chunk_of_a_rollout_looks_after_freed_memory(tiny, monkeypatch):
    looked = []
    monkeypatch.setattr(memory.FreedMemory, "check", lambda self: looked.append(self))
    engine = tiny.engine(horizon=8)
    engine.run(tiny.starts(2), 2, seed=0)
    assert len(looked) == 8 // engine.runner.chunk


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()


def test_free_memory_is_what_the_system_says():
    free = memory.free_bytes(torch.device("cpu"))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free < total


GROUPS = {
    "v1": ("4:memory:/a/b\n3:cpu:/other\n0::/\n", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    "v2": ("0::/a/b\n", "", "memory.max", "memory.current", ""),
    "v2 beside v1": ("0::/a/b\n", "unified", "memory.max", "memory.current", ""),
}
NO_LIMIT = {"v1": str(2**63 - 4096), "v2": "max", "v2 beside v1": "max"}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize("limited", ["a/b", "a", "", None])
def test_free_memory_is_within_the_limits_of_the_control_groups_around_the_process(
    tmp_path, monkeypatch, version, limited
):
    cgroup, mount, limit, used, total = GROUPS[version]
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(cgroup)
    (tmp_path / "self" / "statm").write_text("1 1 1 1 0 1 0")
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 5000000 kB\n")
    for name in ("a/b", "a", ""):
        group = tmp_path / "groups" / mount / name
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text("3000000" if name == limited else NO_LIMIT[version])
        (group / used).write_text("2000000")
        (group / "memory.stat").write_text(f"inactive_anon 7\n{total}inactive_file 500000\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    assert memory.free_bytes(torch.device("cpu")) == (5000000 * 1024 if limited is None else 1500000)


def test_a_container_that_shows_its_own_control_group_as_the_root_is_respected(tmp_path, monkeypatch):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/../../not/seen/from/here\n")
    for name, text in (("memory.max", "3000"), ("memory.current", "4000"), ("memory.stat", "inactive_file 0")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) == 0  # more is used than allowed


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_free_memory_is_within_the_limits_of_the_process(kind):
    code = f"""
import resource, torch
from worldenv.rollout.memory import free_bytes
resource.setrlimit(resource.{kind}, (3 << 30,) * 2)
first = free_bytes(torch.device("cpu"))
kept = torch.empty(1 << 28, dtype=torch.uint8)
print(first < 3 << 30, abs(first - free_bytes(torch.device("cpu")) - (1 << 28)) < 1 << 20)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


# What the compiled ops raise where a tensor cannot be made, and where one of their vectors cannot.
TORCH_SAYS = 'torch_call_dispatcher( "aten::{}", "", stack.data(), ( ((0ULL + 2) << 56) )) API call failed at ops.h'


def test_errors_that_say_memory_ran_out_are_known():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpy:
        np.empty(1 << 60, dtype=np.uint8)
    with pytest.raises(RuntimeError) as compiled:
        none = torch.zeros(1, dtype=torch.int64).expand(1 << 20)
        torch.ops.worldenv.philox(0, none, none, 1, 1 << 33, False)
    says = [TORCH_SAYS.format(name) for name in ("new_empty", "empty_like", "contiguous")]
    says += ["std::bad_alloc", "could not create a primitive", "could not create a memory object"]
    says += ["can't start new thread", "torch_parallel_for( begin, end) API call failed at ops.h, line 579"]
    known = [cpu.value, numpy.value, compiled.value, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    known += [OSError(errno.ENOMEM, "Cannot allocate memory"), *(RuntimeError(text) for text in says)]
    assert [error for error in known if not memory.ran_out(error)] == []
    others = [RuntimeError("shapes differ"), RuntimeError(TORCH_SAYS.format("addmm")), ValueError("std::bad_alloc")]
    assert not any(memory.ran_out(error) for error in [*others, OSError(errno.ENOENT, "no such file")])


def test_out_of_memory_becomes_one_line_and_other_errors_stay_as_they_are():
    for error, kind in (
        (MemoryError(), UserError),
        (RuntimeError("std::bad_alloc"), UserError),
        (KeyError(1), KeyError),
    ):
        with pytest.raises(kind) as raised, memory.out_of_memory_says("take less"):
            raise error
        assert kind is KeyError or str(raised.value) == "out of memory: take less"


def test_a_pass_on_a_gpu_takes_half_of_the_memory_that_is_free(monkeypatch):
    figures = {
        "memory_allocated": 1000,
        "max_memory_allocated": 1080,
        "memory_reserved": 1400,
        "mem_get_info": (600, 0),
        "reset_peak_memory_stats": None,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    calls = []
    # 80 bytes for 8 episodes; free are 600 and the 400 that torch holds and does not use
    assert memory.fitting(lambda: calls.append(1), 8, torch.device("cuda")) == 50
    assert len(calls) == 2  # the first compiles
    assert memory.fitting(lambda: calls.append(1), 8, torch.device("cpu")) is None and len(calls) == 2
