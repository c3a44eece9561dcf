"""Reductions, each a monoid. The same declaration serves the loop over j, blocks of it, threads, and streaming.

Semantics. NaN propagates in sums, LogSumExp and softmax, and is skipped by Min, Max and their kin. Nothing to reduce
gives 0, -inf (LogSumExp), +-inf, index -1, NaN (softmax). Ties: the lowest index first. Indices are integers.
`m` offers, on a tile of j: sum_j, max_j, min_j, argmin_j, argmax_j; `m.vector(n, at)` makes a vector of components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tritonkeops.formula.ir import Category, Field, IllTyped, Node, Reduction, ReductionOp, Var
from tritonkeops.operators.declare import reduction, sum_to
from tritonkeops.operators.derivatives import Grad
from tritonkeops.operators.elementwise import Exp, Shift
from tritonkeops.operators.vector import Concat, Extract, Scalprod


def _axis_for(v: Var) -> int:
    """Axis to reduce so that the result is indexed like v; for a parameter by i, as in KeOps, its rows to be added."""
    return {Category.I: 1, Category.J: 0, Category.P: 1}[v.category]


# Running sums: what Sum and the sums of exponentials have in common ---------------------------------------------------


def _scaled(vector: Any, scale: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The components of a vector, times a scale if there is one."""
    return lambda c: vector[c] * scale(c) if scale else vector[c]


class _Plain:
    """Running totals as they are: old * scale + terms."""

    def fields(self, name: str, size: int) -> tuple[Field, ...]:
        return (Field(name, size, 0.0),)

    def add(self, m: Any, acc: Any, name: str, scale: Any, terms: Any) -> list[Any]:
        total = getattr(acc, name)
        old = _scaled(total, scale)
        return [m.vector(total.dim, lambda c: old(c) + terms(c))]

    def join(self, m: Any, a: Any, b: Any, name: str, scale_a: Any = None, scale_b: Any = None) -> list[Any]:
        """a * scale_a + b * scale_b."""
        return self.add(m, a, name, scale_a, _scaled(getattr(b, name), scale_b))


class _Kahan:
    """Running totals with what the last addition lost (Kahan 1965); `lost` is what another total lost, when joining.

    Once the total is infinite, what is lost is NaN (inf - inf): it is dropped, so that the total stays infinite.
    """

    def fields(self, name: str, size: int) -> tuple[Field, ...]:
        return (Field("lost_" + name, size, 0.0), Field(name, size, 0.0))

    def add(self, m: Any, acc: Any, name: str, scale: Any, terms: Any, lost: Any = None) -> list[Any]:
        total = getattr(acc, name)
        old, error = _scaled(total, scale), _scaled(getattr(acc, "lost_" + name), scale)

        def addend(c: Any) -> Any:
            known = error(c) + lost(c) if lost else error(c)
            return terms(c) - m.where(m.abs(known) < math.inf, known, 0)  # what an infinite total loses is NaN

        def error_after(c: Any) -> Any:
            lost_now = ((old(c) + addend(c)) - old(c)) - addend(c)
            return m.where(m.eq(lost_now, lost_now), lost_now, 0)

        return [m.vector(total.dim, error_after), m.vector(total.dim, lambda c: old(c) + addend(c))]

    def join(self, m: Any, a: Any, b: Any, name: str, scale_a: Any = None, scale_b: Any = None) -> list[Any]:
        """See _Plain."""
        terms, lost = (_scaled(getattr(b, each), scale_b) for each in (name, "lost_" + name))
        return self.add(m, a, name, scale_a, terms, lost)


_Sums = _Plain | _Kahan


def _sum_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    return Reduction(Sum, [Grad(node.args[0], v, e)], _axis_for(v))


def _sum(sums: _Sums) -> dict[str, Any]:
    return {
        "formulas": (1, 1),
        "outputs": ("value",),
        "float_sum": True,
        "linear": True,
        "fields": lambda dims, k: sums.fields("s", dims[0]),
        "fold": lambda m, acc, f: sums.add(m, acc, "s", None, lambda c: m.sum_j(f[c])),
        "merge": lambda m, a, b: sums.join(m, a, b, "s"),
        "finalize": lambda m, acc: [acc.s],
        "vjp": _sum_vjp,
        "jvp": lambda node, tangents, out: tangents[0],
        "joint": lambda node, slope: Reduction(Sum, [Concat(slope, node.args[0])], node.axis),
        "doc": "Sum.",
    }


