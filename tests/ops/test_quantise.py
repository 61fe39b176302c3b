import pytest
import torch

import worldenv.ops.quantise as module
from worldenv import ops
from worldenv.ops.quantise import quantise, quantise_reference

FACES = pytest.mark.parametrize("face", [quantise, quantise_reference])


def inputs(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (1000,), (2, 5, 7), (3, 17, 4, 6)])
def test_compiled_face_equals_the_reference(shape):
    x = inputs(*shape)
    y = quantise(x, 0.037, 101)
    assert y.dtype == torch.uint8 and torch.equal(y, quantise_reference(x, 0.037, 101))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    x = torch.linspace(-9, 9, 1001)
    assert torch.equal(at_level(level, "quantise", x, 0.05, 90), quantise_reference(x, 0.05, 90))


@FACES
def test_levels_are_a_step_apart_and_clamped_at_their_ends(face):
    x = torch.tensor([0.0, 0.5, -0.5, 0.24, 0.26, 0.25, 0.75, 1e9, -1e9, float("inf"), -float("inf"), float("nan")])
    assert face(x, 0.5, 10).tolist() == [10, 11, 9, 10, 11, 10, 12, 255, 0, 255, 0, 10]


def test_images_come_out_channels_last():
    x = inputs(2, 5, 4, 6)
    y = quantise(x, 0.1, 128)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantise(x.to(memory_format=torch.channels_last), 0.1, 128), y)


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.quantise.default, (inputs(3, 7), 0.1, 3))


def test_operator_is_traced_without_a_graph_break():
    def step(x):
        return quantise(x * 2, 0.1, 3).int() + 1

    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(inputs(9)), step(inputs(9)))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "quantise_reference", lambda *arguments: "reference ran")
    assert quantise(inputs(3), 0.1, 0) == "reference ran"


@pytest.mark.parametrize(
    ("x", "step", "zero", "message"),
    [
        (torch.zeros(2).half(), 0.1, 0, r"x is torch.float16; .* pass x.float\(\)"),
        (torch.zeros(2), 0.0, 0, r"step is 0.0 and zero 0; they should be positive and in \[0, 255\]"),
        (torch.zeros(2), 0.1, 256, r"step is 0.1 and zero 256"),
    ],
)
def test_wrong_input_is_refused_by_name(x, step, zero, message):
    with pytest.raises(ValueError, match=message):
        quantise(x, step, zero)
