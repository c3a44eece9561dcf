"""C kernels against the torch back end in float64: formulas of every shape, schedules, masked tails, strides."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tritonkeops import numpy as tritonkeops_numpy
from tritonkeops import torch as tritonkeops_torch
from tritonkeops.backends.c import emit
from tritonkeops.tile.schedule import vector_bytes

FORMULAS = {
    "gaussian": ("Exp(-SqDist(x, y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], "Sum"),
    "gaussian of parameter": (
        "Exp(-SqDist(x, y) * p) * b",
        ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)"],
        "Sum",
    ),
    "laplacian": ("Exp(-Norm2(x - y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"], "Sum"),
    "long inner product": ("Exp(-SqDist(x, y) / 8) * b", ["x = Vi(40)", "y = Vj(40)", "b = Vj(3)"], "Sum"),
    "long result": ("(x | y) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(33)"], "Sum"),
    "long in, long out": ("Exp(-SqDist(x, y) / 8) * b", ["x = Vi(20)", "y = Vj(20)", "b = Vj(20)"], "Sum"),
    "two norms": ("Norm2(x) * Norm2(y) + (x | y) * Sum(Exp(x - y))", ["x = Vi(20)", "y = Vj(20)"], "Sum"),
    "normalized": ("Normalize(x) - Normalize(y)", ["x = Vi(24)", "y = Vj(24)"], "Sum"),
    "sum of a sum": ("Sum(Tanh(x * (x | y)) * y)", ["x = Vi(18)", "y = Vj(18)"], "Sum"),
    "matrix": ("MatVecMult(A, y) + x", ["A = Vi(60)", "y = Vj(3)", "x = Vi(20)"], "Sum"),
    "parameter matrix": ("Sin(MatVecMult(W, x - y))", ["W = Pm(12)", "x = Vi(3)", "y = Vj(3)"], "Sum"),
    "large parameter matrix": ("Tanh(VecMatMult(x - y, W))", ["W = Pm(400)", "x = Vi(20)", "y = Vj(20)"], "Sum"),
    "quadratic form": ("WeightedSqDist(S, x, y)", ["S = Pm(400)", "x = Vi(20)", "y = Vj(20)"], "Min"),
    "concatenation": ("Concat(Concat(x, y), Extract(y, 2, 17) * x) ", ["x = Vi(1)", "y = Vj(20)"], "Sum"),
    "tensor product": ("TensorProd(x, y)", ["x = Vi(5)", "y = Vj(6)"], "Max"),
    "negative factors": ("(-2 * Exp(x * y) + Sin(x + y)) * Exp(x - y)", ["x = Vi(3)", "y = Vj(3)"], "Sum"),
    "choices in a loop": ("Softplus(Max(ReLU(ExtractT(y, 0, 21)))) * x", ["x = Vi(1)", "y = Vj(20)"], "KMin_ArgKMin"),
    "gradient": ("Grad(Exp(-SqDist(x, y)) * b, x, e)", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "e = Vi(1)"], "Sum"),
    "long gradient": ("Grad(Exp(-SqDist(x, y) / 8), x, e)", ["x = Vi(30)", "y = Vj(30)", "e = Vi(1)"], "Sum"),
    "branches": ("IfElse(x - y, Sqrt(Abs(x)), y ** 3) + Step(x * y - 0.1)", ["x = Vi(2)", "y = Vj(2)"], "Sum"),
    "long softmax": ("SqDist(x, y)", ["x = Vi(20)", "y = Vj(20)", "b = Vj(20)"], "SoftMax"),
    "vector logsumexp": ("x * y", ["x = Vi(20)", "y = Vj(20)"], "LogSumExp"),
    "distances": ("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], "KMin_ArgKMin"),
    "long distances": ("SqDist(x, y)", ["x = Vi(40)", "y = Vj(40)"], "KMin_ArgKMin"),
    "nearest": ("SqDist(x, y)", ["x = Vi(40)", "y = Vj(40)"], "Min_ArgMin"),
    "no j": ("Exp(x) * p", ["x = Vi(3)", "p = Pm(3)"], "Sum"),
    "no i": ("Exp(y) * p", ["y = Vj(20)", "p = Pm(1)"], "Max_SumShiftExp"),
    "names of C": ("int * for_ + double", ["int = Vi(1)", "for_ = Vj(1)", "double = Pm(1)"], "Sum"),
    "names of the kernel": (
        "in * acc + r - j * l",
        ["in = Vi(1)", "acc = Vj(1)", "r = Pm(1)", "j = Vj(1)", "l = Vi(1)"],
        "Sum",
    ),
    "names of functions": (
        "exp * fold + NAN - real",
        ["exp = Vi(1)", "fold = Vj(1)", "NAN = Pm(1)", "real = Vj(1)"],
        "Sum",
    ),
}


HEADERS = Path(emit.__file__).parent.glob("*.h")
DECLARED = r"^(?:static )?(?:inline )?\w+ \*?(\w+)\(.*\{|^\} (\w+);|^typedef \w+ \(\*(\w+)\)|^#define (\w+)|\{ (\w+) ="
OURS = {word for path in HEADERS for found in re.findall(DECLARED, path.read_text(), re.M) for word in found if word}


def test_names_of_the_headers_are_no_variable_s():
    assert {"at_most", "work", "run", "exp_f32", "Call", "Task", "INF_F32", "MOST"} <= OURS
    assert not [name for name in OURS if emit._identifier(name) == name]


@pytest.mark.parametrize("name", ["x", "b", "A", "points", "Exp", "x_y", "for_"])
def test_other_names_stay(name):
    assert emit._identifier(name) == name


NAMES = [
    "_Bool", "_Atomic", "int64_t", "INT32_MIN", "RAND_MAX", "inside", "at_most", "work", "asm", "linux", "uint", "I",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_c_knows(name, program, run):
    """Where rows are gathered and positions clamped, by the headers' functions."""
    for kind in ("Vi", "Vj", "Pm"):
        aliases = [f"{name} = {kind}(1)", "x = Vi(20)", "y = Vj(20)"]
        reduction = program(f"Extract(Concat(Exp({name} + x), y), 3, 20) * {name}", aliases)
        args = values(reduction)
        check(run(reduction, args), run(reduction, args, "torch"))


