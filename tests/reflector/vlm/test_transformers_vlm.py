"""Three ways to judge with a released model, for each family; what an episode is shown does not depend on others."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import worldenv
from worldenv.errors import UserError
from worldenv.interfaces.observation import Observation, table_of
from worldenv.interfaces.reflector import Reflector
from worldenv.reflector.transformers_vlm import VlmConfig, new_vlm_reflector
from worldenv.reflector.vlm.kept import frames as kept_frames

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
MODES = ("zero-shot", "language", "features")
TEXTS = ["put the red block on the green pad", "drop it in the tray", "put the red block on the green pad"]


def begin(reflector, frames, texts=TEXTS):
    table, text = table_of(texts[: len(frames)])
    return reflector.begin(Observation(frames[:, 0], torch.zeros(len(text), 7), None, text), reflector.read(table))


def judged(reflector, frames, parts, texts=TEXTS):
    state = begin(reflector, frames, texts)
    out = [reflector.judge(part, state) for part in frames[:, 1:].split(parts, 1)]
    reward, stop = (torch.cat(part, dim=1) for part in zip(*out, strict=True))
    assert torch.equal(stop, reward > reflector.config.threshold) and reward.dtype == torch.float32
    return reward


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunk_by_chunk_is_the_same_as_all_at_once_and_as_alone(reflector, frames, family, mode):
    judge, shown = reflector(family, mode), frames(3, 9)
    whole = judged(judge, shown, 8)
    assert isinstance(judge, Reflector) and whole.shape == (3, 8) and whole.min() >= 0 and whole.max() <= 1
    assert whole[:, -1].std() > 1e-4
    torch.testing.assert_close(judged(judge, shown, [3, 1, 4]), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(judged(judge, shown[1:2], 4, TEXTS[1:2]), whole[1:2], rtol=0, atol=1e-5)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten._unique2, torch.ops.aten.item)
        return func(*args, **(kwargs or {}))


def test_episodes_of_several_ages_are_judged_as_alone_and_their_ages_are_asked_once_a_chunk(reflector, frames):
    judge, shown = reflector("qwen2_5_vl", every=100), frames(3, 9)
    state = begin(judge, shown)
    state.count[1:] = torch.tensor([4, 2])
    with Waits() as waits:
        judge.judge(shown[:, 1:], state)  # no question is due
    assert waits.count <= 1 and state.count.tolist() == [9, 12, 10]
    judge = reflector("qwen2_5_vl")
    older, younger = begin(judge, shown[:1]), begin(judge, shown[1:], TEXTS[1:])
    judge.judge(shown[:1, 1:4], older)
    for name in ("prompt", "kept", "count", "reward"):
        mine, others = getattr(younger, name), getattr(older, name)
        wide = max(mine.shape[1:2] + others.shape[1:2], default=0) if name == "prompt" else None
        pair = [torch.nn.functional.pad(x, (0, wide - x.shape[1]), value=-1) if wide else x for x in (mine, others)]
        setattr(younger, name, torch.cat(pair))
    mixed, _ = judge.judge(torch.cat([shown[1:, 1:6], shown[:1, 4:9]]), younger)
    torch.testing.assert_close(mixed[2:], judged(judge, shown[:1], 8)[:, 3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[:1], judged(judge, shown[1:2], 5, TEXTS[1:2])[:, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["zero-shot", "language"])
def test_kept_features_and_shared_prefix_give_what_the_frames_themselves_give(reflector, frames, family, mode):
    judge, shown = reflector(family, mode, samples=4), frames(2, 12)
    reward = judged(judge, shown, 4)
    for t in range(1, 12):
        asked = t // 2 * 2  # the last time that it was asked
        if not asked:
            assert reward[:, 0].tolist() == [0.0, 0.0]
            continue
        for row in range(2):  # alone, without any cache, from the pixels
            chosen = shown[row : row + 1, kept_frames(asked + 1, 4), 0]
            tokens = judge.vlm.see(chosen[0])[None]
            hidden = library_hidden(judge.vlm, TEXTS[row], tokens)
            expected = judge.logit(hidden).sigmoid()
            torch.testing.assert_close(reward[row, t - 1], expected[0], rtol=0, atol=1e-5)


@torch.no_grad()
def library_hidden(vlm, text, tokens):
    """The last state of one pass over the whole sequence, without a cache."""
    prompt = vlm.prompt(text)
    before = vlm._embedded(prompt)
    n, (rows, columns) = tokens.shape[1], tokens.shape[2:4]
    ends = [vlm._embedded(ids).expand(1, n, -1, -1) for ids in vlm.around]
    frames = torch.cat([ends[0], tokens[..., : vlm.width].flatten(2, 3), ends[1]], 2).flatten(1, 2)
    tail = vlm.tail()
    x = torch.cat([before[None], frames, tail[None]], 1)
    positions = [vlm.positions(0, len(prompt), 0, (1, 1)), vlm.positions(len(prompt), len(tail), n, (rows, columns))]
    deep = vlm.deep(tokens, len(tail))
    if deep:
        mask = deep["visual_pos_masks"]
        deep["visual_pos_masks"] = torch.cat([mask.new_zeros(1, len(prompt)), mask], 1)
    return vlm._read(x, torch.cat(positions, -1), None, deep)[0][:, -1].float()


@pytest.mark.parametrize("mode", MODES)
def test_state_keeps_no_view_and_is_written_in_place(reflector, frames, mode):
    judge, shown = reflector("smolvlm", mode), frames(3, 5).clone()
    state = begin(judge, shown)
    before = state.each(torch.clone)
    shown[:, 0] = 0
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), before.tensors(), strict=True))
    places = [tensor.data_ptr() for tensor in state.tensors()]
    judge.judge(shown[:, 1:], state)
    assert places == [tensor.data_ptr() for tensor in state.tensors()]


def test_episodes_of_different_age_share_a_batch(reflector, frames):
    judge, shown = reflector("qwen2_5_vl"), frames(3, 12)
    whole = judged(judge, shown, 11)
    state = begin(judge, shown)
    judge.judge(shown[:, 1:4], state)
    fresh = begin(judge, shown[:1])
    state.put(torch.tensor([1]), fresh)  # a new episode in the slot of one that ended
    mixed = torch.stack([shown[0, 4:8], shown[0, 1:5], shown[2, 4:8]])
    reward, _ = judge.judge(mixed, state)
    expected = torch.stack([whole[0, 3:7], whole[0, :4], whole[2, 3:7]])
    torch.testing.assert_close(reward, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_parts_in_threads_come_out_the_same(reflector, frames, family):
    judge, shown = reflector(family), frames(2, 9)
    expected = judged(judge, shown, 8)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda row: judged(judge, shown[row : row + 1], 4, TEXTS[row : row + 1]), range(2)))
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_half_as_many_bits_judge_nearly_the_same(reflector, frames, family, mode):
    shown = frames(2, 7)
    exact, rounded = (judged(reflector(family, mode, dtype=dtype), shown, 3) for dtype in ("float32", "bfloat16"))
    assert 0 < (exact - rounded).abs().max() < 0.1


def test_question_that_is_too_long_for_the_model_is_refused_when_an_episode_begins(reflector, frames):
    with pytest.raises(UserError, match="1000 frames of 2 x 2 tokens has .* reads 4,096: lower samples or side"):
        begin(reflector("smolvlm", samples=1000), frames(1, 2))


def test_episode_of_features_is_a_few_vectors_and_of_language_a_few_frames(reflector, frames):
    shown = frames(2, 2)
    sizes = {mode: begin(reflector("qwen3_vl", mode), shown).bytes_each() for mode in MODES}
    prompt = len(reflector("qwen3_vl").vlm.prompt(TEXTS[0]))
    assert sizes["features"] == 4 * (32 + 2 * 5 * 32 + 1)
    assert sizes["language"] == sizes["zero-shot"] == 8 * prompt + 4 * 6 * 4 * 64 + 8 + 4


@pytest.mark.parametrize("mode", ["zero-shot", "features"])
@pytest.mark.parametrize("family", FAMILIES)
def test_judge_of_sixty_four_imagined_episodes(released, tmp_path, family, mode):
    if mode == "features":
        torch.manual_seed(0)
        new_vlm_reflector(VlmConfig(vlm=released(family), mode=mode, side=56), ("agentview",)).save(tmp_path, {})
    else:  # as a user writes it
        (tmp_path / "reflector.json").write_text(json.dumps({"vlm": str(released(family)), "side": 56}))
    parts = worldenv.load(reflector=f"vlm:{tmp_path}")
    assert parts.reflector.config.mode == mode
    starts = worldenv.practice_starts(parts.suite, seed=0).pick(torch.arange(8))
    engine = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=8))
    out = engine.run(starts, siblings=8, seed=0, stop=False)
    assert len(out) == 64 and not out.broken.any() and engine.capacity >= 64
    assert out.reward[:, -1, -1].unique().numel() > 8  # pictures and tasks differ, and so do the answers
    again = engine.run(starts.pick(torch.tensor([5])), siblings=8, seed=0, first_episode=40, stop=False)
    torch.testing.assert_close(again.reward, out.reward[40:48], rtol=0, atol=1e-4)
