"""Exponentials to base 2: the same values, and how many operations per pair they take."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.formulas import dense_outputs, formulas, noisy, pools, reduce_dense, reduction, values_for, word
from tritonkeops.compiler import Program
from tritonkeops.formula.ir import Apply, Const, Node, Reduction, Var, postorder
from tritonkeops.passes.base2 import _cost, _divisors, in_base_2
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.simplify import simplify

LEVEL = 1e-10
ALIASES = [
    "x=Vi(3)", "y=Vj(3)", "b=Vj(1)", "e=Vi(1)", "g=Pm(1)", "s=Pm(1)", "w=Pm(3)", "S=Pm(9)", "r=Vi(1)",
]  # fmt: skip
SUMS = {"Sum", "Scalprod"}


def program(formula: str, op: str = "Sum", axis: int = 1, weight: str | None = None) -> Program:
    return Program(formula, ALIASES, op, axis, 0, weight)


def rewritten(*what: str | int | None) -> Reduction:
    return in_base_2(program(*what).reduction)  # type: ignore[arg-type]


def pairs(node: Reduction) -> Counter[str]:
    """The operators applied to what varies with i and j, those with vectors as results in a class of their own."""
    names = (each for each in postorder(node.args) if isinstance(each, Apply) and len(each.axes) == 2)
    return Counter(each.op.name + ("[]" if each.dim > 1 else "") for each in names)


def leaves(node: Node) -> list[Var]:
    return [each for each in postorder([node]) if isinstance(each, Var)]


def noisy_outputs(node: Reduction, values: dict[Var, Tensor], M: int, N: int, seed: int) -> list[Tensor]:
    """The outputs with a relative error of about LEVEL made at every operation and in every input."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {v: x * (1 + LEVEL * torch.randn(x.shape, generator=generator, dtype=x.dtype)) for v, x in values.items()}
    terms = [noisy(arg, inputs, LEVEL, seed) for arg in node.args]
    return reduce_dense(node, terms, M, N, inputs)


def assert_same(node: Reduction, other: Reduction, pool: list[Var], seed: int = 0) -> None:
    """Both reductions at random values, within what rounding errors at every operation can make of them."""
    axes = {axis for v in pool for axis in v.axes}
    M, N = 5 if "i" in axes else 1, 7 if "j" in axes else 1
    values = values_for(pool, M, N, seed)
    for n, (a, b) in enumerate(zip(*(dense_outputs(each, values, M, N) for each in (node, other)), strict=True)):
        runs = [(noisy_outputs(node, values, M, N, seed)[n] - a).abs() for seed in range(3)]
        runs += [(noisy_outputs(other, values, M, N, seed)[n] - b).abs() for seed in range(3)]
        spread = torch.stack(runs).amax(0)
        tame = spread < 1e-6 * (1 + a.abs())
        tolerance = 1e-4 * spread + 1e-12 * (1 + a.abs())
        assert ((a - b).abs() <= tolerance)[tame].all(), f"{node!r}\n{other!r}"
        assert (a.isfinite() == b.isfinite()).all()


# Operations per pair ------------------------------------------------------------------------------------------------

