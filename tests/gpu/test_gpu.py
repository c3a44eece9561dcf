"""The corpus of tests/interpreted on a GPU, and what needs compiled kernels: every dtype and size class, long vectors,
many neighbours, scalar functions, arguments from elsewhere.

A sample of the corpus; TRITONKEOPS_GPU_ALL=1 runs all of it. Sizes, graphs and streams: test_scale.py.
"""

import math

import numpy as np
import pytest
import torch

from tests.conftest import program_of, run_program
from tests.gpu.conftest import DEVICE, moved, run_there
from tests.interpreted.test_corpus import *  # noqa: F403
from tests.interpreted.test_corpus import SIZES_AND_TILES, SOME, check_random, given, reductions, settings, st
from tritonkeops import numpy as tritonkeops_numpy
from tritonkeops.torch import Genred

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Of sums of positive terms, against float64 of the same rounded inputs. float32: terms of a few ulp, 64 of them added
# in a row and partial sums again, errors that do not all point one way. Halves are float32 results, rounded once.
RTOL = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 2**-10, torch.bfloat16: 2**-7}
POINTS = ["x = Vi(3)", "y = Vj(3)"]
GAUSSIAN = ("Exp(-SqDist(x, y)) * b", [*POINTS, "b = Vj(2)"])


def reference(program, args):
    """The torch back end in float64, on the CPU."""
    return run_program(program, [x.cpu().double() for x in args], "torch")


def assert_near(found, wanted, rtol):
    """Indices are equal; floats are within rtol of the reference."""
    for ours, exact in zip(found, wanted, strict=True):
        if exact.dtype == torch.int64:
            assert torch.equal(ours.cpu(), exact)
        else:
            torch.testing.assert_close(ours.cpu().double(), exact, rtol=rtol, atol=0)


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + math.prod(shape))).to(dtype)


def gridded(*shape, seed=0, dtype=torch.float32):
    """Multiples of 1/4 from -2 to 2: their squared distances are exact in every dtype's arithmetic, with many ties."""
    return ((uniform(*shape, seed=seed) * 16).floor() / 4 - 2).to(dtype)


# ---- dtypes, axes, batches, size classes ----


def check_reduction(name, dtype, axis, rows, columns, dim=3, k=0, batch=(), device=DEVICE, **how):
    """Against the reference: sums of uniform points, neighbours of points on a grid, where they are exact."""
    sums = name in ("Sum", "LogSumExp")
    formula = f"Exp(-SqDist(x, y) / {dim}) * b" if name == "Sum" else "SqDist(x, y)"
    sides = ("Vi", "Vj") if axis == 1 else ("Vj", "Vi")
    aliases = [f"x = {sides[0]}({dim})", f"y = {sides[1]}({dim})", *([f"b = {sides[1]}(2)"] * (name == "Sum"))]
    program = program_of(formula, aliases, name, axis, k)
    draw = uniform if sums else gridded
    args = [draw(*batch, rows, dim, seed=1, dtype=dtype), draw(*batch[1:], columns, dim, seed=2, dtype=dtype)]
    args += [uniform(columns, 2, seed=3, dtype=dtype)] * (name == "Sum")
    found = run_there(program, args, device=device, **how)
    wanted = reference(program, args)
    rounded = [x if x.dtype == torch.int64 else x.to(dtype).double() for x in wanted]
    assert_near(found, wanted if sums else rounded, RTOL[dtype] if sums else 0)


@pytest.mark.parametrize(("dtype", "axis"), [*((dtype, n % 2) for n, dtype in enumerate(DTYPES)), (DTYPES[0], 1)])
@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Min_ArgMin", "KMin_ArgKMin"])
def test_dtypes(name, dtype, axis):
    """N beyond a few tiles, with a tail; batches of x that share y and b for axis 0."""
    k = 4 if name.startswith("K") else 0
    check_reduction(name, dtype, axis, 400, 20_011, k=k, batch=() if axis else (3,))


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 65, 256, 257, 1025])
def test_size_classes(rows):
    """Few rows i have tiles of their own; sizes around the limits of classes and blocks."""
    check_reduction("Sum", torch.float32, 1, rows, 4099, few_rows=next((n for n in (1, 16, 64, 256) if rows <= n), 0))
    check_reduction("Min_ArgMin", torch.float32, 1, rows, 1023)


