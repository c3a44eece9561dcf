"""Reductions, each a monoid. The same declaration serves the loop over j, blocks of it, threads, and streaming.

Semantics. NaN propagates in sums, LogSumExp and softmax, and is skipped by Min, Max and their kin. Nothing to reduce
gives 0, -inf (LogSumExp), +-inf, index -1, NaN (softmax). Ties: the lowest index first. Indices are integers.
`m` offers, on a tile of j: sum_j, max_j, min_j, argmin_j, argmax_j; `m.vector(n, at)` makes a vector of components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tritonkeops.formula.ir import Category, Field, IllTyped, Node, Reduction, Var
from tritonkeops.operators.declare import reduction
from tritonkeops.operators.elementwise import Exp
from tritonkeops.operators.vector import Grad, Scalprod


def _axis_of(v: Var, reduced: int) -> int:
    """Axis to reduce so that the result is indexed like v; parameters keep the forward axis, as in KeOps."""
    return {Category.I: 1, Category.J: 0, Category.P: 1}[v.category]


# Sum ----------------------------------------------------------------------------------------------------------------


def _sum_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    return Reduction(Sum, [Grad(node.args[0], v, e)], _axis_of(v, node.axis))


Sum = reduction(
    "Sum",
    formulas=(1, 1),
    outputs=("value",),
    float_sum=True,
    vjp=_sum_vjp,
    doc="Sum.",
    fields=lambda dims, k: (Field("s", dims[0], 0.0),),
    fold=lambda m, acc, f: [m.vector(f.dim, lambda c: acc.s[c] + m.sum_j(f[c]))],
    merge=lambda m, a, b: [m.vector(a.s.dim, lambda c: a.s[c] + b.s[c])],
    finalize=lambda m, acc: [acc.s],
)


def _kahan(m: Any, s: Any, c: Any, terms: Any) -> list[Any]:
    """Kahan's compensated step: c holds what the last addition to s lost."""

    def total(k: Any) -> Any:
        return s[k] + (terms(k) - c[k])

    return [m.vector(s.dim, lambda k: (total(k) - s[k]) - (terms(k) - c[k])), m.vector(s.dim, total)]


KahanSum = reduction(
    "KahanSum",
    formulas=(1, 1),
    outputs=("value",),
    float_sum=True,
    vjp=_sum_vjp,
    doc='Sum with Kahan\'s compensation: what sum_scheme="kahan_scheme" makes of Sum.',
    fields=lambda dims, k: (Field("c", dims[0], 0.0), Field("s", dims[0], 0.0)),
    fold=lambda m, acc, f: _kahan(m, acc.s, acc.c, lambda k: m.sum_j(f[k])),
    merge=lambda m, a, b: _kahan(m, a.s, m.vector(a.s.dim, lambda k: a.c[k] + b.c[k]), lambda k: b.s[k]),
    finalize=lambda m, acc: [acc.s],
)

# Sums of exponentials, shifted by the running maximum ---------------------------------------------------------------


def _shift(m: Any, top: Any) -> Any:
    """What to subtract in the exponent: the maximum, or 0 where it is infinite, since inf - inf is NaN."""
    return m.where(m.eq(m.abs(top), math.inf), 0, top)


def _exp_fields(dims: Sequence[int], weights: int) -> tuple[Field, ...]:
    sums = (max(dims),) if weights == 1 else (dims[0], max(dims))
    tops = (Field("m", dims[0], -math.inf),)
    return tops + tuple(Field(name, size, 0.0) for name, size in zip("st"[: len(sums)], sums, strict=True))


def _rescaled(m: Any, top: Any, acc: Any, field: Any, c: Any) -> Any:
    """A sum kept relative to acc.m, relative to `top`."""
    k = 0 if top.dim == 1 else c
    return field[c] * m.exp(acc.m[k] - _shift(m, top[k]))


def _top(m: Any, acc: Any, at: Callable[[Any], Any]) -> Any:
    return m.vector(acc.m.dim, lambda c: m.max(acc.m[c], at(c)))


