import pytest
import torch

from worldenv.reflector.small import ReflectorConfig


def episode(tiny, n=3, steps=12):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(256, (n, steps + 1, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return frames, tiny.starts(n).tokens


def judged(reflector, frames, tokens, parts):
    pooled = reflector.begin(frames[:, 0], tokens)
    with torch.no_grad():
        return torch.cat([reflector.judge(part, pooled) for part in frames[:, 1:].split(parts, 1)], dim=1)


@pytest.mark.parametrize("zero_shot", [False, True])
@pytest.mark.parametrize("parts", [1, 4, [5, 1, 6]])
def test_chunk_by_chunk_is_the_same_as_one_pass_over_everything(tiny, zero_shot, parts):
    reflector, (frames, tokens) = tiny.reflector(zero_shot=zero_shot), episode(tiny)
    torch.testing.assert_close(
        judged(reflector, frames, tokens, parts), judged(reflector, frames, tokens, 12), rtol=1e-4, atol=1e-5
    )


def test_reward_reads_the_present_the_change_and_the_mean_so_far(tiny):
    reflector, (frames, tokens) = tiny.reflector(), episode(tiny)
    feature = torch.stack([reflector.encode(frames[:, t], tokens) for t in range(13)], dim=1)
    reward = judged(reflector, frames, tokens, 4)
    for t in range(1, 13):
        state = torch.cat([feature[:, t], feature[:, t] - feature[:, 0], feature[:, : t + 1].mean(1)], dim=-1)
        torch.testing.assert_close(reward[:, t - 1], reflector.head(state)[:, 0].sigmoid(), rtol=1e-3, atol=1e-4)


def test_reward_is_a_share_that_differs_between_frames(tiny):
    reward = judged(tiny.reflector(), *episode(tiny), 4)
    assert reward.shape == (3, 12) and reward.min() >= 0 and reward.max() <= 1 and reward.std() > 1e-3


def test_zero_shot_judge_is_the_pretrained_answer_on_the_last_frame(tiny):
    reflector, (frames, tokens) = tiny.reflector(zero_shot=True), episode(tiny)
    expected = reflector.done(reflector.encode(frames[:, 9], tokens))[:, 0].sigmoid()
    for parameter in reflector.head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    torch.testing.assert_close(judged(reflector, frames, tokens, 4)[:, 8], expected, rtol=1e-4, atol=1e-6)


def test_trained_judge_ignores_the_pretrained_answer(tiny):
    reflector, (frames, tokens) = tiny.reflector(), episode(tiny)
    before = judged(reflector, frames, tokens, 4)
    for parameter in reflector.done.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    assert torch.equal(judged(reflector, frames, tokens, 4), before)


def test_only_the_head_learns(tiny):
    reflector, (frames, tokens) = tiny.reflector(), episode(tiny)
    first, now = (reflector.encode(frames[:, t], tokens) for t in (0, 5))
    reflector.logit(now, first, (first + now) / 2).sum().backward()
    assert {name.split(".")[0] for name, p in reflector.named_parameters() if p.requires_grad} == {"head"}
    assert {name.split(".")[0] for name, p in reflector.named_parameters() if p.grad is not None} == {"head"}


def test_kept_episodes_go_on_as_if_alone(tiny):
    reflector, (frames, tokens) = tiny.reflector(), episode(tiny)
    pooled = reflector.begin(frames[:, 0], tokens)
    reflector.judge(frames[:, 1:5], pooled)
    rows = torch.tensor([2, 0])
    rest = reflector.judge(frames[rows, 5:], pooled.each(lambda t: t[rows]))
    torch.testing.assert_close(rest, judged(reflector, frames, tokens, 12)[rows, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero_shot", [False, True])
def test_reading_all_frames_again_says_the_same_while_there_are_no_more_than_it_samples(tiny, zero_shot):
    reflector, (frames, tokens) = tiny.reflector(zero_shot=zero_shot), episode(tiny)
    reward = judged(reflector, frames, tokens, 4)
    for t in (1, 5, 12):
        again = reflector.judge_again(frames[:, : t + 1], tokens, samples=13)
        torch.testing.assert_close(again, reward[:, t - 1], rtol=1e-3, atol=1e-4)


def test_of_more_frames_a_sample_is_read_that_is_uniform_and_has_the_first_and_the_last(tiny, monkeypatch):
    reflector, (frames, tokens) = tiny.reflector(), episode(tiny)
    again = reflector.judge_again(frames, tokens, samples=5)
    seen, encode = [], reflector.encode
    monkeypatch.setattr(reflector, "encode", lambda f, i: seen.append(f) or encode(f, i))
    assert torch.equal(reflector.judge_again(frames, tokens, samples=5), again)
    assert torch.equal(seen[0].unflatten(0, (3, 5)), frames[:, [0, 3, 6, 9, 12]])
    feature = encode(seen[0], tokens.repeat_interleave(5, 0)).unflatten(0, (3, 5))
    expected = torch.cat([feature[:, -1], feature[:, -1] - feature[:, 0], feature.mean(1)], dim=-1)
    torch.testing.assert_close(again, reflector.head(expected)[:, 0].sigmoid(), rtol=1e-3, atol=1e-4)
    assert (again - judged(reflector, frames, tokens, 4)[:, -1]).abs().max() > 1e-5  # its mean is another one


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_threshold_outside_the_rewards_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}"):
        ReflectorConfig(threshold=threshold)
