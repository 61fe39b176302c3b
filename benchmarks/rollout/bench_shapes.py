"""The engine on a GPU at the two shapes: frames a second, memory of an episode, share of the card's matrix peak."""

import gc
import time

import pytest
import torch
from causal import ROBOT, random_starts

from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.worlds.causal.cost import count
from worldenv.worlds.causal.network import LIBERO_BASE, CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld

DEVICE = "cuda"
PART = 512  # episodes a pass: activations of more do not fit beside the rings of 4,096, nor in 2**31 numbers
HORIZON = 8  # actions, two chunks


def tabletop(config: EngineConfig) -> Engine:
    """What `worldenv-train tabletop-causal` trains."""
    return random_engine(CausalConfig(), config)


def libero_base(config: EngineConfig) -> Engine:
    return random_engine(LIBERO_BASE, config)


def random_engine(world: CausalConfig, config: EngineConfig) -> Engine:
    """Random weights; the simulator in bfloat16."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = CausalNetwork(world).eval().requires_grad_(False).to(torch.bfloat16)
        policy, reflector = SmallPolicy(SmallPolicyConfig()).eval(), SmallReflector(SmallReflectorConfig()).eval()
    return Engine(policy, CausalWorld(network, ROBOT), reflector, config)


def flops_a_frame(engine: Engine) -> float:
    """Of the causal simulator, as `worlds/causal/cost.py` counts them."""
    config = engine.world.network.config
    one = count(config, config.places)
    return (len(engine.world.levels) + 1) * (one.matrix_flops + one.attention_flops) / config.chunk


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("episodes", [64, 1024, 4096])
@pytest.mark.parametrize("make", [tabletop, libero_base])
@pytest.mark.filterwarnings("error:out of memory")  # fewer episodes than it says would be resident
def bench_engine(benchmark, make, episodes):
    gc.collect()  # of the engine before
    torch.cuda.empty_cache()
    engine = make(EngineConfig(HORIZON, capacity=episodes, batch=PART))
    given = random_starts(episodes, engine.world.size[0]).to(DEVICE)

    def run():
        out = engine.run(given, 1, 0, stop=False)
        torch.cuda.synchronize()
        return out

    torch.cuda.reset_peak_memory_stats()
    run()  # kernels are compiled, then recorded
    began = time.perf_counter()
    out = benchmark.pedantic(run, rounds=1)
    seconds = time.perf_counter() - began
    assert not out.broken.any() and (out.chunks == engine.horizon).all() and len(engine.runner.episodes) == episodes
    frames, flops = episodes * HORIZON, flops_a_frame(engine)
    slot, record = engine.bytes_per_episode(given)
    benchmark.extra_info.update(
        frames_per_s=frames / seconds,
        slot_bytes=slot,
        record_bytes=record,
        peak_bytes=torch.cuda.max_memory_reserved(),
        simulator_flops_per_s=flops * frames / seconds,
    )
