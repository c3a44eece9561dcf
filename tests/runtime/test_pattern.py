"""Reductions over patterns of pairs against an oracle that reduces, row by row, what the pattern lists."""

from __future__ import annotations

import functools
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch

from tests.operators.test_reductions import ORACLES, REDUCTIONS, RTOL, Problem
from tritonkeops.backends import pairs
from tritonkeops.backends.c.build import compiler
from tritonkeops.compiler import Program, Target
from tritonkeops.runtime.call import Caller, accuracy
from tritonkeops.runtime.pattern import Band, Neighbors, Pattern, Ranges, kind_of, pattern_of
from tritonkeops.tile.schedule import choose_cpu

NAN = float("nan")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


def generator(*seed):
    return np.random.default_rng(seed)


# ---- patterns, and the matrix of how often they count each pair ----


def clusters(random, length, count):
    """`count` intervals apart from each other, in any order, some empty, with rows between them."""
    ends = np.sort(random.choice(length + 1, 2 * count)) if length else np.zeros(2 * count, int)
    return ends.reshape(count, 2)[random.permutation(count)]


def triple(random, rows, cols):
    """Ranges of one axis: clusters with 0 to 4 spans each."""
    blocks = clusters(random, rows, 5)
    number = random.integers(0, 5, 5)
    number[0], number[1] = 0, 4
    spans = np.concatenate([clusters(random, cols, n) for n in number])
    counts, slices = np.zeros((rows, cols), int), number.cumsum()
    for (start, stop), last, n in zip(blocks, slices, number, strict=True):
        for first, end in spans[last - n : last]:
            counts[start:stop, first:end] += 1
    return [torch.from_numpy(x) for x in (blocks, slices, spans)], counts


def ranges(random, m, n):
    (by_row, counts), (by_column, transposed) = triple(random, m, n), triple(random, n, m)
    return Ranges([*by_row, *by_column]), (counts, transposed.T)


def neighbors(random, m, n, k=7):
    """Some of them -1, some twice."""
    indices = random.integers(-1, n, (m, k))
    counts = np.zeros((m, n + 1), int)
    np.add.at(counts, (np.arange(m)[:, None], indices), 1)
    return Neighbors(torch.from_numpy(indices)), (counts[:, :n],) * 2


def band(low, high, m, n):
    difference = np.arange(n) - np.arange(m)[:, None]
    counts = (difference >= (-np.inf if low is None else low)) & (difference <= (np.inf if high is None else high))
    return Band(low, high), (counts.astype(int),) * 2


BANDS = {
    "below": (None, -1), "above": (0, None), "all": (None, None), "beside": (5, 90), "tridiagonal": (-1, 1),
    "outside": (4000, 5000), "nothing": (3, 2), "wide nothing": (50, 2),
}  # fmt: skip
PATTERNS = {
    "ranges": ranges,
    "neighbors": neighbors,
    **{f"band {name}": lambda random, m, n, bounds=bounds: band(*bounds, m, n) for name, bounds in BANDS.items()},
}
MAIN = ("ranges", "band beside", "neighbors")  # one for each kind of kernel
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)
every_kind = pytest.mark.parametrize("pattern", MAIN)


# ---- the oracle ----


def listed(counts, axis):
    """The columns that each row of the result counts, in order."""
    rows = counts if axis == 1 else counts.T
    return [np.repeat(np.arange(rows.shape[1]), row) for row in rows]


def row_of(problem, args, row, columns):
    """The outputs of one row, reduced by the oracle of the dense tests; indices are those of the whole call."""
    mine = [x[row : row + 1] if n in (0, 3) else x[columns] for n, x in enumerate(args)]
    outputs = []
    for found, kind in zip(problem.expected(mine), problem.op.outputs, strict=True):
        if kind == "index" and len(columns):
            f = mine[0].double().numpy() * mine[1].double().numpy() + mine[2].double().numpy()
            dead = np.isnan(f).all(0) & (not problem.k)  # all NaN: row 0
            found = np.where(
                (found < 0) | np.resize(dead, found.shape), np.minimum(found, 0), columns[found.astype(int)]
            )
        outputs.append(found)
    return outputs


