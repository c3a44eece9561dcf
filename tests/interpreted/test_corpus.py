"""Operators and reductions of the registry, formulas, layouts and schedules by Triton kernels, against the float64
reference.

What is here takes the fixtures `program`, `run` and `genred` alone: tests/gpu runs the same tests on a device.
"""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import test_hypothesis
from tests.backends.test_c_kernels import BATCHES, FORMULAS, check, compiled, strided, values
from tests.backends.test_c_kernels import test_nothing_outside_is_used_or_written as check_nothing_outside_is_used
from tests.formulas import reductions
from tests.operators import test_elementwise, test_reductions, test_registry, test_vector
from tests.operators.test_elementwise import DERIVATIVES, POINTS, SPECIAL, concatenated
from tests.operators.test_reductions import COMPENSATED, REDUCTIONS, SPECIALS, Problem, every_reduction
from tests.operators.test_registry import Case, I, J, P, batches, every_dtype, every_operator, small_examples
from tritonkeops import compiler
from tritonkeops.tile.schedule import choose_gpu
from tritonkeops.torch import Genred

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is NumPy, which warns of NaN
INF, NAN = math.inf, math.nan
UNROLLED = {"unroll_dims": 10**6}
every_half = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=("float16", "bfloat16"))


def on_triton(run):
    """A `run` for cases of the C tests, which name an unrolling."""
    return lambda program, args, unroll=0, **how: run(program, args, **how)


# ---- operators ----


@every_operator
@pytest.mark.parametrize("how", [{}, {"unroll_dims": 2}], ids=("unrolled", "looped"))
def test_operators(op, how, program, run):
    """Every mix of vectors and scalars; operands in i, j, both, neither."""
    case, dtype, (first, *others) = Case(), torch.float64, small_examples(op)
    case.add(op, *first, (I, I, I), dtype)
    case.add(op, *first, (J, J, J), dtype)
    case.add(op, *first, (I, J, P), dtype, pairs=True)
    for n, (dims, static) in enumerate(others):
        case.add(op, dims, static, [(I, P, J), (J, I, I)][n % 2], dtype, pairs=n % 2 == 0)
    case.check(program, on_triton(run), dtype, block_i=64, block_j=4, **how)


@every_dtype
@pytest.mark.parametrize("ops", batches(14), ids=lambda ops: f"{ops[0]}..{ops[-1]}")
def test_many_operators(ops, dtype, program, run):
    """Side by side in one kernel, in both precisions."""
    case = Case()
    for op in ops:
        case.add(op, *small_examples(op)[0], (I, J, J), dtype, pairs=True)
    case.check(program, on_triton(run), dtype, block_i=64, block_j=4, **UNROLLED)


@pytest.mark.parametrize("ops", batches(20), ids=lambda ops: f"{ops[0]}..{ops[-1]}")
def test_derivatives(ops, program, run):
    """Gradients of many operators in one kernel, against autograd."""
    how = {"block_i": 64, "block_j": 4, **UNROLLED}
    test_registry.test_c_values_of_derivatives(ops, program, lambda *args, unroll=0: run(*args, **how))


@every_dtype
@pytest.mark.parametrize("table", [SPECIAL, DERIVATIVES], ids=("values", "derivatives"))
def test_special_points(table, dtype, program, run):
    """NaN, infinities and signed zeros, varying with i, with j, and with both."""
    formulas = list(table) if table is SPECIAL else [f"Grad({f}, x, 1)" for f in table]
    x, zero = torch.tensor(POINTS, dtype=dtype)[:, None], torch.full((1, 1), -0.0, dtype=dtype)
    expected, tolerance = torch.tensor(list(table.values()), dtype=dtype), 2e-6 if dtype == torch.float32 else 1e-14
    for aliases, axis in (["x = Vi(1)", "y = Vj(1)"], 1), (["x = Vj(1)", "y = Vi(1)"], 0):
        (found,) = run(program(concatenated(formulas), aliases, "Sum", axis), [x, zero], **UNROLLED)
        for name, got, wanted in zip(formulas, found.T, expected, strict=True):
            torch.testing.assert_close(
                got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )


