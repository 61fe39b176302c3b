"""Compiles every Triton face for architectures that need not be there; run in a process of its own.

The launchers run as they are, on meta tensors of the shapes of libero-base: a launch compiles what it would launch,
with the specialisation of the launcher's own arguments (a meta tensor counts as aligned). Prints a JSON line a kernel.

    python tests/kernels/triton_offline.py 80 90 100
"""

import contextlib
import io
import json
import re
import sys

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from worldenv.kernels import (
    action_map,
    adagn,
    adaln,
    denoise_step,
    laplace_chunk,
    patchify,
    philox,
    ppo_loss,
    reward_head,
    rope_cache_write,
    spatial_softmax,
    windowed_attention,
)

B, M, L, H, G, D, C, LAYERS, WIDTH = 64, 256, 64, 12, 2, 128, 832, 16, 1536
F32, BF16, INT8, UINT8 = torch.float32, torch.bfloat16, torch.int8, torch.uint8
SEED = 1 << 40
GRIPPER = [0.012, 0.033, 0.05, 0.05, 0.4]


def meta(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype, device="meta")


def longs():
    return meta(B, dtype=torch.int64)


def ints():
    return meta(B, dtype=torch.int32)


def ring(dtype, g=G, c=C, d=D):
    """A layer of the slots' rings: keys, values and, of int8, their scales."""
    layers = [meta(B, LAYERS, g, c, d, dtype=dtype)[:, 3] for _ in range(2)]
    scales = [meta(B, LAYERS, g, c)[:, 3] for _ in range(2)] if dtype == INT8 else []
    return layers, scales


def attend(dtype, ring_dtype, m=M, h=H, g=G, c=C, d=D):
    (keys, values), scales = ring(ring_dtype, g, c, d)
    windowed_attention.windowed_attention(meta(B, m, h, d, dtype=dtype), keys, values, ints(), *scales)


