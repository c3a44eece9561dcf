"""What tensor cores multiply: numbers cut into parts of few bits, in the columns of tables.

A float32 is the sum of two numbers of 11 bits (float16) or three of 8 bits (bfloat16), but for its last bit or so. A
product of such sums is a sum of exact products, of which those below the last bit are left out:

    x y = x0 y0 + (x0 y1 + x1 y0) + (x0 y2 + x1 y1 + x2 y0)      x = x0 + x1 + x2

What is added to inner products and depends on one axis alone, such as norms, stands in columns of its own, against ones
in the other table: the tensor cores add it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonkeops.tile.ir import Index, Value
from tritonkeops.tile.schedule import RESIDENT, STREAMED, power_of_two

_ADDEND_PARTS = 3  # of addends: as many bits as a float32 has, in any type
_ADDENDS = 16  # columns of a chunk that holds them
_SMALLEST = 16  # components that tensor cores multiply at a time
_TOGETHER = 64  # components of a chunk that may hold all products


@dataclass(frozen=True)
class Written:
    """Part `part` of a value, in a column, or in one for each component `k`."""

    value: Value
    k: Index | None
    part: int
    start: int


@dataclass
class Table:
    """The operands of an axis by columns: parts of values, ones, and zeros."""

    size: int = 0
    written: list[Written] = field(default_factory=list)
    ones: list[int] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)

    def write(self, value: Value, k: Index | None, part: int) -> None:
        self.written.append(Written(value, k, part, self.size))
        self.size += k.size if k else 1

    def write_one(self) -> None:
        self.ones.append(self.size)
        self.size += 1

    def pad(self, size: int) -> None:
        self.zeros.extend(range(self.size, size))
        self.size = max(self.size, size)

    @property
    def values(self) -> list[tuple[Value, Index | None, list[list[int]]]]:
        """What is written: each value, its counter, and the columns where its parts start."""
        found: dict[tuple[Value, Index | None], list[list[int]]] = {}
        for each in self.written:
            starts = found.setdefault((each.value, each.k), [])
            starts.extend([] for _ in range(each.part + 1 - len(starts)))
            starts[each.part].append(each.start)
        return [(value, k, starts) for (value, k), starts in found.items()]


@dataclass(frozen=True)
class Chunk:
    """Columns of the two tables that are multiplied: their starts, and how many."""

    left: int
    right: int
    width: int


@dataclass(frozen=True)
class Product:
    """An inner product: its chunks, small terms first. With `steps`, the last ones are repeated so often, STREAMED
    columns further each time."""

    chunks: tuple[Chunk, ...]
    repeated: tuple[Chunk, ...] = ()
    steps: int = 0


def plan(dot: Value, parts: Sequence[int], left: Table, right: Table) -> Product:
    """Lay out the operands of a `dot`, cut into so many parts on each side."""
    a, b, *addends = dot.args
    (k,) = dot.attr
    pairs = sorted(_pairs(parts), key=sum, reverse=True)
    if len(pairs) * k.size + 2 * _ADDEND_PARTS <= _TOGETHER:
        return Product((_together(a, b, addends, k, pairs, left, right),))
    chunks = [_beside(addends, left, right)] if addends else []
    width = _rounded_up(k.size, _SMALLEST if k.size <= RESIDENT else STREAMED)
    starts = [_parts(table, x, k, n, width) for table, x, n in ((left, a, parts[0]), (right, b, parts[1]))]
    if k.size > RESIDENT:
        repeated = tuple(Chunk(starts[0][p], starts[1][q], STREAMED) for p, q in pairs)
        return Product(tuple(chunks), repeated, width // STREAMED)
    for p, q in pairs:
        chunks += [Chunk(starts[0][p] + first, starts[1][q] + first, w) for first, w in _powers(width)]
    return Product(tuple(chunks))


def _pairs(parts: Sequence[int]) -> list[tuple[int, int]]:
    """Which parts are multiplied: those whose product is not below the last bit."""
    return [(p, q) for p in range(parts[0]) for q in range(parts[1]) if p + q < max(parts)]


def _together(
    a: Value, b: Value, addends: Sequence[Value], k: Index, pairs: Sequence[tuple[int, int]], left: Table, right: Table
) -> Chunk:
    """One chunk for everything."""
    starts = left.size, right.size
    for p, q in pairs:
        left.write(a, k, p)
        right.write(b, k, q)
    _write_addends(addends, left, right)
    width = power_of_two(max(_SMALLEST, left.size - starts[0]))
    left.pad(starts[0] + width)
    right.pad(starts[1] + width)
    return Chunk(*starts, width)


def _beside(addends: Sequence[Value], left: Table, right: Table) -> Chunk:
    starts = left.size, right.size
    _write_addends(addends, left, right)
    left.pad(starts[0] + _ADDENDS)
    right.pad(starts[1] + _ADDENDS)
    return Chunk(*starts, _ADDENDS)


def _write_addends(addends: Sequence[Value], left: Table, right: Table) -> None:
    for addend in addends:
        own, other = (right, left) if "j" in addend.axes else (left, right)
        for part in range(_ADDEND_PARTS):
            own.write(addend, None, part)
            other.write_one()


def _parts(table: Table, value: Value, k: Index, parts: int, width: int) -> list[int]:
    """Where the parts of a value start."""
    starts = []
    for part in range(parts):
        starts.append(table.size)
        table.write(value, k, part)
        table.pad(starts[-1] + width)
    return starts


def _rounded_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _powers(width: int) -> list[tuple[int, int]]:
    """A width as powers of two: where each begins, and how large it is."""
    found, first = [], 0
    while first < width:
        size = 1 << ((width - first).bit_length() - 1)
        found.append((first, size))
        first += size
    return found


def width_of(components: int) -> int:
    """Columns of an accumulator for so many components."""
    return max(_SMALLEST, power_of_two(components))