@every_dtype
def test_vectors_by_convention(dtype, program, run):
    def unrolled(program, args, backend):
        return run(program, args, **UNROLLED)

    test_vector.test_conventions("triton", dtype, program, unrolled)


AS_ON_THE_CPU = {
    "constants": test_elementwise.test_constants_are_exact_in_the_precision_of_the_data,
    "mod": lambda program, run: test_elementwise.test_mod_range(0.75, program, run),
    "Jacobian": test_vector.test_grad_matrix_runs_on_c,
    "negative weights": test_reductions.test_negative_weights_of_logsumexp,
    "signed zeros": test_reductions.test_signed_zeros_are_equal,
}


@pytest.mark.parametrize("what", AS_ON_THE_CPU)
def test_as_on_the_cpu(what, program, run):
    AS_ON_THE_CPU[what](program, run)


# ---- reductions ----

SIZES = [(0, 0), (0, 5), (5, 0), (1, 1), (7, 15), (31, 16), (32, 17), (33, 50)]  # around tiles of 32 rows i, 16 rows j
FEW_SPECIALS = ["nan first", "all nan", "both infinities", "all -inf"]


def stacked(problem, rows, columns, specials, dtype="float32"):
    """Arguments with a batch entry for each list of special values."""
    return [torch.stack(x) for x in zip(*[problem.data(rows, columns, dtype, s) for s in specials], strict=True)]


def check_entries(problem, args, outputs, rtol=None):
    for n in range(len(args[0])):
        problem.check([x[n] for x in args], [x[n] for x in outputs], rtol)


@every_reduction
@pytest.mark.parametrize(("dim", "dtype", "axis"), [(1, "float32", 1), (3, "float64", 0), (20, "float32", 1)])
def test_reductions(op, dim, dtype, axis, program, run):
    """Sizes around whole tiles, then special values; dim 20 with its accumulators in memory."""
    problem = Problem(program, op, dim, axis, k=1 if dim == 20 else 3)
    for rows, columns in SIZES if dim == 1 else [(0, 5), (5, 0), (33, 17)]:
        args = problem.data(rows, columns, dtype)
        problem.check(args, run(problem.program, args))
    specials = [SPECIALS[name] for name in (SPECIALS if dim == 1 else FEW_SPECIALS)]
    args = stacked(problem, 4, 9, specials, dtype)
    check_entries(problem, args, run(problem.program, args))


@pytest.mark.parametrize("weight", [False, True])
def test_weight_of_logsumexp_is_optional(weight, program, run):
    problem = Problem(program, REDUCTIONS["LogSumExp"], weight=weight)
    args = problem.data(5, 20)
    problem.check(args, run(problem.program, args))


@pytest.mark.parametrize("op", [op for op in REDUCTIONS.values() if op.float_sum], ids=str)
def test_blocks_of_j_are_merged(op, program, run):
    """Two tiles, a partial accumulator: merge joins what fold would have."""
    problem = Problem(program, op, 3)
    for columns, special in [(31, ()), (32, ()), (33, ()), (70, [(3, NAN), (50, -INF)])]:
        args = problem.data(10, columns, special=special)
        problem.check(args, run(problem.program, args, block_sum=32))


@pytest.mark.parametrize("op", COMPENSATED.values(), ids=COMPENSATED)
@pytest.mark.parametrize("block_sum", [0, 16])
def test_compensated_sums_agree(op, block_sum, program, run):
    """With NaN and infinities: compensation takes nothing away."""
    problem = Problem(program, op, 3)
    args = stacked(problem, 4, 9, [(), *(SPECIALS[name] for name in FEW_SPECIALS)])
    found = run(problem.program, args, sum_scheme="kahan_scheme", block_j=4, block_sum=block_sum and 8)
    check_entries(problem, args, found)


def test_large_exponents_do_not_overflow(program, run):
    """To base 2 both operands are scaled apart, which rounds each of them once."""
    x, y = torch.tensor([[0.0], [1e4], [-1e4]]), torch.tensor([[1e4], [1e4 - 1], [-1e4]])
    dense = (x + y.T).double()
    for name, weight, wanted in (
        ("LogSumExp", None, dense.logsumexp(1, keepdim=True)),
        ("SoftMax", "y", dense.softmax(1) @ y.double()),
    ):
        (found,) = run(program("x + y", ["x = Vi(1)", "y = Vj(1)"], name, 1, 0, weight), [x, y])
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e4 * 2**-23)


