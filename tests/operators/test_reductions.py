"""Every reduction of the registry against dense NumPy in float64, on the torch back end and on C.

f = x * y + z and the weight g = w + v, the numbers small integers (in sums of exponentials: quarters), exact in
float32: ties are frequent, and z carries NaN and infinities. A new reduction needs one line in ORACLES.
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tritonkeops.formula.evaluate import Components, TorchMath, finalize, fold, identity
from tritonkeops.formula.ir import IllTyped, Reduction, ReductionOp, Var, words
from tritonkeops.tile.schedule import choose_cpu
from tritonkeops.torch import Genred

INF, NAN = math.inf, math.nan
REDUCTIONS = {op.name: op for op in words.values() if isinstance(op, ReductionOp)}
COMPENSATED = {op.name: op for op in REDUCTIONS.values() if op.compensated}  # served by sum_scheme="kahan_scheme"
BASE2 = {name: op for name, op in REDUCTIONS.items() if op.base2}
TWINS = {
    **{f"{name}-compensated": op.compensated for name, op in COMPENSATED.items()},
    **{f"{name}-base2": op.base2 for name, op in BASE2.items()},
    **{f"{name}-base2-compensated": op.base2.compensated for name, op in BASE2.items()},
}
MONOIDS = REDUCTIONS | TWINS
every_reduction = pytest.mark.parametrize("op", REDUCTIONS.values(), ids=REDUCTIONS)
RTOL = {"float32": 3e-6, "float64": 1e-13}

# ---- oracles: f and g are (M, N, D) and (M, N, D'), results (M, columns) ----


def shifted(f, g):
    top = np.fmax.reduce(f, axis=1, initial=-INF, keepdims=True)
    terms = np.exp(f - np.where(np.isinf(top), 0, top)) * g
    return top[:, 0], terms.sum(1)


def raw(f, g):
    return [np.concatenate(shifted(f, g), -1)]


def logsumexp(f, g):
    top, total = shifted(f, g)
    return [top + np.log(total)]


def softmax(f, g):
    return [shifted(f, g)[1] / shifted(f, np.ones_like(f))[1]]


def ordered(f, sign, k):
    """Values and rows of the k smallest sign * f, NaN left out, ties by row; sign * inf and -1 where there are none."""
    f = np.swapaxes(f, 1, 2)  # (M, D, N)
    order = np.lexsort((sign * f, np.isnan(f)))[..., :k]
    values = np.take_along_axis(f, order, -1)
    order, values = np.where(np.isnan(values), -1, order), np.where(np.isnan(values), sign * INF, values)
    padding = [(0, 0), (0, 0), (0, k - order.shape[-1])]
    order, values = np.pad(order, padding, constant_values=-1), np.pad(values, padding, constant_values=sign * INF)
    return [np.swapaxes(x, 1, 2).reshape(len(f), k * f.shape[1]) for x in (values, order)]


def extremum(sign):
    def both(f):
        values, rows = ordered(f, sign, 1)
        return [values, np.where((rows < 0) & (f.shape[1] > 0), 0, rows)]  # all NaN: row 0, as in KeOps

    return both


least, greatest = extremum(1), extremum(-1)
ORACLES = {
    "Sum": lambda f, g, k: [f.sum(1)],
    "Max_SumShiftExp": lambda f, g, k: raw(f, np.ones_like(f)),
    "Max_SumShiftExpWeight": lambda f, g, k: raw(f, g),
    "LogSumExp": lambda f, g, k: logsumexp(f, np.ones_like(f) if g is None else g),
    "LogSumExpWeight": lambda f, g, k: logsumexp(f, g),
    "SumSoftMaxWeight": lambda f, g, k: softmax(f, g),
    "SoftMax": lambda f, g, k: softmax(f, g),
    "SumSoftMaxWeight_LogSumExp": lambda f, g, k: [
        np.concatenate([*softmax(f, g), *logsumexp(f, np.ones_like(f))], axis=-1)
    ],
    "Min": lambda f, g, k: least(f)[:1],
    "ArgMin": lambda f, g, k: least(f)[1:],
    "Min_ArgMin": lambda f, g, k: least(f),
    "Max": lambda f, g, k: greatest(f)[:1],
    "ArgMax": lambda f, g, k: greatest(f)[1:],
    "Max_ArgMax": lambda f, g, k: greatest(f),
    "KMin": lambda f, g, k: ordered(f, 1, k)[:1],
    "ArgKMin": lambda f, g, k: ordered(f, 1, k)[1:],
    "KMin_ArgKMin": lambda f, g, k: ordered(f, 1, k),
    "KMax": lambda f, g, k: ordered(f, -1, k)[:1],
    "ArgKMax": lambda f, g, k: ordered(f, -1, k)[1:],
    "KMax_ArgKMax": lambda f, g, k: ordered(f, -1, k),
}


def test_oracles_cover_the_registry():
    assert set(ORACLES) == set(REDUCTIONS)


# ---- problems ----


class Problem:
    """A reduction of f = x * y + z, with weight g = w + v where the reduction takes one."""

    def __init__(self, program, op, dim=1, axis=1, k=3, weight=None):
        self.op, self.dim, self.axis, self.k = op, dim, axis, k if op.takes_k else 0
        self.weight = op.formulas[0] == 2 if weight is None else weight
        self.weight_dim = {1: 3, 3: 3, 20: 1}[dim]  # broadcast either way
        kept, reduced = ("Vi", "Vj") if axis == 1 else ("Vj", "Vi")
        aliases = [f"x = {kept}({dim})", f"y = {reduced}({dim})", f"z = {reduced}({dim})"]
        if self.weight:
            aliases += [f"w = {kept}({self.weight_dim})", f"v = {reduced}({self.weight_dim})"]
        self.program = program("x * y + z", aliases, op.name, axis, self.k, "w + v" if self.weight else None)

    def data(self, rows, columns, dtype="float32", special=()):
        """Random arguments; special[n] = (row, number) puts a number into z."""
        random = np.random.default_rng([rows, columns, self.dim])
        x = random.choice([-2, -1, 1, 2], (rows, self.dim))
        y, z = random.integers(-3, 4, (2, columns, self.dim)).astype(float)
        for row, number in special:
            z[row] = number
        if self.op.float_sum and not self.op.name.endswith("Sum"):
            x, y, z = x / 2, y / 2, z / 2
        args = [x, y, z]
        if self.weight:
            args += [random.integers(1, 4, (rows, self.weight_dim)), random.integers(0, 4, (columns, self.weight_dim))]
        return [torch.tensor(arg, dtype=getattr(torch, dtype)) for arg in args]

    def expected(self, args):
        x, y, z, *weights = [arg.double().numpy() for arg in args]
        with np.errstate(all="ignore"):
            f = x[:, None] * y + z
            g = weights[0][:, None] + weights[1] if weights else None
            return ORACLES[self.op.name](f, g, self.k)

    def check(self, args, outputs, rtol=None):
        rtol = RTOL[str(args[0].dtype).removeprefix("torch.")] if rtol is None else rtol
        for found, wanted, kind in zip(outputs, self.expected(args), self.op.outputs, strict=True):
            assert found.dtype == (torch.int64 if kind == "index" else args[0].dtype)
            np.testing.assert_allclose(
                found.double().numpy(), wanted, rtol=rtol, atol=rtol, err_msg=f"{self.op.name} of {wanted.shape}",
            )  # fmt: skip


# One list of special values per problem of 9 columns: where they stand among the columns.
SPECIALS = {
    "nan first": [(0, NAN)],
    "nan in the middle": [(4, NAN)],
    "all nan": [(j, NAN) for j in range(9)],
    "all but one nan": [(j, NAN) for j in range(9) if j != 5],
    "+inf": [(3, INF)],
    "-inf first": [(0, -INF)],
    "-inf last": [(8, -INF)],
    "both infinities": [(2, INF), (6, -INF)],
    "all -inf": [(j, -INF) for j in range(9)],
    "all +inf": [(j, INF) for j in range(9)],
    "inf and nan": [(j, NAN if j % 2 else INF) for j in range(9)],
    "-inf and nan": [(j, NAN if j % 2 else -INF) for j in range(9)],
}


def sizes(problem, dtype):
    """M and N around multiples of the schedule's lanes and unrolling: masked tails, leftover columns, nothing."""
    schedule = choose_cpu(problem.program.reduction, 4 if dtype == "float32" else 8)
    lanes, unroll = schedule.lanes, schedule.unroll
    pairs = itertools.product((0, 1, 3), (0, 1, unroll - 1, unroll, unroll + 1, 100))
    return [*pairs, *((m, unroll + 1) for m in (lanes - 1, lanes, lanes + 1)), (100, 3 * unroll), (100, 0)]


