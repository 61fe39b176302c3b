import math

import numpy as np
import pytest
import torch

import worldenv.ops.action_map as module
from worldenv import ops
from worldenv.camera import Camera
from worldenv.ops.action_map import Gripper, action_map, action_map_reference

# By dtype. The error is that of the projected pixel, some 1e-6 of the image's side, times the slope of a stroke.
TOLERANCE = {torch.float32: 2e-4}
FLOOR = math.exp(-8.0)
GRIPPER = Gripper()
FACES = pytest.mark.parametrize("face", [action_map, action_map_reference])


def random_pose(batch, seed=0):  # [B, 7]
    draw = torch.Generator().manual_seed(seed)
    position = torch.rand(batch, 3, generator=draw) * torch.tensor([0.6, 0.6, 0.4]) - torch.tensor([0.3, 0.3, 0.05])
    axis_angle = torch.randn(batch, 3, generator=draw) * 1.5
    return torch.cat([position, axis_angle, torch.rand(batch, 1, generator=draw)], dim=1)


def pose(x=0.0, y=0.0, z=0.1, axis_angle=(0.0, 0.0, 0.0), opening=1.0):
    return torch.tensor([[x, y, z, *axis_angle, opening]])


def camera(size=64):
    return Camera.look_at(eye=(0.0, -0.42, 0.44), target=(0.0, 0.03, 0.0), fov_deg=40.0, size=size)


def projection(size=64, batch=1):  # [B, 1, 3, 4]
    return seen_by(camera(size), batch)


def seen_by(one, batch=1):
    return torch.from_numpy(one.projection).expand(batch, 1, 3, 4)


def random_cameras(batch, views, size=64, seed=0):  # [B, V, 3, 4], each looking at the table from elsewhere
    draw = np.random.default_rng(seed)
    eyes = draw.uniform((-0.3, -0.6, 0.3), (0.3, -0.3, 0.6), (batch * views, 3))
    cameras = [Camera.look_at(tuple(eye), (0.0, 0.03, 0.0), draw.uniform(35, 55), size).projection for eye in eyes]
    return torch.from_numpy(np.stack(cameras)).view(batch, views, 3, 4) if batch else torch.zeros(0, views, 3, 4)


def assert_same_strokes(actual, expected):
    # A pixel at 4 sigma may fall to either side of the cut.
    at_cut = ((actual == 0) != (expected == 0)) & (torch.maximum(actual, expected) < FLOOR * 1.01)
    torch.testing.assert_close(
        torch.where(at_cut, expected, actual), expected, rtol=0.0, atol=TOLERANCE[expected.dtype]
    )
    assert at_cut.sum() <= 1e-4 * at_cut.numel()


def seen_at(point, size=64):
    return camera(size).project(np.array(point))[0]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (63, 17), (100, 129), (256, 256)])
@pytest.mark.parametrize(("batch", "views", "more"), [(0, 2, 0), (1, 1, 0), (63, 1, 0), (21, 2, 2)])
def test_compiled_face_equals_the_reference(batch, views, more, height, width):
    poses = torch.cat([random_pose(batch), torch.full((batch, more), math.nan)], dim=1)
    arguments = poses, random_cameras(batch, views, height), GRIPPER, height, width
    drawn = action_map(*arguments)
    assert drawn.shape == (batch, views, 4, height, width)
    assert_same_strokes(drawn, action_map_reference(*arguments))
    assert drawn.any() or batch < 2


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_draw_the_same(level, at_level):
    arguments = random_pose(63), random_cameras(63, 2), GRIPPER, 64, 50
    assert_same_strokes(at_level(level, "action_map", *arguments), action_map_reference(*arguments))


def test_thousand_poses_equal_the_reference_and_stay_in_range():
    arguments = random_pose(1000, seed=1), projection(batch=1000), GRIPPER, 64, 64
    actual = action_map(*arguments)
    assert_same_strokes(actual, action_map_reference(*arguments))
    assert actual.min() == 0.0
    assert 0.5 < actual.max() <= 1.0


@FACES
def test_every_episode_and_view_is_drawn_as_its_own_camera_sees_it(face):
    poses, cameras = random_pose(5), random_cameras(5, 3)
    together = face(poses, cameras, GRIPPER, 48, 64)
    assert together.shape == (5, 3, 4, 48, 64)
    for b, v in ((0, 0), (0, 2), (4, 0), (3, 1)):
        alone = face(poses[b : b + 1], cameras[b : b + 1, v : v + 1], GRIPPER, 48, 64)
        assert torch.equal(together[b, v], alone[0, 0])
        assert not torch.allclose(alone, face(poses[b : b + 1], cameras[None, b - 1, v - 1, None], GRIPPER, 48, 64))


