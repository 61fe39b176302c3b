"""RLinf's world model under onnxruntime, and how it attends."""

import pytest
import torch

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError
from worldenv.nn import attention


@pytest.mark.parametrize(
    ("piece", "given", "made"),
    [
        ("encoder", ("frames", "uint8 [batch, 5, 64, 64, 3]"), ("latents", "float32 [batch, 48, 2, 4, 4]")),
        ("decoder", ("latents", "float32 [batch, 48, 3, 4, 4]"), ("pixels", "float32 [batch, 3, 9, 64, 64]")),
        ("denoising-step", ("latents", "float32 [batch, 48, 3, 4, 4]"), ("velocity", "float32 [batch, 48, 1, 4, 4]")),
    ],
)
def test_pieces_agree_under_onnxruntime(load, tmp_path, piece, given, made):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    parts = Parts(None, None, load(chunk=4), None)  # the fewest frames: the decoder takes long
    said = export_onnx(parts, tmp_path / "out", ("world",), [f"world-{piece}"])
    file = said["files"][f"world-{piece}.onnx"]
    assert file["difference"] <= 1e-4
    assert given in file["inputs"].items() and file["outputs"] == dict([made])


def test_transformer_attends_as_the_switch_says(load, monkeypatch):
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    active = dispatch._AttentionBackendRegistry._active_backend
    monkeypatch.setattr(attention, "WANTED", "flash-attn")
    monkeypatch.setattr(attention, "why_not", lambda backend: None)
    monkeypatch.setattr(dispatch, "_check_attention_backend_requirements", lambda backend: None)
    try:
        transformer = load().network.transformer
    finally:
        dispatch._AttentionBackendRegistry._active_backend = active
    processors = [block.attn1.processor for block in transformer.blocks]
    assert processors and {processor._attention_backend.value for processor in processors} == {"flash"}


@pytest.mark.parametrize(
    ("backend", "message"),
    [("ours", "models of diffusers do not have; they have sdpa, flash-attn, xformers"), ("xformers", "cannot be used")],
)
def test_attention_that_is_not_there_is_refused(load, monkeypatch, backend, message):
    monkeypatch.setattr(attention, "WANTED", backend)
    monkeypatch.setattr(attention, "why_not", lambda wanted: "not installed")
    with pytest.raises(UserError, match=message):
        load()


def test_transformer_is_compiled_by_one_switch_and_computes_the_same(load, request):
    plain = load()
    made = request.getfixturevalue("compiling")
    world = load()
    assert made == [world.network.transformer]
    given = world.pieces(world.size)["denoising-step"].example(2)
    with torch.no_grad():
        found, wanted = (one.network.velocity_at(*given.values()) for one in (world, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_compiling_without_a_compiler_is_refused(load, monkeypatch):
    from worldenv.nn import compiled

    monkeypatch.setattr(compiled, "WANTED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiled, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"WORLDENV_COMPILE is 1: on a CPU it needs a C\+\+ compiler"):
        load()
