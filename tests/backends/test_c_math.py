"""The C back end's scalar mathematics: accuracy over the whole range, special values, vectorisation."""

import ctypes
import math
import pathlib
import re
import shutil
import subprocess

import mpmath
import numpy as np
import pytest
import torch

import tritonkeops

HEADER = pathlib.Path(tritonkeops.__file__).parent / "backends" / "c" / "math.h"
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-mprefer-vector-width=512", "-fPIC"]
C_TYPE = {"f32": "float", "f64": "double"}

EXACT = ["round", "sqrt", "floor", "abs"]
TIGHT = ["exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "tanh"]  # 2 ulp in f32, 1e-15 in f64
LOOSE = ["erf", "sin", "cos", "asin", "acos", "atan", "atan2"]  # 4 ulp, 4e-15
BINARY = ["pow", "atan2"]
UNARY = [f for f in EXACT + TIGHT + LOOSE if f not in BINARY]

# An interval where each function varies, besides random bits.
INTERVAL = {
    "exp": (-746, 710), "exp2": (-1076, 1025), "expm1": (-40, 710), "tanh": (-20, 20), "erf": (-6, 6),
    "log": (0, 4), "log2": (0, 4), "log1p": (-1, 4), "asin": (-1, 1), "acos": (-1, 1), "atan": (-10, 10),
    "sin": (-100, 100), "cos": (-100, 100),
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def round_half_away(x):
    whole = np.trunc(x)
    return np.copysign(whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(1, x), 0), x)


NUMPY = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log1p": np.log1p,
    "tanh": np.tanh, "erf": lambda x: torch.erf(torch.from_numpy(x)).numpy(), "sin": np.sin, "cos": np.cos,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "round": round_half_away, "sqrt": np.sqrt,
    "floor": np.floor, "abs": np.abs, "pow": np.power, "atan2": np.arctan2,
}  # fmt: skip

MPMATH = {
    "exp": mpmath.exp, "exp2": lambda x: mpmath.power(2, x), "expm1": mpmath.expm1, "log": mpmath.log,
    "log2": lambda x: mpmath.log(x, 2), "log1p": mpmath.log1p, "tanh": mpmath.tanh, "erf": mpmath.erf,
    "sin": mpmath.sin, "cos": mpmath.cos, "asin": mpmath.asin, "acos": mpmath.acos, "atan": mpmath.atan,
    "pow": mpmath.power, "atan2": mpmath.atan2,
}  # fmt: skip


def loop_source(name, kind):
    """C: a loop that applies a function of the header to arrays."""
    arguments = ["a", "b"] if name in BINARY else ["a"]
    t = C_TYPE[kind]
    inputs = "".join(f"const {t} *restrict {v}, " for v in arguments)
    values = ", ".join(f"{v}[i]" for v in arguments)
    head = f"void loop_{name}_{kind}({inputs}{t} *restrict o, long n)"
    return f"{head} {{ for (long i = 0; i < n; i++) o[i] = {name}_{kind}({values}); }}\n"


def compile_loops(folder, output, *flags, compiler="cc"):
    source = folder / "loops.c"
    source.write_text(f'#include "{HEADER}"\n' + "".join(loop_source(f, k) for f in UNARY + BINARY for k in C_TYPE))
    subprocess.run(
        [compiler, *flags, "-Wall", "-Wextra", "-Werror", str(source), "-o", str(folder / output)], check=True
    )
    return folder / output


def caller(library):
    """apply(name, *arrays): the function `name` on float32 or float64 arrays."""

    def apply(name, *arrays):
        arrays = [np.ascontiguousarray(a) for a in arrays]
        out = np.empty_like(arrays[0])
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in [*arrays, out]]
        kind = "f32" if out.dtype == np.float32 else "f64"
        getattr(library, f"loop_{name}_{kind}")(*pointers, ctypes.c_long(out.size))
        return out

    return apply


