"""Freed memory is kept, where the C library can."""

import ctypes
import platform
import subprocess
import sys

import pytest

from worldenv import memory

FAULTS = """
import resource, torch
from worldenv.memory import keep_freed_memory
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
