import pytest
import torch

import worldenv.ops.spatial_softmax as module
from worldenv import ops
from worldenv.ops.spatial_softmax import spatial_softmax, spatial_softmax_reference

TOLERANCE = {torch.float32: 1e-5}
FACES = pytest.mark.parametrize("face", [spatial_softmax, spatial_softmax_reference])


def inputs(b=2, c=24, h=5, w=7, seed=0):
    features = 4 * torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed))
    return features.to(memory_format=torch.channels_last)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize(("b", "c", "h", "w"), [(0, 8, 4, 4), (1, 1, 2, 2), (3, 17, 5, 9), (5, 64, 16, 16)])
def test_compiled_face_equals_the_reference(b, c, h, w):
    features = inputs(b, c, h, w)
    assert_same(spatial_softmax(features), spatial_softmax_reference(features))
    assert torch.equal(spatial_softmax(features.contiguous()), spatial_softmax(features))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    assert_same(at_level(level, "spatial_softmax", inputs(c=42)), spatial_softmax_reference(inputs(c=42)))


@FACES
def test_it_finds_where_each_channel_peaks(face):
    features = torch.zeros(1, 2, 5, 9)
    features[0, 0, 4, 0], features[0, 1, 2, 8] = 50.0, 50.0
    x0, x1, y0, y1, peak0, peak1 = face(features)[0].tolist()
    assert (x0, y0, x1, y1) == pytest.approx((-1, 1, 1, 0), abs=1e-4) and peak0 == pytest.approx(50) == peak1


@FACES
def test_flat_channel_looks_at_the_middle_and_large_values_do_no_harm(face):
    assert face(torch.full((1, 1, 4, 7), 3e4))[0].tolist() == pytest.approx([0, 0, 3e4], abs=1e-2)


@FACES
def test_a_number_that_is_not_finite_spoils_its_channel_and_no_other(face):
    features = inputs()
    clean = face(features)
    features[1, 5, 2, 3] = float("nan")
    found = face(features)
    assert found[1, 5::24].isnan().all()
    found[1, 5::24] = clean[1, 5::24]
    assert torch.equal(found, clean)


def test_gradient_passes_by_the_reference():
    assert torch.autograd.gradcheck(spatial_softmax_reference, inputs(1, 2, 2, 3).double().requires_grad_())
    features = inputs().requires_grad_()
    spatial_softmax(features).square().sum().backward()
    assert features.grad.abs().sum() > 0
    with torch.no_grad():
        assert not spatial_softmax(features).requires_grad


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.spatial_softmax.default, (inputs().permute(0, 2, 3, 1).contiguous(),))


def test_operator_is_traced_without_a_graph_break():
    def step(features):
        return spatial_softmax(features * 1.0) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(inputs()), step(inputs()))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "spatial_softmax_reference", lambda features: "reference ran")
    assert spatial_softmax(inputs()) == "reference ran"


@pytest.mark.parametrize("features", [torch.zeros(2, 3, 4), torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 4, 4).double()])
def test_wrong_input_is_refused(features):
    with pytest.raises(ValueError, match=r"features is .*; it should be float32 \[B, C, H, W\] with H, W >= 2"):
        spatial_softmax(features)