@pytest.mark.parametrize("name", ["ArgMin", "ArgMax", "ArgKMin", "ArgKMax"])
def test_equal_values_come_by_row(name, program, run, splits):
    """Also where parts of j are merged."""
    reduction = program("0 * x + 0 * y + 1", ["x = Vi(1)", "y = Vj(1)"], name, 1, 4 if "K" in name else 0)
    (found,) = run(reduction, [torch.zeros(3, 1), torch.zeros(150, 1)], block_j=4)
    assert found.tolist() == [[0, 1, 2, 3] if "K" in name else [0]] * 3 and splits[-1] > 1


# ---- parts of j ----


@pytest.fixture
def splits(monkeypatch):
    """Pretends that there are multiprocessors to fill; the numbers of parts of j that launches have had since."""
    from tritonkeops.backends.triton import build  # imports Triton

    found, original = [], build._parts

    def parts(*args):
        found.append(original(*args)[1])
        return original(*args)

    monkeypatch.setattr(build, "_processors", lambda device: 8)
    monkeypatch.setattr(build, "_parts", parts)
    return found


@every_reduction
@pytest.mark.parametrize("dim", [1, 3, 20])
def test_j_is_split_over_programs(op, dim, program, run, splits):
    """Parts of j are folded apart and merged in order, the last one shorter; accumulators in registers and memory."""
    problem = Problem(program, op, dim, k=2 if dim < 20 else 1)
    block_j, columns = (4, 70) if dim < 20 else (2, 35)
    specials = [(), [(0, NAN), (40, -INF)], [(columns - 1, INF)]] if dim == 1 else [()]
    args = stacked(problem, 3, columns, specials)
    found = run(problem.program, args, block_j=block_j, **({"block_sum": 8} if op.float_sum else {}))
    check_entries(problem, args, found)
    assert splits[-1] > 1


def test_short_reductions_are_not_split(program, run, splits):
    problem = Problem(program, REDUCTIONS["Sum"])
    for columns in (0, 5, 60):
        args = problem.data(3, columns)
        problem.check(args, run(problem.program, args))
    assert splits == [1, 1, 1]


@pytest.mark.parametrize("columns", [4 * 30, 4 * 31, 4 * 31 + 1])
def test_the_last_part_may_be_short(columns, program, run, splits):
    problem = Problem(program, REDUCTIONS["Min_ArgMin"])
    args = problem.data(3, columns)
    problem.check(args, run(problem.program, args, block_j=4))
    assert splits[-1] > 1


@pytest.mark.parametrize("op", COMPENSATED.values(), ids=COMPENSATED)
def test_parts_of_compensated_sums_are_merged(op, program, run, splits):
    problem = Problem(program, op, 3)
    args = problem.data(3, 70)
    problem.check(args, run(problem.program, args, sum_scheme="kahan_scheme", block_j=4))
    assert splits[-1] > 1


# ---- the K best ----


@pytest.mark.parametrize("name", ["KMin_ArgKMin", "ArgKMax"])
@pytest.mark.parametrize(("k", "dim"), [(1, 3), (6, 3), (17, 1), (33, 1), (2, 20)])
def test_numbers_of_neighbours(name, k, dim, program, run):
    """In registers and in memory; more neighbours than rows."""
    problem = Problem(program, REDUCTIONS[name], dim, k=k)
    for columns in (k - 1, k + 3) if k < 33 else (k + 3,):
        args = problem.data(5, columns)
        problem.check(args, run(problem.program, args))


# ---- formulas and schedules ----


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name, program, run):
    reduction = compiled(program, name)
    args = values(reduction)
    check(run(reduction, args), run(reduction, args, "torch"))


