"""Starts and the table of their instructions."""

import torch

from worldenv.interfaces.observation import Observation, Starts, table_of


def test_table_has_every_instruction_once_in_alphabetical_order_and_each_episodes_row():
    texts, row = table_of(["push it", "lift it", "push it", "drop it"])
    assert texts == ("drop it", "lift it", "push it") and row.tolist() == [2, 1, 2, 0] and row.dtype == torch.int64
    assert [texts[i] for i in row] == ["push it", "lift it", "push it", "drop it"]


def test_table_does_not_depend_on_the_order_of_the_episodes():
    assert table_of(["b", "a", "b"])[0] == table_of(["a", "b"])[0]


def test_table_of_nothing_is_empty():
    texts, row = table_of([])
    assert texts == () and row.shape == (0,) and row.dtype == torch.int64


def test_picked_starts_stay_together_and_keep_the_table(tiny):
    starts, index = tiny.starts(4), torch.tensor([3, 0, 3])
    picked = starts.pick(index)
    assert isinstance(picked, Starts) and len(picked) == 3 and picked.texts is starts.texts
    for name in ("frames", "proprio", "camera", "text"):
        assert torch.equal(getattr(picked.seen, name), getattr(starts.seen, name)[index])
    assert picked.instructions == [starts.instructions[i] for i in index]


def test_instructions_are_looked_up_in_the_table(tiny):
    starts = tiny.starts(5)
    assert starts.instructions == [starts.texts[row] for row in starts.seen.text] and len(set(starts.instructions)) == 3


def test_starts_without_a_calibrated_camera_are_picked_and_moved_all_the_same(tiny):
    starts = tiny.starts(3)
    starts.seen.camera = None
    moved = starts.pick(torch.tensor([1])).to("meta")
    assert moved.seen.camera is None and moved.device == torch.device("meta") and len(moved) == 1
    assert starts.device == torch.device("cpu")


def test_slice_of_an_observation_is_a_view(tiny):
    seen = tiny.starts(3).seen
    part = seen[1:]
    part.frames.fill_(7)
    assert isinstance(part, Observation) and len(part) == 2 and (seen.frames[1:] == 7).all()


def test_rows_of_the_table_are_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        assert table_of(["a", "b"])[1].tolist() == [0, 1]
