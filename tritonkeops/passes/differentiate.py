"""Replace Grad, Diff, Laplacian and their like by the formulas they stand for: reverse accumulation over the DAG.

Adjoints are linear in their cotangents, so the adjoint of an adjoint is the derivative itself: operators declare no
forward rule.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

from tritonkeops.formula.ir import Apply, Category, Const, IllTyped, Node, Operator, Reduction, Var, as_node, postorder
from tritonkeops.formula.rewrite import rewrite, substitute
from tritonkeops.operators import derivatives, elementwise, reductions
from tritonkeops.operators.derivatives import is_structural
from tritonkeops.operators.vector import Elem, ElemT, Sum, SumT
from tritonkeops.passes.simplify import simplify


def differentiate(root: Node) -> Node:
    """The same node without gradients; raises IllTyped for a reduction whose derivative has no such form, and where
    something is not linear that should be."""
    return rewrite(root, _replace)


def _replace(node: Node) -> Node:
    if not is_structural(node):
        return node
    assert isinstance(node, Apply)
    if node.op.expand:
        return differentiate(node.op.expand(*node.args))
    return _FORMULAS[node.op](*node.args)


def _grad(inner: Node, v: Var, e: Node, out: Node | None = None) -> Node:
    return _of_reduction(inner, v, e, out) if isinstance(inner, Reduction) else gradient(inner, v, e)


def _of_reduction(node: Reduction, v: Var, e: Node, out: Node | None) -> Node:
    if node.op.outputs == ("index",):
        return Reduction(reductions.Sum, [Const(0, v.dim)], 0 if v.axes == frozenset("j") else 1)
    if node.op.vjp is None:
        raise IllTyped(f"{node.op.name} has no derivative")
    return differentiate(node.op.vjp(node, v, e, out))


# Derivatives ----------------------------------------------------------------------------------------------------------


def gradient(root: Node, v: Var, e: Node) -> Node:
    """The adjoint of d root / d v applied to e: a formula of dim v; zeros where root does not depend on v."""
    root = expand(root)
    order, depends = list(postorder([root])), dependents(root, v)
    cotangents: dict[Node, Node] = {root: e}
    for node in reversed(order):
        if isinstance(node, Apply) and node in cotangents and node in depends:
            _propagate(node, cotangents, depends)
    return cotangents.get(v, Const(0, v.dim)) if v in depends else Const(0, v.dim)


def dependents(root: Node, v: Var) -> set[Node]:
    """The nodes under a root that depend on v."""
    found: set[Node] = set()
    for node in postorder([root]):
        if node is v or any(operand in found for operand in node.operands):
            found.add(node)
    return found


def _propagate(node: Apply, cotangents: dict[Node, Node], depends: set[Node]) -> None:
    assert node.op.vjp is not None
    parts = node.op.vjp(cotangents[node], *node.args, *node.static)
    for operand, part in zip(node.args, parts, strict=True):
        if operand in depends:
            addend = as_node(part)
            known = cotangents.get(operand)
            cotangents[operand] = addend if known is None else known + addend


def tangent(root: Node, v: Var, u: Node) -> Node:
    """The derivative of root by v applied to u: a formula of root's dim; zeros where root does not depend on v."""
    cotangent = Var(-1, root.dim, Category.P, "cotangent'")  # no name of the language has a quote
    result = gradient(gradient(root, v, cotangent), cotangent, u)
    assert cotangent not in postorder([result]), f"the adjoint of {root!r} is not linear"
    return result


def expand(root: Node) -> Node:
    """Replace derived operators (SqDist, Norm2 ...) by their formulas, all the way down."""

    def unfold(node: Node) -> Node:
        while isinstance(node, Apply) and node.op.expand and not is_structural(node):
            node = expand(node.op.expand(*node.args, *node.static))
        return node

    return rewrite(root, unfold)


# Linear maps ----------------------------------------------------------------------------------------------------------


def _adjoint(L: Node, v: Var, u: Node) -> Node:
    M, x = _linear("AdjointOperator", L, v)
    return gradient(M, x, u)


def _sum_of_entries(L: Node, v: Var, wl: Node, wr: Node) -> Node:
    M, x = _linear("SumLinOperator", L, v)
    return Sum(wl * substitute(M, {x: _wide(wr, v.dim)}))


def _trace(L: Node, v: Var, w: Node) -> Node:
    """The sum of w_k dL_k / dv_k. Products with what does not depend on v go into w, so that mostly vectors are left:
    the rest is evaluated once for each component of v."""
    M, x = _linear("TraceOperator", L, v)
    depends, weights = dependents(M, x), {M: w}
    terms: list[Node] = [Const(0)]
    for node in reversed(list(postorder([M]))):
        if node not in depends or node not in weights:
            continue
        if node is x:
            terms.append(Sum(_wide(weights[node], x.dim)))
        elif node.dim == 1:
            terms.append(Sum(weights[node] * gradient(node, x, Const(1))))
        elif parts := _weighted(node, weights[node], depends):
            for part, weight in parts:
                weights[part] = weights[part] + weight if part in weights else weight
        else:
            terms += _diagonal(node, x, weights[node])
    return functools.reduce(operator.add, terms)


def _weighted(node: Node, w: Node, depends: set[Node]) -> list[tuple[Node, Node]]:
    """Linear maps and their weights that together have a map's trace; none where its operator is no such sum."""
    assert isinstance(node, Apply)
    f, *others = node.args
    g = others[0] if others else f
    if node.op in (elementwise.Add, elementwise.Subtract):
        return [(f, w), (g, w if node.op is elementwise.Add else -w)]
    if node.op is elementwise.Minus:
        return [(f, -w)]
    if node.op is SumT:
        return [(f, w)]
    if node.op is elementwise.Mult:
        return [(g, w * f)] if g in depends else [(f, w * g)]
    return [(f, w / g)] if node.op is elementwise.Divide else []


def _diagonal(node: Node, x: Var, w: Node) -> list[Node]:
    columns = [substitute(node, {x: ElemT(Const(1), x.dim, k)}) for k in range(x.dim)]
    return [(w if w.dim == 1 else Elem(w, k)) * Elem(column, k) for k, column in enumerate(columns)]


def _linear(word: str, L: Node, v: Var) -> tuple[Node, Var]:
    """The linear map v -> L as a formula of a variable of its own; raises IllTyped where the derivative varies."""
    argument = Var(-1, v.dim, Category.P, "argument'")
    M = simplify(expand(tangent(L, v, argument)))
    if v in postorder([M]):
        raise IllTyped(f"{word}: L is not linear in v = {v.name}: its derivative depends on {v.name}", 0)
    return M, argument


def _wide(node: Node, dim: int) -> Node:
    return node if node.dim == dim else SumT(node, dim)


_FORMULAS: dict[Operator, Callable[..., Node]] = {
    derivatives.Grad: _grad,
    derivatives.Grad_WithSavedForward: _grad,
    derivatives.Diff: tangent,
    derivatives.TraceOperator: _trace,
    derivatives.AdjointOperator: _adjoint,
    derivatives.SumLinOperator: _sum_of_entries,
}
