"""Wrong folders and settings: one clear error each, with file and remedy, before a transformer's tensor is read."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldenv.data.formats.rlinf import RlinfConfig
from worldenv.errors import UserError
from worldenv.fields import FieldError
from worldenv.records.released import Release
from worldenv.robot.robot import Robot
from worldenv.worlds.wan.world import load_wan

DIT, VAE = "model-00001.safetensors", "Wan2.2_VAE.pth"


@pytest.fixture(autouse=True)
def nothing_large_is_read(monkeypatch):
    def refuse(*given):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Release, "fill", refuse)


def remove(name):
    return lambda folder: (folder / name).unlink()


def dit(change):
    def work(folder):
        state = load_file(folder / DIT)
        change(state)
        save_file(state, folder / DIT)

    return work


def vae(change):
    def work(folder):
        state = torch.load(folder / VAE, weights_only=True)
        change(state)
        torch.save(state, folder / VAE)

    return work


def settings(**values):
    def work(folder):
        path = folder / "worldenv.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return work


def rename(state):
    state["blocks.0.self_attn.query.weight"] = state.pop("blocks.0.self_attn.q.weight")


class Evil:
    def __reduce__(self):
        return print, ("code of a stranger was executed",)


WRONG = {
    "no transformer": (remove(DIT), r"has no model-\*.safetensors, the weights of its transformer"),
    "no autoencoder": (remove(VAE), "has no Wan2.2_VAE.pth, its autoencoder; download"),
    "cut transformer": (
        lambda f: (f / DIT).write_bytes((f / DIT).read_bytes()[:-9]),
        "is no complete safetensors file",
    ),
    "cut autoencoder": (lambda f: (f / VAE).write_bytes((f / VAE).read_bytes()[:99]), "no complete file of torch.save"),
    "a program": (lambda f: torch.save({"a": Evil()}, f / VAE), "holds more than tensors, which would be executed"),
    "a file twice": (
        lambda f: (f / "model-00002.safetensors").write_bytes((f / DIT).read_bytes()),
        "model-00002.safetensors and model-00001.safetensors both hold",
    ),
    "no actions": (dit(lambda s: s.pop("action_mlp1.0.weight")), "has no action_mlp1.0.weight of 2 dimensions"),
    "missing key": (dit(lambda s: s.pop("blocks.1.ffn.2.bias")), "lacks blocks.1.ffn.2.bias"),
    "renamed key": (dit(rename), "lacks blocks.0.self_attn.q.weight; has blocks.0.self_attn.query.weight, which"),
    "other shape": (
        dit(lambda s: s.update({"head.head.weight": torch.ones(100, 24)})),
        r"head.head.weight \[100, 24\] where \[192, 24\] fits",
    ),
    "other actions": (
        dit(
            lambda s: s.update({"action_mlp1.0.weight": torch.ones(24, 8), "action_mlp2.0.weight": torch.ones(96, 32)})
        ),
        "takes actions of 8 numbers, the robot of tabletop acts with 7",
    ),
    "other heads": (settings(head=128), "its width is 24 in 2 blocks, which heads of 128 numbers do not divide"),
    "other autoencoder": (
        vae(lambda s: s.update({"conv2.weight": torch.ones(16, 16, 1, 1, 1)})),
        "has 16 channels in latents of 4 frames; the autoencoder of Wan 2.2 has 48",
    ),
    "not an autoencoder": (vae(lambda s: s.pop("decoder.conv1.weight")), "lacks 'decoder.conv1.weight'"),
    "autoencoder that lacks a key": (vae(lambda s: s.pop("decoder.head.2.bias")), "lacks decoder.head.2.bias"),
    "odd size": (settings(size=72), "size is 72; it should be a multiple of 32 pixels"),
    "unknown setting": (settings(chunks=8), "does not know 'chunks'"),
    "wrong setting": (settings(chunk=6), "chunk is 6; it should be a multiple of the 4 frames of a latent"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_folder_is_said(release, tabletop, capsys, name):
    change, message = WRONG[name]
    change(release)
    with pytest.raises(UserError) as error:
        load_wan(release, tabletop)
    said = str(error.value)
    assert re.search(message, said), said
    assert "\n" not in said and len(said) < 700 and "executed" not in capsys.readouterr().out
    assert str(release) in said or name == "odd size"


def test_texts_that_actions_have_replaced_may_be_in_the_file(release, tabletop):
    dit(lambda s: s.update({"text_embedding.0.weight": torch.ones(24, 9)}))(release)
    with pytest.raises(AssertionError, match="weights were read"):
        load_wan(release, tabletop)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": ("agentview", "wrist")}, "imagines one view, and pens shows agentview, wrist"),
        ({"robot": Robot(("x",), ("dx",), (0.0,), (1.0,))}, "the robot of pens acts with 1: choose another"),
    ],
)
def test_a_suite_that_does_not_fit_is_refused(written, tabletop, changed, message):
    suite = SimpleNamespace(**{"name": "pens", "views": tabletop.views, "robot": tabletop.robot, **changed})
    with pytest.raises(UserError, match=message):
        load_wan(written, suite)


@pytest.mark.parametrize("path", ["RLinf/RLinf-Wan-LIBERO-Goal", "", 3])
def test_what_is_no_folder_is_refused(tabletop, path):
    with pytest.raises(UserError, match="is not there; give the folder of a released model|is no path"):
        load_wan(path, tabletop)


def test_a_missing_package_is_named_with_its_extra(written, tabletop, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.transformers.transformer_wan", None)
    with pytest.raises(UserError, match=r'released models need diffusers.*: pip install "worldenv\[models\]"'):
        load_wan(written, tabletop)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"context": "pictures"}, "context is 'pictures'; it should be frames or latents"),
        ({"decode": "none"}, "decode is 'none'; it should be all or last"),
        ({"orientation": "sideways"}, "orientation is 'sideways'"),
        ({"threshold": 2.0}, "threshold is 2.0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        replace(RlinfConfig(), **values)
