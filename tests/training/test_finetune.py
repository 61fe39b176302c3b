import pytest
import torch
from torch.distributions import Laplace

from worldenv.data.clips import Clips
from worldenv.nn.instruction import tokenize
from worldenv.training.finetune import SCALE_WEIGHT, imitation_loss, with_pretraining
from worldenv.training.pretrain import Base, disturbed_episodes, pretraining_loss


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(5, 0), tiny.trajectory(9, 1)])


def test_loss_is_the_distance_to_the_shown_actions_and_the_likelihood_of_the_scale(tiny, clips, monkeypatch):
    policy, drawn, chunks = tiny.policy(), [], Clips.action_chunks
    monkeypatch.setattr(Clips, "action_chunks", lambda c, e, s, k: drawn.append((e, s)) or chunks(c, e, s, k))
    loss, figures = imitation_loss(policy, clips, 16)(torch.Generator().manual_seed(3))
    (episode, step), *rest = drawn
    assert len(episode) == 16 and not rest
    frames = clips.frames_at(episode, step[:, None])[:, 0, 0]
    mu, beta = policy(frames, clips.proprio[episode, step], tokenize(clips.instructions)[episode])
    shown = clips.action_chunks(episode, step, 4)
    assert figures["l1"] == pytest.approx((mu - shown).abs().mean().item())
    assert figures["nll"] == pytest.approx(-Laplace(mu, beta.exp()).log_prob(shown).mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(figures["l1"] + SCALE_WEIGHT * figures["nll"], rel=1e-5)


def test_frames_past_the_end_of_an_episode_are_never_shown(tiny, monkeypatch):
    clips, steps = Clips.of([tiny.trajectory(5, 0), tiny.trajectory(9, 1)]), []
    original = Clips.action_chunks

    def spy(self, episode, step, chunk):
        steps.append((episode, step))
        return original(self, episode, step, chunk)

    monkeypatch.setattr(Clips, "action_chunks", spy)
    imitation_loss(tiny.policy(), clips, 1000)(torch.Generator().manual_seed(0))
    episode, step = steps[0]
    assert step[episode == 0].max() == 4 and step[episode == 1].max() == 8 and step.min() == 0


def test_policy_learns_what_it_is_shown(tiny, clips):
    policy, errors = tiny.policy(), []
    loss, optimizer = imitation_loss(policy, clips, 16), torch.optim.Adam(policy.parameters(), 1e-3)
    for step in range(30):
        value, figures = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(figures["l1"])
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


def test_fine_tuning_goes_on_with_pretraining(tiny):
    torch.manual_seed(0)
    base = Base(tiny.policy_config)
    clips, data = Clips.of([tiny.trajectory(5, 0)]), disturbed_episodes(3, seed=1)
    parts = imitation_loss(base.policy, clips, 8), pretraining_loss(base, data, 3, 8)
    generator = torch.Generator().manual_seed(5)
    (own, told), (again, more) = (part(generator) for part in parts)
    loss, figures = with_pretraining(*parts)(torch.Generator().manual_seed(5))
    assert loss.item() == pytest.approx(own.item() + again.item())
    assert figures == told | {f"pretraining_{name}": value for name, value in more.items()}
    loss.backward()
    assert base.point.weight.grad.abs().sum() > 0  # pretraining's own question
