"""The reward head is trained on exactly what it will be asked while episodes run."""

import math

import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.interfaces.observation import Observation
from worldenv.nn.instruction import tokenize
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training import train_reflector
from worldenv.training.imagined import as_imagined
from worldenv.training.lessons import Recorded, TabletopLessons
from worldenv.training.train_reflector import (
    Features,
    join,
    other_instructions,
    picture_loss,
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


def learn(loss, parameters, rate, steps):
    """Train, and check that the loss falls."""
    optimizer, errors = torch.optim.Adam(parameters, rate), []
    for step in range(steps):
        value, _ = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(value.item())
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])


def test_head_learns_and_the_encoder_gets_no_gradient(tiny, clips):
    reflector = tiny.reflector()
    loss = reward_loss(reflector, read_features(reflector, clips, 3, RIVALS, lambda n: None), 32)
    learn(loss, reflector.head.parameters(), 3e-3, 120)
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


def with_encoder(tiny):
    reflector = tiny.reflector()
    reflector.encoder.requires_grad_(True).text.requires_grad_(False)
    return reflector


def drawn(monkeypatch):
    """The episodes and steps whose frames are asked for."""
    found, frames_of = [], train_reflector._frames_of
    monkeypatch.setattr(
        train_reflector, "_frames_of", lambda sets, *asked: found.append(asked) or frames_of(sets, *asked)
    )
    return found


def test_loss_with_encoder_is_that_of_the_head_where_an_episode_has_no_other_frames(tiny, monkeypatch):
    for change in ("CONTRAST", "BRIGHTNESS", "NOISE"):
        monkeypatch.setattr(train_reflector, change, 0.0)
    names, reflector, found = [task.name for task in TASKS], with_encoder(tiny), drawn(monkeypatch)
    clips = Clips.of([tiny.trajectory(train_reflector.FRAMES, i, task=names[i]) for i in range(6)])

    def one_rival(name):
        return [Recorded("another", RIVALS(name)[0].instructions[:1])]

    with torch.no_grad():
        features = read_features(reflector, clips, 3, one_rival, lambda n: None)
    for share in (0.0, 1.0):  # with the own instructions and with the others
        loss, figures = picture_loss(reflector, [clips], one_rival, 20, share)(torch.Generator().manual_seed(8))
        episode, step = found[-1]
        assert torch.equal(step, torch.arange(9).expand(20, -1))
        some = Features(*(x[episode] for x in (features.own, features.other, features.success, features.length)))
        with monkeypatch.context() as each_once:
            each_once.setattr(torch, "randint", lambda high, size, **_: torch.arange(20))
            expected, others = reward_loss(reflector, some, 20, share)(torch.Generator().manual_seed(8))
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)
        assert figures == pytest.approx(others, rel=1e-3)


def test_tasks_count_alike_and_so_do_their_successes_and_failures(tiny, monkeypatch):
    found, names = drawn(monkeypatch), [TASKS[0].name] * 9 + [TASKS[1].name] * 3
    clips = Clips.of([tiny.trajectory(6, i, task=name) for i, name in enumerate(names)])
    clips.success[1:8] = False  # two successes, seven failures
    loss = picture_loss(
        with_encoder(tiny), [clips.pick(torch.arange(5)), clips.pick(torch.arange(5, 12))], RIVALS, 2000
    )
    loss(torch.Generator().manual_seed(0))
    episode, step = found[0]
    share = torch.bincount(episode, minlength=12) / 2000
    expected = torch.tensor([1 / 6] + [1 / 21] * 7 + [1 / 6] + [1 / 9] * 3)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)
    assert (step[:, 0] == 0).all() and (step.diff() >= 0).all() and step.max() == 6 and (step[:, 1:] > 0).all()


def test_frames_of_several_sets_are_numbered_in_turn(tiny, clips):
    sets = [clips.pick(torch.arange(2)), clips.pick(torch.arange(2, 6))]
    episode, step = torch.tensor([5, 0, 2, 1, 2]), torch.tensor([[0, 3]] * 5)
    assert torch.equal(train_reflector._frames_of(sets, episode, step), clips.frames_at(episode, step)[:, :, 0])


def test_encoder_and_head_learn_and_nothing_else(tiny, clips):
    reflector = with_encoder(tiny)
    before = {name: weight.clone() for name, weight in reflector.state_dict().items()}
    loss = picture_loss(reflector, [clips], RIVALS, 16)
    learn(loss, [p for p in reflector.parameters() if p.requires_grad], 2e-3, 60)
    moved = {name for name, weight in reflector.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "head"}
    assert any("stem" in name for name in moved) and not any(".text." in name for name in moved)


def test_pictures_are_varied_within_their_range(monkeypatch):
    frames, look = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1), torch.tensor([[1.0, -1.0]])
    noisy = [train_reflector._varied(frames, look, torch.tensor([seed])).flatten() for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    monkeypatch.setattr(train_reflector, "NOISE", 0.0)
    found = train_reflector._varied(frames, look, torch.tensor([0])).flatten()
    assert found.tolist() == pytest.approx([-1.0, 1.2 * (100 / 127.5 - 1) - 0.15, 1.0])
    assert 0 < (noisy[0] - found).abs().max() < 0.1


def test_hard_negatives_are_drawn_from_all_other_tasks_instructions(tiny, clips, monkeypatch):
    reflector, read = with_encoder(tiny), []
    encode = reflector.encoder.forward
    monkeypatch.setattr(
        reflector.encoder, "forward", lambda frames, tokens: read.append(tokens) or encode(frames, tokens)
    )
    one = clips.pick(torch.arange(1))
    picture_loss(reflector, [one], RIVALS, 400, 1.0)(torch.Generator().manual_seed(0))
    told = {tuple(row) for row in read[0].tolist()}
    texts = [text for rival in RIVALS(one.tasks[0]) for text in rival.instructions]
    assert told == {tuple(row) for row in tokenize(texts).tolist()}