@pytest.mark.parametrize("name", ["gaussian", "long in, long out", "matrix", "gradient", "vector logsumexp"])
def test_formulas_in_float32(name, program, run):
    reduction = compiled(program, name)
    args = values(reduction, dtype=torch.float32)
    check(run(reduction, args), run(reduction, [x.double() for x in args], "torch"), rtol=2e-5)


@pytest.mark.parametrize(
    "name", ["tl", "range", "i", "fold", "x_row", "value", "M", "INF", "MASKED", "t1", "s", "held"]
)
def test_names_of_the_kernel(name, program, run):
    """Variables called like what the kernel calls its own."""
    other = "x_0" if name != "s" else "other_s"
    reduction = program(f"Exp({name} * {other}) + x", [f"{name} = Vi(2)", f"{other} = Vj(2)", "x = Pm(2)"], "LogSumExp")
    args = values(reduction)
    check(run(reduction, args), run(reduction, args, "torch"))


SCHEDULES = [
    {"packed": False},
    {"spread": False, "coarse": False},
    {"spread": False, "block_sum": 0},
    {"unroll_dims": 2, "unroll_places": 2},
    {"index_bits": 64},
    {"index_bits": 64, "packed": False, "unroll_dims": 2, "unroll_places": 2},
    {"block_i": 128, "block_j": 1},
    {"block_i": 1, "block_j": 64},
]


