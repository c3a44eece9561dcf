"""Factors of the kept axis leave a linear reduction: sum_j e_i t_ij becomes e_i sum_j t_ij, computed once per row."""

from __future__ import annotations

from tritonkeops.formula.ir import Const, Node, Reduction, in_range
from tritonkeops.operators.vector import SumT
from tritonkeops.passes.product import Product, product_of
from tritonkeops.passes.simplify import simplify, strict


def factor(node: Reduction) -> Reduction:
    """The same reduction with what does not vary with the reduced axis, constants and signs included, in its `factor`.

    Assumes finite values, as `simplify` does: inf * sum_j t_ij is not sum_j inf * t_ij where some t_ij is negative. The
    constant stays in range.
    """
    if not node.op.linear or strict() or isinstance(node.args[0], Const):
        return node
    (term,) = node.args
    outer, inner = product_of(term).split(lambda f: f.axes <= node.axes)
    whole = outer * product_of(node.factor) if node.factor else outer
    if outer == Product() or not in_range(whole.number):
        return node
    stays = _widened(inner.node(), term.dim)
    return Reduction(node.op, [stays], node.axis, node.k, whole.node())


def _widened(node: Node, dim: int) -> Node:
    """The node with the dim that it had before a vector left it."""
    return node if node.dim == dim else simplify(SumT(node, dim))
