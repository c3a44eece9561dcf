"""Scalar functions for emitted Triton kernels: those that `triton.language` lacks, or gets wrong somewhere.

Arguments are float32 or float64 tensors of any shape, scalars included; of the two of `pow` and `atan2` one may be a
Python number, else they have one dtype and shapes that broadcast.  Special values are those of C99's Annex F.  Only
`tl` is used, no libdevice, so the functions run in the interpreter and compile for every back end; they have no
branches, calls or tables.  They are right whether or not a*b + c is contracted to an FMA: where a product has to be
exact, its factors are cut so that it is.

Largest errors in ulp, in the interpreter and in the PTX that Triton 3.6 and 3.9 emit for sm_90, translated to C and run
on millions of points, with and without FMA; in brackets those if the approximate instructions of CUDA (ex2.approx,
div.full) erred as much as the PTX manual allows:

              expm1   log1p   pow          tanh         erf          asin   acos   atan         atan2   round_half_away
    float32   1.5     1.7     2.7 (5.5)    1.5 (3.0)    1.5 (1.9)    2.4    1.3    1.9 (2.8)    1.8     0
    float64   2.2     2.9     1.1          2.7          2.1          2.3    1.2    1.8          1.7     0

What the functions of `tl` become (Triton 3.6 and 3.9 alike), with largest errors in ulp, from NVIDIA's and AMD's
manuals or (*) measured.  All are good enough to be used as they are:

               float32, sm_80 to sm_100                float32, gfx942              float64, sm / gfx942
    exp        ex2.approx(x log2 e):                   v_exp_f32(x log2 e):         libdevice 1 / OCML 1
               (3 + 1.2 |x|) 2^-24 relative            the same
    exp2       ex2.approx.ftz 2; denormals give 0      v_exp_f32 1; the same        libdevice 1 / OCML 1
    log        libdevice 0.9 *, near 1 too             v_log_f32, corrected 2       libdevice 1 / OCML 1
    log2       libdevice 0.9 *, near 1 too             v_log_f32 1                  libdevice 1 / OCML 1
    sin, cos   libdevice 2; large |x| in local memory  OCML 1                       libdevice 2, large |x| call / OCML 1
    sqrt       sqrt.approx.ftz 2; of denormals 0       v_sqrt_f32 1                 correctly rounded
    rsqrt      rsqrt.approx.ftz 2; of denormals Inf    v_rsq_f32 1                  rsqrt.approx 1 / v_rsq and Newton
    erf        libdevice 2; of denormals 0             OCML 4                       libdevice 2 / OCML 4
    floor      exact, but -0 for negative denormals    exact                        exact
    abs, fma   exact                                   exact                        exact
    x / y      div.full 2                              correctly rounded            correctly rounded

`tl.sqrt_rn` and `tl.div_rn` are correctly rounded and exist for float32 only.  In the interpreter of 3.6 `tl.fma`
rounds twice.  Literals keep 64 bits beside a float64 tensor in arithmetic, comparisons and `tl.where`, but not among
themselves in `tl.where(c, 0.1, 0.2)` nor, in 3.6, in `tl.fma`, `tl.minimum` and `tl.maximum`; -0.0 is 0.0 in 3.6.

The polynomials are minimax fits of the relative error (Remez), nearly all of them those of backends/c/math.h.
"""
# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl

__all__ = [
    "acos",
    "asin",
    "atan",
    "atan2",
    "erf",
    "expm1",
    "log1p",
    "mul_rn",
    "pow",
    "round_half_away",
    "tanh",
]