@pytest.mark.parametrize("name", ["gaussian", "nearest of three", "distances", "vector logsumexp"])
@pytest.mark.parametrize("changes", SCHEDULES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_schedules_do_not_change_results(name, changes, program, run):
    if name == "nearest of three":
        reduction = program("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], "Min_ArgMin")
    else:
        reduction = compiled(program, name)
    if "block_i" in changes:
        args = values(reduction, 3, 70) if changes["block_i"] == 1 else values(reduction, 100, 5)
    else:
        args = values(reduction)
    check(run(reduction, args, **changes), run(reduction, args, "torch"))


@pytest.mark.parametrize("name", ["gaussian", "two norms", "distances"])
def test_nothing_outside_is_used_or_written(name, program, run):
    check_nothing_outside_is_used(name, program, run)


@every_reduction
@pytest.mark.parametrize("rows", [1, 5, 40, 200])
def test_few_rows(op, rows, genred):
    """A call of few rows takes a schedule of its own."""
    if rows > 5 and op.name not in ("Sum", "LogSumExp", "Min_ArgMin", "ArgKMin"):
        pytest.skip("a sample of reductions")
    how = {"opt_arg": 2 if op.takes_k else None, "formula2": "y" if op.formulas[0] == 2 else None}
    formula, aliases = "SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"]
    x, y = (torch.rand(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (rows, 50))
    found, wanted = genred(formula, aliases, op.name, 1, **how)(x, y), Genred(formula, aliases, op.name, 1, **how)(x, y)
    for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- precision ----


@every_half
@pytest.mark.parametrize(
    ("formula", "name"), [("Exp(-SqDist(x, y)) * b", "Sum"), ("SqDist(x, y)", "LogSumExp"), ("x - y", "Min_ArgMin"),
                          ("SqDist(x, y)", "KMin_ArgKMin")])  # fmt: skip
def test_half_inputs(half, formula, name, program, run):
    """Computed and accumulated in float32: the reference of the same inputs, rounded once."""
    reduction = program(formula, ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], name, 1, 3 if "K" in name else 0)
    args = values(reduction, 37, 100, half)
    found, exact = run(reduction, args), run(reduction, [x.double() for x in args], "torch")
    for ours, theirs in zip(found, exact, strict=True):
        if theirs.dtype == torch.int64:
            assert torch.equal(ours, theirs)
        else:
            assert ours.dtype == half
            torch.testing.assert_close(ours.double(), theirs.to(half).double(), rtol=torch.finfo(half).eps, atol=1e-6)


@every_half
def test_half_inputs_in_long_vectors_and_batches(half, program, run):
    """Products of matrices round the weights of pairs, which are at most 1, to as few bits as the data have."""
    for formula, aliases in [
        ("Exp(-SqDist(x, y) / 8) * y", ["x = Vi(20)", "y = Vj(20)"]),
        ("MatVecMult(W, x - y)", ["W = Pm(60)", "x = Vi(3)", "y = Vj(3)"]),
    ]:
        reduction = program(formula, aliases)
        args = values(reduction, 20, 40, half, batch=(2,))
        (found,), (exact,) = run(reduction, args), run(reduction, [x.double() for x in args], "torch")
        eps = torch.finfo(half).eps
        torch.testing.assert_close(found.double(), exact.to(half).double(), rtol=eps, atol=4 * eps)


def cancelling(columns, block_j):
    """Ones between 2^28 and -2^28, in tiles of their own: a plain sum in float32 loses the ones."""
    y = torch.ones(columns, 1)
    y[:block_j], y[-block_j:] = 0, 0
    y[0], y[-1] = 2.0**28, -(2.0**28)
    return y


ACCURATE = [{"sum_scheme": "kahan_scheme"}, {"dtype_acc": "float64"}]


@pytest.mark.parametrize("how", ACCURATE, ids=lambda how: next(iter(how.values())))
@pytest.mark.parametrize("parts", [False, True], ids=("whole", "in parts"))
def test_accurate_sums(how, parts, program, run, request):
    """Right to the last place of the largest number, where plain summation loses all others."""
    splits = request.getfixturevalue("splits") if parts else [2]
    x, y = torch.zeros(1, 1), cancelling(1600, 8)
    reduction = program("x + y", ["x = Vi(1)", "y = Vj(1)"])
    (plain,) = run(reduction, [x, y], sum_scheme="direct_sum", spread=False, block_i=1, block_j=8)
    (found,) = run(reduction, [x, y], spread=False, block_sum=0, block_i=1, block_j=8, **how)
    assert abs(found.item() - (1600 - 16)) <= 2**28 * 2**-24 and splits[-1] > 1
    assert abs(plain.item() - (1600 - 16)) > 2**28 * 2**-23, "plain summation is not that good: is it plain?"


@pytest.mark.parametrize("how", ACCURATE, ids=lambda how: next(iter(how.values())))
@pytest.mark.parametrize("name", ["LogSumExpWeight", "SoftMax"])
def test_accurate_sums_of_exponentials(name, how, program, run):
    x, y = torch.zeros(1, 1), cancelling(800, 8)
    reduction = program("0 * (x + y)", ["x = Vi(1)", "y = Vj(1)"], name, 1, 0, "y")
    (found,) = run(reduction, [x, y], block_sum=0, block_i=1, block_j=8, **how)
    wanted = math.log(784) if name == "LogSumExpWeight" else 784 / 800
    assert found.item() == pytest.approx(wanted, rel=2**28 * 2**-24 / 784)


def test_blocks_of_sums_bound_the_error(program, run):
    """Of 60000 numbers in [0, 1)."""
    x, y = torch.zeros(1, 1), torch.rand(60_000, 1, generator=torch.Generator().manual_seed(0))
    reduction, exact = program("x + y", ["x = Vi(1)", "y = Vj(1)"]), y.double().sum().item()
    (found,) = run(reduction, [x, y], block_i=1, block_j=64, block_sum=1024)
    assert abs(found.item() / exact - 1) < 1e-6


# ---- batches and layouts ----


@pytest.mark.parametrize("shapes", BATCHES, ids=str)
@pytest.mark.parametrize("name", ["Sum", "ArgKMin"])
def test_batches(shapes, name, program, run):
    """Each batch entry is the reduction of its own slices, whichever arguments are shared."""
    reduction = program("Exp(-SqDist(x, y) * p) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)"], name, 1,
                        2 if "K" in name else 0)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    args = [
        torch.rand(*b, *s, generator=generator, dtype=torch.float64)
        for b, s in zip(shapes, [(37, 3), (23, 3), (23, 1), (1,)], strict=True)
    ]
    check(run(reduction, args), run(reduction, args, "torch"))


