"""What is wrong with a user's folder is said in one line, with file and remedy, before a weight is read."""

import json
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

import worldenv
from worldenv.errors import UserError
from worldenv.reflector.transformers_vlm import VlmConfig, load_vlm_reflector, new_vlm_reflector

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"]


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rewrite(folder, change):
    """Change the tensors of the first shard, and the index with them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SHARD)
    before = set(tensors)
    change(tensors)
    save_file(tensors, folder / SHARD, {"format": "pt"})

    def listed(document):
        for name in before - tensors.keys():
            del document["weight_map"][name]
        document["weight_map"] |= dict.fromkeys(tensors.keys() - before, SHARD)

    edit(folder / INDEX, listed)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_pickles(folder):
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def of_words(folder):
    from tokenizers import Tokenizer, models

    chat = [added["content"] for added in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]
    vocabulary = {"<unk>": 0, "task": 1} | {token: 500 + i for i, token in enumerate(chat)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))


def of_many_tokens(folder):
    edit(folder / "tokenizer.json", lambda d: d["model"]["vocab"].update({"word": 700}))


def of_another_chat(folder):
    def forget(document):
        token = next(token for token in ENDS if token in document["model"]["vocab"])
        del document["model"]["vocab"][token]
        document["added_tokens"] = [added for added in document["added_tokens"] if added["content"] != token]

    edit(folder / "tokenizer.json", forget)


def elsewhere(folder):
    edit(folder / INDEX, lambda d: d["weight_map"].update({next(iter(d["weight_map"])): "../other.safetensors"}))


def sizes(**changed):
    """Of the language model, which Qwen2.5-VL's authors do not nest."""
    return lambda folder: edit(folder / "config.json", lambda d: d.get("text_config", d).update(changed))


def norm(tensors):
    """The name of a tensor [32] of the language model's first layer."""
    return next(name for name in tensors if name.endswith("layers.0.input_layernorm.weight"))


ENDS = "<end_of_utterance>", "<|im_end|>"  # of what the user says
NORM = r"layers\.0\.input_layernorm\.weight"
REMEDY = re.compile(r"\b(download|give|take|check|save|restore)\b", re.IGNORECASE)
WRONG = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "not JSON": (lambda f: halve(f / "config.json"), r"config.json is not valid JSON"),
    "another architecture": (lambda f: edit(f / "config.json", lambda d: d.update(model_type="llava")), "'llava'"),
    "quantised": (lambda f: edit(f / "config.json", lambda d: d.update(quantization_config={})), "quantised"),
    "sizes are no numbers": (sizes(hidden_size="many"), r"config.json is no configuration of \w+Config"),
    "sizes of another model": (
        sizes(intermediate_size=96),
        r"model-0000\d-of-00002.safetensors has .*\[64, 32\] where \[96, 32\] fits",
    ),
    "a shard is missing": (lambda f: (f / SHARD).unlink(), f"lacks {SHARD}"),
    "a shard is cut short": (lambda f: halve(f / SHARD), f"{SHARD} is no complete safetensors file.*download it again"),
    "a shard is a pointer": (
        lambda f: (f / SHARD).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "a shard is elsewhere": (elsewhere, "has no weight_map of names of files beside it"),
    "no index": (lambda f: (f / INDEX).unlink(), "has neither model.safetensors nor"),
    "pickles": (as_pickles, "pytorch_model.bin.*which may run a program"),
    "a tensor is missing": (lambda f: rewrite(f, lambda t: t.pop(norm(t))), rf"index.json lacks [\w.]*{NORM}"),
    "a tensor is not known": (
        lambda f: rewrite(f, lambda t: t.update({"model.extra.weight": torch.zeros(3)})),
        r"has model[\w.]*\.extra\.weight, which this model does not know",
    ),
    "a tensor has another shape": (
        lambda f: rewrite(f, lambda t: t.update({norm(t): torch.zeros(5)})),
        rf"{SHARD} has [\w.]*{NORM} \[5\] where \[32\] fits",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: there is no such file"),
    "tokenizer is damaged": (lambda f: halve(f / "tokenizer.json"), "tokenizer.json is no tokenizer"),
    "tokenizer of another model": (of_many_tokens, "has the token 700, and the model knows 512"),
    "tokenizer of another chat": (of_another_chat, f"tokenizer.json lacks ({'|'.join(map(re.escape, ENDS))})"),
    "tokenizer without yes": (of_words, "has no tokens of their own for yes and no"),
    "no preprocessing": (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
    "preprocessing of nothing": (
        lambda f: edit(f / "preprocessor_config.json", lambda d: d.update(image_std=[0.5, 0.5])),
        "preprocessor_config.json: image_std is",
    ),
}


@pytest.fixture
def read(monkeypatch):
    """The folders whose weights transformers has been told to read."""
    import transformers

    seen, load = [], transformers.PreTrainedModel.from_pretrained.__func__

    def noted(kind, folder, *args, **kwargs):
        seen.append(folder) if folder is not None else None
        return load(kind, folder, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(noted))
    return seen


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_folder_is_refused_in_one_line_before_weights_are_read(copied, read, family, case, capfd):
    folder, (damage, message) = copied(family), WRONG[case]
    damage(folder)
    capfd.readouterr()
    with pytest.raises(UserError, match=message) as error:
        load_vlm_reflector(folder, ("agentview",))
    said = str(error.value)
    assert "\n" not in said and str(folder) in said and REMEDY.search(said) and not read
    assert capfd.readouterr() == ("", "")  # no report of the library beside it


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "/nowhere/at/all"])
def test_what_is_no_folder_is_refused_and_nothing_is_downloaded(read, name):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="nothing is fetched here"):
        worldenv.load(reflector=f"vlm:{name}")
    assert not read