def expected(problem, args, counts):
    rows = [row_of(problem, args, n, columns) for n, columns in enumerate(listed(counts, problem.axis))]
    if not rows:
        return [np.empty((0, problem.program.reduction.dim)) for _ in problem.op.outputs]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def check(problem, args, outputs, counts):
    rtol = RTOL[str(args[0].dtype).removeprefix("torch.")]
    for found, wanted in zip(outputs, expected(problem, args, counts), strict=True):
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=rtol, atol=rtol, err_msg=problem.op.name)


def example(problem, name, m, n, dtype="float32", seed=0):
    """Arguments, a pattern, and its counts."""
    pattern, counts = PATTERNS[name](generator(m, n, seed), m, n)
    rows, columns = (m, n) if problem.axis == 1 else (n, m)
    args = problem.data(rows, columns, dtype)
    for column in generator(n).integers(0, max(1, columns), columns // 12):  # what NaN excludes must not be seen
        args[2][column] = NAN
    return args, pattern, counts[0 if problem.axis == 1 else 1]


# ---- every reduction ----

every_reduction = pytest.mark.parametrize("op", [REDUCTIONS[name] for name in ORACLES], ids=ORACLES)
FEW = [REDUCTIONS[name] for name in ("Sum", "LogSumExp", "SoftMax", "Min_ArgMin", "KMin_ArgKMin")]


@needs_compiler
@every_kind
@every_reduction
def test_reductions(op, pattern, program, run):
    problem = Problem(program, op)
    args, made, counts = example(problem, pattern, 150, 210)
    check(problem, args, run(problem.program, args, pattern=made), counts)


@needs_compiler
@every_kind
@every_reduction
def test_reductions_over_i(op, pattern, program, run):
    """Rows of the result are j: ranges have tables of their own, bands and lists are transposed."""
    problem = Problem(program, op, 3, axis=0)
    args, made, counts = example(problem, pattern, 90, 70, "float64")
    check(problem, args, run(problem.program, args, pattern=made), counts)


def test_spans_may_overlap(program, run):
    """What they share counts twice."""
    triple = [torch.tensor([[1, 4]]), torch.tensor([3]), torch.tensor([[2, 9], [0, 5], [4, 4]])]
    x, y = torch.ones(5, 1), torch.arange(9.0)[:, None]
    for backend in ("c", "torch"):
        (found,) = run(program("x * y", ["x=Vi(1)", "y=Vj(1)"]), [x, y], backend, pattern=Ranges(triple * 2))
        assert found[:, 0].tolist() == [0, 45, 45, 45, 0]


@needs_compiler
@every_kind
@pytest.mark.parametrize("op", FEW, ids=lambda op: op.name)
def test_long_vectors(op, pattern, program, run):
    problem = Problem(program, op, 20)
    args, made, counts = example(problem, pattern, 75, 130)
    check(problem, args, run(problem.program, args, pattern=made), counts)


@every_pattern
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backend", ["c", "torch"])
def test_patterns(backend, axis, pattern, program, run):
    """Sizes around whole tiles, and nothing."""
    for op in (REDUCTIONS["Sum"], REDUCTIONS["ArgMin"], REDUCTIONS["ArgKMin"]):
        problem = Problem(program, op, axis=axis)
        lanes = choose_cpu(problem.program.reduction, 4).lanes
        for seed, (m, n) in enumerate([(0, 5), (5, 0), (1, 1), (7, 300), (lanes, lanes + 1), (2 * lanes + 1, 40)]):
            args, made, counts = example(problem, pattern, m, n, seed=seed)
            check(problem, args, run(problem.program, args, backend, pattern=made), counts)


@every_kind
@every_reduction
def test_the_torch_back_end(op, pattern, program, run):
    problem = Problem(program, op, 3)
    args, made, counts = example(problem, pattern, 40, 60)
    check(problem, args, run(problem.program, args, "torch", pattern=made), counts)


@needs_compiler
@every_kind
@pytest.mark.parametrize("scheme", ["direct_sum", "block_sum", "kahan_scheme"])
@pytest.mark.parametrize("dtype_acc", ["float32", "float64"])
def test_sum_schemes(dtype_acc, scheme, pattern, program, run):
    for op in (REDUCTIONS["Sum"], REDUCTIONS["LogSumExp"]):
        problem = Problem(program, op)
        args, made, counts = example(problem, pattern, 70, 400)
        blocks = {"block_sum": 16} if scheme == "block_sum" else {}
        found = run(problem.program, args, pattern=made, sum_scheme=scheme, dtype_acc=dtype_acc, **blocks)
        check(problem, args, found, counts)


@needs_compiler
def test_blocks_of_sums_span_short_ranges(program, run):
    """A million ones in ranges of ten rows: one running sum in float32 would be off by a hundredth."""
    n = 10**6
    spans = torch.arange(0, n, 10)[:, None] + torch.tensor([0, 10])
    triple = [torch.tensor([[0, 1]]), torch.tensor([len(spans)]), spans]
    x, y = torch.zeros(1, 1), torch.full((n, 1), 0.1)
    (found,) = run(program("x + y", ["x = Vi(1)", "y = Vj(1)"]), [x, y], pattern=Ranges(triple * 2))
    assert found.item() == pytest.approx(y.double().sum().item(), rel=1e-4)


@needs_compiler
@pytest.mark.parametrize("pattern", ["ranges", "band above", "band beside", "neighbors"])
@pytest.mark.parametrize("changes", [
    {"lanes": 1, "width": 1, "unroll": 1}, {"lanes": 8, "width": 4, "unroll": 3, "block_sum": 4},
    {"lanes": 16, "width": 16, "unroll": 16}, {"index_bits": 64}, {"unroll_dims": 2},
], ids=str)  # fmt: skip
def test_schedules_do_not_change_results(changes, pattern, program, run):
    for op in (REDUCTIONS["SoftMax"], REDUCTIONS["KMax_ArgKMax"]):
        problem = Problem(program, op, 3)
        args, made, counts = example(problem, pattern, 50, 60, "float64")
        check(problem, args, run(problem.program, args, pattern=made, **changes), counts)


@needs_compiler
@every_kind
def test_threads_do_not_change_results(pattern, program, run):
    problem = Problem(program, REDUCTIONS["LogSumExp"])
    args, made, _ = example(problem, pattern, 3000, 2500)
    (one,) = run(problem.program, args, pattern=made)
    for threads in (2, 5):
        assert torch.equal(run(problem.program, args, pattern=made, threads=threads)[0], one) or one.isnan().any()
        torch.testing.assert_close(
            run(problem.program, args, pattern=made, threads=threads)[0], one, rtol=0, atol=0, equal_nan=True
        )


BATCHES = [((4,), (4,), (4,)), ((2, 1), (1, 3), ()), ((0,), (1,), ())]


@pytest.mark.parametrize("backend", ["c", "torch"])
@every_kind
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches_share_the_pattern(batches, axis, pattern, backend, program, run):
    """Each batch entry is the reduction of its own slices."""
    made, both = PATTERNS[pattern](generator(5), 37, 53)
    counts = torch.from_numpy(both[1 - axis]).double()
    sizes = [(37, 3), (53, 3), (53, 2)]
    args = [torch.from_numpy(generator(1).random((*b, *s))) for b, s in zip(batches, sizes, strict=True)]
    x, y, b = args
    kernel = counts[..., None] * torch.exp(-((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1, keepdim=True))
    wanted = (kernel * b[..., None, :, :]).sum(-2 if axis == 1 else -3)
    reduction = program("Exp(-SqDist(x, y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=axis)
    (found,) = run(reduction, args, backend, pattern=made, threads=2)
    torch.testing.assert_close(found, wanted)


# ---- rows without anything, NaN ----

NEUTRAL = {
    "Sum": 0, "LogSumExp": -np.inf, "Min": np.inf, "Max": -np.inf, "ArgMin": -1, "ArgMax": -1, "SoftMax": NAN,
    "KMin": np.inf, "KMax": -np.inf, "ArgKMin": -1,
}  # fmt: skip
EMPTY = {
    "ranges": Ranges([torch.tensor([[1, 2], [2, 3]]), torch.tensor([1, 1]), torch.tensor([[2, 2]])] * 2),
    "neighbors": Neighbors(torch.full((4, 3), -1)),
    "no neighbors": Neighbors(torch.empty(4, 0, dtype=torch.int64)),
    "band": Band(10, None),
    "narrow band": Band(10, 11),
}


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("pattern", EMPTY)
@pytest.mark.parametrize("name", NEUTRAL)
def test_rows_without_pairs(name, pattern, backend, program, run):
    problem = Problem(program, REDUCTIONS[name])
    args = problem.data(4, 6)
    (found,) = run(problem.program, args, backend, pattern=EMPTY[pattern])
    np.testing.assert_equal(found.double().numpy(), np.full_like(found.double().numpy(), NEUTRAL[name]))


@pytest.mark.parametrize("backend", ["c", "torch"])
@every_kind
def test_all_nan_is_not_nothing(backend, pattern, program, run):
    """Where pairs count but none has a value, the index is 0, as in dense reductions."""
    problem = Problem(program, REDUCTIONS["ArgMin"])
    args, made, counts = example(problem, pattern, 50, 100)
    args[2][:] = NAN
    (found,) = run(problem.program, args, backend, pattern=made)
    assert torch.equal(found[:, 0], torch.from_numpy(np.where(counts.sum(1) > 0, 0, -1)))


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("number", [NAN, np.inf, -np.inf])
@every_pattern
def test_excluded_rows_are_not_seen(pattern, number, backend, program, run):
    """A NaN or infinity in one row j changes the rows i that count it, and no others."""
    m, n = 70, 120
    made, (counts, _) = PATTERNS[pattern](generator(2), m, n)
    args = [torch.from_numpy(generator(3).random((size, 1))) for size in (m, n, n)]
    spoilt = [args[0], args[1].clone(), args[2].clone()]
    spoilt[1][60], spoilt[2][61] = number, number
    for name in ("Sum", "LogSumExp", "SoftMax", "KMin"):
        weight = "b" if name == "SoftMax" else None
        reduction = program(
            "x * y" if weight else "x * y * b", ["x=Vi(1)", "y=Vj(1)", "b=Vj(1)"], name, 1, 2 * (name == "KMin"), weight
        )
        found, wanted = (run(reduction, each, backend, pattern=made)[0] for each in (spoilt, args))
        free = torch.from_numpy((counts[:, 60] == 0) & (counts[:, 61] == 0))
        torch.testing.assert_close(found[free], wanted[free], equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_ties_go_to_the_lowest_row(backend, program, run):
    """Whatever the order in which a pattern lists them."""
    triple = [torch.tensor([[0, 3]]), torch.tensor([2]), torch.tensor([[5, 8], [2, 4]])]
    for pattern in (Ranges(triple * 2), Neighbors(torch.tensor([[7, 2, 5]] * 3))):
        problem = (
            program("x + y", ["x=Vi(1)", "y=Vj(1)"], "ArgMin"),
            program("x + y", ["x=Vi(1)", "y=Vj(1)"], "ArgKMax", 1, 2),
        )
        for reduction, wanted in zip(problem, ([2], [2, 3] if pattern.kind == "ranges" else [2, 5]), strict=True):
            (found,) = run(reduction, [torch.zeros(3, 1), torch.zeros(9, 1)], backend, pattern=pattern)
            assert found.tolist() == [wanted] * 3


class Backwards(Ranges):
    """Ranges whose tiles come from the last to the first, as they may where many run at once."""

    def _make(self, axis, rows, cols, device):
        made = super()._make(axis, rows, cols, device)
        return pairs.Ranges(made.blocks.flip(0), made.owned.flip(0), made.spans)


def test_tiles_write_their_own_rows_only(program, run):
    problem = Problem(program, REDUCTIONS["Sum"])
    tensors, counts = triple(generator(8), 90, 40)
    args = problem.data(90, 40)
    check(problem, args, run(problem.program, args, pattern=Backwards(tensors * 2)), counts)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_integers_of_any_type(dtype, program, run):
    problem = Problem(program, REDUCTIONS["Sum"])
    random = generator(8)
    tensors, counts = triple(random, 30, 40)
    args = problem.data(30, 40)
    check(problem, args, run(problem.program, args, pattern=Ranges([x.to(dtype) for x in tensors] * 2)), counts)


def test_strided_tables(program, run):
    """Slices of larger tensors."""
    problem = Problem(program, REDUCTIONS["Sum"])
    tensors, counts = triple(generator(9), 30, 40)
    apart = [torch.stack([x, -x - 1], -1)[..., 0] for x in tensors]
    args = problem.data(30, 40)
    check(problem, args, run(problem.program, args, pattern=Ranges(apart * 2)), counts)


@needs_compiler
@every_kind
def test_names_of_the_user(pattern, program, run):
    """Variables called as the kernels' own."""
    m, n = 20, 30
    made, (counts, _) = PATTERNS[pattern](generator(0), m, n)
    for name in ("from", "to", "list", "column", "place", "Pattern", "fold", "held", "start", "clipped"):
        x, y = data(m, n)
        (found,) = run(program(f"Sum(Exp({name} * y))", [f"{name}=Vi(3)", "y=Vj(3)"]), [x, y], pattern=made)
        wanted = torch.exp(x[:, None] * y).sum(-1) * torch.from_numpy(counts)
        torch.testing.assert_close(found[:, 0], wanted.sum(1))


# ---- what does not fit ----

GOOD = (
    torch.tensor([[0, 3], [3, 5]]), torch.tensor([1, 2]), torch.tensor([[0, 4], [2, 7]]),
    torch.tensor([[0, 7]]), torch.tensor([1]), torch.tensor([[1, 5]]),
)  # fmt: skip
WRONG = {
    "None": (TypeError, (None, *GOOD[1:]), "ranges_i: expected a tensor, got NoneType"),
    "floats": (TypeError, (*GOOD[:2], GOOD[2].float(), *GOOD[3:]), "redranges_j: expected integers, got torch.float32"),
    "bools": (TypeError, (*GOOD[:4], GOOD[4].bool(), GOOD[5]), "slices_j: expected integers, got torch.bool"),
    "shape": (ValueError, (GOOD[0][0], *GOOD[1:]), r"ranges_i: expected shape \(..., 2\), got \(2,\)"),
    "columns": (ValueError, (*GOOD[:5], torch.ones(3, 3, dtype=int)), r"redranges_i: expected .* got \(3, 3\)"),
    "slices' shape": (ValueError, (GOOD[0], GOOD[0], *GOOD[2:]), r"slices_i: .* shape \(clusters,\), got \(2, 2\)"),
    "slices' length": (ValueError, (*GOOD[:4], GOOD[1], GOOD[5]), "slices_j: expected one number for each"),
    "negative": (ValueError, (torch.tensor([[0, 3], [-1, 5]]), *GOOD[1:]), r"ranges_i\[1\]: expected 0 <= start"),
    "beyond M": (ValueError, (torch.tensor([[0, 3], [3, 6]]), *GOOD[1:]), r"ranges_i\[1\]: .* <= 5, got \[3, 6\]"),
    "beyond N": (ValueError, (*GOOD[:2], torch.tensor([[0, 8], [2, 7]]), *GOOD[3:]), r"redranges_j\[0\]: .* <= 7, got"),
    "decreasing": (ValueError, (*GOOD[:2], torch.tensor([[0, 7], [5, 2]]), *GOOD[3:]), r"redranges_j\[1\]: .*\[5, 2\]"),
    "slices": (ValueError, (GOOD[0], torch.tensor([2, 1]), *GOOD[2:]), r"slices_i\[1\]: .* number from 2, .* got 1"),
    "long slices": (ValueError, (GOOD[0], torch.tensor([1, 3]), *GOOD[2:]), r"slices_i\[1\]: .* to 2, the rows of"),
    "overlap": (
        ValueError, (torch.tensor([[2, 5], [0, 3]]), *GOOD[1:]),
        r"ranges_i\[1\] = \[0, 3\] and ranges_i\[0\] = \[2, 5\] overlap",
    ),
    "device": (ValueError, (GOOD[0].to("meta"), *GOOD[1:]), "ranges_i is on meta and the variables are on cpu"),
}  # fmt: skip


@functools.cache
def caller(formula="Exp(-SqDist(x,y))", axis=1, op="Sum"):
    program = Program(formula, ["x = Vi(3)", "y = Vj(3)"], op, axis, 0, None)
    return Caller(program, accuracy(program, "auto", False, "auto"))


def data(m=5, n=7):
    return [torch.from_numpy(generator(m, n).random((size, 3))) for size in (m, n)]


@pytest.mark.parametrize("case", WRONG)
def test_ranges_that_do_not_fit(case):
    kind, tensors, message = WRONG[case]
    axis = 0 if "_i[" not in message and message.startswith(("redranges_i", "slices_j")) else 1
    with pytest.raises(kind, match=message):
        caller(axis=axis)(data(), pattern=Ranges(tensors))


def test_the_other_axis_has_its_own_checks():
    tensors = (*GOOD[:3], torch.tensor([[0, 8]]), *GOOD[4:])
    caller()(data(), pattern=Ranges(tensors))
    with pytest.raises(ValueError, match=r"ranges_j\[0\]: expected 0 <= start <= end <= 7, got \[0, 8\]"):
        caller(axis=0)(data(), pattern=Ranges(tensors))


@pytest.mark.parametrize(
    ("indices", "kind", "message"),
    [
        ([[0, 1]] * 5, TypeError, "neighbors: expected a tensor, got list"),
        (torch.zeros(5, 2), TypeError, "neighbors: expected integers, got torch.float32"),
        (torch.zeros(5, dtype=torch.int64), ValueError, r"neighbors: expected shape \(M, k\), got \(5,\)"),
        (torch.zeros(4, 2, dtype=torch.int64), ValueError, "neighbors: expected a row for each of the 5 rows i, got 4"),
        (torch.tensor([[0, 0]] * 4 + [[6, 7]]), ValueError, r"neighbors\[4\]: expected -1 or .* from 0 to 6, got 7"),
        (torch.tensor([[0, 0]] * 4 + [[-2, 7]]), ValueError, r"neighbors\[4\]: .*, got -2"),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_neighbors_that_do_not_fit(axis, indices, kind, message):
    with pytest.raises(kind, match=message):
        caller(axis=axis)(data(), pattern=Neighbors(indices))


def test_a_wrong_pattern_after_a_right_one():
    """Plans are of signatures; what a pattern holds is checked for each."""
    good, bad = Neighbors(torch.zeros(5, 2, dtype=torch.int64)), Neighbors(torch.full((5, 2), 9))
    caller()(data(), pattern=good)
    with pytest.raises(ValueError, match=r"neighbors\[0\]"):
        caller()(data(), pattern=bad)
    with pytest.raises(ValueError, match="neighbors: expected a row"):
        caller()(data(6), pattern=good)


@pytest.mark.parametrize("low", [1.5, "2", torch.ones(2)])
def test_bounds_are_integers(low):
    with pytest.raises(TypeError):
        Band(low, None)


def test_calls_without_arguments_say_so():
    with pytest.raises(ValueError, match=r"expected 2 tensors .*, got 0"):
        caller()([], pattern=Band(0, None))


# ---- calls ----


def test_calls_with_and_without_patterns():
    """Plans of one signature do not get mixed up."""
    x, y = data(50, 80)
    call, dense = caller(), torch.exp(-(torch.cdist(x, y) ** 2))
    above, counts = PATTERNS["band above"](generator(0), 50, 80)
    listed, often = PATTERNS["neighbors"](generator(0), 50, 80)
    for _ in range(2):
        torch.testing.assert_close(call([x, y])[0][:, 0], dense.sum(1))
        torch.testing.assert_close(call([x, y], pattern=above)[0][:, 0], (dense * torch.from_numpy(counts[0])).sum(1))
        torch.testing.assert_close(call([x, y], pattern=listed)[0][:, 0], (dense * torch.from_numpy(often[0])).sum(1))


def test_out_and_options():
    x, y = data(50, 80)
    out, pattern = torch.empty(50, 1, dtype=torch.float64), Band(0, None)
    (found,) = caller().on([x, y], out, "CPU", -1, pattern)
    assert found is out and torch.equal(out, caller()([x, y], pattern=pattern)[0])


def test_many_threads_make_a_pattern():
    x, y = data(300, 200)
    pattern = PATTERNS["neighbors"](generator(1), 300, 200)[0]
    found = []
    threads = [threading.Thread(target=lambda: found.append(caller()([x, y], pattern=pattern)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(x, found[0]) for x in found)


def test_patterns_are_not_kept_by_plans():
    """A new pattern for each call, as neighbours in a loop are, leaves nothing behind."""
    pattern = Neighbors(torch.zeros(5, 2, dtype=torch.int64))
    gone = weakref.ref(pattern)
    caller()(data(), pattern=pattern)
    plans = len(caller()._plans)
    caller()(data(), pattern=Neighbors(torch.ones(5, 2, dtype=torch.int64)))
    assert len(caller()._plans) == plans
    del pattern
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", PATTERNS)
def test_names(name):
    """A pattern is made again from its name and tensors."""
    pattern = PATTERNS[name](generator(0), 9, 9)[0]
    again = pattern_of(kind_of(pattern), pattern.tensors)
    assert isinstance(again, Pattern) and type(again) is type(pattern) and kind_of(again) == kind_of(pattern)
    assert all(a is b for a, b in zip(again.tensors, pattern.tensors, strict=True))
    assert kind_of(pickle.loads(pickle.dumps(pattern))) == kind_of(pattern)


def test_names_of_bands():
    assert [kind_of(Band(*bounds)) for bounds in ((1, None), (None, -1), (-2, 2))] == [
        "band:1:",
        "band::-1",
        "band:-2:2",
    ]
    assert kind_of(None) == "" and pattern_of("", ()) is None
    with pytest.raises(ValueError, match="pattern 'bands:1:': expected 'ranges', 'neighbors' or 'band:LOW:HIGH'"):
        pattern_of("bands:1:", ())


def test_recent_patterns_are_found_again():
    indices = torch.zeros(5, 2, dtype=torch.int64)
    first = pattern_of("neighbors", [indices])
    assert pattern_of("neighbors", [indices]) is first
    assert pattern_of("neighbors", [indices.clone()]) is not first
    assert pattern_of("band:1:", ()) is pattern_of("band:1:", ())
    before = caller()(data(), pattern=first)[0]
    indices += 1
    changed = pattern_of("neighbors", [indices])
    assert changed is not first and not torch.equal(caller()(data(), pattern=changed)[0], before)


def test_inference_tensors_make_patterns():
    """They do not tell when they are changed."""
    with torch.inference_mode():
        indices = torch.zeros(5, 2, dtype=torch.int64)
    before = caller()(data(), pattern=pattern_of("neighbors", [indices]))[0]
    with torch.inference_mode():
        indices += 1
    assert not torch.equal(caller()(data(), pattern=pattern_of("neighbors", [indices]))[0], before)


@pytest.mark.parametrize("pattern", ["ranges", "band", "lists"])
def test_tile_text_names_the_pattern(pattern, program):
    from tritonkeops.tile.ir import show

    text = show(program("x - y", ["x=Vi(1)", "y=Vj(1)"]).tile(Target(pattern=pattern)))
    assert f"pattern {pattern}" in text and ("inside" in text) == (pattern != "ranges")
