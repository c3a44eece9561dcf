"""What leaves a sum, that nothing else changes, and that both back ends make the result of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formulas import dense, dense_outputs, formulas, pools, reduction, values_for, word
from tritonkeops.compiler import Program
from tritonkeops.formula.ir import Category, Const, Node, Reduction, Var, postorder
from tritonkeops.frontend.infer import Typed, infer
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.product import product_of
from tritonkeops.passes.simplify import simplify

ALIASES = ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)", "e=Vi(1)", "p=Pm(1)"]
GAUSSIAN = "Exp(-Sum(Square(x - y)))"
LEAVES = {
    "e*b": "e * Sum_Reduction(b, 1)",
    "-b": "-1 * Sum_Reduction(b, 1)",
    "b/(2*e)": "0.5 * (Sum_Reduction(b, 1) / e)",
    "-2*p*e*Exp(-SqDist(x,y))*x*b*y": f"-2 * p * e * (x * Sum_Reduction(b * {GAUSSIAN} * y, 1))",
    "Exp(-SqDist(x,y))*x": f"Sum_Reduction({GAUSSIAN}, 1) * x",
    "e*x": "e * Sum_Reduction(1, 1) * x",
    "p*Inv(e)*Square(e)*b": "p * (e * Sum_Reduction(b, 1))",
    "Exp(-SqDist(x,y))/(e*b)": f"Sum_Reduction({GAUSSIAN} / b, 1) / e",
    "Exp(-SqDist(x,y))*(x-y)": f"Sum_Reduction({GAUSSIAN} * (x - y), 1)",
    "e*b + p*b": "Sum_Reduction(e * b + p * b, 1)",
    "Grad(Exp(-SqDist(x,y))*b, x, e)": f"-2 * e * Sum_Reduction(b * {GAUSSIAN} * (x - y), 1)",
}


def reduced(formula: str, op: str = "Sum", axis: int = 1) -> Reduction:
    node = simplify(expand(simplify(differentiate(infer(formula, ALIASES, op, axis).root))))
    assert isinstance(node, Reduction)
    return node


def assert_same(node: Reduction, other: Reduction, pool: list[Var], M: int = 5, N: int = 7) -> None:
    """Both reductions at random values, within rounding of the sums' terms."""
    values = values_for(pool, M, N)
    scale = dense(word("Abs")(node.args[0]), values).expand(-1, M, N).sum(2 - node.axis) * max(M, N) + 1
    for a, b in zip(dense_outputs(node, values, M, N), dense_outputs(other, values, M, N), strict=True):
        assert ((a - b).abs() <= 1e-12 * scale.amax()).all(), f"{node!r}\n{other!r}"


@pytest.mark.parametrize("formula", LEAVES)
def test_what_leaves(formula: str) -> None:
    node = reduced(formula)
    factored = factor(node)
    assert repr(factored) == LEAVES[formula]
    assert_same(node, factored, [x for x in postorder([node]) if isinstance(x, Var)])


def test_constants_stay_in_range() -> None:
    """A factor of 1e400 would be infinite, whatever e and b are."""
    node = reduced("1e200 * e * (1e200 * b)")
    assert factor(node) is node


def test_the_kept_axis_decides() -> None:
    assert repr(factor(reduced("e*b*Exp(-SqDist(x,y))", axis=0))) == f"b * Sum_Reduction(e * {GAUSSIAN}, 0)"


@pytest.mark.parametrize("op", ["LogSumExp", "Min", "ArgKMin"])
def test_only_linear_reductions_have_factors(op: str) -> None:
    typed = infer("e*b", ALIASES, op, 1, 2 if "K" in op else 0)
    assert factor(typed.root) is typed.root  # type: ignore[arg-type]


