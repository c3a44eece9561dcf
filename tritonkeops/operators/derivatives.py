"""Words that ask for derivatives, traces or adjoints: the pass `differentiate` puts formulas in their place.

In the last three L is linear in v: a matrix M is applied to v, M[k, l] being dL_k / dv_l.
"""

from __future__ import annotations

import functools

from tritonkeops.formula.ir import Apply, Category, Const, Node, Operator, Var
from tritonkeops.operators.declare import expect, structural
from tritonkeops.operators.vector import Concat, ElemT

# Derivatives ------------------------------------------------------------------------------------------------------


def _by_variable(signature: str, v: Node) -> None:
    expect(isinstance(v, Var), lambda: f"{signature}: v = {v!r}, expected a variable", 1)


def _same_dim(signature: str, given: str, node: Node, like: str, other: Node, place: int) -> None:
    expect(
        node.dim == other.dim,
        lambda: f"{signature}: {given} = {node!r} has dim {node.dim}, expected {other.dim}, the dim of {like}",
        place,
    )


def _grad_dim(F: Node, v: Node, e: Node) -> int:
    _by_variable("Grad(F, v, e)", v)
    _same_dim("Grad(F, v, e)", "e", e, "F", F, 2)
    return v.dim


def _saved_dim(R: Node, v: Node, e: Node, out: Node) -> int:
    return _grad_dim(R, v, e)


def _matrix_dim(F: Node, v: Node) -> int:
    _by_variable("GradMatrix(F, v)", v)
    return F.dim * v.dim


def _diff_dim(F: Node, v: Node, u: Node) -> int:
    _by_variable("Diff(F, v, u)", v)
    _same_dim("Diff(F, v, u)", "u", u, "v", v, 2)
    return F.dim


def _divergence_dim(F: Node, v: Node) -> int:
    _by_variable("Divergence(F, v)", v)
    _same_dim("Divergence(F, v)", "F", F, "v", v, 0)
    return 1


def _laplacian_dim(F: Node, v: Node) -> int:
    _by_variable("Laplacian(F, v)", v)
    expect(F.dim == 1, lambda: f"Laplacian(F, v): F = {F!r} has dim {F.dim}, expected a scalar")
    return 1


def _jacobian(F: Node, v: Node) -> Node:
    return functools.reduce(Concat, [Grad(F, v, ElemT(Const(1), F.dim, k)) for k in range(F.dim)])


def _divergence(F: Node, v: Node) -> Node:
    direction = Var(-1, v.dim, Category.P, "direction'")  # no name of the language has a quote
    return TraceOperator(Diff(F, v, direction), direction)


Grad: Operator = structural("Grad", _grad_dim, "Adjoint of the derivative of F by the variable v, applied to e.")
Grad_WithSavedForward: Operator = structural(
    "Grad_WithSavedForward", _saved_dim, "Grad of a reduction R whose result `out` is given."
)
GradMatrix: Operator = structural(
    "GradMatrix", _matrix_dim, "Jacobian, row-major: component k * dim(v) + l is dF_k / dv_l.", expand=_jacobian
)
Diff: Operator = structural(
    "Diff",
    _diff_dim,
    "Derivative of F by the variable v, applied to u; the sum of such for tuples v and u.",
    summed=("v", "u"),
)
Divergence: Operator = structural("Divergence", _divergence_dim, "Sum of dF_k / dv_k.", expand=_divergence)
Laplacian: Operator = structural(
    "Laplacian",
    _laplacian_dim,
    "Sum of the second derivatives of the scalar F by each component of v.",
    expand=lambda F, v: Divergence(Grad(F, v, Const(1)), v),
    example_dims=(1, 3),
)

# Linear maps ------------------------------------------------------------------------------------------------------


def _scalar_or(signature: str, given: str, node: Node, like: str, other: Node, place: int) -> None:
    expect(
        node.dim in (1, other.dim),
        lambda: f"{signature}: {given} = {node!r} has dim {node.dim}, expected 1 or {other.dim}, the dim of {like}",
        place,
    )


def _trace_dim(L: Node, v: Node, w: Node = Const(1)) -> int:  # noqa: B008 (constants are frozen)
    _by_variable("TraceOperator(L, v, w)", v)
    _scalar_or("TraceOperator(L, v, w)", "L", L, "v", v, 0)
    _scalar_or("TraceOperator(L, v, w)", "w", w, "v", v, 2)
    return 1


def _adjoint_dim(L: Node, v: Node, u: Node) -> int:
    _by_variable("AdjointOperator(L, v, u)", v)
    _same_dim("AdjointOperator(L, v, u)", "u", u, "L", L, 2)
    return v.dim


def _entries_dim(L: Node, v: Node, wl: Node = Const(1), wr: Node = Const(1)) -> int:  # noqa: B008
    _by_variable("SumLinOperator(L, v, wl, wr)", v)
    _scalar_or("SumLinOperator(L, v, wl, wr)", "wl", wl, "L", L, 2)
    _scalar_or("SumLinOperator(L, v, wl, wr)", "wr", wr, "v", v, 3)
    return 1


TraceOperator: Operator = structural(
    "TraceOperator",
    _trace_dim,
    "Sum of w_k M[k, k], a scalar L being copied to the dim of v; w is a scalar or a vector.",
)
AdjointOperator: Operator = structural("AdjointOperator", _adjoint_dim, "The transpose of M times u.")
SumLinOperator: Operator = structural(
    "SumLinOperator", _entries_dim, "Sum of wl_k M[k, l] wr_l; wl and wr are scalars or vectors."
)

STRUCTURAL = (
    Grad,
    Grad_WithSavedForward,
    GradMatrix,
    Diff,
    Divergence,
    Laplacian,
    TraceOperator,
    AdjointOperator,
    SumLinOperator,
)
OF_REDUCTIONS = (Grad, Grad_WithSavedForward)
"""The words whose first operand may be a reduction."""


def is_structural(node: Node) -> bool:
    """Whether a node still has to be differentiated."""
    return isinstance(node, Apply) and node.op in STRUCTURAL