def _exp_sum(m: Any, acc: Any, field: Any, top: Any, f: Any, g: Any = None) -> Any:
    def at(c: Any) -> Any:
        kf = 0 if f.dim == 1 else c
        term = m.exp(f[kf] - _shift(m, top[kf]))
        return _rescaled(m, top, acc, field, c) + m.sum_j(term if g is None else term * g[0 if g.dim == 1 else c])

    return m.vector(field.dim, at)


def _shift_exp_fold(m: Any, acc: Any, f: Any, g: Any = None) -> list[Any]:
    top = _top(m, acc, lambda c: m.max_j(f[c]))
    return [top, _exp_sum(m, acc, acc.s, top, f, g)]


def _shift_exp_merge(m: Any, a: Any, b: Any) -> list[Any]:
    top = _top(m, a, lambda c: b.m[c])
    return [top, m.vector(a.s.dim, lambda c: _rescaled(m, top, a, a.s, c) + _rescaled(m, top, b, b.s, c))]


def _log(m: Any, acc: Any) -> list[Any]:
    return [m.vector(acc.s.dim, lambda c: acc.m[0 if acc.m.dim == 1 else c] + m.log(acc.s[c]))]


def _concat(m: Any, acc: Any) -> list[Any]:
    n = acc.m.dim
    total = n + acc.s.dim
    return [m.vector(total, lambda c: m.piecewise(c, (n, lambda d: acc.m[d]), (total, lambda d: acc.s[d - n])))]


def _pair_size(dims: Sequence[int]) -> int:
    return dims[0] + max(dims)


def _lse_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    """d log sum exp(f) g = sum exp(f - out) (g df + dg): a softmax average where v is indexed like the result."""
    f, *g = node.args
    axis = _axis_of(v, node.axis)
    if out is None and axis == node.axis and not g and f.dim == 1:
        return Reduction(SumSoftMaxWeight, [f, Grad(f, v, e)], axis)
    if out is None:
        raise IllTyped(
            f"the derivative of {node.op.name} by {v.name} needs the result: "
            "write Grad_WithSavedForward(R, v, e, out), out being a variable that holds it",
            1,
        )
    if not g:
        return Reduction(Sum, [Grad(f, v, e * Exp(f - out))], axis)
    scale = e * Exp(f - out)
    through_f = Scalprod(scale, g[0]) if f.dim == 1 else scale * g[0]
    return Reduction(Sum, [Grad(f, v, through_f) + Grad(g[0], v, scale)], axis)


def _softmax_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    """d sum p g = sum p ((g - out) df + dg), p the softmax of f, which is known only along the result's axis."""
    f, g = node.args
    axis = _axis_of(v, node.axis)
    if out is None or axis != node.axis or f.dim != 1:
        raise IllTyped(f"the derivative of {node.op.name} by {v.name} cannot be written as one reduction", 1)
    return Reduction(node.op, [f, Grad(f, v, Scalprod(e, g - out)) + Grad(g, v, e)], axis)


_SHIFT_EXP = {
    "outputs": ("value",),
    "float_sum": True,
    "fields": lambda dims, k: _exp_fields(dims, 1),
    "fold": _shift_exp_fold,
    "merge": _shift_exp_merge,
}
Max_SumShiftExp = reduction(
    "Max_SumShiftExp",
    formulas=(1, 1),
    finalize=_concat,
    size=_pair_size,
    doc="The pair (m, sum exp(f - m)), m the maximum.",
    **_SHIFT_EXP,
)
Max_SumShiftExpWeight = reduction(
    "Max_SumShiftExpWeight",
    formulas=(2, 2),
    finalize=_concat,
    size=_pair_size,
    doc="(m, sum exp(f - m) g).",
    **_SHIFT_EXP,
)
LogSumExp = reduction(
    "LogSumExp", formulas=(1, 2), finalize=_log, vjp=_lse_vjp, doc="log sum exp(f), or log sum exp(f) g.", **_SHIFT_EXP
)
LogSumExpWeight = reduction(
    "LogSumExpWeight",
    formulas=(2, 2),
    finalize=_log,
    vjp=_lse_vjp,
    doc="log sum exp(f) g: NaN where the sum is negative, -inf where it is 0.",
    **_SHIFT_EXP,
)