def write(dtype, ring_dtype, m=M, tokens=L, h=H, g=G, c=C, d=D):
    layers, scales = ring(ring_dtype, g, c, d)
    rope_cache_write.rope_cache_write(
        meta(B, m, (h + 2 * g) * d, dtype=dtype),
        meta(d),
        meta(d),
        ints(),
        ints(),
        meta(d // 2),
        meta(tokens, d // 2),
        *layers,
        *scales,
    )


def normalise(dtype, branch=True, b=B, n=M, d=WIDTH):
    x, row = meta(b, n, d, dtype=dtype), meta(b, d, dtype=dtype)
    adaln.adaln(x, row, row, *((x, row) if branch else (None, None)))
    adaln.adaln_backward(x, x, x, row, *((x, row) if branch else (None, None)))


def denoise(dtype, t_next, *shape):
    x = meta(B, *shape, dtype=dtype)
    denoise_step.denoise_step(x, x, 1.0, t_next, SEED, longs(), longs(), 1)


def judge(b=32, k=4, d=256, d1=256, d2=64):
    head = [meta(*shape) for shape in [(3 * d,)] * 2 + [(d1, 3 * d), (d1,), (d2, d1), (d2,), (1, d2), (1,)]]
    reward_head.reward_head(meta(b, k, d), meta(b, d), meta(b, d), meta(b, 1), *head, 0.5)


def act(b=B, k=8, a=7):
    ids = meta(b, dtype=torch.int64)
    laplace_chunk.laplace_chunk(meta(b, k, a), meta(b, k, a), SEED, ids, ids, True)


def learn(b=B, k=8, a=7):
    chunk, row = meta(b, k, a), meta(b)
    ppo_loss.ppo_loss(chunk, chunk, chunk, row, row, 0.2)


def normalise_groups(activation, size=16, c=64, groups=8, b=B, condition=True, dtype=F32):
    x, row = meta(b, size, size, c, dtype=dtype), meta(c, dtype=dtype)
    pair = meta(b, 2 * c, dtype=dtype).chunk(2, 1) if condition else (None, None)
    adagn.adagn(x, groups, row, row, *pair, activation, 1e-5)


def oversize():
    """What a check must find: more than a thread has registers for."""
    tiles = windowed_attention._tiles
    windowed_attention._tiles = lambda *_: {
        "BLOCK_M": 64,
        "BLOCK_N": 32,
        "BLOCK_D": 128,
        "num_warps": 4,
        "num_stages": 2,
    }
    attend(F32, F32)
    windowed_attention._tiles = tiles


CASES = {
    "windowed_attention float32": lambda: attend(F32, F32),
    "windowed_attention bfloat16": lambda: attend(BF16, BF16),
    "windowed_attention int8": lambda: attend(BF16, INT8),
    "rope_cache_write float32": lambda: write(F32, F32),
    "rope_cache_write bfloat16": lambda: write(BF16, BF16),
    "rope_cache_write int8": lambda: write(BF16, INT8),
    "adaln float32": lambda: normalise(F32),
    "adaln bfloat16": lambda: normalise(BF16),
    "adaln without a branch": lambda: normalise(F32, branch=False),
    "denoise_step float32": lambda: denoise(F32, 0.0, 4, 64, 64),
    "denoise_step bfloat16": lambda: denoise(BF16, 0.5, 4, 64, 64),
    "reward_head": judge,
    "laplace_chunk": act,
    "ppo_loss": learn,
    "action_map": lambda: action_map.action_map(meta(B, 7), meta(B, 2, 3, 4), GRIPPER, 192, 256),
    "philox": lambda: philox.philox(SEED, longs(), longs(), 0, 1000, True),
    "patchify uint8": lambda: patchify.patchify(meta(B, 1, 256, 256, 3, dtype=UINT8)),
    "patchify float32": lambda: patchify.patchify(meta(B, 8, 64, 64, 3)),
    "spatial_softmax float32": lambda: spatial_softmax.spatial_softmax(meta(B, 64, 64, 64)),
    "spatial_softmax bfloat16": lambda: spatial_softmax.spatial_softmax(meta(B, 9, 7, 17, dtype=BF16)),
    "adagn of one tile": lambda: normalise_groups("relu"),
    "adagn of 5 channels a group": lambda: normalise_groups("silu", 32, 40, condition=False),
    "adagn of four tiles": lambda: normalise_groups("relu", 64),
    "adagn of more tiles": lambda: normalise_groups("silu", 128),
    "adagn bfloat16": lambda: normalise_groups("none", 100, 72, groups=9, dtype=BF16),
    "adagn of all channels": lambda: normalise_groups("none", 8, 6000, groups=1),
}
ONES = {  # Triton compiles a number that is 1 as a constant, which has other types and methods than a number
    "action_map": lambda: action_map.action_map(meta(1, 7), meta(1, 1, 3, 4), GRIPPER, 8, 8),
    "windowed_attention": lambda: attend(BF16, INT8, m=1, h=1, g=1, c=1, d=16),
    "rope_cache_write": lambda: write(BF16, INT8, m=1, tokens=1, h=1, g=1, c=1, d=2),
    "adaln": lambda: normalise(BF16, b=1, n=1, d=1),
    "denoise_step": lambda: denoise(BF16, 0.5, 1),
    "reward_head": lambda: judge(1, 1, 1, 1, 1),
    "laplace_chunk": lambda: act(1, 1, 1),
    "ppo_loss": lambda: learn(1, 1, 1),
    "philox": lambda: philox.philox(1, longs(), longs(), 1, 1, False),
    "patchify": lambda: patchify.patchify(meta(1, 1, 2, 2, 3)),
    "spatial_softmax": lambda: spatial_softmax.spatial_softmax(meta(1, 2, 2, 1)),
    "adagn": lambda: normalise_groups("silu", size=1, c=1, groups=1, b=1),
}


class Device:
    """What Triton asks of its driver while it compiles."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self):
        return self.arch  # by this Triton keeps apart what it has compiled

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)


def compile_at_launch(tell):
    """Make `kernel[grid](...)` compile without launching, and `tell(kernel, compiled, what ptxas said)`."""

    def compile_only(kernel, grid):
        def run(*arguments, **options):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                compiled = kernel.warmup(*arguments, grid=grid, **options)
            tell(kernel, compiled, said.getvalue())

        return run

    KernelInterface.__getitem__ = compile_only


def main(arches, cases):
    knobs.nvidia.dump_ptxas_log = True
    for arch in arches:
        driver.set_active(Device(arch))
        for name, launch in cases.items():

            def tell(kernel, compiled, said, name=name, arch=arch):
                registers = int(re.search(r"Used (\d+) registers", said)[1])
                spilled = int(re.search(r"(\d+) bytes spill stores", said)[1])
                print(
                    json.dumps(
                        {
                            "case": name,
                            "kernel": kernel.fn.__name__,
                            "arch": arch,
                            "warps": compiled.metadata.num_warps,
                            "shared_bytes": compiled.metadata.shared,
                            "registers": registers,
                            "spilled_bytes": spilled,
                        }
                    ),
                    flush=True,
                )

            compile_at_launch(tell)
            launch()


if __name__ == "__main__":
    main([int(arch) for arch in sys.argv[1:]], CASES)
    main([90], {f"{op} of ones": launch for op, launch in ONES.items()})
    main([80], {"oversize": oversize})
