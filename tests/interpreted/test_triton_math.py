"""The Triton back end's scalar mathematics in Triton's interpreter: accuracy over the whole range, special values.

TRITON_INTERPRET=1 python -m pytest tests/interpreted/test_triton_math.py
"""

import math
import os

import mpmath
import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
tkm = pytest.importorskip("tritonkeops.backends.triton.math")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

# Largest errors in ulp: float32, float64.
BOUND = {
    "expm1": (2, 2.5), "log1p": (2, 3), "pow": (6, 1.5), "tanh": (3, 3), "erf": (2, 2.5), "asin": (2.5, 2.5),
    "acos": (1.5, 1.5), "atan": (3, 2), "atan2": (2, 2), "round_half_away": (0, 0),
}  # fmt: skip
BINARY = ["pow", "atan2"]
UNARY = [name for name in BOUND if name not in BINARY]

# An interval where each function varies, besides random bits.
INTERVAL = {
    "expm1": (-40, 710), "log1p": (-1, 4), "tanh": (-20, 20), "erf": (-6, 6), "asin": (-1, 1), "acos": (-1, 1),
    "atan": (-10, 10), "round_half_away": (-9, 9),
}  # fmt: skip

BLOCK = 2**17


def round_half_away(x):
    whole = np.trunc(x)
    return np.copysign(whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(1, x), 0), x)


NUMPY = {
    "expm1": np.expm1, "log1p": np.log1p, "tanh": np.tanh, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "pow": np.power, "atan2": np.arctan2, "round_half_away": round_half_away,
}  # fmt: skip
MPMATH = {
    "expm1": mpmath.expm1, "log1p": mpmath.log1p, "tanh": mpmath.tanh, "erf": mpmath.erf, "asin": mpmath.asin,
    "acos": mpmath.acos, "atan": mpmath.atan, "pow": mpmath.power, "atan2": mpmath.atan2,
}  # fmt: skip


@triton.jit
def unary_kernel(x, out, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, FUNCTION(tl.load(x + i)))


@triton.jit
def binary_kernel(x, y, out, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, FUNCTION(tl.load(x + i), tl.load(y + i)))


@triton.jit
def shapes_kernel(x, y, out):
    """Scalars, a column beside a row, Python numbers; several functions, by their module and by their names."""
    i = tl.arange(0, 4)
    column, row = tl.load(x + i)[:, None], tl.load(y + i)[None, :]
    p = i[:, None] * 4 + i[None, :]
    tl.store(out + p, tkm.pow(column, row))
    tl.store(out + 16 + p, atan2(column, row))
    tl.store(out + 32, tkm.tanh(tl.load(x + 1)))
    tl.store(out + 33, tkm.pow(tl.load(x + 1), tl.load(y + 2)))
    tl.store(out + 36 + i, tkm.pow(tl.load(x + i), 2.5))
    tl.store(out + 40 + i, tkm.pow(3, tl.load(y + i)))
    tl.store(out + 44 + i, atan2(tl.load(x + i), 0.1))


atan2 = tkm.atan2


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"), mpmath.workprec(160):
        yield


