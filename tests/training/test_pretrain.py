"""Pretraining: who may see actions, what the answers are, and that the base learns them."""

import numpy as np
import pytest
import torch

from worldenv.nn.instruction import tokenize
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training.pretrain import Base, base_loss, disturbed_episodes, sample_base_batch


@pytest.fixture(scope="module")
def data():
    return disturbed_episodes(6, seed=2)


@pytest.fixture(scope="module")
def tokens(data):
    return tokenize(data.instructions)


def test_pretraining_never_shows_an_instruction_of_the_target_tasks(data):
    target = {text for task in TASKS for text in task.instructions}
    assert not target & set(data.instructions)


def test_a_seed_gives_its_own_episodes_again(data):
    again, other = disturbed_episodes(6, seed=2), disturbed_episodes(6, seed=3)
    assert np.array_equal(again.frames, data.frames) and np.array_equal(again.plans, data.plans)
    assert not np.array_equal(other.frames[:, 0], data.frames[:, 0])


def test_batches_hold_matching_frames_answers_and_actions(data, tokens):
    batch = sample_base_batch(data, tokens, torch.Generator().manual_seed(0), 64, 3)
    for i in range(64):
        where = np.argwhere((data.proprio == batch["proprio"][i].numpy()).all(-1))
        matches = [(e, s) for e, s in where if np.array_equal(data.frames[e, s], batch["frames"][i].numpy())]
        assert any(
            s < data.plans.shape[1]
            and np.array_equal(data.plans[e, s], batch["action"][i].numpy())
            and np.array_equal(data.place[e, s], batch["place"][i].numpy())
            and data.success[e, s] == bool(batch["done"][i])
            and torch.equal(tokens[e], batch["tokens"][i])
            for e, s in matches
        )


def test_only_the_first_episodes_have_actions_and_none_long_after_success(data, tokens):
    batch = sample_base_batch(data, tokens, torch.Generator().manual_seed(0), 2000, 3)
    with_actions = {tuple(row) for row in batch["tokens"][batch["use_action"] > 0].tolist()}
    assert with_actions <= {tuple(row) for row in tokens[:3].tolist()} and 0.1 < batch["use_action"].mean() < 0.9
    silent = sample_base_batch(data, tokens, torch.Generator().manual_seed(0), 64, 3)
    silent["use_action"] = torch.zeros(64)
    torch.manual_seed(0)
    from worldenv.policy.small import SmallPolicyConfig

    base = Base(SmallPolicyConfig(width=64, channels=16, blocks=1))
    _, figures = base_loss(base, silent)
    assert figures["l1"] == 0 and figures["nll"] == 0 and figures["point_cm"] > 0


def test_base_learns_to_act_to_point_and_to_say_whether_it_is_done(data, tokens):
    from worldenv.policy.small import SmallPolicyConfig

    torch.manual_seed(0)
    base = Base(SmallPolicyConfig(width=64, channels=16, blocks=1))
    optimizer, batch, errors = torch.optim.Adam(base.parameters(), 3e-3), None, []
    batch = sample_base_batch(data, tokens, torch.Generator().manual_seed(1), 24, 6)
    for _ in range(40):
        value, figures = base_loss(base, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(figures)
    for name in ("l1", "point_cm", "done_bce"):
        assert errors[-1][name] < 0.8 * errors[0][name], name
