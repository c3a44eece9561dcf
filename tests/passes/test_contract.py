"""Contractions: the same values whatever the center is, in a form that kernels know, within the bound on errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.formulas import dense, dense_outputs, reductions, values_for
from tritonkeops.compiler import Program
from tritonkeops.formula.evaluate import evaluate
from tritonkeops.formula.ir import Apply, Node, Reduction, Var, postorder
from tritonkeops.passes.base2 import in_base_2
from tritonkeops.passes.contract import Contracted, contract
from tritonkeops.passes.differentiate import differentiate, expand
from tritonkeops.passes.factor import factor
from tritonkeops.passes.simplify import simplify

M, N = 5, 7
GAUSSIAN = "Exp(-SqDist(x,y))*b"
SYMMETRIC = "Exp(-WeightedSqDist(S,x,y))*b"
What = tuple[str | int | None, ...]
"""Formula, reduction, axis, K and weight."""


def program(dim: int, formula: str, op: str = "Sum", axis: int = 1, k: int = 0, weight: str | None = None) -> Program:
    aliases = [f"x=Vi({dim})", f"y=Vj({dim})", "b=Vj(1)", "e=Vi(1)", "p=Pm(1)", f"S=Pm({dim**2})", f"w=Pm({dim})",
               f"v=Vj({dim})", f"u=Vi({dim})", "B=Vj(8)"]  # fmt: skip
    return Program(formula, aliases, op, axis, k, weight)


def contracted(*what: str | int | None, dim: int = 3, base2: bool = False, **how: int) -> Contracted | None:
    made = program(dim, *what)  # type: ignore[arg-type]
    node = in_base_2(made.reduction) if base2 else made.reduction
    return contract(node, made.variables, **how)  # type: ignore[arg-type]


def of_pairs(*roots: Node) -> list[Apply]:
    return [each for each in postorder(roots) if isinstance(each, Apply) and len(each.axes) == 2]


def recognised(node: Reduction) -> bool:
    """Whether all vectors of pairs are products that are summed over components, or p_ij V_j, reduced as it is."""
    summed = [each.args[0] for each in of_pairs(*node.args) if each.op.name == "Sum"] + list(node.args)
    vectors = [each for each in of_pairs(*node.args) if each.dim > 1]
    one_sided = [any(len(arg.axes) == 1 and arg.dim == each.dim for arg in each.args) for each in vectors]
    return all(one_sided) and all(each.op.name == "Mult" and each in summed for each in vectors)


WHOLE: tuple[What, ...] = (
    (GAUSSIAN,),
    (GAUSSIAN, "Sum", 0),
    ("Exp(-SqDist(x,y))*B",),
    (f"Grad({GAUSSIAN},x,e)",),
    (f"Grad({GAUSSIAN},y,e)", "Sum", 0),
    (f"Grad({GAUSSIAN},b,e)", "Sum", 0),
    (f"Concat(Grad({GAUSSIAN},x,1),{GAUSSIAN})",),
    ("Exp(-SqDist(x,y)/(2*Square(p)))*b",),
    ("Exp(-p*SqDist(x,y)-e)*b",),
    ("Exp(-SqDist(x,y)/Square(e))*b",),
    ("Exp(-SqNorm2(x+y))*b",),
    ("Exp(-SqNorm2(x-y+w))*b",),
    (SYMMETRIC,),
    (f"Grad({SYMMETRIC},x,e)",),
    ("Exp(-WeightedSqDist(w,x,y))*b",),
    ("Exp(-WeightedSqDist(v,x,y))*b",),
    ("Exp(-WeightedSqDist(e,x,y))*b",),
    ("SqDist(x,y)*Exp(-SqDist(x,y))",),
    ("Exp(-SqDist(x,y))+Exp(-2*SqDist(x,y))",),
    ("Exp((u|v)-SqDist(x,y))*v",),
    ("(x|y)*y",),
    ("Square((x|y)+1)*b",),
    ("Sqrt(Square((x|y)))*b",),
    ("b-SqDist(x,y)", "LogSumExp"),
    ("-SqDist(x,y)", "SumSoftMaxWeight", 1, 0, "v"),
    ("-SqDist(x,y)", "SumSoftMaxWeight", 1, 0, "x-y"),
    ("-SqDist(x,y)", "SumSoftMaxWeight_LogSumExp", 1, 0, "-2*(x-y)"),
    ("-SqDist(x,y)", "SumSoftMaxWeight_LogSumExp", 1, 0, "v"),
    ("SqDist(x,y)", "Min"),
    ("SqNorm2(MatVecMult(S,x-y))", "KMin", 1, 3),
)  # fmt: skip


@pytest.mark.parametrize("base2", [False, True])
@pytest.mark.parametrize("dim", [3, 10])
@pytest.mark.parametrize("what", WHOLE, ids=str)
def test_values_stay(what: What, dim: int, base2: bool) -> None:
    made = program(dim, *what)  # type: ignore[arg-type]
    node = in_base_2(made.reduction) if base2 else made.reduction
    found = contract(node, made.variables)
    assert found and recognised(found.node)
    assert (found.center is None) == (found.center_of is None) == (found.center not in postorder([found.node]))
    assert_same(node, found, list(made.variables))


def assert_same(node: Reduction, found: Contracted, pool: list[Var]) -> None:
    """The same outputs, within rounding, around a center that is a random vector."""
    values = values_for([*pool, *([found.center] if found.center else [])], M, N)
    for a, b in zip(dense_outputs(node, values, M, N), dense_outputs(found.node, values, M, N), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


DISTANCE = "Sum(2 * (x - center) * (y - center)) + -Sum(Square(x - center)) + -Sum(Square(y - center))"
TEXTS: dict[What, str] = {
    (GAUSSIAN,): f"Sum_Reduction(b * Exp({DISTANCE}), 1)",
    ("Exp(-SqDist(x,y))*B",): f"Sum_Reduction(Exp({DISTANCE}) * B, 1)",
    ("b-p*(x|y)-SqNorm2(x)", "LogSumExp"): "LogSumExp_Reduction(Sum(-(Sign(p) * Sqrt(Abs(p))) * x * "
    "(Sqrt(Abs(p)) * y)) + -Sum(Square(x)) + b, 1)",
    ("SqDist(x,y)", "ArgKMin", 1, 3): "ArgKMin_Reduction(Sum(-2 * (x - center) * (y - center)) "
    "+ Sum(Square(x - center)) + Sum(Square(y - center)), 3, 1)",
    ("Exp(-p*SqDist(x,y)/Square(e))",): "Sum_Reduction(Exp(Sum(Concat(2 * (Sign(p) * Sqrt(Abs(p))) * "
    "((x - center) / Square(e)), -Inv(Square(e))) * Concat(Sqrt(Abs(p)) * (y - center), p * Sum(Square(y - center)))) "
    "+ -(p * (Sum(Square(x - center)) / Square(e)))), 1)",
}  # fmt: skip


@pytest.mark.parametrize("what", TEXTS, ids=str)
def test_texts(what: What) -> None:
    found = contracted(*what)
    assert found and repr(found.node) == TEXTS[what]


def test_a_gradient_is_two_contractions() -> None:
    found = contracted(f"Grad({GAUSSIAN},x,e)")
    assert found
    assert repr(found.node.args[0]) == f"Exp({DISTANCE}) * Concat(b * (y - center), b)"
    assert repr(found.node.result) == "-2 * e * (Elem(Reduced, 3) * (x - center) - Extract(Reduced, 0, 3))"


def test_multiples_share_a_product() -> None:
    """Of a distance there is one inner product, whatever it is multiplied by."""
    for formula in ("SqDist(x,y)*Exp(-SqDist(x,y))", "Exp(-SqDist(x,y))+Exp(-2*SqDist(x,y))"):
        found = contracted(formula)
        assert found and sum(each.op.name == "Sum" for each in of_pairs(*found.node.args)) == 1


# Where it is not done -------------------------------------------------------------------------------------------------

REFUSED: tuple[What, ...] = (
    ("Exp(-Norm2(x-y))*b",),
    (f"Grad({GAUSSIAN.replace('SqDist(x,y)', 'Norm2(x-y)')},x,e)",),
    ("Rsqrt(SqDist(x,y))*b",),
    ("Log(1+SqDist(x,y))",),
    ("Inv(1+SqDist(x,y))*b",),
    ("Abs(SqDist(x,y)-e)",),
    ("Step(e-SqDist(x,y))*b",),
    ("Square(SqDist(x,y))",),
    ("Inv(1+Exp(-SqDist(x,y)))",),
    ("Sqrt(1-x*y|1-x*y)",),
    ("Sum(Exp(x-y))",),
    ("Sum(Abs(x-y))",),
    ("Exp(e+b)",),
    ("e*b*p",),
    ("x-y",),
)  # fmt: skip


@pytest.mark.parametrize("what", REFUSED, ids=str)
def test_what_is_evaluated_directly(what: What) -> None:
    """What an absolute error would spoil, and what is no sum of products."""
    assert contracted(*what) is None


def test_two_centers_are_too_many() -> None:
    """The first difference is contracted, the second one stays."""
    found = contracted("Exp(-SqDist(x,y)-SqDist(u,v))*b")
    assert found and repr(found.center_of) == "y"
    assert repr(found.node) == f"Sum_Reduction(b * Exp({DISTANCE} - Sum(Square(u - v))), 1)"


def test_low_precision_allows_distances() -> None:
    made = program(3, "Exp(-Norm2(x-y))*b")
    found = contract(made.reduction, made.variables, loose=True)
    assert found and "Sqrt(ReLU(Sum(-2 * (x - center)" in repr(found.node)
    assert_same(made.reduction, found, list(made.variables))
    assert "ReLU" not in repr(contracted("Sqrt(x|y)", loose=True))


def test_short_vectors_may_stay() -> None:
    assert contracted(GAUSSIAN, least=4) is None and contracted(GAUSSIAN, least=3)
    found = contracted("Exp(-SqDist(x,y))*B", least=8)
    assert found and found.center is None and repr(found.node.args[0]) == "Exp(-Sum(Square(x - y))) * B"


def test_numbers_are_multiplied_as_they_are() -> None:
    assert contracted("Exp(x*y)*b", dim=1) is None
    found = contracted(GAUSSIAN, dim=1)
    assert found and "2 * (x - center) * (y - center)" in repr(found.node)


def test_strict_contracts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONKEOPS_STRICT", "1")
    assert contracted(GAUSSIAN) is None


def test_the_center_has_a_name_of_its_own() -> None:
    made = Program("Exp(-SqDist(center,y))", ["center=Vi(3)", "y=Vj(3)"], "Sum", 1, 0, None)
    found = contract(made.reduction, made.variables)
    assert found and found.center and (found.center.name, found.center.position) == ("center_", 2)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions())
def test_random_formulas(drawn: tuple[Reduction, list[Var]]) -> None:
    node = factor(simplify(expand(simplify(differentiate(drawn[0])))))  # type: ignore[arg-type]
    found = contract(node, drawn[1])
    if found and "index" not in node.op.outputs:
        assert_same(node, found, drawn[1])


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("formula", [
    "SqDist(x,y)", "(x|y)", "b-SqDist(x,y)/(2*Square(p))", "-p*SqDist(x,y)-e", "SqNorm2(x-y+w)",
    "WeightedSqDist(S,x,y)", "WeightedSqDist(w,x,y)", "WeightedSqDist(v,x,y)",
    "SqDist(x,y)/Square(e)", "SqNorm2(MatVecMult(S,x-y))",
])  # fmt: skip
@pytest.mark.parametrize("dim", [3, 50])
def test_sizes_bound_the_error(formula: str, dim: int, offset: int) -> None:
    """Pair by pair, of what is computed in float32 around the mean; also for clouds far from 0."""
    made = program(dim, formula, "Min")
    found = contract(made.reduction, made.variables)
    assert found
    values = values_for(made.variables, 40, 50)
    values = {v: (x + offset * (v.name in ("x", "y"))).float().double() for v, x in values.items()}
    exact = dense(made.reduction.args[0], values)
    if found.center and found.center_of:
        values[found.center] = dense(found.center_of, values).mean(-1, keepdim=True).float().double()
    single = {v: x.float() for v, x in values.items()}
    like = torch.empty((0, 1, 1), dtype=torch.float32)
    bound = sum(evaluate(size, single, like) for size in found.sizes) * 2.0**-23
    error = evaluate(found.node.args[0], single, like).double() - exact
    assert (error.abs() <= 4 * bound).all()
    assert (error.abs() >= 1e-2 * bound).any()


def test_equal_sizes_count_once() -> None:
    found = contracted("b-SqDist(x,y)", "LogSumExp")
    assert found
    assert [*map(repr, found.sizes)] == ["Sum(Square(x - center))", "Sum(Square(y - center)) + Abs(b)"]
