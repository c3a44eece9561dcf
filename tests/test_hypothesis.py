"""Random well-typed reductions through the whole pipeline: C kernels against the float64 reference.

The tolerance is measured, not guessed: the reference is evaluated again with a small relative error made at every
operation, and what comes of that says how much rounding may matter at each entry of the result. Entries where a step or
a near tie makes the outcome a matter of rounding are left out.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.formulas import arguments, dense, noisy, reduce_dense, reductions, values_for
from tritonkeops.formula.ir import Category, Const, Reduction, Var
from tritonkeops.formula.text import spell
from tritonkeops.passes.differentiate import differentiate
from tritonkeops.torch import Genred

LEVEL = 1e-9
UNIT = {torch.float64: 1.2e-16, torch.float32: 6e-8}
SLACK = 64  # roundings that the error model above leaves out: sums, transcendental functions of a few ulp


def aliases(pool: list[Var]) -> list[str]:
    return [f"{v.name} = {v.category.keyword}({v.dim})" for v in pool]


def reference(node: Reduction, values: dict[Var, Tensor], M: int, N: int, seed: int | None = None) -> list[Tensor]:
    """The outputs (dim, rows); with a seed, after errors of size LEVEL."""
    plain = differentiate(node)
    assert isinstance(plain, Reduction)
    terms = [dense(arg, values) if seed is None else noisy(arg, values, LEVEL, seed) for arg in plain.args]
    return reduce_dense(plain, terms, M, N)


def sizes(pool: list[Var], M: int, N: int) -> tuple[int, int]:
    """A call without a Vi has one row i; without a Vj, one row j."""
    axes = {axis for v in pool for axis in v.axes}
    return M if "i" in axes else 1, N if "j" in axes else 1


def check(node: Reduction, pool: list[Var], M: int, N: int, dtype: torch.dtype) -> int:
    """Compare; returns how many entries could be."""
    M, N = sizes(pool, M, N)
    values = {v: t.to(dtype).double() for v, t in values_for(pool, M, N).items()}
    expected = reference(node, values, M, N)
    noise = [reference(node, values, M, N, seed) for seed in range(3)]
    genred = Genred(spell(node), aliases(pool))
    found = genred(*(x.to(dtype) for x in arguments(pool, values)))
    found = found if isinstance(found, tuple) else (found,)
    compared = 0
    for n, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        ours = ours.reshape(theirs.T.shape).T
        runs = torch.stack([run[n] for run in noise])
        if theirs.dtype == torch.int64:
            assert ours.dtype == torch.int64
            sure = (runs == theirs).all(0)
            if dtype == torch.float32:  # ties in float32 are none in float64
                continue
        else:
            spread = (runs - theirs).abs().amax(0) / LEVEL
            tolerance = SLACK * UNIT[dtype] * (spread + theirs.abs() + 1)
            sure = (spread < 1e5 * (1 + theirs.abs())) & (tolerance < 0.01 * (1 + theirs.abs()))
            same = ((ours.double() - theirs).abs() <= tolerance) | (ours.double() == theirs)
            assert bool(same[sure].all()), (
                f"{spell(node)} with {aliases(pool)}, {dtype}: {ours[sure & ~same]} expected {theirs[sure & ~same]} "
                f"+- {tolerance[sure & ~same]}\n{genred.explain('simplified')}"
            )
            compared += int(sure.sum())
            continue
        assert torch.equal(ours[sure], theirs[sure]), (
            f"{spell(node)} with {aliases(pool)}\n{genred.explain('simplified')}"
        )
        compared += int(sure.sum())
    return compared


TOTALS = {"compared": 0, "cases": 0}


@settings(max_examples=45, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    reductions(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.float64, torch.float64, torch.float32])
)
def test_c_computes_what_the_formula_means(
    drawn: tuple[Reduction, list[Var]], M: int, N: int, dtype: torch.dtype
) -> None:
    TOTALS["compared"] += check(*drawn, M, N, dtype)
    TOTALS["cases"] += 1


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reductions((1, 3, 20), 2), st.integers(1, 70), st.integers(1, 70))
def test_large_dims(drawn: tuple[Reduction, list[Var]], M: int, N: int) -> None:
    check(*drawn, M, N, torch.float64)


def test_the_comparison_is_not_vacuous() -> None:
    if TOTALS["cases"] < 30:
        pytest.skip("runs after the test above")
    assert TOTALS["compared"] > 20 * TOTALS["cases"], TOTALS


def test_the_comparison_notices_a_small_error() -> None:
    """A formula of condition one, off by two parts in a thousand million, is told from the right one."""
    x, y = Var(0, 2, Category.I, "x"), Var(1, 2, Category.J, "y")
    node = Reduction(differentiate(sum_of(x * y)).op, [x * y * (1 + Const(2e-9))], 1)  # type: ignore[attr-defined]
    assert check(node, [x, y], 5, 7, torch.float64)
    wrong = reference(node, values_for([x, y], 5, 7), 5, 7)
    right = reference(sum_of(x * y), values_for([x, y], 5, 7), 5, 7)
    noise = reference(sum_of(x * y), values_for([x, y], 5, 7), 5, 7, seed=1)
    spread = (noise[0] - right[0]).abs().amax() / LEVEL
    assert (wrong[0] - right[0]).abs().amax() > SLACK * UNIT[torch.float64] * (spread + right[0].abs().amax() + 1)


def sum_of(f: object) -> Reduction:
    from tests.formulas import reduction

    return Reduction(reduction("Sum"), [f], 1)  # type: ignore[list-item]