DISTANCE = {"Subtract[]": 1, "Square[]": 1, "Sum": 1}
GAUSSIAN = {**DISTANCE, "Minus": 1, "Exp2": 1, "Mult": 1}
GRADIENT = {**GAUSSIAN, "Mult[]": 1}
LAPLACIAN = {**GAUSSIAN, "Sqrt": 1}
COUNTS: dict[tuple[str | int | None, ...], dict[str, int]] = {
    ("Exp(-SqDist(x,y))*b",): GAUSSIAN,
    ("Exp(-2*SqDist(x,y))*b",): GAUSSIAN,
    ("Exp(-SqDist(x,y)/(2*Square(s)))*b",): GAUSSIAN,
    ("Exp(-SqDist(x,y)*s**(-2))*b",): GAUSSIAN,
    ("Exp(-SqDist(x*g,y*g))*b",): GAUSSIAN,
    ("Exp(-SqDist(x,y)*Square(g))*b",): GAUSSIAN,
    ("Exp(-WeightedSqDist(Inv(Square(w)),x,y))*b",): GAUSSIAN,
    ("Exp(-SqDist(x,y)*g)*b",): {**DISTANCE, "Exp2": 1, "Mult": 2},  # the sign of g is not known
    ("Exp(-SqDist(x,y)/r)*b",): {**GAUSSIAN, "Mult": 2},
    ("Exp(-SqDist(x,y)/Square(r))*b",): {**GAUSSIAN, "Mult": 2},
    ("Exp(-WeightedSqDist(S,x,y))*b",): {**GRADIENT, "Square[]": 0, "MatVecMult[]": 1},
    ("Exp((x|y)/Sqrt(g))*b",): {"Mult[]": 1, "Sum": 1, "Exp2": 1, "Mult": 1},
    ("Exp(-Norm2(x-y))*b",): LAPLACIAN,
    ("Exp(-Sum(Abs(x-y)))*b",): {**GAUSSIAN, "Square[]": 0, "Abs[]": 1},
    ("Exp(-Square(Elem(x,0)-Elem(y,0)))*b",): {"Subtract": 1, "Square": 1, "Minus": 1, "Exp2": 1, "Mult": 1},
    ("Exp(e-SqDist(x,y))*b",): {**GAUSSIAN, "Minus": 0, "Subtract": 1},
    ("-SqDist(x,y)", "LogSumExp"): {**DISTANCE, "Minus": 1},
    ("-SqDist(x,y)", "SoftMax", 1, "y"): {**DISTANCE, "Minus": 1},
    ("Inv(1+SqDist(x,y))*b",): {**DISTANCE, "Add": 1, "Divide": 1},
    ("Grad(Exp(-SqDist(x,y))*b,x,e)",): GRADIENT,
    ("Grad(Exp(-SqDist(x,y))*b,y,e)", "Sum", 0): GRADIENT,
    ("Grad(Exp(-SqDist(x,y)/(2*Square(s)))*b,x,e)",): GRADIENT,
    ("Grad(Exp(-SqDist(x,y)*Square(g))*b,x,e)",): GRADIENT,
    ("Grad(Exp(-SqDist(x*g,y*g))*b,x,e)",): GRADIENT,
    ("Grad(Exp(-Norm2(x-y))*b,x,e)",): {**LAPLACIAN, "Rsqrt": 1, "Mult": 2, "Mult[]": 1},
    ("Exp(-SqDist(x,y))*(y-x)",): {**GRADIENT, "Mult": 0},
    ("SqDist(x,y)*Exp(-SqDist(x,y))",): GAUSSIAN,
    ("Exp(-SqDist(x,y))+Exp(-2*SqDist(x,y))",): {**GAUSSIAN, "Exp2": 2, "Minus": 2, "Add": 1},
    ("Exp(-SqDist(x,y))*Tanh(x-y)",): {**GRADIENT, "Minus": 0, "Tanh[]": 1},  # x - y itself is needed
}
OTHERS: tuple[tuple[str | int | None, ...], ...] = (
    ("Exp(Exp(-SqDist(x,y)))",),
    ("Exp(-Norm2(x-y)/s)*b",),
    ("Exp(-SqDist(x,y)/(r*b))",),
    ("Exp(-SqDist(x,y)/Square(s))+Exp(-SqDist(x,y)/Square(g))",),
    ("Exp(-SqDist(x,y))*Inv(1+SqDist(x,y))*(x-y)",),
    ("Grad(Sum_Reduction(Exp(-SqDist(x,y)/Square(s))*b,1),s,e)",),
    ("Grad(Grad(Exp(-SqDist(x,y))*b,x,e),x,x)",),
    ("Exp(-SqDist(x,y))*b", "LogSumExp"),
    ("-SqDist(x,y)*g", "Max_SumShiftExpWeight", 1, "y-x"),
    ("Exp(e)*b",),
    ("Exp(-Square(w)*SqDist(x,y))",),
    ("Exp(w*MatVecMult(S,x-y)/9)",),
    ("Exp(-Square(w)*Square(Elem(x,0)-Elem(y,0)))*Concat(Square(Elem(x,0)-Elem(y,0)),Extract(x,0,2))",),
    ("Exp(-Abs(Elem(x,0)-Elem(y,0))*s)*b",),
)


