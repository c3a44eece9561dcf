"""Exponentials to base 2, for targets on which 2^x is one instruction and each multiplication per pair counts.

Exp(f) becomes Exp2(g), and a sum of exponentials its twin in base 2, where g = log2(e) f. The constant goes where it
costs nothing per pair: with c^2 = log2(e), Exp(-SqDist(x, y)) becomes Exp2(-SqDist(c x, c y)), and c x is computed once
per row. Parameters of which the root is known go along: Exp(-SqDist(x, y) / Square(s)) divides x and y by s. What was
scaled on the way and is needed elsewhere too, as x - y is in a gradient, is made of c x - c y; 1 / c leaves the sum.

Precision: scaling x rounds it once, as if the input was off by half an ulp. Finite values are assumed, as in simplify.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from tritonkeops.formula.ir import Apply, Axes, Node, Operator, Reduction, postorder, rebuild
from tritonkeops.formula.rewrite import rewrite, substitute
from tritonkeops.operators.elementwise import (
    Abs,
    Add,
    Divide,
    Exp,
    Exp2,
    Inv,
    Minus,
    Mult,
    Pow,
    ReLU,
    Rsqrt,
    Sqrt,
    Square,
    Subtract,
)
from tritonkeops.operators.vector import Elem, Extract, MatVecMult, Sum, SumT, VecMatMult
from tritonkeops.passes.factor import factor
from tritonkeops.passes.product import Product, product_of
from tritonkeops.passes.simplify import simplify, strict

_LOG2E = Product(Fraction(math.log2(math.e)))
_MOST_VISITS = 100  # nodes of an exponent: deeper ones are multiplied from outside
_ABSORBED: tuple[Callable[[Product], bool], ...] = (lambda s: True, lambda s: not s.powers, lambda s: False)


def in_base_2(node: Reduction) -> Reduction:
    """The same reduction, simplified and factored, without exponentials to base e of anything that varies with i and j.

    The cheapest of three: scales absorbed, only numbers absorbed, exponents multiplied from outside. Which it is
    depends on what else is made of the exponent's parts. Nothing is divided by that was not before: it may be 0.
    """
    if strict():
        return node
    found = [_rewritten(node, absorbed) for absorbed in _ABSORBED]
    return min((each for each in found if _divisors(each) <= _divisors(node)), key=_cost)


def _rewritten(node: Reduction, allowed: Callable[[Product], bool]) -> Reduction:
    scaling = _Scaling(allowed)

    def rule(each: Node) -> Node:
        if isinstance(each, Apply) and each.op is Exp and _by_pair(each.axes):
            return Exp2(scaling.scaled(each.args[0]))
        if isinstance(each, Reduction) and each.op.base2:
            f, *weights = each.args
            return Reduction(each.op.base2, [scaling.scaled(f), *weights], each.axis, each.k, each.result)
        return each

    root = rewrite(node, rule)
    simpler = simplify(substitute(root, scaling.shared(root)))
    assert isinstance(simpler, Reduction)
    return factor(simpler)


def _by_pair(axes: Axes) -> bool:
    return len(axes) == 2


def _cost(node: Reduction) -> int:
    """Scalar operations per pair. Signs are free: instructions take negated operands."""
    pairs = (each for each in postorder(node.args) if isinstance(each, Apply) and _by_pair(each.axes))
    return sum(max(each.dim, *(arg.dim for arg in each.args)) for each in pairs if each.op is not Minus)


def _divisors(node: Reduction) -> set[Node]:
    """What is divided by, but for what varies with i and j."""
    quotients = (each for each in postorder([node]) if isinstance(each, Apply) and each.op in (Divide, Inv, Pow))
    return {f for each in quotients for f, n in product_of(each).powers if n < 0 and not _by_pair(f.axes)}


# Scales ---------------------------------------------------------------------------------------------------------------


def _scalar(s: Product) -> Product | None:
    return s if s.dim == 1 else None


def _positive(s: Product) -> Product | None:
    return None if s.powers else s


def _squared(s: Product) -> Product | None:
    return None if s.powers else s * s


_INSIDE: dict[Operator, Callable[[Product], Product | None]] = {
    Minus: lambda s: s,
    Sum: _scalar,
    SumT: _scalar,
    Elem: _scalar,
    Extract: _scalar,
    Abs: _positive,
    ReLU: _positive,
    Square: Product.root,
    Sqrt: _squared,
}
"""What to multiply an operand by so that the result is multiplied by s, whose number is positive."""


class _Scaling:
    """Multiplies exponents by log2(e); `known` holds what was multiplied on the way, by what, and the result."""

    def __init__(self, allowed: Callable[[Product], bool]) -> None:
        self.allowed = allowed
        self.known: dict[Apply, tuple[Product, Node]] = {}
        self.visits = 0

    def scaled(self, f: Node) -> Node:
        self.visits = 0
        return self.absorbed(f, _LOG2E) or _LOG2E.node() * f

    def shared(self, formula: Node) -> dict[Node, Node]:
        """What can be made of something scaled that is in the formula too, and how."""
        used, found = set(postorder([formula])), dict[Node, Node]()
        for f, (s, g) in self.known.items():
            if g in used:
                found[f] = (Product() / s).node() * g
                if f.op is Subtract:
                    found[Subtract(*reversed(f.args))] = -found[f]
                if root := _positive(s) and s.root():
                    found[Rsqrt(f)] = root.node() * Rsqrt(g)
        return found

    def absorbed(self, f: Node, s: Product) -> Node | None:
        """f times s where that costs nothing per pair, else None."""
        if not _by_pair(f.axes | s.axes):
            return simplify(s.node() * f)
        self.visits += 1
        if not (isinstance(f, Apply) and _by_pair(f.axes) and self.allowed(s) and self.visits <= _MOST_VISITS):
            return None
        if s.number < 0:
            positive = self.absorbed(f, -s)
            return -positive if positive else None
        if f in self.known:
            before, g = self.known[f]
            return g if s == before else (s / before).node() * g
        result = self._through(f, s)
        if result is None or result.dim != f.dim:
            return None
        self.known[f] = s, result
        return result

    def _through(self, f: Apply, s: Product) -> Node | None:
        if f.op in _INSIDE:
            inside = _INSIDE[f.op](s)
            return self._into(f, 0, inside) if inside else None
        if f.op in (Add, Subtract):
            halves = [self.absorbed(arg, s) for arg in f.args]
            return rebuild(f, [half for half in halves if half]) if all(halves) else None
        if f.op in (Mult, Divide):
            return self._with_factor(f, s) or self._into(f, 0, s) or (self._into(f, 1, s) if f.op is Mult else None)
        if f.op in (MatVecMult, VecMatMult) and s.dim == 1:
            return self._into(f, 0, s) or self._into(f, 1, s)
        return None

    def _into(self, f: Apply, place: int, s: Product) -> Node | None:
        """f with one operand multiplied."""
        inner = self.absorbed(f.args[place], s)
        return rebuild(f, [*f.args[:place], inner, *f.args[place + 1 :]]) if inner else None

    def _with_factor(self, f: Apply, s: Product) -> Node | None:
        """A factor or divisor that does not vary with the pair goes the way of the scale, or takes it up."""
        a, b = f.args
        for c, g in [(b, a)] if f.op is Divide else [(a, b), (b, a)]:
            if not _by_pair(c.axes):
                whole = s / product_of(c) if f.op is Divide else s * product_of(c)
                if (inner := self.absorbed(g, whole)) or not _by_pair(whole.axes):
                    return inner or whole.node() * g
        return None
