import pytest
import torch

from worldenv.nn.encoder import Patches, SpatialSoftmax, VisionLanguageEncoder
from worldenv.nn.instruction import tokenize


def test_patches_are_those_of_torch_and_pass_a_gradient():
    frames = torch.rand(2, 6, 4, 3).requires_grad_()
    out = Patches()(frames)
    assert torch.equal(out, torch.nn.functional.pixel_unshuffle(frames.permute(0, 3, 1, 2), 2))
    out.sum().backward()
    assert torch.equal(frames.grad, torch.ones_like(frames))


def test_spatial_softmax_finds_where_each_channel_peaks():
    features = torch.zeros(1, 2, 5, 9)
    features[0, 0, 4, 0], features[0, 1, 2, 8] = 50.0, 50.0
    x0, x1, y0, y1, peak0, peak1 = SpatialSoftmax()(features)[0].tolist()
    assert (x0, y0, x1, y1) == pytest.approx((-1, 1, 1, 0), abs=1e-4) and peak0 == pytest.approx(50) == peak1


def test_flat_channel_looks_at_the_middle():
    assert SpatialSoftmax()(torch.zeros(1, 1, 4, 7))[0, :2].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_features_depend_on_the_frame_and_the_instruction_of_their_own_row(tiny):
    torch.manual_seed(0)
    encoder, starts = VisionLanguageEncoder(width=32, channels=16, blocks=1).eval(), tiny.starts(3)
    frames, tokens = starts.seen.frames[:, 0], tokenize(starts.instructions)
    together = encoder(frames, tokens)
    assert together.shape == (3, 32)
    torch.testing.assert_close(encoder(frames[1:2], tokens[1:2]), together[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(frames[:1], tokens[1:2]), together[:1], atol=1e-4)
    assert not torch.allclose(encoder(frames[1:2], tokens[:1]), together[:1], atol=1e-4)