def expected_stroke(p, q, sigma, size):  # by sampling the segment densely
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    (ax, ay), (bx, by) = seen_at(p, size), seen_at(q, size)
    squared = np.full((size, size), np.inf)
    for t in np.linspace(0, 1, 2001):
        squared = np.minimum(squared, (columns - ax - t * (bx - ax)) ** 2 + (rows - ay - t * (by - ay)) ** 2)
    value = np.exp(-squared / (2 * (sigma * size / 64) ** 2))
    return np.where(value < FLOOR, 0.0, value)


def rotation(axis_angle):  # [3, 3] float64
    x, y, z = axis_angle
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)).numpy()


def expected_map(p, axis_angle, opening, gripper, size):  # [4, H, W], what the equation says
    out, _, up = rotation(axis_angle).T
    hand, foot = p + gripper.finger_m * up, p * [1, 1, 0]
    tips = [p + side * (gripper.tip_closed_m + opening * gripper.tip_opening_m) * out for side in (1, -1)]
    strokes = [
        expected_stroke(hand, p + gripper.tool_m * up, 1.5, size),
        np.maximum(*(expected_stroke(tip, tip + gripper.finger_m * up, 1.0, size) for tip in tips)),
        expected_stroke(hand - gripper.hand_half_m * out, hand + gripper.hand_half_m * out, 1.5, size),
        expected_stroke(foot, foot, 1.5, size) * (0.25 + 0.75 * (1 - p[2] / 0.25)),
    ]
    return torch.from_numpy(np.stack(strokes)).float()


OTHER_GRIPPER = Gripper(tip_closed_m=0.02, tip_opening_m=0.06, finger_m=0.03, hand_half_m=0.08, tool_m=0.2)


@FACES
@pytest.mark.parametrize("size", [64, 160])
@pytest.mark.parametrize("gripper", [GRIPPER, OTHER_GRIPPER])
def test_gripper_is_drawn_as_the_equation_says(face, size, gripper):
    p, axis_angle = np.array([0.03, 0.02, 0.12]), (math.pi / 2, 0.0, 0.0)
    given = pose(*p.tolist(), axis_angle=axis_angle, opening=0.5)
    drawn = face(given, projection(size), gripper, size, size)[0, 0]
    assert_same_strokes(drawn, expected_map(p, axis_angle, 0.5, gripper, size))


@FACES
@pytest.mark.parametrize("turn", [-1.1, 0.0, 0.4, 2.0])  # about the world's z axis
@pytest.mark.parametrize("length", [math.pi - 1e-3, math.pi, math.pi + 1e-3])
def test_gripper_that_looks_down_is_drawn_right(face, length, turn):
    # A turn by `turn` after half a turn about x is half a turn about this axis.
    axis_angle = (length * math.cos(turn / 2), length * math.sin(turn / 2), 0.0)
    p = np.array([0.03, 0.02, 0.2])
    drawn = face(pose(*p.tolist(), axis_angle=axis_angle, opening=0.7), projection(), GRIPPER, 64, 64)[0, 0]
    up = rotation(axis_angle)[:, 2]
    assert up[2] < -0.999
    assert_same_strokes(drawn, expected_map(p, axis_angle, 0.7, GRIPPER, 64))


@pytest.mark.parametrize("number", range(5))
@FACES
def test_each_length_of_the_gripper_changes_its_own_channels(face, number):
    channels = [{1}, {1}, {0, 1, 2}, {2}, {0}][number]
    shorter = GRIPPER._replace(**{Gripper._fields[number]: GRIPPER[number] * 0.2})
    before, after = (face(pose(opening=0.5), projection(), one, 64, 64)[0, 0] for one in (GRIPPER, shorter))
    assert {c for c in range(4) if not torch.equal(before[c], after[c])} == channels


