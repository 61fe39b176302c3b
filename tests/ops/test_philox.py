from functools import partial

import pytest
import torch

import worldenv.ops.philox as module
from worldenv import ops
from worldenv.ops.philox import Use, philox, philox_reference, philox_words

DRAWS = (philox, partial(philox, normal=True))
TOLERANCE = {torch.float32: 3e-6}  # of normal numbers up to 6


def ids(*numbers):
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers for Philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_the_published_ones(counter, key, words):
    found = philox_words([torch.tensor([word]) for word in counter], list(key))
    assert tuple(int(word) for word in found) == words


def test_uniform_numbers_are_the_upper_bits_of_the_words():
    expected = torch.tensor([0x6627E8, 0xE169C5, 0xBC57AC, 0x9B00DB]) * 2.0**-24
    assert torch.equal(philox(0, ids(0), ids(0), 0, (2, 2))[0], expected.view(2, 2))


@pytest.mark.parametrize("count", [0, 1, 4, 63, 1000, 2 * 16384 + 7])
@pytest.mark.parametrize("normal", [False, True])
def test_compiled_face_equals_the_reference(count, normal):
    episode, chunk = ids(0, 1, 2**40 + 3, -5), ids(0, 3, 9, 2**24 - 1)
    arguments = (2**63 - 12345, episode, chunk, 255, count, normal)
    actual, expected = torch.ops.worldenv.philox(*arguments), philox_reference(*arguments)
    assert actual.dtype == torch.float32 and actual.shape == (4, count)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[torch.float32] if normal else 0)


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    i = torch.arange(3)
    expected = philox_reference(7, i, i, 1, 1000, True)
    found = at_level(level, "philox", 7, i, i, 1, (1000,), True)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("draw", DRAWS)
def test_an_episode_draws_the_same_in_any_company(draw):
    many = draw(5, ids(9, 3, 7), ids(1, 2, 0), Use.ACTION, (4, 7))
    assert many.shape == (3, 4, 7) and many.dtype == torch.float32
    assert torch.equal(many[1:2], draw(5, ids(3), ids(2), Use.ACTION, (4, 7)))


@pytest.mark.parametrize("draw", DRAWS)
def test_seed_episode_chunk_and_use_each_change_the_draw(draw):
    first = [
        draw(seed, ids(episode), ids(chunk), use, (63,))
        for seed, episode, chunk, use in (
            (5, 3, 2, Use.ACTION),
            (6, 3, 2, Use.ACTION),
            (5 + 2**32, 3, 2, Use.ACTION),
            (5, 4, 2, Use.ACTION),
            (5, 3 + 2**32, 2, Use.ACTION),
            (5, 3, 3, Use.ACTION),
            (5, 3, 2, Use.FRAME),
        )
    ]
    values = torch.cat(first).flatten()
    assert len(values.unique()) == len(values)


def test_a_longer_draw_begins_as_a_shorter_one():
    long, short = (philox(1, ids(2), ids(3), 0, (count,)) for count in (50_000, 999))
    assert torch.equal(long[:, :999], short)


def test_distributions_are_standard():
    episodes = torch.arange(50)
    flat, bell = (draw(1, episodes, episodes, Use.ACTION, (4000,)).double() for draw in DRAWS)
    assert flat.min() >= 0 and flat.max() < 1
    assert flat.mean().item() == pytest.approx(0.5, abs=0.003) and flat.var().item() == pytest.approx(1 / 12, abs=0.002)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert bell.pow(power).mean().item() == pytest.approx(moment, abs=0.06)
    pairs = bell.view(-1, 4)  # the four numbers of a counter
    torch.testing.assert_close(pairs.T.corrcoef(), torch.eye(4).double(), rtol=0, atol=0.02)


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.philox.default, (3, ids(1, 2), ids(0, 1), 1, 10, True))


def test_operator_is_traced_without_a_graph_break():
    def step(episode, chunk):
        return philox(3, episode, chunk, 1, (5, 2), normal=True) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(ids(1, 2), ids(0, 1)), step(ids(1, 2), ids(0, 1)))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "philox_reference", lambda *arguments: torch.full((1, 2), 9.0))
    assert philox(0, ids(0), ids(0), 0, (2,)).tolist() == [[9.0, 9.0]]


@pytest.mark.parametrize(
    ("episode", "chunk", "use", "message"),
    [
        (torch.zeros(2), ids(0, 0), 0, r"episode is torch.float32 \[2\]; it should be torch.int64 \[B\]"),
        (ids(0, 0), ids(0, 0)[None], 0, r"chunk is torch.int64 \[1, 2\]; it should be torch.int64 \[B\]"),
        (ids(0, 0), ids(0), 0, r"episode is \[2\] on cpu and chunk \[1\] on cpu; they should agree"),
        (ids(0), ids(0), 256, r"use is 256; it should be an integer in \[0, 256\)"),
    ],
)
def test_wrong_input_is_refused_by_name(episode, chunk, use, message):
    with pytest.raises(ValueError, match=message):
        philox(0, episode, chunk, use, (1,))


def test_more_numbers_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="numbers for each episode; at most 2,147,483,647 are drawn"):
        philox(0, ids(0), ids(0), 0, (2**62, 2**62))
