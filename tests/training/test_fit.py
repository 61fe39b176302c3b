"""The shared training loop: schedules, interruptions that leave no trace, and numbers that are not finite."""

import math

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.run_folder import RunFolder
from worldenv.training import fit as loop
from worldenv.training.fit import Schedule, fit

TARGET = torch.tensor([[1.0, -2.0, 0.5]])


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def regression(module, batches=None, spoil=()):
    calls = iter(range(10**6))

    def loss(generator):
        x = torch.randn(16, 3, generator=generator)
        if batches is not None:
            batches.append(x)
        error = (module(x) - x @ TARGET.T).square().mean()
        if next(calls) in spoil:
            error = error * float("nan")
        return error, {"error": error.item()}

    return loss


def figures(folder, stage):
    return [{k: v for k, v in line.items() if k != "time_s"} for line in folder.metrics(stage)]


def test_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero():
    rates = rates_of(Schedule(steps=100, batch=1, learning_rate=2.0, warmup=0.1))
    assert [rates[step] for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90), abs=1e-6)
    assert rates_of(Schedule(steps=1, batch=1, learning_rate=2.0)) == [2.0]


def rates_of(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], schedule.learning_rate)
    rate, rates = schedule.of(optimizer), []
    for _ in range(schedule.steps):
        rates.append(rate.get_last_lr()[0])
        optimizer.step()
        rate.step()
    return rates


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 10**12),
        ("batch", 0),
        ("batch", 2.5),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("warmup", -0.1),
        ("warmup", 1.1),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("save_every_s", math.nan),
    ],
)
def test_schedule_that_cannot_be_followed_is_refused(field, value):
    bad = {field: value}
    with pytest.raises(UserError, match=f"^{field} is "):
        Schedule(**{"steps": 1, "batch": 1, "learning_rate": 1e-3, **bad})


def test_fit_minimises_the_loss_and_logs_its_figures(folder):
    module = network()
    fit(module, regression(module), Schedule(200, 16, 3e-2), "toy", folder, seed=1)
    lines = folder.metrics("toy")
    assert [line["step"] for line in lines] == [50, 100, 150, 200]
    assert lines[-1]["error"] < 0.3 * lines[0]["error"] and lines[-1]["skipped_steps"] == 0


@pytest.mark.parametrize("interrupted_at", [50, 57, 60])
def test_interrupted_training_ends_like_an_uninterrupted_one(tmp_path, same_weights, monkeypatch, interrupted_at):
    schedule = Schedule(60, 16, 1e-2, save_every_s=0.0)
    whole, folder = network(), RunFolder.create(tmp_path / "whole", {})
    fit(whole, regression(whole), schedule, "toy", folder, seed=1)

    saves, save = [], loop._save
    part, broken = network(), RunFolder.create(tmp_path / "part", {})

    def save_and_die(*arguments, **rest):
        save(*arguments, **rest)
        saves.append(1)
        if len(saves) == interrupted_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        fit(part, regression(part), schedule, "toy", broken, seed=1)
    monkeypatch.setattr(loop, "_save", save)
    broken.close()
    resumed, again = network(), RunFolder.resume(tmp_path / "part")
    fit(resumed, regression(resumed), schedule, "toy", again, seed=1)
    assert same_weights(resumed, whole) and not same_weights(resumed, network())
    assert figures(again, "toy") == figures(folder, "toy")


def test_seconds_count_the_part_before_an_interruption(tmp_path, monkeypatch):
    now, schedule, folder = [0.0], Schedule(10, 16, 1e-2, save_every_s=0.0), RunFolder.create(tmp_path / "run", {})
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def slow(module, last):
        inner = regression(module)

        def loss(generator):
            now[0] += 2.0
            if now[0] > last:
                raise KeyboardInterrupt
            return inner(generator)

        return loss

    with pytest.raises(KeyboardInterrupt):
        fit(module := network(), slow(module, 12.0), schedule, "toy", folder, seed=1)
    now[0] = 1000.0  # a long pause
    assert fit(module := network(), slow(module, 2000.0), schedule, "toy", folder, seed=1) == pytest.approx(20.0)


def test_a_finished_training_takes_no_step_again(folder, same_weights):
    module, batches = network(), []
    fit(module, regression(module), Schedule(3, 16, 1e-2), "toy", folder, seed=1)
    other = network()
    fit(other, regression(other, batches), Schedule(3, 16, 1e-2), "toy", folder, seed=1)
    assert same_weights(module, other) and batches == [] and len(folder.metrics("toy")) == 1


def test_seed_decides_the_batches(tmp_path):
    seen = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        module, seen[name] = network(), []
        folder = RunFolder.create(tmp_path / name, {})
        fit(module, regression(module, seen[name]), Schedule(3, 16, 1e-2), "toy", folder, seed)
    assert torch.equal(torch.stack(seen["a"]), torch.stack(seen["b"]))
    assert not torch.equal(seen["a"][0], seen["c"][0]) and not torch.equal(seen["a"][0], seen["a"][1])


def test_non_finite_step_touches_no_weight_and_is_counted(folder, same_weights):
    module = network()
    fit(module, regression(module, spoil=range(10)), Schedule(10, 16, 1e-2), "toy", folder, seed=1)
    assert same_weights(module, network())
    assert folder.metrics("toy")[-1]["skipped_steps"] == 10


def test_non_finite_gradient_alone_skips_the_step_too(folder, same_weights):
    module = network()

    def loss(generator):
        out = module(torch.zeros(1, 3)).sum()
        return (out - out.detach()).abs().sqrt(), {}  # 0, with the slope of a square root at 0

    fit(module, loss, Schedule(2, 16, 1e-2), "toy", folder, seed=1)
    assert same_weights(module, network()) and folder.metrics("toy")[-1]["skipped_steps"] == 2


def test_too_many_non_finite_steps_end_the_stage_with_the_reason(folder):
    module = network()
    with pytest.raises(
        UserError, match="toy: 11 of 13 steps had a non-finite loss or gradient; lower the learning rate"
    ):
        fit(module, regression(module, spoil=range(2, 40)), Schedule(40, 16, 1e-2), "toy", folder, seed=1)


def test_frozen_parameters_stay(folder):
    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    fit(module, regression(module), Schedule(3, 16, 1e-1), "toy", folder, seed=1)
    assert torch.equal(module[0].weight, before) and not torch.equal(module[2].weight, network()[2].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "it has the seed 1, this run has 2"),
        ({"module": nn.Linear(3, 1)}, "its model began with other weights"),
        ({"schedule": Schedule(2, 16, 1e-2)}, "has 3 steps, and the stage is to have 2"),
    ],
)
def test_state_of_another_training_is_refused_before_anything_changes(folder, same_weights, change, message):
    fit(module := network(), regression(module), Schedule(3, 16, 1e-2), "toy", folder, seed=1)
    given = {"module": network(), "schedule": Schedule(3, 16, 1e-2), "seed": 1} | change
    before = {name: weight.clone() for name, weight in given["module"].state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"toy.state.safetensors: .*{message}"):
        fit(given["module"], regression(given["module"]), given["schedule"], "toy", folder, given["seed"])
    assert same_weights(given["module"], before) and len(folder.metrics("toy")) == 1
