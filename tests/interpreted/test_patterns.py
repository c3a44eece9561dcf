"""Patterns of pairs by Triton kernels, against the oracle of the C tests."""

import pytest
import torch

from tests.operators.test_reductions import ORACLES, REDUCTIONS, Problem
from tests.runtime import test_pattern
from tests.runtime.test_pattern import (
    BATCHES,
    EMPTY,
    FEW,
    MAIN,
    NEUTRAL,
    PATTERNS,
    check,
    data,
    every_kind,
    every_pattern,
    example,
    generator,
)  # fmt: skip
from tritonkeops.runtime.pattern import Band, Ranges

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is NumPy, which warns of NaN


@pytest.fixture(scope="session")
def on_triton(run):
    """A `run` for cases of the C tests, which name a back end or threads."""
    return lambda program, args, backend="triton", threads=1, **how: run(program, args, **how)


@every_kind
@pytest.mark.parametrize("op", [REDUCTIONS[name] for name in ORACLES], ids=ORACLES)
def test_reductions(op, pattern, program, run):
    """Vectors of 3, and rows around whole tiles; the result is indexed by i, or by j."""
    problem = Problem(program, op, 3, axis=MAIN.index(pattern) % 2)
    args, made, counts = example(problem, pattern, 70, 61)
    check(problem, args, run(problem.program, args, pattern=made), counts)


@every_kind
@pytest.mark.parametrize("op", FEW, ids=lambda op: op.name)
def test_long_vectors(op, pattern, program, run):
    """Accumulators in memory."""
    problem = Problem(program, op, 20, k=2)
    args, made, counts = example(problem, pattern, 35, 40, "float64")
    check(problem, args, run(problem.program, args, pattern=made), counts)


@every_pattern
@pytest.mark.parametrize("axis", [0, 1])
def test_patterns(axis, pattern, program, run):
    """Sizes around whole tiles, and nothing."""
    for op in (REDUCTIONS["Sum"], REDUCTIONS["ArgMin"], REDUCTIONS["KMin"]):
        problem = Problem(program, op, axis=axis)
        for seed, (m, n) in enumerate([(0, 5), (5, 0), (1, 1), (7, 90), (32, 33), (65, 40)]):
            args, made, counts = example(problem, pattern, m, n, seed=seed)
            check(problem, args, run(problem.program, args, pattern=made), counts)


@every_kind
@pytest.mark.parametrize("scheme", ["direct_sum", "block_sum", "kahan_scheme"])
def test_sum_schemes(scheme, pattern, program, run):
    for op, dtype_acc in ((REDUCTIONS["Sum"], "float32"), (REDUCTIONS["LogSumExp"], "float64")):
        problem = Problem(program, op)
        args, made, counts = example(problem, pattern, 40, 150)
        blocks = {"block_sum": 32} if scheme == "block_sum" else {}
        found = run(problem.program, args, pattern=made, sum_scheme=scheme, dtype_acc=dtype_acc, **blocks)
        check(problem, args, found, counts)


@every_kind
@pytest.mark.parametrize("changes", [{"index_bits": 64}, {"block_i": 16, "block_j": 64}, {"unroll_places": 1}], ids=str)
def test_schedules_do_not_change_results(changes, pattern, program, run):
    for op in (REDUCTIONS["SoftMax"], REDUCTIONS["KMax_ArgKMax"]):
        problem = Problem(program, op, 1)
        args, made, counts = example(problem, pattern, 40, 50)
        check(problem, args, run(problem.program, args, pattern=made, **changes), counts)


@every_kind
@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows(rows, pattern, program, run):
    problem = Problem(program, REDUCTIONS["LogSumExp"])
    args, made, counts = example(problem, pattern, rows, 90)
    check(problem, args, run(problem.program, args, pattern=made, few_rows=rows), counts)


@every_kind
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches_share_the_pattern(batches, axis, pattern, program, on_triton):
    test_pattern.test_batches_share_the_pattern(batches, axis, pattern, "triton", program, on_triton)


@pytest.mark.parametrize("pattern", EMPTY)
@pytest.mark.parametrize("name", NEUTRAL)
def test_rows_without_pairs(name, pattern, program, on_triton):
    test_pattern.test_rows_without_pairs(name, pattern, "triton", program, on_triton)


@every_kind
def test_all_nan_is_not_nothing(pattern, program, on_triton):
    test_pattern.test_all_nan_is_not_nothing("triton", pattern, program, on_triton)


@every_kind
def test_excluded_rows_are_not_seen(pattern, program, on_triton):
    for number in (float("nan"), float("inf")):
        test_pattern.test_excluded_rows_are_not_seen(pattern, number, "triton", program, on_triton)


def test_tiles_write_their_own_rows_only(program, on_triton):
    test_pattern.test_tiles_write_their_own_rows_only(program, on_triton)


def test_ties_go_to_the_lowest_row(program, on_triton):
    test_pattern.test_ties_go_to_the_lowest_row("triton", program, on_triton)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_kind
def test_half_precision(pattern, dtype, program, run):
    """Computed in float32, on numbers that half precision holds."""
    problem = Problem(program, REDUCTIONS["Min"])
    args, made, _ = example(problem, pattern, 40, 50)
    (wanted,) = run(problem.program, args, pattern=made)
    (found,) = run(problem.program, [x.to(dtype) for x in args], pattern=made)
    assert torch.equal(found.float(), wanted)


def test_names_of_the_user(program, run):
    """Variables called as the kernels' own."""
    for name in ("stop", "low", "start", "columns", "table", "top", "inside", "head", "listed_j", "count_j", "spans"):
        x, y = data(20, 30)
        reduction = program(f"Sum({name} * y)", [f"{name}=Vi(3)", "y=Vj(3)"])
        for made, wanted in ((Band(0, None), torch.triu(x @ y.T)), (Ranges(whole(20, 30)), x @ y.T)):
            (found,) = run(reduction, [x, y], pattern=made)
            torch.testing.assert_close(found[:, 0], wanted.sum(1))
        made, (counts, _) = PATTERNS["neighbors"](generator(0), 20, 30)
        (found,) = run(reduction, [x, y], pattern=made)
        torch.testing.assert_close(found[:, 0], (x @ y.T * torch.from_numpy(counts)).sum(1))


def whole(m, n):
    one = torch.tensor([1])
    return [torch.tensor([[0, m]]), one, torch.tensor([[0, n]]), torch.tensor([[0, n]]), one, torch.tensor([[0, m]])]