Sum = reduction("Sum", **_sum(_Plain()), compensated=_sum(_Kahan()))

# Sums of exponentials, shifted by the running maximum ---------------------------------------------------------------


_LARGEST = float.fromhex("0x1.fffffep127")  # the largest float32


def _at(vector: Any, c: Any) -> Any:
    """Component c, or the only one."""
    return vector[0 if vector.dim == 1 else c]


class _ExpSums:
    """sum exp(f - m) for `s`, sum exp(f - m) g for `t`, m being the running maximum; `weights` tells which.

    In base 2, for float32, where f has been multiplied by log2(e), they are sums of 2^(f - m), and the maximum of
    nothing is the lowest number: one operation then keeps it finite, where base e needs two.
    """

    def __init__(self, sums: _Sums, weights: str, base2: bool = False) -> None:
        self.sums, self.weights, self.base2 = sums, weights, base2

    def exp(self, m: Any, x: Any) -> Any:
        return m.exp2(x) if self.base2 else m.exp(x)

    def shift(self, m: Any, top: Any) -> Any:
        """What to subtract in the exponent: the maximum, or a number where it is infinite, since inf - inf is NaN."""
        if self.base2:
            return m.min(top, m.const(_LARGEST))
        return m.where(m.eq(m.abs(top), math.inf), 0, top)

    def top(self, m: Any, acc: Any, c: Any) -> Any:
        """The maximum of f as it was written."""
        top = _at(acc.m, c)
        return m.where(top <= -_LARGEST, -math.inf, math.log(2) * top) if self.base2 else top

    def fields(self, dims: Sequence[int], k: int) -> tuple[Field, ...]:
        sizes = {"s": dims[0] if "t" in self.weights else max(dims), "t": max(dims)}
        parts = [self.sums.fields(name, sizes[name]) for name in self.weights]
        return (
            Field("m", dims[0], -_LARGEST if self.base2 else -math.inf),
            *(field for part in parts for field in part),
        )

    def _rescale(self, m: Any, acc: Any, top: Any) -> Callable[[Any], Any]:
        """What takes a sum relative to acc.m to one relative to `top`."""
        return lambda c: self.exp(m, _at(acc.m, c) - self.shift(m, _at(top, c)))

    def fold(self, m: Any, acc: Any, f: Any, g: Any = None) -> list[Any]:
        top = m.vector(acc.m.dim, lambda c: m.max(acc.m[c], m.max_j(f[c])))
        result = [top]
        for name in self.weights:
            weight = None if name == "s" and "t" in self.weights else g

            def terms(c: Any, weight: Any = weight) -> Any:
                term = self.exp(m, _at(f, c) - self.shift(m, _at(top, c)))
                return m.sum_j(term if weight is None else term * _at(weight, c))

            result += self.sums.add(m, acc, name, self._rescale(m, acc, top), terms)
        return result

    def merge(self, m: Any, a: Any, b: Any) -> list[Any]:
        top = m.vector(a.m.dim, lambda c: m.max(a.m[c], b.m[c]))
        result = [top]
        for name in self.weights:
            result += self.sums.join(m, a, b, name, self._rescale(m, a, top), self._rescale(m, b, top))
        return result


def _log(sums: _ExpSums, m: Any, acc: Any) -> list[Any]:
    return [m.vector(acc.s.dim, lambda c: sums.top(m, acc, c) + m.log(acc.s[c]))]


def _pair(sums: _ExpSums, m: Any, acc: Any) -> list[Any]:
    n = acc.m.dim
    total = n + acc.s.dim
    return [
        m.vector(total, lambda c: m.piecewise(c, (n, lambda d: sums.top(m, acc, d)), (total, lambda d: acc.s[d - n])))
    ]


def _ratio_and_log(sums: _ExpSums, m: Any, acc: Any) -> list[Any]:
    (ratio,), (log,) = _ratio(sums, m, acc), _log(sums, m, acc)
    n, total = ratio.dim, ratio.dim + log.dim
    return [m.vector(total, lambda c: m.piecewise(c, (n, lambda d: ratio[d]), (total, lambda d: log[d - n])))]


def _ratio(sums: _ExpSums, m: Any, acc: Any) -> list[Any]:
    return [m.vector(acc.t.dim, lambda c: acc.t[c] / _at(acc.s, c))]


