"""Wrong folders and settings: one clear error each, with file and remedy, before anything large is read."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldenv.errors import UserError
from worldenv.fields import FieldError
from worldenv.records.released import Release
from worldenv.robot.robot import Robot
from worldenv.worlds.components import Encoder
from worldenv.worlds.video.network import VideoConfig
from worldenv.worlds.video.world import load_video

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def nothing_large_is_read(monkeypatch):
    def refuse(*given):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Release, "fill", refuse)


def without(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def document(name, **values):
    def work(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return work


def tensors(part, change, name=WEIGHTS):
    def work(folder):
        state = load_file(folder / part / name)
        change(state)
        save_file(state, folder / part / name, {"format": "pt"})

    return work


def sharded(folder):
    (folder / "unet" / WEIGHTS).unlink()
    listed = {"weight_map": {"conv_in.weight": "one.safetensors", "conv_in.bias": "two.safetensors"}}
    save_file({"conv_in.weight": torch.ones(1)}, folder / "unet" / "one.safetensors")
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(listed))


def pickled(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


WRONG = {
    "no unet": (without("unet"), "has no folder unet, so it is no whole pipeline"),
    "no autoencoder": (without("vae"), "has no folder vae, so it is no whole pipeline"),
    "no CLIP": (without("image_encoder"), "has no folder image_encoder; .* leave it out: clip 'none' in worldenv.json"),
    "no configuration": (without("unet/config.json"), "has no config.json"),
    "no weights": (without(f"vae/{WEIGHTS}"), f"has neither {WEIGHTS} nor {WEIGHTS}.index.json"),
    "pickles": (pickled, "has its weights in diffusion_pytorch_model.bin: pickles, which may run a program"),
    "missing shard": (sharded, "lacks two.safetensors: 1 of the 2 files"),
    "other network": (document("unet/config.json", _class_name="UNet3DConditionModel"), "'UNet3DConditionModel', not"),
    "other autoencoder": (document("vae/config.json", _class_name="VQModel"), "is of the architecture 'VQModel', not"),
    "other encoder": (document("image_encoder/config.json", model_type="siglip"), "'siglip', not clip_vision_model"),
    "other trunk": (document("geometry/config.json", model_type="vggt"), "'vggt', not dinov2 or dinov2_with_registers"),
    "senseless sizes": (document("unet/config.json", block_out_channels=[32]), "config.json is not valid"),
    "key lacks": (tensors("unet", lambda s: s.pop("conv_out.bias")), "unet lacks conv_out.bias"),
    "key too much": (tensors("vae", lambda s: s.update({"extra": torch.ones(1)})), "has extra, which this model does"),
    "shape": (
        tensors("geometry", lambda s: s.update({"layernorm.bias": torch.ones(9)}), "model.safetensors"),
        r"model.safetensors has layernorm.bias \[9\] where \[\d+\] fits",
    ),
    "encoder lacks a key": (
        tensors("image_encoder", lambda s: s.pop("visual_projection.weight"), "model.safetensors"),
        "model.safetensors lacks visual_projection.weight. Download",
    ),
    "encoder of more": (
        tensors("image_encoder", lambda s: s.update({"head.bias": torch.ones(2)}), "model.safetensors"),
        "model.safetensors has head.bias, which this model does not know",
    ),
    "encoder that is not finite": (
        tensors("geometry", lambda s: s["layernorm.bias"].fill_(torch.nan), "model.safetensors"),
        "layernorm.bias holds numbers that are not finite",
    ),
    "odd time ids": (
        document("unet/config.json", projection_class_embeddings_input_dim=24, addition_time_embed_dim=6),
        "its added time ids are not 3, as of Stable Video Diffusion",
    ),
    "odd size": (
        document("worldenv.json", size=60),
        "size is 60; it should be a multiple of 8 pixels, and at least 64",
    ),
    "unknown setting": (document("worldenv.json", frames=4), "does not know 'frames'"),
    "wrong setting": (document("worldenv.json", memory=1), "memory is 1; it should be a whole number from 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_folder_is_said(release, tabletop, monkeypatch, name):
    if name != "encoder that is not finite":
        monkeypatch.setattr(Encoder, "read", Release.fill)  # refused as well
    change, message = WRONG[name]
    change(release)
    with pytest.raises(UserError) as error:
        load_video(release, tabletop)
    said = str(error.value)
    assert re.search(message, said), said
    assert "\n" not in said and len(said) < 700
    assert str(release) in said or name == "odd size"


def test_channels_that_do_not_fit_the_autoencoder_are_refused(release, tabletop, make_unet):
    make_unet(in_channels=10).save_pretrained(release / "unet")
    with pytest.raises(UserError, match="takes 10 channels and gives 4; with the 4 of vae it should take 8, or 13"):
        load_video(release, tabletop)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": ("agentview", "wrist")}, "imagines one view, and pens shows agentview, wrist"),
        ({"robot": Robot(("x",), ("dx",), (0.0,), (1.0,))}, "reads action maps, which need a robot with kinematics"),
    ],
)
def test_a_suite_that_does_not_fit_is_refused(written, tabletop, changed, message):
    suite = SimpleNamespace(**{"name": "pens", "views": tabletop.views, "robot": tabletop.robot, **changed})
    with pytest.raises(UserError, match=message):
        load_video(written, suite)


@pytest.mark.parametrize("path", ["stabilityai/stable-video-diffusion-img2vid", "", None])
def test_what_is_no_folder_is_refused(tabletop, path):
    with pytest.raises(UserError, match="is not there; give the folder of a released model|is no path"):
        load_video(path, tabletop)


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_missing_package_is_named_with_its_extra(written, tabletop, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'released models need {package}: pip install "worldenv\[models\]"'):
        load_video(written, tabletop)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"sigma_min": 800.0}, "sigma_min is 800.0; it should be below sigma_max, 700.0"),
        ({"clip": "some"}, "clip is 'some'; it should be all or pooled or none"),
        ({"decode": "first"}, "decode is 'first'; it should be all or last"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        VideoConfig(**values)