@pytest.mark.parametrize("dim", [20, 100])
@pytest.mark.parametrize("name", ["Sum", "Min_ArgMin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_vectors(name, dim, dtype):
    check_reduction(name, dtype, 1, 300, 5003, dim)


@pytest.mark.parametrize(("k", "dim"), [(10, 3), (40, 3), (128, 3), (10, 100), (128, 20)])
def test_many_neighbours(k, dim):
    """Lists in registers and in memory, which the splitting of j merges; more neighbours than rows."""
    for columns in (50, 30_001):
        check_reduction("ArgKMin", torch.float32, 1, 200, columns, dim, k)


@pytest.mark.parametrize("how", [{"sum_scheme": "kahan_scheme"}, {"dtype_acc": "float64"}], ids=str)
def test_accumulators_of_more_digits(how):
    """3 million numbers in [0, 1): the result is the nearest float32, or its neighbour."""
    program = program_of("x + y", ["x = Vi(1)", "y = Vj(1)"])
    x, y = torch.zeros(1, 1), uniform(3_000_000, 1)
    (found,) = run_there(program, [x, y], few_rows=1, **how)
    assert abs(found.item() / y.double().sum().item() - 1) <= 2**-23


@settings(SOME, max_examples=12)
@given(drawn=reductions(), dtype=st.sampled_from([torch.float64, torch.float32]), **SIZES_AND_TILES)
def test_some_random_formulas(genred, splits, drawn, M, N, dtype, tiles):
    check_random(genred, drawn, M, N, dtype, tiles)


def test_coincident_points():
    """Of the Laplacian kernel, the gradient at a point itself is 0 by convention; a rounding error in the distance
    would give it a direction. In float32 the others differ from the CPU's by their own rounding."""
    aliases, ones = [*POINTS, "b = Vj(1)", "e = Vi(1)"], torch.ones(500, 1)
    x = 10 + uniform(500, 3)
    for formula in ("Exp(-Norm2(x - y)) * b", "Exp(-Norm2(Normalize(x) - Normalize(y))) * b"):
        args = [x, x, uniform(500, 1), ones]
        gradient = Genred(f"Grad({formula}, x, e)", aliases, axis=1)
        found, wanted = gradient(*[y.to(DEVICE) for y in args], backend="GPU"), gradient(*args)
        assert found.isfinite().all()
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=2e-3)
        alone = [y[:1] for y in args]
        assert not gradient(*[y.to(DEVICE) for y in alone], backend="GPU").any()


# ---- scalar functions ----

mathematics = pytest.importorskip("tests.interpreted.test_triton_math")
triton, tl = mathematics.triton, mathematics.tl
WIDTH = 1024


@triton.jit
def unary_kernel(x, out, FUNCTION: tl.constexpr, WIDTH: tl.constexpr):
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    tl.store(out + i, FUNCTION(tl.load(x + i)))


@triton.jit
def binary_kernel(x, y, out, FUNCTION: tl.constexpr, WIDTH: tl.constexpr):
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    tl.store(out + i, FUNCTION(tl.load(x + i), tl.load(y + i)))


def apply(name, *arrays, device=DEVICE):
    """A function of backends/triton/math.py on arrays of one float type."""
    count = arrays[0].size
    whole = -(-count // WIDTH) * WIDTH
    tensors = [torch.from_numpy(np.concatenate([a, np.ones(whole - count, a.dtype)])).to(device) for a in arrays]
    out, kernel = torch.empty_like(tensors[0]), unary_kernel if len(arrays) == 1 else binary_kernel
    kernel[(whole // WIDTH,)](*tensors, out, getattr(mathematics.tkm, name), WIDTH)
    return out.cpu().numpy()[:count]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=("float32", "float64"))
@pytest.mark.parametrize("name", mathematics.BOUND)
def test_scalar_functions(name, dtype, monkeypatch):
    """The bounds of the interpreted tests, for the device's own exp2, sqrt and division; then special values."""
    monkeypatch.setattr(mathematics, "apply", apply)
    with np.errstate(all="ignore"), mathematics.mpmath.workprec(160):
        mathematics.check(name, *mathematics.samples(name, dtype, 1000 if name == "erf" else mathematics.BLOCK // 4))
        special = mathematics.special_values(dtype)
        pairs = [a.ravel() for a in np.meshgrid(special, special)] if name in mathematics.BINARY else [special]
        mathematics.check_special(name, *pairs)


# ---- arguments from elsewhere ----


def clouds(M=300, N=700):
    return [uniform(M, 3, seed=1), uniform(N, 3, seed=2), uniform(N, 2, seed=3)]


def test_tensors_and_arrays_of_the_cpu():
    """With backend="GPU" they go to a device, and results come back, into `out` where it is given."""
    args = clouds()
    wanted = Genred(*GAUSSIAN, axis=1)(*args)
    for backend in ("GPU", "GPU_1D", "GPU_2D_device"):
        found = Genred(*GAUSSIAN, axis=1)(*args, backend=backend)
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, wanted, rtol=RTOL[torch.float32], atol=0)
    out = torch.empty_like(wanted)
    assert Genred(*GAUSSIAN, axis=1)(*args, backend="GPU", device_id=0, out=out) is out
    assert torch.equal(out, found)
    arrays = [x.numpy() for x in args]
    result = tritonkeops_numpy.Genred(*GAUSSIAN, axis=1)(*arrays, backend="GPU")
    assert isinstance(result, np.ndarray) and np.array_equal(result, found.numpy())
    pair = tritonkeops_numpy.Genred("SqDist(x, y)", POINTS, "Min_ArgMin", axis=1)
    out = np.empty((300, 1), np.float32), np.empty((300, 1), np.int64)
    assert pair(*arrays[:2], backend="GPU", out=out) is out
    for ours, exact in zip(out, pair(*arrays[:2]), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=RTOL[torch.float32])


def test_results_are_written_into_out():
    x, y, b = [moved(each) for each in clouds()]
    out = torch.full((300, 2), -99.0, device=DEVICE)
    function = Genred(*GAUSSIAN, axis=1)
    assert function(x, y, b, out=out) is out and torch.equal(out, function(x, y, b))
    for wrong in (out.cpu(), out.double(), out[:, :1], out.T):
        with pytest.raises(ValueError, match="out: expected a contiguous"):
            function(x, y, b, out=wrong)


def test_devices_that_do_not_fit():
    function, (x, y, b) = Genred(*GAUSSIAN, axis=1), clouds()
    with pytest.raises(ValueError, match=r"y = Vj\(3\) is on cuda:0 and x = Vi\(3\) on cpu: expected one device"):
        function(x, y.to(DEVICE), b)
    with pytest.raises(ValueError, match=r"x = Vi\(3\) is on cuda:0: expected a CPU tensor for backend='CPU'"):
        function(*[each.to(DEVICE) for each in (x, y, b)], backend="CPU")
    with pytest.raises(ValueError, match="device_id=7: expected the tensors' own device, cuda:0"):
        function(*[each.to(DEVICE) for each in (x, y, b)], device_id=7)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    function, args = Genred(*GAUSSIAN, axis=1), clouds()
    first = function(*[x.to("cuda:0") for x in args])
    second = function(*[x.to("cuda:1") for x in args])
    assert torch.cuda.current_device() == 0 and second.device.index == 1
    assert torch.equal(first.cpu(), second.cpu())
    assert torch.equal(function(*args, backend="GPU", device_id=1), first.cpu())
    with torch.cuda.device(1):
        assert torch.equal(function(*[x.to("cuda:0") for x in args]), first)
