import pytest
import torch

import worldenv.ops.transport as module
from worldenv import ops
from worldenv.camera import tabletop_camera
from worldenv.ops.patchify import patchify
from worldenv.ops.transport import moves, transport, transport_reference
from worldenv.ops.unpatchify import to_frames

SIZE = 64
CAMERA = tabletop_camera(SIZE)
PROJECTION = torch.from_numpy(CAMERA.projection).expand(1, 1, 3, 4)
TOLERANCE = {torch.float32: 2e-4}  # of values in [-1, 1]: places in the frame are known to some 1e-5 px


def pose(x, y, z):
    return torch.tensor([x, y, z, 0.0, 0.0, 0.0, 1.0])


def inputs(b=2, m=3, height=16, width=24, k=4, dtype=torch.uint8, v=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (b, m, v, height, width, 3), generator=draw, dtype=torch.uint8)
    spread = torch.tensor([0.1, 0.1, 0.05, 0.2, 0.2, 0.2, 0.4])
    poses = torch.tensor([0, 0, 0.1, 0, 0, 0, 0.5]) + spread * (2 * torch.rand(b, k + 1, 7, generator=draw) - 1)
    shift = torch.randn(b, v, 3, 1, generator=draw) * torch.tensor([[height / 10], [height / 10], [0.2]])
    projection = torch.from_numpy(tabletop_camera(height).projection)
    camera = projection + shift * projection[2]  # every episode and view has its own
    return frames if dtype == torch.uint8 else frames.float() / 127.5 - 1, poses, camera


def assert_same(actual, expected):
    if expected.dtype == torch.uint8:  # half way between two levels, either is right
        assert ((actual.int() - expected.int()).abs() <= 1).all()
        assert expected.numel() == 0 or (actual != expected).float().mean() < 0.01
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[torch.float32])


def moved_by(face, frame, poses):  # [3, H, W] -> the pictures that it becomes, [P, 3, H, W]
    patches = face(frame.permute(1, 2, 0)[None, None, None].contiguous(), poses, PROJECTION)
    return to_frames(patches[:, 0])[0, 1:].permute(0, 3, 1, 2)


FACES = pytest.mark.parametrize("face", [transport, transport_reference])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("b", "m", "v", "height", "width", "k"),
    [(0, 3, 2, 8, 8, 4), (1, 1, 1, 2, 2, 1), (3, 2, 3, 16, 24, 3), (2, 3, 1, 64, 64, 4), (2, 3, 2, 30, 18, 4)],
)
def test_compiled_face_equals_the_reference(b, m, v, height, width, k, dtype):
    arguments = inputs(b, m, height, width, k, dtype, v)
    actual, expected = transport(*arguments), transport_reference(*arguments)
    assert actual.shape == expected.shape == (b, v, height // 2, width // 2, m + moves(k), 12)
    assert actual.dtype == dtype
    assert_same(actual, expected)


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(v=2)
    assert_same(at_level(level, "transport", *arguments), transport_reference(*arguments))


@FACES
def test_the_frames_themselves_come_first(face):
    frames, *others = inputs(v=2)
    patches = face(frames, *others)
    for v in range(2):
        assert torch.equal(patches[:, v, :, :, :3], patchify(frames[:, :, v].contiguous()))


@FACES
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_view_of_an_episode_moves_as_its_own_camera_sees_the_poses(face, dtype):
    frames, poses, camera = inputs(b=3, v=2, dtype=dtype)
    together = face(frames, poses, camera)
    for b, v in ((0, 0), (0, 1), (2, 1)):
        own = frames[b : b + 1, :, v : v + 1], poses[b : b + 1]
        alone = face(*own, camera[b : b + 1, v : v + 1])
        assert_same(alone[0, 0], together[b, v])
        other = face(*own, camera[b : b + 1, 1 - v : 2 - v])
        assert (other.float() - alone.float()).abs().max() > 0.5


@FACES
def test_numbers_after_the_third_are_not_read(face):
    frames, poses, camera = inputs()
    expected = face(frames, poses, camera)
    longer = torch.cat([poses, torch.full((2, 5, 2), float("nan"))], dim=2)
    for given in (longer, poses[..., :3]):
        assert torch.equal(face(frames, given, camera), expected)


@FACES
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_pose_that_is_not_finite_spoils_its_pairs_and_no_other_episode(face, dtype):
    frames, poses, camera = inputs(k=2, dtype=dtype, v=2)
    clean = face(frames, poses, camera)
    poses[1, 2, 0] = float("nan")
    patches = face(frames, poses, camera)
    sound = [0, 1, 2, 3]  # the frames, and the pair (0, 1)
    assert torch.equal(patches[0], clean[0]) and torch.equal(patches[1, ..., sound, :], clean[1, ..., sound, :])
    spoilt = patches[1, ..., 4:, :]
    assert (spoilt == 128).all() if dtype == torch.uint8 else spoilt.isnan().all()


def test_an_episode_gives_the_same_alone_and_in_a_batch():
    arguments = inputs(b=5, v=2)
    assert torch.equal(transport(*(tensor[3:4] for tensor in arguments))[0], transport(*arguments)[3])


def test_gradient_passes_by_the_reference():
    frames, poses, camera = inputs(b=1, m=1, height=4, width=4, k=1, dtype=torch.float32, v=2)
    double = frames.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: transport_reference(f, poses.double(), camera.double()), double)
    patches = transport(frames.requires_grad_(), poses, camera)
    patches.square().sum().backward()
    assert frames.grad.abs().sum() > 0


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.transport.default, inputs(height=4, width=4, v=2))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs()

    def step(*arguments):
        return transport(*arguments) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "transport_reference", lambda *arguments: "reference ran")
    assert transport(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 3, 16, 24, 3), r"frames is \[2, 3, 16, 24, 3\]; it should be \[B, M, V, H, W, 3\] with H"),
        (0, torch.zeros(2, 3, 1, 15, 24, 3), r"frames is \[2, 3, 1, 15, 24, 3\]"),
        (0, torch.zeros(2, 3, 0, 16, 24, 3), r"frames is \[2, 3, 0, 16, 24, 3\]; .* M and V not 0"),
        (0, torch.zeros(2, 3, 1, 16, 24, 3).half(), r"frames is torch.float16; it should be torch.uint8 or"),
        (1, torch.zeros(3, 5, 7), r"poses is torch.float32 \[3, 5, 7\]; it should be float32 \[2, K \+ 1, P\]"),
        (1, torch.zeros(2, 5, 2), r"poses is torch.float32 \[2, 5, 2\]; .* with P at least 3"),
        (2, torch.zeros(3, 4), r"camera is torch.float32 \[3, 4\]; it should be float32 \[2, 1, 3, 4\]"),
        (2, torch.zeros(2, 2, 3, 4), r"camera is torch.float32 \[2, 2, 3, 4\]; it should be float32 \[2, 1, 3, 4\]"),
        (2, torch.zeros(2, 1, 3, 4).half(), r"camera is torch.float16 \[2, 1, 3, 4\]; it should be float32"),
        (2, torch.zeros(2, 1, 3, 4, device="meta"), r"frames is on cpu, poses on cpu, camera on meta"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        transport(*arguments)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(2, 3, 16, 24, 3)),
        (0, torch.zeros(2, 3, 0, 16, 24, 3)),
        (0, torch.zeros(2, 3, 1, 16, 24, 3).half()),
        (1, torch.zeros(2, 5, 2)),
        (2, torch.zeros(3, 4)),
        (2, torch.zeros(2, 2, 3, 4)),
        (2, torch.zeros(2, 1, 3, 4).double()),
    ],
)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(place, value):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(RuntimeError, match="should be"):
        torch.ops.worldenv.transport(*arguments)


