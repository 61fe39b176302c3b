"""The vision towers under onnxruntime, with adapters, and how they attend."""

import pytest
import torch

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError
from worldenv.nn import attention


class Size:
    size = (40, 36)


def test_vision_towers_agree_under_onnxruntime(load, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = export_onnx(Parts(None, load(), Size(), None), tmp_path / "out", ("policy",))
    file = said["files"]["policy-vision-tower.onnx"]
    assert file["difference"] <= 1e-4
    assert (file["inputs"], file["outputs"]) == (
        {"pixels": "float32 [batch, 2, 2, 3, 28, 28]"},
        {"patches": "float32 [batch, 8, 32]"},
    )


def test_towers_attend_as_the_switch_says(load, monkeypatch):
    policy = load()
    pixels = torch.randn(2, 2, 2, 3, 28, 28)
    with torch.no_grad():
        wanted = policy.network.seen(pixels)
        monkeypatch.setattr(attention, "WANTED", "ours")
        torch.testing.assert_close(policy.network.seen(pixels), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="has no gradient"):
        policy.network.seen(pixels)


def test_attention_that_is_not_installed_is_refused(load, monkeypatch):
    monkeypatch.setattr(attention, "WANTED", "flash-attn")
    monkeypatch.setattr(attention, "why_not", lambda backend: "not installed")
    with pytest.raises(UserError, match="WORLDENV_ATTENTION is flash-attn, which cannot be used: not installed"):
        load()
