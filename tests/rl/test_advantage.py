"""Leave-one-out advantages: unbiased, and deaf to broken episodes."""

import pytest
import torch

from worldenv.rl.advantage import group_advantage, leave_one_out
from worldenv.rollout.episodes import Rollouts


def rewarded(tiny, reward, broken=()):  # reward [N, G]
    reward = torch.as_tensor(reward)
    out = Rollouts.empty(tiny.starts(reward.numel()), 2, 4, 7, None)
    out.reward[:, 1, 3] = reward.flatten()
    out.chunks[:] = 2
    out.broken[list(broken)] = True
    return out


def test_broken_siblings_are_left_out_of_the_mean_and_of_its_count():
    sound = torch.tensor([[True, True, True, False], [True, False, False, False]])
    advantage = leave_one_out(torch.tensor([[1.0, 0.0, 0.5, 9.0], [0.2, 9.0, 9.0, 9.0]]), sound)
    torch.testing.assert_close(advantage, torch.tensor([[0.75, -0.75, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


def test_leave_one_out_against_a_hand_computation():
    advantage = leave_one_out(torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]]), torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(advantage, torch.tensor([[0.75, -0.75, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("siblings", [2, 3, 8])
def test_advantages_are_unbiased_by_the_own_reward_and_sum_to_zero(siblings):
    reward = torch.rand(5, siblings, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = leave_one_out(reward, torch.ones_like(reward, dtype=torch.bool))
    assert advantage.sum(1).abs().max() < 1e-12
    for n in range(siblings):
        others = torch.cat([reward[:, :n], reward[:, n + 1 :]], dim=1).mean(1)
        torch.testing.assert_close(advantage[:, n], reward[:, n] - others)


def test_group_without_spread_gets_no_advantage_and_is_counted(tiny):
    rollouts = rewarded(tiny, [[0.9, 0.1, 0.5], [0.5, 0.5, 0.5], [0.7, 0.7001, 0.7]])
    advantage, flat = group_advantage(rollouts, 3, signal=0.01)
    assert flat == 2
    torch.testing.assert_close(advantage, torch.tensor([0.6, -0.6, 0.0, 0, 0, 0, 0, 0, 0]))


def test_broken_episode_gets_no_advantage_and_sways_nobody(tiny):
    rollouts = rewarded(tiny, [[0.9, float("nan"), 0.1, 0.5], [0.9, 0.8, 0.3, 0.2]], broken=[1, 4, 5, 6])
    advantage, flat = group_advantage(rollouts, 4, signal=0.01)
    assert flat == 1 and advantage[4:].tolist() == [0, 0, 0, 0]
    assert advantage[1] == 0 and advantage[0] == -advantage[2] > 0 and advantage[3].abs() < 1e-6
    again, _ = group_advantage(
        rewarded(tiny, [[0.9, 0.0, 0.1, 0.5], [0.9, 0.8, 0.3, 0.2]], broken=[1, 4, 5, 6]), 4, 0.01
    )
    assert torch.equal(advantage, again)


def test_broken_episodes_have_exactly_no_advantage_whatever_the_rounding(tiny):
    reward = torch.rand(40, 7, generator=torch.Generator().manual_seed(3))
    advantage, _ = group_advantage(rewarded(tiny, reward, broken=range(0, 280, 7)), 7, signal=1e-6)
    assert not advantage.view(40, 7)[:, 0].any() and advantage.view(40, 7)[:, 1:].all()


def test_guard_weighs_rollouts_by_how_sure_their_outcome_is(tiny):
    rollouts = rewarded(tiny, [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]], broken=[4])
    rollouts.doubt[:] = torch.tensor([0.0, 0.25, 0.5, 1.0] * 2)
    plain, _ = group_advantage(rollouts, 4, 0.0)
    for guard in (1.0, 2.0):
        weighed, _ = group_advantage(rollouts, 4, 0.0, guard)
        weight = torch.tensor([1.0, 0.75, 0.5, 0.0, 0.0, 0.75, 0.5, 0.0]) ** guard
        torch.testing.assert_close(weighed, plain * weight)


def test_without_guard_doubt_changes_no_bit(tiny):
    reward = torch.rand(6, 4, generator=torch.Generator().manual_seed(5))
    sure, doubted = rewarded(tiny, reward, broken=[3]), rewarded(tiny, reward, broken=[3])
    doubted.doubt[:] = torch.rand(24, generator=torch.Generator().manual_seed(6))
    doubted.doubt[3] = float("nan")
    assert torch.equal(group_advantage(sure, 4, 0.1)[0], group_advantage(doubted, 4, 0.1, 0.0)[0])
    guarded, _ = group_advantage(doubted, 4, 0.1, 1.0)
    assert guarded.isfinite().all() and not torch.equal(guarded, group_advantage(sure, 4, 0.1)[0])
