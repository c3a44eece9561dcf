"""Operators that mix components: constants, indexing, norms, products. Matrices are row-major, as PyKeOps computes.

`at(m, k, f, ...)` gives component k of the result. k may be an integer or a symbolic index (a loop over components),
so choices that depend on k go through `m.piecewise`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from tritonkeops.formula.ir import Const, IllTyped, Node, Operator
from tritonkeops.operators.declare import componentwise, derived, expect, zero_like
from tritonkeops.operators.elementwise import Rsqrt, Sqrt, Square

# Sums and copies --------------------------------------------------------------------------------------------------

Sum: Operator = componentwise(
    "Sum",
    dim=lambda f: 1,
    at=lambda m, k, f: m.sum(f.dim, lambda c: f[c]),
    vjp=lambda e, f: [SumT(e, f.dim)],
    doc="Sum of the components of f.",
)


def _sumt_dim(f: Node, n: int) -> int:
    expect(f.dim == 1, lambda: f"SumT(f, n): f = {f!r} has dim {f.dim}, expected a scalar")
    expect(n >= 1, lambda: f"SumT(f, n): n = {n}, expected at least 1", 1)
    return n


SumT: Operator = componentwise(
    "SumT",
    dim=_sumt_dim,
    at=lambda m, k, f, n: f[0],
    vjp=lambda e, f, n: [Sum(e)],
    doc="n copies of the scalar f.",
    static=("n",),
    example=(3,),
    example_dims=(1,),
)


# Constants: evaluated where they are written, so they are nodes of their own and not operators' results -----------


def _constant(name: str, static: tuple[str, ...], value: Any, doc: str, example: tuple[int, ...]) -> Any:
    return derived(name, value, doc, static=static, example=example)


IntCst: Operator = _constant("IntCst", ("n",), lambda n: Const(n), "The integer n.", (2,))
IntInv: Operator = _constant("IntInv", ("n",), lambda n: Const(_ratio("IntInv", 1, n, 0)), "1 / n.", (3,))
RatCst: Operator = _constant("RatCst", ("p", "q"), lambda p, q: Const(_ratio("RatCst", p, q, 1)), "p / q.", (2, 3))
Zero: Operator = _constant("Zero", ("n",), lambda n: Const(0, _positive("Zero", n)), "n zeros.", (3,))


def _ratio(name: str, p: int, q: int, place: int) -> Fraction:
    expect(q != 0, lambda: f"{name}: division by zero", place)
    return Fraction(p, q)


def _positive(name: str, n: int) -> int:
    expect(n >= 1, lambda: f"{name}: n = {n}, expected at least 1", 0)
    return n


# Hints to KeOps' compiler. Equal formulas are one here, so common ones are computed once in any case ---------------

Factorize: Operator = derived("Factorize", lambda F, g: F, "F: that g is computed once needs no saying here.")
AutoFactorize: Operator = derived("AutoFactorize", lambda F: F, "F: what is common in it is computed once in any case.")


# Indexing and padding ---------------------------------------------------------------------------------------------


def _elem_dim(f: Node, m: int) -> int:
    expect(0 <= m < f.dim, lambda: f"Elem(f, m): m = {m}, expected 0 <= m < {f.dim}, the dim of f", 1)
    return 1


Elem: Operator = componentwise(
    "Elem",
    dim=_elem_dim,
    at=lambda math, k, f, m: f[m],
    vjp=lambda e, f, m: [ElemT(e, f.dim, m)],
    doc="Component m of f, from 0.",
    static=("m",),
    example=(1,),
    example_dims=(3,),
)


def _elemt_dim(f: Node, n: int, m: int) -> int:
    expect(f.dim == 1, lambda: f"ElemT(f, n, m): f = {f!r} has dim {f.dim}, expected a scalar")
    expect(0 <= m < n, lambda: f"ElemT(f, n, m): m = {m}, expected 0 <= m < n = {n}", 2)
    return n


ElemT: Operator = componentwise(
    "ElemT",
    dim=_elemt_dim,
    at=lambda math, k, f, n, m: math.piecewise(k, (m, lambda c: 0), (m + 1, lambda c: f[0]), (n, lambda c: 0)),
    vjp=lambda e, f, n, m: [Elem(e, m)],
    doc="The scalar f at position m of a vector of n zeros.",
    static=("n", "m"),
    example=(4, 1),
    example_dims=(1,),
)


def _extract_dim(f: Node, start: int, d: int) -> int:
    expect(
        start >= 0 and d >= 1 and start + d <= f.dim,
        lambda: f"Extract(f, start, d): components {start} to {start + d - 1}, expected some of the {f.dim} of f",
        1,
    )
    return d


Extract: Operator = componentwise(
    "Extract",
    dim=_extract_dim,
    at=lambda m, k, f, start, d: f[k + start],
    vjp=lambda e, f, start, d: [ExtractT(e, start, f.dim)],
    doc="d components of f from position start.",
    static=("start", "d"),
    example=(1, 2),
    example_dims=(4,),
)


def _extractt_dim(f: Node, start: int, n: int) -> int:
    expect(
        start >= 0 and start + f.dim <= n,
        lambda: f"ExtractT(f, start, n): components {start} to {start + f.dim - 1}, expected some of n = {n}",
        1,
    )
    return n


ExtractT: Operator = componentwise(
    "ExtractT",
    dim=_extractt_dim,
    at=lambda m, k, f, start, n: m.piecewise(
        k, (start, lambda c: 0), (start + f.dim, lambda c: f[c - start]), (n, lambda c: 0)
    ),
    vjp=lambda e, f, start, n: [Extract(e, start, f.dim)],
    doc="f at position start of a vector of n zeros.",
    static=("start", "n"),
    example=(1, 5),
    example_dims=(2,),
)
Concat: Operator = componentwise(
    "Concat",
    dim=lambda f, g: f.dim + g.dim,
    at=lambda m, k, f, g: m.piecewise(k, (f.dim, lambda c: f[c]), (f.dim + g.dim, lambda c: g[c - f.dim])),
    vjp=lambda e, f, g: [Extract(e, 0, f.dim), Extract(e, f.dim, g.dim)],
    doc="The components of f, then those of g.",
    example_dims=(2, 3),
)


def _onehot_dim(f: Node, n: int) -> int:
    expect(f.dim == 1, lambda: f"OneHot(f, n): f = {f!r} has dim {f.dim}, expected a scalar")
    return _positive("OneHot", n)


OneHot: Operator = componentwise(
    "OneHot",
    dim=_onehot_dim,
    at=lambda m, k, f, n: m.where(m.eq(m.floor(f[0] + 0.5), m.number(k)), 1, 0),
    vjp=lambda e, f, n: [0],
    doc="1 at the position nearest to f among n, else 0; all 0 where f is outside.",
    static=("n",),
    example=(3,),
    example_dims=(1,),
)


# Extrema over components ------------------------------------------------------------------------------------------
# The first best one; a NaN counts only in the first place.

Max: Operator = componentwise(
    "Max",
    dim=lambda f: 1,
    at=lambda m, k, f: m.best(f.dim, lambda c: f[c], "gt")[0],
    vjp=lambda e, f: [e * OneHot(ArgMax(f), f.dim)],
    doc="Largest component.",
)
Min: Operator = componentwise(
    "Min",
    dim=lambda f: 1,
    at=lambda m, k, f: m.best(f.dim, lambda c: f[c], "lt")[0],
    vjp=lambda e, f: [e * OneHot(ArgMin(f), f.dim)],
    doc="Smallest component.",
)
ArgMax: Operator = componentwise(
    "ArgMax",
    dim=lambda f: 1,
    at=lambda m, k, f: m.best(f.dim, lambda c: f[c], "gt")[1],
    vjp=lambda e, f: [zero_like(f)],
    doc="Position of the first largest component.",
)
ArgMin: Operator = componentwise(
    "ArgMin",
    dim=lambda f: 1,
    at=lambda m, k, f: m.best(f.dim, lambda c: f[c], "lt")[1],
    vjp=lambda e, f: [zero_like(f)],
    doc="Position of the first smallest component.",
)

# Products ---------------------------------------------------------------------------------------------------------


def _matvec_dim(A: Node, b: Node) -> int:
    expect(
        A.dim % b.dim == 0,
        lambda: f"MatVecMult(A, b): A = {A!r} has dim {A.dim}, expected a multiple of {b.dim}, the dim of b",
    )
    return A.dim // b.dim


def _vecmat_dim(b: Node, A: Node) -> int:
    expect(
        A.dim % b.dim == 0,
        lambda: f"VecMatMult(b, A): A = {A!r} has dim {A.dim}, expected a multiple of {b.dim}, the dim of b",
        1,
    )
    return A.dim // b.dim


MatVecMult: Operator = componentwise(
    "MatVecMult",
    dim=_matvec_dim,
    at=lambda m, k, A, b: m.sum(b.dim, lambda c: A[k * b.dim + c] * b[c]),
    vjp=lambda e, A, b: [TensorProd(e, b), VecMatMult(e, A)],
    doc="Matrix A (n x p, row-major) times vector b (p): n components.",
    example_dims=(6, 3),
)
VecMatMult: Operator = componentwise(
    "VecMatMult",
    dim=_vecmat_dim,
    at=lambda m, k, b, A: m.sum(b.dim, lambda c: b[c] * A[c * (A.dim // b.dim) + k]),
    vjp=lambda e, b, A: [MatVecMult(A, e), TensorProd(b, e)],
    doc="Vector b (n) times matrix A (n x p, row-major): p components.",
    example_dims=(2, 6),
)
TensorProd: Operator = componentwise(
    "TensorProd",
    dim=lambda f, g: f.dim * g.dim,
    at=lambda m, k, f, g: f[k // g.dim] * g[k % g.dim],
    vjp=lambda e, f, g: [MatVecMult(e, g), VecMatMult(f, e)],
    doc="Outer product, row-major: component k * dim(g) + l is f_k g_l.",
    example_dims=(2, 3),
)
Scalprod: Operator = derived("Scalprod", lambda f, g: Sum(f * g), "Scalar product of f and g.", symbol="|")

# Norms ------------------------------------------------------------------------------------------------------------

SqNorm2: Operator = derived("SqNorm2", lambda f: Sum(Square(f)), "Squared Euclidean norm.")
Norm2: Operator = derived("Norm2", lambda f: Sqrt(SqNorm2(f)), "Euclidean norm; derivative 0 at 0.")
Normalize: Operator = derived("Normalize", lambda f: Rsqrt(SqNorm2(f)) * f, "f / Norm2(f), and 0 at 0.")
SqDist: Operator = derived("SqDist", lambda f, g: SqNorm2(f - g), "Squared Euclidean distance.")


def _square_matrix(S: Node, f: Node) -> Node:
    expect(
        S.dim == f.dim**2,
        lambda: f"SymSqNorm(S, f): S = {S!r} has dim {S.dim}, expected {f.dim**2}, the square of the dim of f",
    )
    return Scalprod(MatVecMult(S, f), f)


def _weighted(s: Node, f: Node) -> Node:
    norms = {1: SqNormIso, f.dim: SqNormDiag, f.dim**2: SymSqNorm}
    form = SqNormIso if s.dim == 1 else norms.get(s.dim)
    if form is None:
        raise IllTyped(
            f"WeightedSqNorm(s, f): s = {s!r} has dim {s.dim}, expected 1, {f.dim} or {f.dim**2} for f of dim {f.dim}",
            0,
        )
    return form(s, f)


SqNormIso: Operator = derived(
    "SqNormIso", lambda s, f: s * SqNorm2(f), "s times the squared norm of f.", example_dims=(1, 3)
)
SqNormDiag: Operator = derived("SqNormDiag", lambda s, f: Sum(s * Square(f)), "Sum of s_k f_k^2.")
SymSqNorm: Operator = derived("SymSqNorm", _square_matrix, "Sum of S[k, l] f_k f_l, S row-major.", example_dims=(9, 3))
WeightedSqNorm: Operator = derived(
    "WeightedSqNorm",
    _weighted,
    "SqNormIso, SqNormDiag or SymSqNorm, by the dim of s: 1, D or D x D.",
    example_dims=(3, 3),
)
WeightedSqDist: Operator = derived(
    "WeightedSqDist", lambda s, f, g: WeightedSqNorm(s, f - g), "WeightedSqNorm(s, f - g)."
)
