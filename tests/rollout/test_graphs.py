import gc
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worldenv import ops
from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.graphs import Graphs, bucket
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer import contact, layer
from worldenv.worlds.composer.world import ComposerWorld


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
    def record(graph, pool, stream, capture_error_mode):
        assert stream == "its own" and capture_error_mode == "thread_local"
        graph.pool = pool
        recorded.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "its own")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
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

    return partial(Graphs(), think), calls


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


def test_graphs_of_numbers_that_do_not_come_back_are_not_kept(fake_graphs):
    graphs, _ = make(fake_graphs)
    slots = Counted(torch.zeros(8))
    for step in range(20):
        for _ in range(2):
            graphs(slots, 5, step)
    assert len(fake_graphs) == 20 and len(graphs.func.graphs) == 1
    assert len({graph.pool for graph in fake_graphs}) == 20  # torch may refuse a pool that has no graph any more


def test_graphs_of_the_same_numbers_share_a_pool(fake_graphs):
    graphs, _ = make(fake_graphs)
    slots = Counted(torch.zeros(8))
    for count in (5, 3, 5, 3):
        graphs(slots, count, 1)
    assert len(fake_graphs) == 2 and len({graph.pool for graph in fake_graphs}) == 1


def test_two_threads_record_one_after_the_other(fake_graphs):
    inside, most = [], []

    def think(live):
        if fake_graphs:  # being recorded
            inside.append(live)
            time.sleep(0.1)
            most.append(len(inside))
            inside.pop()
            fake_graphs[-1].again = int
        return Counted(live.number)

    engines = [(Graphs(), think, Counted(torch.zeros(8)), 5) for _ in range(2)]
    for graphs, *given in engines:
        graphs(*given)
    with ThreadPoolExecutor(2) as threads:
        for call in [threads.submit(graphs, *given) for graphs, *given in engines]:
            call.result()
    assert most == [1, 1]


@pytest.mark.parametrize(
    ("error", "seen"),
    [(RuntimeError("not permitted when stream is capturing"), UserError), (torch.OutOfMemoryError("CUDA"), None)],
)
def test_what_cannot_be_recorded_is_told_with_the_way_out(fake_graphs, error, seen):
    graphs, slots, calls = Graphs(), Counted(torch.zeros(8)), []

    def think(live):
        calls.append(live)
        if len(calls) == 2:
            raise error
        return Counted(live.number)

    graphs(think, slots, 5)
    with pytest.raises(seen or type(error), match="EngineConfig.graphs=False" if seen else "CUDA"):
        graphs(think, slots, 5)


def test_engine_frees_its_slots_as_soon_as_nobody_holds_it(tiny):
    engine = tiny.engine(horizon=8)
    engine.run(tiny.starts(2), 1, 0)
    slots = weakref.ref(engine.runner.episodes)
    gc.disable()
    try:
        del engine
        assert slots() is None  # no cycle keeps them: a card's memory would wait for the collector
    finally:
        gc.enable()


@pytest.fixture
def all_rows(monkeypatch):
    """As on a GPU, the contact network looks at every episode, not only where the gripper is near things."""
    for module in (contact, layer):
        monkeypatch.setattr(module, "rows_with", lambda mask: torch.arange(len(mask)))


def test_a_step_brings_no_numbers_from_the_host_but_the_first_time(tiny, all_rows, monkeypatch):
    """Recording a CUDA graph fails where a tensor is made of Python's numbers."""
    engine, starts = tiny.engine(horizon=8), tiny.starts(3)
    engine.run(starts, 1, 0)

    def refuse(*_, **__):
        raise AssertionError("made of numbers of the host")

    for backend in ("", "reference"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        engine.runner.think(engine.runner.episodes[:3], 0, True)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "tensor", refuse)
            patch.setattr(torch, "as_tensor", refuse)
            patch.setattr(torch.Tensor, "new_tensor", refuse)
            engine.runner.think(engine.runner.episodes[:3], 0, True)


class Waits(TorchDispatchMode):
    """Which ops were called that a host must wait for: what they give depends on what is in the tensors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in ("unique", "nonzero", "_local_scalar_dense", "masked_select")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [4, 3])
def test_no_episode_waits_for_the_host_as_it_begins_and_goes_on(tiny, all_rows, chunk, monkeypatch):
    engine, found = tiny.engine(horizon=12, capacity=4, policy=tiny.policy(chunk=chunk)), []

    def watched(name):
        call = getattr(engine.runner, name)

        def run(*given):
            with Waits() as waits:
                out = call(*given)
            found.append((name, waits.found))
            return out

        monkeypatch.setattr(engine.runner, name, run)

    engine.run(tiny.starts(7), 2, 0)  # what the models return in the first chunk is checked
    watched("begin")
    watched("think")
    engine.run(tiny.starts(7), 2, 0)
    assert {name for name, _ in found} == {"begin", "think"} and not any(waits for _, waits in found)
    with Waits() as waits:
        torch.unique(torch.zeros(2, 2), dim=0), torch.ones(2).sum().item()
    assert len(waits.found) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_waits_for_the_device_once_a_chunk(tiny, monkeypatch):
    world = ComposerWorld(tiny.simulator().cuda(), moved_gripper(Kinematics(), clear_m=CLEAR_M), (1.0,))
    models = {"policy": tiny.policy().cuda(), "world": world, "reflector": tiny.reflector().cuda()}
    engine, starts = tiny.engine(horizon=20, capacity=12, batch=12, **models), tiny.starts(7).to("cuda")
    for _ in range(3):  # compiled and recorded
        engine.run(starts, 3, 0)
    advance, chunks = engine._advance, []

    def watched(over, run):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            chunks.append(len(over))
            return advance(over, run)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine, "_advance", watched)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine.run(starts, 3, 0)
    waits = [str(one.message) for one in told if "called a synchronizing" in str(one.message)]
    assert len(waits) <= len(chunks), waits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("capacity", "batch"), [(12, None), (14, 8)])
def test_replayed_steps_give_the_rollouts_of_steps_that_are_launched(tiny, monkeypatch, capacity, batch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # batches of other sizes would round otherwise
    world = ComposerWorld(tiny.simulator().cuda(), moved_gripper(Kinematics(), clear_m=CLEAR_M), (1.0, 0.5))
    models = {"policy": tiny.policy().cuda(), "world": world, "reflector": tiny.reflector().cuda()}
    engine, starts = tiny.engine(horizon=20, capacity=capacity, batch=batch, **models), tiny.starts(7).to("cuda")
    replayed = engine.run(starts, 3, 0)
    assert any(engine.runner.graphs.graphs.values())
    engine.runner.replays = False
    launched = engine.run(starts, 3, 0)
    for name in ("chunks", "stop", "stopped", "broken"):
        assert torch.equal(getattr(replayed, name), getattr(launched, name)), name
    for name, tolerance in {"action": 1e-3, "log_prob": 1e-3, "reward": 5e-3}.items():  # the last: of a pixel's level
        torch.testing.assert_close(getattr(replayed, name), getattr(launched, name), rtol=1e-3, atol=tolerance)