@pytest.mark.parametrize("family", FAMILIES)
def test_one_lost_tensor_is_never_made_up(copied, family):
    folder = copied(family)
    rewrite(folder, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(UserError, match="index.json lacks"):
        load_vlm_reflector(folder, ("agentview",))


def test_code_beside_the_weights_is_not_run(copied, tmp_path):
    folder = copied("smolvlm")
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit")
    maps = {"AutoConfig": "modeling.C", "AutoModelForImageTextToText": "modeling.M", "AutoProcessor": "modeling.P"}
    edit(folder / "config.json", lambda d: d.update(auto_map=maps))
    load_vlm_reflector(folder, ("agentview",))
    assert not (tmp_path / "ran").exists()


def test_type_of_the_numbers_is_that_of_the_files_or_as_asked(copied):
    folder = copied("smolvlm")
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, {"format": "pt"})
    edit(folder / "config.json", lambda d: d.update(dtype="bfloat16"))
    for dtype, expected in (("file", torch.bfloat16), ("float32", torch.float32)):
        made = new_vlm_reflector(VlmConfig(vlm=folder, dtype=dtype), ("agentview",))
        assert {p.dtype for p in made.parameters()} == {expected}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"mode": "langauge"}, "mode is 'langauge'; it should be zero-shot or language or features"),
        ({"treshold": 0.4}, "unknown setting .treshold. — did you mean .threshold."),
        ({"vlm": None}, 'does not say in "vlm" which folder'),
        ({"samples": 2}, "samples is 2; it should be"),
        ({"view": "wrist"}, "looks at the view 'wrist'; there are agentview"),
        ({"mode": "language"}, "head.safetensors is not there, and mode language needs a head"),
    ],
)
def test_wrong_settings_are_refused(released, tmp_path, read, document, message):
    (tmp_path / "reflector.json").write_text(json.dumps({"vlm": str(released("smolvlm"))} | document))
    with pytest.raises(UserError, match=message):
        load_vlm_reflector(tmp_path, ("agentview",))
    assert not read


def test_page_lists_every_setting_with_its_default():
    page = (Path(__file__).parents[3] / "docs" / "vlm.md").read_text(encoding="utf-8")
    for field in fields(VlmConfig):
        given = "" if field.default in (MISSING, "") else str(field.default)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert given in row.split("|")[2]


def test_head_of_another_model_is_refused(reflector, released, copied, tmp_path):
    reflector("smolvlm", "language").save(tmp_path, {})
    assert load_vlm_reflector(tmp_path, ("agentview",)).config.question.startswith("Is the task done")
    other = copied("smolvlm")
    rewrite(other, lambda tensors: tensors[norm(tensors)].mul_(2))
    edit(tmp_path / "reflector.json", lambda d: d.update(vlm="smolvlm"))  # beside it
    with pytest.raises(UserError, match="was trained on another model"):
        load_vlm_reflector(tmp_path, ("agentview",))


@pytest.mark.parametrize("name", ["vlm", "vlm:"])
def test_name_without_a_folder_is_refused(name):
    with pytest.raises(UserError, match="unknown reflector 'vlm.*valid names: .*vlm:FOLDER"):
        worldenv.load(reflector=name)


def test_judge_takes_no_other_part():
    with pytest.raises(UserError, match="unknown policy 'vlm:x'"):
        worldenv.load(policy="vlm:x")


def test_missing_library_names_the_extra(released, monkeypatch):
    folder = released("smolvlm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'released models need transformers: pip install "worldenv\[models\]"'):
        load_vlm_reflector(folder, ("agentview",))
