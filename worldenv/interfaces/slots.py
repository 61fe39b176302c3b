"""Tensors that belong to episodes, a row each: allocated once, seen in slices, refilled in place."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Self

import torch
from torch import Tensor


def words(rows: Tensor, leading: int = 1) -> Tensor:  # [..., n / 8] int64
    """The same memory, where it is bytes, as words of 8: torch indexes number by number, so single bytes cost 4 times.

    The first `leading` dimensions stay. What is no bytes, has gaps, or rows of no whole words, comes back as it is.
    """
    if rows.dtype != torch.uint8 or rows.shape[leading:].numel() % 8 or not rows.is_contiguous():
        return rows
    return rows.flatten(leading).view(torch.int64)


class Slots:
    """What dataclasses inherit whose fields are tensors [E, ...], such dataclasses or None: row e belongs to slot e."""

    def tensors(self) -> Iterator[Tensor]:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                yield from value.tensors() if isinstance(value, Slots) else [value]

    def each(self, function) -> Self:
        """The same with every tensor replaced by function(tensor)."""
        values = (getattr(self, field.name) for field in fields(self))
        return type(self)(
            *(v.each(function) if isinstance(v, Slots) else v if v is None else function(v) for v in values)
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = (torch.cat(same) for same in zip(*(part.tensors() for part in parts), strict=True))
        return parts[0].each(lambda _: next(columns))

    def __len__(self) -> int:
        return len(next(self.tensors()))

    def __getitem__(self, slots: slice) -> Self:
        """A view of some slots: what is written there is written here."""
        return self.each(lambda tensor: tensor[slots])

    def empty(self, capacity: int) -> Self:
        """Unwritten room for `capacity` rows like these."""
        return self.each(lambda tensor: tensor.new_empty(capacity, *tensor.shape[1:]))

    def takes(self, rows: Self) -> bool:
        """Whether such rows can be put here: the same fields, shapes, dtypes and device."""
        mine, new = ([(t.shape[1:], t.dtype, t.device) for t in some.tensors()] for some in (self, rows))
        return mine == new

    def put(self, slots: Tensor, rows: Self) -> None:
        """Write rows[i] to slot slots[i]."""
        for mine, new in zip(self.tensors(), rows.tensors(), strict=True):
            words(mine)[slots] = words(new.contiguous())

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slot source[i] to slot target[i]."""
        for tensor in self.tensors():
            words(tensor)[target] = words(tensor)[source]

    def bytes_each(self) -> int:
        """Bytes of one slot."""
        return sum(tensor[:1].numel() * tensor.element_size() for tensor in self.tensors())