# ---- values ----


@every_reduction
@pytest.mark.parametrize("dim", [1, 3, 20])
def test_torch_values(op, dim, program, run):
    problem = Problem(program, op, dim, axis=dim % 2)
    for rows, columns in [(0, 0), (0, 5), (1, 1), (5, 0), (7, 1), (7, 100)]:
        args = problem.data(rows, columns, "float64")
        problem.check(args, run(problem.program, args, "torch"))
    for special in SPECIALS.values():
        args = problem.data(4, 9, "float64", special)
        problem.check(args, run(problem.program, args, "torch"))


@every_reduction
@pytest.mark.parametrize(("dim", "dtype", "axis"), [(1, "float32", 1), (3, "float64", 0), (20, "float32", 1)])
def test_c_values(op, dim, dtype, axis, program, run):
    """All sizes, then all special values, with one kernel."""
    problem = Problem(program, op, dim, axis, k=2 if dim == 20 else 3)
    changes = {"unroll": 2} if dim == 20 and op.takes_k else {}  # 40 insertions per column take long to compile
    for rows, columns in sizes(problem, dtype):
        args = problem.data(rows, columns, dtype)
        problem.check(args, run(problem.program, args, **changes))
    for special in SPECIALS.values():
        args = problem.data(4, 9, dtype, special)
        problem.check(args, run(problem.program, args, **changes))


