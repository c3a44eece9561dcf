"""Formula IR -> tile IR: components become scalars, and axes become places."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from tritonkeops.formula.contracted import Contracted
from tritonkeops.formula.ir import Apply, Const, Field, Node, Reduction, ReductionOp, Var, postorder, words
from tritonkeops.formula.text import spell
from tritonkeops.tile.accumulate import Approximate, arrange
from tritonkeops.tile.ir import (
    BOOL,
    FLOAT,
    INDEX,
    MASKED,
    Index,
    Input,
    Output,
    Position,
    Store,
    TileProgram,
    Value,
    bounds,
    indices_of,
    topological,
    verify,
)
from tritonkeops.tile.schedule import Schedule

At = Callable[[Position], "Scalar"]
_MOST_PIECES = 16
"""Parts of a long vector that have loops of their own."""


class Scalar:
    """A tile value with Python's arithmetic: what the operators' meanings compute with."""

    __slots__ = ("m", "value")

    def __init__(self, m: TileMath, value: Value) -> None:
        self.m, self.value = m, value

    def __add__(self, other: Any) -> Scalar:
        return self.m.emit("add", self, other)

    def __radd__(self, other: Any) -> Scalar:
        return self.m.emit("add", other, self)

    def __sub__(self, other: Any) -> Scalar:
        return self.m.emit("sub", self, other)

    def __rsub__(self, other: Any) -> Scalar:
        return self.m.emit("sub", other, self)

    def __mul__(self, other: Any) -> Scalar:
        return self.m.emit("mul", self, other)

    def __rmul__(self, other: Any) -> Scalar:
        return self.m.emit("mul", other, self)

    def __truediv__(self, other: Any) -> Scalar:
        return self.m.emit("div", self, other)

    def __rtruediv__(self, other: Any) -> Scalar:
        return self.m.emit("div", other, self)

    def __neg__(self) -> Scalar:
        return self.m.emit("neg", self)

    def __lt__(self, other: Any) -> Scalar:
        return self.m.emit("lt", self, other)

    def __le__(self, other: Any) -> Scalar:
        return self.m.emit("le", self, other)

    def __gt__(self, other: Any) -> Scalar:
        return self.m.emit("gt", self, other)

    def __ge__(self, other: Any) -> Scalar:
        return self.m.emit("ge", self, other)

    def __and__(self, other: Any) -> Scalar:
        return self.m.emit("and", self, other)

    def __or__(self, other: Any) -> Scalar:
        return self.m.emit("or", self, other)

    def __invert__(self) -> Scalar:
        return self.m.emit("not", self)


class Vector:
    """Components on demand: `f[k]` for an integer or a symbolic k, each computed once."""

    def __init__(self, dim: int, at: At) -> None:
        self.dim, self._at = dim, at
        self._known: dict[Position, Scalar] = {}

    def __getitem__(self, k: Position) -> Scalar:
        scalar = self._known.get(k)
        if scalar is None:
            scalar = self._known[k] = self._at(k)
        return scalar


class Table(Vector):
    """A vector in rows of `columns` components."""

    def __init__(self, rows: int, columns: int, entry: Callable[[Position, int], Scalar]) -> None:
        super().__init__(rows * columns, lambda k: entry(k // columns, k % columns))  # type: ignore[arg-type]
        self.rows, self.columns, self.entry = rows, columns, entry


_UNARY = (
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "sin",
    "cos",
    "asin",
    "acos",
    "atan",
    "tanh",
    "erf",
    "sqrt",
    "abs",
    "floor",
    "round",
)
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_LOGIC = ("and", "or", "not")
_NEUTRAL = {"sum_j": 0, "max_j": -math.inf, "min_j": math.inf, "argmax_j": -math.inf, "argmin_j": math.inf}


class TileMath:
    """The abstract math namespace `m` that builds tile values, equal ones once (value numbering)."""

    def __init__(self, unroll_dims: int, unroll_places: int, pattern: str = "", contracts: bool = False) -> None:
        self.unroll_dims, self.unroll_places, self.pattern = unroll_dims, unroll_places, pattern
        self.contracts = contracts
        self._axes_of_j = frozenset[Any]("ij" if pattern == "lists" else "j")
        self._known: dict[tuple[Any, ...], Value] = {}
        self._counters = 0
        for name in _UNARY:
            setattr(self, name, lambda x, name=name: self.emit(name, x))
        for name in ("sum_j", "max_j", "min_j", "argmin_j", "argmax_j"):
            setattr(self, name, lambda x, name=name: self._over_tile(name, x))

    def make(self, op: str, args: Sequence[Value], attr: tuple[Any, ...], kind: str, axes: frozenset[Any]) -> Scalar:
        key = (op, tuple(args), attr, kind)
        value = self._known.get(key)
        if value is None:
            value = self._known[key] = Value(op, tuple(args), attr, kind, axes)
        return Scalar(self, value)

    def emit(self, op: str, *operands: Any) -> Scalar:
        kind = next((x.value.type for x in operands if isinstance(x, Scalar)), FLOAT)
        args = [self._coerce(x, kind).value for x in operands]
        result = BOOL if op in _COMPARISONS or op in _LOGIC else kind
        return self.make(op, args, (), result, frozenset[Any]().union(*(arg.axes for arg in args)))

    def _coerce(self, x: Any, kind: str) -> Scalar:
        if isinstance(x, Scalar):
            return x
        return self.index(int(x)) if kind == INDEX else self.const(x)

    def const(self, value: float | int | Fraction) -> Scalar:
        finite = isinstance(value, Fraction) or math.isfinite(value)
        return self.make("const", (), (Fraction(value) if finite else str(value),), FLOAT, frozenset())

    def index(self, value: int) -> Scalar:
        return self.make("const", (), (Fraction(value),), INDEX, frozenset())

    def number(self, k: Position) -> Scalar:
        """A component number as a float."""
        if isinstance(k, int):
            return self.const(k)
        return self.make("number", (), (k,), FLOAT, frozenset(indices_of(k)))

    def count_j(self) -> Scalar:
        return self.make("count_j", (), (), INDEX, frozenset("i" if self.pattern else ""))

    def index_j(self) -> Scalar:
        return self.make("index_j", (), (), INDEX, self._axes_of_j)

    def inside(self, x: Scalar, otherwise: float) -> Scalar:
        """x for the pairs of the pattern, and another value for those that a tile holds beside them."""
        if self.pattern not in MASKED:
            return x
        return self.where(self._inside(), x, otherwise)

    def _inside(self) -> Scalar:
        return self.make("inside", (), (), BOOL, frozenset("ij"))

    def passing(self, guard: Scalar) -> Scalar:
        """A guard that does not let the other pairs pass: they would be rejected, but one by one."""
        return guard & self._inside() if self.pattern in MASKED else guard

    def load(self, source: Input, k: Position) -> Scalar:
        axes = (self._axes_of_j if source.axis == "j" else frozenset[Any](source.axis)) | indices_of(k)
        return self.make("load", (), (source.position, k), FLOAT, axes)

    def acc(self, which: str, each: Field, k: Position) -> Scalar:
        axes = frozenset[Any](("i", "tile")) | indices_of(k)
        return self.make("acc", (), (which, each.name, k), INDEX if each.index else FLOAT, axes)

    def where(self, condition: Scalar, a: Any, b: Any) -> Scalar:
        kind = next((x.value.type for x in (a, b) if isinstance(x, Scalar)), FLOAT)
        args = [condition.value, self._coerce(a, kind).value, self._coerce(b, kind).value]
        return self.make("where", args, (), kind, frozenset[Any]().union(*(arg.axes for arg in args)))

    def eq(self, a: Any, b: Any) -> Scalar:
        return self.emit("eq", a, b)

    def ne(self, a: Any, b: Any) -> Scalar:
        return self.emit("ne", a, b)

    def pow(self, a: Any, b: Any) -> Scalar:
        return self.emit("pow", a, b)

    def atan2(self, a: Any, b: Any) -> Scalar:
        return self.emit("atan2", a, b)

    def max(self, a: Any, b: Any) -> Scalar:
        """The larger; of a NaN and a number either, as the machine has it."""
        return self.emit("maximum", a, b)

    def min(self, a: Any, b: Any) -> Scalar:
        """The smaller; likewise."""
        return self.emit("minimum", a, b)

    def _over_tile(self, op: str, x: Scalar) -> Scalar:
        x = self.inside(x, _NEUTRAL[op])
        axes = (x.value.axes - {"j"}) | {"tile"}
        if op == "sum_j" and self.contracts and (factors := _weighted(x.value)):
            return self.make("dot_j", factors, (), FLOAT, axes)
        return self.make(op, [x.value], (), INDEX if op.startswith("arg") else FLOAT, axes)

    def counter(self, size: int, descending: bool = False) -> Index:
        self._counters += 1
        return Index(f"k{self._counters}", size, descending)

    def best(self, n: int, term: At, better: str) -> tuple[Scalar, Scalar]:
        """The first best of n terms by "lt" or "gt", and which it is (as a float)."""
        if n > self.unroll_dims:
            k, word = self.counter(n), {"lt": "min", "gt": "max"}[better]
            body = term(k).value
            axes = body.axes - {k}
            return self.make(word, [body], (k,), FLOAT, axes), self.make(f"arg{word}", [body], (k,), FLOAT, axes)
        value, index = term(0), self.const(0)
        for c in range(1, n):
            wins = self.emit(better, term(c), value)
            value, index = self.where(wins, term(c), value), self.where(wins, c, index)
        return value, index

    def sum(self, n: int, term: At) -> Scalar:
        if self.contracts and (product := self._inner_product(n, term)):
            return product
        if n > self.unroll_dims:
            k = self.counter(n)
            body = term(k).value
            return self.make("sum", [body], (k,), FLOAT, body.axes - {k})
        total = term(0)
        for c in range(1, n):
            total = total + term(c)
        return total

    def _inner_product(self, n: int, term: At) -> Scalar | None:
        """A sum of products of what belongs to row i with what belongs to row j."""
        k = self.counter(n)
        body = term(k).value
        sides = {frozenset(arg.axes - {k}): arg for arg in body.args if body.op == "mul"}
        if set(sides) != {frozenset("i"), frozenset("j")}:
            return None
        return self.make("dot", [sides[frozenset("i")], sides[frozenset("j")]], (k,), FLOAT, frozenset("ij"))

    def piecewise(self, k: Position, *pieces: tuple[int, At]) -> Any:
        """The piece that component k falls in; for a symbolic k a choice made in the loop."""
        if isinstance(k, int):
            value = next(piece(k) for stop, piece in pieces if k < stop)
            return self._coerce(value, FLOAT)
        starts = [0] + [stop for stop, _ in pieces[:-1]]
        kept = [(stop, piece) for start, (stop, piece) in zip(starts, pieces, strict=True) if start < stop]
        low, high = bounds(k)
        stop, first = next((stop, piece) for stop, piece in kept if low < stop)
        if high < stop:
            return self._coerce(first(k), FLOAT)
        branches = [self._coerce(piece(k), FLOAT).value for _, piece in kept]
        axes = frozenset[Any](indices_of(k)).union(*(branch.axes for branch in branches))
        return self.make("piecewise", branches, (k, *(stop for stop, _ in kept)), branches[0].type, axes)

    def vector(self, n: int, at: At) -> Vector:
        return Vector(n, at)

    def table(self, rows: int, columns: int, entry: Callable[[Position, int], Scalar]) -> Vector:
        """A vector of rows * columns components, entry(n, c) at n * columns + c."""
        return Table(rows, columns, entry)


def _weighted(value: Value) -> list[Value] | None:
    """A pair's value and the component of row j that it is multiplied by, in a loop over components."""
    if value.op != "mul" or not value.indices:
        return None
    pair, vector = sorted(value.args, key=lambda arg: len(arg.indices))
    both, one = frozenset("ij"), frozenset("j")
    return [pair, vector] if not pair.indices and both <= pair.axes and vector.axes - vector.indices == one else None