# With the back end's flags, and for the baseline of the architecture, which has no FMA on x86.
@pytest.fixture(scope="module", params=["native", "baseline"])
def apply(request, tmp_path_factory):
    flags = [f for f in FLAGS if f != "-march=native" or request.param == "native"]
    if request.param == "baseline":
        flags = [f for f in flags if not f.startswith("-m")]
    library = compile_loops(tmp_path_factory.mktemp("c_math"), "loops.so", *flags, "-shared", "-lm")
    return caller(ctypes.CDLL(str(library)))


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"), mpmath.workprec(160):
        yield


def same(a, b):
    """Equal, sign of zero included, or both NaN."""
    return (np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))


def ulps(got, exact):
    """Error of float32 values in ulp of the float64 reference, denormal spacing included."""
    rounded = exact.astype(np.float32)
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-126))) - 23)
    error = np.abs(got.astype(np.float64) - exact) / spacing
    error[np.isnan(error)] = np.inf
    error[~np.isfinite(rounded)] = np.inf  # then only the same value is right
    error[(got == 0) & (rounded == 0) & (np.signbit(got) != np.signbit(rounded))] = np.inf
    error[same(got, rounded)] = 0
    return error


def samples_f32(name, n):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)
    if name in BINARY:
        x = [bits, rng.uniform(0, 10, n).astype(np.float32)]
        y = [rng.permutation(bits), rng.uniform(-40, 40, n).astype(np.float32)]
        return [np.concatenate(x), np.concatenate(y)]
    lo, hi = np.clip(INTERVAL[name], -152, 130)
    return [np.concatenate([bits, rng.uniform(lo, hi, n).astype(np.float32)])]


@pytest.mark.parametrize("name", TIGHT + LOOSE)
def test_f32(apply, name):
    """A million floats: random bits, hence all exponents, and the interval where the function varies."""
    arguments = samples_f32(name, 500_000)
    got, exact = apply(name, *arguments), NUMPY[name](*[a.astype(np.float64) for a in arguments])
    error = ulps(got, exact)
    worst = int(np.argmax(error))
    assert error[worst] <= (2 if name in TIGHT else 4), (
        name,
        [a[worst] for a in arguments],
        got[worst],
        exact[worst],
    )


def samples_f64(name, n):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)
    near_one = 1 + rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-52, 0, n)
    if name in BINARY:
        x = [bits, rng.uniform(0, 10, n), near_one]
        y = [
            rng.permutation(bits),
            rng.uniform(-300, 300, n),
            rng.uniform(-700, 700, n) * 2.0 ** rng.uniform(0, 52, n),
        ]
        return [np.concatenate(x), np.concatenate(y)]
    small = rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-60, 0, n)
    tiny = rng.uniform(-1, 1, 20) * 2.0**-1022
    return [np.concatenate([bits, rng.uniform(*INTERVAL[name], n), near_one, small, tiny])]


def relative_error(got, exact):
    """Of one float64 against mpmath, relative to the smallest normal number at least."""
    if abs(exact) >= mpmath.mpf(2) ** 1024:
        return 0.0 if math.isinf(got) and got * exact > 0 else math.inf
    if not math.isfinite(got):
        return math.inf
    return float(abs(got - exact) / max(abs(exact), mpmath.mpf(2) ** -1022))


@pytest.mark.parametrize("name", TIGHT + LOOSE)
def test_f64(apply, name):
    """Against mpmath where numpy's result is an ordinary number; the same infinity, zero or NaN elsewhere."""
    arguments = samples_f64(name, 400)
    got, rough = apply(name, *arguments), NUMPY[name](*arguments)
    ordinary = np.isfinite(rough) & (rough != 0)
    if name == "pow":
        ordinary &= arguments[0] > 0
    if name not in (
        "erf",
        "sin",
        "cos",
    ):  # torch's and numpy's zeros are not all that small, nor bounded by 1
        assert np.all(same(got, rough) | ordinary | (np.abs(got - rough) <= 4e-15 * np.abs(rough)))
    for *x, y in zip(*[a[ordinary].tolist() for a in arguments], got[ordinary].tolist(), strict=True):
        error = relative_error(y, MPMATH[name](*map(mpmath.mpf, x)))
        assert error <= (1e-15 if name in TIGHT else 4e-15), (name, x, y, error)


