"""Meaning, over torch: formulas and reductions evaluated on dense tensors.

A value of dim D is a tensor of shape (D, *batch, M or 1, N or 1): components first, then rows i and j. The float64
evaluation is the oracle of the tests; run tile by tile it is the `torch` back end.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tritonkeops.formula.ir import Apply, Const, Node, Reduced, Reduction, Var, in_range, postorder, rounded
from tritonkeops.formula.rewrite import rewrite

Component = Callable[[int], Any]


class Components:
    """A vector seen by its components: `f[k]`, `f.dim`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.dim = tensor, tensor.shape[0]

    def __getitem__(self, k: int) -> Tensor:
        return self.tensor[k]


class TorchMath:
    """The abstract math namespace `m` over torch. `rows` is the global index of the tile's first j."""

    def __init__(self, like: Tensor, rows: int = 0, count: int = 0) -> None:
        self.like, self.rows, self.count = like, rows, count

    exp, exp2, log, log1p, expm1 = torch.exp, torch.exp2, torch.log, torch.log1p, torch.expm1
    sin, cos, asin, acos, atan, atan2 = torch.sin, torch.cos, torch.asin, torch.acos, torch.atan, torch.atan2
    tanh, erf, sqrt, abs, floor, pow = torch.tanh, torch.erf, torch.sqrt, torch.abs, torch.floor, torch.pow
    max, min, eq, ne = torch.maximum, torch.minimum, torch.eq, torch.ne
    maximum, minimum = torch.maximum, torch.minimum

    def const(self, value: float | int) -> Tensor:
        return self.like.new_full((1,) * (self.like.ndim - 1), float(value))

    number = const

    def index(self, value: int) -> Tensor:
        return torch.tensor(value, device=self.like.device)

    def count_j(self) -> Tensor:
        return self.index(self.count)

    def round(self, x: Tensor) -> Tensor:
        whole = torch.trunc(x)
        return whole + torch.where(torch.abs(x - whole) >= 0.5, torch.sign(x), 0)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            a = self.const(a)
        return torch.where(condition, a, b)

    def best(self, n: int, term: Component, better: str) -> tuple[Tensor, Tensor]:
        value, index = term(0), self.const(0)
        for k in range(1, n):
            wins = getattr(torch, better)(term(k), value)
            value, index = self.where(wins, term(k), value), self.where(wins, k, index)
        return value, index

    def sum(self, n: int, term: Component) -> Tensor:
        total = term(0)
        for k in range(1, n):
            total = total + term(k)
        return total  # type: ignore[no-any-return]

    def piecewise(self, k: int, *pieces: tuple[int, Component]) -> Any:
        value = next(piece(k) for stop, piece in pieces if k < stop)
        return value if isinstance(value, Tensor) else self.const(value)

    def vector(self, n: int, component: Component) -> Components:
        components = [component(k) for k in range(n)]
        return Components(torch.stack(torch.broadcast_tensors(*components)))  # type: ignore[no-untyped-call]

    def table(self, rows: int, columns: int, entry: Callable[[int, int], Tensor]) -> Components:
        return self.vector(rows * columns, lambda k: entry(k // columns, k % columns))

    def sum_j(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    def max_j(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), -math.inf, x).amax(-1, keepdim=True)

    def min_j(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), math.inf, x).amin(-1, keepdim=True)

    def argmin_j(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), math.inf, x).argmin(-1, keepdim=True) + self.rows

    def argmax_j(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), -math.inf, x).argmax(-1, keepdim=True) + self.rows


def components(var: Var, arg: Tensor, batch: int, kept: bool) -> Tensor:
    """A variable's values for `evaluate`: (*batch, rows, dim) as (dim, *batch, M or 1, N or 1), `batch` dimensions of
    that; rows along the axis that is kept, or along the one that is reduced."""
    extra = batch - (arg.ndim - (2 if var.axes else 1))
    arg = arg.reshape((1,) * extra + arg.shape).movedim(-1, 0)
    if not var.axes:
        return arg[..., None, None]
    return arg[..., None] if kept else arg[..., None, :]


def evaluate(root: Node, values: Mapping[Var, Tensor], like: Tensor, reduced: Tensor | None = None) -> Tensor:
    """Value of a formula, given its variables' as (dim, *batch, M or 1, N or 1); dtype and device are as in `like`.

    That of a reduction's result takes the value `reduced`.
    """
    m = TorchMath(like)
    done: dict[Node, Tensor] = {}
    for node in postorder([root]):
        if isinstance(node, Reduced) and reduced is not None:
            done[node] = reduced
            continue
        done[node] = (
            _apply(m, node, [done[x] for x in node.operands]) if isinstance(node, Apply) else _leaf(node, values, like)
        )
    return done[root]


def _leaf(node: Node, values: Mapping[Var, Tensor], like: Tensor) -> Tensor:
    if isinstance(node, Var):
        return values[node]
    if isinstance(node, Const):
        value = rounded(node.value, "float32" if like.dtype == torch.float32 else "float64")
        return like.new_full((node.dim,) + (1,) * (like.ndim - 1), value)
    raise TypeError(f"{node!r} is no formula")


