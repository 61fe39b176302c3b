"""The policy learns to read imagined frames from itself."""

from dataclasses import replace

import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.nn.instruction import tokenize
from worldenv.training.adapt import SCALE_WEIGHT, adaptation_loss


@pytest.fixture
def pair(tiny):
    true = Clips.of([tiny.trajectory(5, 0), tiny.trajectory(9, 1), tiny.trajectory(7, 2)])
    return true, replace(true, stored=MemoryFrames(255 - true.stored.rows, true.stored.begin))


def test_loss_is_the_distance_to_what_it_did_on_the_true_frame(tiny, pair):
    policy, before, (true, imagined) = tiny.policy(), tiny.policy(), pair
    loss = adaptation_loss(policy, true, imagined, 12)
    torch.nn.init.normal_(policy.action_head[-1].bias, std=0.3)  # what is learned from here on does not move the goal
    value, figures = loss(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    episode = torch.randint(3, (6,), generator=generator)
    step = (torch.rand(6, generator=generator) * true.length[episode]).long()
    rest = true.proprio[episode, step], tokenize(true.instructions)[episode]
    goal, goal_scale = before(true.frames_at(episode, step[:, None])[:, 0, 0], *rest)
    mean, scale = [], []
    for clips in (true, imagined):
        mu, beta = policy(clips.frames_at(episode, step[:, None])[:, 0, 0], *rest)
        mean.append((mu - goal).abs().mean().item())
        scale.append((beta - goal_scale).abs().mean().item())
    assert [figures["l1_true"], figures["l1_imagined"]] == pytest.approx(mean, rel=1e-4)
    assert value.item() == pytest.approx((sum(mean) + SCALE_WEIGHT * sum(scale)) / 2, rel=1e-4)
    assert min(mean) > 0 and mean[0] != mean[1]


def test_policy_comes_to_act_on_both_as_it_did_on_the_true_frame(tiny, pair):
    policy, (true, imagined) = tiny.policy(), pair
    loss, errors = adaptation_loss(policy, true, imagined, 24), []
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    for step in range(60):
        value, figures = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(figures)
    first, last = (sum(e["l1_imagined"] for e in part) / 5 for part in (errors[:5], errors[-5:]))
    assert errors[0]["l1_true"] < 1e-6 and last < 0.5 * first and errors[-1]["l1_true"] < 0.3 * first
