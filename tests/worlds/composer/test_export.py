"""The composer's network under onnxruntime."""

import pytest

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError


def test_denoising_step_agrees_under_onnxruntime(tiny, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    files = export_onnx(Parts(None, None, tiny.world(), None), tmp_path / "out", ("world",))["files"]
    assert files["world-denoising-step.onnx"]["difference"] <= 1e-4
    assert files["world-denoising-step.onnx"]["outputs"] == {"clean": "float32 [batch, 8, 8, 4, 12]"}


def test_network_in_8_bits_is_refused(tiny):
    world = tiny.world()
    with pytest.raises(UserError, match="a composer in 8 bits has no export: give the one in floats"):
        world.in_int8({}).pieces(world.size)
