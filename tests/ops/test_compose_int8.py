import pytest
import torch

import worldenv.ops.compose_int8 as module
from worldenv import ops
from worldenv.ops.compose import compose
from worldenv.ops.compose_int8 import compose_int8, compose_int8_reference
from worldenv.ops.packed import Packed, pack

STEP, ZERO = 0.03, 9
AFFINE = torch.zeros(2, 272)
APART = {torch.float32: 2e-2}  # of pictures in [-1, 1]: where silu lies half-way, a level may be the next one


def inputs(b=2, h=3, w=5, k=4, pictures=13, channels=40, share=0.05, correction=0.02, seed=0):
    draw = torch.Generator().manual_seed(seed)
    n = (4 + pictures) * k * 4
    x = 2 * torch.randn(b, h, w, channels, generator=draw)
    levels = torch.randint(-127, 128, (n, channels), generator=draw, dtype=torch.int8)
    scale = torch.full((n,), 0.004)
    scale[: 3 * k * 4] = 1e-4  # corrections are small
    packed = pack(levels, STEP * scale, -STEP * scale * ZERO * levels.sum(1))
    known = torch.randint(256, (b, h, w, pictures, 12), generator=draw, dtype=torch.uint8)
    plate = torch.rand(h, w, 12, generator=draw) * 2 - 1
    return x, packed, STEP, ZERO, torch.randn(n, generator=draw) * 0.05, known, plate, share, correction


def reference(x, packed, *others):
    return compose_int8_reference(x, *packed, *others)


def assert_same(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.numel():
        error = (actual - expected).abs()
        assert error.max() < 20 * APART[expected.dtype] and error.mean() < APART[expected.dtype] / 20


@pytest.mark.parametrize("share", [0.0, 0.05])
@pytest.mark.parametrize("k", [1, 3, 4, 5])
@pytest.mark.parametrize(("b", "h", "w", "channels"), [(0, 4, 4, 8), (1, 1, 1, 4), (3, 7, 17, 12), (2, 32, 32, 40)])
def test_compiled_face_equals_the_reference(b, h, w, channels, k, share):
    arguments = inputs(b, h, w, k, channels=channels, share=share)
    assert_same(compose_int8(*arguments), reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(h=6, w=9, k=3)
    assert_same(at_level(level, "compose_int8", *arguments), reference(*arguments))


@pytest.mark.parametrize("face", [compose_int8, reference])
def test_it_is_compose_of_the_linear_layer(face):
    x, packed, step, zero, bias, pictures, plate, *cut = inputs()
    weight = packed.weights[:, 0].permute(0, 2, 1, 3).reshape(-1, 40).float() * packed.affine[0][:, None] / STEP
    raw = torch.nn.functional.silu(x) @ weight[: len(bias)].T
    expected = compose(raw, bias, pictures, plate, *cut)
    assert (face(x, packed, step, zero, bias, pictures, plate, *cut) - expected).abs().mean() < 0.03


@pytest.mark.parametrize("face", [compose_int8, reference])
def test_a_number_that_is_not_finite_spoils_no_other_cell(face):
    arguments = inputs()
    clean = face(*arguments)
    arguments[0][1, 2, 3, 7] = float("nan")
    found = face(*arguments)
    found[1, 2, 3] = clean[1, 2, 3]
    assert torch.equal(found, clean)


def test_operator_passes_opcheck():
    x, packed, *others = inputs()
    torch.library.opcheck(torch.ops.worldenv.compose_int8.default, (x, *packed, *others))


def test_operator_is_traced_without_a_graph_break():
    x, *others = inputs()

    def step(x):
        return compose_int8(x * 1.0, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), step(x))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "compose_int8_reference", lambda *arguments: "reference ran")
    assert compose_int8(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 3, 5, 42), r"x has shape \[2, 3, 5, 42\]; it should be \[B, h, w, C\], C a multiple of 4"),
        (0, torch.zeros(2, 3, 5, 40).double(), r"x is torch.float64; .* pass x.float\(\)"),
        (1, Packed(torch.zeros(17, 1, 9, 16, 4, dtype=torch.int8), AFFINE), "layer has weights torch.int8 .17, 1, 9"),
        (1, Packed(torch.zeros(17, 1, 10, 16, 4), AFFINE), "layer has weights torch.float32"),
        (2, 0.0, "step is 0.0 and zero 9"),
        (4, torch.zeros(271), r"bias has shape \[271\]; it should have 68 numbers for every frame"),
        (5, torch.zeros(2, 3, 5, 13, 12), "pictures is torch.float32"),
        (6, torch.zeros(3, 4, 12), r"plate has shape \[3, 4, 12\]; it should be \[3, 5, 12\]"),
        (7, 0.5, "smallest_share is 0.5"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        compose_int8(*arguments)
