"""Practice on several ranks: the same episodes, the same policy, and runs that go on with another number of ranks."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worldenv.assemble import load, make_engine
from worldenv.evaluation.measure import held_out, practice_starts
from worldenv.evaluation.truth import act_in_true
from worldenv.launch.ranks import ALONE
from worldenv.policy.laplace import LaplacePolicy
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.critic import READY
from worldenv.rl.loop import post_train
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.suite import TabletopSuite

CONFIG = PostTrainConfig(iterations=3, starts=5, siblings=4, minibatch=32, signal=1e-6)
TIMES = ("time_s", "rollout_s", "update_s", "ahead_s")


def practise(engine, starts, path, ranks, config=CONFIG):
    """Post-train in a run folder, which is made or resumed; returns counts, weights, and all rollouts of this rank."""
    if ranks.first:
        folder = RunFolder.resume(path) if path.exists() else RunFolder.create(path, {})
    ranks.every(None)
    kept, run = [], engine.run

    def spy(*arguments, **asked):
        kept.append(run(*arguments, **asked))
        return kept[-1]

    engine.run = spy
    counts = post_train(engine, starts, config, folder if ranks.first else RunFolder(path), 4, ranks=ranks)
    return counts, engine.policy.state_dict(), [rollouts.action for rollouts in kept]


def logged(path):
    lines = RunFolder(path).metrics("post_train")
    return [{k: v for k, v in line.items() if k not in TIMES and not isinstance(v, str)} for line in lines]


def farthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("critic", [False, True])
def test_any_number_of_ranks_learns_the_same_policy_from_the_same_episodes(tiny, tmp_path, begin, critic):
    starts, config = tiny.starts(6), replace(CONFIG, iterations=READY + 1 if critic else 2, critic=critic)

    def work(ranks, path=tmp_path / "1"):
        engine = tiny.engine(horizon=8, capacity=1, batch=1)  # alone, an episode is the same to the bit in floats, too
        return practise(engine, starts, path, ranks, config)

    counts, alone, episodes = work(ALONE)
    assert farthest(alone, tiny.policy().state_dict()) > 1e-4
    for count in (2, 4):
        path = tmp_path / str(count)
        ranks = begin(count, lambda ranks, at=path: work(ranks, at)).results()
        assert all(one[0] == counts for one in ranks) and counts["groups"] == 5 * config.iterations
        assert all(farthest(one[1], alone) == 0 for one in ranks)
        for i, whole in enumerate(episodes):
            assert torch.equal(torch.cat([one[2][i] for one in ranks]), whole)
        for mine, line in zip(logged(path), logged(tmp_path / "1"), strict=True):
            assert mine == pytest.approx(line, rel=1e-12, abs=1e-12)


def test_episodes_in_8_bits_are_the_same_to_the_bit(tmp_path, begin):
    parts = load()
    starts = practice_starts(replace_suite(parts), 0)
    config = replace(CONFIG, iterations=1)

    def work(ranks, path=tmp_path / "2"):
        return practise(make_engine(parts, EngineConfig(horizon=8), "int8"), starts, path, ranks, config)

    two = begin(2, work).results()
    _, _, (whole,) = work(ALONE, tmp_path / "1")
    assert torch.equal(torch.cat([episodes[0] for _, _, episodes in two]), whole)


def replace_suite(parts):
    parts.suite.practice_starts = 20
    return parts.suite


def test_run_goes_on_with_another_number_of_ranks(tiny, tmp_path, begin, same_weights):
    starts, path = tiny.starts(6), tmp_path / "run"
    practise(tiny.engine(horizon=8), starts, tmp_path / "whole", ALONE)
    for count, iterations in ((2, 1), (1, 2), (3, 3)):
        config = SameRates(**vars(CONFIG) | {"iterations": iterations})
        if count == 1:
            practise(tiny.engine(horizon=8), starts, path, ALONE, config)
        else:
            begin(count, lambda ranks, c=config: practise(tiny.engine(horizon=8), starts, path, ranks, c)).results()
    for mine, line in zip(logged(path), logged(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(line, abs=1e-3)


def test_one_step_off_policy_ranks_learn_what_one_process_does(tiny, tmp_path, begin):
    starts, paths = tiny.starts(6), (tmp_path / "whole", tmp_path / "run")

    def work(path, ranks=ALONE, iterations=3):
        config = SameRates(**vars(CONFIG) | {"iterations": iterations, "off_policy": True})
        return practise(tiny.engine(horizon=8, capacity=1, batch=1), starts, path, ranks, config)[:2]

    counts, alone = work(paths[0])
    ranks = begin(2, lambda ranks: work(paths[1], ranks, 2)).results()
    assert farthest(ranks[0][1], ranks[1][1]) == 0
    again, weights = work(paths[1])  # another number of ranks goes on, with the weights that were to act next
    assert again == counts
    assert farthest(weights, alone) == 0
    for mine, line in zip(logged(paths[1]), logged(paths[0]), strict=True):
        assert mine == pytest.approx(line, rel=1e-12, abs=1e-12)


class SameRates(PostTrainConfig):
    """The learning rates of a whole run."""

    def rate(self, iteration, highest=None):
        return CONFIG.rate(iteration, highest)


def test_step_that_is_not_finite_at_one_rank_is_skipped_by_all(tiny, tmp_path, begin, monkeypatch):
    original = LaplacePolicy.ppo_loss

    def work(ranks):
        def loss(policy, record, *rest):
            value, share = original(policy, record, *rest)
            return value * (float("nan") if ranks.rank == 1 else 1.0), share

        monkeypatch.setattr(LaplacePolicy, "ppo_loss", loss)
        config = replace(CONFIG, iterations=1)
        return practise(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "run", ranks, config)

    one, other = begin(2, work).results()
    assert one[0] == other[0] and one[0]["skipped_steps"] > 0
    assert farthest(one[1], other[1]) == 0 == farthest(one[1], tiny.policy().state_dict())


def test_gradients_are_added_and_parameters_without_one_stay_so(begin):
    def work(ranks):
        used, unused, here = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
        used.grad = torch.full((3,), 1.0 + ranks.rank)
        here.grad = torch.ones(3) if ranks.rank else None
        (loss,) = ranks.add_gradients([used, unused, here], torch.tensor(0.5))
        return used.grad.tolist(), unused.grad, here.grad.tolist(), loss.item(), ranks.before(3 + ranks.rank)

    assert [one[:4] for one in begin(2, work).results()] == [([3.0] * 3, None, [1.0] * 3, 1.0)] * 2
    assert [one[4] for one in begin(3, work).results()] == [0, 3, 7]


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, op, types, arguments=(), named=None):
        out = op(*arguments, **(named or {}))
        self.numel = max(self.numel, out.numel()) if isinstance(out, torch.Tensor) else self.numel
        return out


def test_a_process_alone_rounds_its_sums_without_a_copy_of_all_of_them():
    parameters = [torch.nn.Parameter(torch.zeros(3, 5, 7, 2)) for _ in range(4)]
    parameters[3].requires_grad_(False)
    one, other = torch.rand(2, 3, 5, 7, 2, dtype=torch.float64)
    other = other.to(memory_format=torch.channels_last)
    with Largest() as made:
        figures = ALONE.add_gradients(parameters, torch.tensor(0.5), sums=[one, None, other, one])
    assert made.numel == one.numel() and [figure.dtype for figure in figures] == [torch.float64]
    first, without, last, still = (parameter.grad for parameter in parameters)
    assert torch.equal(first, one.float()) and torch.equal(last, other.float()) and without is still is None
    assert last.is_contiguous()  # as the sums of several ranks, of which the same norm comes out


def test_true_episodes_are_shared_and_come_back_in_order(tiny, begin):
    suite = TabletopSuite(16)
    tasks, starts = held_out(suite, 0, 7)

    def acted(ranks):
        return act_in_true(tiny.policy(), suite, tasks, starts, "test", ranks=ranks)

    whole, (first, *rest) = acted(ALONE), begin(3, acted).results()
    assert rest == [[], []] and [t.task for t in first] == [task.name for task in tasks]
    for mine, other in zip(first, whole, strict=True):
        assert mine.start == other.start and abs(mine.actions - other.actions).max() < 1e-5


def test_sigterm_ends_all_ranks_once_the_iteration_is_saved(tiny, tmp_path, begin):
    path = tmp_path / "run"
    config = replace(CONFIG, iterations=1000)
    job = begin(2, lambda ranks: practise(tiny.engine(horizon=8), tiny.starts(6), path, ranks, config))
    wait_for(lambda: (path / "metrics.jsonl").exists() and len(logged(path)) > 1, job)
    os.kill(job.processes[1].pid, signal.SIGTERM)
    assert job.end() == [143, 143], job.said()
    done = len(logged(path))
    config = replace(CONFIG, iterations=done + 1)
    practise(tiny.engine(horizon=8), tiny.starts(6), path, ALONE, config)
    assert len(logged(path)) == done + 1


def wait_for(found, job, timeout_s=60):
    until = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < until and all(process.is_alive() for process in job.processes), job.said()
        time.sleep(0.05)


def test_more_ranks_than_groups_are_refused(tiny, tmp_path, begin):
    few = replace(CONFIG, starts=2)
    job = begin(3, lambda ranks: practise(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "run", ranks, few))
    assert job.end() == [2, 2, 2]
    assert job.said() == [
        "UserError: there are 3 ranks for --rl.starts 2: siblings of one start stay on a rank, so take at most 2 "
        "ranks, or more starts"
    ]