@pytest.fixture(params=["exact", "approximate"])
def arithmetic(request, monkeypatch):
    """The interpreter's arithmetic, and one with the errors that the PTX manual allows the instructions of CUDA."""
    if request.param == "exact":
        return
    builder = triton.runtime.interpreter.InterpreterBuilder
    rng = np.random.default_rng(0)

    def wrong(exact, error):
        """`error` more or less, then rounded to float32."""
        return (exact + error * rng.choice([-1, 1], exact.shape)).astype(np.float32)

    def ex2(t):
        """Relative error 2^-22.5, none at integers."""
        y = np.exp2(t.astype(np.float64))
        return wrong(y, np.where((t == np.rint(t)) | (y > 2.0**130), 0, 2.0**-22.5 * y))

    def ex2_ftz(t):
        y = ex2(t)
        return np.where(np.abs(y) < 2.0**-126, np.float32(0), y)

    def div_full(x, y):
        """2 ulp."""
        z = x.astype(np.float64) / y
        return wrong(z, 1.5 * np.spacing(np.abs(z.astype(np.float32))))

    def replace(name, function):
        exact = getattr(builder, name)

        def create(self, *args):
            if args[0].data.dtype != np.float32:
                return exact(self, *args)
            return triton.runtime.interpreter.TensorHandle(function(*[arg.data for arg in args]), tl.float32)

        monkeypatch.setattr(builder, name, create)

    replace("create_exp", lambda x: ex2(x * np.float32(math.log2(math.e))))
    replace("create_exp2", ex2_ftz)
    replace("create_fdiv", div_full)
    replace("create_sqrt", lambda x: wrong(np.sqrt(x.astype(np.float64)), 2.0**-23 * np.sqrt(x)))


def apply(name, *arrays):
    """A function of the module on arrays of one float type, through one kernel."""
    count = arrays[0].size
    assert count <= BLOCK
    out = torch.empty(BLOCK, dtype=torch.from_numpy(arrays[0][:0]).dtype)
    tensors = [torch.from_numpy(np.concatenate([a, np.ones(BLOCK - count, a.dtype)])) for a in arrays]
    kernel = unary_kernel if len(arrays) == 1 else binary_kernel
    kernel[(1,)](*tensors, out, getattr(tkm, name), BLOCK)
    return out.numpy()[:count]


def longdouble(v):
    """An mpmath number to 2^-106."""
    high = float(v)
    return np.longdouble(high) + np.longdouble(float(v - high)) if math.isfinite(high) else np.longdouble(high)


def reference(name, *arrays):
    """Exact values for float32 or float64 arrays: in float64 for the one, in longdouble or by mpmath for the other."""
    single = arrays[0].dtype == np.float32
    if name == "erf" and single:
        return torch.erf(torch.from_numpy(arrays[0].astype(np.float64))).numpy()
    if name in NUMPY:
        return NUMPY[name](*[a.astype(np.float64 if single else np.longdouble) for a in arrays])
    exact = [MPMATH[name](*map(mpmath.mpf, v)) for v in zip(*[a.tolist() for a in arrays], strict=True)]
    return np.array([longdouble(v) for v in exact])


def same(a, b):
    """Equal, sign of zero included, or both NaN."""
    return (np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))


def ulps(got, exact):
    """Errors in units in the last place of `got`'s type, which below the normal numbers is the denormals' spacing."""
    info = np.finfo(got.dtype)
    rounded = exact.astype(got.dtype)
    binade = np.frexp(np.maximum(np.abs(exact), info.tiny))[1]
    error = np.abs(got - exact) / np.ldexp(np.ones_like(exact), binade - 1 - info.nmant)
    error[~np.isfinite(error) | ~np.isfinite(rounded)] = np.inf  # then only the same value is right
    error[(got == 0) & (rounded == 0)] = np.inf
    error[same(got, rounded) & ((got == 0) | ~np.isfinite(got))] = 0
    return error


def check(name, *arrays):
    error = ulps(apply(name, *arrays), reference(name, *arrays))
    worst = int(np.argmax(error))
    bound = BOUND[name][arrays[0].dtype == np.float64]
    print(f"{name} {arrays[0].dtype}: {error[worst]:.2f} ulp at {[a[worst] for a in arrays]}")
    assert error[worst] <= bound, (name, [a[worst] for a in arrays], error[worst])


