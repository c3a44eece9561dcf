"""A reduction and its derivatives, which are reductions again: what autograd differentiates, to any order.

Derivatives are formulas. The adjoint of a reduction over j has one part indexed by i and one indexed by j; each is one
reduction for all inputs that are indexed alike, their gradients side by side in its result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from tritonkeops.compiler import Program
from tritonkeops.formula.ir import Category, Const, Node, Reduction, Var, postorder
from tritonkeops.formula.rewrite import substitute
from tritonkeops.formula.text import read, show
from tritonkeops.frontend.infer import Typed
from tritonkeops.operators.derivatives import Grad
from tritonkeops.operators.reductions import Sum
from tritonkeops.operators.vector import Concat
from tritonkeops.passes.differentiate import differentiate, tangent
from tritonkeops.passes.simplify import simplify
from tritonkeops.runtime.call import Accuracy, Caller
from tritonkeops.runtime.pattern import pattern_of

_MOST_TEXTS = 4096


@dataclass(frozen=True)
class Where:
    """Where a reduction runs, and over which pairs: the call's `backend` and `device_id`, and the kind of pattern."""

    backend: str = "auto"
    device_id: int = -1
    pattern: str = ""


@dataclass(frozen=True)
class Derived:
    """A reduction of some of the tensors at hand: those that `picks` numbers."""

    text: str
    picks: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The gradient by variable `position` within a result: `dim` components from `start`, summed over rows where the
    variable is a parameter."""

    position: int
    start: int
    dim: int
    parameter: bool


@dataclass(frozen=True)
class Adjoint(Derived):
    """The gradients that are got by reducing an axis, side by side, from (*args, result, cotangent)."""

    parts: tuple[Part, ...]
    axis: int


class Recipe(NamedTuple):
    """How a reduction is differentiated, in constants, which torch.compile can hold: texts of Reducers.

    `extended` is a reduction with all that derivatives need, and `values` the formula at given rows, where the
    reduction selects; "" elsewhere. `outputs` is what users get ("value", "index"), with `dim` components; `k` that of
    the K-reductions. `inner` is the dim of the formula. `axes` tells for each variable whether it goes with the result
    ("kept"), is reduced, or is a parameter ("").
    """

    reducer: str
    extended: str
    values: str
    outputs: tuple[str, ...]
    dim: int
    k: int
    inner: int
    axes: tuple[str, ...]


class Reducer:
    """A differentiable reduction, settled but for the sizes of its tensors.

    `text` says all of it, and `Reducer.read` makes it again, in another process too.
    """

    def __init__(self, caller: Caller, where: Where) -> None:
        self.caller, self.where = caller, where
        self.variables = caller.program.variables
        node = simplify(caller.program.derived)
        assert isinstance(node, Reduction)
        self.node = node
        self.text = _text(self)
        self._adjoints: dict[tuple[bool, ...], tuple[Adjoint, ...]] = {}
        self._joints: dict[tuple[bool, ...], Adjoint | None] = {}
        self._tangents: dict[tuple[bool, ...], Derived] = {}
        if len(_read) >= _MOST_TEXTS:
            _read.clear()
        _read[self.text] = self  # last: other threads may read it from now on

    @staticmethod
    def read(text: str) -> Reducer:
        """The reducer that a text says."""
        return _read.get(text) or _from_text(text)

    def __reduce__(self) -> tuple[object, ...]:
        return Reducer.read, (self.text,)

    def launch(
        self, args: Sequence[Tensor], pattern: Sequence[Tensor] = (), out: Tensor | tuple[Tensor, ...] | None = None
    ) -> list[Tensor]:
        """The outputs, computed; autograd does not see it."""
        where = self.where
        if where.backend == "auto" and not where.pattern:
            return self.caller(args, out)
        pairs = pattern_of(where.pattern, pattern)
        return self.caller.on(args, out, where.backend, where.device_id, pairs)

    @property
    def selects(self) -> bool:
        """Whether the result is some of the formula's values, at rows that the reduction finds."""
        return self.node.op.outputs == ("value", "index")

    @property
    def linear(self) -> bool:
        """Whether the result is linear in the formula."""
        return self.node.op.linear

    @property
    def differs(self) -> bool:
        """Whether there is a derivative."""
        return self.node.op.vjp is not None

    def check_derivative(self) -> None:
        """Raises NotImplementedError where there is no derivative."""
        if not self.differs:
            raise NotImplementedError(f"{self.node.op.name} has no derivative: differentiate LogSumExp instead")

    @functools.cached_property
    def differentiable(self) -> Reducer:
        """A reduction that begins with this one's result and has all that derivatives need."""
        op = self.node.op.extended
        if op is None:
            return self
        return self._alike(Reduction(op, self.node.args, self.node.axis, self.node.k))

    @functools.cached_property
    def values(self) -> Reducer:
        """The formula itself, of rows of all variables side by side: what selections are differentiated by."""
        kept = Category.I if self.node.axis == 1 else Category.J
        moved = [Var(v.position, v.dim, kept, v.name) for v in self.variables]
        node = Reduction(Sum, self.node.args[:1], self.node.axis)
        return self._alike(_with(node, self.variables, moved), tuple(moved), pattern=False)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """How PyTorch is to differentiate it."""
        node, extended = self.node, self.differentiable
        axes = tuple("" if not v.axes else "kept" if v.axes == node.axes else "reduced" for v in self.variables)
        values = extended.values.text if extended.selects else ""
        return Recipe(self.text, extended.text, values, node.op.outputs, node.dim, node.k, node.args[0].dim, axes)

    def adjoints(self, needs: tuple[bool, ...]) -> tuple[Adjoint, ...]:
        """The gradients by the variables that `needs` marks, in one reduction per axis; none of those that are 0."""
        found = self._adjoints.get(needs)
        if found is None:
            each = [self._adjoint(axis, needs) for axis in self._axes(needs)]
            found = self._adjoints[needs] = tuple(adjoint for adjoint in each if adjoint)
        return found

    def joint(self, needs: tuple[bool, ...]) -> Adjoint | None:
        """The result together with the gradients that are indexed like it, but for the cotangent, which is their factor
        as the result is scalar. The result comes last; it takes all arguments, which settle its shape."""
        if needs not in self._joints:
            self._joints[needs] = self._joint(needs)
        return self._joints[needs]

    def _joint(self, needs: Sequence[bool]) -> Adjoint | None:
        op = self.node.op
        if op.joint is None or self.node.dim > 1 or len(self.node.args) > 1 or self.node.axis not in self._axes(needs):
            return None
        parts, slopes = self._side_by_side(self.node.axis, needs, lambda v: Grad(self.node.args[0], v, Const(1)))
        if slopes is None:
            return None
        node = simplify(differentiate(op.joint(self.node, slopes)))
        assert isinstance(node, Reduction)
        return Adjoint(self._alike(node).text, tuple(range(len(self.variables))), parts, self.node.axis)

    def _side_by_side(
        self, axis: int, needs: Sequence[bool], gradient: Callable[[Var], Node]
    ) -> tuple[tuple[Part, ...], Node | None]:
        """The gradients that are got by reducing an axis, but those that are 0, as one formula."""
        parts, formulas, start = [], list[Node](), 0
        for v, need in zip(self.variables, needs, strict=True):
            formula = simplify(differentiate(gradient(v))) if need and self._axis_of(v) == axis else None
            if formula and formula is not Const(0, v.dim):
                formulas.append(formula)
                parts.append(Part(v.position, start, v.dim, not v.axes))
                start += v.dim
        return tuple(parts), functools.reduce(Concat, formulas) if formulas else None

    def _axes(self, needs: Sequence[bool]) -> list[int]:
        wanted = [self._axis_of(v) for v, need in zip(self.variables, needs, strict=True) if need]
        return sorted(set(wanted))

    def _axis_of(self, v: Var) -> int:
        """The axis to reduce for a gradient indexed like v; a parameter goes with the result, its rows to be added."""
        return self.node.axis if not v.axes or v.axes == self.node.axes else 1 - self.node.axis

    def _adjoint(self, axis: int, needs: Sequence[bool]) -> Adjoint | None:
        self.check_derivative()
        out, e = self._extra([("out", self.node.axes, self.node.dim), ("e", self.node.axes, self.node.dim)])
        vjp = self.node.op.vjp
        assert vjp is not None
        parts, formula = self._side_by_side(axis, needs, lambda v: vjp(self.node, v, e, out).args[0])
        if formula is None:
            return None
        derived = self._of_used(Reduction(Sum, [formula], axis), (*self.variables, out, e))
        return Adjoint(derived.text, derived.picks, parts, axis)

    def tangent(self, given: tuple[bool, ...]) -> Derived:
        """The result's tangent from those of the variables that `given` marks. `picks` numbers (*args, result,
        *tangents of all variables)."""
        if given not in self._tangents:
            self._tangents[given] = self._tangent(given)
        return self._tangents[given]

    def _tangent(self, given: tuple[bool, ...]) -> Derived:
        self.check_derivative()
        tangents_of = [(f"d_{v.name}", v.axes, v.dim) for v in self.variables]
        out, *moved = self._extra([("out", self.node.axes, self.node.dim), *tangents_of])
        pairs = [(v, dv) for v, dv, has in zip(self.variables, moved, given, strict=True) if has]
        formulas = [differentiate(f) for f in self.node.args]
        tangents = [_total([tangent(f, v, dv) for v, dv in pairs], f.dim) for f in formulas]
        assert self.node.op.jvp is not None
        formula = self.node.op.jvp(self.node, tangents, out)
        return self._of_used(Reduction(Sum, [formula], self.node.axis), (*self.variables, out, *moved))

    def _extra(self, wanted: Sequence[tuple[str, frozenset[str], int]]) -> list[Var]:
        """Variables beside ours, with axes and dims, and names that nothing else has."""
        found, taken = list[Var](), {v.name for v in self.variables}
        for name, axes, dim in wanted:
            while name in taken:
                name += "_"
            taken.add(name)
            category = {"i": Category.I, "j": Category.J, "": Category.P}["".join(axes)]
            found.append(Var(len(self.variables) + len(found), dim, category, name))
        return found

    def _of_used(self, node: Node, variables: Sequence[Var]) -> Derived:
        """A reduction of no more variables than it has, and one for each index of ours."""
        node = simplify(differentiate(node))
        used = {v for v in postorder([node]) if isinstance(v, Var)}
        for letter in "ij":
            own = [v for v in variables if letter in v.axes]
            if own and not used.intersection(own):
                used.add(min(own, key=lambda v: v.dim))
        kept = sorted(used, key=lambda v: v.position)
        placed = [Var(n, v.dim, v.category, v.name) for n, v in enumerate(kept)]
        return Derived(self._alike(_with(node, kept, placed), tuple(placed)).text, tuple(v.position for v in kept))

    def _alike(self, node: Reduction, variables: tuple[Var, ...] | None = None, pattern: bool = True) -> Reducer:
        """Another reduction, computed as accurately and at the same place."""
        where = self.where if pattern else Where(self.where.backend, self.where.device_id)
        own = self.caller.how
        how = own if node.op.float_sum else replace(own, dtype_acc="auto", sum_scheme="direct_sum")
        if node.op.float_sum and not self.node.op.float_sum:
            how = replace(own, dtype_acc="auto", sum_scheme="block_sum")
        return _make(node, variables or self.variables, how, where)


