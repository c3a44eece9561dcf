"""Element-wise operators. `m` holds the scalar functions; arithmetic and comparisons are Python's own.

Special points follow KeOps: Step(0) = 1, Sign(0) = 0, Rsqrt(0) = 0, ReLU'(0) = 1, and zero derivatives of Sqrt,
Rsqrt and Abs at 0. Comparisons with NaN are false.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from tritonkeops.formula.ir import Const, IllTyped, Node, Operator, Static
from tritonkeops.operators.declare import broadcast, elementwise

POSITIVE = (0.5, 2.0)
INSIDE = (-0.9, 0.9)

# Arithmetic -----------------------------------------------------------------------------------------------------

Add: Operator = elementwise("Add", lambda m, f, g: f + g, lambda f, g: (1, 1), "f + g.", symbol="+")
Subtract: Operator = elementwise("Subtract", lambda m, f, g: f - g, lambda f, g: (1, -1), "f - g.", symbol="-")
Minus: Operator = elementwise("Minus", lambda m, f: -f, lambda f: -1, "-f.", symbol="-")
Mult: Operator = elementwise("Mult", lambda m, f, g: f * g, lambda f, g: (g, f), "f * g.", symbol="*")
Divide: Operator = elementwise(
    "Divide",
    lambda m, f, g: f / g,
    lambda f, g: (Inv(g), -f * Square(Inv(g))),
    "f / g.",
    symbol="/",
    domain=((-2.0, 2.0), POSITIVE),
)


def _power(m: Any, f: Any, P: int) -> Any:
    """Small integer powers by products (exact to a few roundings); the rest by `pow`."""
    if abs(P) > 8:
        return m.pow(f, m.const(P))
    if P < 0:
        return 1 / _power(m, f, -P)
    result, square = m.const(1), f
    while P:
        result = result * square if P & 1 else result
        P, square = P >> 1, square * square
    return result


Pow: Operator = elementwise(
    "Pow",
    _power,
    lambda f, P: P * Pow(f, P - 1) if P else 0,
    "f to an integer power P; Pow(f, 0) = 1.",
    static=("P",),
    domain=POSITIVE,
    example=(3,),
)
Powf: Operator = elementwise(
    "Powf",
    lambda m, f, g: m.pow(f, g),
    lambda f, g: (g * Powf(f, g - 1), IfElse(-Abs(f), 0, Log(f) * Powf(f, g))),
    "f to the power g, with the rules of C's pow: negative f and integer g work.",
    symbol="**",
    domain=(POSITIVE, (-2.0, 2.0)),
)
Inv: Operator = elementwise("Inv", lambda m, f: 1 / f, lambda f: -Square(Inv(f)), "1 / f.", domain=POSITIVE)
Square: Operator = elementwise("Square", lambda m, f: f * f, lambda f: 2 * f, "f * f.")
Sqrt: Operator = elementwise(
    "Sqrt", lambda m, f: m.sqrt(f), lambda f: Rsqrt(f) / 2, "Square root; derivative 0 at 0.", domain=POSITIVE
)
Rsqrt: Operator = elementwise(
    "Rsqrt",
    lambda m, f: m.where(m.eq(f, 0), 0, 1 / m.sqrt(f)),
    lambda f: -(Rsqrt(f) * Square(Rsqrt(f))) / 2,
    "1 / Sqrt(f), and 0 at 0.",
    domain=POSITIVE,
)

# Exponentials ---------------------------------------------------------------------------------------------------

Exp: Operator = elementwise("Exp", lambda m, f: m.exp(f), lambda f: Exp(f), "Exponential.")
Exp2: Operator = elementwise("Exp2", lambda m, f: m.exp2(f), lambda f: math.log(2) * Exp2(f), "2 to the power f.")
Expm1: Operator = elementwise("Expm1", lambda m, f: m.expm1(f), lambda f: Exp(f), "Exp(f) - 1, exact near 0.")
Log: Operator = elementwise("Log", lambda m, f: m.log(f), lambda f: Inv(f), "Natural logarithm.", domain=POSITIVE)
Log1p: Operator = elementwise(
    "Log1p", lambda m, f: m.log1p(f), lambda f: Inv(1 + f), "Log(1 + f), exact near 0.", domain=POSITIVE
)
XLogX: Operator = elementwise(
    "XLogX",
    lambda m, f: m.where(m.eq(f, 0), 0, f * m.log(f)),
    lambda f: Log(f) + 1,
    "f * Log(f), and 0 at 0.",
    domain=POSITIVE,
)
Tanh: Operator = elementwise("Tanh", lambda m, f: m.tanh(f), lambda f: 1 - Square(Tanh(f)), "Hyperbolic tangent.")
Sigmoid: Operator = elementwise(
    "Sigmoid", lambda m, f: 1 / (1 + m.exp(-f)), lambda f: Sigmoid(f) * Sigmoid(-f), "1 / (1 + Exp(-f))."
)
Softplus: Operator = elementwise(
    "Softplus",
    lambda m, f: m.where(f > 0, f, 0) + m.log1p(m.exp(-m.abs(f))),
    lambda f: Sigmoid(f),
    "Log(1 + Exp(f)), without overflow.",
)
Erf: Operator = elementwise(
    "Erf", lambda m, f: m.erf(f), lambda f: (2 / math.sqrt(math.pi)) * Exp(-Square(f)), "Error function."
)

Shift: Operator = elementwise(
    "Shift",
    lambda m, f: m.where(m.eq(f, -math.inf), 0, f),
    lambda f: 1,
    "f, and 0 where f is -inf: what to subtract in the terms of a sum of exponentials, so that no -inf meets another.",
)

# Trigonometry ---------------------------------------------------------------------------------------------------

Sin: Operator = elementwise("Sin", lambda m, f: m.sin(f), lambda f: Cos(f), "Sine.")
Cos: Operator = elementwise("Cos", lambda m, f: m.cos(f), lambda f: -Sin(f), "Cosine.")


def _sinc_slope(f: Node) -> Node:
    """(Cos(f) - SinXDivX(f)) / f; up to 1 by its series, for near 0 that difference is all rounding."""
    near, square = LessThan(Abs(f), 1), Square(f)
    series: Node = Const(0)
    for n in range(9, 0, -1):
        series = series * square + Fraction((-1) ** n * 2 * n, math.factorial(2 * n + 1))
    far = IfElse(near - 1, 1, f)  # not 0, by which derivatives would divide
    return IfElse(near - 1, f * series, (Cos(far) - SinXDivX(far)) / far)


SinXDivX: Operator = elementwise(
    "SinXDivX",
    lambda m, f: m.where(m.eq(f, 0), 1, m.sin(f) / f),
    lambda f: _sinc_slope(f),
    "Sin(f) / f, and 1 at 0.",
)
Asin: Operator = elementwise("Asin", lambda m, f: m.asin(f), lambda f: Rsqrt(1 - Square(f)), "Arc sine.", domain=INSIDE)
Acos: Operator = elementwise(
    "Acos", lambda m, f: m.acos(f), lambda f: -Rsqrt(1 - Square(f)), "Arc cosine.", domain=INSIDE
)
Atan: Operator = elementwise("Atan", lambda m, f: m.atan(f), lambda f: Inv(1 + Square(f)), "Arc tangent.")
Atan2: Operator = elementwise(
    "Atan2",
    lambda m, f, g: m.atan2(f, g),
    lambda f, g: (g / (Square(f) + Square(g)), -f / (Square(f) + Square(g))),
    "Angle of the point (g, f): f is the 'y'.",
    domain=(POSITIVE, (-2.0, 2.0)),
)

# Piecewise ------------------------------------------------------------------------------------------------------

Abs: Operator = elementwise("Abs", lambda m, f: m.abs(f), lambda f: Sign(f), "Absolute value; derivative 0 at 0.")
Sign: Operator = elementwise(
    "Sign", lambda m, f: m.where(f > 0, 1, m.where(f < 0, -1, 0)), lambda f: 0, "-1, 0 or 1; 0 at 0 and NaN."
)
Step: Operator = elementwise("Step", lambda m, f: m.where(f < 0, 0, 1), lambda f: 0, "0 if f < 0, else 1 (NaN too).")
ReLU: Operator = elementwise(
    "ReLU", lambda m, f: m.where(f < 0, 0, f), lambda f: Step(f), "0 if f < 0, else f; derivative 1 at 0."
)
Floor: Operator = elementwise("Floor", lambda m, f: m.floor(f), lambda f: 0, "Greatest integer below.")


_MOST_PLACES = 37  # a float32 holds 10 to this power, and to the opposite one


def _round(m: Any, f: Any, d: int) -> Any:
    scale = m.const(10.0**d)
    return m.round(f) if d == 0 else m.round(f * scale) / scale


def _round_dim(op: Operator, args: tuple[Node, ...], static: tuple[Static, ...]) -> int:
    if not isinstance(static[0], int) or abs(static[0]) > _MOST_PLACES:
        raise IllTyped(f"Round(f, d): d = {static[0]}, expected -{_MOST_PLACES} <= d <= {_MOST_PLACES}", 1)
    return broadcast(op, args)


Round: Operator = elementwise(
    "Round",
    _round,
    lambda f, d: 0,
    "To d decimal places, half away from zero.",
    static=("d",),
    dim=_round_dim,
    example=(1,),
)
Mod: Operator = elementwise(
    "Mod",
    lambda m, f, n, d: f - n * m.floor((f - d) / n),
    lambda f, n, d: (1, -Floor((f - d) / n), 0),
    "f modulo n, in [d, d + n).",
    domain=((-2.0, 2.0), POSITIVE, (-2.0, 2.0)),
)
Clamp: Operator = elementwise(
    "Clamp",
    lambda m, f, a, b: m.where(f < a, a, m.where(f > b, b, f)),
    lambda f, a, b: (LessOrEqual(a, f) * LessOrEqual(f, b), LessThan(f, a), LessOrEqual(a, f) * LessThan(b, f)),
    "a if f < a, else b if f > b, else f; NaN stays.",
)
ClampInt: Operator = elementwise(
    "ClampInt",
    lambda m, f, a, b: m.where(f < a, a, m.where(f > b, b, f)),
    lambda f, a, b: DiffClampInt(f, a, b),
    "Clamp between integers.",
    static=("a", "b"),
    example=(-1, 1),
)
DiffClampInt: Operator = elementwise(
    "DiffClampInt",
    lambda m, f, a, b: m.where((f >= a) & (f <= b), 1, 0),
    lambda f, a, b: 0,
    "1 where a <= f <= b, else 0.",
    static=("a", "b"),
    example=(-1, 1),
)
IfElse: Operator = elementwise(
    "IfElse",
    lambda m, f, a, b: m.where(f >= 0, a, b),
    lambda f, a, b: (0, IfElse(f, 1, 0), IfElse(f, 0, 1)),
    "a if f >= 0, else b (NaN too).",
)
Maximum: Operator = elementwise(
    "Maximum",
    lambda m, f, g: m.where((f > g) | m.ne(f, f), f, g),
    lambda f, g: (LessThan(g, f) + Equal(f, g) / 2, LessThan(f, g) + Equal(f, g) / 2),
    "The larger, NaN if either is; at ties each has half of the derivative.",
)
Minimum: Operator = elementwise(
    "Minimum",
    lambda m, f, g: m.where((f < g) | m.ne(f, f), f, g),
    lambda f, g: (LessThan(f, g) + Equal(f, g) / 2, LessThan(g, f) + Equal(f, g) / 2),
    "The smaller, NaN if either is; at ties each has half of the derivative.",
)


def _soft_min(m: Any, f: Any, g: Any, h: Any, gamma: Any) -> Any:
    least, scale = m.min(m.min(f, g), h), 1 / gamma  # of a NaN and a number either; the sum is NaN in any case
    total = m.exp((least - f) * scale) + m.exp((least - g) * scale) + m.exp((least - h) * scale)
    return least - gamma * m.log(total)


def _soft_min_partials(f: Node, g: Node, h: Node, gamma: Node) -> tuple[Node, ...]:
    """Each operand's share, Exp((soft minimum - operand) / gamma), and minus the entropy of the shares."""
    logs = [(SoftMin(f, g, h, gamma) - each) * Inv(gamma) for each in (f, g, h)]
    shares = [Exp(each) for each in logs]
    return (*shares, shares[0] * logs[0] + shares[1] * logs[1] + shares[2] * logs[2])


