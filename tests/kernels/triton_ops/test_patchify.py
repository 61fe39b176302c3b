import pytest
import torch

from worldenv.kernels.patchify import patchify
from worldenv.ops.patchify import patchify_reference


@pytest.mark.parametrize(
    ("b", "n", "height", "width"), [(1, 1, 2, 2), (3, 3, 6, 10), (2, 1, 34, 46), (1, 5, 30, 22), (2, 2, 2, 126)]
)
def test_face_equals_the_reference(draw, dtype, b, n, height, width):
    frames = draw(b, n, height, width, 3, dtype=dtype)
    assert torch.equal(patchify(frames), patchify_reference(frames))
    pixels = (frames.float() * 50 + 128).clamp(0, 254).to(torch.uint8)  # 255 is what is not written
    assert torch.equal(patchify(pixels), patchify_reference(pixels))


def test_strided_frames_are_read_right(draw):
    frames = draw(4, 3, 6, 8, 3)[::2, 1:]
    assert torch.equal(patchify(frames), patchify_reference(frames))


def test_no_frame_gives_no_patch(draw):
    assert patchify(draw(0, 2, 4, 6, 3)).shape == (0, 2, 3, 2, 12)
    assert patchify(draw(2, 0, 4, 6, 3)).shape == (2, 2, 3, 0, 12)