@every_reduction
def test_blocks_of_j_are_merged(op, program, run):
    """Seven columns a partial accumulator, unusual lanes and unrolling: merge joins what fold would have."""
    problem = Problem(program, op, 1 if op.takes_k else 3)
    for columns, special in [(6, ()), (7, ()), (8, ()), (100, ()), *((9, s) for s in SPECIALS.values())]:
        args = problem.data(10, columns, special=special)
        problem.check(args, run(problem.program, args, block_sum=7, unroll=3))


@pytest.mark.parametrize("op", COMPENSATED.values(), ids=COMPENSATED)
def test_compensated_sums_agree(op, program, run):
    """In blocks that are merged, with NaN and infinities: compensation takes nothing away."""
    problem = Problem(program, op, 3)
    for columns, special in [(0, ()), (1, ()), (100, ()), *((9, s) for s in SPECIALS.values())]:
        args = problem.data(10, columns, special=special)
        problem.check(args, run(problem.program, args, sum_scheme="kahan_scheme", block_sum=7, unroll=3))


@every_reduction
def test_j_is_split_over_threads(op, program, run):
    """Few rows and many columns on two threads: parts of j are folded apart and merged in order."""
    problem = Problem(program, op)
    for rows, special in [(1, ()), (3, [(0, NAN), (11_000, -INF)]), (2, [(40_000, INF)])]:
        args = problem.data(rows, 60_001, special=special)
        problem.check(args, run(problem.program, args, threads=2, few_rows=16), rtol=1e-4)


