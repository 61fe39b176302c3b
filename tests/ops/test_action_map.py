import math

import numpy as np
import pytest
import torch

import worldenv.ops.action_map as module
from worldenv import ops
from worldenv.ops.action_map import action_map, action_map_reference
from worldenv.robot.camera import Camera

# By dtype. The error is that of the projected pixel, some 1e-6 of the image's side, times the slope of a stroke.
TOLERANCE = {torch.float32: 2e-4}
FLOOR = math.exp(-8.0)


def random_pose(batch, seed=0):
    draw = torch.Generator().manual_seed(seed)
    position = torch.rand(batch, 3, generator=draw) * torch.tensor([0.6, 0.6, 0.4]) - torch.tensor([0.3, 0.3, 0.05])
    axis_angle = torch.randn(batch, 3, generator=draw) * 1.5
    return torch.cat([position, axis_angle, torch.rand(batch, 1, generator=draw)], dim=1)


def pose(x=0.0, y=0.0, z=0.1, axis_angle=(0.0, 0.0, 0.0), aperture=1.0):
    return torch.tensor([[x, y, z, *axis_angle, aperture]])


def camera(size=64):
    return Camera.look_at(eye=(0.0, -0.42, 0.44), target=(0.0, 0.03, 0.0), fov_deg=40.0, size=size)


def projection(size=64):
    return torch.from_numpy(camera(size).projection)


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
@pytest.mark.parametrize("batch", [0, 1, 63])
def test_compiled_face_equals_the_reference(batch, height, width):
    proprio, matrix = random_pose(batch), projection(height)
    expected = action_map_reference(proprio, matrix, height, width)
    assert_same_strokes(action_map(proprio, matrix, height, width), expected)


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_draw_the_same(level, at_level):
    arguments = random_pose(63), projection(), 64, 50
    assert_same_strokes(at_level(level, "action_map", *arguments), action_map_reference(*arguments))


def test_thousand_poses_equal_the_reference_and_stay_in_range():
    proprio, matrix = random_pose(1000, seed=1), projection()
    actual = action_map(proprio, matrix, 64, 64)
    assert_same_strokes(actual, action_map_reference(proprio, matrix, 64, 64))
    assert actual.min() == 0.0
    assert 0.5 < actual.max() <= 1.0


def expected_stroke(p, q, sigma, size):  # by sampling the segment densely
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    (ax, ay), (bx, by) = seen_at(p, size), seen_at(q, size)
    squared = np.full((size, size), np.inf)
    for t in np.linspace(0, 1, 2001):
        squared = np.minimum(squared, (columns - ax - t * (bx - ax)) ** 2 + (rows - ay - t * (by - ay)) ** 2)
    value = np.exp(-squared / (2 * (sigma * size / 64) ** 2))
    return np.where(value < FLOOR, 0.0, value)


@pytest.mark.parametrize("face", [action_map, action_map_reference])
@pytest.mark.parametrize("size", [64, 160])
def test_gripper_is_drawn_as_the_equation_says(face, size):
    p, up, out = np.array([0.03, 0.02, 0.12]), np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    drawn = face(pose(*p.tolist(), axis_angle=(math.pi / 2, 0.0, 0.0), aperture=0.5), projection(size), size, size)[0]
    hand, foot = p + 0.05 * up, p * [1, 1, 0]
    tips = [p + side * 0.0285 * out for side in (1, -1)]
    expected = np.stack(
        [
            expected_stroke(hand, p + 0.4 * up, 1.5, size),
            np.maximum(*(expected_stroke(tip, tip + 0.05 * up, 1.0, size) for tip in tips)),
            expected_stroke(hand - 0.05 * out, hand + 0.05 * out, 1.5, size),
            expected_stroke(foot, foot, 1.5, size) * (0.25 + 0.75 * (1 - 0.12 / 0.25)),
        ]
    )
    assert_same_strokes(drawn, torch.from_numpy(expected).float())


@pytest.mark.parametrize("face", [action_map, action_map_reference])
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
    fingers = face(pose(z=0.1, axis_angle=axis_angle, aperture=1.0), projection(256), 256, 256)[0, 1]
    for side in (0.045, -0.045):
        x, y = seen_at(np.array([0.0, 0.0, 0.1]) + side * np.array(closing), 256)
        assert fingers[int(y), int(x)] > 0.95


def test_closing_the_gripper_brings_the_tips_together():
    spread = [
        (action_map(pose(aperture=aperture), projection(), 64, 64)[0, 1].amax(dim=0) > 0.1).nonzero()
        for aperture in (0.0, 0.5, 1.0)
    ]
    widths = [int(columns.max() - columns.min()) for columns in spread]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("face", [action_map, action_map_reference])
def test_arm_is_cut_where_it_passes_the_camera(face):
    beside = Camera.look_at(eye=(0.0, -0.1, 0.4), target=(0.0, 0.2, 0.0), fov_deg=60.0, size=64)
    tool = face(pose(y=0.05, z=0.05), torch.from_numpy(beside.projection), 64, 64)[0, 0]  # its top is behind
    above = [beside.project(np.array([0.0, 0.05, z]))[0] for z in (0.1, 0.2, 0.3)]
    assert all(tool[int(y), int(x)] > 0.9 for x, y in above if 0 <= y < 64)
    below = beside.project(np.array([0.0, 0.05, 0.0]))[0]
    assert tool[int(below[1]), int(below[0])] == 0.0


