"""Element-wise operators against torch's own functions, and at the points where conventions differ."""

import math
import re
from fractions import Fraction

import pytest
import torch

from tritonkeops.formula.evaluate import evaluate
from tritonkeops.formula.ir import Apply, Operator, Var, words

INF, NAN = math.inf, math.nan
LIKE = torch.zeros(0, 1, 1, dtype=torch.float64)
OPERATORS = {name: op for name, op in words.items() if isinstance(op, Operator) and op.scalar}


def truth(relation):
    return lambda *args: relation(*args).double()


def half_away(x, d):
    return torch.floor(x.abs() * 10**d + 0.5) * x.sign() / 10**d


EXPECTED = {
    "Add": torch.add, "Subtract": torch.sub, "Minus": torch.neg, "Mult": torch.mul, "Divide": torch.div,
    "Pow": torch.pow, "Powf": torch.pow, "Inv": torch.reciprocal, "Square": torch.square, "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt, "Exp": torch.exp, "Exp2": torch.exp2, "Expm1": torch.expm1, "Log": torch.log,
    "Log1p": torch.log1p,
    "XLogX": lambda x: torch.special.xlogy(x, x), "Tanh": torch.tanh, "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)), "Erf": torch.special.erf, "Sin": torch.sin,
    "Cos": torch.cos, "SinXDivX": lambda x: torch.sinc(x / math.pi), "Asin": torch.asin, "Acos": torch.acos,
    "Atan": torch.atan, "Atan2": torch.atan2, "Abs": torch.abs, "Sign": torch.sign,
    "Step": lambda x: torch.heaviside(x, torch.ones_like(x)), "ReLU": torch.relu, "Floor": torch.floor,
    "Round": half_away, "Mod": lambda f, n, d: d + torch.remainder(f - d, n),
    "Clamp": lambda f, a, b: torch.where(f < a, a, torch.minimum(f, b)), "ClampInt": torch.clamp,
    "DiffClampInt": lambda f, a, b: (f.clamp(a, b) == f).double(), "IfElse": lambda f, a, b: torch.where(f >= 0, a, b),
    "Maximum": torch.maximum, "Minimum": torch.minimum, "LessThan": truth(torch.lt), "LessOrEqual": truth(torch.le),
    "GreaterThan": truth(torch.gt), "GreaterOrEqual": truth(torch.ge), "Equal": truth(torch.eq),
    "NotEqual": truth(torch.ne), "And": truth(torch.logical_and), "Or": truth(torch.logical_or),
    "Not": truth(torch.logical_not),
    "Shift": lambda x: torch.where(x == -INF, 0, x),
    "SoftMin": lambda f, g, h, c: -c * torch.logsumexp(-torch.stack(torch.broadcast_tensors(f, g, h)) / c, 0),
}  # fmt: skip


def test_expected_values_cover_the_registry():
    assert set(EXPECTED) == set(OPERATORS)


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_meaning(op):
    """Against torch, on random numbers, on multiples of 1/4 (ties, whole numbers), and with an operand broadcast."""
    generator = torch.Generator().manual_seed(0)
    for wide in range(len(op.operands)):
        args = [low + (high - low) * torch.rand(3 if wide <= n else 1, 60, 1, generator=generator, dtype=torch.float64)
                for n, (low, high) in enumerate(op.domain)]  # fmt: skip
        for x in args:
            x[:, ::2] = (x[:, ::2] * 4).round() / 4
        operands = [Var(n, len(x), 0, f"x{n}") for n, x in enumerate(args)]
        found = evaluate(Apply(op, operands, op.example), dict(zip(operands, args, strict=True)), LIKE)
        torch.testing.assert_close(found, EXPECTED[op.name](*args, *op.example), rtol=1e-13, atol=1e-13)


# ---- special points ----


def sinc_slope(x):
    return math.cos(x) / x - math.sin(x) / x**2