@pytest.mark.parametrize("weight", [False, True])
def test_weight_of_logsumexp_is_optional(weight, program, run):
    problem = Problem(program, REDUCTIONS["LogSumExp"], weight=weight)
    args = problem.data(5, 20)
    problem.check(args, run(problem.program, args))


def test_negative_weights_of_logsumexp(program, run):
    """log of a negative sum is NaN, of zero -inf; the sign is kept until the end."""
    x, w = torch.zeros(1, 1), torch.tensor([[1.0], [-1.0]])
    reduction = program("x + 0 * w", ["x = Vi(1)", "w = Vj(1)"], "LogSumExpWeight", 1, 0, "w")
    assert run(reduction, [x, w])[0].item() == -INF
    assert math.isnan(run(reduction, [x, 2 * w - 1])[0].item())
    assert run(reduction, [x, w + 0.5])[0].item() == 0


def test_large_exponents_do_not_overflow(program, run):
    x, y = torch.tensor([[0.0], [1e4], [-1e4]]), torch.tensor([[1e4], [1e4 - 1], [-1e4]])
    dense = (x + y.T).double()
    for name, weight, wanted in (
        ("LogSumExp", None, dense.logsumexp(1, keepdim=True)),
        ("SoftMax", "y", dense.softmax(1) @ y.double()),
    ):
        (found,) = run(program("x + y", ["x = Vi(1)", "y = Vj(1)"], name, 1, 0, weight), [x, y])
        torch.testing.assert_close(found, wanted.float())


# ---- the K best ----


@pytest.mark.parametrize("name", ["KMin_ArgKMin", "KMax_ArgKMax"])
@pytest.mark.parametrize(("k", "dim"), [(1, 1), (1, 3), (10, 3), (50, 1)])
def test_numbers_of_neighbours(name, k, dim, program, run):
    problem = Problem(program, REDUCTIONS[name], dim, k=k)
    for columns in (k - 1, k, k + 1, 300):
        args = problem.data(33, columns)
        problem.check(args, run(problem.program, args))


@pytest.mark.parametrize("name", ["ArgMin", "ArgMax", "ArgKMin", "ArgKMax"])
def test_equal_values_come_by_row(name, program, run):
    reduction = program("0 * x + 0 * y + 1", ["x = Vi(1)", "y = Vj(1)"], name, 1, 4 if "K" in name else 0)
    for backend in ("c", "torch"):
        (found,) = run(reduction, [torch.zeros(3, 1), torch.zeros(5000, 1)], backend)
        assert found.tolist() == [[0, 1, 2, 3] if "K" in name else [0]] * 3


def test_signed_zeros_are_equal(program, run):
    x, y = torch.zeros(1, 1), torch.tensor([[0.0], [-0.0], [0.0], [-0.0]])
    for name in ("KMin", "KMax"):
        reduction = program("x * y - y", ["x = Vi(1)", "y = Vj(1)"], f"Arg{name}", 1, 4)
        assert run(reduction, [x, y])[0].tolist() == [[0, 1, 2, 3]]


@every_reduction
def test_k_and_weights_are_asked_for(op):
    x, y = Var(0, 2, 0, "x"), Var(1, 3, 1, "y")
    for args, k in [((x,) * (op.formulas[0] - 1), 2), ((x,) * (op.formulas[1] + 1), 2)]:
        with pytest.raises(IllTyped, match=op.name):
            Reduction(op, args, 1, k)
    if op.takes_k:
        with pytest.raises(IllTyped, match="opt_arg=K"):
            Reduction(op, [x], 1, 0)
    if op.formulas[1] == 2:
        with pytest.raises(IllTyped, match="dim 2 and weight dim 3"):
            Reduction(op, [x, y], 1)


# ---- monoid laws, on torch ----


