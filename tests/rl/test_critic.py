"""The critic: advantages by hand, the chunk that decides gets the credit, and states that do not fit."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from worldenv.errors import UserError
from worldenv.policy.laplace import SeenFeature
from worldenv.records.checkpoint import CheckpointError, load_state, save_state
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.critic import KEPT, LEAST, READY, SURE, WATCHED, Critic, chunk_advantage
from worldenv.rl.loop import STAGE, post_train
from worldenv.rollout.episodes import Rollouts

CPU = torch.device("cpu")
CONFIG = PostTrainConfig(iterations=4, starts=3, siblings=4, learning_rate=1e-3, minibatch=16, critic=True, signal=1e-6)


class Reader:
    """A policy of which only `value_input` is needed."""

    def value_input(self, record):
        return record.feature


def decided(seed, episodes=64, horizon=3):
    """Episodes that chunk 0 decides by chance: their features tell the end from chunk 1 on, and nothing before."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randint(2, (episodes,), generator=generator).float()
    feature = torch.randn(episodes, horizon, 4, generator=generator)
    feature[:, 1:, 0] = reward[:, None] * 4 - 2
    zeros = torch.zeros(episodes, horizon)
    return Rollouts(
        action=zeros[..., None, None].expand(-1, -1, 2, 7),
        log_prob=zeros,
        reward=torch.zeros(episodes, horizon, 2).index_put_(
            (torch.arange(episodes), torch.tensor(2), torch.tensor(1)), reward
        ),
        text=zeros[:, 0].long(),
        chunks=torch.full((episodes,), horizon),
        stop=torch.full((episodes,), 2 * horizon),
        stopped=reward > 0,
        broken=torch.zeros(episodes, dtype=torch.bool),
        doubt=zeros[:, 0],
        held=zeros[:, 0].bool(),
        record=SeenFeature(feature, zeros[..., None].expand(-1, -1, 7)),
    )


def learnt(config=CONFIG, iterations=4):
    critic = Critic(Reader(), config, 0, CPU)
    for seed in range(iterations):
        critic.step(decided(seed))
    return critic


def test_advantages_against_a_hand_computation():
    value, reward = torch.tensor([[0.2, 0.6, 0.5], [0.2, 0.6, 0.5]]), torch.tensor([1.0, 0.0])
    chunks = torch.tensor([3, 2])
    by_change = chunk_advantage(value, reward, chunks, 0.0)
    torch.testing.assert_close(by_change, torch.tensor([[0.4, -0.1, 0.5], [0.4, -0.6, 0.0]]))
    by_end = chunk_advantage(value, reward, chunks, 1.0)
    torch.testing.assert_close(by_end, torch.tensor([[0.8, 0.4, 0.5], [-0.2, -0.6, 0.0]]))
    between = chunk_advantage(value, reward, chunks, 0.5)
    torch.testing.assert_close(between[0], torch.tensor([0.4 + 0.5 * (-0.1 + 0.5 * 0.5), -0.1 + 0.25, 0.5]))


def test_the_chunk_that_decides_gets_the_credit():
    critic, rollouts = learnt(), decided(99)
    advantage, figures = critic.step(rollouts)
    won = rollouts.stopped
    assert advantage[won, 0].mean() > 0.3 and advantage[~won, 0].mean() < -0.3
    assert advantage[:, 1:].abs().mean() < 0.1
    assert 0.5 < figures["critic_explained"] < 0.8  # of three chunks, one cannot be explained


def test_it_is_asked_only_once_it_has_learnt_and_forgets_what_is_old(monkeypatch):
    monkeypatch.setattr("worldenv.rl.critic.STEPS", 1)
    critic = Critic(Reader(), CONFIG, 0, CPU)
    asked = [critic.step(decided(seed, episodes=8))[0] is not None for seed in range(KEPT + 3)]
    assert asked == [False] * READY + [True] * (KEPT + 3 - READY)
    assert len(critic.seen) == len(critic.rewards) == KEPT


