import math

import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.map_features as module
from worldenv import ops
from worldenv.camera import tabletop_camera
from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.map_features import map_features, map_features_reference

# By dtype, of features around 1. Strokes differ from the reference's by 2e-4 (tests/ops/test_action_map.py), and where
# one falls to the other side of its cut at exp(-8), by that.
TOLERANCE = {torch.float32: 5e-4}
EXACT = {torch.float32: 1e-5}  # the same strokes, summed otherwise
GRIPPER = Gripper()
FACES = pytest.mark.parametrize("face", [map_features, map_features_reference])


def cameras(b, v, size):  # [B, V, 3, 4], the tabletop's, each moved by some pixels
    draw = torch.Generator().manual_seed(b)
    shift = torch.randn(b, v, 3, 1, generator=draw) * torch.tensor([[size / 10], [size / 10], [0]])
    projection = torch.from_numpy(tabletop_camera(size).projection)
    return projection + shift * projection[2]


def inputs(b=3, n=5, d=40, height=64, width=64, v=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    position = torch.rand(b, n, 3, generator=draw) * torch.tensor([0.6, 0.6, 0.4]) - torch.tensor([0.3, 0.3, 0.05])
    axis_angle = torch.randn(b, n, 3, generator=draw) * 1.5
    poses = torch.cat([position, axis_angle, torch.rand(b, n, 1, generator=draw)], dim=2)
    weight = (torch.rand(d, n * 4, 2, 2, generator=draw) - 0.5) * 0.5
    return poses, cameras(b, v, height), weight, GRIPPER, height, width


def assert_same(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance[expected.dtype])


@pytest.mark.parametrize("d", [1, 8, 16, 23, 40, 63])
@pytest.mark.parametrize(
    ("b", "n", "height", "width"),
    [(0, 5, 64, 64), (1, 1, 8, 8), (2, 5, 64, 64), (3, 2, 62, 18), (1, 3, 100, 130), (1, 2, 16, 256)],
)
def test_compiled_face_equals_the_reference(b, n, height, width, d):
    arguments = inputs(b, n, d, height, width, v=2 if b else 3)
    features = map_features(*arguments)
    assert features.shape == (b, 2 if b else 3, height // 2, width // 2, d) and features.is_contiguous()
    assert_same(features, map_features_reference(*arguments))


@pytest.mark.parametrize(("n", "d", "size"), [(1, 8, 16), (5, 40, 64), (9, 24, 128)])
def test_it_is_the_convolution_of_the_maps_that_action_map_draws(n, d, size):
    poses, camera, weight, *rest = arguments = inputs(50, n, d, size, size // 2, v=2)
    features = map_features(*arguments).double()
    for v in range(2):
        own = camera[:, v : v + 1].repeat_interleave(n, 0)
        maps = action_map(poses.flatten(0, 1), own, *rest).view(50, n * 4, size, size // 2)
        expected = F.conv2d(maps.double(), weight.double(), stride=2).permute(0, 2, 3, 1)
        assert expected.abs().max() > 0.4
        torch.testing.assert_close(features[:, v], expected, rtol=1e-5, atol=1e-6)


@FACES
def test_numbers_after_the_seventh_are_not_read_and_another_gripper_looks_otherwise(face):
    poses, camera, weight, _, *size = inputs(v=2)
    features = face(poses, camera, weight, GRIPPER, *size)
    longer = torch.cat([poses, torch.full((*poses.shape[:2], 2), math.nan)], dim=2)
    assert torch.equal(face(longer, camera, weight, GRIPPER, *size), features)
    other = Gripper(0.02, 0.06, 0.03, 0.08, 0.2)
    assert not torch.allclose(face(poses, camera, weight, other, *size), features)


@pytest.mark.parametrize("level", ["plain", "avx2"])
@pytest.mark.parametrize("d", [5, 40])
def test_lower_instruction_sets_give_the_same(level, d, at_level):
    arguments = inputs(4, d=d, width=50, v=2)
    assert_same(at_level(level, "map_features", *arguments), map_features_reference(*arguments))


@FACES
@pytest.mark.parametrize(("channel", "i", "j"), [(0, 0, 0), (1, 0, 1), (6, 1, 0), (7, 1, 1)])
def test_a_weight_of_one_takes_its_pixel_of_its_channel_of_its_pose(face, channel, i, j):
    poses, camera, weight, *rest = inputs(n=2, d=3, v=2)
    weight.zero_()[1, channel, i, j] = 1.0
    features = face(poses, camera, weight, *rest)
    maps = action_map(poses[:, channel // 4], camera, *rest)
    assert_same(features[..., 1], maps[:, :, channel % 4, i::2, j::2])
    assert features[..., 1].any() and not features[..., ::2].any()


@FACES
def test_pose_that_is_not_finite_or_off_the_picture_is_not_seen_and_spoils_no_other(face):
    poses, camera, weight, *rest = inputs(b=4)
    poses[0, 2, 4] = math.nan
    poses[1, 2, 1] = math.inf
    poses[2, 2, :3] = torch.tensor([50.0, 0.0, 0.0])
    poses[3, 2, :3] = torch.tensor([0.0, -9.0, 3e38])
    features = face(poses, camera, weight, *rest)
    others = torch.tensor([0, 1, 3, 4])
    seen = weight.unflatten(1, (5, 4))[:, others].flatten(1, 2)
    assert_same(features, face(poses[:, others], camera, seen, *rest))
    assert features.any()


@pytest.mark.parametrize(("x", "y"), [(-0.28, 0.0), (0.28, 0.0), (0.0, 0.4), (0.0, -0.2)])
def test_strokes_that_leave_the_picture_are_cut_at_its_border(x, y):
    poses, *rest = inputs(b=1)
    poses[..., 0], poses[..., 1] = x, y
    assert_same(map_features(poses, *rest), map_features_reference(poses, *rest))


def test_an_episode_gives_the_same_alone_and_in_a_batch_and_with_strided_inputs():
    poses, camera, weight, *rest = arguments = inputs(b=70, v=2)
    together = map_features(*arguments)
    for i in (0, 33, 69):
        assert torch.equal(map_features(poses[i : i + 1], camera[i : i + 1], weight, *rest)[0], together[i])
    assert torch.equal(map_features(poses, camera[:, 1:], weight, *rest), together[:, 1:])
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (poses, camera, weight)]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(map_features(*strided, *rest), together)


def test_every_element_is_written():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        assert not map_features(*inputs(d=23)).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradient_of_the_weight_is_that_of_the_convolution():
    poses, camera, weight, *rest = inputs(v=2)
    gradients = []
    for face in (map_features, map_features_reference):
        own = weight.clone().requires_grad_()
        face(poses, camera, own, *rest).square().sum().backward()
        gradients.append(own.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-2)  # sums over 3,000 patches
    with torch.no_grad():
        assert not map_features(poses, camera, own, *rest).requires_grad


def test_device_without_a_face_draws_and_convolves(monkeypatch):
    arguments = inputs(v=2)
    assert torch._C._dispatch_has_kernel_for_dispatch_key("worldenv::map_features", "CompositeExplicitAutograd")
    features = module._draw_then_convolve(*arguments)
    assert features.is_contiguous()
    assert_same(features, map_features(*arguments), EXACT)


def test_operator_passes_opcheck():
    poses, camera, weight, gripper, *size = inputs(2, 1, 5, 16, 10, v=2)
    arguments = poses, camera, weight, list(gripper), *size
    torch.library.opcheck(torch.ops.worldenv.map_features.default, arguments)


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
        ({"poses": torch.zeros(2, 7)}, r"poses has shape \[2, 7\]; it should be \[B, N, P\] with P at least 7"),
        ({"poses": torch.zeros(2, 5, 6)}, r"poses has shape \[2, 5, 6\]; it should be \[B, N, P\] with P at least 7"),
        ({"poses": torch.zeros(2, 0, 7)}, r"poses has shape \[2, 0, 7\]; it should be \[B, N, P\]"),
        ({"poses": torch.zeros(2, 5, 7).double()}, r"poses is torch.float64; .* pass poses.float\(\)"),
        ({"poses": torch.zeros(2, 5, 7, requires_grad=True)}, r"poses requires a gradient.*poses.detach\(\)"),
        ({"camera": torch.zeros(3, 4)}, r"camera has shape \[3, 4\]; it should be \[2, V, 3, 4\]"),
        ({"camera": torch.zeros(2, 0, 3, 4)}, r"camera has shape \[2, 0, 3, 4\]; .* with V at least 1"),
        ({"camera": torch.zeros(2, 1, 3, 4).half()}, r"camera is torch.float16; .* pass camera.float\(\)"),
        ({"camera": torch.zeros(2, 1, 3, 4, device="meta")}, r"camera is on meta; it should be on cpu"),
        ({"camera": torch.zeros(2, 1, 3, 4, requires_grad=True)}, r"camera requires a gradient, which map_features"),
        ({"gripper": (0.1,)}, r"gripper is \(0.1,\); it should be a Gripper, 5 lengths"),
        ({"weight": torch.zeros(40, 20)}, r"weight has shape \[40, 20\]; it should be \[D, N \* 4, 2, 2\]"),
        ({"weight": torch.zeros(40, 16, 2, 2)}, r"weight has shape \[40, 16, 2, 2\]; it should be \[40, 20, 2, 2\]"),
        ({"weight": torch.zeros(40, 20, 3, 3)}, r"weight has shape \[40, 20, 3, 3\]"),
        ({"weight": torch.zeros(40, 20, 2, 2).bfloat16()}, r"weight is torch.bfloat16; .* pass weight.float\(\)"),
        ({"height": 6}, r"height and width are 6 and 64; both should be even and at least 8"),
        ({"width": 63}, r"height and width are 64 and 63"),
    ],
)
def test_wrong_input_is_refused_by_name(change, message):
    names = "poses", "camera", "weight", "gripper", "height", "width"
    with pytest.raises(ValueError, match=message):
        map_features(**dict(zip(names, inputs(2), strict=True)) | change)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(5, 7)),
        (1, torch.zeros(12)),
        (2, torch.zeros(40, 16, 2, 2)),
        (2, torch.zeros(40, 20, 2, 3)),
        (0, torch.zeros(3, 5, 7).double()),
        (1, torch.zeros(3, 0, 3, 4)),
        (3, [0.1] * 6),
        (4, 9),
        (5, 0),
    ],
)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(place, value):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(RuntimeError, match="should be"):
        torch.ops.worldenv.map_features(*arguments)