def accumulated(node, terms, cuts):
    """Accumulators of the tiles between cuts, folded in one after the other."""
    like = terms[0].new_zeros(0, 1, 1)
    state = identity(node, (terms[0].shape[1], 1), like)
    for start, stop in itertools.pairwise(cuts):
        state = fold(node, state, [term[..., start:stop] for term in terms], start, like)
    return state


def merged(node, a, b):
    """The declaration's own merge, as a back end uses it: of reductions by steps, b's entries inserted into a."""
    op, dims, m = node.op, [arg.dim for arg in node.args], TorchMath(a[0].new_zeros(0, 1, 1))
    names = [field.name for field in op.fields(dims, node.k)]

    def acc(state):
        return SimpleNamespace(**{n: Components(t) for n, t in zip(names, state, strict=True)})

    if op.merge:
        return [x.tensor for x in op.merge(m, acc(a), acc(b))]
    for n in range(node.k):
        entry = slice(n * dims[0], (n + 1) * dims[0])
        a = [x.tensor for x in op.step(m, acc(a), Components(b[1][entry]), Components(b[0][entry]))]
    return a


@pytest.mark.parametrize("op", MONOIDS.values(), ids=MONOIDS)
@pytest.mark.parametrize("special", ["none", "nan in the middle", "-inf first", "all -inf", "both infinities"])
def test_monoid_laws(op, special):
    """Any split gives the same; nothing is neutral on both sides; merging is associative, a's rows first."""
    random = torch.Generator().manual_seed(2)
    f = torch.randint(-3, 4, (2, 5, 9), generator=random).double() / (2 if op.float_sum else 1)
    for column, number in SPECIALS.get(special, ()):
        f[:, :, column] = number
    g = torch.randint(1, 4, (2, 5, 9), generator=random).double()
    terms = [f, g][: op.formulas[0]]
    node = Reduction(op, [Var(n, 2, 1, f"f{n}") for n in range(len(terms))], 1, 3 if op.takes_k else 0)
    like = f.new_zeros(0, 1, 1)

    def result(state):
        return [x.expand(-1, 5, 1) for x in finalize(node, state, 9, like)]

    def same(state):
        for x, y in zip(result(state), whole, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13, equal_nan=True)

    whole = result(accumulated(node, terms, [0, 9]))
    for cuts in ([0, 1, 9], [0, 4, 5, 9], [0, 8, 9], range(10)):
        same(accumulated(node, terms, cuts))
    a, b, c = (accumulated(node, terms, cuts) for cuts in ([0, 2], [2, 5], [5, 9]))
    nothing = identity(node, (5, 1), like)
    same(merged(node, merged(node, a, b), c))
    same(merged(node, a, merged(node, b, c)))
    same(merged(node, accumulated(node, terms, [0, 9]), nothing))
    same(merged(node, nothing, accumulated(node, terms, [0, 9])))


@pytest.mark.parametrize("op", BASE2.values(), ids=BASE2)
@pytest.mark.parametrize("special", SPECIALS)
def test_base_2_gives_the_same(op, special):
    """Once f is multiplied by log2(e), with the special values in f; and the compensated twin in base 2."""
    random = torch.Generator().manual_seed(3)
    f = torch.randint(-3, 4, (2, 5, 9), generator=random).double() / 2
    for column, number in SPECIALS[special]:
        f[:, :, column] = number
    g = torch.randint(1, 4, (2, 5, 9), generator=random).double()

    def result(op, f):
        node = Reduction(op, [Var(n, 2, 1, f"f{n}") for n in range(op.formulas[0])], 1)
        state = accumulated(node, [f, g][: op.formulas[0]], [0, 4, 9])
        return finalize(node, state, 9, f.new_zeros(0, 1, 1))[0]

    for twin in (op.base2, op.compensated.base2, op.base2.compensated):
        found = result(twin, f / math.log(2))
        torch.testing.assert_close(found, result(op, f), rtol=1e-13, atol=1e-13, equal_nan=True)