@FACES
@pytest.mark.parametrize(
    ("axis_angle", "closing"),
    [
        ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        ((0.0, 0.0, math.pi / 2), (0.0, 1.0, 0.0)),
        ((0.0, -math.pi / 2, 0.0), (0.0, 0.0, 1.0)),
        ((math.pi, 0.0, 0.0), (1.0, 0.0, 0.0)),
        (tuple(2 * math.pi / 3 / math.sqrt(3) for _ in range(3)), (0.0, 1.0, 0.0)),  # x -> y -> z -> x
    ],
)
def test_tips_are_apart_along_the_rotated_closing_axis(face, axis_angle, closing):
    fingers = face(pose(z=0.1, axis_angle=axis_angle), projection(256), GRIPPER, 256, 256)[0, 0, 1]
    for side in (0.045, -0.045):
        x, y = seen_at(np.array([0.0, 0.0, 0.1]) + side * np.array(closing), 256)
        assert fingers[int(y), int(x)] > 0.95


def test_closing_the_gripper_brings_the_tips_together():
    spread = [
        (action_map(pose(opening=opening), projection(), GRIPPER, 64, 64)[0, 0, 1].amax(dim=0) > 0.1).nonzero()
        for opening in (0.0, 0.5, 1.0)
    ]
    widths = [int(columns.max() - columns.min()) for columns in spread]
    assert widths[0] < widths[1] < widths[2]


@FACES
def test_arm_is_cut_where_it_passes_the_camera(face):
    beside = Camera.look_at(eye=(0.0, -0.1, 0.4), target=(0.0, 0.2, 0.0), fov_deg=60.0, size=64)
    tool = face(pose(y=0.05, z=0.05), seen_by(beside), GRIPPER, 64, 64)[0, 0, 0]  # its top is behind
    above = [beside.project(np.array([0.0, 0.05, z]))[0] for z in (0.1, 0.2, 0.3)]
    assert all(tool[int(y), int(x)] > 0.9 for x, y in above if 0 <= y < 64)
    below = beside.project(np.array([0.0, 0.05, 0.0]))[0]
    assert tool[int(below[1]), int(below[0])] == 0.0


def test_foot_point_fades_with_height_and_stays_in_range_below_the_table():
    brightest = [
        float(action_map(pose(z=z), projection(256), GRIPPER, 256, 256)[0, 0, 3].amax())
        for z in (-0.1, 0.0, 0.125, 0.25, 0.3)
    ]
    assert brightest == pytest.approx([1.0, 1.0, 0.625, 0.25, 0.25], abs=0.02)


@FACES
def test_point_behind_the_camera_draws_nothing(face):
    behind = Camera.look_at(eye=(0.0, 0.5, 0.4), target=(0.0, 2.0, 0.4), fov_deg=60.0, size=64)
    assert face(pose(), seen_by(behind), GRIPPER, 64, 64).count_nonzero() == 0


@FACES
@pytest.mark.parametrize("entry", range(7))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pose_that_is_not_finite_draws_nothing_and_leaves_the_others_alone(face, entry, value):
    poses, cameras = random_pose(3), random_cameras(3, 2)
    clean = face(poses, cameras, GRIPPER, 64, 64)
    poses[1, entry] = value
    drawn = face(poses, cameras, GRIPPER, 64, 64)
    assert drawn[1].count_nonzero() == 0
    assert torch.equal(drawn[::2], clean[::2])


@pytest.mark.parametrize("size", [1e3, 1e20, 3e38])
def test_pose_far_off_the_image_equals_the_reference(size):
    far = pose(x=size, y=-size, z=size, axis_angle=(0.1, size**0.5, 0.0), opening=size)
    arguments = far, projection(), GRIPPER, 64, 64
    assert_same_strokes(action_map(*arguments), action_map_reference(*arguments))


def test_stroke_is_clipped_at_the_border():
    left = seen_at((-0.2, 0.03, 0.0))
    edge = -0.2 * float(32.0 / (32.0 - left[0]))  # the image's left border, on the row of the target
    foot = action_map(pose(x=edge, y=0.03, z=0.0), projection(), GRIPPER, 64, 64)[0, 0, 3]
    assert foot[:, 0].max() > 0.8
    assert foot[:, 6:].count_nonzero() == 0


def test_pose_gives_the_same_map_alone_and_in_a_batch():
    poses = random_pose(257)
    together = action_map(poses, projection(batch=257), GRIPPER, 64, 64)
    for i in (0, 100, 256):
        assert torch.equal(together[i], action_map(poses[i : i + 1], projection(), GRIPPER, 64, 64)[0])