def _softmax_fold(m: Any, acc: Any, f: Any, g: Any) -> list[Any]:
    top = _top(m, acc, lambda c: m.max_j(f[c]))
    return [top, _exp_sum(m, acc, acc.s, top, f), _exp_sum(m, acc, acc.t, top, f, g)]


def _softmax_merge(m: Any, a: Any, b: Any) -> list[Any]:
    top, sums = _shift_exp_merge(m, a, b)
    return [top, sums, m.vector(a.t.dim, lambda c: _rescaled(m, top, a, a.t, c) + _rescaled(m, top, b, b.t, c))]


_SOFTMAX = {
    "formulas": (2, 2),
    "outputs": ("value",),
    "float_sum": True,
    "fields": lambda dims, k: _exp_fields(dims, 2),
    "fold": _softmax_fold,
    "merge": _softmax_merge,
    "finalize": lambda m, acc: [m.vector(acc.t.dim, lambda c: acc.t[c] / acc.s[0 if acc.s.dim == 1 else c])],
    "vjp": _softmax_vjp,
    "doc": "sum exp(f) g / sum exp(f).",
}
SumSoftMaxWeight = reduction("SumSoftMaxWeight", **_SOFTMAX)
SoftMax = reduction("SoftMax", **_SOFTMAX)

# Extrema ------------------------------------------------------------------------------------------------------------


def _less(a: Any, b: Any) -> Any:
    return a < b


def _greater(a: Any, b: Any) -> Any:
    return a > b


class _Extremum:
    """Min (or Max): how to compare, and the tile reductions to use."""

    def __init__(self, better: Callable[[Any, Any], Any], worst: float, value: str, index: str) -> None:
        self.better, self.worst, self.value, self.index = better, worst, value, index

    def best(self, m: Any, a: Any, b: Any) -> Any:
        return m.where(self.better(b, a), b, a)

    def value_fields(self, dims: Sequence[int], k: int) -> tuple[Field, ...]:
        return (Field("v", dims[0], self.worst),)

    def value_fold(self, m: Any, acc: Any, f: Any) -> list[Any]:
        return [m.vector(f.dim, lambda c: self.best(m, acc.v[c], getattr(m, self.value)(f[c])))]

    def value_merge(self, m: Any, a: Any, b: Any) -> list[Any]:
        return [m.vector(a.v.dim, lambda c: self.best(m, a.v[c], b.v[c]))]

    def pair_fields(self, dims: Sequence[int], k: int) -> tuple[Field, ...]:
        return (*self.value_fields(dims, k), Field("i", dims[0], -1, index=True))

    def _pair(self, m: Any, a: Any, value: Any, index: Any) -> list[Any]:
        keep = m.vector(a.i.dim, lambda c: m.where(self.better(value(c), a.v[c]), index(c), a.i[c]))
        return [m.vector(a.v.dim, lambda c: self.best(m, a.v[c], value(c))), keep]

    def pair_fold(self, m: Any, acc: Any, f: Any) -> list[Any]:
        tile_value, tile_index = getattr(m, self.value), getattr(m, self.index)
        return self._pair(m, acc, lambda c: tile_value(f[c]), lambda c: tile_index(f[c]))

    def pair_merge(self, m: Any, a: Any, b: Any) -> list[Any]:
        return self._pair(m, a, lambda c: b.v[c], lambda c: b.i[c])

    def indices(self, m: Any, acc: Any) -> Any:
        """The index found; 0 where no value beat the worst one though there were rows (all infinite or NaN)."""
        return m.vector(acc.i.dim, lambda c: m.where((acc.i[c] < 0) & (m.count_j() > 0), m.index(0), acc.i[c]))


def _declare_extrema(name: str, extremum: _Extremum, word: str) -> None:
    values = {
        "formulas": (1, 1),
        "fields": extremum.value_fields,
        "fold": extremum.value_fold,
        "merge": extremum.value_merge,
    }
    pairs = {
        "formulas": (1, 1),
        "fields": extremum.pair_fields,
        "fold": extremum.pair_fold,
        "merge": extremum.pair_merge,
    }
    reduction(name, outputs=("value",), finalize=lambda m, acc: [acc.v], doc=f"{word} value.", **values)
    reduction(
        f"Arg{name}",
        outputs=("index",),
        finalize=lambda m, acc: [extremum.indices(m, acc)],
        doc=f"Row of the first {word.lower()} value.",
        **pairs,
    )
    reduction(
        f"{name}_Arg{name}",
        outputs=("value", "index"),
        doc=f"{word} value and its row.",
        finalize=lambda m, acc: [acc.v, extremum.indices(m, acc)],
        **pairs,
    )


