"""What a machine can multiply, and what an episode asks of it: the two sides of "share of peak"."""

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from worldenv import ops
from worldenv.interfaces.observation import Starts
from worldenv.nn.int8 import Int8, Linear
from worldenv.rollout.engine import Engine, EngineConfig

SIZE = 2048  # of the square matrices


@torch.no_grad()
def matrix_peak(precision: str, rounds: int = 5) -> float:
    """Measured operations per second (a multiplication and an addition are two) of one large matrix product.

    float32 and bfloat16 by torch, int8 by the layer that imagines in 8 bits, no slower than oneDNN's. On as many
    threads as torch may use, the best round.
    """
    draw = torch.Generator().manual_seed(0)
    layer: nn.Module = Linear(SIZE, SIZE, bias=False)
    x = torch.rand(SIZE, SIZE, generator=draw)
    if precision == "int8":
        layer = Int8(layer, (0.0, 1.0))
        x = (255 * x).to(torch.uint8).view(64, -1, SIZE)  # a thread takes whole matrices
    if precision == "bfloat16":
        layer, x = layer.bfloat16(), x.bfloat16()
    times = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(times[2:])


def flops_per_chunk(engine: Engine, starts: Starts) -> int:
    """Operations of the matrix products and convolutions of one chunk of one episode, as torch counts them.

    The engine should be one in float32. Counted in plain PyTorch: what two chunks take less what one takes.
    """
    counts, before = [], ops.BACKEND
    for chunks in (1, 2):
        short = Engine(engine.policy, engine.world, engine.reflector, EngineConfig(horizon=chunks * engine.chunk))
        ops.BACKEND = "reference"
        try:
            with FlopCounterMode(display=False) as counter:
                short.run(starts.pick(torch.zeros(1, dtype=torch.long)), 1, 0, stop=False)
        finally:
            ops.BACKEND = before
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]