SoftMin: Operator = elementwise(
    "SoftMin",
    _soft_min,
    _soft_min_partials,
    "-gamma * Log(Exp(-f / gamma) + Exp(-g / gamma) + Exp(-h / gamma)), without overflow.",
    domain=((-2.0, 2.0), (-2.0, 2.0), (-2.0, 2.0), POSITIVE),
)

# Comparisons and logic: 1 for true, 0 for false -------------------------------------------------------------------


def _indicator(name: str, scalar: Any, doc: str, symbol: str | None = None) -> Any:
    arity = scalar.__code__.co_argcount - 1
    return elementwise(name, scalar, lambda *args: (0,) * arity, doc, symbol=symbol)


LessThan: Operator = _indicator("LessThan", lambda m, f, g: m.where(f < g, 1, 0), "1 where f < g.", "<")
LessOrEqual: Operator = _indicator("LessOrEqual", lambda m, f, g: m.where(f <= g, 1, 0), "1 where f <= g.", "<=")
GreaterThan: Operator = _indicator("GreaterThan", lambda m, f, g: m.where(f > g, 1, 0), "1 where f > g.", ">")
GreaterOrEqual: Operator = _indicator("GreaterOrEqual", lambda m, f, g: m.where(f >= g, 1, 0), "1 where f >= g.", ">=")
Equal: Operator = _indicator("Equal", lambda m, f, g: m.where(m.eq(f, g), 1, 0), "1 where f equals g.", "==")
NotEqual: Operator = _indicator(
    "NotEqual", lambda m, f, g: m.where(m.ne(f, g), 1, 0), "1 where f differs from g.", "!="
)
And: Operator = _indicator("And", lambda m, f, g: m.where(m.ne(f, 0) & m.ne(g, 0), 1, 0), "1 where neither is zero.")
Or: Operator = _indicator("Or", lambda m, f, g: m.where(m.ne(f, 0) | m.ne(g, 0), 1, 0), "1 where one is not zero.")
Not: Operator = _indicator("Not", lambda m, f: m.where(m.eq(f, 0), 1, 0), "1 where f is zero.")