@pytest.mark.parametrize(
    "text,nearest",
    [
        ("1.000000059604644775390625", 1),  # the middle between two float32: ties go to the even one
        ("1.000000059604644775390625" + 30 * "0" + "1", 1 + 2**-23),
        ("1.000000178813934326171874" + 30 * "9", 1 + 2**-23),
        ("1e300", np.inf),
        ("1e-300", 0),
    ],
)
@pytest.mark.parametrize("backend", ["c", "torch"])
def test_float32_literals_are_rounded_once(text, nearest, backend, program, run):
    reduction = program(f"x * {text}", ["x = Vi(1)"])
    assert run(reduction, [torch.ones(1, 1)], backend)[0].item() == nearest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["c", "torch"])
def test_constants_out_of_range_are_infinite(dtype, backend, program, run):
    reduction = program("0 - 1e300 * 1e300", ["x = Vi(1)"])
    assert run(reduction, [torch.ones(1, 1, dtype=dtype)], backend)[0].item() == -np.inf


def values(program, rows=37, columns=23, dtype=torch.float64, batch=()):
    generator = torch.Generator().manual_seed(3)
    sizes = {"Vi": (rows,), "Vj": (columns,), "Pm": ()}
    shapes = [(*batch, *sizes[var.category.keyword], var.dim) for var in program.variables]
    return [(2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype) for shape in shapes]


def compiled(program, name):
    formula, aliases, reduction = FORMULAS[name]
    k = 5 if reduction.startswith("K") else 0
    return program(formula, aliases, reduction, 1, k, "b" if reduction == "SoftMax" else None)


def check(found, wanted, rtol=1e-11):
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=rtol, atol=rtol)


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


WIDTH = vector_bytes() // 8
SCHEDULES = [
    {"lanes": 1, "width": 1, "unroll": 1},
    {"lanes": WIDTH, "width": WIDTH, "unroll": 5},
    {"lanes": 4 * WIDTH, "width": 2 * WIDTH, "unroll": 3, "block_sum": 4},
    {"lanes": 2 * WIDTH, "width": 2 * WIDTH, "unroll": 2, "unroll_dims": 2},
    {"unroll_dims": 100, "unroll": 2},
    {"index_bits": 64, "block_sum": 1, "unroll": 1},
]