def lower(
    node: Reduction,
    schedule: Schedule,
    variables: Sequence[Var] | None = None,
    title: str | None = None,
    pattern: str = "",
    contracted: Contracted | None = None,
) -> TileProgram:
    """Lower a differentiated, expanded reduction. `variables` are the call's arguments, used or not.

    What `contracted` says of the same reduction takes its place; beside a selection it only finds the rows.
    """
    selects = not node.op.float_sum
    if contracted:
        node = contracted.node if not selects else _with_rows(node) if schedule.coarse else _as_list(node)
        variables = [*(variables or ()), *([contracted.center] if contracted.center else [])]
    m = TileMath(schedule.unroll_dims, schedule.unroll_places, pattern, contracts=bool(contracted) and not selects)
    used = [x for x in postorder([node]) if isinstance(x, Var)]
    inputs = tuple(_input(var, node.axis) for var in sorted(variables or used, key=lambda var: var.position))
    positions = {x.position: x for x in inputs}
    vectors = _lower_formulas(m, node.args, positions, {})
    dims = [arg.dim for arg in node.args]
    fields = node.op.fields(dims, node.k)
    acc = {which: _accumulator(m, which, fields) for which in "ab"}
    update, guard = _update(m, node, acc["a"], vectors)
    merge, merge_over = _merge(m, node, acc)
    results = node.op.finalize(m, acc["a"])
    results = [_result(m, node, results[0], positions)] if node.result else results
    outputs = tuple(
        Output(kind, vector.dim, kind == "index") for kind, vector in zip(node.op.outputs, results, strict=True)
    )
    names = [each.name for each in fields]
    program = TileProgram(
        title or spell(node),
        schedule,
        inputs,
        fields,
        outputs,
        guard,
        update=_stores(m, names, update),
        merge=_stores(m, names, merge, update),
        merge_over=merge_over,
        finish=_stores(m, [output.name for output in outputs], results, update),
        pattern=pattern,
    )
    if contracted:
        m.contracts = True
        sizes = _lower_formulas(m, contracted.sizes, positions, {})
        program = replace(program, sizes=(sizes[0][0].value, sizes[1][0].value), limit=schedule.limit)
        approximate = _approximate(m, vectors[0], contracted, positions, schedule) if selects else {}
        program = arrange(program, approximate)
    else:
        program = arrange(program)
    verify(program)
    return program


