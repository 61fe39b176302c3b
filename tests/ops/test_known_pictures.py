import pytest
import torch
import torch.nn.functional as F

import worldenv.ops.known_pictures as module
from worldenv import ops
from worldenv.ops.known_pictures import known_pictures, known_pictures_reference, pictures
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.camera import tabletop_camera

SIZE = 64
CAMERA = tabletop_camera(SIZE)
PROJECTION = torch.from_numpy(CAMERA.projection).expand(1, 1, 3, 4)
FIRST, LAST, CLEAR, MASK, HIDDEN, TIPS, PLACES, CAMERAS, PLATE = range(9)  # places of the arguments


def random_bytes(*shape, draw):
    return torch.randint(256, shape, generator=draw, dtype=torch.uint8)


def inputs(b=2, height=16, width=24, k=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = [random_bytes(b, height, width, 3, draw=draw) for _ in range(3)]
    mask = random_bytes(b, height, width, draw=draw)
    rows, columns = torch.arange(height), torch.arange(width)
    mask *= ((rows - height // 2).abs() < height // 5 + 1)[:, None] & ((columns - width // 3).abs() < width // 6 + 1)
    hidden = random_bytes(b, k, height, width, draw=draw) * (random_bytes(b, k, height, width, draw=draw) % 2)
    spread = torch.tensor([0.1, 0.1, 0.05, 0.2, 0.2, 0.2, 0.4])
    tips = torch.tensor([0, 0, 0.1, 0, 0, 0, 0.5]) + spread * (2 * torch.rand(b, k + 2, 7, generator=draw) - 1)
    places = torch.tensor([0, 0, 0.03]) + 0.03 * (2 * torch.rand(b, k + 2, 3, generator=draw) - 1)
    shift = torch.randn(b, 1, 3, 1, generator=draw) * torch.tensor([[height / 10], [height / 10], [0.2]])
    projection = torch.from_numpy(tabletop_camera(height).projection)
    plate = 2 * torch.rand(height // 2, width // 2, 12, generator=draw) - 1
    return *frames, mask, hidden, tips, places, projection + shift * projection[2], plate


def assert_same(actual, expected):  # half way between two levels, either is right
    assert ((actual.int() - expected.int()).abs() <= 1).all()
    assert expected.numel() == 0 or (actual != expected).float().mean() < 0.01


def frames_of(
    patches,
):  # last [B, H, W, 3]; with the tips of last, of first, guesses on last, on clear, each [B, K, ...]
    frames = to_frames(patches)
    return frames[:, 0], *frames[:, 1:].chunk(4, dim=1)


def scene(face, mask, places, clear=50, last=100, plate=200, thing=(255, 0, 0), hidden=None):
    """The guesses for a scene in plain colours; the gripper stays. Each [K, H, W, 3]."""
    grey = [torch.full((1, SIZE, SIZE, 3), level, dtype=torch.uint8) for level in (0, last, clear)]
    grey[2][0][mask > 0] = torch.tensor(thing, dtype=torch.uint8)
    empty = torch.full((SIZE // 2, SIZE // 2, 12), plate / 127.5 - 1)
    tips = torch.tensor([0.0, 0.0, 0.1]).expand(1, len(places), 3)
    hidden = torch.zeros(len(places) - 2, SIZE, SIZE, dtype=torch.uint8) if hidden is None else hidden
    patches = face(*grey, mask[None], hidden[None], tips, torch.tensor(places)[None], PROJECTION, empty)
    return [frames[0] for frames in frames_of(patches)[3:]]


def square(top, left, size):
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[top : top + size, left : left + size] = 255
    return mask


def around(mask, by=1):
    return F.max_pool2d(mask[None].float(), 2 * by + 1, stride=1, padding=by)[0] > 0


FACES = pytest.mark.parametrize("face", [known_pictures, known_pictures_reference])


@pytest.mark.parametrize(
    ("b", "height", "width", "k"),
    [(0, 8, 8, 4), (1, 2, 2, 1), (2, 8, 8, 0), (3, 16, 24, 3), (2, 64, 64, 4), (2, 30, 18, 4), (2, 6, 64, 2)],
)
def test_compiled_face_equals_the_reference(b, height, width, k):
    arguments = inputs(b, height, width, k)
    actual, expected = known_pictures(*arguments), known_pictures_reference(*arguments)
    assert actual.shape == expected.shape == (b, height // 2, width // 2, pictures(k), 12)
    assert actual.dtype == expected.dtype == torch.uint8
    assert_same(actual, expected)


@pytest.mark.parametrize("mask", ["all of the frame", "the border", "faint"])
def test_any_mask_gives_the_same_as_the_reference(mask):
    arguments = list(inputs(b=3, seed=1))
    arguments[MASK] = random_bytes(3, 16, 24, draw=torch.Generator().manual_seed(2))
    if mask == "the border":
        arguments[MASK][:, 1:-1, 1:-1] = 0
    if mask == "faint":
        arguments[MASK] //= 16  # on both sides of 0.05
    assert_same(known_pictures(*arguments), known_pictures_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(width=18)
    assert_same(at_level(level, "known_pictures", *arguments), known_pictures_reference(*arguments))


@FACES
def test_a_gripper_that_stays_leaves_the_frames_as_they_were(face):
    arguments = list(inputs())
    arguments[TIPS] = arguments[TIPS][:, :1].expand(-1, 6, -1)
    last, with_last, with_first, _, _ = frames_of(face(*arguments))
    assert torch.equal(last, arguments[LAST])
    assert torch.equal(with_last, arguments[LAST][:, None].expand_as(with_last))
    assert torch.equal(with_first, arguments[FIRST][:, None].expand_as(with_first))


@FACES
def test_last_moves_from_now_and_first_from_the_first_frame(face):
    tips = torch.tensor([[0.0, 0.0, 0.05], [0.04, 0.0, 0.05], [0.04, 0.05, 0.1], [-0.06, 0.02, 0.02]])
    columns, rows = torch.arange(SIZE) + 0.5, torch.arange(SIZE)[:, None] + 0.5
    arguments = list(inputs(b=1, height=SIZE, width=SIZE, k=2))
    for place, tip in ((FIRST, tips[0]), (LAST, tips[1])):  # a bright spot at the fingertips
        (u, v), _ = CAMERA.project(tip.numpy())
        spot = torch.exp(-((rows - v) ** 2 + (columns - u) ** 2) / 8)
        arguments[place] = (255 * spot).to(torch.uint8)[None, :, :, None].expand(1, SIZE, SIZE, 3)
    arguments[TIPS], arguments[-2] = tips[None], PROJECTION
    for moved in frames_of(face(*arguments))[1:3]:
        for j in range(2):
            weight = moved[0, j, :, :, 0].float()
            seen = torch.stack([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
            expected, _ = CAMERA.project(tips[2 + j].numpy())
            assert torch.allclose(seen, torch.from_numpy(expected).float(), atol=0.3)


@FACES
def test_without_a_thing_the_guesses_are_the_frames_wherever_it_would_be(face):
    arguments = list(inputs())
    arguments[MASK] = torch.zeros_like(arguments[MASK])
    arguments[PLACES] = arguments[PLACES] * float("nan")
    on_last, on_clear = frames_of(face(*arguments))[3:]
    assert torch.equal(on_last, arguments[LAST][:, None].expand_as(on_last))
    assert torch.equal(on_clear, arguments[CLEAR][:, None].expand_as(on_clear))


@FACES
def test_a_thing_that_stays_is_taken_from_where_it_was_clear(face):
    mask, place = square(20, 30, 7), (0.0, 0.0, 0.03)
    on_last, on_clear = scene(face, mask, [place] * 4)
    inside, near = mask > 0, around(mask)
    for frames, beyond in ((on_last, 100), (on_clear, 50)):
        assert (frames[:, inside] == torch.tensor([255, 0, 0])).all()
        assert (frames[:, near & ~inside] == 200).all()  # the plate, one pixel around the thing
        assert (frames[:, ~near] == beyond).all()


@FACES
def test_a_thing_that_moves_leaves_behind_what_is_behind_it(face):
    """It moved before now, goes back by the first action, and forth by the second: each base is empty where it was."""
    mask = square(30, 10, 6)
    begin = (0.0, 0.0, 0.0)
    along = PROJECTION[0, 0, 0, :2]  # in this direction on the table, the column grows most
    depth = PROJECTION[0, 0, 2, 3]
    now = (*(20 * depth * along / along.norm() ** 2).tolist(), 0.0)  # some 20 pixels
    on_last, on_clear = scene(face, mask, [begin, now, begin, now])
    was = around(mask)
    there = (scene(face, mask, [begin, now, now, now])[1][0, :, :, 0] > 205) & ~was
    assert there.sum() > 12 and not (there & was).any()
    assert (on_last[0, there] == 50).all() and (on_clear[0, there] == 50).all()  # back: `clear` behind where it is now
    assert (on_last[0, mask > 0] == torch.tensor([255, 0, 0])).all()
    assert (on_clear[1, was] == 200).all()  # where it was in `clear`: the plate
    assert (on_last[1, was] == 100).all()  # `last` knows better: the thing is not there
    assert (on_last[1, there, 0] > 150).all() and (on_clear[1, there, 0] > 150).all()


@FACES
def test_half_of_a_pixel_is_mixed(face):
    mask = square(20, 30, 7) // 2  # 127
    on_last, on_clear = scene(face, mask, [(0.0, 0.0, 0.03)] * 3, thing=(250, 0, 100))
    share = 127 / 255
    expected = (200 + share * (torch.tensor([250.0, 0.0, 100.0]) - 200)).round()
    for frames in (on_last, on_clear):
        assert (frames[0, mask > 0] == expected).all()


@FACES
def test_what_is_hidden_of_a_thing_is_not_painted_and_yet_taken_away_from_where_it_was(face):
    mask, hidden = square(20, 30, 8), torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    hidden[0, 24:], hidden[1, :, :34] = 255, 51  # its lower half after the first action, a fifth of its left half after
    on_last, on_clear = scene(face, mask, [(0.0, 0.0, 0.03)] * 4, thing=(250, 0, 100), hidden=hidden)
    inside, low, left = mask > 0, torch.arange(SIZE)[:, None] >= 24, torch.arange(SIZE) < 34
    mixed = (200 + 0.8 * (torch.tensor([250.0, 0.0, 100.0]) - 200)).round()
    for frames in (on_last, on_clear):
        assert (frames[0, inside & ~low] == torch.tensor([250, 0, 100])).all() and (
            frames[0, inside & low] == 200
        ).all()
        assert (frames[1, inside & ~left] == torch.tensor([250, 0, 100])).all()
        assert (frames[1, inside & left] == mixed).all()


@FACES
@pytest.mark.parametrize(("level", "counts"), [(12, False), (13, True)])
def test_a_share_above_a_twentieth_counts_as_there(face, level, counts):
    mask = square(20, 30, 1) // 255 * level
    ring = around(mask) & (mask == 0)
    on_last, on_clear = scene(face, mask, [(0.0, 0.0, 0.03)] * 3)
    assert (on_last[0, ring] == (200 if counts else 100)).all()
    assert (on_clear[0, ring] == (200 if counts else 50)).all()


@FACES
def test_a_tip_or_place_that_is_not_finite_spoils_its_pictures_and_no_others(face):
    arguments = list(inputs(k=2))
    clean = face(*arguments)
    arguments[TIPS][1, 3, 0] = float("nan")
    arguments[PLACES][1, 2, 1] = float("inf")
    patches = face(*arguments)
    assert torch.equal(patches[0], clean[0])
    sound = [0, 1, 3, 6, 8]  # last; what is after the first action with the tips, after the second with the thing
    assert torch.equal(patches[1][:, :, sound], clean[1][:, :, sound])
    assert (patches[1][:, :, [2, 4]] == 128).all()
    no_thing = frames_of(patches)[4][1, 0]
    was = F.max_pool2d(arguments[MASK][1:].float(), 3, stride=1, padding=1)[0] > 0.05 * 255
    assert torch.equal(no_thing[~was], arguments[CLEAR][1][~was])


@FACES
def test_numbers_of_a_tip_after_the_third_are_not_read(face):
    arguments = list(inputs())
    expected = face(*arguments)
    arguments[TIPS] = torch.cat([arguments[TIPS][..., :3], torch.full((2, 6, 2), float("nan"))], dim=2)
    assert torch.equal(face(*arguments), expected)


def test_an_episode_gives_the_same_alone_and_in_a_batch():
    *arguments, plate = inputs(b=5)
    alone = known_pictures(*(tensor[3:4] for tensor in arguments), plate)
    assert torch.equal(alone[0], known_pictures(*arguments, plate)[3])


def test_tensors_that_are_not_contiguous_are_read_right():
    arguments = inputs()
    apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in arguments]
    assert torch.equal(known_pictures(*apart), known_pictures(*arguments))


def test_a_plate_that_is_trained_has_no_gradient_by_it():
    *arguments, plate = inputs()
    assert not known_pictures(*arguments, plate.requires_grad_()).requires_grad


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.known_pictures.default, inputs(height=4, width=4))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs()

    def step(*arguments):
        return known_pictures(*arguments) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "known_pictures_reference", lambda *arguments: "reference ran")
    assert known_pictures(*inputs()) == "reference ran"


WRONG = [
    (FIRST, torch.zeros(2, 16, 24), r"first is \[2, 16, 24\]; it should be \[B, H, W, 3\] with H and W even"),
    (FIRST, torch.zeros(2, 15, 24, 3).byte(), r"first is \[2, 15, 24, 3\]"),
    (FIRST, torch.zeros(2, 16, 24, 3), r"first is torch.float32; it should be torch.uint8"),
    (LAST, torch.zeros(1, 16, 24, 3).byte(), r"last has shape \[1, 16, 24, 3\]; it should be \[2, 16, 24, 3\]"),
    (CLEAR, torch.zeros(2, 16, 24, 3), r"clear is torch.float32; it should be torch.uint8"),
    (MASK, torch.zeros(2, 16, 24, 1).byte(), r"mask has shape \[2, 16, 24, 1\]; it should be \[2, 16, 24\]"),
    (MASK, torch.zeros(2, 16, 24).bool(), r"mask is torch.bool; it should be torch.uint8"),
    (TIPS, torch.zeros(2, 1, 7), r"tips is \[2, 1, 7\]; it should be \[2, K \+ 2, P\] with P at least 3"),
    (TIPS, torch.zeros(2, 6, 2), r"tips is \[2, 6, 2\]; .* with P at least 3"),
    (TIPS, torch.zeros(2, 6, 7).double(), r"tips is torch.float64; it should be torch.float32: pass tips.float\(\)"),
    (PLACES, torch.zeros(2, 5, 3), r"places has shape \[2, 5, 3\]; it should be \[2, 6, 3\]"),
    (HIDDEN, torch.zeros(2, 16, 24).byte(), r"hidden has shape \[2, 16, 24\]; it should be \[2, 4, 16, 24\]"),
    (HIDDEN, torch.zeros(2, 3, 16, 24).byte(), r"hidden has shape \[2, 3, 16, 24\]; it should be \[2, 4, 16, 24\]"),
    (HIDDEN, torch.zeros(2, 4, 16, 24), r"hidden is torch.float32; it should be torch.uint8"),
    (CAMERAS, torch.zeros(2, 3, 4), r"camera has shape \[2, 3, 4\]; it should be \[2, 1, 3, 4\]"),
    (CAMERAS, torch.zeros(2, 1, 3, 4).half(), r"camera is torch.float16; it should be torch.float32"),
    (PLATE, torch.zeros(16, 24, 3), r"plate has shape \[16, 24, 3\]; it should be \[8, 12, 12\]"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        known_pictures(*arguments)


@pytest.mark.parametrize(("name", "places"), [("hidden", [HIDDEN]), ("tips", range(TIPS, PLATE + 1))])
def test_tensors_on_two_devices_are_refused(name, places):
    arguments = [tensor.to("meta") if i in places else tensor for i, tensor in enumerate(inputs())]
    with pytest.raises(ValueError, match=f"{name} is on meta; it should be on cpu, as first is"):
        known_pictures(*arguments)


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_compiled_face_called_directly_refuses_what_it_cannot_read(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(RuntimeError, match="should"):
        torch.ops.worldenv.known_pictures(*arguments)