POINTS = (-INF, -2.0, -0.0, 0.0, 2.5, INF, NAN)
SPECIAL = {
    "Step(x)": (0, 0, 1, 1, 1, 1, 1),
    "Sign(x)": (-1, -1, 0, 0, 1, 1, 0),
    "ReLU(x)": (0, 0, 0, 0, 2.5, INF, NAN),
    "Abs(x)": (INF, 2, 0, 0, 2.5, INF, NAN),
    "Inv(x)": (0, -0.5, -INF, INF, 0.4, 0, NAN),
    "Sqrt(x)": (NAN, NAN, 0, 0, 2.5**0.5, INF, NAN),
    "Rsqrt(x)": (NAN, NAN, 0, 0, 2.5**-0.5, 0, NAN),
    "Exp(x)": (0, math.exp(-2), 1, 1, math.exp(2.5), INF, NAN),
    "Expm1(x)": (-1, math.expm1(-2), 0, 0, math.expm1(2.5), INF, NAN),
    "Log(x)": (NAN, NAN, -INF, -INF, math.log(2.5), INF, NAN),
    "Log1p(x)": (NAN, NAN, 0, 0, math.log(3.5), INF, NAN),
    "XLogX(x)": (NAN, NAN, 0, 0, 2.5 * math.log(2.5), INF, NAN),
    "Sin(x)": (NAN, math.sin(-2), 0, 0, math.sin(2.5), NAN, NAN),
    "Cos(x)": (NAN, math.cos(-2), 1, 1, math.cos(2.5), NAN, NAN),
    "SinXDivX(x)": (NAN, math.sin(2) / 2, 1, 1, math.sin(2.5) / 2.5, NAN, NAN),
    "Asin(x)": (NAN, NAN, 0, 0, NAN, NAN, NAN),
    "Acos(x)": (NAN, NAN, math.pi / 2, math.pi / 2, NAN, NAN, NAN),
    "Atan(x)": (-math.pi / 2, math.atan(-2), 0, 0, math.atan(2.5), math.pi / 2, NAN),
    "Atan2(x, 0)": (-math.pi / 2, -math.pi / 2, 0, 0, math.pi / 2, math.pi / 2, NAN),
    "Atan2(0, x)": (math.pi, math.pi, math.pi, 0, 0, 0, NAN),
    "Tanh(x)": (-1, math.tanh(-2), 0, 0, math.tanh(2.5), 1, NAN),
    "Sigmoid(x)": (0, 1 / (1 + math.exp(2)), 0.5, 0.5, 1 / (1 + math.exp(-2.5)), 1, NAN),
    "Softplus(x)": (0, math.log1p(math.exp(-2)), math.log(2), math.log(2), math.log1p(math.exp(2.5)), INF, NAN),
    "Erf(x)": (-1, math.erf(-2), 0, 0, math.erf(2.5), 1, NAN),
    "Floor(x)": (-INF, -2, 0, 0, 2, INF, NAN),
    "Round(x, 0)": (-INF, -2, 0, 0, 3, INF, NAN),
    "Round(x / 5, 0)": (-INF, 0, 0, 0, 1, INF, NAN),
    "Round(x / 5 - 1, 0)": (-INF, -1, -1, -1, -1, INF, NAN),
    "Round(x * 10, -1)": (-INF, -20, 0, 0, 30, INF, NAN),
    "Mod(x, 2, 0)": (NAN, 0, 0, 0, 0.5, NAN, NAN),
    "Mod(x, 2, -1)": (NAN, 0, 0, 0, 0.5, NAN, NAN),
    "Mod(x, 3, 5)": (NAN, 7, 6, 6, 5.5, NAN, NAN),
    "Mod(x, -3, 0)": (NAN, -2, 0, 0, -0.5, NAN, NAN),
    "Clamp(x, -1, 1)": (-1, -1, 0, 0, 1, 1, NAN),
    "ClampInt(x, -1, 1)": (-1, -1, 0, 0, 1, 1, NAN),
    "DiffClampInt(x, -2, 0)": (0, 1, 1, 1, 0, 0, 0),
    "IfElse(x, 5, 7)": (7, 7, 5, 5, 5, 5, 7),
    "Maximum(x, 0)": (0, 0, 0, 0, 2.5, INF, NAN),
    "Maximum(0, x)": (0, 0, 0, 0, 2.5, INF, NAN),
    "Minimum(x, 0)": (-INF, -2, 0, 0, 0, 0, NAN),
    "Minimum(0, x)": (-INF, -2, 0, 0, 0, 0, NAN),
    "x < x": (0, 0, 0, 0, 0, 0, 0),
    "x <= x": (1, 1, 1, 1, 1, 1, 0),
    "x > 0": (0, 0, 0, 0, 1, 1, 0),
    "x >= 0": (0, 0, 1, 1, 1, 1, 0),
    "x == x": (1, 1, 1, 1, 1, 1, 0),
    "x != x": (0, 0, 0, 0, 0, 0, 1),
    "And(x, 1)": (1, 1, 0, 0, 1, 1, 1),
    "Or(x, 0)": (1, 1, 0, 0, 1, 1, 1),
    "Not(x)": (0, 0, 1, 1, 0, 0, 0),
    "Pow(x, 0)": (1, 1, 1, 1, 1, 1, 1),
    "Pow(x, -2)": (0, 0.25, INF, INF, 0.16, 0, NAN),
    "Pow(x, 3)": (-INF, -8, 0, 0, 15.625, INF, NAN),
    "Powf(x, 2)": (INF, 4, 0, 0, 6.25, INF, NAN),
    "Powf(x, 3 - Step(x))": (-INF, -8, 0, 0, 6.25, INF, NAN),
    "Powf(x, 0.5)": (NAN, NAN, 0, 0, 2.5**0.5, INF, NAN),
    "Powf(x, Step(x))": (1, 1, 0, 0, 2.5, INF, NAN),
    "Powf(2, x)": (0, 0.25, 1, 1, 2**2.5, INF, NAN),
    "x / 0.5": (-INF, -4, 0, 0, 5, INF, NAN),
    "1 / x": (0, -0.5, -INF, INF, 0.4, 0, NAN),
    "x / 3": (-INF, -2 / 3, 0, 0, 2.5 / 3, INF, NAN),
    "x + 16777217": (-INF, 16777215, 16777217, 16777217, 16777219.5, INF, NAN),
}
DERIVATIVES = {  # conventions where a derivative jumps, is infinite or does not exist
    "Abs(x)": (-1, -1, 0, 0, 1, 1, 0),
    "ReLU(x)": (0, 0, 1, 1, 1, 1, 1),
    "Step(x)": (0, 0, 0, 0, 0, 0, 0),
    "Sign(x)": (0, 0, 0, 0, 0, 0, 0),
    "Floor(x)": (0, 0, 0, 0, 0, 0, 0),
    "Sqrt(x)": (NAN, NAN, 0, 0, 0.5 * 2.5**-0.5, 0, NAN),
    "Rsqrt(x)": (NAN, NAN, 0, 0, -0.5 * 2.5**-1.5, 0, NAN),
    "Norm2(x)": (NAN, -1, 0, 0, 1, NAN, NAN),
    "XLogX(x)": (NAN, NAN, -INF, -INF, math.log(2.5) + 1, INF, NAN),
    "SinXDivX(x)": (NAN, sinc_slope(-2.0), 0, 0, sinc_slope(2.5), NAN, NAN),
    "Asin(2 * x)": (NAN, NAN, 2, 2, NAN, NAN, NAN),
    "Asin(x - 1.5)": (NAN, NAN, NAN, NAN, 0, NAN, NAN),
    "ClampInt(x, -2, 0)": (0, 1, 1, 1, 0, 0, 0),
    "IfElse(x, x, 3 * x)": (3, 3, 1, 1, 1, 1, 3),
    "Maximum(x, 0)": (0, 0, 0.5, 0.5, 1, 1, 0),
    "Powf(x, 0)": (0, 0, 0, 0, 0, 0, 0),
    "Powf(x, 2)": (-INF, -4, 0, 0, 5, INF, NAN),
    "Powf(2, x)": (0, math.log(2) / 4, math.log(2), math.log(2), math.log(2) * 2**2.5, INF, NAN),
    "Softplus(x)": (0, 1 / (1 + math.exp(2)), 0.5, 0.5, 1 / (1 + math.exp(-2.5)), 1, NAN),
    "Tanh(x)": (0, 1 - math.tanh(2) ** 2, 1, 1, 1 - math.tanh(2.5) ** 2, 0, NAN),
}


