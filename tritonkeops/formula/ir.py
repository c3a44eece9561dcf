"""Formula IR: *what* is computed, as frozen, interned nodes that know their `dim` and their `axes`.

Equal nodes are one object, so common subexpressions are shared for free and `is` decides equality.
`dim` is the number of components of a node's value; `axes` is the subset of {"i", "j"} it varies with.
"""

from __future__ import annotations

import functools
import math
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

Axes = frozenset[str]
Number: TypeAlias = int | float | Fraction
Static: TypeAlias = int | tuple[int, ...]

NO_AXES: Axes = frozenset()
MOST_NEIGHBOURS = 1 << 20
"""The largest K of a K-reduction: each row keeps K values while it is reduced."""


class IllTyped(ValueError):
    """A node that cannot exist: wrong arity, dims or categories.

    `operand` is the position of the offending argument, or None where the whole node is at fault.
    """

    def __init__(self, message: str, operand: int | None = None) -> None:
        super().__init__(message)
        self.operand = operand


class Category(IntEnum):
    """What a variable is indexed by; the numbers are KeOps'."""

    I = 0  # noqa: E741
    J = 1
    P = 2

    @property
    def axes(self) -> Axes:
        return (frozenset("i"), frozenset("j"), NO_AXES)[self]

    @property
    def keyword(self) -> str:
        return ("Vi", "Vj", "Pm")[self]


_interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_lock = threading.Lock()

infix: dict[tuple[str, int], Callable[..., Node]] = {}
"""Operators by (symbol, number of operands); filled by the operators' declarations."""


class Node:
    """Base of all formula nodes. Build through the constructors of the subclasses, which intern."""

    __slots__ = ("__weakref__", "_key", "axes", "dim")
    dim: int
    axes: Axes
    _key: tuple[Any, ...]
    operands: ClassVar[Any] = ()

    @classmethod
    def _intern(cls, *fields: Any) -> Any:
        key = (cls, *fields)
        with _lock:
            node = _interned.get(key)
            if node is None:
                node = object.__new__(cls)
                object.__setattr__(node, "_key", key)
                node._fill(*fields)
                _interned[key] = node
            return node

    def _fill(self, *fields: Any) -> None:
        """Set the slots; called while interning, so it makes no node."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"formula nodes are frozen: cannot set {name!r}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, self._key)

    def __repr__(self) -> str:
        from tritonkeops.formula.text import spell  # a repr is for people: the printer sits above the IR

        return spell(self)

    def __add__(self, other: Node | Number) -> Node:
        return infix["+", 2](self, other)

    def __radd__(self, other: Number) -> Node:
        return infix["+", 2](other, self)

    def __sub__(self, other: Node | Number) -> Node:
        return infix["-", 2](self, other)

    def __rsub__(self, other: Number) -> Node:
        return infix["-", 2](other, self)

    def __mul__(self, other: Node | Number) -> Node:
        return infix["*", 2](self, other)

    def __rmul__(self, other: Number) -> Node:
        return infix["*", 2](other, self)

    def __truediv__(self, other: Node | Number) -> Node:
        return infix["/", 2](self, other)

    def __rtruediv__(self, other: Number) -> Node:
        return infix["/", 2](other, self)

    def __pow__(self, other: Node | Number) -> Node:
        return infix["**", 2](self, other)

    def __or__(self, other: Node | Number) -> Node:
        return infix["|", 2](self, other)

    def __neg__(self) -> Node:
        return infix["-", 1](self)


def _rebuild(cls: type[Node], *fields: Any) -> Node:
    return cls._intern(*fields)  # type: ignore[no-any-return]


class Var(Node):
    """An input: argument number `position`, with `dim` components, of a category, called `name`."""

    __slots__ = ("category", "name", "position")
    position: int
    category: Category
    name: str

    def __new__(cls, position: int, dim: int, category: Category, name: str) -> Var:
        return cls._intern(position, dim, Category(category), name)  # type: ignore[no-any-return]

    def _fill(self, position: int, dim: int, category: Category, name: str) -> None:
        self._set(position=position, dim=dim, category=category, name=name, axes=category.axes)


_FORMATS = {"float32": (24, -149, 128), "float64": (53, -1074, 1024)}
"""Of each dtype: bits of the significand, exponents of the smallest number and of the first beyond the largest."""


def rounded(value: Fraction, dtype: str = "float64") -> float:
    """The number of a dtype nearest to the value, ties to even; infinite beyond its range.

    It is rounded once: by way of a double, what lies next to the middle of two float32 could go to the wrong one.
    """
    bits, smallest, limit = _FORMATS[dtype]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = max(exponent + 1 - bits, smallest)
    units = round(value / Fraction(2) ** unit)
    if units.bit_length() + unit > limit:
        return math.inf if value > 0 else -math.inf
    return math.ldexp(units, unit)


def in_range(value: Fraction) -> bool:
    """Whether the nearest double is finite, and 0 for 0 only."""
    return not value or 0 < abs(rounded(value)) < math.inf


class Const(Node):
    """An exact rational number, the same in each of `dim` components; rounded once, to the data's precision."""

    __slots__ = ("value",)
    value: Fraction

    def __new__(cls, value: Number, dim: int = 1) -> Const:
        return cls._intern(Fraction(value), dim)  # type: ignore[no-any-return]

    def _fill(self, value: Fraction, dim: int) -> None:
        self._set(value=value, dim=dim, axes=NO_AXES)