def test_parameters_of_each_batch_entry(program, run, splits):
    """Three batch dimensions that cannot be joined, j in parts."""
    reduction = program("Tanh(VecMatMult(x - y, W))", ["W = Pm(8)", "x = Vi(2)", "y = Vj(2)"])
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 1, 2, 8), (1, 2, 1, 3, 2), (2, 1, 1, 35, 2)]
    args = [torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    check(run(reduction, args, block_i=4, block_j=2), run(reduction, args, "torch"))
    assert splits[-1] > 1


@pytest.mark.parametrize("how", ["rows apart", "part of a row", "transposed", "batch last"])
def test_strides(how, genred):
    function = genred("Exp(-SqDist(x, y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)
    generator = torch.Generator().manual_seed(0)
    args = [torch.rand(2, n, d, generator=generator, dtype=torch.float64) for n, d in ((37, 3), (23, 3), (23, 2))]
    wanted = function(*args)
    for position in range(3):
        changed = [strided(x, how) if n == position else x for n, x in enumerate(args)]
        torch.testing.assert_close(function(*changed), wanted, rtol=1e-14, atol=0)


def test_rows_may_be_one(genred):
    """Expanded rows and batch entries: strides of 0."""
    function = genred("Exp(-SqDist(x, y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)
    args = [torch.rand(*shape, dtype=torch.float64) for shape in ((1, 1, 3), (1, 23, 3), (2, 1, 2))]
    args = [x.expand(2, n, d) for x, (n, d) in zip(args, [(37, 3), (23, 3), (23, 2)], strict=True)]
    torch.testing.assert_close(function(*args), function(*map(torch.clone, args)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shapes", [((0, 3), (5, 3)), ((5, 3), (0, 3)), ((0, 5, 3), (4, 3)), ((2, 5, 3), (2, 0, 3))])
def test_nothing_to_do(shapes, genred):
    args = [torch.ones(shape) for shape in shapes]
    batch, rows = shapes[0][:-2], shapes[0][-2]
    sums = genred("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], axis=1)(*args)
    nearest = genred("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], "ArgKMin", axis=1, opt_arg=2)(*args)
    assert torch.equal(sums, torch.zeros(*batch, rows, 1))
    assert torch.equal(nearest, torch.full((*batch, rows, 2), -1)) or 0 in (*batch, rows)


def test_out_is_written(genred):
    args = [torch.rand(5, 3), torch.rand(7, 3)]
    for name, kinds in (("Sum", [torch.float32]), ("Min_ArgMin", [torch.float32, torch.int64])):
        function = genred("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], name, axis=1)
        out = tuple(torch.full((5, 1), -99, dtype=kind) for kind in kinds)
        result, wanted = function(*args, out=out if len(out) > 1 else out[0]), function(*args)
        assert (result[0] if len(out) > 1 else result) is out[0]
        for x, y in zip(out, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            assert torch.equal(x, y)


# ---- random formulas ----

SOME = settings(  # without shrinking, which takes minutes here
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
SIZES_AND_TILES = {
    "M": st.integers(1, 40), "N": st.integers(1, 40),
    "tiles": st.fixed_dictionaries({"block_i": st.sampled_from([4, 32]), "block_j": st.sampled_from([1, 2, 16]),
                                    "packed": st.booleans()}),
}  # fmt: skip


def check_random(genred, drawn, M, N, dtype, tiles):
    """In small tiles, some of them whole, and in parts of j where `splits` are asked for."""

    def small(*args, **options):
        schedule = choose_gpu(*args, **options)
        return replace(schedule, **tiles, block_sum=min(schedule.block_sum, 2 * tiles["block_j"]))

    with mock.patch.object(compiler, "choose_gpu", small), mock.patch.object(test_hypothesis, "Genred", genred):
        test_hypothesis.check(*drawn, M, N, dtype)


@settings(SOME, max_examples=80)
@given(drawn=reductions(), dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]), **SIZES_AND_TILES)
def test_random_formulas(genred, splits, drawn, M, N, dtype, tiles):
    check_random(genred, drawn, M, N, dtype, tiles)


@settings(SOME, max_examples=30)
@given(drawn=reductions((1, 3, 20), 2), M=st.integers(1, 40), N=st.integers(1, 9), packed=st.booleans())
def test_random_formulas_of_long_vectors(genred, drawn, M, N, packed):
    check_random(genred, drawn, M, N, torch.float64, {"block_i": 32, "block_j": 4, "packed": packed})
