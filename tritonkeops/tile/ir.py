"""Tile IR: *where and when*. Scalar SSA values, each with the axes it varies with, and accumulators.

The axes of a value place it:

    {} and {i}          prologue: once per row i
    with j              the j loop: {j} once per j, {i, j} once per pair
    with tile           the j loop, once per tile of j: accumulators, and what reduces a tile
    with an Index       inside a loop over components (large dims), bound by `sum`, `max` ... or by a store

In the form "dot", products of matrices are operations of their own:

    dot(a, b, rows and cols)   sum over components k of a_ik b_jk, plus what depends on i alone and on j alone
    dot_j(p, v)                sum over a tile of j of p_ij v_jk, for all components k of a store at once

so that nothing but the emission of loops is left to a back end. A program's `i` is the axis that is kept and `j` the
one that is reduced, whatever they were called in the formula.

A program may be for a pattern of pairs, with `count_j` rows j for each row i:

    ranges       blocks of rows i, each against intervals of rows j: within them nothing differs from a dense program
    band         rows j from one number to another that grow with i
    lists        rows j that are listed for each row i: what is read of a row j then varies with i as well

For the last two, tiles reach beyond the pairs of the pattern. `inside` tells for each pair whether it counts; what
does not is replaced, where tiles are reduced, by what changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from tritonkeops.formula.ir import Field
from tritonkeops.tile.schedule import Schedule

FLOAT, INDEX, BOOL = "float", "index", "bool"
COMPONENT_LOOPS = ("sum", "max", "min", "argmax", "argmin")
TILE_REDUCTIONS = ("sum_j", "max_j", "min_j", "argmin_j", "argmax_j")
PATTERNS = ("ranges", "band", "lists")
MASKED = ("band", "lists")
"""Patterns whose tiles hold pairs that do not count."""


class Symbolic:
    """A component number that depends on loop counters: arithmetic on it makes another."""

    indices: frozenset[Index]

    def __add__(self, other: Position) -> Position:
        return self._moved(other) if isinstance(other, int) else Affine("+", self, other)

    def _moved(self, by: int) -> Position:
        """Further by a number; (k + 64) - 64 is k."""
        start, known = self, 0
        if isinstance(self, Affine) and self.symbol in "+-" and isinstance(self.right, int):
            assert isinstance(self.left, Symbolic)
            start, known = self.left, self.right if self.symbol == "+" else -self.right
        total = known + by
        return start if not total else Affine("+" if total > 0 else "-", start, abs(total))

    def __radd__(self, other: int) -> Position:
        return self + other

    def __sub__(self, other: Position) -> Position:
        if isinstance(other, int):
            return self._moved(-other)
        if isinstance(self, Affine) and self.left is other and isinstance(self.right, int):
            return {"+": self.right, "-": -self.right}.get(self.symbol) or Affine("-", self, other)
        return 0 if self is other else Affine("-", self, other)

    def __mul__(self, other: Position) -> Position:
        return self if other == 1 else Affine("*", self, other)

    def __rmul__(self, other: int) -> Position:
        return self * other

    def __floordiv__(self, other: int) -> Position:
        return self if other == 1 else Affine("/", self, other)

    def __mod__(self, other: int) -> Position:
        return 0 if other == 1 else Affine("%", self, other)


@dataclass(frozen=True, eq=False)
class Index(Symbolic):
    """The counter of a loop over `size` components, from the first to the last or the other way."""

    name: str
    size: int
    descending: bool = False

    @property
    def indices(self) -> frozenset[Index]:  # type: ignore[override]
        return frozenset([self])

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Affine(Symbolic):
    """A position computed from counters; / is the integer quotient."""

    symbol: str
    left: Position
    right: Position

    @property
    def indices(self) -> frozenset[Index]:  # type: ignore[override]
        return indices_of(self.left) | indices_of(self.right)

    def __str__(self) -> str:
        return f"({self.left} {self.symbol} {self.right})"


Position: TypeAlias = int | Symbolic
Axis: TypeAlias = str | Index


def indices_of(position: Position) -> frozenset[Index]:
    """The loop counters that a position depends on."""
    return position.indices if isinstance(position, Symbolic) else frozenset()


def bounds(k: Position) -> tuple[int, int]:
    """Smallest and largest value of a component number."""
    if isinstance(k, int):
        return k, k
    if isinstance(k, Index):
        return 0, k.size - 1
    assert isinstance(k, Affine)
    (a, b), (c, d) = bounds(k.left), bounds(k.right)
    if k.symbol == "%":
        return 0, d - 1
    corners = {"+": (a + c, b + d), "-": (a - d, b - c), "*": (a * c, b * d)}
    return corners[k.symbol] if k.symbol in corners else (a // d, b // c)


@dataclass(frozen=True, eq=False)
class Value:
    """One scalar operation. `attr` holds what is no value: a constant, an input's position, an index."""

    op: str
    args: tuple[Value, ...]
    attr: tuple[Any, ...]
    type: str
    axes: frozenset[Axis]

    @property
    def indices(self) -> frozenset[Index]:
        return frozenset(axis for axis in self.axes if isinstance(axis, Index))

    @property
    def by_row(self) -> bool:
        """Whether it varies with i."""
        return "i" in self.axes

    @property
    def by_j(self) -> bool:
        return "j" in self.axes

    @property
    def hoisted(self) -> bool:
        """Whether the prologue can compute it."""
        return not self.axes & {"j", "tile"}