@pytest.mark.parametrize("what", COUNTS, ids=str)
def test_operations_per_pair(what: tuple[str | int | None, ...]) -> None:
    assert pairs(rewritten(*what)) == Counter(COUNTS[what])


def test_all_else_of_a_gradient_is_in_its_result() -> None:
    node = rewritten("Grad(Exp(-SqDist(x,y)/Square(s))*b,x,e)")
    assert node.result is not None and [v.name for v in leaves(node.result)] == ["s", "e"]
    assert [v.name for v in leaves(node.args[0])] == ["b", "s", "x", "y"]


def test_what_is_computed_once_per_row_stays() -> None:
    node = program("(Exp(e) + 1) * (Exp(b) + x)").reduction
    assert in_base_2(node) is node


# Values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*COUNTS, *OTHERS], ids=str)
def test_values(what: tuple[str | int | None, ...]) -> None:
    made = program(*what)  # type: ignore[arg-type]
    for seed in range(4):
        assert_same(made.reduction, in_base_2(made.reduction), list(made.variables), seed)


@st.composite
def exponents(draw: st.DrawFn, pool: list[Var], depth: int) -> Node:
    """A scalar of what exponents are made of, small where the variables are."""

    def scalar() -> Node:
        return draw(formulas(pool, 1, 1, grad=False))

    if depth == 0:
        w, (f, g) = word, [draw(formulas(pool, 2, 1, grad=False)) for _ in range(2)]
        return draw(st.sampled_from((
            w("SqDist")(f, g), w("Norm2")(f - g), w("Scalprod")(f, g), w("Sum")(w("Abs")(f - g)),
            w("WeightedSqDist")(scalar(), f, g), w("Elem")(f - g, 1), w("Square")(w("Elem")(f, 0)), scalar(),
        )))  # fmt: skip
    h, other = draw(exponents(pool, depth - 1)), draw(exponents(pool, depth - 1))
    c = draw(st.sampled_from((scalar(), word("Square")(scalar()), Const(draw(st.sampled_from((-2, 0.5, 3)))))))
    return draw(st.sampled_from((-h, c * h, h * c, h / (1 + word("Square")(c)), h + other, scalar() - h)))


@st.composite
def exponentials(draw: st.DrawFn) -> tuple[Reduction, list[Var]]:
    """A reduction with exponentials, some of a common exponent, some beside the differences in it."""
    pool = draw(pools((1, 2)))
    exponent = word("Tanh")(draw(exponents(pool, 1))) if draw(st.booleans()) else draw(exponents(pool, 2)) / 8
    other = draw(formulas(pool, draw(st.sampled_from((1, 2))), 1, grad=False))
    exp, kernel = word("Exp"), word("Exp")(exponent)
    e = other if other.dim == 1 else word("Sum")(other)
    term = draw(st.sampled_from((
        kernel, kernel * other, kernel * exponent + other, kernel + exp(-exponent / 2), kernel / (1 + kernel),
        word("Grad")(kernel, pool[0], e),
    )))  # fmt: skip
    op = reduction(draw(st.sampled_from(("Sum", "Sum", "LogSumExp", "SumSoftMaxWeight", "Max_SumShiftExp"))))
    args = [exponent, term] if op.formulas[0] == 2 else [exponent if "Exp" in op.name else term]
    return Reduction(op, args, draw(st.integers(0, 1))), pool


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(exponentials())
def test_random_exponentials(drawn: tuple[Reduction, list[Var]]) -> None:
    """The same values; no exponential per pair to base e, at most one operation more for each, no new divisors."""
    written, pool = drawn
    node = prepared(written)
    found = in_base_2(node)
    assert (found.axis, found.dim, found.axes) == (node.axis, node.dim, node.axes)
    assert found.op is (node.op.base2 or node.op)
    assert not pairs(found)["Exp"] and not pairs(found)["Exp[]"]
    assert _cost(found) <= _cost(node) + sum(exponential_dims(node))
    assert _divisors(found) <= _divisors(node)
    assert in_base_2(found) is found
    assert_same(node, found, pool)