def test_strict_keeps_every_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over no j, inf * 0 would be NaN."""
    monkeypatch.setenv("TRITONKEOPS_STRICT", "1")
    assert factor(reduced("e*b")).result is None


def test_a_zero_sum_stays() -> None:
    node = Reduction(reduction("Sum"), [Const(0, 3)], 1)
    assert factor(node) is node


@st.composite
def products(draw: st.DrawFn) -> tuple[Reduction, list[Var]]:
    """A sum of a product of random formulas, each of any axes."""
    pool = draw(pools((1, 2)))
    term: Node = draw(formulas(pool, 1, 2, grad=False))
    for _ in range(draw(st.integers(1, 4))):
        other = draw(formulas(pool, draw(st.sampled_from((1, term.dim if term.dim > 1 else 2))), 1, grad=False))
        term = draw(st.sampled_from((term * other, other * term, -(term * other), term / (1 + word("Square")(other)))))
    node = simplify(expand(Reduction(reduction("Sum"), [term], draw(st.integers(0, 1)))))
    return node, pool  # type: ignore[return-value]


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(products())
def test_nothing_of_the_kept_axis_remains(drawn: tuple[Reduction, list[Var]]) -> None:
    node, pool = drawn
    factored = factor(node)
    assert (factored.op, factored.axis, factored.dim) == (node.op, node.axis, node.dim)
    assert factor(factored) is factored and simplify(factored) is factored
    remains = product_of(factored.args[0])
    constant = isinstance(factored.args[0], Const)
    assert constant or (remains.number == 1 and not any(f.axes <= node.axes for f, _ in remains.powers))
    assert_same(node, factored, pool)


# Back ends ----------------------------------------------------------------------------------------------------------


def uniform(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dim", [1, 3, 20])
def test_back_ends_multiply_by_what_left(backend, axis, dim, program, run):  # type: ignore[no-untyped-def]
    """With batches, a factor of parameters and of the kept axis, vectors looped over; and the compensated twin."""
    kept, other = ("Vi", "Vj") if axis == 1 else ("Vj", "Vi")
    aliases = [f"x={kept}({dim})", f"y={other}({dim})", f"e={kept}({dim})", "p=Pm(1)"]
    made = program("2*p*Exp(-SqDist(x,y))*e*y", aliases, "Sum", axis)
    assert repr(made.reduction.result) == "2 * p * (e * Reduced)"
    x, e = uniform(2, 1, 37, dim, seed=0), uniform(37, dim, seed=1)
    y, p = uniform(3, 11, dim, seed=2), uniform(2, 3, 1, seed=3)
    pairs = torch.exp(-((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1))
    wanted = 2 * p[..., None, :] * e * (pairs @ y)
    for scheme in ("block_sum", "kahan_scheme"):
        (found,) = run(made, [x, y, e, p], backend, sum_scheme=scheme)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dim", [3, 20])
def test_back_ends_compute_results_by_their_formula(backend, axis, dim, run):  # type: ignore[no-untyped-def]
    """sum_j k_ij (x_i - y_j), as x_i times one component of the value reduced, less the others."""
    x, y = (Var(n, dim, Category(n if axis == 1 else 1 - n), "xy"[n]) for n in range(2))
    pairs = word("Exp")(-word("SqDist")(x, y))
    value = Reduction(reduction("Sum"), [pairs * word("Concat")(y, Const(1))], axis)
    parts = [word("Extract")(value.reduced, *part) for part in ((0, dim), (dim, 1))]
    node = Reduction(value.op, value.args, axis, 0, parts[1] * x - parts[0])
    a, b = uniform(37, dim, seed=0), uniform(11, dim, seed=2)
    weights = torch.exp(-(torch.cdist(a, b) ** 2))
    for scheme in ("block_sum", "kahan_scheme"):
        (found,) = run(Program.of(Typed(node, (x, y), ())), [a, b], backend, sum_scheme=scheme)
        torch.testing.assert_close(found, weights.sum(1, keepdim=True) * a - weights @ b)


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_a_sum_over_nothing_is_zero(backend, program, run):  # type: ignore[no-untyped-def]
    """And over N rows j it is N times what does not depend on them."""
    made = program("e*x", ALIASES[:4])
    x, e = uniform(5, 3, seed=0), uniform(5, 1, seed=1)
    for N in (0, 1, 6):
        (found,) = run(made, [x, uniform(N, 3, seed=2), uniform(N, 1, seed=3), e], backend)
        torch.testing.assert_close(found, N * e * x)


def test_categories_of_parameters() -> None:
    """A parameter leaves whichever axis is kept."""
    p, x = Var(0, 1, Category.P, "p"), Var(1, 2, Category.I, "x")
    assert repr(factor(Reduction(reduction("Sum"), [p * x], 0))) == "p * Sum_Reduction(x, 0)"
