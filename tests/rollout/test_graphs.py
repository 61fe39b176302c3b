from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldenv import ops
from worldenv.camera import tabletop_camera
from worldenv.rollout.graphs import Graphs, bucket
from worldenv.simulator.world import World
from worldenv.slots import Slots


@dataclass
class Counted(Slots):
    number: Tensor


@pytest.mark.parametrize("capacity", [1, 5, 64, 1000])
def test_bucket_holds_the_count_wastes_a_third_at_most_and_never_exceeds_the_capacity(capacity):
    sizes = set()
    for count in range(1, capacity + 1):
        size = bucket(count, capacity)
        assert count <= size <= capacity and size - count <= size / 3
        sizes.add(size)
    assert len(sizes) <= 2 * capacity.bit_length() + 1


@pytest.fixture
def fake_graphs(monkeypatch):
    """CUDA graphs in Python: recording calls nothing for real, a replay calls it and fills the recorded results."""
    recorded = []

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1
            self.again()

    @contextmanager
    def record(graph):
        recorded.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return recorded


def make(fake_graphs):
    calls = []

    def think(live, step):
        calls.append((len(live), step))
        out = Counted(torch.zeros_like(live.number))

        def again():
            live.number.add_(step)
            out.number.copy_(live.number)

        if fake_graphs and not hasattr(fake_graphs[-1], "again"):
            fake_graphs[-1].again = again  # being recorded: nothing runs
        else:
            again()
        return out

    return Graphs(think), calls


def test_first_call_runs_the_second_records_and_later_ones_replay(fake_graphs):
    graphs, calls = make(fake_graphs)
    slots = Counted(torch.zeros(8))
    found = [graphs(slots, 5, 1).number.clone() for _ in range(4)]
    assert calls == [(6, 1), (6, 1)]  # the bucket of 5, in Python but twice
    assert [row.tolist() for row in found] == [[float(i)] * 5 for i in range(1, 5)]
    assert fake_graphs[0].replays == 3
    assert slots.number.tolist() == [4.0] * 6 + [0.0] * 2


def test_other_numbers_slots_and_buckets_are_recorded_anew(fake_graphs):
    graphs, calls = make(fake_graphs)
    slots = Counted(torch.zeros(8))
    for count, step, where in ((5, 1, slots), (5, 2, slots), (3, 1, slots), (5, 1, Counted(torch.zeros(8)))):
        graphs(where, count, step)
    assert len(calls) == 4 and not fake_graphs


def test_a_step_brings_no_numbers_from_the_host_but_the_first_time(tiny, monkeypatch):
    """Recording a CUDA graph fails where a tensor is made of Python's numbers."""
    engine, starts = tiny.engine(horizon=2), tiny.starts(3)
    engine.run(starts, 1, 0)

    def refuse(*_, **__):
        raise AssertionError("made of numbers of the host")

    for backend in ("", "reference"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        engine.think(engine.episodes[:3], 0, True)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "tensor", refuse)
            patch.setattr(torch, "as_tensor", refuse)
            patch.setattr(torch.Tensor, "new_tensor", refuse)
            engine.think(engine.episodes[:3], 0, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_steps_give_the_rollouts_of_steps_that_are_launched(tiny):
    world = World(tiny.simulator().cuda(), tabletop_camera(16), (1.0, 0.5))
    models = {"policy": tiny.policy().cuda(), "world": world, "reflector": tiny.reflector().cuda()}
    engine, starts = tiny.engine(horizon=5, capacity=12, batch=None, **models), tiny.starts(7).to("cuda")
    replayed = engine.run(starts, 3, 0)
    assert any(engine.graphs.graphs.values())
    engine.config = replace(engine.config, graphs=False)
    launched = engine.run(starts, 3, 0)
    for name in ("chunks", "stop", "stopped", "broken"):
        assert torch.equal(getattr(replayed, name), getattr(launched, name)), name
    for name in ("action", "reward", "log_prob"):
        torch.testing.assert_close(getattr(replayed, name), getattr(launched, name), rtol=1e-3, atol=1e-3)
