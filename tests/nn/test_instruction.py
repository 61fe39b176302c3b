import pytest
import torch

from worldenv.errors import UserError
from worldenv.nn.instruction import MAX_WORDS, WORDS, InstructionEncoder, tokenize
from worldenv.suites.tabletop.scenes import TASKS, pretraining_task

SUITE = [text for task in TASKS for text in task.instructions]
PRETRAINING = [text for i in range(300) for text in pretraining_task(i).instructions]
UNKNOWN = WORDS.index("<unknown>")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return InstructionEncoder(48)


def test_vocabulary_knows_every_word_of_the_suite_and_of_pretraining():
    assert not (tokenize(SUITE + PRETRAINING) == UNKNOWN).any()
    assert len(set(WORDS)) == len(WORDS)


def test_every_instruction_has_tokens_of_its_own():
    texts = set(SUITE)
    assert len(texts) == 40
    assert len(torch.unique(tokenize(sorted(texts)), dim=0)) == len(texts)


def test_tokens_are_words_in_order_then_padding():
    (row,) = tokenize(["Put the RED block, please!"]).tolist()
    assert [WORDS[i] for i in row[:5]] == ["put", "the", "red", "block", "<unknown>"]
    assert row[5:] == [0] * (MAX_WORDS - 5)


@pytest.mark.parametrize("text", ["", "  ?! 12", "bake an apple", " ".join(["put"] * (MAX_WORDS + 1))])
def test_instruction_that_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match=r"should have 1 to 12 words, some of them among: put place") as error:
        tokenize(["put the red block on the green pad", text])
    assert repr(text) in str(error.value)


def test_number_and_word_of_another_language_are_words_that_are_not_known():
    (row,) = tokenize(["put block 2 on the größere pad"]).tolist()
    assert [WORDS[i] for i in row[:7]] == ["put", "block", "<unknown>", "on", "the", "<unknown>", "pad"]
    with pytest.raises(UserError, match="some of them among: put place"):
        tokenize([" ".join(["put"] * (MAX_WORDS - 1) + ["1", "2"])])


def test_instructions_that_would_be_read_alike_are_refused():
    with pytest.raises(UserError, match="'put block 1 on pad' and 'put block 2 on pad' differ in unknown words alone"):
        tokenize(["put block 1 on pad", "push the can", "put block 2 on pad"])
    same = tokenize(["Put the can on the pad.", "put the can  on the pad"])
    assert torch.equal(same[0], same[1])


def test_longest_instruction_fits():
    assert (tokenize([" ".join(["put"] * MAX_WORDS)]) == WORDS.index("put")).all()


def test_instruction_is_encoded_alike_alone_and_in_a_batch_with_repeats(encoder):
    texts = [SUITE[5], SUITE[0], SUITE[5], "push", SUITE[-1]]
    together = encoder(tokenize(texts))
    assert together.shape == (5, 48)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(row, encoder(tokenize([text]))[0], rtol=0, atol=1e-6)


def test_padding_changes_nothing(encoder):
    text = "put the red block on the green pad"
    padded = tokenize([text])
    torch.testing.assert_close(encoder(padded), encoder(padded[:, : len(text.split())]), rtol=0, atol=1e-6)


def test_word_order_counts(encoder):
    one, other = encoder(tokenize(["put the red block on the green block", "put the green block on the red block"]))
    assert (one - other).abs().max() > 1e-3


def test_gradient_reaches_the_words_used_and_no_padding(encoder):
    encoder(tokenize(["push the puck"])).sum().backward()
    moved = encoder.embed.weight.grad.abs().sum(1) > 0
    assert [WORDS[i] for i in moved.nonzero().flatten()] == ["push", "the", "puck"]


def test_tokens_are_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        assert tokenize(["push the puck"])[0, :3].tolist() == [WORDS.index(word) for word in ("push", "the", "puck")]