def test_strided_inputs_are_read_by_their_strides():
    poses, cameras = random_pose(5), random_cameras(5, 2)
    strided = poses.T.contiguous().T, cameras.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(action_map(*strided, GRIPPER, 64, 64), action_map(poses, cameras, GRIPPER, 64, 64))


@FACES
def test_numbers_after_the_seventh_are_not_read(face):
    poses = random_pose(5)
    longer = torch.cat([poses, torch.full((5, 2), math.nan)], dim=1)
    arguments = projection(batch=5), GRIPPER, 64, 64
    for given in (longer, longer[:, :8]):
        assert torch.equal(face(given, *arguments), face(poses, *arguments))


def test_every_element_is_written():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        assert not action_map(random_pose(9), projection(33, 9), GRIPPER, 33, 40).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_operator_passes_opcheck():
    for views in (1, 2):
        arguments = random_pose(3), random_cameras(3, views), list(GRIPPER), 16, 9
        torch.library.opcheck(torch.ops.worldenv.action_map.default, arguments)


def test_operator_is_traced_without_a_graph_break():
    def step(poses, cameras):
        return action_map(poses * 1.0, cameras, GRIPPER, 16, 24) + 1.0

    traced, arguments = torch.compile(step, backend="aot_eager", fullgraph=True), (random_pose(4), random_cameras(4, 2))
    torch.testing.assert_close(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "action_map_reference", lambda *arguments: "reference ran")
    assert action_map(pose(), projection(), GRIPPER, 64, 64) == "reference ran"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": torch.zeros(7)}, r"poses has shape \[7\]; it should be \[B, P\] with P at least 7"),
        ({"poses": torch.zeros(2, 6)}, r"poses has shape \[2, 6\]"),
        ({"poses": torch.zeros(2, 7).double()}, r"poses is torch.float64; .* pass poses.float\(\)"),
        ({"poses": torch.zeros(2, 7, requires_grad=True)}, r"poses requires a gradient.*poses.detach\(\)"),
        ({"camera": torch.zeros(3, 4)}, r"camera has shape \[3, 4\]; it should be \[2, V, 3, 4\]"),
        ({"camera": torch.zeros(1, 1, 3, 4)}, r"camera has shape \[1, 1, 3, 4\]; it should be \[2, V, 3, 4\]"),
        ({"camera": torch.zeros(2, 0, 3, 4)}, r"camera has shape \[2, 0, 3, 4\]; .* with V at least 1"),
        ({"camera": torch.zeros(2, 1, 4, 4)}, r"camera has shape \[2, 1, 4, 4\]"),
        ({"camera": torch.zeros(2, 1, 3, 4).half()}, r"camera is torch.float16; .* pass camera.float\(\)"),
        ({"camera": torch.zeros(2, 1, 3, 4, device="meta")}, r"camera is on meta; it should be on cpu, as poses is"),
        ({"camera": torch.zeros(2, 1, 3, 4, requires_grad=True)}, r"camera requires a gradient, which action_map"),
        ({"gripper": (0.1, 0.2)}, r"gripper is \(0.1, 0.2\); it should be a Gripper, 5 lengths"),
        ({"height": 7}, r"height and width are 7 and 64; both should be at least 8"),
        ({"width": -1}, r"height and width are 64 and -1"),
    ],
)
def test_wrong_input_is_refused_by_name(change, message):
    arguments = {"poses": torch.zeros(2, 7), "camera": projection(batch=2), "gripper": GRIPPER}
    with pytest.raises(ValueError, match=message):
        action_map(**arguments | {"height": 64, "width": 64} | change)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(2, 6)),
        (0, torch.zeros(2, 1, 7)),
        (0, torch.zeros(2, 7).double()),
        (1, torch.zeros(3, 4)),
        (1, torch.zeros(1, 1, 3, 4)),
        (1, torch.zeros(2, 0, 3, 4)),
        (1, torch.zeros(2, 1, 3, 4).double()),
        (2, [0.1, 0.2]),
        (4, 0),
    ],
)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(place, value):
    arguments = [torch.zeros(2, 7), torch.zeros(2, 1, 3, 4), list(GRIPPER), 64, 64]
    arguments[place] = value
    with pytest.raises(RuntimeError, match="should be"):
        torch.ops.worldenv.action_map(*arguments)


def test_parameter_without_grad_mode_is_accepted():
    parameter = pose().requires_grad_()
    with torch.no_grad():
        assert action_map(parameter, projection(), GRIPPER, 64, 64).amax() > 0.5
