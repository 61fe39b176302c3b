"""A video-diffusion U-Net under onnxruntime, and how they attend."""

import pytest
import torch

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError
from worldenv.nn import attention
from worldenv.worlds.tokenizers import FrameTokenizer

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_denoising_step_agrees_under_onnxruntime(load, tmp_path):
    world = load(clip="none", geometry="none")
    said = export_onnx(Parts(None, None, world, None), tmp_path / "out", ("world",), ["world-denoising-step"])
    file = said["files"]["world-denoising-step.onnx"]
    assert file["difference"] <= 1e-4
    assert list(file["inputs"]) == ["noisy", "sigma", "latents", "maps", "context"]
    piece = world.pieces(world.size)["denoising-step"]
    inputs = piece.example(10)  # 70 frames: more than it was traced for
    session = onnxruntime.InferenceSession(str(tmp_path / "out/world-denoising-step.onnx"))
    found = session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), piece.call(*inputs.values()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vggt", [False, True])
def test_encoders_of_the_first_frame_agree_under_onnxruntime(load, writers, tmp_path, vggt):
    world = load(writers("worlds/video").write_pipeline(tmp_path / "svd", vggt))
    names = ["world-geometry-encoder"] if vggt else ["world-clip-encoder", "world-geometry-encoder"]
    files = export_onnx(Parts(None, None, world, None), tmp_path / "out", ("world",), names)["files"]
    assert list(files) == [f"{name}.onnx" for name in names]
    assert max(file["difference"] for file in files.values()) <= 1e-4
    encoder = world.network.conditioning.encoders["geometry"]
    assert files["world-geometry-encoder.onnx"]["outputs"] == {"features": f"float32 [batch, 4, {encoder.width}]"}


class Pictures:
    """A world model as far as its autoencoder goes."""

    size = (32, 48)

    def __init__(self, tokenizer):
        self.pieces = tokenizer.pieces


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLTemporalDecoder", "AutoencoderDC"])
def test_autoencoder_agrees_under_onnxruntime(make_autoencoder, tmp_path, kind):
    world = Pictures(FrameTokenizer(make_autoencoder(kind)))
    files = export_onnx(Parts(None, None, world, None), tmp_path / "out", ("world",))["files"]
    assert set(files) == {"world-encoder.onnx", "world-decoder.onnx"}
    assert max(file["difference"] for file in files.values()) <= 1e-4


def test_unet_refuses_attention_that_it_cannot_use(load, monkeypatch):
    monkeypatch.setattr(attention, "WANTED", "flash-attn")
    monkeypatch.setattr(attention, "why_not", lambda backend: "not installed")
    with pytest.raises(UserError, match="WORLDENV_ATTENTION is flash-attn, which cannot be used: not installed"):
        load()
    monkeypatch.setattr(attention, "why_not", lambda backend: None)
    with pytest.raises(UserError, match="cannot use; it can use sdpa and xformers"):
        load(clip="none", geometry="none")