_declare_extrema("Min", _Extremum(_less, math.inf, "min_j", "argmin_j"), "Smallest")
_declare_extrema("Max", _Extremum(_greater, -math.inf, "max_j", "argmax_j"), "Largest")

# The K best, sorted -------------------------------------------------------------------------------------------------


class _Best:
    """The K best rows per component, best first. Component c of neighbour n stands at n * D + c.

    Free places hold NaN, so that "not (f no better than the K-th)" is true for them in one comparison, for infinite
    f as well; a NaN in f passes that guard and is then rejected by the insertion.
    """

    def __init__(self, no_better: Callable[[Any, Any], Any], padding: float) -> None:
        self.no_better, self.padding = no_better, padding

    def fields(self, dims: Sequence[int], k: int) -> tuple[Field, ...]:
        return (Field("v", k * dims[0], math.nan), Field("i", k * dims[0], -1, index=True))

    def guard(self, m: Any, acc: Any, f: Any) -> Any:
        passes = [~self.no_better(f[c], acc.v[acc.v.dim - f.dim + c]) for c in range(f.dim)]
        result = passes[0]
        for passed in passes[1:]:
            result = result | passed
        return result

    def _insert(self, m: Any, v: list[Any], i: list[Any], f: Any, j: Any) -> tuple[list[Any], list[Any]]:
        """Insertion into a sorted list, branch-free: places after f's move down by one."""
        number = m.eq(f, f)
        before = [number & ~self.no_better(f, value) for value in v]
        values = [m.where(before[0], f, v[0])]
        indices = [m.where(before[0], j, i[0])]
        for n in range(1, len(v)):
            values.append(m.where(before[n - 1], v[n - 1], m.where(before[n], f, v[n])))
            indices.append(m.where(before[n - 1], i[n - 1], m.where(before[n], j, i[n])))
        return values, indices

    def _gather(self, m: Any, a: Any, dim: int, insert: Callable[[int, list[Any], list[Any]], Any]) -> list[Any]:
        v: list[Any] = [None] * a.v.dim
        i: list[Any] = [None] * a.v.dim
        for c in range(dim):
            v[c::dim], i[c::dim] = insert(
                c, [a.v[n] for n in range(c, a.v.dim, dim)], [a.i[n] for n in range(c, a.v.dim, dim)]
            )
        return [m.listed(v), m.listed(i)]

    def step(self, m: Any, acc: Any, j: Any, f: Any) -> list[Any]:
        return self._gather(m, acc, f.dim, lambda c, v, i: self._insert(m, v, i, f[c], j[c]))

    def values(self, m: Any, acc: Any) -> Any:
        return m.vector(acc.v.dim, lambda c: m.where(m.ne(acc.v[c], acc.v[c]), self.padding, acc.v[c]))


def _declare_best(name: str, best: _Best, word: str) -> None:
    shared: dict[str, Any] = {
        "formulas": (1, 1),
        "takes_k": True,
        "fields": best.fields,
        "step": best.step,
        "guard": best.guard,
    }
    reduction(
        f"K{name}",
        outputs=("value",),
        doc=f"The K {word} values, sorted.",
        finalize=lambda m, acc: [best.values(m, acc)],
        **shared,
    )
    reduction(
        f"ArgK{name}",
        outputs=("index",),
        doc=f"Rows of the K {word} values.",
        finalize=lambda m, acc: [acc.i],
        **shared,
    )
    reduction(
        f"K{name}_ArgK{name}",
        outputs=("value", "index"),
        doc=f"The K {word} values and their rows.",
        finalize=lambda m, acc: [best.values(m, acc), acc.i],
        **shared,
    )


_declare_best("Min", _Best(lambda a, b: a >= b, math.inf), "smallest")
_declare_best("Max", _Best(lambda a, b: a <= b, -math.inf), "largest")
