"""Formulas taken apart into powers and put together again."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.formulas import word
from tritonkeops.formula.ir import Category, Const, Node, Var
from tritonkeops.passes.product import Product, product_of

x, e = Var(0, 3, Category.I, "x"), Var(1, 1, Category.I, "e")
y, b = Var(2, 3, Category.J, "y"), Var(3, 1, Category.J, "b")
p = Var(4, 1, Category.P, "p")
PRODUCTS: dict[Node, tuple[Fraction | int, dict[Node, int], str]] = {
    -(2 * e) * b / (3 * p): (Fraction(-2, 3), {e: 1, b: 1, p: -1}, "(-2 / 3) / p * e * b"),
    word("Pow")(-e, 4) * word("Inv")(e): (1, {e: 3}, "Pow(e, 3)"),
    word("Pow")(-e, 3) * 2: (-2, {e: 3}, "-2 * Pow(e, 3)"),
    word("Square")(2 * p) / p: (4, {p: 1}, "4 * p"),
    word("Pow")(p, 20): (1, {word("Pow")(p, 20): 1}, "Pow(p, 20)"),
    word("Square")(x - y) * e: (1, {word("Square")(x - y): 1, e: 1}, "e * Square(x - y)"),
    (x - y) * (e * b) / (e + b): (1, {x - y: 1, e: 1, b: 1, e + b: -1}, "e * b / (e + b) * (x - y)"),
    e / e: (1, {}, "1"),
    0 * e: (1, {Const(0): 1, e: 1}, "0"),
    e + b: (1, {e + b: 1}, "e + b"),
}


@pytest.mark.parametrize("node", PRODUCTS, ids=repr)
def test_products_are_taken_apart_and_put_together(node: Node) -> None:
    """Scalars are divided by scalars before they touch a vector; squares of pairs stay whole."""
    number, powers, text = PRODUCTS[node]
    product = product_of(node)
    assert (product.number, dict(product.powers)) == (number, powers)
    assert repr(product.node()) == text


def test_long_products() -> None:
    node: Node = e
    for _ in range(3000):
        node = node * b
    assert dict(product_of(node).powers) == {e: 1, b: 3000}


def test_constants_to_large_powers_stay_powers() -> None:
    """Written out, the number would fill the memory."""
    node: Node = 3 * e
    for _ in range(60):
        node = word("Square")(node)
    assert dict(product_of(node).powers) == {Const(3): 2**60, e: 2**60}


def test_arithmetic() -> None:
    q = Product(Fraction(2), ((p, 2), (e, -1)))
    assert q / q == Product() and (q * q).number == 4 and (-q).number == -2
    assert q.axes == {"i"} and q.dim == 1
    assert q.split(lambda f: f is p) == (Product(Fraction(2), ((p, 2),)), Product(powers=((e, -1),)))


def test_roots() -> None:
    assert Product(Fraction(4), ((p, 2), (e, -4))).root() == Product(Fraction(2), ((p, 1), (e, -2)))
    for none in (Product(Fraction(-4)), Product(powers=((p, 1),)), Product(Fraction(10) ** 400)):
        assert none.root() is None
