"""Vision towers under onnxruntime, and how the models attend."""

import pytest

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError
from worldenv.nn import attention


class Size:
    size = (40, 40)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"])
def test_vision_tower_agrees_under_onnxruntime(reflector, tmp_path, family):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = export_onnx(Parts(None, None, Size(), reflector(family)), tmp_path / "out", ("reflector",))
    assert said["files"]["reflector-vision-tower.onnx"]["difference"] <= 1e-4


@pytest.mark.parametrize(
    ("family", "size"), [("qwen2_5_vl", (84, 140)), ("qwen3_vl", (96, 160)), ("smolvlm", (40, 40))]
)
def test_tower_that_is_exported_is_what_it_looks_with(reflector, family, size):
    """84 x 140 pixels: windows of Qwen2.5-VL, those at the edges smaller."""
    vlm = reflector(family).vlm
    pixels = reflector(family).pieces(size)["vision-tower"].example(3)["pixels"]
    looked = vlm.look_at(pixels)
    assert (vlm.tower(pixels) - looked).abs().max() <= 1e-5 * max(1, looked.abs().max())


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("xformers", "models of transformers do not have; they have sdpa, flash-attn"),
        ("flash-attn", "WORLDENV_ATTENTION is flash-attn, which cannot be used: not installed"),
    ],
)
def test_attention_that_is_not_there_is_refused(reflector, monkeypatch, backend, message):
    monkeypatch.setattr(attention, "WANTED", backend)
    monkeypatch.setattr(attention, "why_not", lambda wanted: "not installed")
    with pytest.raises(UserError, match=message):
        reflector("smolvlm")