class Reduced(Node):
    """The value of a reduction in the formula of its result, see Reduction."""

    __slots__ = ()

    def __new__(cls, dim: int, axes: Axes) -> Reduced:
        return cls._intern(dim, axes)  # type: ignore[no-any-return]

    def _fill(self, dim: int, axes: Axes) -> None:
        self._set(dim=dim, axes=axes)


@dataclass(frozen=True, eq=False)
class Operator:
    """What one word of the language is: its dimension rule, meaning, derivative and documentation.

    Exactly one of three gives the meaning, as a function of an abstract math namespace `m`:
    `scalar(m, *components, *static)` for element-wise operators; `at(m, k, *vectors, *static)`, component k of the
    result, for the others; or `expand(*operands, *static)`, a formula of simpler operators. `vjp(e, *operands,
    *static)` gives a cotangent per operand, as formulas; an expanded operator takes its expansion's. Words that a pass
    replaces may have none of these.

    `defaults` are those of the last arguments. Operands named in `summed` may be given as tuples, all of one length:
    that is the sum of the operator on their elements.
    """

    name: str
    operands: tuple[str, ...]
    static: tuple[str, ...]
    dim: Callable[[Operator, tuple[Node, ...], tuple[Static, ...]], int]
    doc: str
    scalar: Callable[..., Any] | None = None
    at: Callable[..., Any] | None = None
    expand: Callable[..., Node] | None = None
    vjp: Callable[..., Sequence[Node | Number]] | None = None
    defaults: tuple[Number | Static, ...] = ()
    summed: tuple[str, ...] = ()
    symbol: str | None = None
    domain: tuple[tuple[float, float], ...] = ()
    example: tuple[Static, ...] = ()
    example_dims: tuple[int, ...] = ()

    def __call__(self, *args: Node | Number | Static | tuple[Node, ...]) -> Node:
        """The operator applied: operands first (numbers become constants), static parameters after.

        Raises IllTyped for a wrong number of arguments or dims that do not fit.
        """
        least, most = self.arity
        if not least <= len(args) <= most:
            raise IllTyped(f"{self.signature} takes {self._count()}, got {len(args)}")
        args += self.defaults[len(args) - least :]
        n = len(self.operands)
        for place, value in enumerate(args[n:]):
            if not isinstance(value, tuple if self.takes_list(place) else int):
                wanted = "a list of integers" if self.takes_list(place) else "an integer"
                raise IllTyped(f"{self.name}: '{self.static[place]}' must be {wanted}", n + place)
        if any(isinstance(arg, tuple) for arg in args[:n]):
            return self._sum(args)
        return Apply(self, [as_node(arg) for arg in args[:n]], args[n:])  # type: ignore[arg-type]

    @property
    def arity(self) -> tuple[int, int]:
        """The least and the largest number of arguments."""
        most = len(self.operands) + len(self.static)
        return most - len(self.defaults), most

    def takes_list(self, place: int) -> bool:
        """Whether static parameter number `place` is a list of integers, as its example is."""
        return isinstance(self.example[place] if place < len(self.example) else 0, tuple)

    @property
    def signature(self) -> str:
        """The word and its arguments, as in `TraceOperator(L, v[, w])`."""
        least, _ = self.arity
        names = self.operands + self.static
        optional = "".join(f"[, {name}]" for name in names[least:])
        return f"{self.name}({', '.join(names[:least])}{optional})"

    def _count(self) -> str:
        least, most = self.arity
        return f"{f'{least} to ' if least < most else ''}{most} argument{'s' * (most != 1)}"

    def _sum(self, args: tuple[Any, ...]) -> Node:
        """Diff(F, (x, y), (u, w)) is Diff(F, x, u) + Diff(F, y, w)."""
        named = list(zip(self.operands, args, strict=False))
        for place, (name, arg) in enumerate(named):
            if isinstance(arg, tuple) and name not in self.summed:
                raise IllTyped(f"{self.name}: expected a formula for '{name}', got a tuple", place)
        lengths = {len(arg) if isinstance(arg, tuple) else -1 for name, arg in named if name in self.summed}
        if len(lengths) > 1 or lengths == {0}:
            raise IllTyped(f"{self.name}: expected tuples of one length for {' and '.join(map(repr, self.summed))}")
        (length,) = lengths
        terms = [self(*(arg[n] if name in self.summed else arg for name, arg in named)) for n in range(length)]
        return functools.reduce(operator.add, terms)

    def infer_dim(self, args: tuple[Node, ...], static: tuple[Static, ...]) -> int:
        """Number of components of the result; raises IllTyped."""
        return self.dim(self, args, static)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Field:
    """Part of an accumulator: `size` components that start at `identity`; an index field counts rows j."""

    name: str
    size: int
    identity: float
    index: bool = False


