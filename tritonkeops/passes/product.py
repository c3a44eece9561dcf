"""Formulas as products of powers, number * f^2 * g / h: what factors leave from, and what they cancel in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tritonkeops.formula.ir import NO_AXES, Apply, Axes, Const, Node, Operator
from tritonkeops.operators.elementwise import Divide, Inv, Minus, Mult, Pow, Square
from tritonkeops.passes.simplify import simplify

_EXPONENTS: dict[Operator, tuple[int, ...]] = {Minus: (1,), Mult: (1, 1), Divide: (1, -1), Inv: (-1,)}
_LARGEST_POWER = 8  # that Pow computes by multiplication


@dataclass(frozen=True)
class Product:
    """A number, not 0, times nodes to integer powers; no node comes twice or to the power 0."""

    number: Fraction = Fraction(1)
    powers: tuple[tuple[Node, int], ...] = ()

    def __mul__(self, other: Product) -> Product:
        powers = dict(self.powers)
        for f, n in other.powers:
            powers[f] = powers.get(f, 0) + n
        return _product(self.number * other.number, powers)

    def __truediv__(self, other: Product) -> Product:
        return self * Product(1 / other.number, tuple((f, -n) for f, n in other.powers))

    def __neg__(self) -> Product:
        return Product(-self.number, self.powers)

    @property
    def axes(self) -> Axes:
        return NO_AXES.union(*(f.axes for f, _ in self.powers))

    @property
    def dim(self) -> int:
        return max((f.dim for f, _ in self.powers), default=1)

    def root(self) -> Product | None:
        """A product whose square this is, where one is known. It may be negative."""
        if not 1e-300 < self.number < 1e300 or any(n % 2 for _, n in self.powers):
            return None
        return Product(Fraction(math.sqrt(self.number)), tuple((f, n // 2) for f, n in self.powers))

    def split(self, leaves: Callable[[Node], bool]) -> tuple[Product, Product]:
        """The number and the factors that leave; the factors that stay."""
        gone = tuple((f, n) for f, n in self.powers if leaves(f))
        return Product(self.number, gone), Product(powers=tuple((f, n) for f, n in self.powers if not leaves(f)))

    def node(self) -> Node:
        """The product as a simplified formula: a quotient of what varies with the same axes, scalars before vectors."""
        product: Node = Const(self.number)
        for kind in sorted({_kind(f) for f, _ in self.powers}):
            above: Node = Const(1)
            below: Node = Const(1)
            for f, n in self.powers:
                if _kind(f) == kind:
                    above, below = (above * Pow(f, n), below) if n > 0 else (above, below * Pow(f, -n))
            product = product * (above / below)
        return simplify(product)


def _product(number: Fraction, powers: dict[Node, int]) -> Product:
    return Product(number, tuple((f, n) for f, n in powers.items() if n))


def _kind(node: Node) -> tuple[bool, int, str]:
    return node.dim > 1, len(node.axes), "".join(sorted(node.axes))


def product_of(node: Node) -> Product:
    """A formula taken apart; iterative, since products may be long."""
    number, powers, stack = Fraction(1), dict[Node, int](), [(node, 1)]
    while stack:
        each, power = stack.pop()
        if isinstance(each, Const) and each.dim == 1 and each.value and abs(power) <= _LARGEST_POWER:
            number *= each.value**power
        elif isinstance(each, Apply) and (exponents := _exponents(each)):
            number = -number if each.op is Minus and power % 2 else number
            stack.extend((f, power * n) for f, n in reversed([*zip(each.args, exponents, strict=True)]))
        else:
            powers[each] = powers.get(each, 0) + power
    return _product(number, powers)


def _exponents(node: Apply) -> tuple[int, ...] | None:
    """The powers of the operands whose product the node is, but for the sign. Powers of pairs stay whole."""
    if node.op in (Square, Pow) and len(node.axes) < 2:
        power = node.static[0] if node.static else 2
        return (power,) if isinstance(power, int) and abs(power) <= _LARGEST_POWER else None
    return _EXPONENTS.get(node.op)