def special_values(dtype):
    info = np.finfo(dtype)
    values = [0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 1e-3, 1e10, 2**22 + 0.5, 2**23 + 1, 2**52 + 1, np.inf, np.nan]
    values += [
        info.tiny,
        info.max,
        info.smallest_subnormal,
        1 - info.epsneg,
        1 + info.eps,
        np.nextafter(dtype(0.5), dtype(0)),
    ]
    values += [88.7, 88.8, 104, 128, 150, 709.7, 709.8, 745, 1024, 1080, 1e30]
    values = np.array(values, dtype)
    return np.concatenate([values, -values])  # NaN of both signs too


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UNARY)
def test_special_values(apply, name, dtype):
    x = special_values(dtype)
    got, expected = apply(name, x), NUMPY[name](x.astype(np.float64)).astype(dtype)
    if name == "erf":  # torch loses the low bits of denormals
        expected = np.array([math.erf(v) for v in x], dtype)
    close = np.isfinite(expected) & (expected != 0) & (np.abs(got - expected) <= 8 * np.spacing(np.abs(expected)))
    right = same(got, expected) | (close & (name not in EXACT))
    assert right.all(), (x[~right], got[~right], expected[~right])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs(apply, name, dtype):
    x, y = (a.ravel() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    got, expected = apply(name, x, y), NUMPY[name](x.astype(np.float64), y.astype(np.float64)).astype(dtype)
    close = np.isfinite(expected) & (expected != 0) & (np.abs(got - expected) <= 8 * np.spacing(np.abs(expected)))
    right = same(got, expected) | close
    assert right.all(), (x[~right], y[~right], got[~right], expected[~right])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_functions(apply, dtype):
    bits = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    x = bits.view(np.float64) if dtype == np.float64 else (bits >> 32).astype(np.uint32).view(np.float32)
    x = np.concatenate([x, np.random.default_rng(1).uniform(-9, 9, 100_000).astype(dtype)])
    for name in EXACT:
        assert same(apply(name, x), NUMPY[name](x)).all(), name


def test_exact_points(apply):
    """Values a user would notice: k(x, x) = 1, powers of two and their logarithms."""
    for dtype, lowest in (np.float32, -149), (np.float64, -1074):
        n = np.arange(lowest, 128, dtype=dtype)
        powers = np.ldexp(dtype(1), n.astype(np.int32))
        assert (apply("exp2", n) == powers).all()
        assert (apply("log2", powers) == n).all()
        assert (apply("pow", np.full_like(n, 2), n) == powers).all()
        assert apply("exp", np.array([0.0, -0.0], dtype)).tolist() == [1.0, 1.0]
        assert apply("log", np.array([1.0], dtype)).tolist() == [0.0]


def widest_vectors():
    """Assembly name of the widest vector registers of this machine, or None."""
    flags = pathlib.Path("/proc/cpuinfo")
    flags = flags.read_text() if flags.exists() else ""
    return "zmm" if " avx512f" in flags else "ymm" if " avx2" in flags else None


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_vectorised(tmp_path, kind):
    """Loops over lanes become full-width SIMD code without calls."""
    register = widest_vectors()
    if register is None:
        pytest.skip("not an x86 with AVX2")
    assembly = compile_loops(tmp_path, "loops.s", *FLAGS, "-S").read_text()
    for name in UNARY + BINARY:
        label = f"loop_{name}_{kind}"
        body = re.search(rf"^{label}:\n(.*?)^\s*\.size\s+{label}", assembly, re.S | re.M).group(1)
        if kind == "f64" and name in ("sin", "cos"):  # libm's
            continue
        arithmetic = [line for line in body.splitlines() if f"%{register}" in line and "mov" not in line]
        assert arithmetic, f"{label} is not vectorised"
        assert not re.search(r"^\s*(call|jmp\s+\w+@PLT)", body, re.M), f"{label} calls a function"
