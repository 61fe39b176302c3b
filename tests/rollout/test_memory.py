"""Freed memory is kept, where the C library can."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

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
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < 100 < faults("")


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()


def test_free_memory_is_what_the_system_says():
    free = memory.free_bytes(torch.device("cpu"))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free < total


def test_errors_that_say_memory_ran_out_are_known():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.ran_out(cpu.value) and memory.ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert not memory.ran_out(RuntimeError("shapes differ"))


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
