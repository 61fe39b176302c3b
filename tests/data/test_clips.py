import pytest
import torch

from worldenv.data.clips import Clips


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(5, 0), tiny.trajectory(9, 1), tiny.trajectory(1, 2)])


def test_shorter_clips_are_padded_with_their_end(clips):
    assert len(clips) == 3 and clips.length.tolist() == [5, 9, 1] and clips.frames.shape == (3, 10, 16, 16, 3)
    assert clips.frames[:, :, 0, 0, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 5, 5, 5, 5],
        [40, 41, 42, 43, 44, 45, 46, 47, 48, 49],
        [80, 81, 81, 81, 81, 81, 81, 81, 81, 81],
    ]
    torch.testing.assert_close(clips.proprio[0, :, 3] * 1000, torch.tensor([0.0, 1, 2, 3, 4, 5, 5, 5, 5, 5]))
    assert not clips.actions[0, 5:].any() and clips.actions[1, 8, 0].item() == pytest.approx(0.048)


def test_success_belongs_to_the_frame_that_shows_it(clips):
    assert clips.success[0].tolist() == [False, False, False, False, True, True, True, True, True, True]
    assert clips.success[2].tolist() == [False] + [True] * 9  # one step, a success


def test_chunks_repeat_the_last_action_at_the_end(clips):
    chunk = clips.action_chunks(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 3, 7, 0]), 4)
    assert chunk.shape == (4, 4, 7)
    expected = torch.tensor([[0.0, 1, 2, 3], [3, 4, 4, 4], [47, 48, 48, 48], [80, 80, 80, 80]])
    torch.testing.assert_close(chunk[..., 2] * 1000, expected)


def test_clips_of_nothing_or_of_several_picture_sizes_are_refused(tiny):
    with pytest.raises(ValueError, match="at least one, with pictures of one size"):
        Clips.of([])
    with pytest.raises(ValueError, match=r"sizes are \[\(8, 8, 3\), \(16, 16, 3\)\]"):
        Clips.of([tiny.trajectory(3, size=16), tiny.trajectory(3, size=8)])


def test_instruction_outside_the_vocabulary_is_named(tiny):
    from dataclasses import replace

    with pytest.raises(ValueError, match="instruction 'fold laundry' should have"):
        Clips.of([replace(tiny.trajectory(3), instruction="fold laundry")])