def samples(name, dtype, n):
    """Random bits, hence all exponents, and numbers where the function varies."""
    rng = np.random.default_rng(0)
    uint, digits = (np.uint32, 24) if dtype == np.float32 else (np.uint64, 53)
    bits = rng.integers(0, np.iinfo(uint).max, n, uint, endpoint=True).view(dtype)
    near_one = 1 + rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-digits, 0, n)
    if name in BINARY:
        large = 40 if dtype == np.float32 else 300
        x = [bits, rng.uniform(0, 10, n), near_one]
        y = [rng.permutation(bits), rng.uniform(-large, large, n)]
        y += [rng.uniform(-2 * large, 2 * large, n) * 2.0 ** rng.uniform(0, digits, n)]
        return [np.concatenate(v).astype(dtype) for v in (x, y)]
    lo, hi = INTERVAL[name] if dtype == np.float64 else np.clip(INTERVAL[name], -152, 130)
    small = rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-60, 0, n)
    return [np.concatenate([bits, rng.uniform(lo, hi, n), near_one, small]).astype(dtype)]


@pytest.mark.parametrize("name", BOUND)
def test_f32(arithmetic, name):
    check(name, *samples(name, np.float32, BLOCK // 4))


@pytest.mark.parametrize("name", BOUND)
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="longdouble is no wider than float64")
def test_f64(arithmetic, name):
    check(name, *samples(name, np.float64, 1000 if name == "erf" else BLOCK // 4))


@pytest.mark.parametrize("name", MPMATH)
def test_f64_mpmath(name):
    """Against mpmath where numpy's result is an ordinary number."""
    arguments = samples(name, np.float64, 300)
    rough = NUMPY[name](*arguments) if name in NUMPY else arguments[0]
    ordinary = np.isfinite(rough) & (rough != 0)
    if name == "pow":
        ordinary &= arguments[0] > 0
    arguments = [a[ordinary] for a in arguments]
    exact = [MPMATH[name](*map(mpmath.mpf, v)) for v in zip(*[a.tolist() for a in arguments], strict=True)]
    got = apply(name, *arguments).tolist()
    for *x, y, e in zip(*arguments, got, exact, strict=True):
        spacing = max(mpmath.mpf(2) ** (mpmath.frexp(e)[1] - 53), mpmath.mpf(2) ** -1074)
        assert abs(y - e) <= BOUND[name][1] * spacing, (name, x, y)


def special_values(dtype):
    info = np.finfo(dtype)
    values = [0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 1e-3, 1e10, 2**22 + 0.5, 2**23 + 1, 2**52 + 1, np.inf, np.nan]
    values += [info.tiny, info.max, info.smallest_subnormal, 1 - info.epsneg, 1 + info.eps, 0.49999997]
    values += [np.nextafter(dtype(0.5), dtype(0)), info.tiny / 4, 0.8, 0.65, 2**24, 2**31, 2**53, 2**63, 2**64]
    values += [88.7, 88.8, 104, 128, 150, 709.7, 709.8, 745, 1024, 1080, 1e30]
    values = np.array(values, dtype)
    return np.concatenate([values, -values])  # NaN of both signs too


def check_special(name, *arrays):
    if name == "erf":  # torch loses the low bits of denormals
        expected = np.array([math.erf(v) for v in arrays[0]])
    else:
        expected = NUMPY[name](*[a.astype(np.float64) for a in arrays])
    got, expected = apply(name, *arrays), expected.astype(arrays[0].dtype)
    close = np.isfinite(expected) & (expected != 0) & (np.abs(got - expected) <= 8 * np.spacing(np.abs(expected)))
    close |= np.isinf(expected) & (np.sign(expected) * got >= np.finfo(got.dtype).max * (1 - 2.0**-20))
    right = same(got, expected) | (close & (name != "round_half_away"))
    assert right.all(), ([a[~right] for a in arrays], got[~right], expected[~right])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UNARY)
def test_special_values(arithmetic, name, dtype):
    check_special(name, special_values(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs(arithmetic, name, dtype):
    check_special(name, *[a.ravel() for a in np.meshgrid(special_values(dtype), special_values(dtype))])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_annex_f(dtype):
    """The cases of C99's Annex F that a careless formula gets wrong, spelled out."""
    inf, nan = math.inf, math.nan
    cases = [(nan, 0, 1), (1, nan, 1), (-1, inf, 1), (-1, -inf, 1), (0, -3, inf), (-0.0, -3, -inf), (-0.0, -2, inf)]
    cases += [(-0.0, 3, -0.0), (-0.0, 2, 0), (-2, 3, -8), (-2, 2, 4), (-2, 0.5, nan), (-inf, 3, -inf), (-inf, -3, -0.0)]
    cases += [(-inf, 0.5, inf), (0.5, -inf, inf), (0.5, inf, 0), (2, -inf, 0), (inf, -1, 0), (0, 0, 1), (nan, 1, nan)]
    x, y, expected = (np.array(v, dtype) for v in zip(*cases, strict=True))
    assert same(apply("pow", x, y), expected).all()
    one, powers = np.full(200, 2, dtype), np.arange(-100, 100, dtype=dtype)
    assert (apply("pow", one, powers) == np.ldexp(dtype(1), powers.astype(np.int32))).all()
    pi = math.pi
    cases = [(0, -0.0, pi), (-0.0, -0.0, -pi), (0, 0, 0), (-0.0, 0, -0.0), (0, -1, pi), (-0.0, -1, -pi), (1, 0, pi / 2)]
    cases += [(-1, -0.0, -pi / 2), (1, -inf, pi), (1, inf, 0), (-1, inf, -0.0), (inf, 1, pi / 2), (inf, inf, pi / 4)]
    cases += [(-inf, -inf, -3 * pi / 4), (nan, 1, nan), (1, nan, nan), (1, -1, 3 * pi / 4)]
    y, x, expected = (np.array(v, dtype) for v in zip(*cases, strict=True))
    assert same(apply("atan2", y, x), expected).all()
    for name, cases in {
        "expm1": [(-inf, -1), (inf, inf), (-0.0, -0.0)],
        "log1p": [(-1, -inf), (-1.5, nan), (-inf, nan), (inf, inf), (-0.0, -0.0)],
        "tanh": [(inf, 1), (-inf, -1), (-0.0, -0.0)],
        "erf": [(inf, 1), (-inf, -1), (-0.0, -0.0)],
        "asin": [(1.5, nan), (-1, -pi / 2), (-0.0, -0.0)],
        "acos": [(-1.5, nan), (1, 0), (-1, pi), (0, pi / 2)],
        "atan": [(-inf, -pi / 2), (inf, pi / 2), (-0.0, -0.0)],
        "round_half_away": [(0.49999997, 0), (-0.4, -0.0), (0.5, 1), (-2.5, -3), (8388609, 8388609), (-inf, -inf)],
    }.items():
        x, expected = (np.array(v, dtype) for v in zip(*cases, strict=True))
        assert same(apply(name, x), expected).all(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_half_away(dtype):
    """The same bits as the definition, for numbers of every size and next to halves."""
    rng = np.random.default_rng(0)
    halves = rng.integers(-(2**24), 2**24, 30_000) / dtype(2)
    x = np.concatenate([halves, np.nextafter(halves, dtype(0)), np.nextafter(halves, dtype(np.inf))]).astype(dtype)
    assert same(apply("round_half_away", x), round_half_away(x)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes(dtype):
    x, y = np.array([0.5, 1.25, 2, 3], dtype), np.array([-1, 0.3, 1.5, 2], dtype)
    out = torch.zeros(48, dtype=torch.from_numpy(x).dtype)
    shapes_kernel[(1,)](torch.from_numpy(x), torch.from_numpy(y), out)
    grids = [np.power(x[:, None], y), np.arctan2(x[:, None], y)]
    rows = [[np.tanh(x[1]), x[1] ** y[2], 0, 0], x ** dtype(2.5), dtype(3) ** y, np.arctan2(x, dtype(0.1))]
    expected = np.concatenate([*map(np.ravel, grids), *rows])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6 if dtype == np.float32 else 1e-15)