def _apply(m: TorchMath, node: Apply, args: list[Tensor]) -> Tensor:
    op = node.op
    if op.scalar:
        return torch.as_tensor(op.scalar(m, *args, *node.static), dtype=m.like.dtype, device=m.like.device)
    if op.expand:
        inputs = [Var(-1 - n, arg.dim, 2, f"_{n}") for n, arg in enumerate(node.args)]  # type: ignore[arg-type]
        return evaluate(op.expand(*inputs, *node.static), dict(zip(inputs, args, strict=True)), m.like)
    assert op.at is not None
    vectors = [Components(arg) for arg in args]
    return m.vector(node.dim, lambda k: op.at(m, k, *vectors, *node.static)).tensor  # type: ignore[misc]


def identity(node: Reduction, shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """The accumulator of nothing: a tensor (size, *batch, M, 1) per field."""
    fields = node.op.fields([arg.dim for arg in node.args], node.k)
    dtypes = [torch.int64 if field.index else like.dtype for field in fields]
    return [
        torch.full((field.size, *shape), field.identity, dtype=dtype, device=like.device)
        for field, dtype in zip(fields, dtypes, strict=True)
    ]


def fold(node: Reduction, state: list[Tensor], terms: Sequence[Tensor], rows: int, like: Tensor) -> list[Tensor]:
    """Fold a tile of j, whose first row is `rows`, into an accumulator."""
    m = TorchMath(like, rows)
    if node.op.fold:
        return _tensors(node.op.fold(m, _named(node, state), *map(Components, terms)), state)
    assert node.op.step is not None and node.op.guard is not None
    for j in range(terms[0].shape[-1]):
        term = Components(terms[0][..., j : j + 1])
        if bool(node.op.guard(m, _named(node, state), term).any()):
            index = m.vector(term.dim, lambda c, j=j: m.index(rows + j))  # type: ignore[misc]
            state = _tensors(node.op.step(m, _named(node, state), index, term), state)
    return state


def finalize(
    node: Reduction, state: list[Tensor], count: int, like: Tensor, values: Mapping[Var, Tensor] | None = None
) -> list[Tensor]:
    """Outputs of an accumulator of `count` rows j: tensors (dim, *batch, M, 1).

    `values` are those of the variables in the formula of the result, rows of the kept axis taking the place of i.
    """
    outputs = [each.tensor for each in node.op.finalize(TorchMath(like, count=count), _named(node, state))]
    return [evaluate(node.result, values or {}, like, *outputs)] if node.result else outputs


def _tensors(result: Sequence[Components], state: list[Tensor]) -> list[Tensor]:
    return [new.tensor.expand_as(old) for new, old in zip(result, state, strict=True)]


def _named(node: Reduction, state: Sequence[Tensor]) -> SimpleNamespace:
    dims = [arg.dim for arg in node.args]
    names = [field.name for field in node.op.fields(dims, node.k)]
    return SimpleNamespace(**{n: Components(t) for n, t in zip(names, state, strict=True)})


# Constants ------------------------------------------------------------------------------------------------------------

_MOST_BITS = 1 << 14  # that an exact number may have: squares of squares would fill the memory


class _Inexact(Exception):
    """What is asked for is no rational number, or a very long one."""


class _Rationals:
    """The abstract math namespace `m` over fractions, as far as it is exact."""

    const, abs, floor, eq, ne = Fraction, abs, math.floor, operator.eq, operator.ne

    def where(self, condition: bool, a: Any, b: Any) -> Any:
        return a if condition else b

    def pow(self, a: Fraction, b: Fraction) -> Fraction:
        if b.denominator != 1 or abs(b) * _bits(a) > _MOST_BITS:
            raise _Inexact
        return a ** int(b)

    def __getattr__(self, name: str) -> Any:
        raise _Inexact(name)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def fold_constants(root: Node) -> Node:
    """Replace operators applied to constants alone by their value, see `fold_constant`."""
    return rewrite(root, fold_constant)


def fold_constant(node: Node) -> Node:
    """The value of an operator applied to constants; any other node as it is.

    Rational arithmetic is exact, so that what leaves the range of doubles may come back. Other values are computed in
    float64, where the operands are in range and the result is finite, then rounded to the data's precision.
    """
    if not (isinstance(node, Apply) and all(isinstance(arg, Const) for arg in node.args)):
        return node
    if node.op.expand and not node.args:
        return node.op.expand(*node.static)
    if not node.op.scalar:
        return node
    numbers = [arg.value for arg in node.args if isinstance(arg, Const)]
    try:
        value = Fraction(node.op.scalar(_Rationals(), *numbers, *node.static))
    except (_Inexact, ZeroDivisionError):
        return _folded_in_float64(node, numbers)
    return Const(value, node.dim) if _bits(value) <= _MOST_BITS else node


def _folded_in_float64(node: Apply, numbers: Sequence[Fraction]) -> Node:
    assert node.op.scalar is not None
    if not all(map(in_range, numbers)):
        return node
    m = TorchMath(torch.zeros((), dtype=torch.float64))
    result = float(node.op.scalar(m, *(m.const(rounded(x)) for x in numbers), *node.static))
    return Const(result, node.dim) if math.isfinite(result) else node
