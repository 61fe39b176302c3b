import pytest
import torch

import worldenv.ops.encoder_int8 as module
from worldenv import ops
from worldenv.nn.encoder import GROUPS, VisionLanguageEncoder
from worldenv.nn.int8 import in_int8, measured
from worldenv.ops.encoder_int8 import encoder_int8
from worldenv.ops.packed import Layer, pack


def layer(draw, inputs, outputs, window, low=-0.3, high=5.0):
    step, zero = (high - low) / 255, round(-low * 255 / (high - low))
    levels = torch.randint(-127, 128, (outputs, inputs, window, window), generator=draw).to(torch.int8)
    factor = torch.full((outputs,), step / (64 * window * inputs**0.5))
    summand = torch.randn(outputs, generator=draw) / 4 - zero * factor * levels.flatten(1).sum(1)
    return Layer(pack(levels, factor, summand), step, zero)


def inputs(b=3, h=16, w=24, inner=12, c=24, blocks=2, groups=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (b, h, w, 3), generator=draw, dtype=torch.uint8)
    stem = layer(draw, 12, inner, 3, -1.0, 1.0), layer(draw, inner, c, 3, 0.0)
    pairs = [(layer(draw, c, c, 3, 0.0), layer(draw, c, c, 3, 0.0)) for _ in range(blocks)]
    norms = [(1 + torch.randn(c, generator=draw) / 4, torch.randn(c, generator=draw) / 4) for _ in range(blocks)]
    conditions = [torch.randn(b, 2 * c, generator=draw) / 4 for _ in range(blocks)]
    return frames, stem, pairs, norms, conditions, layer(draw, c, c, 1, 0.0), inner, c, groups


def by_reference(*arguments):
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        return encoder_int8(*arguments)
    finally:
        ops.BACKEND = before


def assert_same(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.numel():
        error = (actual - expected).abs() / expected.std()
        assert error.mean() < 1e-3 and error.max() < 0.1  # a level may be the next one


@pytest.mark.parametrize(
    "given",
    [
        {"b": 0},
        {},
        {"b": 1, "h": 8, "w": 8, "c": 4, "inner": 4, "groups": 2, "blocks": 1},
        {"blocks": 0},
        {"h": 64, "w": 64, "inner": 32, "c": 64},
        {"h": 64, "w": 32, "inner": 32, "c": 40, "blocks": 3},
    ],
    ids=str,
)
def test_compiled_face_equals_the_reference(given):
    arguments = inputs(**given)
    assert_same(encoder_int8(*arguments), by_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(b=2, c=40)
    assert_same(at_level(level, "encoder_int8", *arguments), by_reference(*arguments))


@torch.no_grad()
@pytest.mark.parametrize("face", ["compiled", "reference"])
def test_it_is_the_encoder_in_floats_but_for_rounding(face, monkeypatch):
    torch.manual_seed(0)
    encoder = VisionLanguageEncoder(32, channels=16, context=8).eval()
    frames, tokens = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.long)
    with measured(encoder) as ranges:
        expected = encoder(frames, tokens)
    monkeypatch.setattr(ops, "BACKEND", "reference" if face == "reference" else "")
    asked = []
    monkeypatch.setattr("worldenv.nn.encoder.encoder_int8", lambda *given: asked.append(given) or encoder_int8(*given))
    actual = in_int8(encoder, ranges)(frames, tokens)
    assert len(asked) == 1 and asked[0][-1] == GROUPS
    assert 0 < (actual - expected).abs().mean() < 0.03 * expected.std()


@torch.no_grad()
def test_frames_in_floats_are_rounded_layer_by_layer():
    torch.manual_seed(0)
    encoder = VisionLanguageEncoder(32, channels=16, context=8).eval()
    frames, tokens = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.long)
    with measured(encoder) as ranges:
        expected = encoder(frames, tokens)
    actual = in_int8(encoder, ranges)(frames / 127.5 - 1, tokens)
    assert 0 < (actual - expected).abs().mean() < 0.03 * expected.std()


def test_frame_gives_the_same_alone_and_in_a_batch():
    frames, stem, pairs, norms, conditions, *others = inputs(b=9)
    together = encoder_int8(frames, stem, pairs, norms, conditions, *others)
    alone = encoder_int8(frames[4:5], stem, pairs, norms, [c[4:5] for c in conditions], *others)
    assert torch.equal(alone[0], together[4])


def test_operator_passes_opcheck():
    frames, stem, pairs, norms, conditions, look, *others = inputs(b=1, blocks=1)
    packed, steps, zeros = zip(*stem, *pairs[0], look, strict=True)
    weights, affines = zip(*packed, strict=True)
    given = (frames, list(weights), list(affines), list(steps), list(zeros), list(norms[0]), conditions, *others, 1e-5)
    torch.library.opcheck(torch.ops.worldenv.encoder_int8.default, given)


def test_operator_is_traced_without_a_graph_break():
    frames, stem, pairs, norms, conditions, *others = inputs()

    def step(conditions):
        return encoder_int8(frames, stem, pairs, norms, [c * 1.0 for c in conditions], *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(conditions), step(conditions))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "encoder_int8_reference", lambda *arguments: "reference")
    assert encoder_int8(*inputs()) == "reference"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 16, 24, 3), r"frames are torch.float32 \[3, 16, 24, 3\]; they should be uint8"),
        (0, torch.zeros(3, 16, 22, 3).byte(), r"frames have shape \[3, 16, 22, 3\]; H and W should be multiples of 4"),
        (0, torch.zeros(3, 4, 24, 3).byte(), r"frames have shape \[3, 4, 24, 3\]; H and W should be multiples of 4 ab"),
        (0, torch.zeros(2, 16, 24, 3).byte(), r"conditions\[0\] has shape \[3, 48\]; it should be \[2, 48\]"),
        (0, torch.zeros(3, 16, 24, 3, device="meta").byte(), "frames are on meta; they should be on cpu, as the la"),
        (2, [], r"blocks, norms and conditions are 0, 2 and 2; they should be as many"),
        (3, [(torch.zeros(24), torch.zeros(23))] * 2, r"norms\[0\]\[1\] has shape \[23\]; it should be \[24\]"),
        (4, [torch.zeros(3, 48).double()] * 2, r"conditions\[0\] is torch.float64; .* pass conditions\[0\].float\(\)"),
        (5, layer(torch.Generator(), 24, 24, 3), r"layer 6 has weights torch.int8 \[2, 3, 18, 16, 4\]; wanted: t"),
        (5, layer(torch.Generator(), 24, 24, 1)._replace(zero=256), "zero 256; they should be positive and in"),
        (6, 16, r"layer 0 has weights torch.int8 \[1, 3, 9, 16, 4\]|layer 1 has weights"),
        (8, 7, "groups is 7; it and 4 should divide the 24 channels, 4 the 12"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        encoder_int8(*arguments)