@pytest.mark.parametrize("name", ["gaussian", "long in, long out", "distances", "vector logsumexp"])
@pytest.mark.parametrize("changes", SCHEDULES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_schedules_do_not_change_results(name, changes, program, run):
    reduction = compiled(program, name)
    args = values(reduction)
    check(run(reduction, args, **changes), run(reduction, args, "torch"))


@pytest.mark.parametrize("name", ["gaussian", "two norms", "long distances"])
def test_nothing_outside_is_used_or_written(name, program, run):
    """Rows of arguments lie among NaN, results among marked memory, for sizes around whole tiles."""
    reduction = compiled(program, name)
    for rows, columns in [(1, 1), (7, 3), (8, 8), (9, 9), (33, 17), (64, 16)]:
        args = values(reduction, rows, columns)
        among = []
        for x in args:
            frame = torch.full((x.shape[0] + 2, x.shape[1] + 3), torch.nan, dtype=x.dtype)
            frame[1:-1, 2:-1] = x
            among.append(frame[1:-1, 2:-1])
        check(run(reduction, among), run(reduction, args, "torch"))
        dim = reduction.reduction.dim
        memory = torch.full((rows + 40, dim), 77.0, dtype=torch.float64)
        indices = torch.full((rows + 40, dim), 77)
        outputs = [(indices if kind == "index" else memory)[20:-20] for kind in reduction.reduction.op.outputs]
        check(run(reduction, args, out=outputs), run(reduction, args, "torch"))
        for frame in (memory, indices):
            assert (frame[:20] == 77).all() and (frame[-20:] == 77).all()


GUARDED = """
import ctypes, mmap
import numpy as np
from tritonkeops.numpy import Genred

libc, PAGE, kept = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, []

def fenced(x):
    pages = -(-x.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 1) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert not libc.mprotect(ctypes.c_void_p(start + pages * PAGE), PAGE, 0)
    copy = np.frombuffer(memory, x.dtype, x.size, pages * PAGE - x.nbytes).reshape(x.shape)
    copy[:] = x
    kept.append(memory)
    return copy

for d, reduction, k in ((3, "Sum", None), (40, "Sum", None), (40, "KMin_ArgKMin", 3)):
    genred = Genred("SqDist(x, y) * p", [f"x = Vi({d})", f"y = Vj({d})", "p = Pm(1)"], reduction, axis=1, opt_arg=k)
    for rows, columns in ((1, 1), (9, 9), (33, 17), (65, 31)):
        x, y, p = (np.random.rand(*shape) for shape in ((rows, d), (columns, d), (1,)))
        np.testing.assert_equal(genred(fenced(x), fenced(y), fenced(p)), genred(x, y, p))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory the Linux way")
def test_nothing_beyond_the_arguments_is_read():
    """Each argument ends where a protected page begins: one number further, and the process dies."""
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- batches, strides, threads ----

BATCHES = [
    ((4,), (4,), (4,), (4,)),
    ((4,), (1,), (), (4,)),
    ((), (3,), (3,), ()),
    ((2, 1), (1, 3), (3,), (2, 3)),
    ((2, 3), (), (1, 1), (1, 3)),
    ((1,), (1,), (1,), (1,)),
    ((0,), (1,), (1,), ()),
]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches(batches, program, run):
    """Each batch entry is the reduction of its own slices, whichever arguments are shared."""
    reduction = compiled(program, "gaussian of parameter")
    generator = torch.Generator().manual_seed(5)
    sizes = [(37, 3), (23, 3), (23, 1), (1,)]
    args = [torch.rand(*b, *s, generator=generator, dtype=torch.float64) for b, s in zip(batches, sizes, strict=True)]
    x, y, b, p = args
    distance = ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)
    wanted = torch.exp(-distance * p[..., None]) @ b
    for backend in ("c", "torch"):
        (found,) = run(reduction, args, backend, threads=2)
        torch.testing.assert_close(found, wanted)


def strided(x, how):
    """The same numbers in other memory layouts, as PyTorch gives them."""
    if how == "rows apart":
        return torch.stack([x, -x], -2).flatten(-3, -2)[..., ::2, :]
    if how == "part of a row":
        return torch.cat([x, -x], -1)[..., : x.shape[-1]]
    if how == "transposed":
        return x.mT.contiguous().mT
    if how == "batch last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x


@pytest.mark.parametrize("how", ["rows apart", "part of a row", "transposed", "batch last"])
def test_strides(how):
    genred = tritonkeops_torch.Genred("Exp(-SqDist(x, y)) * b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)
    generator = torch.Generator().manual_seed(0)
    args = [torch.rand(2, n, d, generator=generator, dtype=torch.float64) for n, d in ((37, 3), (23, 3), (23, 2))]
    wanted = genred(*args)
    for position in range(3):
        changed = [strided(x, how) if n == position else x for n, x in enumerate(args)]
        torch.testing.assert_close(genred(*changed), wanted, rtol=1e-14, atol=0)
    one_row = args[0][:, :1].expand(2, 37, 3)
    torch.testing.assert_close(genred(one_row, *args[1:]), genred(one_row.contiguous(), *args[1:]), rtol=1e-14, atol=0)


def test_strides_of_numpy_arrays():
    """Reversed, Fortran-ordered, read-only, byte-swapped, repeated, unaligned to the item: all the same numbers."""
    genred = tritonkeops_numpy.Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    random = np.random.default_rng(0)
    x, y = random.random((37, 3)), random.random((23, 3))
    wanted = np.exp(-((x[:, None] - y) ** 2).sum(-1)).sum(1, keepdims=True)
    record = np.zeros(37, dtype=[("pad", "i1"), ("x", "f8", 3)])
    record["x"] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    backwards = np.ascontiguousarray(x[::-1])[::-1]
    for other in (np.asfortranarray(x), frozen, x.astype(">f8"), record["x"], backwards):
        np.testing.assert_allclose(genred(other, y), wanted, rtol=1e-13)
    np.testing.assert_allclose(genred(x[:, ::-1], y[:, ::-1]), wanted, rtol=1e-13)
    np.testing.assert_allclose(genred(np.broadcast_to(x[0], (9, 3)), y), np.repeat(wanted[:1], 9, 0), rtol=1e-13)


@pytest.mark.parametrize("name", ["gaussian", "distances", "long softmax"])
def test_threads_do_not_change_results(name, program, run):
    """Tiles are shared among threads, whatever their number; the result is the same to the bit."""
    reduction = compiled(program, name)
    args = values(reduction, 1500, 700)
    one = run(reduction, args, threads=1)
    for threads in (2, 3, 8):
        for x, y in zip(run(reduction, args, threads=threads), one, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("scheme", ["direct_sum", "block_sum"])
@pytest.mark.parametrize("name", ["long in, long out", "long softmax", "long distances", "nearest"])
def test_tiles_take_turns(name, scheme, program, run):
    """More rows j than a turn has: several tiles of a task, with a last one that is not full, or one a task."""
    reduction = compiled(program, name)
    args = values(reduction, 333, 1501)
    found = run(reduction, args, threads=1, sum_scheme=scheme)
    check(found, run(reduction, args, "torch"))
    for x, y in zip(run(reduction, args, threads=50, sum_scheme=scheme), found, strict=True):
        assert torch.equal(x, y)


def test_split_j_in_batches(program, run):
    """Few rows in several batch entries and many columns: parts of j of each entry are merged."""
    reduction = compiled(program, "gaussian of parameter")
    args = values(reduction, 2, 30_011, batch=(3,))
    check(run(reduction, args, threads=4), run(reduction, args, "torch"))


def test_temporaries_of_functions_whose_names_end_in_digits(program, run):
    """exp2 number 9 and exp number 29 are two."""
    formula = "+".join(["Exp2(x*y)", *(f"Exp({k}*x*y)" for k in range(2, 19))])
    x, y = torch.zeros(3, 1), torch.rand(4, 1)
    (found,) = run(program(formula, ["x = Vi(1)", "y = Vj(1)"]), [x, y])
    assert torch.equal(found, torch.full((3, 1), 72.0))
