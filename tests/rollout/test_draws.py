import pytest
import torch

from worldenv.rollout.draws import Use, normal, uniform


@pytest.mark.parametrize("draw", [uniform, normal])
def test_an_episode_draws_the_same_in_any_company(draw):
    many = draw(5, torch.tensor([9, 3, 7]), 2, Use.ACTION, (4, 7))
    assert many.shape == (3, 4, 7) and many.dtype == torch.float32
    assert torch.equal(many[1:2], draw(5, torch.tensor([3]), 2, Use.ACTION, (4, 7)))


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seed_episode_chunk_and_use_each_change_the_draw(draw):
    first = [draw(5, torch.tensor([3]), 2, Use.ACTION, (63,))]
    first += [draw(6, torch.tensor([3]), 2, Use.ACTION, (63,)), draw(5, torch.tensor([4]), 2, Use.ACTION, (63,))]
    first += [draw(5, torch.tensor([3]), 3, Use.ACTION, (63,)), draw(5, torch.tensor([3]), 2, Use.FRAME, (63,))]
    values = torch.cat(first).flatten()
    assert len(values.unique()) == len(values)


def test_a_long_draw_does_not_run_into_that_of_the_next_chunk():
    now, after = (uniform(0, torch.tensor([1]), chunk, Use.FRAME, (1, 50_000)) for chunk in (0, 1))
    assert not torch.isin(after[0, 0, :64], now[0, 0]).all()
    assert (now == after).float().mean() < 0.01


def test_distributions_are_standard():
    episodes = torch.arange(50)
    flat, bell = uniform(1, episodes, 0, Use.ACTION, (1000,)), normal(1, episodes, 0, Use.FRAME, (1000,))
    assert flat.min() >= 0 and flat.max() < 1
    assert flat.mean().item() == pytest.approx(0.5, abs=0.005) and flat.std().item() == pytest.approx(
        12**-0.5, abs=0.005
    )
    assert bell.mean().item() == pytest.approx(0, abs=0.02) and bell.std().item() == pytest.approx(1, abs=0.02)
