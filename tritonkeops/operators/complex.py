"""Complex numbers: real and imaginary parts alternate, so dims are even. One number goes with vectors of numbers.

All is made of `Complex`, `ComplexReal` and `ComplexImag`, between which real arithmetic is done. Derivatives are those
of real functions of the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tritonkeops.formula.ir import Node, Operator
from tritonkeops.operators.declare import broadcast, componentwise, derived, expect, sum_to
from tritonkeops.operators.elementwise import Atan2, Cos, Exp, Sin, Sqrt, Square
from tritonkeops.operators.vector import Sum, SumT


def _even(signature: str, name: str, node: Node, place: int = 0) -> None:
    expect(
        node.dim % 2 == 0,
        lambda: f"{signature}: {name} = {node!r} has dim {node.dim}, expected an even one: parts alternate",
        place,
    )


def _halves(word: str) -> Callable[[Node], int]:
    """The rule of real results of complex f."""

    def dim(f: Node) -> int:
        _even(f"{word}(f)", "f", f)
        return f.dim // 2

    return dim


def _same(word: str) -> Callable[[Node], int]:
    """The rule of complex results of complex f."""
    return lambda f: 2 * _halves(word)(f)


def _doubles(f: Node) -> int:
    return 2 * f.dim


def _both(word: str) -> Callable[[Node, Node], int]:
    """The rule of complex f and g: equal dims, or one number."""

    def dim(f: Node, g: Node) -> int:
        _even(f"{word}(f, g)", "f", f)
        _even(f"{word}(f, g)", "g", g, 1)
        expect(
            len({f.dim, g.dim} - {2}) <= 1,
            lambda: (
                f"{word}(f, g): f = {f!r} has dim {f.dim} and g = {g!r} dim {g.dim}; "
                "expected equal dims, or one of dim 2, a single number"
            ),
            1,
        )
        return max(f.dim, g.dim)

    return dim


# Parts ------------------------------------------------------------------------------------------------------------


def _complex_dim(f: Node, g: Node) -> int:
    return 2 * broadcast(Complex, (f, g))


def _complex_at(m: Any, k: Any, f: Any, g: Any) -> Any:
    def half(v: Any) -> Any:
        return lambda _: v[0 if v.dim == 1 else k // 2]

    return m.piecewise(k % 2, (1, half(f)), (2, half(g)))


Complex: Operator = componentwise(
    "Complex",
    dim=_complex_dim,
    at=_complex_at,
    vjp=lambda e, f, g: [sum_to(f.dim, ComplexReal(e)), sum_to(g.dim, ComplexImag(e))],
    doc="The numbers f + i g.",
)
ComplexReal: Operator = componentwise(
    "ComplexReal",
    dim=_halves("ComplexReal"),
    at=lambda m, k, f: f[2 * k],
    vjp=lambda e, f: [Real2Complex(e)],
    doc="Real parts.",
    example_dims=(6,),
)
ComplexImag: Operator = componentwise(
    "ComplexImag",
    dim=_halves("ComplexImag"),
    at=lambda m, k, f: f[2 * k + 1],
    vjp=lambda e, f: [Imag2Complex(e)],
    doc="Imaginary parts.",
    example_dims=(6,),
)
Real2Complex: Operator = derived("Real2Complex", lambda f: Complex(f, 0), "The numbers f + 0 i.", dim=_doubles)
Imag2Complex: Operator = derived("Imag2Complex", lambda f: Complex(0, f), "The numbers 0 + f i.", dim=_doubles)
Conj: Operator = derived(
    "Conj",
    lambda f: Complex(ComplexReal(f), -ComplexImag(f)),
    "Complex conjugates.",
    dim=_same("Conj"),
    example_dims=(6,),
)

# Arithmetic -------------------------------------------------------------------------------------------------------


def _by_parts(f: Node, g: Node, each: Callable[[Node, Node], Node]) -> Node:
    if f.dim == g.dim:
        return each(f, g)
    return Complex(each(ComplexReal(f), ComplexReal(g)), each(ComplexImag(f), ComplexImag(g)))


def _mult(f: Node, g: Node) -> Node:
    a, b, c, d = ComplexReal(f), ComplexImag(f), ComplexReal(g), ComplexImag(g)
    return Complex(a * c - b * d, a * d + b * c)


def _divide(f: Node, g: Node) -> Node:
    a, b, c, d = ComplexReal(f), ComplexImag(f), ComplexReal(g), ComplexImag(g)
    scale = ComplexSquareAbs(g)
    return Complex((a * c + b * d) / scale, (b * c - a * d) / scale)


def _realscal_dim(f: Node, g: Node) -> int:
    signature = "ComplexRealScal(f, g)"
    expect(
        1 in (f.dim, g.dim),
        lambda: f"{signature}: f = {f!r} has dim {f.dim} and g = {g!r} dim {g.dim}, expected a scalar among them",
        1,
    )
    if f.dim == 1:
        _even(signature, "g", g, 1)
    else:
        _even(signature, "f", f)
    return max(f.dim, g.dim)


ComplexAdd: Operator = derived(
    "ComplexAdd",
    lambda f, g: _by_parts(f, g, lambda a, b: a + b),
    "f + g.",
    dim=_both("ComplexAdd"),
    example_dims=(6, 6),
)
ComplexSubtract: Operator = derived(
    "ComplexSubtract",
    lambda f, g: _by_parts(f, g, lambda a, b: a - b),
    "f - g.",
    dim=_both("ComplexSubtract"),
    example_dims=(6, 6),
)
ComplexMult: Operator = derived("ComplexMult", _mult, "f g.", dim=_both("ComplexMult"), example_dims=(6, 6))
ComplexDivide: Operator = derived("ComplexDivide", _divide, "f / g.", dim=_both("ComplexDivide"), example_dims=(2, 6))
ComplexRealScal: Operator = derived(
    "ComplexRealScal",
    lambda f, g: f * g,
    "A real scalar times complex numbers.",
    dim=_realscal_dim,
    example_dims=(1, 6),
)

# Functions --------------------------------------------------------------------------------------------------------


def _polar(f: Node) -> Node:
    length, angle = Exp(ComplexReal(f)), ComplexImag(f)
    return Complex(length * Cos(angle), length * Sin(angle))


def _sumt_dim(f: Node, n: int) -> int:
    signature = "ComplexSumT(f, n)"
    expect(f.dim == 2, lambda: f"{signature}: f = {f!r} has dim {f.dim}, expected 2, a single number")
    expect(n >= 2 and n % 2 == 0, lambda: f"{signature}: n = {n}, expected an even number, of reals", 1)
    return n


def _sum_dim(f: Node) -> int:
    _even("ComplexSum(f)", "f", f)
    return 2


ComplexExp: Operator = derived("ComplexExp", _polar, "Exponential.", dim=_same("ComplexExp"), example_dims=(6,))
ComplexExp1j: Operator = derived(
    "ComplexExp1j", lambda f: Complex(Cos(f), Sin(f)), "Exp(i f) of a real f.", dim=_doubles
)
ComplexSquareAbs: Operator = derived(
    "ComplexSquareAbs",
    lambda f: Square(ComplexReal(f)) + Square(ComplexImag(f)),
    "Squared absolute values.",
    dim=_halves("ComplexSquareAbs"),
    example_dims=(6,),
)
ComplexAbs: Operator = derived(
    "ComplexAbs",
    lambda f: Sqrt(ComplexSquareAbs(f)),
    "Absolute values; derivative 0 at 0.",
    dim=_halves("ComplexAbs"),
    example_dims=(6,),
)
ComplexAngle: Operator = derived(
    "ComplexAngle",
    lambda f: Atan2(ComplexImag(f), ComplexReal(f)),
    "Angles, from -pi to pi.",
    dim=_halves("ComplexAngle"),
    example_dims=(6,),
)
ComplexSum: Operator = derived(
    "ComplexSum",
    lambda f: Complex(Sum(ComplexReal(f)), Sum(ComplexImag(f))),
    "Sum of the numbers.",
    dim=_sum_dim,
    example_dims=(6,),
)
ComplexSumT: Operator = derived(
    "ComplexSumT",
    lambda f, n: Complex(SumT(ComplexReal(f), n // 2), SumT(ComplexImag(f), n // 2)),
    "n / 2 copies of the number f.",
    dim=_sumt_dim,
    static=("n",),
    example=(6,),
    example_dims=(2,),
)
