from dataclasses import replace

import pytest
import torch

from worldenv.interfaces.observation import Observation, table_of
from worldenv.interfaces.reflector import Reflector
from worldenv.nn.instruction import tokenize
from worldenv.records.model_files import save_model
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig


def episode(tiny, n=3, steps=12):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(256, (n, steps + 1, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return frames, tiny.starts(n).instructions


def begin(reflector, frames, instructions):
    texts, text = table_of(instructions)
    return reflector.begin(Observation(frames[:, :1], torch.zeros(len(text), 7), None, text), reflector.read(texts))


def judged(reflector, frames, instructions, parts):
    state = begin(reflector, frames, instructions)
    out = [reflector.judge(part[:, :, None], state) for part in frames[:, 1:].split(parts, 1)]
    reward, stop = (torch.cat(part, dim=1) for part in zip(*out, strict=True))
    assert torch.equal(stop, reward > reflector.config.threshold)
    return reward


@pytest.mark.parametrize("zero_shot", [False, True])
@pytest.mark.parametrize("parts", [1, 4, [5, 1, 6]])
def test_chunk_by_chunk_is_the_same_as_one_pass_over_everything(tiny, zero_shot, parts):
    reflector, (frames, texts) = tiny.reflector(zero_shot=zero_shot), episode(tiny)
    torch.testing.assert_close(
        judged(reflector, frames, texts, parts), judged(reflector, frames, texts, 12), rtol=1e-4, atol=1e-5
    )


def test_reward_reads_the_present_the_change_and_the_mean_so_far(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    feature = torch.stack([reflector.encode(frames[:, t], tokenize(texts)) for t in range(13)], dim=1)
    reward = judged(reflector, frames, texts, 4)
    for t in range(1, 13):
        state = torch.cat([feature[:, t], feature[:, t] - feature[:, 0], feature[:, : t + 1].mean(1)], dim=-1)
        torch.testing.assert_close(reward[:, t - 1], reflector.head(state)[:, 0].sigmoid(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("zero_shot", [False, True])
@pytest.mark.parametrize("parts", [1, 4, [5, 1, 6], 12])
def test_patient_reflector_stops_after_enough_frames_in_a_row(tiny, zero_shot, parts):
    reflector, (frames, texts) = tiny.reflector(zero_shot=zero_shot), episode(tiny, n=8)
    above = judged(reflector, frames, texts, 12)
    threshold = above.quantile(0.35).item()
    reflector.config = replace(reflector.config, threshold=threshold, patience=3)
    state = begin(reflector, frames, texts)
    stop = torch.cat([reflector.judge(part[:, :, None], state)[1] for part in frames[:, 1:].split(parts, 1)], dim=1)
    above = above > threshold
    expected = torch.stack([above[:, max(0, t - 2) : t + 1].all(1) & (t >= 2) for t in range(12)], dim=1)
    assert torch.equal(stop, expected) and expected.any() and not torch.equal(expected, above)


def test_reward_is_a_share_that_differs_between_frames(tiny):
    reward = judged(tiny.reflector(), *episode(tiny), 4)
    assert reward.shape == (3, 12) and reward.min() >= 0 and reward.max() <= 1 and reward.std() > 1e-3


def test_trained_head_says_from_which_reward_success_is_likely(tiny):
    assert tiny.reflector(zero_shot=False).likely == 0.5 and tiny.reflector(zero_shot=True).likely is None


def test_zero_shot_judge_is_the_pretrained_answer_on_the_last_frame(tiny):
    reflector, (frames, texts) = tiny.reflector(zero_shot=True), episode(tiny)
    expected = reflector.done(reflector.encode(frames[:, 9], tokenize(texts)))[:, 0].sigmoid()
    for parameter in reflector.head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    torch.testing.assert_close(judged(reflector, frames, texts, 4)[:, 8], expected, rtol=1e-4, atol=1e-6)


def test_trained_judge_ignores_the_pretrained_answer(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    before = judged(reflector, frames, texts, 4)
    for parameter in reflector.done.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    assert torch.equal(judged(reflector, frames, texts, 4), before)


def test_state_keeps_no_view_of_the_observation(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    assert isinstance(reflector, Reflector)
    state = begin(reflector, frames, texts)
    before = state.each(torch.clone)
    frames[:, 0] = 0
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), before.tensors(), strict=True))


def test_every_episode_is_judged_by_its_own_instruction(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    expected = judged(reflector, frames, texts, 4)
    other = judged(reflector, frames, [texts[0], texts[2], texts[1]], 4)
    torch.testing.assert_close(other[0], expected[0])
    assert not torch.allclose(other[1], expected[1]) and not torch.allclose(other[2], expected[2])


def test_only_the_head_learns(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    first, now = (reflector.encode(frames[:, t], tokenize(texts)) for t in (0, 5))
    reflector.logit(now, first, (first + now) / 2).sum().backward()
    assert {name.split(".")[0] for name, p in reflector.named_parameters() if p.requires_grad} == {"head"}
    assert {name.split(".")[0] for name, p in reflector.named_parameters() if p.grad is not None} == {"head"}


def test_kept_episodes_go_on_as_if_alone(tiny):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    state = begin(reflector, frames, texts)
    reflector.judge(frames[:, 1:5, None], state)
    rows = torch.tensor([2, 0])
    rest, _ = reflector.judge(frames[rows, 5:, None], state.each(lambda t: t[rows]))
    torch.testing.assert_close(rest, judged(reflector, frames, texts, 12)[rows, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero_shot", [False, True])
def test_reading_all_frames_again_says_the_same_while_there_are_no_more_than_it_samples(tiny, zero_shot):
    reflector, (frames, texts) = tiny.reflector(zero_shot=zero_shot), episode(tiny)
    reward = judged(reflector, frames, texts, 4)
    for t in (1, 5, 12):
        again = reflector.judge_again(frames[:, : t + 1], tokenize(texts), samples=13)
        torch.testing.assert_close(again, reward[:, t - 1], rtol=1e-3, atol=1e-4)


def test_of_more_frames_a_sample_is_read_that_is_uniform_and_has_the_first_and_the_last(tiny, monkeypatch):
    reflector, (frames, texts) = tiny.reflector(), episode(tiny)
    tokens = tokenize(texts)
    again = reflector.judge_again(frames, tokens, samples=5)
    seen, encode = [], reflector.encode
    monkeypatch.setattr(reflector, "encode", lambda f, i: seen.append(f) or encode(f, i))
    assert torch.equal(reflector.judge_again(frames, tokens, samples=5), again)
    assert torch.equal(seen[0].unflatten(0, (3, 5)), frames[:, [0, 3, 6, 9, 12]])
    feature = encode(seen[0], tokens.repeat_interleave(5, 0)).unflatten(0, (3, 5))
    expected = torch.cat([feature[:, -1], feature[:, -1] - feature[:, 0], feature.mean(1)], dim=-1)
    torch.testing.assert_close(again, reflector.head(expected)[:, 0].sigmoid(), rtol=1e-3, atol=1e-4)
    assert (again - judged(reflector, frames, texts, 4)[:, -1]).abs().max() > 1e-5  # its mean is another one


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_threshold_outside_the_rewards_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}"):
        SmallReflectorConfig(threshold=threshold)


def test_where_the_encoder_has_learned_the_zero_shot_judge_asks_that_of_the_base(tiny, tmp_path):
    config, (frames, texts) = replace(tiny.reflector_config, learned=True), episode(tiny)
    plain, learned = tiny.reflector(zero_shot=True), SmallReflector(config)
    base = {f"base.{name}": weight for name, weight in plain.encoder.state_dict().items()}
    learned.load_state_dict(plain.state_dict() | base)
    with torch.no_grad():
        learned.encoder.out.weight.mul_(2)
    save_model(tmp_path / "reflector.safetensors", learned, "reflector", {})
    judge, back = (SmallReflector.load(tmp_path / "reflector.safetensors", zero_shot) for zero_shot in (True, False))
    expected, found = judged(plain, frames, texts, 12), judged(judge, frames, texts, 12)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # kept in half precision
    assert judge.asked is judge.base and back.asked is back.encoder and back.pretrained is back.base
    feature = back.encode(frames[:, 0], tokenize(texts)) - back.encoder.out.bias
    assert not torch.allclose(feature, plain.encode(frames[:, 0], tokenize(texts)) - plain.encoder.out.bias, rtol=0.1)
