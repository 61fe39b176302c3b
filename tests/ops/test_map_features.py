import math

import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.map_features as module
from worldenv import ops
from worldenv.ops.action_map import action_map
from worldenv.ops.map_features import map_features, map_features_reference
from worldenv.robot.camera import tabletop_camera

# By dtype, of features around 1. Strokes differ from the reference's by 2e-4 (tests/ops/test_action_map.py), and where
# one falls to the other side of its cut at exp(-8), by that.
TOLERANCE = {torch.float32: 5e-4}
EXACT = {torch.float32: 1e-5}  # the same strokes, summed otherwise


def inputs(b=3, n=5, d=40, height=64, width=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    position = torch.rand(b, n, 3, generator=draw) * torch.tensor([0.6, 0.6, 0.4]) - torch.tensor([0.3, 0.3, 0.05])
    axis_angle = torch.randn(b, n, 3, generator=draw) * 1.5
    poses = torch.cat([position, axis_angle, torch.rand(b, n, 1, generator=draw)], dim=2)
    weight = (torch.rand(d, n * 4, 2, 2, generator=draw) - 0.5) * 0.5
    return poses, torch.from_numpy(tabletop_camera(height).projection), weight, height, width


def assert_same(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance[expected.dtype])


@pytest.mark.parametrize("d", [1, 8, 16, 23, 40, 63])
@pytest.mark.parametrize(
    ("b", "n", "height", "width"),
    [(0, 5, 64, 64), (1, 1, 8, 8), (2, 5, 64, 64), (3, 2, 62, 18), (1, 3, 100, 130), (1, 2, 16, 256)],
)
def test_compiled_face_equals_the_reference(b, n, height, width, d):
    arguments = inputs(b, n, d, height, width)
    features = map_features(*arguments)
    assert features.shape == (b, height // 2, width // 2, d) and features.is_contiguous()
    assert_same(features, map_features_reference(*arguments))


@pytest.mark.parametrize(("n", "d", "size"), [(1, 8, 16), (5, 40, 64), (9, 24, 128)])
def test_it_is_the_convolution_of_the_maps_that_action_map_draws(n, d, size):
    poses, projection, weight, *_ = arguments = inputs(50, n, d, size, size)
    maps = action_map(poses.flatten(0, 1), projection, size, size).view(50, n * 4, size, size)
    expected = F.conv2d(maps.double(), weight.double(), stride=2).permute(0, 2, 3, 1)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(map_features(*arguments).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", ["plain", "avx2"])
@pytest.mark.parametrize("d", [5, 40])
def test_lower_instruction_sets_give_the_same(level, d, at_level):
    arguments = inputs(4, d=d, width=50)
    assert_same(at_level(level, "map_features", *arguments), map_features_reference(*arguments))


@pytest.mark.parametrize("face", [map_features, map_features_reference])
@pytest.mark.parametrize(("channel", "i", "j"), [(0, 0, 0), (1, 0, 1), (6, 1, 0), (7, 1, 1)])
def test_a_weight_of_one_takes_its_pixel_of_its_channel_of_its_pose(face, channel, i, j):
    poses, projection, weight, *_ = inputs(n=2, d=3)
    weight.zero_()[1, channel, i, j] = 1.0
    features = face(poses, projection, weight, 64, 64)
    maps = action_map(poses[:, channel // 4], projection, 64, 64)
    assert_same(features[..., 1], maps[:, channel % 4, i::2, j::2])
    assert features[..., 1].any() and not features[..., ::2].any()


@pytest.mark.parametrize("face", [map_features, map_features_reference])
def test_pose_that_is_not_finite_or_off_the_picture_is_not_seen_and_spoils_no_other(face):
    poses, projection, weight, *_ = inputs(b=4)
    poses[0, 2, 4] = math.nan
    poses[1, 2, 1] = math.inf
    poses[2, 2, :3] = torch.tensor([50.0, 0.0, 0.0])
    poses[3, 2, :3] = torch.tensor([0.0, -9.0, 3e38])
    features = face(poses, projection, weight, 64, 64)
    others = torch.tensor([0, 1, 3, 4])
    seen = weight.unflatten(1, (5, 4))[:, others].flatten(1, 2)
    assert_same(features, face(poses[:, others], projection, seen, 64, 64))
    assert features.any()


@pytest.mark.parametrize(("x", "y"), [(-0.28, 0.0), (0.28, 0.0), (0.0, 0.4), (0.0, -0.2)])
def test_strokes_that_leave_the_picture_are_cut_at_its_border(x, y):
    poses, *rest = inputs(b=1)
    poses[..., 0], poses[..., 1] = x, y
    assert_same(map_features(poses, *rest), map_features_reference(poses, *rest))


def test_an_episode_gives_the_same_alone_and_in_a_batch_and_with_strided_inputs():
    poses, projection, weight, *size = arguments = inputs(b=70)
    together = map_features(*arguments)
    for i in (0, 33, 69):
        assert torch.equal(map_features(poses[i : i + 1], projection, weight, *size)[0], together[i])
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (poses, projection, weight)]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(map_features(*strided, *size), together)


def test_every_element_is_written():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        assert not map_features(*inputs(d=23)).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradient_of_the_weight_is_that_of_the_convolution():
    poses, projection, weight, *size = inputs()
    gradients = []
    for face in (map_features, map_features_reference):
        own = weight.clone().requires_grad_()
        face(poses, projection, own, *size).square().sum().backward()
        gradients.append(own.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-2)  # sums over 3,000 patches
    with torch.no_grad():
        assert not map_features(poses, projection, own, *size).requires_grad


def test_device_without_a_face_draws_and_convolves(monkeypatch):
    arguments = inputs()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("worldenv::map_features", "CompositeExplicitAutograd")
    features = module._draw_then_convolve(*arguments)
    assert features.is_contiguous()
    assert_same(features, map_features(*arguments), EXACT)


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.map_features.default, inputs(2, 1, 5, 16, 10))


def test_operator_is_traced_without_a_graph_break():
    poses, *others = inputs()

    def step(poses):
        return map_features(poses * 1.0, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(poses), step(poses))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "map_features_reference", lambda *arguments: "reference ran")
    assert map_features(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": torch.zeros(2, 7)}, r"poses has shape \[2, 7\]; it should be \[B, N, 7\]"),
        ({"poses": torch.zeros(2, 5, 8)}, r"poses has shape \[2, 5, 8\]; it should be \[2, 5, 7\]"),
        ({"poses": torch.zeros(2, 0, 7)}, r"poses has shape \[2, 0, 7\]; it should be \[B, N, 7\]"),
        ({"poses": torch.zeros(2, 5, 7).double()}, r"poses is torch.float64; .* pass poses.float\(\)"),
        ({"poses": torch.zeros(2, 5, 7, requires_grad=True)}, r"poses requires a gradient.*poses.detach\(\)"),
        ({"projection": torch.zeros(4, 4)}, r"projection has shape \[4, 4\]; it should be \[3, 4\]"),
        ({"projection": torch.zeros(3, 4).half()}, r"projection is torch.float16; .* pass projection.float\(\)"),
        ({"projection": torch.zeros(3, 4, device="meta")}, r"projection is on meta; it should be on cpu"),
        ({"projection": torch.zeros(3, 4, requires_grad=True)}, r"projection requires a gradient"),
        ({"weight": torch.zeros(40, 20)}, r"weight has shape \[40, 20\]; it should be \[D, N \* 4, 2, 2\]"),
        ({"weight": torch.zeros(40, 16, 2, 2)}, r"weight has shape \[40, 16, 2, 2\]; it should be \[40, 20, 2, 2\]"),
        ({"weight": torch.zeros(40, 20, 3, 3)}, r"weight has shape \[40, 20, 3, 3\]"),
        ({"weight": torch.zeros(40, 20, 2, 2).bfloat16()}, r"weight is torch.bfloat16; .* pass weight.float\(\)"),
        ({"height": 6}, r"height and width are 6 and 64; both should be even and at least 8"),
        ({"width": 63}, r"height and width are 64 and 63"),
    ],
)
def test_wrong_input_is_refused_by_name(change, message):
    arguments = dict(zip(("poses", "projection", "weight", "height", "width"), inputs(2), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        map_features(**arguments)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(5, 7)),
        (1, torch.zeros(12)),
        (2, torch.zeros(40, 16, 2, 2)),
        (2, torch.zeros(40, 20, 2, 3)),
        (0, torch.zeros(3, 5, 7).double()),
        (3, 9),
        (4, 0),
    ],
)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(place, value):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(RuntimeError, match="should be"):
        torch.ops.worldenv.map_features(*arguments)
