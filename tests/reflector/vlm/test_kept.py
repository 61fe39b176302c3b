"""Of any number of frames, a spread sample is kept in fixed room, though each frame is seen once."""

import pytest
import torch

from worldenv.reflector.vlm.kept import frames, keep, places


@pytest.mark.parametrize("room", [4, 5, 8, 32])
def test_kept_frames_are_those_that_are_promised(room):
    kept, rows = torch.zeros(3, room), torch.tensor([2, 0])
    kept[rows, 0] = 100.0  # frame 0 is put there when the episode begins
    for count in range(1, 5 * room):
        assert kept[0, places(count, room)].tolist() == [100.0 + i for i in frames(count, room)]
        keep(kept, rows, count, torch.tensor([100.0 + count] * 2))
    assert kept[1].eq(0).all() and kept[0].equal(kept[2])


@pytest.mark.parametrize("room", [4, 7, 32])
def test_sample_has_first_and_last_is_even_and_fills_at_least_half_the_room(room):
    for count in range(1, 6 * room):
        chosen = frames(count, room)
        gaps = [b - a for a, b in zip(chosen, chosen[1:], strict=False)]
        assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) <= room
        assert len(set(gaps[:-1])) <= 1 and (not gaps or 0 < gaps[-1] <= max(gaps))
        assert len(chosen) >= min(count, room // 2)


def test_short_episodes_are_kept_whole():
    assert frames(31, 32) == list(range(31)) and frames(1, 32) == [0]
