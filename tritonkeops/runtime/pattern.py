"""Patterns: which pairs (i, j) a reduction counts, if not all of them: a call's `ranges`, `mask` or `neighbors`.

A pattern is checked, and its tables made, once for each axis of reduction and each size; both are kept with it.
"""

from __future__ import annotations

import operator
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from tritonkeops.backends import pairs
from tritonkeops.backends.pairs import Pairs, owners, starts

_NARROW, _NARROW_ON_GPUS = 8, 64
"""Rows j of bands up to which they are listed: tiles, which are larger on GPUs, would hold many times more pairs."""
_RANGES = ("ranges_i", "slices_i", "redranges_j", "ranges_j", "slices_j", "redranges_i")


class Pattern(ABC):
    """Which pairs of rows i (of Vi) and j (of Vj) count, whichever of the two is reduced."""

    tensors: tuple[Tensor, ...] = ()

    def __init__(self) -> None:
        self._pairs: dict[tuple[object, ...], Pairs] = {}
        self._elsewhere: dict[torch.device, Pattern] = {}

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name that `pattern_of` knows it by."""

    @abstractmethod
    def form(self, device: torch.device) -> str:
        """Which kernels serve it on a device: one of tile.ir.PATTERNS."""

    @abstractmethod
    def _make(self, axis: int, rows: int, cols: int, device: torch.device) -> Pairs: ...

    def pairs(self, axis: int, rows: int, cols: int, device: torch.device) -> Pairs:
        """The pairs that count in a reduction over `axis` of `rows` results over `cols` each.

        Raises ValueError, TypeError for what does not fit, naming the argument.
        """
        for name, tensor in zip(self._names(), self.tensors, strict=True):
            if tensor.device != device:
                raise ValueError(f"{name} is on {tensor.device} and the variables are on {device}: expected one device")
        key = (axis, rows, cols, device)
        known = self._pairs.get(key)
        if known is None:
            if len(self._pairs) >= _MOST:
                self._pairs.clear()
            with torch.no_grad():
                known = self._pairs[key] = self._make(axis, rows, cols, device)
        return known

    def to(self, device: torch.device) -> Pattern:
        """The same pattern with its tensors on a device."""
        if all(tensor.device == device for tensor in self.tensors):
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = make(self.kind, [tensor.to(device) for tensor in self.tensors])
        return self._elsewhere[device]

    def _names(self) -> Sequence[str]:
        return ()


class Ranges(Pattern):
    """KeOps' block-sparse pattern (ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i).

    For reductions over j, cluster c has the rows i of ranges_i[c], from one to another, and counts the rows j of
    redranges_j[slices_i[c-1] : slices_i[c]]; rows i in no cluster count none. For reductions over i likewise the last
    three.
    """

    kind = "ranges"

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors = tuple(tensors)
        for n, (name, tensor) in enumerate(zip(_RANGES, tensors, strict=True)):
            _check_integers(name, tensor)
            if n % 3 == 1 and tensor.ndim != 1:
                raise ValueError(f"{name}: expected shape (clusters,), got {tuple(tensor.shape)}")
            if n % 3 != 1 and (tensor.ndim != 2 or tensor.shape[1] != 2):
                raise ValueError(f"{name}: expected shape (..., 2), got {tuple(tensor.shape)}")
        for n in (0, 3):
            if len(tensors[n + 1]) != len(tensors[n]):
                raise ValueError(
                    f"{_RANGES[n + 1]}: expected one number for each of the {len(tensors[n])} rows of {_RANGES[n]}, "
                    f"got {len(tensors[n + 1])}"
                )

    def form(self, device: torch.device) -> str:
        """See Pattern."""
        return "ranges"

    def _names(self) -> Sequence[str]:
        return _RANGES

    def _make(self, axis: int, rows: int, cols: int, device: torch.device) -> pairs.Ranges:
        first = 0 if axis == 1 else 3
        names = _RANGES[first : first + 3]
        blocks, slices, spans = (tensor.long().contiguous() for tensor in self.tensors[first : first + 3])
        _check_ranges(names[0], blocks, rows)
        _check_ranges(names[2], spans, cols)
        _check_slices(names[1], slices, len(spans), names[2])
        owned = torch.stack([torch.cat([slices.new_zeros(1), slices])[:-1], slices], 1)
        spans = _sorted_spans(spans, slices)
        order = blocks[:, 0].argsort(stable=True)
        order = order[blocks[order, 0] < blocks[order, 1]]
        blocks, owned = blocks[order], owned[order]
        _check_apart(names[0], blocks, order)
        return pairs.Ranges(*_with_gaps(blocks, owned, rows), spans.contiguous())


def _check_integers(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one with layout {tensor.layout}")


def _first(wrong: Tensor) -> int | None:
    """The first row where something is wrong."""
    return int(wrong.nonzero()[0, 0]) if wrong.any() else None


def _check_ranges(name: str, ranges: Tensor, length: int) -> None:
    start, stop = ranges.unbind(1)
    row = _first((start < 0) | (start > stop) | (stop > length))
    if row is not None:
        raise ValueError(
            f"{name}[{row}]: expected 0 <= start <= end <= {length}, got [{int(start[row])}, {int(stop[row])}]"
        )


def _check_slices(name: str, slices: Tensor, length: int, what: str) -> None:
    before = torch.cat([slices.new_zeros(1), slices])[:-1]
    row = _first((slices < before) | (slices > length))
    if row is not None:
        raise ValueError(
            f"{name}[{row}]: expected a number from {int(before[row])}, the one before, to {length}, the rows of "
            f"{what}, got {int(slices[row])}"
        )


def _check_apart(name: str, blocks: Tensor, order: Tensor) -> None:
    """Blocks in the order of their first rows may not overlap."""
    at = _first(blocks[1:, 0] < blocks[:-1, 1])
    if at is not None:
        a, b = (f"{name}[{int(order[n])}] = {blocks[n].tolist()}" for n in (at, at + 1))
        raise ValueError(f"{a} and {b} overlap: expected each row in one cluster at most")


def _sorted_spans(spans: Tensor, slices: Tensor) -> Tensor:
    """The spans of each cluster in the order of their first rows: of equal values, the lowest row is to win."""
    owner = owners(slices.diff(prepend=slices.new_zeros(1)))
    order = spans[: len(owner), 0].argsort(stable=True)
    return spans[order[owner[order].argsort(stable=True)]]


def _with_gaps(blocks: Tensor, owned: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Blocks, in order, and the rows between them, which count nothing."""
    ends = torch.cat([blocks.new_zeros(1), blocks[:, 1]])
    begins = torch.cat([blocks[:, 0], blocks.new_full((1,), rows)])
    gaps = torch.stack([ends, begins], 1)[begins > ends]
    blocks, owned = torch.cat([blocks, gaps]), torch.cat([owned, torch.zeros_like(gaps)])
    order = blocks[:, 0].argsort()
    return blocks[order], owned[order]