@dataclass(frozen=True, eq=False)
class ReductionOp:
    """A reduction, declared once as a monoid over abstract accumulators.

    `fields(dims, k)` lists the accumulator; `fold(m, acc, *vectors)` takes a tile of j into it, with the tile
    reductions of `m` (sum_j, max_j ...), and `merge(m, a, b)` joins two accumulators, a's rows j first. Or
    `step(m, acc, j, *vectors)` takes a single j and `guard(m, acc, *vectors)` is false where that would change
    nothing; then merging is a step for each of b's entries, its fields being k values and k rows j per component.
    `finalize(m, acc)` gives the outputs, floats or indices as `outputs` says, with `size(dims)` components (that of
    the last field unless said). `float_sum` marks sums of floats, which honour dtype_acc and sum_scheme; `linear` says
    that the result is linear in the formula, and `exponential` that the first formula is an exponent.

    Derivatives: `vjp(node, v, e, out)` is the adjoint as another reduction, and `jvp(node, tangents, out)` the formula
    whose sum is the tangent of the result `out`, given those of the formulas. Where they need more than the result,
    `extended` is a reduction whose result begins with this one's and goes on with that. `joint(node, slope)`, for a
    scalar result, is a reduction that has it as its last component, after the derivative along `slope`, that of the
    formula: both of one pass.

    Twins, which are no words of the language: `compensated` is the same reduction with compensated sums; `base2` that
    of powers of 2, which gives the same result once the first formula is multiplied by log2(e).
    """

    name: str
    formulas: tuple[int, int]
    outputs: tuple[str, ...]
    fields: Callable[..., tuple[Field, ...]]
    finalize: Callable[..., Sequence[Any]]
    doc: str
    fold: Callable[..., Sequence[Any]] | None = None
    merge: Callable[..., Sequence[Any]] | None = None
    step: Callable[..., Sequence[Any]] | None = None
    guard: Callable[..., Any] | None = None
    takes_k: bool = False
    vjp: Callable[..., Reduction] | None = None
    jvp: Callable[..., Node] | None = None
    extended: ReductionOp | None = None
    joint: Callable[[Reduction, Node], Reduction] | None = None
    float_sum: bool = False
    linear: bool = False
    exponential: bool = False
    size: Callable[[Sequence[int]], int] | None = None
    compensated: ReductionOp | None = None
    base2: ReductionOp | None = None

    def check(self, args: tuple[Node, ...], k: int) -> None:
        """Raises IllTyped for a wrong number of formulas, dims that do not broadcast, or a missing K."""
        least, most = self.formulas
        if not least <= len(args) <= most:
            wanted = "a weight formula (formula2)" if len(args) < least else "no weight formula (formula2)"
            raise IllTyped(f"{self.name} takes {wanted}")
        if len(args) == 2 and len({arg.dim for arg in args} - {1}) > 1:
            raise IllTyped(
                f"{self.name}: formula has dim {args[0].dim} and weight dim {args[1].dim}: "
                "expected equal dims, or one of them scalar",
                1,
            )
        if k and not self.takes_k:
            raise IllTyped(f"{self.name} takes no opt_arg; got {k}")
        if self.takes_k and k > MOST_NEIGHBOURS:
            raise IllTyped(f"{self.name}: K = {k}, expected at most {MOST_NEIGHBOURS}")
        if self.takes_k and k < 1:
            raise IllTyped(f"{self.name} needs opt_arg=K, a positive number of neighbours; got {k}")

    def value_dim(self, args: tuple[Node, ...], k: int) -> int:
        """Components of one float or index output for one row of the result."""
        dims = [arg.dim for arg in args]
        return self.size(dims) if self.size else self.fields(dims, k)[-1].size

    def __repr__(self) -> str:
        return self.name