def _lse_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    """d log sum exp(f) g = sum exp(f - out) (g df + dg): a softmax average where v is indexed like the result."""
    f, *g = node.args
    axis = _axis_for(v)
    if out is None and axis == node.axis and not g and f.dim == 1:
        return Reduction(SumSoftMaxWeight, [f, Grad(f, v, e)], axis)
    if out is None:
        raise IllTyped(
            f"the derivative of {node.op.name} by {v.name} needs the result: "
            "write Grad_WithSavedForward(R, v, e, out), out being a variable that holds it",
            1,
        )
    p = Exp(f - Shift(out))
    if not g:
        return Reduction(Sum, [Grad(f, v, e * p)], axis)
    through_f, through_g = sum_to(f.dim, e * p * g[0]), sum_to(g[0].dim, e * p)
    return Reduction(Sum, [Grad(f, v, through_f) + Grad(g[0], v, through_g)], axis)


def _lse_jvp(node: Reduction, tangents: Sequence[Node], out: Node) -> Node:
    f, *g = node.args
    df, *dg = tangents
    return Exp(f - Shift(out)) * (g[0] * df + dg[0] if g else df)


def _lse_joint(node: Reduction, slope: Node) -> Reduction:
    return Reduction(SumSoftMaxWeight_LogSumExp, [node.args[0], slope], node.axis)


def _softmax_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    """d sum p g = sum p ((g - out) df + dg), p the softmax of f, which is known only along the result's axis."""
    f, g = node.args
    axis = _axis_for(v)
    if out is None or axis != node.axis or f.dim != 1:
        raise IllTyped(f"the derivative of {node.op.name} by {v.name} cannot be written as one reduction", 1)
    return Reduction(node.op, [f, Grad(f, v, Scalprod(e, g - out)) + Grad(g, v, e)], axis)


def _halves(node: Reduction, value: Node) -> tuple[Node, Node]:
    """What belongs to the softmax average and what to the logarithm."""
    n = node.dim - node.args[0].dim
    return Extract(value, 0, n), Extract(value, n, node.args[0].dim)


def _softmax_lse_vjp(node: Reduction, v: Var, e: Node, out: Node | None) -> Reduction:
    """With p = exp(f - log): d average = sum p ((g - average) df + dg), and d log = sum p df."""
    if out is None:
        raise IllTyped(f"the derivative of {node.op.name} by {v.name} needs the result, as Grad_WithSavedForward", 1)
    (f, g), (average, log), (e_average, e_log) = node.args, _halves(node, out), _halves(node, e)
    p = Exp(f - Shift(log))
    through_f = sum_to(f.dim, e_average * p * (g - average)) + e_log * p
    return Reduction(Sum, [Grad(f, v, through_f) + Grad(g, v, sum_to(g.dim, e_average * p))], _axis_for(v))


def _softmax_lse_jvp(node: Reduction, tangents: Sequence[Node], out: Node) -> Node:
    (f, g), (average, log), (df, dg) = node.args, _halves(node, out), tangents
    p = Exp(f - Shift(log))
    return Concat(p * ((g - average) * df + dg), p * df)


def _declare_exp_sums(name: str, weights: str, finalize: Callable[..., list[Any]], **declaration: Any) -> ReductionOp:
    """A reduction on top of _ExpSums, and its twins: compensated, in base 2, and both."""

    def declared(parts: _ExpSums, **twins: dict[str, Any]) -> dict[str, Any]:
        monoid = {
            "fields": parts.fields,
            "fold": parts.fold,
            "merge": parts.merge,
            "finalize": partial(finalize, parts),
        }
        return {"outputs": ("value",), "float_sum": True, "exponential": True, **monoid, **declaration, **twins}

    both = declared(_ExpSums(_Kahan(), weights, base2=True))
    compensated = declared(_ExpSums(_Kahan(), weights), base2=both)
    base2 = declared(_ExpSums(_Plain(), weights, base2=True), compensated=both)
    return reduction(name, **declared(_ExpSums(_Plain(), weights), compensated=compensated, base2=base2))


_RAW: dict[str, Any] = {"finalize": _pair, "size": lambda dims: dims[0] + max(dims)}
_LOGARITHM: dict[str, Any] = {"finalize": _log, "vjp": _lse_vjp, "jvp": _lse_jvp}
_SOFTMAX: dict[str, Any] = {
    "formulas": (2, 2),
    "finalize": _ratio,
    "vjp": _softmax_vjp,
    "doc": "sum exp(f) g / sum exp(f).",
}

