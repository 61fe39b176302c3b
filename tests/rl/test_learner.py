"""The update of a policy: the clipped objective, minibatches in parts, updates that are left out."""

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.interfaces.policy import Decision
from worldenv.policy.laplace import SeenFeature
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import FARTHEST, Learner, clipped_objective


def test_update_makes_good_actions_likelier_and_bad_ones_rarer(tiny):
    engine = tiny.engine(horizon=8)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(3)
    learner = Learner(engine.policy, PostTrainConfig(epochs=4, learning_rate=1e-3, clip=0.5))
    figures = learner.update(rollouts, advantage, torch.Generator().manual_seed(0))
    assert figures["chunks"] == rollouts.chunks.sum()
    again = _log_prob(engine.policy, rollouts)
    change = ((again - rollouts.log_prob) * (torch.arange(2) < rollouts.chunks[:, None])).sum(1)
    assert (change * advantage).sum() > 0


def _log_prob(policy, rollouts):
    with torch.no_grad():
        record = rollouts.record.each(lambda tensor: tensor.flatten(0, 1))
        mu, beta = policy.heads(record.feature, record.proprio)
    density = torch.distributions.Laplace(mu, beta.exp())
    return density.log_prob(rollouts.action.flatten(0, 1)).sum((1, 2)).view(-1, 2)


def test_update_leaves_the_encoder_and_moves_everything_else(tiny):
    engine, before = tiny.engine(horizon=8), tiny.policy().state_dict()
    advantage = torch.linspace(-1, 1, 12)
    learner = Learner(engine.policy, PostTrainConfig(epochs=2, learning_rate=1e-3))
    learner.update(engine.run(tiny.starts(3), 4, 5), advantage, torch.Generator().manual_seed(0))
    for name, weight in engine.policy.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("encoder."), name


def test_first_pass_has_ratio_one_and_a_loss_of_the_mean_advantage(tiny):
    engine = tiny.engine(horizon=8)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    advantage = torch.linspace(-1, 2, 12)
    learner = Learner(engine.policy, PostTrainConfig(epochs=1, minibatch=1000))
    figures = learner.update(rollouts, advantage, torch.Generator().manual_seed(0))
    weight = rollouts.chunks.float() / rollouts.chunks.sum()
    assert figures["loss"] == pytest.approx(-(advantage * weight).sum().item(), abs=1e-4)
    assert figures["clip_fraction"] == 0


def test_gradients_of_parts_add_up_to_those_of_the_minibatch(tiny):
    results = []
    for accumulate in (None, 5, 1):
        engine = tiny.engine(horizon=8)
        config = PostTrainConfig(epochs=1, minibatch=1000, learning_rate=1e-3, accumulate=accumulate)
        rollouts = engine.run(tiny.starts(3), 4, 5)
        figures = Learner(engine.policy, config).update(
            rollouts, torch.linspace(-1, 2, 12), torch.Generator().manual_seed(0)
        )
        results.append((figures["loss"], [p.grad for p in engine.policy.parameters() if p.grad is not None]))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        torch.testing.assert_close(grads, results[0][1], rtol=1e-3, atol=1e-6)


def test_update_without_any_signal_changes_nothing(tiny, same_weights):
    engine = tiny.engine(horizon=8)
    learner = Learner(engine.policy, PostTrainConfig())
    figures = learner.update(engine.run(tiny.starts(3), 4, 5), torch.zeros(12), torch.Generator().manual_seed(0))
    assert figures == {"loss": 0, "clip_fraction": 0, "chunks": 0} and same_weights(engine.policy, tiny.policy())


def test_non_finite_update_touches_no_weight_is_counted_and_too_many_end_the_run(tiny, same_weights):
    engine = tiny.engine(horizon=8)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    rollouts.log_prob[:] = float("nan")
    learner = Learner(engine.policy, PostTrainConfig(epochs=1, minibatch=1000, max_skipped=2))
    for count in (1, 2):
        learner.update(rollouts, torch.ones(12), torch.Generator().manual_seed(0))
        assert learner.skipped == count and same_weights(engine.policy, tiny.policy())
    with pytest.raises(UserError, match="3 policy updates had a non-finite loss or gradient; lower --rl.learning-rate"):
        learner.update(rollouts, torch.ones(12), torch.Generator().manual_seed(0))
    assert same_weights(engine.policy, tiny.policy())


