"""Wrong folders of every autoencoder and encoder: one clear error each, with the file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldenv.errors import UserError
from worldenv.worlds.components import inspect_diffusers, inspect_transformers
from worldenv.worlds.tokenizers import LEVELS
from worldenv.worlds.video.folder import CLIPS, TRUNKS

ENCODERS = {"image_encoder": CLIPS, "geometry": TRUNKS}
PARTS = [*LEVELS, *ENCODERS]


@pytest.fixture(scope="module")
def sound(written, make_autoencoder, tmp_path_factory):
    """The folder of each part."""
    path = tmp_path_factory.mktemp("components")
    for kind in LEVELS:
        make_autoencoder(kind).save_pretrained(path / kind)
    for name in ENCODERS:
        shutil.copytree(written / name, path / name)
    return path


def weights(folder):
    return next(folder.glob("*.safetensors"))


def tensors(change):
    def work(folder):
        state, file = load_file(weights(folder)), weights(folder)
        change(state, max(state))
        save_file(state, file, {"format": "pt"})

    return work


def config(**values):
    def work(folder):
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | values))

    return work


def of_several(folder):
    file = weights(folder)
    key, *rest = load_file(file)
    places = {key: "one.safetensors"} | dict.fromkeys(rest, "two.safetensors")
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": places}))
    file.rename(file.with_name("one.safetensors"))


OTHER = {"_class_name": "VQModel", "model_type": "siglip"}
SENSELESS = {"latent_channels": "many", "z_dim": "many", "hidden_size": 33}
WRONG = {
    "no folder": (shutil.rmtree, "is not there; give the folder of a released model"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no document": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "another architecture": (config(**OTHER), "config.json is of the architecture '(VQModel|siglip)', not"),
    "senseless sizes": (config(**SENSELESS), "is not valid|is no configuration|makes no model|where .* fits"),
    "no weights": (lambda f: weights(f).unlink(), "has neither .*safetensors nor .*index.json"),
    "a pickle": (
        lambda f: weights(f).rename(f / "pytorch_model.bin"),
        "in pytorch_model.bin: pickles, which may run a",
    ),
    "missing shard": (of_several, "lacks two.safetensors: 1 of the 2 files"),
    "cut short": (
        lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-9]),
        "is no complete safetensors file .*download it again",
    ),
    "a pointer": (lambda f: weights(f).write_text("version https://git-lfs.github.com/spec/v1\n"), "of Git LFS"),
    "missing tensor": (tensors(lambda s, last: s.pop(last)), "lacks [a-z]"),
    "unknown tensor": (
        tensors(lambda s, last: s.update({"extra": torch.ones(1)})),
        "has extra, which this model does not know",
    ),
    "another shape": (
        tensors(lambda s, last: s.update({last: torch.ones(7, 7)})),
        r"\[7, 7\] where \[.*\] fits",
    ),
    "not finite": (tensors(lambda s, last: s[last].fill_(torch.nan)), "holds numbers that are not finite"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_wrong_with_a_part_is_said(sound, tmp_path, part, name):
    folder = tmp_path / part
    shutil.copytree(sound / part, folder)
    change, message = WRONG[name]
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        found = inspect_transformers(folder, ENCODERS[part]) if part in ENCODERS else inspect_diffusers(folder, LEVELS)
        if name == "not finite":  # all else is found before anything is read
            found.read(None)
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700