# (A global that is NaN would keep a kernel from calling two functions that use it: Triton compares such values.)
INF = tl.constexpr(float("inf"))
PI = tl.constexpr(3.141592653589793)
HALF_PI = tl.constexpr(1.5707963267948966)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# LN2 in two parts, such that an exponent times the first is exact.
LN2_HI_F32 = tl.constexpr(0.693359375)
LN2_LO_F32 = tl.constexpr(-2.12194440e-4)
LN2_HI_F64 = tl.constexpr(0.6931471805582987)
LN2_LO_F64 = tl.constexpr(1.6465949582897082e-12)
# The largest x whose exp is finite.
MAX_EXP_F32 = tl.constexpr(88.72283)
MAX_EXP_F64 = tl.constexpr(709.782712893384)
# 2/ln 2 in two parts, the first of 13 bits.
TWO_LOG2E_F32 = tl.constexpr(2.885390081777927)
TWO_LOG2E_HI_F32 = tl.constexpr(2.88525390625)
TWO_LOG2E_LO_F32 = tl.constexpr(1.36175527927e-4)
# log2(4/3) in two parts, the first of 13 bits.
LOG2_FOUR_THIRDS_HI_F32 = tl.constexpr(0.4149169921875)
LOG2_FOUR_THIRDS_LO_F32 = tl.constexpr(1.20507091344e-4)
# 2/3 in two parts.
TWO_THIRDS_F64 = tl.constexpr(0.6666666666666666)
TWO_THIRDS_LO_F64 = tl.constexpr(3.700743415417188e-17)
# x + ROUND rounds x to an integer n and leaves n + 126 (n + 1022), the exponent bits of 2^(n-1), at the end.
ROUND_F32 = tl.constexpr(12582912.0 + 126.0)
ROUND_F64 = tl.constexpr(6755399441055744.0 + 1022.0)
# Bits of the float that begins a binade when exponents are split off: 2/3, sqrt(2/3) or sqrt(1/2).
TWO_THIRDS_BITS_F32 = tl.constexpr(0x3F2AAAAB)
SQRT_TWO_THIRDS_BITS_F32 = tl.constexpr(0x3F5105EC)
SQRT_HALF_BITS_F64 = tl.constexpr(0x3FE6A09E667F3BCD)
SIGN_EXPONENT_F32 = tl.constexpr(-0x800000)
SIGN_EXPONENT_F64 = tl.constexpr(-0x10000000000000)


# ---- bits, signs, exact operations ----


