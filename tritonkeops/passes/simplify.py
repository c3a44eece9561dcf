"""Simplification: a table of rules in the formula language, products in a normal form, constants folded.

In a rule a and b stand for anything, s and t for scalars (dim 1), c and d for constants, n and m for static integers;
numbers match constants of that value. A rule marked `finite` assumes that no value is NaN or infinite, as KeOps does:
`TRITONKEOPS_STRICT=1` turns those off.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tritonkeops.formula.evaluate import fold_constant, fold_constants
from tritonkeops.formula.ir import Apply, Const, IllTyped, Node, Operator, Static, in_range, infix, words
from tritonkeops.formula.rewrite import rewrite
from tritonkeops.frontend import ast
from tritonkeops.frontend.parser import parse_formula
from tritonkeops.operators.vector import SumT

Binding = dict[str, "Node | Static"]


@dataclass(frozen=True)
class Rule:
    """`pattern` is rewritten to `result`."""

    pattern: str
    result: str
    finite: bool = False


RULES = (
    Rule("a + 0", "a"),
    Rule("0 + a", "a"),
    Rule("a - 0", "a"),
    Rule("0 - a", "-a"),
    Rule("a * 1", "a"),
    Rule("1 * a", "a"),
    Rule("a * 0", "0", finite=True),
    Rule("0 * a", "0", finite=True),
    Rule("0 / a", "0", finite=True),
    Rule("a - a", "0", finite=True),
    Rule("-(-a)", "a"),
    Rule("-(a - b)", "b - a"),
    Rule("a + a", "2 * a"),
    Rule("a + (-b)", "a - b"),
    Rule("(-a) + b", "b - a"),
    Rule("a - (-b)", "a + b"),
    Rule("c * a + d * a", "(c + d) * a", finite=True),
    Rule("a + c * a", "(1 + c) * a", finite=True),
    Rule("c * a + a", "(1 + c) * a", finite=True),
    Rule("a / c", "(1 / c) * a"),
    Rule("1 / a", "Inv(a)"),
    Rule("(-a) / b", "-(a / b)"),
    Rule("a / (-b)", "-(a / b)"),
    Rule("a * Inv(b)", "a / b"),
    Rule("Inv(b) * a", "a / b"),
    Rule("a * a", "Square(a)"),
    Rule("Square(-a)", "Square(a)"),
    Rule("Square(c * a)", "(c * c) * Square(a)", finite=True),
    Rule("Pow(a, 0)", "1"),
    Rule("Pow(a, 1)", "a"),
    Rule("Pow(a, 2)", "Square(a)"),
    Rule("Pow(a, -1)", "Inv(a)"),
    Rule("a ** 0", "1"),
    Rule("a ** 1", "a"),
    Rule("a ** 2", "Square(a)"),
    Rule("a ** 3", "Pow(a, 3)"),
    Rule("a ** 4", "Pow(a, 4)"),
    Rule("a ** -1", "Inv(a)"),
    Rule("a ** -2", "Pow(a, -2)"),
    Rule("a ** 0.5", "Sqrt(a)", finite=True),
    Rule("Exp(a) * Exp(b)", "Exp(a + b)", finite=True),
    Rule("Sum(s)", "s"),
    Rule("SumT(s, 1)", "s"),
    Rule("Sum(-a)", "-Sum(a)"),
    Rule("Sum(s * a)", "s * Sum(a)", finite=True),
    Rule("Sum(a / s)", "Sum(a) / s", finite=True),
    Rule("Sum(SumT(s, n))", "n * s", finite=True),
    Rule("SumT(s, n) * a", "s * a"),
    Rule("a * SumT(s, n)", "s * a"),
    Rule("-SumT(s, n)", "SumT(-s, n)"),
    Rule("Elem(ElemT(s, n, m), m)", "s"),
    Rule("ComplexReal(Complex(a, b))", "a"),
    Rule("ComplexImag(Complex(a, b))", "b"),
    Rule("IfElse(a, b, b)", "b"),
    Rule("a * IfElse(b, c, 0)", "IfElse(b, c * a, 0)", finite=True),
    Rule("IfElse(b, a, 0) * s", "IfElse(b, a * s, 0)", finite=True),
    Rule("s * IfElse(b, a, 0)", "IfElse(b, s * a, 0)", finite=True),
    Rule("a * IfElse(b, 0, c)", "IfElse(b, 0, c * a)", finite=True),
)


def simplify(root: Node) -> Node:
    """The same meaning in fewer operations; the dim and the reduction stay."""
    for _ in range(_MAX_SWEEPS):
        simpler = fold_constants(rewrite(root, _simplify_node))
        if simpler is root:
            return root
        root = simpler
    return root


_MAX_SWEEPS = 30


def strict() -> bool:
    """Whether rules that assume finite values are off."""
    return os.environ.get("TRITONKEOPS_STRICT", "") not in ("", "0")


def _simplify_node(node: Node) -> Node:
    if not isinstance(node, Apply):
        return node
    if node.op is words["SumT"] and isinstance(node.args[0], Const):
        return Const(node.args[0].value, node.dim)
    if node.op is words["Mult"]:
        node = _normal_product(node)
    if isinstance(node, Apply):
        for pattern, result in _compiled(strict()).get(node.op, ()):
            replaced = apply_rule(pattern, result, node)
            if replaced is not None and replaced is not node:
                return replaced
    return node


# Rules ----------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(finite_off: bool) -> dict[Operator, list[tuple[ast.Expr, ast.Expr]]]:
    table: dict[Operator, list[tuple[ast.Expr, ast.Expr]]] = {}
    for rule in RULES:
        if not (finite_off and rule.finite):
            pattern, result = parse_formula(rule.pattern, "pattern"), parse_formula(rule.result, "result")
            table.setdefault(_operator(pattern), []).append((pattern, result))
    return table


def apply_rule(pattern: ast.Expr, result: ast.Expr, node: Node) -> Node | None:
    """The node rewritten, with the dim it had; None where the pattern does not match, or a constant would overflow."""
    binding: Binding = {}
    if not _match(pattern, node, binding):
        return None
    built = build(result, binding)
    constants = [x.value for x in map(fold_constant, built.operands) if isinstance(x, Const)]
    if not all(map(in_range, constants)):
        return None
    return SumT(built, node.dim) if built.dim == 1 < node.dim else built


def _operator(expr: ast.Expr) -> Operator:
    operator = infix[expr.symbol, len(expr.args)] if isinstance(expr, ast.Operation) else words[expr.callee]  # type: ignore[union-attr]
    assert isinstance(operator, Operator)
    return operator


def _match(pattern: ast.Expr, node: Node, binding: Binding) -> bool:
    number = _number(pattern)
    if number is not None:
        return isinstance(node, Const) and node.value == number
    if isinstance(pattern, ast.Name):
        return _admits(pattern.name, node) and _bind(pattern.name, node, binding)
    if not isinstance(node, Apply) or node.op is not _operator(pattern):
        return False
    parts = pattern.args  # type: ignore[union-attr]
    n = len(node.args)
    static = zip(parts[n:], node.static, strict=True)
    return all(_match(p, x, binding) for p, x in zip(parts[:n], node.args, strict=True)) and all(
        _match_static(p, value, binding) for p, value in static
    )


def _match_static(pattern: ast.Expr, value: Static, binding: Binding) -> bool:
    if isinstance(pattern, ast.Name):
        return _bind(pattern.name, value, binding)
    return _number(pattern) == value


def _admits(name: str, node: Node) -> bool:
    return {"s": node.dim == 1, "t": node.dim == 1, "c": isinstance(node, Const), "d": isinstance(node, Const)}.get(
        name, True
    )


def _bind(name: str, value: Node | Static, binding: Binding) -> bool:
    known = binding.setdefault(name, value)
    return known is value if isinstance(value, Node) else known == value


def _number(expr: ast.Expr) -> Fraction | None:
    if isinstance(expr, ast.Number):
        return expr.value
    if isinstance(expr, ast.Operation) and expr.symbol == "-" and len(expr.args) == 1:
        inner = _number(expr.args[0])
        return None if inner is None else -inner
    return None


def build(expr: ast.Expr, binding: Binding) -> Node:
    """The formula that a rule's side stands for under a binding."""
    number = _number(expr)
    if number is not None:
        return Const(number)
    if isinstance(expr, ast.Name):
        value = binding[expr.name]
        return value if isinstance(value, Node) else Const(value)  # type: ignore[arg-type]
    op = _operator(expr)
    parts = expr.args  # type: ignore[union-attr]
    n = len(op.operands)
    static = [binding[p.name] if isinstance(p, ast.Name) else int(_number(p) or 0) for p in parts[n:]]
    return op(*(build(part, binding) for part in parts[:n]), *static)


