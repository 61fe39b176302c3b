"""Parts cover everything once, in order, whatever the threads."""

import threading

import pytest
import torch

from worldenv.rollout.parallel import in_parts


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 7, 64])
@pytest.mark.parametrize("size", [1, 5, 64, 1000])
@pytest.mark.parametrize("available", [1, 2, 3])
def test_parts_cover_the_range_once_and_in_order(threads, count, size, available):
    threads(available)
    parts = in_parts(lambda part: part, count, size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert all(0 < part.stop - part.start <= size for part in parts)
    assert count < available or len(parts) >= available


def test_one_after_the_other_only_the_last_part_is_short(threads):
    threads(1)
    for device in ("cpu", "cuda"):
        parts = in_parts(lambda part: part, 100, 64, torch.device(device))
        assert parts == [slice(0, 64), slice(64, 100)]  # equal ones of 50 would have buckets of 64 that overlap


def test_every_part_has_one_thread_of_torch_and_afterwards_all_are_back(threads):
    threads(2)
    inside = in_parts(lambda part: (torch.get_num_threads(), threading.get_ident()), 8, 2)
    assert {number for number, _ in inside} == {1} and torch.get_num_threads() == 2
    assert threading.get_ident() not in {ident for _, ident in inside}


def test_an_error_in_a_part_is_raised_and_the_threads_come_back(threads):
    threads(2)

    def work(part):
        raise RuntimeError(f"part {part.start}")

    with pytest.raises(RuntimeError, match="part 0"):
        in_parts(work, 4, 1)
    assert torch.get_num_threads() == 2