def close(found, wanted, name):
    rtol, atol = (4e-7, 1e-7) if wanted.dtype == torch.float32 else (1e-14, 1e-15)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{name}: {m}")


HOW = [("torch", torch.float64), ("c", torch.float32), ("c", torch.float64)]


@pytest.mark.parametrize(("backend", "dtype"), HOW, ids=("torch", "c-float32", "c-float64"))
@pytest.mark.parametrize("table", [SPECIAL, DERIVATIVES], ids=("values", "derivatives"))
def test_special_points(table, backend, dtype, program, run):
    """One kernel for the table, x varying with i and with j: all lanes, and none."""
    formulas = list(table) if table is SPECIAL else [f"Grad({f}, x, 1)" for f in table]
    x = torch.tensor(POINTS, dtype=dtype)[:, None]
    for category, axis in (("Vi", 1), ("Vj", 0)):
        reduction = program(concatenated(formulas), [f"x = {category}(1)"], "Sum", axis)
        (found,) = run(reduction, [x], backend)
        expected = torch.tensor(list(table.values()), dtype=dtype)
        for name, got, wanted in zip(formulas, found.T, expected, strict=True):
            close(got, wanted, name)


def test_special_points_of_pairs(program, run):
    """The same values where the operand varies with i and j and all lanes are in use."""
    x = torch.tensor(POINTS).repeat(12)[:, None]
    formulas = [re.sub(r"\bx\b", "(x + y)", f) for f in SPECIAL]
    (found,) = run(program(concatenated(formulas), ["x = Vi(1)", "y = Vj(1)"]), [x, torch.full((1, 1), -0.0)], unroll=1)
    expected = torch.tensor(list(SPECIAL.values())).repeat(1, 12)
    for name, got, wanted in zip(formulas, found.T, expected, strict=True):
        close(got, wanted, name)