@dataclass(frozen=True)
class Input:
    """An argument of the kernel: `axis` is "i", "j" or "" (a parameter)."""

    position: int
    name: str
    dim: int
    axis: str


@dataclass(frozen=True)
class Store:
    """Component `position` of field or output `target` becomes `value`; a symbolic position has one loop counter."""

    target: str
    position: Position
    value: Value


@dataclass(frozen=True)
class Output:
    """An output of the kernel: `dim` floats or indices per row."""

    name: str
    dim: int
    index: bool


@dataclass(frozen=True)
class TileProgram:
    """A kernel. `update` folds a tile of j (or, with a `guard`, one j where the guard holds) into the accumulator;
    `merge` joins accumulators a and b into a (once for each value of the counter `merge_over`, where there is one);
    `finish` makes outputs of a.

    An accumulator that `update` stores with the axis j is spread: one for each row of the tile, to be summed after the
    loop. `refine` turns the tiles that index accumulators hold into rows, evaluated on each row i's own tile. `screen`
    says whether any row of a tile passes the guard. All three are made by tile/accumulate.py.

    With contractions, `sizes` bound the rounding errors of pair values: about eps times the sum of that of row i and
    that of row j. Where either passes `limit`, a kernel that evaluates differences directly has to do the work."""

    title: str
    schedule: Schedule
    inputs: tuple[Input, ...]
    fields: tuple[Field, ...]
    outputs: tuple[Output, ...]
    guard: Value | None
    update: tuple[Store, ...]
    merge: tuple[Store, ...]
    merge_over: Index | None
    finish: tuple[Store, ...]
    refine: tuple[Store, ...] = ()
    screen: Value | None = None
    pattern: str = ""
    sizes: tuple[Value, Value] | None = None
    limit: float = 0

    @property
    def spread(self) -> frozenset[str]:
        """The accumulators with one entry for each row of the tile."""
        return frozenset(s.target for s in self.update if "j" in s.value.axes and not self.guard)


def topological(roots: Iterable[Value]) -> Iterator[Value]:
    """Every value under the roots once, arguments first."""
    seen: set[Value] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        value, ready = stack.pop()
        if ready:
            yield value
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((arg, False) for arg in reversed(value.args))


