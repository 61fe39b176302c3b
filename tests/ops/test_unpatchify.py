import pytest
import torch

import worldenv.ops.unpatchify as module
from worldenv import ops
from worldenv.ops.patchify import patchify, unit
from worldenv.ops.unpatchify import to_frames, unpatchify, unpatchify_reference

FACES = pytest.mark.parametrize("face", [unpatchify, unpatchify_reference])


def inputs(b=2, h=3, w=5, n=4, seed=0):
    return torch.randn(b, h, w, n, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("b", "h", "w", "n"), [(0, 2, 2, 1), (1, 1, 1, 1), (3, 7, 2, 5), (2, 32, 32, 4)])
def test_compiled_face_equals_the_reference(b, h, w, n):
    patches = inputs(b, h, w, n)
    for actual, expected in zip(unpatchify(patches), unpatchify_reference(patches), strict=True):
        assert torch.equal(actual, expected)


@FACES
def test_frames_survive_the_way_there_and_back(face):
    frames = torch.arange(768, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 2, 8, 8, 3)
    pixels, finite = face(patchify(unit(frames)))
    assert torch.equal(pixels, frames) and finite.all()
    assert torch.equal(to_frames(patchify(frames)), frames)


@FACES
def test_beyond_the_range_it_is_clamped_and_halves_go_to_even(face):
    patches = torch.zeros(1, 1, 1, 1, 12)
    patches[..., :4] = torch.tensor([-3.0, 7.0, 0.0, -1.0])
    assert face(patches)[0][0, 0, :, :, 0].flatten().tolist() == [0, 255, 128, 0]


@FACES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_grey_and_reported_for_its_episode(face, value):
    patches = inputs(b=3)
    clean, _ = face(patches)
    patches[1, 2, 4, 3, 11] = value
    pixels, finite = face(patches)
    assert finite.tolist() == [True, False, True] and pixels[1, 3, 5, 9, 2] == 128
    pixels[1, 3, 5, 9, 2] = clean[1, 3, 5, 9, 2]
    assert torch.equal(pixels, clean)


def test_strided_patches_are_read_right():
    patches = inputs(b=4)
    assert torch.equal(unpatchify(patches[::2, 1:])[0], unpatchify(patches[::2, 1:].contiguous())[0])


def test_frames_pass_a_gradient():
    assert torch.autograd.gradcheck(to_frames, inputs(1, 1, 1, 2).double().requires_grad_())


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.unpatchify.default, (inputs(),))


def test_operator_is_traced_without_a_graph_break():
    def step(patches):
        return unpatchify(patches * 0.5)[0]

    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(inputs()), step(inputs()))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "unpatchify_reference", lambda patches: "reference ran")
    assert unpatchify(inputs()) == "reference ran"


@pytest.mark.parametrize("patches", [torch.zeros(2, 3, 5, 12), torch.zeros(2, 3, 5, 4, 11), inputs().double()])
def test_wrong_input_is_refused(patches):
    with pytest.raises(ValueError, match=r"patches is .*; it should be float32 \[B, h, w, N, 12\]"):
        unpatchify(patches)