Max_SumShiftExp = _declare_exp_sums(
    "Max_SumShiftExp", "s", formulas=(1, 1), doc="The pair (m, sum exp(f - m)), m the maximum.", **_RAW
)
Max_SumShiftExpWeight = _declare_exp_sums(
    "Max_SumShiftExpWeight", "s", formulas=(2, 2), doc="(m, sum exp(f - m) g).", **_RAW
)
LogSumExp = _declare_exp_sums(
    "LogSumExp",
    "s",
    formulas=(1, 2),
    joint=_lse_joint,
    doc="log sum exp(f), or log sum exp(f) g.",
    **_LOGARITHM,
)
LogSumExpWeight = _declare_exp_sums(
    "LogSumExpWeight",
    "s",
    formulas=(2, 2),
    doc="log sum exp(f) g: NaN where the sum is negative, -inf where it is 0.",
    **_LOGARITHM,
)
SumSoftMaxWeight_LogSumExp = _declare_exp_sums(
    "SumSoftMaxWeight_LogSumExp",
    "st",
    formulas=(2, 2),
    finalize=_ratio_and_log,
    vjp=_softmax_lse_vjp,
    jvp=_softmax_lse_jvp,
    size=lambda dims: dims[0] + max(dims),
    doc="The softmax average of g, then log sum exp(f).",
)
SumSoftMaxWeight = _declare_exp_sums("SumSoftMaxWeight", "st", **_SOFTMAX, extended=SumSoftMaxWeight_LogSumExp)
SoftMax = _declare_exp_sums("SoftMax", "st", **_SOFTMAX, extended=SumSoftMaxWeight_LogSumExp)

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
    values: dict[str, Any] = {
        "formulas": (1, 1),
        "fields": extremum.value_fields,
        "fold": extremum.value_fold,
        "merge": extremum.value_merge,
    }
    pairs: dict[str, Any] = {
        "formulas": (1, 1),
        "fields": extremum.pair_fields,
        "fold": extremum.pair_fold,
        "merge": extremum.pair_merge,
    }
    reduction(
        f"Arg{name}",
        outputs=("index",),
        finalize=lambda m, acc: [extremum.indices(m, acc)],
        doc=f"Row of the first {word.lower()} value.",
        **pairs,
    )
    pair = reduction(
        f"{name}_Arg{name}",
        outputs=("value", "index"),
        doc=f"{word} value and its row.",
        finalize=lambda m, acc: [acc.v, extremum.indices(m, acc)],
        **pairs,
    )
    reduction(
        name,
        outputs=("value",),
        finalize=lambda m, acc: [acc.v],
        doc=f"{word} value.",
        extended=pair,
        **values,
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

    def step(self, m: Any, acc: Any, j: Any, f: Any) -> list[Any]:
        """Insertion into sorted lists, branch-free: places after f's move down by one.

        A table's rows are written from the last to the first, so that places are read before they are overwritten.
        """
        dim = f.dim

        def before(n: Any, c: int) -> Any:
            return m.eq(f[c], f[c]) & ~self.no_better(f[c], acc.v[n * dim + c])

        def inserted(old: Any, new: Any) -> Any:
            def placed(n: Any, c: int) -> Any:
                return m.where(before(n, c), new[c], old[n * dim + c])

            def at(n: Any, c: int) -> Any:
                def moved(n: Any) -> Any:
                    return m.where(before(n - 1, c), old[(n - 1) * dim + c], placed(n, c))

                return m.piecewise(n, (1, lambda n: placed(n, c)), (old.dim // dim, moved))

            return m.table(old.dim // dim, dim, at)

        return [inserted(acc.v, f), inserted(acc.i, j)]

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
        f"ArgK{name}",
        outputs=("index",),
        doc=f"Rows of the K {word} values.",
        finalize=lambda m, acc: [acc.i],
        **shared,
    )
    pair = reduction(
        f"K{name}_ArgK{name}",
        outputs=("value", "index"),
        doc=f"The K {word} values and their rows.",
        finalize=lambda m, acc: [best.values(m, acc), acc.i],
        **shared,
    )
    reduction(
        f"K{name}",
        outputs=("value",),
        doc=f"The K {word} values, sorted.",
        finalize=lambda m, acc: [best.values(m, acc)],
        extended=pair,
        **shared,
    )


_declare_best("Min", _Best(lambda a, b: a >= b, math.inf), "smallest")
_declare_best("Max", _Best(lambda a, b: a <= b, -math.inf), "largest")