# The objective through `log_prob`, of which the fused op is the fast way.


def moments(tiny, count=64, seed=0):
    """record, action, log_prob and advantage of chunks whose ratios lie on both sides of the clip."""
    draw, policy = torch.Generator().manual_seed(seed), tiny.policy()
    record = SeenFeature(torch.randn(count, 64, generator=draw), 0.1 * torch.randn(count, 7, generator=draw))
    with torch.no_grad():
        mu, beta = policy.heads(record.feature, record.proprio)
        action = mu + beta.exp() * torch.randn(mu.shape, generator=draw)
        log_prob = policy.log_prob(record, action) + 0.3 * torch.randn(count, generator=draw)
    return record, action, log_prob, torch.randn(count, generator=draw)


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.9])
def test_objective_through_log_prob_is_the_fused_one_in_value_and_gradient(tiny, clip):
    given, found = moments(tiny), []
    for fused in (True, False):
        policy = tiny.policy()
        loss, share = policy.ppo_loss(*given, clip) if fused else clipped_objective(policy, *given, clip)
        loss.backward()
        found.append((loss.detach(), share, [p.grad for p in policy.trainable()]))
    (loss, share, grads), (other, other_share, other_grads) = found
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    assert other_share == share and (clip > 0.5 or share > 0.1)
    assert all(grad is not None and grad.any() for grad in grads)
    torch.testing.assert_close(other_grads, grads, rtol=1e-4, atol=1e-6)
    assert not share.requires_grad and not other_share.requires_grad


def test_far_ratios_stay_finite(tiny):
    record, action, log_prob, advantage = moments(tiny)
    for far in (-1e4, 1e4):
        loss, _ = clipped_objective(tiny.policy(), record, action, log_prob + far, advantage.abs(), 0.2)
        assert torch.isfinite(loss) and loss.abs() < torch.tensor(FARTHEST).exp()


class Bare(nn.Module):
    """A policy of which the learner knows `log_prob` and `trainable`, and nothing else."""

    chunk, views = 4, ("agentview",)

    def __init__(self):
        super().__init__()
        self.mean, self.other = nn.Parameter(torch.zeros(4, 7)), nn.Parameter(torch.ones(1))

    def read(self, texts):
        return None

    def act(self, seen, read, key, explore):
        draw = torch.Generator().manual_seed(int(key.episode.sum()))
        action = self.mean.detach() + torch.randn(len(seen), 4, 7, generator=draw)
        record = SeenFeature(torch.zeros(len(seen), 1), seen.proprio)
        return Decision(action, self.log_prob(record, action).detach(), record)

    def log_prob(self, record, action):
        return -(action - self.mean).square().sum((1, 2)) / 2

    def trainable(self):
        return [self.mean]


def test_policy_with_nothing_but_log_prob_learns_what_it_offers_to_train(tiny):
    engine = tiny.engine(horizon=8, policy=Bare())
    rollouts = engine.run(tiny.starts(3), 4, 5, stop=False)
    advantage = torch.where(rollouts.action[:, :, :, 0].mean((1, 2)) > 0, 1.0, -1.0)
    learner = Learner(engine.policy, PostTrainConfig(epochs=4, learning_rate=1e-2))
    figures = learner.update(rollouts, advantage, torch.Generator().manual_seed(0))
    assert figures["chunks"] == 24 and learner.skipped == 0
    assert engine.policy.mean[:, 0].mean() > 0 and engine.policy.other == 1


def test_policy_without_a_parameter_to_train_is_refused():
    policy = Bare()
    policy.trainable = lambda: []
    with pytest.raises(UserError, match="the policy has no trainable parameters: its `trainable` returned none"):
        Learner(policy, PostTrainConfig())


def test_a_policy_made_in_inference_mode_is_refused(tiny):
    with torch.inference_mode():
        policy = tiny.policy()
    with pytest.raises(UserError, match="the policy was made in torch.inference_mode and cannot be trained"):
        Learner(policy, PostTrainConfig())
