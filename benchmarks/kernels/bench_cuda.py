"""The CUDA faces against their rivals on a CUDA device, at the shapes of `libero-base`. Times are of CUDA events."""

import json
import os
import statistics
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from worldenv.ops.rope_cache_write import rope_cache_write
from worldenv.ops.windowed_attention import windowed_attention, windowed_attention_reference
from worldenv.worlds.causal.network import LIBERO_BASE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
TOKENS, C, D = LIBERO_BASE.tokens, LIBERO_BASE.places, LIBERO_BASE.head
M, H, G = LIBERO_BASE.chunk * TOKENS, LIBERO_BASE.heads, LIBERO_BASE.key_heads
ROUNDS, WARM = 12, 3
CASES = [(episodes, int8) for episodes in (64, 1024) for int8 in (False, True)]
FACES = {"cuda": {}, "triton": {"WORLDENV_BACKEND": "triton"}, "wgmma": {"WORLDENV_WGMMA": "1"}}
CHILD_S = 60.0


def seconds(call):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(calls):
    """Median seconds of each call; rounds run forwards and backwards, so that a drift of the clock hits all alike."""
    times = {name: [] for name in calls}
    for name in calls:
        for _ in range(WARM):
            calls[name]()
    for i in range(ROUNDS):
        for name in list(calls) if i % 2 else reversed(calls):
            times[name].append(seconds(calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def attention_inputs(episodes, int8):
    """Full rings: the steady state of a long episode."""
    query = torch.randn(episodes, M, H, D, dtype=torch.bfloat16, device="cuda")
    shape, length = (episodes, G, C, D), torch.full((episodes,), C, dtype=torch.int32, device="cuda")
    if not int8:
        return query, *(torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2)), length
    rings = (torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda") for _ in range(2))
    return query, *rings, length, *(torch.rand(shape[:3], device="cuda") / 64 for _ in range(2))


def rope_inputs(episodes, int8):
    draw = lambda *shape: torch.randn(*shape, device="cuda")  # noqa: E731
    ring = lambda: torch.zeros(episodes, G, C, D, dtype=torch.int8 if int8 else torch.bfloat16, device="cuda")  # noqa: E731
    numbers = (torch.full((episodes,), n, dtype=torch.int32, device="cuda") for n in (40, 900))
    scales = [torch.zeros(episodes, G, C, device="cuda") for _ in range(2)] if int8 else []
    qkv = draw(episodes, M, (H + 2 * G) * D).bfloat16()
    return qkv, draw(D), draw(D), *numbers, draw(D // 2), draw(TOKENS, D // 2), ring(), ring(), *scales


def sdpa(query, keys, values, _):
    """torch's own, of keys that are gathered already."""
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, enable_gqa=True).transpose(1, 2)


def measure(episodes, int8):
    """One face, the one that this process takes: checked, then timed beside torch's own. A child prints this."""
    with torch.no_grad():
        attention, rope = attention_inputs(episodes, int8), rope_inputs(episodes, int8)
        few = [t[:2] for t in attention]
        expected = windowed_attention_reference(few[0].float(), *few[1:])
        torch.testing.assert_close(windowed_attention(*few).float(), expected, rtol=2e-2, atol=2e-2)
        calls = {"attention": lambda: windowed_attention(*attention), "rope": lambda: rope_cache_write(*rope)}
        if not int8:
            calls["sdpa"] = lambda: sdpa(*attention)
        return interleaved(calls)


def name(episodes, int8):
    return f"{episodes} {'int8' if int8 else 'bf16'}"


def child(face):
    """What a process with this face printed: seconds by case and call; or why it failed."""
    command, environment = [sys.executable, __file__], os.environ | FACES[face]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        return f"took longer than {CHILD_S:g} s"
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-2000:]


def compare():
    """A face is chosen when a process starts, so each runs in its own, twice, in turn."""
    faces = [face for face in FACES if face != "wgmma" or torch.cuda.get_device_capability()[0] == 9]
    times, failed = {name(*case): {} for case in CASES}, {}
    for face in [*faces, *reversed(faces)]:
        found = failed[face] if face in failed else child(face)
        if isinstance(found, str):
            failed[face] = found
            continue
        for case, calls in found.items():
            for call, seconds in calls.items():
                times[case].setdefault(f"{face} {call}", []).append(seconds)
    return {case: {call: statistics.mean(s) for call, s in calls.items()} for case, calls in times.items()}, failed


def bench_faces_of_libero_base(benchmark):
    """The row is the time of the whole comparison; what it found is beside it."""
    seconds, failed = benchmark.pedantic(compare, rounds=1)
    for episodes, int8 in CASES:
        flops = 4 * episodes * M * H * C * D
        written = 2 * episodes * M * G * D * (1 if int8 else 2)
        moved = episodes * M * (H + 2 * G) * D * 2 + episodes * M * H * D * 2 + written  # read once, written once
        found = seconds[name(episodes, int8)]
        benchmark.extra_info[name(episodes, int8)] = {
            "median_s": found,
            "tflop_s": {n: flops / s / 1e12 for n, s in found.items() if not n.endswith("rope")},
            "gb_s": {n: moved / s / 1e9 for n, s in found.items() if n.endswith("rope")},
        }
    benchmark.extra_info["failed"] = failed
    assert not set(failed) - {"wgmma"}, failed  # which waits to be confirmed


if __name__ == "__main__":
    print(json.dumps({name(*case): measure(*case) for case in CASES}))