def test_broken_episodes_teach_nothing_and_have_no_advantage():
    critic, rollouts = learnt(), decided(99)
    rollouts.broken[::2] = True
    rollouts.reward[::2] = float("nan")
    advantage, figures = critic.step(rollouts)
    assert not advantage[::2].any() and advantage[1::2, 0].count_nonzero() > 28 and advantage.isfinite().all()
    assert len(critic.rewards[-1]) == 32 * 3 and critic.rewards[-1].isfinite().all()
    assert figures["critic_explained"] > 0.5


def test_the_guard_weighs_episodes_as_without_a_critic():
    rollouts = decided(99)
    rollouts.doubt[:] = 0.5
    plain, _ = learnt().step(rollouts)
    guarded, _ = learnt(replace(CONFIG, guard=2.0)).step(rollouts)
    expected = plain * ((1 - rollouts.unsure()) ** 2)[:, None]
    torch.testing.assert_close(guarded, torch.where(expected.abs() < LEAST, 0.0, expected))


def test_it_gives_up_hopeless_episodes_late_and_goes_on_with_every_eighth_one():
    rollouts = decided(99)

    def given_up(critic, chunk):
        count = len(rollouts.chunks)
        record = SeenFeature(rollouts.record.feature[:, chunk], rollouts.record.proprio[:, chunk])
        before = SimpleNamespace(chunk=torch.full((count,), chunk), id=torch.arange(count))
        return critic.gives_up(3, before, SimpleNamespace(record=record, finite=~rollouts.broken))

    assert not given_up(learnt(iterations=SURE - 1), 2).any()
    critic, goes_on = learnt(iterations=SURE), torch.arange(len(rollouts.chunks)) % WATCHED == 0
    assert not given_up(critic, 0).any()
    for chunk in (1, 2):
        assert torch.equal(given_up(critic, chunk), ~rollouts.stopped & ~goes_on)


def test_practice_ends_hopeless_episodes_early_but_not_off_policy(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("worldenv.rl.critic.SURE", 1)
    monkeypatch.setattr("worldenv.rl.critic.HOPELESS", 1.0)  # all that go on from half of the horizon
    for off_policy, expected in ((False, [True, False, False, False]), (True, [True] * 4)):
        folder = RunFolder.create(tmp_path / str(off_policy), {})
        post_train(tiny.engine(horizon=16), tiny.starts(6), replace(CONFIG, off_policy=off_policy), folder, seed=4)
        acted = [line["chunks_per_episode"] for line in folder.metrics(STAGE)]
        assert [chunks > 3 for chunks in acted] == expected, acted
        folder.close()


def test_its_state_goes_on_to_the_bit_and_global_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    critic, again = learnt(), Critic(Reader(), CONFIG, 0, CPU)
    assert torch.equal(torch.rand(3), expected)
    again.take_up(deepcopy(critic.state()))
    for seed in (10, 11):
        one, other = critic.step(decided(seed)), again.step(decided(seed))
        assert torch.equal(one[0], other[0]) and one[1] == other[1]


def test_practice_with_a_critic_logs_what_it_explains_and_refuses_damaged_states(tiny, tmp_path):
    engine, folder = tiny.engine(horizon=8), RunFolder.create(tmp_path / "run", {})
    post_train(engine, tiny.starts(6), CONFIG, folder, seed=4)
    lines = folder.metrics(STAGE)
    assert ["critic_explained" in line for line in lines] == [False] * READY + [True] * (4 - READY)
    folder.close()
    path = folder.checkpoints / f"{STAGE}.state.safetensors"
    state = load_state(path)
    for wrong in ({}, {"learnt": 4, "seen": [torch.zeros(3, 5)], "rewards": [torch.zeros(3)]}):
        save_state(path, **state | {"critic": wrong})
        again = RunFolder.resume(tmp_path / "run")
        with pytest.raises(CheckpointError, match="its critic is damaged"):
            post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, again, seed=4)
        again.close()


def test_what_a_critic_cannot_read_is_refused():
    critic = learnt(iterations=1)
    critic.policy = type("Wrong", (), {"value_input": lambda self, record: record.feature[0]})()
    with pytest.raises(UserError, match=r"returned torch.float32 \[3, 4\]; it should be torch.float32 \[64, 3, N\]"):
        critic.step(decided(0))
