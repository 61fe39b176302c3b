"""Pretraining: who may see actions, what the answers are, and that the base learns them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.data.disturbed import Stills
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


def test_half_of_a_batch_are_stills_with_the_answers_of_a_thing_that_is_shown(data, tokens):
    m, (size, width) = 5, (data.frames.shape[2], data.proprio.shape[2])
    shown = np.array([[True, False, True]] * m)
    numbers = np.arange(m * 3, dtype=np.float32).reshape(m, 3)
    stills = Stills(
        np.full((m, size, size, 3), 7, dtype=np.uint8),
        np.repeat(numbers[:, :1], width, axis=1),
        shown,
        np.repeat(numbers[..., None], 6, axis=2),
        numbers % 2 == 1,
        np.array([0, -1, 2, -1, 0]),
        np.repeat(numbers[:, :1], data.plans[0, 0].size, axis=1).reshape(m, *data.plans.shape[2:]),
        ("one", "two", "three"),
    )
    tokens = torch.cat([tokens, tokens.new_tensor([[101], [102], [103]]).expand(3, tokens.shape[1])])
    batch = sample_base_batch(replace(data, stills=stills), tokens, torch.Generator().manual_seed(0), 400, 3)
    is_still = (batch["frames"] == 7).flatten(1).all(1)
    assert 160 < is_still.sum() < 240 and batch["use_action"][~is_still].any()
    number, thing = batch["place"][is_still, 0], batch["tokens"][is_still, 0] - 101
    assert set(thing.tolist()) == {0, 2} and torch.equal(number % 3, thing.float())
    assert set(number.tolist()) == {float(x) for x in numbers[shown]}
    assert torch.equal(batch["proprio"][is_still, 0], number - thing) and torch.equal(
        batch["done"][is_still], number % 2
    )
    still = ((number - thing) / 3).long()
    planned = torch.from_numpy(stills.asked)[still]
    assert torch.equal(batch["use_action"][is_still] == 1, planned == thing)
    assert torch.equal(batch["action"][is_still, 0, 0], 3.0 * still)
    assert 0.6 < (planned == thing)[planned >= 0].float().mean() < 0.9  # half, and half of the others by chance
    without = sample_base_batch(data, tokens, torch.Generator().manual_seed(0), 400, 3)
    for name, value in without.items():  # the other rows are as without stills
        assert torch.equal(value[~is_still], batch[name][~is_still]), name