def _as_list(node: Reduction) -> Reduction:
    """Min as KMin of one neighbour, Min_ArgMin as KMin_ArgKMin ...: a list holds values that are evaluated directly."""
    if node.op.guard:
        return node
    op = words[re.sub("M(in|ax)", r"KM\1", node.op.name) + "_Reduction"]
    assert isinstance(op, ReductionOp)
    return Reduction(op, node.args, node.axis, 1)


def _with_rows(node: Reduction) -> Reduction:
    """Min as Min_ArgMin without its rows: whose value has been found by contraction can then be evaluated directly."""
    op = node.op.extended
    if op is None or node.op.guard:
        return node
    op = replace(op, outputs=node.op.outputs, finalize=lambda m, acc: [acc.v])
    return Reduction(op, node.args, node.axis, node.k)


def _approximate(
    m: TileMath, direct: Vector, contracted: Contracted, inputs: dict[int, Input], schedule: Schedule
) -> Approximate:
    """Of each component that is selected, its value by contraction, and values that it is not below or above."""
    (near,), sizes = (_lower_formulas(m, nodes, inputs, {}) for nodes in (contracted.node.args, contracted.sizes))
    found = {}
    for c in range(direct.dim):
        margins = [size[0] * m.const(schedule.margin) for size in sizes]
        low, high = (near[c] - margins[0]) - margins[1], (near[c] + margins[0]) + margins[1]
        found[direct[c].value] = {"tile": near[c].value, "min_j": low.value, "max_j": high.value}
    return found