words: dict[str, Operator | ReductionOp] = {}
"""Every declared operator by name, and every reduction by name + "_Reduction"."""


class Apply(Node):
    """An operator applied to operands and to static parameters (integers known when compiling)."""

    __slots__ = ("args", "op", "static")
    op: Operator
    args: tuple[Node, ...]
    static: tuple[Static, ...]

    def __new__(cls, op: Operator, args: Sequence[Node], static: Sequence[Static] = ()) -> Apply:
        """Raises IllTyped where the operator's dimension rule rejects the operands."""
        args, static = tuple(args), tuple(static)
        dim = op.infer_dim(args, static)
        return cls._intern(op, args, static, dim)  # type: ignore[no-any-return]

    def _fill(self, op: Operator, args: tuple[Node, ...], static: tuple[Static, ...], dim: int) -> None:
        axes = NO_AXES.union(*(arg.axes for arg in args))
        self._set(op=op, args=args, static=static, dim=dim, axes=axes)

    @property
    def operands(self) -> tuple[Node, ...]:
        return self.args


class Reduction(Node):
    """A reduction of `args` (formula, then weight if any) over i (axis 0) or over j (axis 1).

    `dim` counts the components of one row of the result; `k` is the K of the K-reductions, 0 elsewhere. The result
    varies with the axis that is not reduced. It is the value reduced, or what the formula `result` makes of it: one of
    that axis alone, in which `reduced` stands for the value, as in e_i * sum_j.
    """

    __slots__ = ("args", "axis", "k", "op", "reduced", "result")
    op: ReductionOp
    args: tuple[Node, ...]
    axis: int
    k: int
    result: Node | None
    reduced: Reduced

    def __new__(
        cls, op: ReductionOp, args: Sequence[Node], axis: int, k: int = 0, result: Node | None = None
    ) -> Reduction:
        """Raises IllTyped for a wrong number of formulas, dims that do not fit, a missing K, or a wrong result."""
        args = tuple(args)
        op.check(args, k)
        reduced = Reduced(op.value_dim(args, k), frozenset("j" if axis == 0 else "i"))
        if result is reduced:
            result = None
        if result:
            _check_result(op, reduced, result)
        return cls._intern(op, args, axis, k, result, reduced)  # type: ignore[no-any-return]

    def _fill(
        self, op: ReductionOp, args: tuple[Node, ...], axis: int, k: int, result: Node | None, reduced: Reduced
    ) -> None:
        dim = result.dim if result else reduced.dim
        self._set(op=op, args=args, axis=axis, k=k, result=result, reduced=reduced, dim=dim, axes=reduced.axes)

    @property
    def operands(self) -> tuple[Node, ...]:
        return (*self.args, self.result) if self.result else self.args


def _check_result(op: ReductionOp, reduced: Reduced, result: Node) -> None:
    """K values, and values with their rows, are results as they are."""
    wrong = [each for each in postorder([result]) if isinstance(each, Reduced) and each is not reduced]
    if op.takes_k or op.outputs != ("value",) or wrong or not result.axes <= reduced.axes:
        raise IllTyped(f"{op.name}: {result!r} is no result of a value of dim {reduced.dim}")


def as_node(value: Node | Number) -> Node:
    """A node as it is, a number as a constant."""
    return value if isinstance(value, Node) else Const(value)


def postorder(roots: Iterable[Node]) -> Iterator[Node]:
    """Every node under the roots once, operands before users. Iterative: formulas may be deep."""
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.operands))


def variables(*roots: Node) -> tuple[Var, ...]:
    """The variables under the roots, by position."""
    found = (node for node in postorder(roots) if isinstance(node, Var))
    return tuple(sorted(found, key=lambda var: var.position))


def rebuild(node: Node, operands: Sequence[Node]) -> Node:
    """The same node over other operands."""
    if isinstance(node, Apply):
        return node if node.args == tuple(operands) else Apply(node.op, operands, node.static)
    if isinstance(node, Reduction):
        if node.operands == tuple(operands):
            return node
        n = len(node.args)
        return Reduction(node.op, operands[:n], node.axis, node.k, *operands[n:])
    return node
