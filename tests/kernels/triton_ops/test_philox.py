import pytest
import torch
import triton
import triton.language as tl

from worldenv.kernels.philox import philox, philox_words
from worldenv.ops.philox import WORD, philox_reference
from worldenv.ops.philox import philox_words as reference_words

SEEDS = [0, 1, -1, 12345, 2**31, 2**40 + 16, -(2**63), 2**63 - 1]


def episodes(device):
    episode = torch.tensor([0, 7, 2**31, 2**32 + 5, 2**40 + 3], device=device)
    return episode, torch.tensor([0, 1, 2**24 - 1, 3, 40], device=device)


@triton.jit(do_not_specialize=["seed"])
def _words(seed: tl.int64, p_episode, p_chunk, use, p_out, BLOCK: tl.constexpr):
    i_b, o_n = tl.program_id(0), tl.arange(0, BLOCK)
    words = philox_words(seed, tl.load(p_episode + i_b), tl.load(p_chunk + i_b), use, o_n)
    for i in tl.static_range(4):
        tl.store(p_out + (i_b * 4 + i) * BLOCK + o_n, words[i].to(tl.int64))


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_the_reference_in_all_32_bits(device, seed):
    episode, chunk = episodes(device)
    out = torch.empty(len(episode), 4, 32, dtype=torch.int64, device=device)
    _words[(len(episode),)](seed, episode, chunk, 255, out, BLOCK=32)
    place = torch.arange(32, device=device)[None]
    counter = [place, (chunk * 256 + 255)[:, None], (episode & WORD)[:, None], (episode >> 32)[:, None]]
    expected = reference_words([word.expand(len(episode), 32) for word in counter], [seed & WORD, seed >> 32 & WORD])
    for i, words in enumerate(expected):
        assert torch.equal(out[:, i], words)


@pytest.mark.parametrize("count", [1, 63, 1000, 2049])
def test_uniform_numbers_are_exactly_those_of_the_reference(device, count):
    arguments = (2**35 + 1, *episodes(device), 1, count, False)
    assert torch.equal(philox(*arguments), philox_reference(*arguments))


@pytest.mark.parametrize("count", [2, 63, 1000])
def test_normal_numbers_equal_those_of_the_reference(device, count, assert_same):
    arguments = (3, *episodes(device), 0, count, True)
    assert_same(philox(*arguments), philox_reference(*arguments))


def test_no_episode_and_no_number_give_nothing(device):
    episode, chunk = episodes(device)
    assert philox(0, episode[:0], chunk[:0], 0, 5, False).shape == (0, 5)
    assert philox(0, episode, chunk, 0, 0, False).shape == (5, 0)
