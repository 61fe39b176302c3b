import pytest
import torch

import worldenv.ops.compose as module
from worldenv import ops
from worldenv.ops.compose import compose, compose_reference
from worldenv.ops.patchify import unit

TOLERANCE = {torch.float32: 2e-6}  # of pictures in [-1, 1]; a share just at the cut may fall to either side of it


def inputs(b=2, h=3, w=5, k=4, pictures=13, share=0.05, correction=0.02, seed=0):
    draw = torch.Generator().manual_seed(seed)
    s = pictures + 1
    raw = torch.randn(b, h, w, 3 + s, k * 4, generator=draw) * torch.tensor([0.1] * 3 + [3.0] * s)[:, None]
    known, plate = (torch.rand(*shape, 12, generator=draw) * 2 - 1 for shape in ((b, h, w, pictures), (h, w)))
    return raw.flatten(3), torch.randn((3 + s) * k * 4, generator=draw) * 0.05, known, plate, share, correction


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=TOLERANCE[expected.dtype])


@pytest.mark.parametrize(("share", "correction"), [(0.0, 0.0), (0.05, 0.02)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("b", "h", "w"), [(0, 4, 4), (1, 1, 1), (3, 7, 2), (2, 32, 32)])
def test_compiled_face_equals_the_reference(b, h, w, k, share, correction):
    arguments = inputs(b, h, w, k, share=share, correction=correction)
    assert_same(compose(*arguments), compose_reference(*arguments))


@pytest.mark.parametrize("pictures", [0, 1, 13, 63])
def test_any_number_of_pictures(pictures):
    arguments = inputs(pictures=pictures, share=0.01)
    assert_same(compose(*arguments), compose_reference(*arguments))


@pytest.mark.parametrize("k", [1, 4])
def test_pictures_of_bytes_are_read_as_pixels(k):
    raw, bias, pictures, *others = inputs(k=k)
    pixels = ((pictures + 1) * 127.5).round().to(torch.uint8)
    expected = compose(raw, bias, unit(pixels), *others)
    assert_same(compose(raw, bias, pixels, *others), expected)
    assert_same(compose_reference(raw, bias, pixels, *others), expected)


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(h=6, w=9, k=3)
    assert_same(at_level(level, "compose", *arguments), compose_reference(*arguments))


@pytest.mark.parametrize("face", [compose, compose_reference])
def test_corrections_and_choices_are_those_of_their_frame_colour_and_pixel(face):
    raw = torch.zeros(1, 2, 2, 3 + 2, 2, 4)  # [.., correction or choice, frame, pixel], two pictures
    raw[0, 1, 0, 2, 1, 3] = 0.5  # patch (1, 0), blue, second frame, lower right
    raw[0, 0, 1, 3, 0, 1] = 30.0  # patch (0, 1) takes the picture, first frame, upper right
    raw[..., 4, :, :] += 15.0  # all else the plate
    pictures = torch.arange(1, 49.0).view(1, 2, 2, 1, 12)
    patches = face(raw.flatten(3), torch.zeros(40), pictures, torch.zeros(2, 2, 12), 0.05, 0.0)
    expected = torch.zeros(1, 2, 2, 2, 12)
    expected[0, 1, 0, 1, 4 * 2 + 3] = 0.5
    expected[0, 0, 1, 0, [1, 5, 9]] = pictures[0, 0, 1, 0, [1, 5, 9]]
    assert torch.equal(patches, expected)


@pytest.mark.parametrize("face", [compose, compose_reference])
def test_what_one_picture_wins_by_far_is_copied_exactly(face):
    raw, bias, pictures, plate, share, correction = inputs()
    winner = torch.zeros_like(bias)
    winner.view(17, 4, 4)[3 + 2] = 8.0
    patches = face(torch.zeros_like(raw), winner, pictures, plate, share, correction)
    assert torch.equal(patches, pictures[:, :, :, 2:3].expand_as(patches))


@pytest.mark.parametrize("face", [compose, compose_reference])
def test_shares_sum_to_one_whatever_is_cut(face):
    raw, bias, pictures, plate, share, _ = inputs()
    grey = [torch.full_like(picture, 0.25) for picture in (pictures, plate)]
    patches = face(raw, bias, *grey, share, 9.0)  # no correction is that large
    torch.testing.assert_close(patches, torch.full_like(patches, 0.25), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("face", [compose, compose_reference])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("channel", [0, 3])
def test_a_number_that_is_not_finite_spoils_its_pixel_and_no_other(face, value, channel):
    arguments = inputs()
    clean = face(*arguments)
    arguments[0].view(2, 3, 5, 17, 4, 4)[1, 2, 4, channel, 3, 2] = value
    patches = face(*arguments)
    spoilt = torch.zeros_like(clean, dtype=torch.bool)
    spoilt[1, 2, 4, 3, 2::4] = True  # a choice spoils all colours
    assert not patches[spoilt].isfinite().all()
    assert torch.equal(patches[~spoilt], clean[~spoilt])


def test_every_element_is_written():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        assert not compose(*inputs(k=3)).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_episode_gives_the_same_alone_and_in_a_batch_and_with_strided_inputs():
    arguments = inputs(b=5)
    together = compose(*arguments)
    raw, bias, pictures, *rest = arguments
    alone = compose(raw[3:4], bias, pictures[3:4], *rest)
    assert torch.equal(alone[0], together[3])
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (raw, pictures)]
    assert torch.equal(compose(strided[0], bias, strided[1], *rest), together)


def test_gradient_passes_by_the_reference():
    raw, *others = inputs(b=1, h=2, w=2, k=2, pictures=2)
    double = [t.double() if isinstance(t, torch.Tensor) else t for t in others]
    assert torch.autograd.gradcheck(lambda r: compose_reference(r, *double), raw.double().requires_grad_())
    raw.requires_grad_()
    frames = compose(raw, *others)
    frames.square().sum().backward()
    assert torch.equal(frames, compose_reference(raw, *others)) and raw.grad.abs().sum() > 0
    with torch.no_grad():
        assert not compose(raw, *others).requires_grad


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.compose.default, inputs(b=1, h=2, w=3))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs()

    def step(raw, *others):
        return compose(raw * 1.0, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "compose_reference", lambda *arguments: "reference ran")
    assert compose(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 3, 5), r"raw has shape \[2, 3, 5\]; it should have 4 dimensions"),
        (0, torch.zeros(2, 3, 5, 271), r"raw has 271 channels; with 14 pictures it should have 68 for every frame"),
        (0, torch.zeros(2, 3, 5, 272).half(), r"raw is torch.float16; .* pass raw.float\(\)"),
        (1, torch.zeros(271), r"bias has 271 numbers; it should have 272, one for each channel of raw"),
        (2, torch.zeros(1, 3, 5, 13, 12), r"pictures has shape \[1, 3, 5, 13, 12\]; it should be \[2, 3, 5, 13, 12\]"),
        (3, torch.zeros(3, 4, 12), r"plate has shape \[3, 4, 12\]; it should be \[3, 5, 12\]"),
        (3, torch.zeros(3, 5, 12, device="meta"), r"plate is on meta; it should be on cpu"),
        (4, 1 / 14, r"smallest_share is 0.07.*\[0, 1 / 14\)"),
        (5, -1.0, r"smallest_correction -1.0; .* at least 0"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        compose(*arguments)
