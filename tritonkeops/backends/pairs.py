"""Which pairs of a call count, as kernels see them: rows i are those of the result, rows j those that are reduced.

Tables are tensors of integers on the device of the data, made once and kept with the pairs that they describe: a table
that a kernel may still read is never replaced, whatever other threads do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(eq=False)
class Ranges:
    """Blocks of rows i that together hold each row once, (blocks, 2), from one row to another; the spans of rows j that
    count for them, (spans, 2); and which spans are whose, (blocks, 2), from one number to another."""

    blocks: Tensor
    owned: Tensor
    spans: Tensor
    pattern: ClassVar[str] = "ranges"
    _tiles: dict[int, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def count(self) -> int:
        """How many pairs count."""
        before = starts(self.spans[:, 1] - self.spans[:, 0])
        columns = before[self.owned[:, 1]] - before[self.owned[:, 0]]
        return int((columns * (self.blocks[:, 1] - self.blocks[:, 0])).sum())

    def tiles(self, height: int) -> Tensor:
        """Tiles of at most `height` rows i of one block: (tiles, 4), the first row, the number of rows, and which spans
        from one number to another."""
        known = self._tiles.get(height)
        return known if known is not None else self._tiles.setdefault(height, self._make_tiles(height))

    def _make_tiles(self, height: int) -> Tensor:
        start, stop = self.blocks.unbind(1)
        number = (stop - start + height - 1) // height
        block = owners(number)
        first = start[block] + height * _places(number, block)
        rows = (stop[block] - first).clamp(max=height)
        return torch.stack([first, rows, *self.owned[block].unbind(1)], 1).contiguous()

    def lists(self, begin: int, end: int) -> Lists:
        """What rows i from `begin` to `end` count."""
        tile = self.tiles(1)[begin:end]
        number = tile[:, 3] - tile[:, 2]
        row = owners(number)
        spans = self.spans[tile[row, 2] + _places(number, row)]
        lengths = spans[:, 1] - spans[:, 0]
        span = owners(lengths)
        columns = spans[span, 0] + _places(lengths, span)
        return Lists(starts(torch.zeros_like(number).index_add(0, row, lengths)), columns)


@dataclass(eq=False)
class Band:
    """Pairs with low <= j - i <= high, among `rows` i and `columns` j."""

    low: int
    high: int
    rows: int
    columns: int
    pattern: ClassVar[str] = "band"

    @cached_property
    def count(self) -> int:
        """How many pairs count."""
        first, stop = self._bounds(0, self.rows)
        return int((stop - first).sum())

    def lists(self, begin: int, end: int) -> Lists:
        """What rows i from `begin` to `end` count."""
        first, stop = self._bounds(begin, end)
        row = owners(stop - first)
        return Lists(starts(stop - first), first[row] + _places(stop - first, row))

    def _bounds(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        row = torch.arange(begin, end)
        first = (row + self.low).clamp(0, self.columns)
        return first, torch.maximum(first, (row + self.high + 1).clamp(0, self.columns))


@dataclass(eq=False)
class Lists:
    """Rows j that are listed for each row i: row i has places start[i] to start[i + 1] of `columns`."""

    start: Tensor
    columns: Tensor
    pattern: ClassVar[str] = "lists"
    _columns: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def count(self) -> int:
        """How many pairs count."""
        return len(self.columns)

    def columns_as(self, dtype: torch.dtype) -> Tensor:
        """The rows j in another type of integer."""
        known = self._columns.get(dtype)
        return known if known is not None else self._columns.setdefault(dtype, self.columns.to(dtype))

    def to(self, device: torch.device) -> Lists:
        """The same lists on a device."""
        return Lists(self.start.to(device), self.columns.to(device))

    def lists(self, begin: int, end: int) -> Lists:
        """What rows i from `begin` to `end` count."""
        start = self.start[begin : end + 1]
        return Lists(start - start[0], self.columns[start[0] : start[-1]])


Pairs = Ranges | Band | Lists


def starts(lengths: Tensor) -> Tensor:
    """Where things of given lengths start, one after the other, and where the last one ends."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def owners(lengths: Tensor) -> Tensor:
    """For each of the owners' things, laid out one after the other, whose it is."""
    # Not repeat_interleave: it wakes torch's threads even for a few numbers, and they disturb the kernel that follows.
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.bincount(ends, minlength=total + 1)[:total].cumsum(0)


def _places(lengths: Tensor, owner: Tensor) -> Tensor:
    """For each of the owners' things, laid out one after the other, which one of its owner's it is."""
    return torch.arange(len(owner), device=owner.device) - starts(lengths)[owner]
