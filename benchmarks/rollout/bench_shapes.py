"""The engine on a GPU at the two shapes: frames a second, memory of an episode, share of the card's matrix peak."""

import gc
import time

import pytest
import torch
from predict import count

from worldenv.job import make_engine
from worldenv.nn.instruction import tokenize
from worldenv.policy.small import Policy, PolicyConfig
from worldenv.records.model_files import Models, shipped
from worldenv.reflector.small import Reflector, ReflectorConfig
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Starts
from worldenv.worlds.causal.network import LIBERO_BASE, Causal
from worldenv.worlds.causal.world import CausalWorld

DEVICE = "cuda"
PART = 512  # episodes a pass: activations of more do not fit beside the rings of 4,096, nor in 2**31 numbers
CHUNKS = 2


def tabletop(config: EngineConfig) -> Engine:
    return make_engine(Models.load(shipped()).to(DEVICE), config)


def libero_base(config: EngineConfig) -> Engine:
    """Random weights; the simulator in bfloat16."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = Causal(LIBERO_BASE).eval().requires_grad_(False).to(torch.bfloat16)
        policy, reflector = Policy(PolicyConfig()).eval(), Reflector(ReflectorConfig()).eval()
    world = CausalWorld(network, tabletop_camera(LIBERO_BASE.image_size))
    return Engine(policy, world, reflector, Kinematics(), config)


def starts(episodes: int, size: int) -> Starts:
    draw = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (episodes, size, size, 3), generator=draw, dtype=torch.uint8)
    proprio = torch.tensor([0, 0.05, 0.1, 0, 0, 0, 0.5]).repeat(episodes, 1)
    return Starts(frame, proprio, tokenize(["put the red block on the green pad"] * episodes)).to(DEVICE)


def flops_a_frame(engine: Engine) -> float | None:
    """Of the causal simulator, as `predict.py` counts them; None for the other one."""
    if not isinstance(engine.world, CausalWorld):
        return None
    config = engine.world.simulator.config
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
    engine = make(EngineConfig(horizon=CHUNKS, capacity=episodes, batch=PART))
    given = starts(episodes, engine.world.size)

    def run():
        out = engine.run(given, 1, 0, stop=False)
        torch.cuda.synchronize()
        return out

    torch.cuda.reset_peak_memory_stats()
    run()  # kernels are compiled, then recorded
    began = time.perf_counter()
    out = benchmark.pedantic(run, rounds=1)
    seconds = time.perf_counter() - began
    assert not out.broken.any() and (out.chunks == CHUNKS).all() and len(engine.episodes) == episodes
    frames, flops = episodes * CHUNKS * engine.world.chunk, flops_a_frame(engine)
    slot, record = engine.bytes_per_episode(given)
    benchmark.extra_info.update(
        frames_per_s=frames / seconds,
        slot_bytes=slot,
        record_bytes=record,
        peak_bytes=torch.cuda.max_memory_reserved(),
        simulator_flops_per_s=flops and flops * frames / seconds,
    )