def test_foot_point_fades_with_height_and_stays_in_range_below_the_table():
    brightest = [
        float(action_map(pose(z=z), projection(256), 256, 256)[0, 3].amax()) for z in (-0.1, 0.0, 0.125, 0.25, 0.3)
    ]
    assert brightest == pytest.approx([1.0, 1.0, 0.625, 0.25, 0.25], abs=0.02)


@pytest.mark.parametrize("face", [action_map, action_map_reference])
def test_point_behind_the_camera_draws_nothing(face):
    behind = Camera.look_at(eye=(0.0, 0.5, 0.4), target=(0.0, 2.0, 0.4), fov_deg=60.0, size=64)
    assert face(pose(), torch.from_numpy(behind.projection), 64, 64).count_nonzero() == 0


@pytest.mark.parametrize("face", [action_map, action_map_reference])
@pytest.mark.parametrize("entry", range(7))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pose_that_is_not_finite_draws_nothing_and_leaves_the_others_alone(face, entry, value):
    proprio = random_pose(3)
    clean = face(proprio, projection(), 64, 64)
    proprio[1, entry] = value
    drawn = face(proprio, projection(), 64, 64)
    assert drawn[1].count_nonzero() == 0
    assert torch.equal(drawn[::2], clean[::2])


@pytest.mark.parametrize("size", [1e3, 1e20, 3e38])
def test_pose_far_off_the_image_equals_the_reference(size):
    proprio = pose(x=size, y=-size, z=size, axis_angle=(0.1, size**0.5, 0.0), aperture=size)
    assert_same_strokes(action_map(proprio, projection(), 64, 64), action_map_reference(proprio, projection(), 64, 64))


def test_stroke_is_clipped_at_the_border():
    left = seen_at((-0.2, 0.03, 0.0))
    edge = -0.2 * float(32.0 / (32.0 - left[0]))  # the image's left border, on the row of the target
    foot = action_map(pose(x=edge, y=0.03, z=0.0), projection(), 64, 64)[0, 3]
    assert foot[:, 0].max() > 0.8
    assert foot[:, 6:].count_nonzero() == 0


def test_pose_gives_the_same_map_alone_and_in_a_batch():
    proprio = random_pose(257)
    together = action_map(proprio, projection(), 64, 64)
    for i in (0, 100, 256):
        assert torch.equal(together[i], action_map(proprio[i : i + 1], projection(), 64, 64)[0])


def test_strided_inputs_are_read_by_their_strides():
    proprio, matrix = random_pose(5), projection()
    strided = proprio.T.contiguous().T
    assert not strided.is_contiguous()
    expected = action_map(proprio, matrix, 64, 64)
    assert torch.equal(action_map(strided, matrix.T.contiguous().T, 64, 64), expected)


def test_every_element_is_written():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        assert not action_map(random_pose(9), projection(33), 33, 40).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.action_map.default, (random_pose(3), projection(), 16, 9))


def test_operator_is_traced_without_a_graph_break():
    def step(proprio, matrix):
        return action_map(proprio * 1.0, matrix, 16, 24) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(random_pose(4), projection()), step(random_pose(4), projection()))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "action_map_reference", lambda *arguments: "reference ran")
    assert action_map(pose(), projection(), 64, 64) == "reference ran"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": torch.zeros(7)}, r"proprio has shape \[7\]; it should be \[B, 7\]"),
        ({"proprio": torch.zeros(2, 8)}, r"proprio has shape \[2, 8\]"),
        ({"projection": torch.zeros(4, 4)}, r"projection has shape \[4, 4\]; it should be \[3, 4\]"),
        ({"proprio": torch.zeros(2, 7).double()}, r"proprio is torch.float64; .* pass proprio.float\(\)"),
        ({"projection": torch.zeros(3, 4).half()}, r"projection is torch.float16; .* pass projection.float\(\)"),
        ({"proprio": torch.zeros(2, 7, requires_grad=True)}, r"proprio requires a gradient.*proprio.detach\(\)"),
        ({"projection": torch.zeros(3, 4, device="meta")}, r"projection is on meta; it should be on cpu"),
        ({"height": 7}, r"height and width are 7 and 64; both should be at least 8"),
        ({"width": -1}, r"height and width are 64 and -1"),
    ],
)
def test_wrong_input_is_refused_by_name(change, message):
    arguments = {"proprio": torch.zeros(2, 7), "projection": projection(), "height": 64, "width": 64} | change
    with pytest.raises(ValueError, match=message):
        action_map(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(2, 6), torch.zeros(3, 4), 64, 64),
        (torch.zeros(2, 7), torch.zeros(12), 64, 64),
        (torch.zeros(2, 7).double(), torch.zeros(3, 4), 64, 64),
        (torch.zeros(2, 7), torch.zeros(3, 4), 64, 0),
    ],
)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(arguments):
    with pytest.raises(RuntimeError, match="should be"):
        torch.ops.worldenv.action_map(*arguments)


def test_parameter_without_grad_mode_is_accepted():
    proprio = pose().requires_grad_()
    with torch.no_grad():
        assert action_map(proprio, projection(), 64, 64).amax() > 0.5
