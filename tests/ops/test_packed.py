import pytest
import torch

from worldenv.ops.packed import multiply, pack


@pytest.mark.parametrize(("outputs", "inputs", "window"), [(40, 8, 3), (17, 4, 1), (16, 12, 3)])
def test_packed_weights_give_the_convolution(outputs, inputs, window):
    draw = torch.Generator().manual_seed(0)
    levels = torch.randint(-127, 128, (outputs, inputs, window, window), generator=draw, dtype=torch.int8)
    factor, summand = torch.rand(outputs, generator=draw), torch.randn(outputs, generator=draw)
    x = torch.randint(256, (2, 5, 6, inputs), generator=draw, dtype=torch.uint8)
    found = multiply(x, pack(levels, factor, summand), outputs, 0)
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).double(), levels.double(), padding=window // 2)
    expected = expected.permute(0, 2, 3, 1) * factor + summand
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-3)


def test_inputs_and_outputs_are_filled_up_with_zeros():
    packed = pack(torch.ones(3, 6, dtype=torch.int8), torch.ones(3), torch.ones(3))
    assert packed.weights.shape == (1, 1, 2, 16, 4) and packed.weights.sum() == 18
    assert packed.affine.shape == (2, 16) and packed.affine.sum() == 6