@triton.jit
def _with_sign(y: tl.tensor, x: tl.tensor) -> tl.tensor:
    """y, whose sign bit is clear, with the sign bit of x."""
    if x.dtype == tl.float64:
        sign = x.to(tl.int64, bitcast=True) & -0x8000000000000000
        r = (y.to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = x.to(tl.int32, bitcast=True) & -0x80000000
        r = (y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return r


@triton.jit
def _top_bits(x: tl.tensor) -> tl.tensor:
    """x cut to its leading 11 (f32) or 26 (f64) bits: products of two such numbers are exact."""
    if x.dtype == tl.float64:
        r = (x.to(tl.int64, bitcast=True) & -0x8000000).to(tl.float64, bitcast=True)
    else:
        r = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return r


@triton.jit
def _together(x: tl.tensor, y: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Two operands, one of which may be a Python number, as tensors of one shape.

    (The interpreter cannot combine the truth values of a scalar with those of a tensor.)
    """
    if not isinstance(x, tl.tensor):
        x = tl.full((), x, y.dtype)
    if not isinstance(y, tl.tensor):
        y = tl.full((), y, x.dtype)
    x, y = tl.broadcast(x, y)
    return x, y


@triton.jit
def _divide(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x / y, correctly rounded."""
    if x.dtype == tl.float64:
        r = x / y
    else:
        r = tl.div_rn(x, y)
    return r


@triton.jit
def _sqrt(x: tl.tensor) -> tl.tensor:
    """The square root, correctly rounded."""
    if x.dtype == tl.float64:
        r = tl.sqrt(x)
    else:
        r = tl.sqrt_rn(x)
    return r


@triton.jit
def mul_rn(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x * y, rounded: a plain product may be contracted with the subtraction that reads it, in another block even, and
    then c*x - c*y is not 0 where x is y. (-0 becomes 0.)"""
    return tl.fma(x, y, 0.0)


@triton.jit
def round_half_away(x: tl.tensor) -> tl.tensor:
    """The nearest integer, halves away from zero.  |x| - floor|x| is exact, unlike |x| + 1/2."""
    a = tl.abs(x)
    t = tl.floor(a)
    return _with_sign(tl.where(a - t >= 0.5, t + 1.0, t), x)


# ---- exponentials and logarithms ----


@triton.jit
def _expm1_small(r: tl.tensor) -> tl.tensor:
    """expm1(r) = r + r^2 P(r) for |r| <= ln(2)/2."""
    if r.dtype == tl.float64:
        p = r * 2.50000785845360424e-8 + 2.76302350183835584e-7
        p = p * r + 2.75575862535890306e-6
        p = p * r + 2.48014931334135147e-5
        p = p * r + 1.98412695067858909e-4
        p = p * r + 1.38888889436000483e-3
        p = p * r + 8.33333333349433388e-3
        p = p * r + 4.16666666665302584e-2
        p = p * r + 0.166666666666664128
        p = p * r + 0.500000000000001062
    else:
        p = r * 0.00137804055387 + 0.00836884786005
        p = p * r + 0.0416690868131
        p = p * r + 0.166665192653
        p = p * r + 0.499999900125
    return p * (r * r) + r


@triton.jit
def _expm1_core(x: tl.tensor) -> tl.tensor:
    """expm1(x) for x neither tiny nor far below 0 nor above the largest whose exp is finite.

    x = n ln 2 + r; 2^n q + (2^n - 1) with q = expm1(r), computed with 2^(n-1), which is finite, and doubled.
    """
    if x.dtype == tl.float64:
        t = x * LOG2E + ROUND_F64
        n = t - ROUND_F64
        r = x - n * LN2_HI_F64
        r = r - n * LN2_LO_F64
        s = (t.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
    else:
        t = x * LOG2E + ROUND_F32
        n = t - ROUND_F32
        r = x - n * LN2_HI_F32
        r = r - n * LN2_LO_F32
        s = (t.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    return 2.0 * (s * _expm1_small(r) + (s - 0.5))


@triton.jit
def expm1(x: tl.tensor) -> tl.tensor:
    """exp(x) - 1.  Tiny x is its own image: the core loses the sign of 0 and the last bit of denormals."""
    if x.dtype == tl.float64:
        y = _expm1_core(tl.maximum(x, -40.0))
        y = tl.where(tl.abs(x) < 2.0**-53, x, y)
        y = tl.where(x <= MAX_EXP_F64, y, x + INF)
    else:
        y = _expm1_core(tl.maximum(x, -20.0))
        y = tl.where(tl.abs(x) < 2.0**-24, x, y)
        y = tl.where(x <= MAX_EXP_F32, y, x + INF)
    return y


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x).  1 + x = 2^e (1 + f), e from the rounded sum u, f = 2^-e x + (2^-e - 1), whose terms are exact."""
    u = tl.abs(1.0 + x)
    if x.dtype == tl.float64:
        i = (u.to(tl.int64, bitcast=True) - SQRT_HALF_BITS_F64) & SIGN_EXPONENT_F64
        e = (i >> 52).to(tl.int32).to(tl.float64)
        scale = (0x4010000000000000 - i).to(tl.float64, bitcast=True)  # 4 2^-e
        f = (x.to(tl.int64, bitcast=True) - i).to(tl.float64, bitcast=True) + (0.25 * scale - 1.0)
        s = f / (2.0 + f)  # log1p(f) = 2 atanh(s) = 2 s + s z P(z), and 2 s = f - f s
        z = s * s
        p = z * 0.1681997353538039758 + 0.1812363049310046946
        p = p * z + 0.2222337203806431663
        p = p * z + 0.2857141712510551949
        p = p * z + 0.4000000005230037571
        p = p * z + 0.6666666666658716068
        y = f - s * (f - z * p)
    else:
        i = (u.to(tl.int32, bitcast=True) - TWO_THIRDS_BITS_F32) & SIGN_EXPONENT_F32
        e = (i >> 23).to(tl.float32)
        scale = (0x40800000 - i).to(tl.float32, bitcast=True)  # 4 2^-e: e may be 128
        f = (x.to(tl.int32, bitcast=True) - i).to(tl.float32, bitcast=True) + (0.25 * scale - 1.0)
        # log1p(f) = f - f^2/2 + f^3 P(f)
        p = f * -0.1289167053718635519 + 0.1398438488390461507
        p = p * f - 0.1218426227731923128
        p = p * f + 0.1400587973040421765
        p = p * f - 0.1668048742183853044
        p = p * f + 0.2001040526198072484
        p = p * f - 0.249997976684956592
        p = p * f + 0.3333321599322886577
        p = p * f - 0.5
        y = p * (f * f) + f
    y = e * LN2 + y
    y = tl.where((x == 0.0) | (x == INF), x, y)
    return tl.where(x > -1.0, y, tl.where(x == -1.0, -INF, float("nan")))


# ---- powers ----


@triton.jit
def _pow_f32(a: tl.tensor, y: tl.tensor) -> tl.tensor:
    """a^y = 2^(y log2 a) for positive finite a.

    a = 2^e (1 + f) or 2^e 4/3 (1 + f), |f| < 1/4; log2(1 + f) = 2/ln 2 atanh(s) = 2/ln 2 s + s z P(z), s = f / (2 + f),
    z = s^2.  What matters to 2^-31 is carried as the sum of two floats, x and x_l or x_h and x_l.
    """
    denormal = a < 2.0**-126
    a = tl.where(denormal, a * 2.0**24, a)
    bits = a.to(tl.int32, bitcast=True)
    i = (bits - SQRT_TWO_THIRDS_BITS_F32) & SIGN_EXPONENT_F32
    e = (i >> 23).to(tl.float32) - tl.where(denormal, 24.0, 0.0)
    m = (bits - i).to(tl.float32, bitcast=True)  # in [sqrt(2/3), 2 sqrt(2/3))
    upper = m > 1.15
    e = tl.where(upper, e + LOG2_FOUR_THIRDS_HI_F32, e)
    e_l = tl.where(upper, LOG2_FOUR_THIRDS_LO_F32, 0.0)
    f = tl.where(upper, (0.5 * m - 1.0) + 0.25 * m, m - 1.0)
    f_h = _top_bits(f)
    inverse = 1.0 / (2.0 + f)
    s = f * inverse
    s_h = _top_bits(s)
    s_l = (((f - 2.0 * s_h) - s_h * f_h) - s_h * (f - f_h)) * inverse
    s = s_h + s_l
    z = s * s
    p = z * 0.418567628159 + 0.577040121907
    p = p * z + 0.961796757908
    k = s_h * TWO_LOG2E_HI_F32
    k_l = p * (z * s) + (s_h * TWO_LOG2E_LO_F32 + s_l * TWO_LOG2E_F32)
    g = e + k
    g_l = (k - (g - e)) + (k_l + e_l)
    h = g + g_l
    h_l = g_l - (h - g)
    y = tl.minimum(tl.maximum(y, -(2.0**32)), 2.0**32)  # beyond, the result is 0, 1 or Inf all the same
    y_h = _top_bits(y)
    h_h = _top_bits(h)
    t = y_h * h_h
    t_l = y_h * (h - h_h) + ((y - y_h) * h + y * h_l)
    c = tl.minimum(tl.maximum(t + t_l, -151.0), 127.99999)
    correction = tl.maximum(1.0 + LN2 * (t_l - (c - t)), 0.0)  # 2^(t + t_l - c)
    small = c < -100.0  # exp2 gives no denormals
    return tl.exp2(tl.where(small, c + 64.0, c)) * tl.where(small, correction * 2.0**-64, correction)


@triton.jit
def _pow_f64(a: tl.tensor, y: tl.tensor) -> tl.tensor:
    """a^y = exp(y log a) for positive finite a: as in f32, to 2^-63, log(1 + f) being s (2 + z (2/3 + z P(z)))."""
    denormal = a < 2.0**-1022
    a = tl.where(denormal, a * 2.0**54, a)
    bits = a.to(tl.int64, bitcast=True)
    i = (bits - SQRT_HALF_BITS_F64) & SIGN_EXPONENT_F64
    e = ((i >> 52).to(tl.int32) - tl.where(denormal, 54, 0)).to(tl.float64)
    f = (bits - i).to(tl.float64, bitcast=True) - 1.0
    f_h = _top_bits(f)
    inverse = 1.0 / (2.0 + f)
    s = f * inverse
    s_h = _top_bits(s)
    s_l = (((f - 2.0 * s_h) - s_h * f_h) - s_h * (f - f_h)) * inverse
    z_h = s_h * s_h
    z_l = s_l * (s_h + s_h + s_l)
    z = z_h + z_l
    p = z * 0.1319636161232383509 + 0.1325681398721867137
    p = p * z + 0.1538675750418516843
    p = p * z + 0.1818178436305593877
    p = p * z + 0.2222222251997383081
    p = p * z + 0.2857142857009925823
    p = p * z + 0.4000000000000225678
    zp = z * p
    g = zp + TWO_THIRDS_F64
    g_l = (zp - (g - TWO_THIRDS_F64)) + TWO_THIRDS_LO_F64
    z_hh = _top_bits(z_h)
    g_h = _top_bits(g)
    zg = z_hh * g_h
    k = 2.0 + zg
    k_l = (zg - (k - 2.0)) + (z_hh * ((g - g_h) + g_l) + ((z_h - z_hh) + z_l) * g)
    k_h = _top_bits(k)
    m = s_h * k_h
    n = e * LN2_HI_F64
    h = n + m
    h_l = (m - (h - n)) + (s_h * ((k - k_h) + k_l) + (s_l * (k + k_l) + e * LN2_LO_F64))
    y = tl.minimum(tl.maximum(y, -(2.0**64)), 2.0**64)
    y_h = _top_bits(y)
    h_h = _top_bits(h)
    t = y_h * h_h
    t_l = y_h * (h - h_h) + ((y - y_h) * h + y * h_l)
    v = t + t_l
    c = tl.minimum(tl.maximum(v, -746.0), 710.0)
    v_l = tl.where(c == v, t_l - (v - t), 0.0)
    t = c * LOG2E + ROUND_F64  # exp(c + v_l) = 2^n exp(r)
    n = t - ROUND_F64
    r = (c - n * LN2_HI_F64) + (v_l - n * LN2_LO_F64)
    i = t.to(tl.int64, bitcast=True).to(tl.int32)  # n + 1022
    half = i >> 1  # 2^n in two factors: it may be out of range where the result is not
    s1 = ((half + 512).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    s2 = ((i - half + 512).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    return (1.0 + _expm1_small(r)) * s1 * s2


@triton.jit
def pow(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x^y as C99 defines it: 1 for y = 0 or x = 1 even beside NaN, NaN for x < 0 unless y is an integer."""
    x, y = _together(x, y)
    a = tl.abs(x)
    if x.dtype == tl.float64:
        r = _pow_f64(a, y)
    else:
        r = _pow_f32(a, y)
    whole = tl.floor(y)
    half = 0.5 * y
    odd = (whole == y) & (tl.floor(half) != half)  # large y and infinities are even
    r = tl.where((x < 0.0) & (whole != y), float("nan"), r)
    r = tl.where((a == 0.0) | (a == INF), tl.where((a == 0.0) ^ (y < 0.0), 0.0, INF), r)
    r = _with_sign(r, tl.where(odd, x, 0.0))
    r = tl.where((x != x) | (y != y), x + y, r)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, r)


# ---- hyperbolic tangent, error function ----


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """In f64 q / (q + 2), q = expm1(2 |x|); in f32 1 - 2 / (exp(2 |x|) + 1), and x + x z P(z), z = x^2, below 0.8."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        q = _expm1_core(2.0 * tl.where(a > 20.0, 20.0, a))
        y = q / (q + 2.0)
    else:
        z = a * a
        p = z * 0.00158475579409 - 0.00740955653391
        p = p * z + 0.0213029904244
        p = p * z - 0.0538523314033
        p = p * z + 0.133322210243
        p = p * z - 0.333332973583
        y = tl.where(a < 0.8, p * (z * a) + a, 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0))
    return _with_sign(y, x)


@triton.jit
def erf(x: tl.tensor) -> tl.tensor:
    """x + x P(x^2) below 1, 1 - exp(-Q(|x|)) above; the clamp gives 1."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = tl.where(a > 6.0, 6.0, a)
        z = a * a
        p = z * -7.779466776387986217e-10 + 1.371097912309430885e-8
        p = p * z - 1.620631336648432957e-7
        p = p * z + 1.644713150501782495e-6
        p = p * z - 0.00001492471229517501664
        p = p * z + 0.0001205529357645245204
        p = p * z - 0.0008548325929295723135
        p = p * z + 0.005223977606117984816
        p = p * z - 0.02686617064311139315
        p = p * z + 0.1128379167094418415
        p = p * z - 0.3761263890318351952
        p = p * z + 0.1283791670955125657
        q = a * 3.784866182655161603e-11 - 1.076540940038701171e-9
        q = q * a + 1.186607378425561055e-8
        q = q * a - 3.992723833646735719e-8
        q = q * a - 4.938316228856627785e-7
        q = q * a + 8.032694223815434601e-6
        q = q * a - 0.00006084642356715923002
        q = q * a + 0.0003025155674610457811
        q = q * a - 0.001042307162591408901
        q = q * a + 0.002260396443269994682
        q = q * a - 0.0007479558288454526274
        q = q * a - 0.01874027648054283362
        q = q * a + 0.1025681355793270158
        q = q * a + 0.6366940990571688282
        q = q * a + 1.128362503777117418
        q = q * a + 1.735641706129803621e-6
        large = -_expm1_core(-q)
    else:
        a = tl.where(a > 4.0, 4.0, a)
        z = a * a
        p = z * 0.00007853838355715854898 - 0.000801018744722983412
        p = p * z + 0.005188327108442138797
        p = p * z - 0.02685381173461032643
        p = p * z + 0.1128358514810514677
        p = p * z - 0.3761262582488186024
        p = p * z + 0.1283791657269216668
        q = a * 0.00002169755929742745373 - 0.0004414719912709805135
        q = q * a + 0.004205281434974292423
        q = q * a - 0.02521033073577787354
        q = q * a + 0.1084220852913748586
        q = q * a + 0.6332164100234566039
        q = q * a + 1.12958030493856917
        q = q * a - 0.000188466476917551244
        large = 1.0 - tl.exp(-q)
    return _with_sign(tl.where(a < 1.0, p * a + a, large), x)


# ---- inverse trigonometric functions ----


@triton.jit
def _asin_core(a: tl.tensor) -> tl.tensor:
    """asin(s) = s + s z P(z), z = s^2, s = a below 1/2 and sqrt((1 - a)/2), NaN for a > 1, above."""
    z = tl.where(a < 0.5, a * a, 0.5 - 0.5 * a)
    s = tl.where(a < 0.5, a, _sqrt(z))
    if a.dtype == tl.float64:
        p = z * 0.03195896330035447251 - 0.01629407384869095833
        p = p * z + 0.01957390840981036493
        p = p * z + 0.006510851788696689402
        p = p * z + 0.01217327986418949738
        p = p * z + 0.0138845983409440744
        p = p * z + 0.01735977112740702008
        p = p * z + 0.02237175352132499823
        p = p * z + 0.03038195933135638212
        p = p * z + 0.04464285682348010529
        p = p * z + 0.07500000000343045346
        p = p * z + 0.1666666666666538283
    else:
        p = z * 0.04221858712476008364 + 0.02414760503229058705
        p = p * z + 0.04547709244152172542
        p = p * z + 0.0749524190068763926
        p = p * z + 0.1666675392122991159
    return p * (z * s) + s


@triton.jit
def asin(x: tl.tensor) -> tl.tensor:
    """asin|x| = pi/2 - 2 asin(sqrt((1 - |x|)/2)) above 1/2."""
    a = tl.abs(x)
    y = _asin_core(a)
    return _with_sign(tl.where(a < 0.5, y, HALF_PI - 2.0 * y), x)


@triton.jit
def acos(x: tl.tensor) -> tl.tensor:
    """pi/2 - asin(x), but acos|x| = 2 asin(sqrt((1 - |x|)/2)) above 1/2."""
    a = tl.abs(x)
    y = _asin_core(a)
    large = tl.where(x < 0.0, PI - 2.0 * y, 2.0 * y)
    small = HALF_PI - tl.where(x < 0.0, -y, y)
    return tl.where(a < 0.5, small, large)


@triton.jit
def _atan_core(q: tl.tensor) -> tl.tensor:
    """atan(q) = q + q z P(z), z = q^2, for q from 0 to 1."""
    z = q * q
    if q.dtype == tl.float64:
        p = z * -0.00002025919101861629448 + 0.0002230284875529375645
        p = p * z - 0.001164098482475394296
        p = p * z + 0.003856046456701391399
        p = p * z - 0.0091846898457133402
        p = p * z + 0.01697820812236783536
        p = p * z - 0.02582696630134748382
        p = p * z + 0.03406793775007513094
        p = p * z - 0.04092645500438913776
        p = p * z + 0.04673952816283278184
        p = p * z - 0.05239234083219074256
        p = p * z + 0.05877308047794811748
        p = p * z - 0.0666586041595869545
        p = p * z + 0.07692212937902286704
        p = p * z - 0.09090901236115604851
        p = p * z + 0.1111111067879595448
        p = p * z - 0.1428571427133665752
        p = p * z + 0.1999999999975505648
        p = p * z - 0.3333333333333185907
    else:
        p = z * -0.001793618874894553176 + 0.01091459047776129155
        p = p * z - 0.03117781215955707938
        p = p * z + 0.05795755382410467025
        p = p * z - 0.08403447600577001894
        p = p * z + 0.1095218467527737301
        p = p * z - 0.1426424143436596565
        p = p * z + 0.1999854825895169098
        p = p * z - 0.3333329908851031096
    return p * (z * q) + q


@triton.jit
def atan(x: tl.tensor) -> tl.tensor:
    """atan|x| = pi/2 - atan(1/|x|) above 1."""
    a = tl.abs(x)
    y = _atan_core(tl.where(a > 1.0, 1.0 / a, a))
    return _with_sign(tl.where(a > 1.0, HALF_PI - y, y), x)


@triton.jit
def atan2(y: tl.tensor, x: tl.tensor) -> tl.tensor:
    """The angle of (x, y), from the smaller over the larger; 0/0 counts as 0 and Inf/Inf as 1."""
    x, y = _together(x, y)
    a = tl.abs(y)
    b = tl.abs(x)
    q = _divide(tl.minimum(a, b), tl.maximum(a, b))
    q = tl.where(a == b, tl.where(a == 0.0, 0.0, 1.0), q)
    t = _atan_core(q)
    t = tl.where(a > b, HALF_PI - t, t)
    if x.dtype == tl.float64:
        negative = x.to(tl.int64, bitcast=True) < 0
    else:
        negative = x.to(tl.int32, bitcast=True) < 0
    t = tl.where(negative, PI - t, t)
    return tl.where((x != x) | (y != y), x + y, _with_sign(t, y))