def concatenated(formulas):
    text = formulas[0]
    for each in formulas[1:]:
        text = f"Concat({text}, {each})"
    return text


def sinc_series(x, order):
    """Derivatives of sin(x) / x in exact arithmetic: its series, summed far beyond double precision."""
    total = Fraction(0)
    for n in range(40):
        if 2 * n >= order:
            factors = math.prod(range(2 * n - order + 1, 2 * n + 1))
            total += (-1) ** n * factors * Fraction(x) ** (2 * n - order) / math.factorial(2 * n + 1)
    return float(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sinc_and_its_derivatives_near_zero(dtype, program, run):
    """Cos(x) / x - Sin(x) / x^2 keeps no digit near 0; on both sides of 1, where the series ends, and at 0 itself."""
    points = [0.0, 1e-30, 1e-8, 1e-5, 1e-3, 0.01, 0.1, 0.5, 0.99, 0.999999, 1.0, 1.000001, 1.5, 2.0, 5.0]
    x = torch.tensor(points + [-p for p in points], dtype=dtype)[:, None]
    slope = "Grad(SinXDivX(x), x, 1)"
    (found,) = run(program(concatenated(["SinXDivX(x)", slope, f"Grad({slope}, x, 1)"]), ["x = Vi(1)"]), [x])
    expected = torch.tensor([[sinc_series(v, order) for order in range(3)] for v in x[:, 0].tolist()], dtype=dtype)
    rtol = 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=rtol, atol=torch.finfo(dtype).eps)
    small = x.abs()[:, 0] < 0.5
    torch.testing.assert_close(found[small, 1], expected[small, 1], rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_soft_minimum_of_extremes(program, run):
    """No overflow far apart or near together; infinite operands have no share, and a NaN is not lost."""
    rows = [(1e4, -1e4, 0), (INF, 1, 2), (1, INF, INF), (-1e30, 1e30, 0), (5, 5, 5), (NAN, 1, 2), (1, 2, NAN)]
    x = torch.tensor(rows, dtype=torch.float64)
    aliases = ["x = Vi(3)"]
    formula = "SoftMin(Elem(x, 0), Elem(x, 1), Elem(x, 2), 0.5)"
    (found,) = run(program(formula, aliases), [x])
    close(found[:, 0], -0.5 * torch.logsumexp(-x / 0.5, 1), formula)
    (shares,) = run(program(f"Grad({formula}, x, 1)", aliases), [x[:5]])
    close(shares, torch.softmax(-x[:5] / 0.5, 1), "shares")


@pytest.mark.parametrize("period", [2.0, 0.75])
def test_mod_range(period, program, run):
    """f mod n lies in [d, d + n) for any sign of f, to rounding."""
    x = torch.linspace(-50, 50, 4001, dtype=torch.float64)[:, None]
    (found,) = run(program(f"Mod(x, {period}, -1)", ["x = Vi(1)"]), [x])
    assert found.min() > -1 - 1e-13 and found.max() < -1 + period
    torch.testing.assert_close(torch.remainder(found - x + period / 2, period), torch.full_like(x, period / 2))


def test_constants_are_exact_in_the_precision_of_the_data(program, run):
    x = torch.ones(1, 1, dtype=torch.float64)
    formulas = concatenated(["16777217 * x", "x / 3", "IntInv(7) * x", "Powf(2.1 * x, 1.7)"])
    (found,) = run(program(formulas, ["x = Vi(1)"]), [x])
    wanted = torch.tensor([16777217, 1 / 3, 1 / 7, 2.1**1.7], dtype=torch.float64)
    torch.testing.assert_close(found[0], wanted, rtol=1e-15, atol=0)