def spot(point):  # a frame with one bright Gaussian spot where the camera sees the point
    (u, v), _ = CAMERA.project(torch.tensor(point).numpy())
    rows, columns = torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5
    return torch.exp(-((rows[:, None] - v) ** 2 + (columns[None, :] - u) ** 2) / 8).expand(3, SIZE, SIZE)


def centre(frame):  # (u, v) of the brightness
    weight = frame[0] / frame[0].sum()
    at = torch.arange(SIZE) + 0.5
    return torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()])


@FACES
def test_what_is_at_the_fingertips_goes_with_them_from_any_pose_to_any_later_one(face):
    places = [(0.02, 0.0, 0.05), (0.08, 0.05, 0.1), (-0.06, 0.1, 0.03), (0.0, -0.05, 0.06)]
    poses = torch.stack([pose(*place) for place in places])[None]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert moves(3) == len(pairs)
    for begin in range(3):
        moved = moved_by(face, spot(places[begin]), poses)
        for frame, (i, j) in zip(moved, pairs, strict=True):
            if i == begin:
                seen, _ = CAMERA.project(torch.tensor(places[j]).numpy())
                assert torch.allclose(centre(frame), torch.from_numpy(seen).float(), atol=0.3), (i, j)


@FACES
def test_a_gripper_that_stays_leaves_the_frame_as_it_was(face):
    frame = torch.rand(3, SIZE, SIZE)
    moved = moved_by(face, frame, pose(0.05, 0.02, 0.08).expand(1, 5, 7))
    torch.testing.assert_close(moved, frame.expand(10, -1, -1, -1), rtol=0, atol=1e-4)


@FACES
def test_what_comes_nearer_grows_and_keeps_its_brightness(face):
    poses = torch.stack([pose(0, 0, 0.0), pose(0, 0, 0.15)])[None]
    before = spot((0, 0, 0.0))
    after = moved_by(face, before, poses)[0]
    assert after[0].sum() > 1.2 * before[0].sum()
    assert after.max().item() == pytest.approx(before.max().item(), abs=0.03)


@FACES
def test_beyond_the_frame_the_border_is_repeated(face):
    frame = torch.zeros(3, SIZE, SIZE)
    frame[..., 0] = 1.0  # the left column
    poses = torch.stack([pose(0, 0, 0.0), pose(0.06, 0, 0.0)])[None]  # to the right
    moved = moved_by(face, frame, poses)[0]
    torch.testing.assert_close(moved[..., :5], torch.ones(3, SIZE, 5))
    assert moved[..., -20:].abs().max() < 1e-6


def test_small_things_stay_sharp_when_they_are_moved_again_and_again():
    frame, there = spot((0.0, 0.0, 0.02)), True
    for _ in range(10):  # there and back, a fraction of a pixel each time
        ends = [pose(0, 0, 0.02), pose(0.013, 0.009, 0.02)]
        frame = moved_by(transport, frame, torch.stack(ends if there else ends[::-1])[None])[0]
        there = not there
    assert (frame - spot((0.0, 0.0, 0.02))).abs().max() < 0.05