class Band(Pattern):
    """Pairs with low <= j - i <= high; None for no bound."""

    def __init__(self, low: SupportsIndex | None, high: SupportsIndex | None) -> None:
        super().__init__()
        self.low, self.high = (None if x is None else operator.index(x) for x in (low, high))

    @property
    def kind(self) -> str:
        """See Pattern."""
        return f"band:{'' if self.low is None else self.low}:{'' if self.high is None else self.high}"

    def form(self, device: torch.device) -> str:
        """See Pattern."""
        most = _NARROW if device.type == "cpu" else _NARROW_ON_GPUS
        narrow = self.low is not None and self.high is not None and self.high - self.low < most
        return "lists" if narrow else "band"

    def _make(self, axis: int, rows: int, cols: int, device: torch.device) -> Pairs:
        low, high = (self.low, self.high) if axis == 1 else (_negative(self.high), _negative(self.low))
        low = -rows if low is None else max(-rows, min(low, cols))
        high = cols if high is None else max(-rows - 1, min(high, cols))
        band = pairs.Band(low, high, rows, cols)
        return band.lists(0, rows).to(device) if self.form(device) == "lists" else band


def _negative(x: int | None) -> int | None:
    return None if x is None else -x


class Neighbors(Pattern):
    """Rows j listed for each row i, (M, k); -1 for none. A row that is listed twice counts twice."""

    kind = "neighbors"

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        _check_integers("neighbors", indices)
        if indices.ndim != 2:
            raise ValueError(f"neighbors: expected shape (M, k), got {tuple(indices.shape)}")
        self.tensors = (indices,)

    def form(self, device: torch.device) -> str:
        """See Pattern."""
        return "lists"

    def _names(self) -> Sequence[str]:
        return ("neighbors",)

    def _make(self, axis: int, rows: int, cols: int, device: torch.device) -> pairs.Lists:
        indices = self.tensors[0].long()
        number_i, number_j = (rows, cols) if axis == 1 else (cols, rows)
        if len(indices) != number_i:
            raise ValueError(f"neighbors: expected a row for each of the {number_i} rows i, got {len(indices)}")
        wrong = (indices < -1) | (indices >= number_j)
        row = _first(wrong)
        if row is not None:
            found = int(indices[row][wrong[row]][0])
            raise ValueError(f"neighbors[{row}]: expected -1 or rows j from 0 to {number_j - 1}, got {found}")
        return _by_row(indices) if axis == 1 else _by_column(indices, number_j)


