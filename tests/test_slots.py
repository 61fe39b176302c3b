"""Rows of nested tensors: views, refilling and moving."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldenv.slots import Slots


@dataclass
class Inner(Slots):
    cache: Tensor


@dataclass
class Outer(Slots):
    number: Tensor
    inner: Inner


def make(*numbers):
    number = torch.tensor(numbers)
    return Outer(number, Inner(number[:, None].expand(-1, 3).float().clone()))


def contents(slots):
    assert torch.equal(slots.inner.cache, slots.number[:, None].expand(-1, 3).float())
    return slots.number.tolist()


def test_slice_is_a_view():
    slots = make(1, 2, 3, 4)
    part = slots[1:3]
    assert len(part) == 2 and contents(part) == [2, 3]
    part.number.add_(10)
    part.inner.cache.add_(10)
    assert contents(slots) == [1, 12, 13, 4]


def test_rows_are_put_and_moved_together():
    slots = make(1, 2, 3, 4)
    slots.put(torch.tensor([3, 0]), make(7, 8))
    assert contents(slots) == [8, 2, 3, 7]
    slots.move(torch.tensor([3]), torch.tensor([1]))
    assert contents(slots) == [8, 7, 3, 7]
    slots.move(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    assert contents(slots) == [8, 7, 3, 7]


def test_room_has_the_shapes_and_dtypes_and_counts_its_bytes():
    room = make(1, 2).empty(5)
    assert room.number.shape == (5,) and room.inner.cache.shape == (5, 3)
    assert room.number.dtype == torch.int64 and room.inner.cache.dtype == torch.float32
    assert room.bytes_each() == 8 + 12
