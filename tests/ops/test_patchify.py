import pytest
import torch

import worldenv.ops.patchify as module
from worldenv import ops
from worldenv.ops.patchify import patchify, patchify_reference, unit


def inputs(b=2, n=3, height=6, width=10, dtype=torch.uint8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (b, n, height, width, 3), generator=draw, dtype=torch.uint8)
    return frames if dtype == torch.uint8 else frames.float() / 127.5 - 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("b", "n", "height", "width"), [(0, 1, 4, 4), (1, 1, 2, 2), (5, 3, 6, 10), (63, 1, 64, 64)])
def test_compiled_face_equals_the_reference(b, n, height, width, dtype):
    frames = inputs(b, n, height, width, dtype)
    actual, expected = patchify(frames), patchify_reference(frames)
    assert actual.shape == (b, height // 2, width // 2, n, 12) and actual.dtype == dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("face", [patchify, patchify_reference])
def test_a_patch_holds_four_pixels_colour_by_colour(face):
    frames = torch.zeros(1, 2, 4, 4, 3)
    frames[0, 1, 2:4, 0:2] = torch.arange(12.0).view(3, 2, 2).permute(1, 2, 0)
    patches = face(frames)
    assert patches[0, 1, 0, 1].tolist() == list(range(12)) and patches.sum() == 66


def test_pixels_are_read_as_minus_one_to_one_and_floats_as_they_are():
    assert unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1.0, -0.6, 1.0])
    floats = torch.randn(3)
    assert unit(floats) is floats


def test_strided_frames_are_read_right():
    frames = inputs(b=4)
    assert torch.equal(patchify(frames[::2, 1:]), patchify(frames[::2, 1:].contiguous()))


def test_gradient_passes_by_the_reference():
    frames = inputs(1, 1, 2, 2, torch.float32)
    assert torch.autograd.gradcheck(patchify_reference, frames.double().requires_grad_())
    frames.requires_grad_()
    patchify(frames).sum().backward()
    assert torch.equal(frames.grad, torch.ones_like(frames))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_operator_passes_opcheck(dtype):
    torch.library.opcheck(torch.ops.worldenv.patchify.default, (inputs(dtype=dtype),))


def test_operator_is_traced_without_a_graph_break():
    def step(frames):
        return patchify(frames) + 1.0

    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(inputs()), step(inputs()))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "patchify_reference", lambda frames: "reference ran")
    assert patchify(inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 4, 4, 3), r"frames is \[2, 4, 4, 3\]; it should be \[B, N, H, W, 3\] with H and W even"),
        (torch.zeros(2, 1, 4, 5, 3), r"frames is \[2, 1, 4, 5, 3\]"),
        (torch.zeros(2, 1, 4, 4, 3).double(), "frames is torch.float64; it should be torch.uint8 or torch.float32"),
    ],
)
def test_wrong_input_is_refused_by_name(frames, message):
    with pytest.raises(ValueError, match=message):
        patchify(frames)