def verify(program: TileProgram) -> None:
    """Raises AssertionError where the program is not well formed."""
    dims = {each.position: each for each in program.inputs}
    fields = {each.name: each for each in program.fields}
    sections = {"update": program.update, "merge": program.merge, "finish": program.finish, "refine": program.refine}
    for name, stores in sections.items():
        guard = [x for x in (program.guard, program.screen) if x and name == "update"]
        values = list(topological([store.value for store in stores] + guard))
        chosen = frozenset[Index]().union(*(indices_of(v.attr[0]) for v in values if v.op == "piecewise"))
        for value in values:
            if value.op in ("load", "acc"):
                size = dims[value.attr[0]].dim if value.op == "load" else fields[value.attr[1]].size
                assert _in_bounds(value.attr[-1], size, chosen), f"{name}: {value} out of bounds"
            assert value.op not in TILE_REDUCTIONS or name in ("update", "refine"), f"{name} reduces a tile"
            assert value.op != "where" or value.args[0].type == BOOL, f"{value} chooses by a {value.args[0].type}"
        for store in stores:
            spread = name == "update" and _is_spread(store)
            assert "j" not in store.value.axes or program.guard or spread, f"{name}: {store.target} depends on j"
            bound = indices_of(store.position) | ({program.merge_over} if name == "merge" else set())
            assert store.value.indices <= bound, f"{name}: {store.target} has a free index"
            if name != "finish":
                kind = INDEX if fields[store.target].index else FLOAT
                assert store.value.type == kind, f"{name}: {store.target} is {kind}, got {store.value.type}"


def _is_spread(store: Store) -> bool:
    """Whether a store adds to an accumulator with an entry for each row of the tile."""
    value = store.value
    return value.op == "add" and value.args[0].op == "acc" and "j" in value.args[0].axes


def _in_bounds(position: Position, size: int, chosen: frozenset[Index]) -> bool:
    """Exact for constants and plain counters. What arithmetic makes of counters, and counters that choose a piece, may
    pass a vector's end in a branch that is not taken: the back end clamps them."""
    if isinstance(position, int):
        return 0 <= position < size
    if isinstance(position, Index) and position not in chosen:
        return position.size <= size
    return True


def show(program: TileProgram) -> str:
    """MLIR-like text: inputs, accumulators, then what the prologue, the j loop, merge and epilogue compute."""
    lines = [f'tile.program "{program.title}" {{', f"  schedule {program.schedule}"]
    lines += [f"  pattern {program.pattern}"] if program.pattern else []
    lines += [f"  input %{x.name} : {x.dim} {{{x.axis}}}" for x in program.inputs]
    lines += [f"  accumulator {f.name} : {f.size} {INDEX if f.index else FLOAT} = {f.identity}" for f in program.fields]
    names: dict[Value, str] = {}
    update = list(topological([s.value for s in program.update] + ([program.guard] if program.guard else [])))
    asking = [program.screen] if program.screen else []
    everything = topological([*(s.value for s in (*program.update, *program.refine)), *asking, *update])
    lines += _section("prologue", [v for v in everything if v.hoisted], (), names)
    if program.screen:
        extra = [f"pass where {names.setdefault(program.screen, '%screen')}"]
        lines += _section("screen", [v for v in topological([program.screen]) if not v.hoisted], (), names, extra)
    guard = [f"guard {names.setdefault(program.guard, '%guard')}"] if program.guard else []
    lines += _section("loop j", [v for v in update if not v.hoisted], program.update, names, guard)
    refine = [v for v in topological([s.value for s in program.refine]) if not v.hoisted]
    lines += _section("refine", refine, program.refine, names)
    over = f" over {program.merge_over} < {program.merge_over.size}" if program.merge_over else ""
    for title, stores in ((f"merge{over}", program.merge), ("epilogue", program.finish)):
        lines += _section(title, list(topological([s.value for s in stores])), stores, names)
    return "\n".join(lines) + "\n}\n"


def _section(
    title: str, values: list[Value], stores: Iterable[Store], names: dict[Value, str], extra: Iterable[str] = ()
) -> list[str]:
    lines = []
    for value in values:
        if value not in names or names[value] in ("%guard", "%screen"):
            names.setdefault(value, f"%{len(names)}")
            lines.append(f"    {names[value]} = {_operation(value, names)} : {value.type} {_axes(value)}")
    lines += [f"    {line}" for line in extra]
    lines += [f"    store {s.target}[{s.position}] = {names[s.value]}" for s in stores]
    return [f"  {title} {{", *lines, "  }"] if lines else []


def _operation(value: Value, names: dict[Value, str]) -> str:
    operands = ", ".join(names[arg] for arg in value.args)
    attr = ", ".join(map(str, value.attr))
    return f"{value.op}({operands})" + (f" [{attr}]" if attr else "")


def _axes(value: Value) -> str:
    return "{" + ", ".join(sorted(map(str, value.axes))) + "}"