def test_twins_are_no_words():
    assert not set(TWINS.values()) & set(words.values())
    assert set(BASE2) == {name for name in REDUCTIONS if "Exp" in name or "Soft" in name}


# ---- accuracy ----


@pytest.mark.parametrize(
    ("how", "bound"),
    [
        ({"sum_scheme": "direct_sum"}, 3e-3),
        ({"sum_scheme": "block_sum"}, 1e-5),
        ({"sum_scheme": "kahan_scheme"}, 2e-7),
        ({"dtype_acc": "float64"}, 1e-7),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_accuracy_of_a_million_terms(how, bound, program, run):
    """Sums of 1e6 numbers in [0, 1): each scheme within its bound; also where j is split over threads."""
    x, y = torch.zeros(1, 1), torch.rand(10**6, 1, generator=torch.Generator().manual_seed(0))
    reduction, exact = program("x + y", ["x = Vi(1)", "y = Vj(1)"]), y.double().sum().item()
    error = abs(run(reduction, [x, y], **how)[0].item() / exact - 1)
    assert error < bound
    if "direct_sum" in how.values():
        assert error > 1e-6, "plain summation is not that good: is it plain?"
    assert abs(run(reduction, [x, y], threads=2, **how)[0].item() / exact - 1) < bound


@pytest.mark.parametrize("name", ["LogSumExp", "SoftMax"])
def test_double_accumulators_serve_sums_of_exponentials(name, program, run):
    x, y = torch.zeros(1, 1), torch.rand(10**6, 1, generator=torch.Generator().manual_seed(0))
    reduction = program("x + y", ["x = Vi(1)", "y = Vj(1)"], name, 1, 0, "y" if name == "SoftMax" else None)
    p = y.double()
    exact = torch.logsumexp(p, 0) if name == "LogSumExp" else torch.softmax(p, 0).T @ p
    for how in ({"dtype_acc": "float64"}, {"sum_scheme": "block_sum"}):
        assert abs(run(reduction, [x, y], **how)[0].item() / exact.item() - 1) < 1e-6


# ---- what users get ----


@every_reduction
def test_output_shapes(op):
    """PyKeOps' shapes: (M, D), pairs of them, (M, K) for scalars and (M, K, D) for vectors; batches in front."""
    for dim, axis in ((1, 0), (2, 1)):
        genred = Genred("x * y", [f"x = Vi({dim})", f"y = Vj({dim})"], op.name, axis, opt_arg=4 if op.takes_k else None,
                        formula2="y" if op.formulas[0] == 2 else None)  # fmt: skip
        for batch in ((), (2, 1)):
            out = genred(torch.rand(*batch, 5, dim), torch.rand(*batch, 7, dim))
            rows = (*batch, 5 if axis == 1 else 7)
            inner = 2 * dim if op.name.startswith("Max_Sum") or op.name.endswith("_LogSumExp") else dim
            wanted = (*rows, 4) if op.takes_k and dim == 1 else (*rows, 4, dim) if op.takes_k else (*rows, inner)
            outputs = out if isinstance(out, tuple) else (out,)
            assert [tuple(x.shape) for x in outputs] == [wanted] * len(op.outputs)
            assert [x.dtype == torch.int64 for x in outputs] == [kind == "index" for kind in op.outputs]
            assert isinstance(out, tuple) == (len(op.outputs) == 2)


@pytest.mark.parametrize("op", [op for op in REDUCTIONS.values() if len(op.outputs) == 2], ids=str)
def test_pairs_are_their_parts(op, program, run):
    """Min_ArgMin gives what Min and ArgMin give."""
    value, index = op.name.split("_")
    problem = Problem(program, op, 3)
    args = problem.data(20, 50, special=[(7, NAN)])
    both = run(problem.program, args, "torch")
    for name, part in ((value, both[0]), (index, both[1])):
        (single,) = run(Problem(program, REDUCTIONS[name], 3).program, args, "torch")
        assert torch.equal(single, part)
