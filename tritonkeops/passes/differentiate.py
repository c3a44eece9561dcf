"""Replace Grad and GradMatrix by the formulas they stand for: reverse accumulation over the formula's DAG."""

from __future__ import annotations

from tritonkeops.formula.ir import Apply, Category, Const, IllTyped, Node, Reduction, Var, as_node, postorder
from tritonkeops.formula.rewrite import rewrite
from tritonkeops.operators.reductions import Sum
from tritonkeops.operators.vector import is_gradient


def differentiate(root: Node) -> Node:
    """The same node without gradients; raises IllTyped for a reduction whose derivative has no such form."""
    return rewrite(root, _replace)


def _replace(node: Node) -> Node:
    if not is_gradient(node):
        return node
    assert isinstance(node, Apply)
    if node.op.expand:
        return differentiate(node.op.expand(*node.args))
    inner, v, e, *saved = node.args
    assert isinstance(v, Var)
    if isinstance(inner, Reduction):
        return _of_reduction(inner, v, e, saved[0] if saved else None)
    return gradient(inner, v, e)


def _of_reduction(node: Reduction, v: Var, e: Node, out: Node | None) -> Node:
    if node.op.outputs == ("index",):
        return Reduction(Sum, [Const(0, v.dim)], 0 if v.axes == frozenset("j") else 1)
    if node.op.vjp is None:
        raise IllTyped(f"{node.op.name} has no derivative")
    return differentiate(node.op.vjp(node, v, e, out))


def gradient(root: Node, v: Var, e: Node) -> Node:
    """The adjoint of d root / d v applied to e: a formula of dim v; zeros where root does not depend on v."""
    order = list(postorder([expand(root)]))
    depends: set[Node] = set()
    for node in order:
        if node is v or any(operand in depends for operand in node.operands):
            depends.add(node)
    cotangents: dict[Node, Node] = {order[-1]: e}
    for node in reversed(order):
        if isinstance(node, Apply) and node in cotangents and node in depends:
            _propagate(node, cotangents, depends)
    return cotangents.get(v, Const(0, v.dim)) if v in depends else Const(0, v.dim)


def tangent(root: Node, v: Var, u: Node) -> Node:
    """The derivative of root by v applied to u: a formula of root's dim.

    The adjoint is linear in its cotangent, so its own adjoint is the derivative; the cotangent drops out.
    """
    cotangent = Var(-1, root.dim, Category.P, "cotangent'")  # no name of the language has a quote
    result = gradient(gradient(root, v, cotangent), cotangent, u)
    assert cotangent not in postorder([result]), f"the adjoint of {root!r} is not linear"
    return result


def _propagate(node: Apply, cotangents: dict[Node, Node], depends: set[Node]) -> None:
    assert node.op.vjp is not None
    parts = node.op.vjp(cotangents[node], *node.args, *node.static)
    for operand, part in zip(node.args, parts, strict=True):
        if operand in depends:
            addend = as_node(part)
            known = cotangents.get(operand)
            cotangents[operand] = addend if known is None else known + addend


def expand(root: Node) -> Node:
    """Replace derived operators (SqDist, Norm2 ...) by their formulas, all the way down."""

    def unfold(node: Node) -> Node:
        while isinstance(node, Apply) and node.op.expand and not is_gradient(node):
            node = expand(node.op.expand(*node.args, *node.static))
        return node

    return rewrite(root, unfold)
