"""The reward head is trained on exactly what it will be asked while episodes run."""

import math

import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.interfaces.observation import Observation
from worldenv.nn.instruction import tokenize
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training.imagined import as_imagined
from worldenv.training.lessons import TabletopLessons
from worldenv.training.train_reflector import (
    Features,
    join,
    other_instructions,
    read_features,
    reward_loss,
    settled,
)

RIVALS = TabletopLessons().rivals


def every_frame(clips):  # [N, T + 1, H, W, 3] uint8
    steps = torch.arange(clips.proprio.shape[1])
    return clips.frames_at(torch.arange(len(clips)), steps.expand(len(clips), -1))[:, :, 0]


@pytest.fixture
def clips(tiny):
    names = [task.name for task in TASKS]
    return Clips.of([tiny.trajectory(6 + i % 3, i, task=names[i]) for i in range(6)])


def test_hard_negatives_name_another_task_on_the_same_table(clips):
    texts = {text: task for task in TASKS for text in task.instructions}
    for seed in range(5):
        for name, text in zip(clips.tasks, other_instructions(clips, seed, RIVALS), strict=True):
            own, other = next(task for task in TASKS if task.name == name), texts[text]
            assert other != own and other.items == own.items


def test_features_are_those_of_every_frame_under_both_instructions(tiny, clips):
    reflector, read = tiny.reflector(), []
    features = read_features(reflector, clips, 3, RIVALS, read.append)
    assert sum(read) == 6 and features.own.shape == features.other.shape == (6, 9, 64)
    others = tokenize(other_instructions(clips, 3, RIVALS))
    for tokens, found in ((tokenize(clips.instructions), features.own), (others, features.other)):
        expected = reflector.encode(every_frame(clips)[4, 2:4], tokens[[4, 4]])
        torch.testing.assert_close(found[4, 2:4], expected, rtol=1e-4, atol=1e-5)


def test_loss_is_the_cross_entropy_of_what_judge_says_frame_by_frame(tiny, clips):
    reflector = tiny.reflector()
    features = read_features(reflector, clips, 3, RIVALS, lambda n: None)
    loss, figures = reward_loss(reflector, features, 20)(torch.Generator().manual_seed(8))
    generator = torch.Generator().manual_seed(8)
    episode = torch.randint(6, (20,), generator=generator).tolist()
    wrong = (torch.rand(20, generator=generator) < 0.25).tolist()
    assert any(wrong) and not all(wrong)
    others, terms, misses = tokenize(other_instructions(clips, 3, RIVALS)), [], 0
    own, frames = tokenize(clips.instructions), every_frame(clips)
    for e, is_wrong in zip(episode, wrong, strict=True):
        tokens = (others if is_wrong else own)[e : e + 1]
        seen = Observation(frames[e : e + 1, :1], clips.proprio[e : e + 1, 0], None, torch.zeros(1, dtype=torch.int64))
        pooled = reflector.begin(seen, reflector.encoder.text(tokens))
        first = reflector.logit(pooled.first, pooled.first, pooled.first).sigmoid().tolist()
        with torch.no_grad():
            reward = first + reflector.judge(frames[e : e + 1, 1:, None], pooled)[0][0].tolist()
        for t in range(int(clips.length[e]) + 1):
            label = t > 0 and bool(clips.success[e, t - 1 : t + 1].all()) and not is_wrong
            terms.append(-math.log(reward[t]) if label else -math.log(1 - reward[t]))
            misses += (reward[t] > 0.5) != label
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-3)
    assert figures["bce"] == loss.item() and figures["wrong_share"] == pytest.approx(misses / len(terms), abs=1e-6)


def test_first_frame_of_a_success_does_not_count_yet():
    success = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 0, 1]], dtype=torch.bool)
    assert settled(success).int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]


def test_head_learns_and_the_encoder_gets_no_gradient(tiny, clips):
    reflector = tiny.reflector()
    loss = reward_loss(reflector, read_features(reflector, clips, 3, RIVALS, lambda n: None), 32)
    optimizer = torch.optim.Adam(reflector.head.parameters(), 3e-3)
    errors = []
    for step in range(120):
        value, _ = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(value.item())
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])
    assert all(p.grad is None for p in [*reflector.encoder.parameters(), *reflector.done.parameters()])


def test_imagined_episodes_keep_their_labels_and_their_first_frame(tiny, clips):
    engine = tiny.engine()
    imagined = as_imagined(engine.world, clips, seed=3)
    before, after = every_frame(clips), every_frame(imagined)
    steps = clips.actions.shape[1] // engine.policy.config.chunk * engine.policy.config.chunk
    assert torch.equal(after[:, 0], before[:, 0]) and torch.equal(imagined.success, clips.success)
    assert not torch.equal(after[:, 1 : steps + 1], before[:, 1 : steps + 1])
    whole = clips.length >= steps  # the last frame of shorter episodes was imagined
    assert whole.any() and torch.equal(after[whole, steps + 1 :], before[whole, steps + 1 :])


def test_joined_features_are_those_of_all_sets_in_order(tiny, clips):
    features = read_features(tiny.reflector(), clips, 3, RIVALS, lambda n: None)
    both = join([features, features])
    assert torch.equal(both.own, torch.cat([features.own] * 2)) and len(both.length) == 2 * len(clips)
    short = Features(features.own[:, :3], features.other[:, :3], features.success[:, :3], features.length.clamp(max=2))
    joined = join([short, features])
    assert torch.equal(joined.own[: len(clips), 2:], features.own[:, 2:3].expand_as(features.own[:, 2:]))
    assert torch.equal(joined.success[len(clips) :], features.success)