def _by_row(indices: Tensor) -> pairs.Lists:
    """The lists, each in order: of equal values, the lowest row is to win."""
    ordered = indices.sort(1).values
    there = ordered >= 0
    return pairs.Lists(starts(there.sum(1)), ordered[there])


def _by_column(indices: Tensor, columns: int) -> pairs.Lists:
    """For each row j the rows i that list it."""
    row, place = (indices >= 0).nonzero(as_tuple=True)
    listed = indices[row, place]
    return pairs.Lists(starts(torch.bincount(listed, minlength=columns)), row[listed.argsort(stable=True)])


# By a call's arguments ------------------------------------------------------------------------------------------------

_MASKS = {"i<j": "band:1:", "i<=j": "band:0:", "i>j": "band::-1", "i>=j": "band::0"}
_BAND = re.compile(r"\|(i-j|j-i)\|<=(\d+)$")


def kind_of_call(
    ranges: Sequence[Tensor] | None, mask: str | None, neighbors: Tensor | None
) -> tuple[str, tuple[Tensor, ...]]:
    """The kind and the tensors of the pattern that a call's arguments say; ("", ()) for all pairs.

    Raises ValueError, TypeError. What the tensors hold is looked at later: they may be fake.
    """
    if ranges is None and mask is None and neighbors is None:
        return "", ()
    given = [name for name, x in (("ranges", ranges), ("mask", mask), ("neighbors", neighbors)) if x is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: expected at most one of ranges, mask and neighbors")
    if mask is not None:
        return _band(mask), ()
    if neighbors is not None:
        return "neighbors", (_tensor("neighbors", neighbors),)
    if not isinstance(ranges, (tuple, list)) or len(ranges) != 6:
        found = f"{len(ranges)} of them" if isinstance(ranges, (tuple, list)) else type(ranges).__name__
        raise ValueError(f"ranges: expected the six tensors ({', '.join(_RANGES)}), got {found}")
    return "ranges", tuple(_tensor(name, x) for name, x in zip(_RANGES, ranges, strict=True))


def _tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(x).__name__}")
    return x


def _band(mask: str) -> str:
    if not isinstance(mask, str):
        raise TypeError(f"mask: expected a condition on i and j such as 'i<=j', got {type(mask).__name__}")
    text = mask.replace(" ", "")
    band = _BAND.match(text)
    if band:
        return f"band:-{int(band[2])}:{int(band[2])}"
    if text not in _MASKS:
        raise ValueError(f"mask={mask!r}: expected one of {', '.join(map(repr, _MASKS))}, or a band such as '|i-j|<=5'")
    return _MASKS[text]


# By name --------------------------------------------------------------------------------------------------------------


def kind_of(pattern: Pattern | None) -> str:
    """The name of a pattern's kind, with a band's bounds: "", "ranges", "neighbors" or "band:LOW:HIGH"."""
    return pattern.kind if pattern else ""


def make(kind: str, tensors: Sequence[Tensor]) -> Pattern:
    """A pattern from its kind and tensors."""
    if kind == "ranges":
        return Ranges(tensors)
    if kind == "neighbors":
        return Neighbors(*tensors)
    word, *bounds = kind.split(":")
    if word != "band" or len(bounds) != 2:
        raise ValueError(f"pattern {kind!r}: expected 'ranges', 'neighbors' or 'band:LOW:HIGH'")
    return Band(*(int(x) if x else None for x in bounds))


_MOST = 4  # patterns, or sizes of one, that are remembered
_recent: dict[tuple[object, ...], Pattern] = {}
_lock = threading.Lock()


def pattern_of(kind: str, tensors: Sequence[Tensor] = ()) -> Pattern | None:
    """The pattern of a kind (see kind_of) and tensors: that of a recent call with the same tensors, unless they have
    been changed since."""
    if not kind:
        return None
    if any(not isinstance(x, Tensor) or x.is_inference() for x in tensors):  # their changes are not counted
        return make(kind, tensors)
    key = (kind, *((id(x), x._version) for x in tensors))  # a pattern keeps its tensors alive, and so their numbers
    with _lock:
        pattern = _recent.pop(key, None) or make(kind, tensors)
        _recent[key] = pattern
        if len(_recent) > _MOST:
            del _recent[next(iter(_recent))]
    return pattern
