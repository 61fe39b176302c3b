"""Rows of nested tensors: views, refilling and moving."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldenv.interfaces.slots import Slots, words


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


def test_parts_are_joined_in_order():
    parts = [make(1, 2), make(3), make(4, 5)]
    assert contents(Outer.joined(parts)) == [1, 2, 3, 4, 5]
    assert Outer.joined(parts[:1]) is parts[0]


def test_room_has_the_shapes_and_dtypes_and_counts_its_bytes():
    room = make(1, 2).empty(5)
    assert room.number.shape == (5,) and room.inner.cache.shape == (5, 3)
    assert room.number.dtype == torch.int64 and room.inner.cache.dtype == torch.float32
    assert room.bytes_each() == 8 + 12


def test_rows_can_be_put_only_where_fields_shapes_and_dtypes_are_theirs():
    slots = make(1, 2, 3)
    assert slots.takes(make(4)) and slots.takes(make(1, 2, 3, 4, 5))
    for name, other in (("cache", torch.zeros(1, 4)), ("cache", torch.zeros(1, 3).double()), ("cache", None)):
        rows = make(4)
        setattr(rows.inner, name, other)
        assert not slots.takes(rows)
    assert not slots.takes(make(4).each(lambda tensor: tensor.to("meta")))


def test_field_that_is_missing_is_missing_in_every_copy():
    slots = make(1, 2)
    slots.inner = None
    assert slots.empty(3).inner is None and slots[1:].inner is None and len(list(slots.tensors())) == 1


def test_bytes_are_seen_as_words_of_the_same_memory_and_all_else_as_it_is():
    frames = torch.zeros(3, 2, 4, 2, 3, dtype=torch.uint8)
    seen = words(frames, 2)
    assert seen.shape == (3, 2, 3) and seen.dtype == torch.int64
    seen[1, 1] = -1
    assert (frames[1, 1] == 255).all() and frames.sum() == 255 * 24
    for other in (frames[..., :1], frames.float(), torch.zeros(3, 7, dtype=torch.uint8)):
        assert words(other) is other