def _update(
    m: TileMath, node: Reduction, acc: SimpleNamespace, vectors: list[Vector]
) -> tuple[Sequence[Vector], Value | None]:
    if node.op.fold:
        return node.op.fold(m, acc, *vectors), None
    assert node.op.step is not None and node.op.guard is not None
    # The insertion rejects NaN.
    kept = [Vector(each.dim, lambda c, each=each: m.inside(each[c], math.nan)) for each in vectors]  # type: ignore[misc]
    rows = Vector(vectors[0].dim, lambda c: m.index_j())
    return node.op.step(m, acc, rows, *kept), m.passing(node.op.guard(m, acc, *kept)).value


def _merge(m: TileMath, node: Reduction, acc: dict[str, SimpleNamespace]) -> tuple[Sequence[Vector], Index | None]:
    if node.op.merge:
        return node.op.merge(m, acc["a"], acc["b"]), None
    assert node.op.step is not None
    n, dim = m.counter(node.k), node.args[0].dim
    values = Vector(dim, lambda c: acc["b"].v[n * dim + c])
    rows = Vector(dim, lambda c: acc["b"].i[n * dim + c])
    return node.op.step(m, acc["a"], rows, values), n


def _input(var: Var, axis: int) -> Input:
    role = "" if not var.axes else "i" if var.axes == frozenset("ij"[1 - axis]) else "j"
    return Input(var.position, var.name, var.dim, role)