def prepared(node: Reduction) -> Reduction:
    return factor(simplify(expand(simplify(differentiate(node)))))  # type: ignore[arg-type]


def exponential_dims(node: Reduction) -> list[int]:
    found = [each.dim for each in postorder(node.args) if isinstance(each, Apply) and each.op.name == "Exp"]
    return found + ([node.args[0].dim] if node.op.base2 else [])


@pytest.mark.parametrize("formula,at_zero", [
    ("Grad(Exp(-SqDist(x,y)*Square(g))*b,x,e)", "g"),
    ("Exp(-SqDist(x,y)*Square(s))+Exp(-SqDist(x,y)*Square(g))", "s"),
    ("Exp(-SqDist(x,y)*Square(s))+Exp(-SqDist(x,y)*Square(g))", "g"),
    ("Exp(-SqDist(x,y)*Square(g))*Tanh(x-y)", "g"),
])  # fmt: skip
def test_parameters_that_were_no_divisors_may_be_zero(formula: str, at_zero: str) -> None:
    made = program(formula)
    values = values_for(made.variables)
    values = {v: torch.zeros_like(x) if v.name == at_zero else x for v, x in values.items()}
    (expected,) = dense_outputs(made.reduction, values, 5, 7)
    (found,) = dense_outputs(in_base_2(made.reduction), values, 5, 7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_strict_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """inf x - inf y would be NaN."""
    monkeypatch.setenv("TRITONKEOPS_STRICT", "1")
    node = program("Exp(-SqDist(x,y)*Square(g))*b").reduction
    assert in_base_2(node) is node


def test_compensated_reductions_keep_their_sums() -> None:
    node = program("-SqDist(x,y)", "LogSumExp").reduction
    assert node.op.compensated is not None and node.op.compensated.base2 is not None
    found = in_base_2(Reduction(node.op.compensated, node.args, node.axis))
    assert found.op is node.op.compensated.base2
    assert_same(node, found, leaves(node))


def test_deep_exponents_are_multiplied_from_outside() -> None:
    x, y, *_ = program("x").variables
    f: Node = x - y
    for n in range(2000):
        f = f + Const(n) * y
    node = Reduction(reduction("Sum"), [word("Exp")(-f)], 1)
    assert pairs(in_base_2(node))["Exp2[]"] == 1


@pytest.mark.parametrize("what", [
    ("Grad(Exp(-SqDist(x,y)/Square(s))*b,x,e)",),
    ("-SqDist(x,y)", "LogSumExp"),
    ("-SqDist(x,y)", "SoftMax", 1, "y"),
    ("-SqDist(x,y)", "Max_SumShiftExp", 0),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_in_base_2(what, dtype, run) -> None:  # type: ignore[no-untyped-def]
    """The C back end has exp2: the twins and Exp2 in a kernel give what the others give."""
    made, other = program(*what), program(*what)
    other.reduction = in_base_2(made.reduction)
    generator = torch.Generator().manual_seed(0)
    shapes = [(v.dim,) if not v.axes else (40 if "i" in v.axes else 1100, v.dim) for v in made.variables]
    args = [0.5 + torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    tolerance = 3e-5 if dtype == torch.float32 else 1e-12
    for scheme in ("block_sum", "kahan_scheme"):
        (expected,), (found,) = (run(each, args, sum_scheme=scheme) for each in (made, other))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
