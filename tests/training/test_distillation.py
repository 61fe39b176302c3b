"""The losses of few-step students where the answer is known: one-dimensional latents that are normally distributed."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from worldenv.training.distillation import METHODS, Denoising, consistency_loss, euler, few_step_loss

MEAN, SPREAD, ROWS = 0.5, 0.4, 256
LEVELS = [1 - step / 10 for step in range(11)]


class Exact(nn.Module):
    """Predicts the mean of the clean latents given a noisy one, as a network that has learnt all would."""

    def forward(self, noisy, t):
        share = (1 - t) * SPREAD**2 / ((1 - t) ** 2 * SPREAD**2 + t**2)
        return MEAN + share * (noisy - (1 - t) * MEAN)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, noisy, t):
        return noisy - t * self.layers(torch.cat([noisy, torch.full_like(noisy, t)], dim=1))


def draw(generator):
    clean, noise = (torch.randn(ROWS, 1, generator=generator) for _ in range(2))
    return Denoising(noise, MEAN + SPREAD * clean, lambda network: network)


def many_steps(noisy, levels=LEVELS):
    for before, after in pairwise(levels):
        noisy = euler(noisy, Exact()(noisy, before), before, after)
    return noisy


@pytest.mark.parametrize("method", METHODS)
def test_one_step_of_the_student_leads_where_many_of_the_teacher_do(method):
    """The teacher in one step gives the mean alone; the student keeps which noise leads where."""
    torch.manual_seed(0)
    student, noise = Small(), torch.randn(ROWS, 1)
    loss, steps = METHODS[method](student, Exact(), draw, (1.0, 0.0), LEVELS), 1500
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        value, _ = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rate.step()
    wanted, alone = many_steps(noise), Exact()(noise, 1.0)
    before, after = ((x - wanted).square().mean() for x in (alone, student(noise, 1.0).detach()))
    assert before > 0.05 and after < 0.05 * before


@pytest.mark.parametrize(
    ("few", "many", "count"),
    [((1.0, 0.35, 0.0), (1.0, 0.5, 0.0), 3), ((1.0, 0.8, 0.6, 0.4, 0.2, 0.0), torch.linspace(1, 0, 21).tolist(), 20)],
)
def test_student_is_consistent_at_its_own_levels_and_the_teachers_each_once(few, many, count):
    met, student = set(), Small()

    def noting(generator):
        part = draw(generator)

        def denoiser(network):
            return lambda x, t: (met.add(t) if network is student else None, network(x, t))[1]

        return Denoising(part.noisy, part.clean, denoiser)

    loss = consistency_loss(student, Exact(), noting, few, many)
    for seed in range(8 * count):
        loss(torch.Generator().manual_seed(seed))
    assert len(met) == count
    assert all(min(abs(t - level) for t in met) < 1e-6 for level in {*few, *many} - {0.0})


def test_target_of_the_last_level_is_where_the_teacher_leads():
    """So of a teacher of one step both losses are the same."""
    student = Small()
    given = student, Exact(), draw, (1.0, 0.0), (1.0, 0.0)
    one, other = (make(*given)(torch.Generator().manual_seed(3))[0] for make in (few_step_loss, consistency_loss))
    assert one.item() > 0
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_target_has_no_gradient():
    student, part = Small(), draw(torch.Generator().manual_seed(0))
    loss = consistency_loss(student, Exact(), lambda generator: part, (1.0, 0.0), (1.0, 0.5, 0.0))
    with torch.no_grad():
        target = student(euler(part.noisy, Exact()(part.noisy, 1.0), 1.0, 0.5), 0.5)
    (student(part.noisy, 1.0) - target).square().mean().backward()
    wanted = [p.grad.clone() for p in student.parameters()]
    found = []
    for seed in range(20):  # one level or the other is drawn
        student.zero_grad()
        loss(torch.Generator().manual_seed(seed))[0].backward()
        pairs = zip(student.parameters(), wanted, strict=True)
        found.append(all(torch.allclose(p.grad, g, atol=1e-6) for p, g in pairs))
    assert any(found) and not all(found)