def _lower_formulas(
    m: TileMath, roots: Sequence[Node], inputs: dict[int, Input], done: dict[Node, Vector]
) -> list[Vector]:
    """`done` holds what is lowered before."""
    for each in postorder(roots):
        if each not in done:
            done[each] = _lower_node(m, each, done, inputs)
        for k in range(each.dim if each.dim <= m.unroll_dims else 0):
            done[each][k]
    return [done[root] for root in roots]


def _result(m: TileMath, node: Reduction, reduced: Vector, inputs: dict[int, Input]) -> Vector:
    assert node.result
    return _lower_formulas(m, [node.result], inputs, {node.reduced: reduced})[0]


def _lower_node(m: TileMath, node: Node, done: dict[Node, Vector], inputs: dict[int, Input]) -> Vector:
    if isinstance(node, Var):
        source = inputs[node.position]
        return Vector(node.dim, lambda k: m.load(source, k))
    if isinstance(node, Const):
        constant = m.const(node.value)
        return Vector(node.dim, lambda k: constant)
    assert isinstance(node, Apply)
    op, static, args = node.op, node.static, [done[arg] for arg in node.args]
    if op.scalar:
        scalar = op.scalar
        return Vector(
            node.dim, lambda k: m._coerce(scalar(m, *(x[0 if x.dim == 1 else k] for x in args), *static), FLOAT)
        )
    assert op.at is not None, f"{op.name} is expanded before lowering"
    at = op.at
    return Vector(node.dim, lambda k: at(m, k, *args, *static))


def _accumulator(m: TileMath, which: str, fields: Sequence[Field]) -> SimpleNamespace:
    vectors = {each.name: Vector(each.size, lambda k, each=each: m.acc(which, each, k)) for each in fields}  # type: ignore[misc]
    return SimpleNamespace(**vectors)


def _stores(
    m: TileMath, names: Sequence[str], vectors: Sequence[Vector], like: Sequence[Vector] = ()
) -> tuple[Store, ...]:
    """A store per component, or a loop for long vectors; vectors of one length share their loop, and what is made of
    accumulators has the parts that these were stored in."""
    counters: dict[tuple[type, int, int], Index] = {}

    def counter(vector: Vector, start: int, length: int) -> Index:
        key = (type(vector), start, length)
        if key not in counters:
            counters[key] = m.counter(length, descending=isinstance(vector, Table))
        return counters[key]

    stores = []
    for name, vector in zip(names, vectors, strict=True):
        if isinstance(vector, Table) and vector.rows > m.unroll_places:
            n = counter(vector, 0, vector.rows)
            stores += [Store(name, n * vector.columns + c, vector.entry(n, c).value) for c in range(vector.columns)]
        elif isinstance(vector, Table) or vector.dim <= m.unroll_dims:
            stores += [Store(name, k, vector[k].value) for k in range(vector.dim)]
        else:
            alike = [other for other in like if other.dim == vector.dim] if m.contracts else []
            for start, stop in _pieces([vector, *alike], counter(vector, 0, vector.dim)):
                places: Sequence[Position] = range(start, stop)
                if stop - start > m.unroll_dims:
                    places = [counter(vector, start, stop - start) + start]
                stores += [Store(name, k, vector[k].value) for k in places]
    return tuple(stores)


def _pieces(vectors: Sequence[Vector], k: Index) -> list[tuple[int, int]]:
    """The parts of long vectors that have one formula each: a loop over all would choose again at every component."""
    dim = vectors[0].dim
    breaks = {0, dim}
    for value in topological([vector[k].value for vector in vectors]):
        if value.op == "piecewise":
            position, *stops = value.attr
            offset = position - k
            breaks.update(stop - offset for stop in stops if isinstance(offset, int) and 0 < stop - offset < dim)
    ordered = sorted(breaks) if len(breaks) <= _MOST_PIECES + 1 else [0, dim]
    return list(itertools.pairwise(ordered))
