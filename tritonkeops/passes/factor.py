"""Factors of the kept axis leave a linear reduction: sum_j e_i t_ij becomes e_i sum_j t_ij, computed once per row."""

from __future__ import annotations

from tritonkeops.formula.ir import Const, Reduced, Reduction, in_range
from tritonkeops.formula.rewrite import substitute
from tritonkeops.operators.elementwise import Mult
from tritonkeops.passes.product import Product, product_of
from tritonkeops.passes.simplify import strict


def factor(node: Reduction) -> Reduction:
    """The same reduction with what does not vary with the reduced axis, constants and signs included, in its result.

    Assumes finite values, as `simplify` does: inf * sum_j t_ij is not sum_j inf * t_ij where some t_ij is negative. The
    constant stays in range.
    """
    if not node.op.linear or strict() or isinstance(node.args[0], Const):
        return node
    (term,) = node.args
    outer, inner = product_of(term).split(lambda f: f.axes <= node.axes)
    if outer == Product() or not in_range(outer.number):
        return node
    stays = inner.node()
    value = Mult(outer.node(), Reduced(stays.dim, node.axes))
    result = product_of(substitute(node.result or node.reduced, {node.reduced: value}))
    return Reduction(node.op, [stays], node.axis, node.k, result.node()) if in_range(result.number) else node