_read: dict[str, Reducer] = {}


def _with(root: Node, old: Sequence[Var], new: Sequence[Var]) -> Reduction:
    """The reduction, of other variables."""
    node = substitute(root, dict(zip(old, new, strict=True)))
    assert isinstance(node, Reduction)
    return node


def _total(terms: Sequence[Node], dim: int) -> Node:
    total: Node = Const(0, dim)
    for term in terms:
        total = total + term
    return total


def _text(reducer: Reducer) -> str:
    """Options and variables, a line each, then the formula's IR."""
    how, where = reducer.caller.how, reducer.where
    options = [how.dtype_acc, how.sum_scheme, how.precision]
    options += [where.backend, str(where.device_id), where.pattern or "all"]
    variables = [f"{v.name}={int(v.category)},{v.dim}" for v in reducer.variables]
    return f"{' '.join(options)}\n{' '.join(variables)}\n{show(reducer.node)}"


def _from_text(text: str) -> Reducer:
    options, listed, ir = text.split("\n", 2)
    dtype_acc, sum_scheme, precision, backend, device_id, pattern = options.split()
    variables = []
    for n, each in enumerate(listed.split()):
        name, _, rest = each.partition("=")
        category, dim = map(int, rest.split(","))
        variables.append(Var(n, dim, Category(category), name))
    where = Where(backend, int(device_id), "" if pattern == "all" else pattern)
    return _make(read(ir), tuple(variables), Accuracy(dtype_acc, sum_scheme, precision), where)


def _make(node: Node, variables: tuple[Var, ...], how: Accuracy, where: Where) -> Reducer:
    return Reducer(Caller(Program.of(Typed(node, variables, ())), how), where)
