"""Vision towers under onnxruntime, and how the models attend."""

import pytest

from worldenv.assemble import Parts
from worldenv.errors import UserError
from worldenv.export import export_onnx
from worldenv.nn import attention


class Size:
    size = (40, 40)


@pytest.mark.parametrize("family", ["llava_onevision", "smolvlm"])
def test_vision_tower_agrees_under_onnxruntime(reflector, tmp_path, family):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = export_onnx(Parts(None, None, Size(), reflector(family)), tmp_path / "out", ("reflector",))
    assert said["files"]["reflector-vision-tower.onnx"]["difference"] <= 1e-4


def test_smolvlms_tower_is_what_it_looks_with(reflector):
    vlm = reflector("smolvlm").vlm
    pixels = reflector("smolvlm").pieces((40, 40))["vision-tower"].example(3)["pixels"]
    assert (vlm.tower(pixels) - vlm.look_at(pixels)).abs().max() <= 1e-5


def test_qwens_tower_is_refused_and_nothing_is_left(reflector, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="vision tower of Qwen25Vl counts patches on the host"):
        export_onnx(Parts(None, None, Size(), reflector("qwen2_5_vl")), tmp_path / "out", ("reflector",))
    assert not list(tmp_path.iterdir())


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