# Products -------------------------------------------------------------------------------------------------------------


def _normal_product(node: Apply) -> Node:
    """constant * scalars * vectors, each ordered so that factors that vary with the same axes meet.

    Scalars are multiplied before they touch a vector, and what depends on i alone or j alone is one factor. Where the
    constants' product is out of range, what is written stays: 1e300 * (1e300 * x) is finite for small x.
    """
    constant, factors = Fraction(1), []
    for factor in _factors(node):
        if isinstance(factor, Const) and factor.dim == 1:
            constant *= factor.value
        else:
            factors.append(factor)
    if not in_range(constant):
        return node
    factors.sort(key=lambda f: (f.dim > 1, _AXES_ORDER[f.axes]))
    groups = [factors[0]] if factors else []
    for factor in factors[1:]:
        if (factor.dim > 1, factor.axes) == (groups[-1].dim > 1, groups[-1].axes):
            groups[-1] = _times(groups[-1], factor)
        else:
            groups.append(factor)
    if constant != 1 or not groups:
        groups.insert(0, Const(constant))
    product = groups[0]
    for group in groups[1:]:
        product = _times(product, group)
    return product if product.dim == node.dim else node


_AXES_ORDER = {frozenset(): 0, frozenset("i"): 1, frozenset("j"): 2, frozenset("ij"): 3}


def _factors(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        factor = stack.pop()
        if isinstance(factor, Apply) and factor.op is words["Mult"]:
            stack.extend(reversed(factor.args))
        elif isinstance(factor, Apply) and factor.op is words["Minus"]:
            yield Const(-1)
            stack.append(factor.args[0])
        else:
            yield factor


def _times(a: Node, b: Node) -> Node:
    operator = words["Mult"]
    assert isinstance(operator, Operator)
    try:
        return operator(a, b)
    except IllTyped:
        raise AssertionError(f"factors {a!r} and {b!r} of one product have dims {a.dim} and {b.dim}") from None
