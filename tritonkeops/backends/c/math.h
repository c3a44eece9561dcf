/* Elementary functions on scalars, written to be auto-vectorised.
 *
 * Every function is branch-free: arithmetic, integer operations on the bits of floats, and selections whose arms
 * are both computed.  A loop over lanes that calls them becomes full-width SIMD code under
 *     -O3 -fno-math-errno -fno-trapping-math          (never -ffast-math: Inf and NaN keep their meaning).
 * The exceptions are sin_f64 and cos_f64, which call libm.
 *
 * Largest errors measured with FMA and, in brackets, without where it is larger: in float in units in the last place
 * (ulp, the spacing of the denormals below the smallest normal number), in double relative, in 1e-16:
 *
 *           exp        exp2       expm1        log          log2         log1p        pow        tanh
 *   float   1.91       1.80       1.47 (1.52)  0.94 (1.06)  1.06 (1.34)  1.55 (1.73)  0.53       1.50
 *   double  3.4 (3.8)  3.3 (3.5)  2.4 (2.6)    3.1          3.5          3.1          1.3 (1.7)  2.9 (3.3)
 *
 *           erf          sin    cos    asin   acos   atan         atan2
 *   float   1.21 (1.25)  1.52   1.50   2.36   1.27   1.66 (1.72)  1.66 (1.72)
 *   double  2.8          libm   libm   4.1    2.4    2.4          2.0
 *
 * Rounding is assumed to be to nearest, denormals not to be flushed, and a*b + c to be contracted where there is FMA
 * (gcc's default, but for -std=c11).
 */
#ifndef TRITONKEOPS_MATH_H
#define TRITONKEOPS_MATH_H

#include <stdint.h>

/* ---- bits ------------------------------------------------------------------------------------------------------ */

static inline uint32_t bits_of_f32(float x) { uint32_t i; __builtin_memcpy(&i, &x, sizeof i); return i; }
static inline uint64_t bits_of_f64(double x) { uint64_t i; __builtin_memcpy(&i, &x, sizeof i); return i; }
static inline float float_of_u32(uint32_t i) { float x; __builtin_memcpy(&x, &i, sizeof x); return x; }
static inline double float_of_u64(uint64_t i) { double x; __builtin_memcpy(&x, &i, sizeof x); return x; }
static inline uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA
#endif

#define INF_F32 __builtin_inff()
#define INF_F64 __builtin_inf()
#define NAN_F32 __builtin_nanf("")
#define NAN_F64 __builtin_nan("")
#define SIGN_F32 0x80000000u
#define SIGN_F64 0x8000000000000000u

/* ---- exact operations ------------------------------------------------------------------------------------------ */

static inline float abs_f32(float x) { return __builtin_fabsf(x); }
static inline double abs_f64(double x) { return __builtin_fabs(x); }
static inline float sqrt_f32(float x) { return __builtin_sqrtf(x); }
static inline double sqrt_f64(double x) { return __builtin_sqrt(x); }
static inline float floor_f32(float x) { return __builtin_floorf(x); }
static inline double floor_f64(double x) { return __builtin_floor(x); }

/* y with the sign bit of x, y having none. */
static inline float with_sign_f32(float y, float x) {
  return float_of_u32(bits_of_f32(y) | (bits_of_f32(x) & SIGN_F32));
}
static inline double with_sign_f64(double y, double x) {
  return float_of_u64(bits_of_f64(y) | (bits_of_f64(x) & SIGN_F64));
}

/* Half away from zero: |x| - trunc|x| is exact, unlike |x| + 1/2. */
static inline float round_f32(float x) {
  float a = __builtin_fabsf(x), t = __builtin_truncf(a);
  return with_sign_f32(a - t >= 0.5f ? t + 1.0f : t, x);
}
static inline double round_f64(double x) {
  double a = __builtin_fabs(x), t = __builtin_trunc(a);
  return with_sign_f64(a - t >= 0.5 ? t + 1.0 : t, x);
}

/* ---- exponentials ---------------------------------------------------------------------------------------------- *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2, ln 2 being split in two so that n * LN2_HI is exact.
 * n is rounded by adding a large "magic" number, 1.5 * 2^23 + k (1.5 * 2^52 + k), whose low mantissa bits then hold
 * n + k: shifted to the exponent's place they are 2^(n + k - bias).
 */

#define LN2_HI_F32 0.693359375f
#define LN2_LO_F32 -2.12194440e-4f
#define LN2_HI_F64 0x1.62e42fefa0000p-1
#define LN2_LO_F64 0x1.cf79abc9e3b3ap-40
#define LOG2E_F32 0x1.715476p+0f
#define LOG2E_F64 0x1.71547652b82fep+0
#define LN2_F32 0x1.62e430p-1f
#define LN2_F64 0x1.62e42fefa39efp-1

#define MAGIC_F32 12582912.0f
#define MAGIC_F64 6755399441055744.0

/* 2^n p, for p in [1/2, 2), from t = SCALE_MAGIC + n: n is added to the exponent of p.  A product would do for results
 * below the smallest normal number, but a float operation that gives a denormal stalls most processors (a vector of exp
 * then takes 2 to 3 times as long).  Instead such a result is rounded to a multiple of the smallest denormal by adding
 * a power of two with that ulp; the difference of their bits is the result.  Exponents are raised by 32 (64) meanwhile,
 * so that nothing here underflows: n >= -151 (-1076), where the result is 0. */
#define SCALE_MAGIC_F32 (MAGIC_F32 + 32.0f)
#define SCALE_MAGIC_F64 (MAGIC_F64 + 64.0)
static inline float scale_f32(float p, float t) {
  uint32_t y = bits_of_f32(p) + (bits_of_f32(t) << 23), one = 32u << 23;
  float small = 0.5f * float_of_u32(min_u32(y, one + (1u << 23))) + float_of_u32(one);
  return float_of_u32(max_u32(y, bits_of_f32(small)) - one);
}
static inline double scale_f64(double p, double t) {
  uint64_t y = bits_of_f64(p) + (bits_of_f64(t) << 52), one = 64ull << 52;
  double small = 0.5 * float_of_u64(min_u64(y, one + (1ull << 52))) + float_of_u64(one);
  return float_of_u64(max_u64(y, bits_of_f64(small)) - one);
}

/* max(x, lo) for lo < 0.  Among negative floats the order of the bits is that of the magnitudes, and positive ones are
 * below them all, hence one unsigned minimum; a comparison of floats would cost AVX-512 a mask and a blend.  A negative
 * NaN is lost. */
static inline float at_least_f32(float x, float lo) { return float_of_u32(min_u32(bits_of_f32(x), bits_of_f32(lo))); }
static inline double at_least_f64(double x, double lo) {
#if defined(__AVX2__) && !defined(__AVX512F__) /* there is no 64-bit minimum, but max of doubles is one instruction */
  return x > lo ? x : lo;
#else
  return float_of_u64(min_u64(bits_of_f64(x), bits_of_f64(lo)));
#endif
}

/* exp(r) by a polynomial with p(0) = 1 exactly, of degree 5 (10 in f64).  Without FMA the roundings leave no room in
 * 2 ulp for the error of degree 5, and it is 6. */
static inline float exp_core_f32(float r) {
#ifdef HAS_FMA
  float p = 0x1.0e8a2cp-7f;
  p = p * r + 0x1.573f32p-5f;
  p = p * r + 0x1.555d8cp-3f;
  p = p * r + 0x1.fffdb8p-2f;
  p = p * r + 0x1.ffffeep-1f;
#else
  float p = 0.00137804055387f;
  p = p * r + 0.00836884786005f;
  p = p * r + 0.0416690868131f;
  p = p * r + 0.166665192653f;
  p = p * r + 0.499999900125f;
  p = p * r + 1.0f;
#endif
  return p * r + 1.0f;
}
/* The last selection makes Inf of overflows and NaN of NaNs. */
static inline float exp_f32(float x) {
  float c = at_least_f32(x, -104.67f);
  float t = c * LOG2E_F32 + SCALE_MAGIC_F32, n = t - SCALE_MAGIC_F32;
  float r = c - n * LN2_HI_F32;
  r = r - n * LN2_LO_F32;
  float y = scale_f32(exp_core_f32(r), t);
  return x <= 0x1.62e42ep+6f ? y : x + INF_F32;
}
static inline double exp_f64(double x) {
  double c = at_least_f64(x, -745.826);
  double t = c * LOG2E_F64 + SCALE_MAGIC_F64, n = t - SCALE_MAGIC_F64;
  double r = c - n * LN2_HI_F64;
  r = r - n * LN2_LO_F64;
  double p = 2.74919839326651497e-7;
  p = p * r + 2.76391879173431003e-6;
  p = p * r + 2.48019002957305835e-5;
  p = p * r + 1.98411730861918329e-4;
  p = p * r + 1.38888885290319006e-3;
  p = p * r + 8.33333338294279324e-3;
  p = p * r + 4.16666666682030572e-2;
  p = p * r + 0.166666666665646367;
  p = p * r + 0.499999999999979817;
  p = p * r + 1.00000000000000558;
  p = p * r + 1.0;
  double y = scale_f64(p, t);
  return x <= 0x1.62e42fefa39efp+9 ? y : x + INF_F64;
}

/* exp2: the same with an exact reduction. */
static inline float exp2_core_f32(float r) {
#ifdef HAS_FMA
  float p = 0.00132257022757f;
  p = p * r + 0.00967176305746f;
  p = p * r + 0.0555089146476f;
  p = p * r + 0.240222370323f;
  p = p * r + 0.693146829214f;
#else
  float p = 0.000153224873389f;
  p = p * r + 0.0013397282012f;
  p = p * r + 0.00961856046353f;
  p = p * r + 0.055503381891f;
  p = p * r + 0.240226467453f;
  p = p * r + 0.693147198207f;
#endif
  return p * r + 1.0f;
}
static inline float exp2_f32(float x) {
  float c = at_least_f32(x, -151.0f);
  float t = c + SCALE_MAGIC_F32, r = c - (t - SCALE_MAGIC_F32);
  float y = scale_f32(exp2_core_f32(r), t);
  return x < 128.0f ? y : x + INF_F32;
}
static inline double exp2_f64(double x) {
  double c = at_least_f64(x, -1076.0);
  double t = c + SCALE_MAGIC_F64, r = c - (t - SCALE_MAGIC_F64);
  double p = 7.03818555978693806e-9;
  p = p * r + 1.02083229871219354e-7;
  p = p * r + 1.32156535619082977e-6;
  p = p * r + 1.52526594277247734e-5;
  p = p * r + 1.54035299943046088e-4;
  p = p * r + 1.33335582258002075e-3;
  p = p * r + 9.61812910798310176e-3;
  p = p * r + 5.55041086644818217e-2;
  p = p * r + 0.240226506959091016;
  p = p * r + 0.693147180559949175;
  p = p * r + 1.0;
  double y = scale_f64(p, t);
  return x < 1024.0 ? y : x + INF_F64;
}

/* expm1 for -126 ln 2 < x < 128 ln 2 (f64: -1022, 1024): 2^n q + (2^n - 1), q = expm1(r) = r + r^2 P(r), P of degree 4
 * (9 in f64); with 2^(n-1), which cannot overflow, and doubled. */
static inline float expm1_core_f32(float x) {
  float t = x * LOG2E_F32 + (MAGIC_F32 + 126.0f), n = t - (MAGIC_F32 + 126.0f);
  float r = x - n * LN2_HI_F32;
  r = r - n * LN2_LO_F32;
  float p = 0.00137804055387f;
  p = p * r + 0.00836884786005f;
  p = p * r + 0.0416690868131f;
  p = p * r + 0.166665192653f;
  p = p * r + 0.499999900125f;
  float q = p * (r * r) + r, s = float_of_u32(bits_of_f32(t) << 23);
  return 2.0f * (s * q + (s - 0.5f));
}
static inline double expm1_core_f64(double x) {
  double t = x * LOG2E_F64 + (MAGIC_F64 + 1022.0), n = t - (MAGIC_F64 + 1022.0);
  double r = x - n * LN2_HI_F64;
  r = r - n * LN2_LO_F64;
  double p = 2.50000785845360424e-8;
  p = p * r + 2.76302350183835584e-7;
  p = p * r + 2.75575862535890306e-6;
  p = p * r + 2.48014931334135147e-5;
  p = p * r + 1.98412695067858909e-4;
  p = p * r + 1.38888889436000483e-3;
  p = p * r + 8.33333333349433388e-3;
  p = p * r + 4.16666666665302584e-2;
  p = p * r + 0.166666666666664128;
  p = p * r + 0.500000000000001062;
  double q = p * (r * r) + r, s = float_of_u64(bits_of_f64(t) << 52);
  return 2.0 * (s * q + (s - 0.5));
}
/* Tiny x, its own image, is selected apart: doubling would lose a bit of denormals, and the sum the sign of zero. */
static inline float expm1_f32(float x) {
  float y = expm1_core_f32(at_least_f32(x, -20.0f));
  y = abs_f32(x) < 0x1p-24f ? x : y;
  return x <= 0x1.62e42ep+6f ? y : x + INF_F32;
}
static inline double expm1_f64(double x) {
  double y = expm1_core_f64(at_least_f64(x, -40.0));
  y = abs_f64(x) < 0x1p-53 ? x : y;
  return x <= 0x1.62e42fefa39efp+9 ? y : x + INF_F64;
}

/* ---- logarithms ------------------------------------------------------------------------------------------------ *
 * x = 2^e (1 + f), log x = e ln 2 + log1p(f), with 1 + f in [2/3, 4/3) (f32) or [sqrt(1/2), sqrt 2) (f64): f is exact,
 * and e = 0 around x = 1, where the result is relatively accurate because log1p(f) is.
 */

#define BASE_F32 0x3f2aaaabu           /* bits of 2/3 */
#define BASE_F64 0x3fe6a09e667f3bcdull /* bits of sqrt(1/2) */

/* The exponent field of e = floor(x / base) in place, negative ones in two's complement; x is positive and normal. */
static inline uint32_t exponent_f32(float x) { return (bits_of_f32(x) - BASE_F32) & 0xff800000u; }
static inline uint64_t exponent_f64(double x) { return (bits_of_f64(x) - BASE_F64) & 0xfff0000000000000u; }
/* That field as a number.  (From 64 bits through the mantissa of 2^52: only AVX-512 converts 64-bit integers.) */
static inline float exponent_value_f32(uint32_t i) { return (float)(int32_t)i * 0x1p-23f; }
static inline double exponent_value_f64(uint64_t i) {
  return float_of_u64(((i + (1024ull << 52)) >> 52) | 0x4330000000000000u) - (0x1p52 + 1024.0);
}

/* y where 0 < x < Inf; the logarithm's values elsewhere. */
static inline float log_edges_f32(float x, float y) {
  float edge = x < 0.0f ? NAN_F32 : x;
  edge = x == 0.0f ? -INF_F32 : edge;
  return bits_of_f32(x) - 1u < 0x7f7fffffu ? y : edge;
}
static inline double log_edges_f64(double x, double y) {
  double edge = x < 0.0 ? NAN_F64 : x;
  edge = x == 0.0 ? -INF_F64 : edge;
  return bits_of_f64(x) - 1u < 0x7fefffffffffffffu ? y : edge;
}

/* log1p(f) = f - f^2/2 + f^3 P(f), P of degree 7, |f| <= 1/3. */
static inline float log1p_core_f32(float f) {
  float p = -0.1289167053718635519f;
  p = p * f + 0.1398438488390461507f;
  p = p * f - 0.1218426227731923128f;
  p = p * f + 0.1400587973040421765f;
  p = p * f - 0.1668048742183853044f;
  p = p * f + 0.2001040526198072484f;
  p = p * f - 0.249997976684956592f;
  p = p * f + 0.3333321599322886577f;
  p = p * f - 0.5f;
  return p * (f * f) + f;
}
/* log1p(f) = 2 atanh(s), s = f / (2 + f), = 2 s + s R, R = s^2 P(s^2), P of degree 5; 2 s = f - f s. */
static inline double log1p_core_f64(double f) {
  double s = f / (2.0 + f), z = s * s;
  double p = 0.1681997353538039758;
  p = p * z + 0.1812363049310046946;
  p = p * z + 0.2222337203806431663;
  p = p * z + 0.2857141712510551949;
  p = p * z + 0.4000000005230037571;
  p = p * z + 0.6666666666658716068;
  return f - s * (f - z * p);
}

static inline float log_f32(float x) {
  int denormal = x < 0x1p-126f;
  float a = denormal ? x * 0x1p23f : x;
  uint32_t i = exponent_f32(a);
  float e = exponent_value_f32(i) - (denormal ? 23.0f : 0.0f);
  return log_edges_f32(x, e * LN2_F32 + log1p_core_f32(float_of_u32(bits_of_f32(a) - i) - 1.0f));
}
static inline double log_f64(double x) {
  int denormal = x < 0x1p-1022;
  double a = denormal ? x * 0x1p52 : x;
  uint64_t i = exponent_f64(a);
  double e = exponent_value_f64(i) - (denormal ? 52.0 : 0.0);
  return log_edges_f64(x, e * LN2_F64 + log1p_core_f64(float_of_u64(bits_of_f64(a) - i) - 1.0));
}

/* log2(1 + f) = f + f P(f), P of degree 9 (f32), with 1 + f in [sqrt(1/2), sqrt 2): from 2/3 on, e + log2(1 + f) would
 * cancel. */
static inline float log2_f32(float x) {
  int denormal = x < 0x1p-126f;
  float a = denormal ? x * 0x1p23f : x;
  uint32_t i = (bits_of_f32(a) - 0x3f3504f3u) & 0xff800000u;
  float e = exponent_value_f32(i) - (denormal ? 23.0f : 0.0f), f = float_of_u32(bits_of_f32(a) - i) - 1.0f;
  float p = -0.109950629771f;
  p = p * f + 0.186175381993f;
  p = p * f - 0.191062487401f;
  p = p * f + 0.204600528792f;
  p = p * f - 0.239617426395f;
  p = p * f + 0.288567413818f;
  p = p * f - 0.360696648529f;
  p = p * f + 0.48089824097f;
  p = p * f - 0.721347351519f;
  p = p * f + 0.44269504083f;
  return log_edges_f32(x, (p * f + f) + e);
}
static inline double log2_f64(double x) {
  int denormal = x < 0x1p-1022;
  double a = denormal ? x * 0x1p52 : x;
  uint64_t i = exponent_f64(a);
  double e = exponent_value_f64(i) - (denormal ? 52.0 : 0.0);
  return log_edges_f64(x, e + LOG2E_F64 * log1p_core_f64(float_of_u64(bits_of_f64(a) - i) - 1.0));
}

/* log1p: e from u = 1 + x, rounded, then f = 2^-e x + (2^-e - 1), whose terms are exact.  (4 2^-e, as e may be 128.) */
static inline float log1p_f32(float x) {
  float u = 1.0f + x;
  uint32_t i = exponent_f32(u);
  float f = float_of_u32(bits_of_f32(x) - i) + (0.25f * float_of_u32(bits_of_f32(4.0f) - i) - 1.0f);
  f = i ? f : x;
  float y = exponent_value_f32(i) * LN2_F32 + log1p_core_f32(f);
  return log_edges_f32(u, x == 0.0f ? x : y);
}
static inline double log1p_f64(double x) {
  double u = 1.0 + x;
  uint64_t i = exponent_f64(u);
  double f = float_of_u64(bits_of_f64(x) - i) + (0.25 * float_of_u64(bits_of_f64(4.0) - i) - 1.0);
  double y = exponent_value_f64(i) * LN2_F64 + log1p_core_f64(f);
  return log_edges_f64(u, x == 0.0 ? x : y);
}

/* ---- powers ---------------------------------------------------------------------------------------------------- */

/* C99's pow(x, y) from r = |x|^y: signs and edges.  y is an odd integer if it is an integer and y/2 is not, which holds
 * for large y and infinities too; s is x in that case.  (Nested selections: gcc does not vectorise every `&`.) */
static inline double pow_edges_f64(double x, double y, double r) {
  double a = abs_f64(x), half = 0.5 * y, whole = floor_f64(y);
  double s = floor_f64(half) == half ? 0.0 : x, fraction = x == -INF_F64 ? 0.0 : NAN_F64;
  s = whole == y ? s : 0.0;
  fraction = whole == y ? 0.0 : fraction;
  r = x < 0.0 ? r + fraction : r;
  r = a == 0.0 ? (y < 0.0 ? INF_F64 : 0.0) : r;
  r = a == INF_F64 ? (y < 0.0 ? 0.0 : INF_F64) : r;
  r = __builtin_isunordered(x, y) ? x + y : with_sign_f64(r, s);
  r = y == 0.0 ? 1.0 : r;
  return x == 1.0 ? 1.0 : r;
}

/* f32: 2^(y log2|x|) in double, log2(1 + f) = f P(f) with P of degree 12, 2^r of degree 6; |y| beyond 1e20 changes
 * nothing. */
static inline float pow_f32(float x, float y) {
  double a = abs_f32(x), b = y;
  uint64_t i = (bits_of_f64(a) - 0x3fe5555555555555u) & 0xfff0000000000000u;
  double f = float_of_u64(bits_of_f64(a) - i) - 1.0;
  double q = 0.1575413331554182687;
  q = q * f - 0.1661050944509745778;
  q = q * f + 0.1235629289627197442;
  q = q * f - 0.1374611514538596535;
  q = q * f + 0.1608912189573457551;
  q = q * f - 0.1808060595757287033;
  q = q * f + 0.2060759734329512368;
  q = q * f - 0.2404336605261034997;
  q = q * f + 0.2885394417608689783;
  q = q * f - 0.3606739786165077992;
  q = q * f + 0.4808983439607957964;
  q = q * f - 0.7213475195692557511;
  q = q * f + 1.442695040892336189;
  b = b < 1e20 ? b : 1e20;
  b = b > -1e20 ? b : -1e20;
  double c = b * (q * f + exponent_value_f64(i));
  c = c < 200.0 ? c : 200.0;
  c = c > -200.0 ? c : -200.0;
  double t = c + (MAGIC_F64 + 1023.0), r = c - (t - (MAGIC_F64 + 1023.0));
  double p = 0.000153224873389;
  p = p * r + 0.0013397282012;
  p = p * r + 0.00961856046353;
  p = p * r + 0.055503381891;
  p = p * r + 0.240226467453;
  p = p * r + 0.693147198207;
  p = p * r + 1.0;
  return (float)pow_edges_f64(x, y, p * float_of_u64(bits_of_f64(t) << 52));
}

/* a b - p for the rounded product p = a b: exact. */
static inline double product_error_f64(double a, double b, double p) {
#ifdef HAS_FMA
  return __builtin_fma(a, b, -p);
#else /* Dekker; |a|, |b| < 2^996 */
  double u = 134217729.0 * a, v = 134217729.0 * b;
  double ah = u - (u - a), al = a - ah, bh = v - (v - b), bl = b - bh;
  return ((ah * bh - p) + ah * bl + al * bh) + al * bl;
#endif
}

/* f64: log|x| as a sum of two doubles, 2 s + s z (2/3 + z T(z)), s = f / (2 + f), z = s^2, T of degree 6: the terms
 * that matter to 2^-63 are carried with their rounding errors (_l), T is not.  Then exp(h + l), of degree 11. */
static inline double pow_f64(double x, double y) {
  double a = abs_f64(x);
  int denormal = a < 0x1p-1022;
  a = denormal ? a * 0x1p52 : a;
  uint64_t i = exponent_f64(a);
  double e = exponent_value_f64(i) - (denormal ? 52.0 : 0.0), f = float_of_u64(bits_of_f64(a) - i) - 1.0;
  double d = 2.0 + f, d_l = f - (d - 2.0), inverse = 1.0 / d;
  double s = f * inverse, sd = s * d, s_l = (((f - sd) - product_error_f64(s, d, sd)) - s * d_l) * inverse;
  double z = s * s, z_l = product_error_f64(s, s, z) + 2.0 * s * s_l;
  double w = 0.1319636161232383509;
  w = w * z + 0.1325681398721867137;
  w = w * z + 0.1538675750418516843;
  w = w * z + 0.1818178436305593877;
  w = w * z + 0.2222222251997383081;
  w = w * z + 0.2857142857009925823;
  w = w * z + 0.4000000000000225678;
  double zw = z * w, g = 0x1.5555555555555p-1 + zw;
  double g_l = (zw - (g - 0x1.5555555555555p-1)) + 0x1.5555555555555p-55;
  double zg = z * g, zg_l = product_error_f64(z, g, zg) + (z * g_l + z_l * g);
  double k = 2.0 + zg, k_l = (zg - (k - 2.0)) + zg_l;
  double m = s * k, m_l = product_error_f64(s, k, m) + (s * k_l + s_l * k);
  double n2 = e * LN2_HI_F64, h = n2 + m, l = (m - (h - n2)) + (m_l + e * LN2_LO_F64);

  double b = y < 1e20 ? y : 1e20;
  b = b > -1e20 ? b : -1e20;
  double v = b * h, v_l = product_error_f64(b, h, v) + b * l;
  double c = v < 710.0 ? v : 710.0;
  c = c > -745.5 ? c : -745.5;
  v_l = c == v ? v_l : 0.0;
  double t = c * LOG2E_F64 + SCALE_MAGIC_F64, n = t - SCALE_MAGIC_F64;
  double r = c - n * LN2_HI_F64;
  r = r + (v_l - n * LN2_LO_F64);
  double p = 2.50000785845360424e-8;
  p = p * r + 2.76302350183835584e-7;
  p = p * r + 2.75575862535890306e-6;
  p = p * r + 2.48014931334135147e-5;
  p = p * r + 1.98412695067858909e-4;
  p = p * r + 1.38888889436000483e-3;
  p = p * r + 8.33333333349433388e-3;
  p = p * r + 4.16666666665302584e-2;
  p = p * r + 0.166666666666664128;
  p = p * r + 0.500000000000001062;
  p = p * r + 1.0;
  p = p * r + 1.0;
  double o = scale_f64(p, t);
  return pow_edges_f64(x, y, o == o ? o : INF_F64); /* n = 1024 and r >= 0 have given a NaN's bits */
}

/* ---- hyperbolic tangent, error function ------------------------------------------------------------------------ */

/* tanh|x| = q / (q + 2), q = expm1(2|x|); tanh is 1 beyond the clamp, which lets NaN through.  In f32, where the
 * quotient alone would be 2.6 ulp off, x + x z P(z), z = x^2, P of degree 4, below 0.65. */
static inline float tanh_f32(float x) {
  float a = abs_f32(x);
  a = a > 10.0f ? 10.0f : a;
  float q = expm1_core_f32(2.0f * a), z = a * a;
  float p = -0.00551515804293492874f;
  p = p * z + 0.02046941844937929415f;
  p = p * z - 0.05368802517452697789f;
  p = p * z + 0.1333083044015441662f;
  p = p * z - 0.3333325985872968063f;
  return with_sign_f32(a < 0.65f ? p * (z * a) + a : q / (q + 2.0f), x);
}
static inline double tanh_f64(double x) {
  double a = abs_f64(x);
  a = a > 20.0 ? 20.0 : a;
  double q = expm1_core_f64(2.0 * a), y = q / (q + 2.0);
  return with_sign_f64(a < 0x1p-27 ? a : y, x);
}

/* erf|x| = x + x P(x^2) below 1, P of degree 6 (11 in f64); 1 - exp(-Q(x)) above, Q of degree 7 (15), which is 1 beyond
 * the clamp. */
static inline float erf_f32(float x) {
  float a = abs_f32(x);
  a = a > 4.0f ? 4.0f : a;
  float z = a * a;
  float p = 0.00007853838355715854898f;
  p = p * z - 0.000801018744722983412f;
  p = p * z + 0.005188327108442138797f;
  p = p * z - 0.02685381173461032643f;
  p = p * z + 0.1128358514810514677f;
  p = p * z - 0.3761262582488186024f;
  p = p * z + 0.1283791657269216668f;
  float q = 0.00002169755929742745373f;
  q = q * a - 0.0004414719912709805135f;
  q = q * a + 0.004205281434974292423f;
  q = q * a - 0.02521033073577787354f;
  q = q * a + 0.1084220852913748586f;
  q = q * a + 0.6332164100234566039f;
  q = q * a + 1.12958030493856917f;
  q = q * a - 0.000188466476917551244f;
  float y = a < 1.0f ? p * a + a : 1.0f - exp_f32(-q);
  return with_sign_f32(y, x);
}
static inline double erf_f64(double x) {
  double a = abs_f64(x);
  a = a > 5.95 ? 5.95 : a;
  double z = a * a;
  double p = -7.779466776387986217e-10;
  p = p * z + 1.371097912309430885e-8;
  p = p * z - 1.620631336648432957e-7;
  p = p * z + 1.644713150501782495e-6;
  p = p * z - 0.00001492471229517501664;
  p = p * z + 0.0001205529357645245204;
  p = p * z - 0.0008548325929295723135;
  p = p * z + 0.005223977606117984816;
  p = p * z - 0.02686617064311139315;
  p = p * z + 0.1128379167094418415;
  p = p * z - 0.3761263890318351952;
  p = p * z + 0.1283791670955125657;
  double q = 3.784866182655161603e-11;
  q = q * a - 1.076540940038701171e-9;
  q = q * a + 1.186607378425561055e-8;
  q = q * a - 3.992723833646735719e-8;
  q = q * a - 4.938316228856627785e-7;
  q = q * a + 8.032694223815434601e-6;
  q = q * a - 0.00006084642356715923002;
  q = q * a + 0.0003025155674610457811;
  q = q * a - 0.001042307162591408901;
  q = q * a + 0.002260396443269994682;
  q = q * a - 0.0007479558288454526274;
  q = q * a - 0.01874027648054283362;
  q = q * a + 0.1025681355793270158;
  q = q * a + 0.6366940990571688282;
  q = q * a + 1.128362503777117418;
  q = q * a + 1.735641706129803621e-6;
  double y = a < 1.0 ? p * a + a : 1.0 - exp_f64(-q);
  return with_sign_f64(y, x);
}

/* ---- trigonometry ---------------------------------------------------------------------------------------------- */

#define PI_F32 0x1.921fb6p+1f
#define PI_F64 0x1.921fb54442d18p+1
#define HALF_PI_F32 0x1.921fb6p+0f
#define HALF_PI_F64 0x1.921fb54442d18p+0

/* |x| / (2 pi) reduced to the nearest quarter turn k/4, for every finite x: 1/(2 pi) is cut in pieces of 28 bits, whose
 * products with the 24 bits of x are exact in double, and their integer parts dropped one by one.  The remainder comes
 * in radians, |r| <= pi/4; Inf gives NaN. */
static inline float quarter_turns_f32(float x, uint32_t *k) {
  static const double piece[7] = {0x1.45f306cp-3,   0x1.c9c882ap-31,  0x1.4fe13a8p-61, 0x1.f47d4dp-88,
                                  0x1.bb81b6cp-115, 0x1.4acc9ep-145, 0x1.0e4107cp-172};
  double a = abs_f32(x), h[7], turns = 0.0;
#pragma GCC unroll 7
  for (int i = 6; i >= 0; i--) {
    h[i] = a * piece[i];
    h[i] -= __builtin_rint(h[i]);
    turns += h[i];
  }
  double n = __builtin_rint(4.0 * turns);
  *k = (uint32_t)(int32_t)n;
  double r = h[0] - 0.25 * n;
#pragma GCC unroll 7
  for (int i = 1; i < 7; i++) r += h[i];
  return (float)(r * (2.0 * PI_F64));
}
/* sin(r) = r + r^3 P(r^2) and cos(r) = 1 - r^2/2 + r^4 Q(r^2), both of degree 2, exchanged for odd k and negated. */
static inline float sin_of_quarter_f32(float r, uint32_t k) {
  float z = r * r;
  float p = -0.0001951723538603633882f;
  p = p * z + 0.00833217769183791259f;
  p = p * z - 0.1666665493678329478f;
  float q = 0.00002443838267834478502f;
  q = q * z - 0.001388736694018979079f;
  q = q * z + 0.04166664685524125962f;
  q = q * z - 0.5f;
  float y = k & 1u ? q * z + 1.0f : p * (z * r) + r;
  return float_of_u32(bits_of_f32(y) ^ (k << 30 & SIGN_F32));
}
static inline float sin_f32(float x) {
  uint32_t k;
  float r = quarter_turns_f32(x, &k), y = sin_of_quarter_f32(r, k);
  return float_of_u32(bits_of_f32(y) ^ (bits_of_f32(x) & SIGN_F32));
}
static inline float cos_f32(float x) {
  uint32_t k;
  float r = quarter_turns_f32(x, &k);
  return sin_of_quarter_f32(r, k + 1u);
}
static inline double sin_f64(double x) { return __builtin_sin(x); }
static inline double cos_f64(double x) { return __builtin_cos(x); }

/* asin(s) = s + s z P(z), z = s^2 <= 1/4, P of degree 4 (11 in f64); for |x| > 1/2, asin|x| = pi/2 - 2 asin(s) with
 * s = sqrt((1 - |x|)/2).  |x| > 1 gives the square root of a negative number, NaN.  asin(s) of either case: */
static inline float asin_core_f32(float a) {
  float z = a < 0.5f ? a * a : 0.5f - 0.5f * a, s = a < 0.5f ? a : sqrt_f32(z);
  float p = 0.04221858712476008364f;
  p = p * z + 0.02414760503229058705f;
  p = p * z + 0.04547709244152172542f;
  p = p * z + 0.0749524190068763926f;
  p = p * z + 0.1666675392122991159f;
  return p * (z * s) + s;
}
static inline double asin_core_f64(double a) {
  double z = a < 0.5 ? a * a : 0.5 - 0.5 * a, s = a < 0.5 ? a : sqrt_f64(z);
  double p = 0.03195896330035447251;
  p = p * z - 0.01629407384869095833;
  p = p * z + 0.01957390840981036493;
  p = p * z + 0.006510851788696689402;
  p = p * z + 0.01217327986418949738;
  p = p * z + 0.0138845983409440744;
  p = p * z + 0.01735977112740702008;
  p = p * z + 0.02237175352132499823;
  p = p * z + 0.03038195933135638212;
  p = p * z + 0.04464285682348010529;
  p = p * z + 0.07500000000343045346;
  p = p * z + 0.1666666666666538283;
  return p * (z * s) + s;
}
static inline float asin_f32(float x) {
  float a = abs_f32(x), y = asin_core_f32(a);
  return with_sign_f32(a < 0.5f ? y : HALF_PI_F32 - 2.0f * y, x);
}
static inline double asin_f64(double x) {
  double a = abs_f64(x), y = asin_core_f64(a);
  return with_sign_f64(a < 0.5 ? y : HALF_PI_F64 - 2.0 * y, x);
}
static inline float acos_f32(float x) {
  float a = abs_f32(x), y = asin_core_f32(a);
  float large = x < 0.0f ? PI_F32 - 2.0f * y : 2.0f * y, small = HALF_PI_F32 - (x < 0.0f ? -y : y);
  return a < 0.5f ? small : large;
}
static inline double acos_f64(double x) {
  double a = abs_f64(x), y = asin_core_f64(a);
  double large = x < 0.0 ? PI_F64 - 2.0 * y : 2.0 * y, small = HALF_PI_F64 - (x < 0.0 ? -y : y);
  return a < 0.5 ? small : large;
}

/* atan(q) = q + q z P(z), z = q^2, 0 <= q <= 1, P of degree 8 (18 in f64). */
static inline float atan_core_f32(float q) {
  float z = q * q;
  float p = -0.001793618874894553176f;
  p = p * z + 0.01091459047776129155f;
  p = p * z - 0.03117781215955707938f;
  p = p * z + 0.05795755382410467025f;
  p = p * z - 0.08403447600577001894f;
  p = p * z + 0.1095218467527737301f;
  p = p * z - 0.1426424143436596565f;
  p = p * z + 0.1999854825895169098f;
  p = p * z - 0.3333329908851031096f;
  return p * (z * q) + q;
}
static inline double atan_core_f64(double q) {
  double z = q * q;
  double p = -0.00002025919101861629448;
  p = p * z + 0.0002230284875529375645;
  p = p * z - 0.001164098482475394296;
  p = p * z + 0.003856046456701391399;
  p = p * z - 0.0091846898457133402;
  p = p * z + 0.01697820812236783536;
  p = p * z - 0.02582696630134748382;
  p = p * z + 0.03406793775007513094;
  p = p * z - 0.04092645500438913776;
  p = p * z + 0.04673952816283278184;
  p = p * z - 0.05239234083219074256;
  p = p * z + 0.05877308047794811748;
  p = p * z - 0.0666586041595869545;
  p = p * z + 0.07692212937902286704;
  p = p * z - 0.09090901236115604851;
  p = p * z + 0.1111111067879595448;
  p = p * z - 0.1428571427133665752;
  p = p * z + 0.1999999999975505648;
  p = p * z - 0.3333333333333185907;
  return p * (z * q) + q;
}
static inline float atan_f32(float x) {
  float a = abs_f32(x), y = atan_core_f32(a > 1.0f ? 1.0f / a : a);
  return with_sign_f32(a > 1.0f ? HALF_PI_F32 - y : y, x);
}
static inline double atan_f64(double x) {
  double a = abs_f64(x), y = atan_core_f64(a > 1.0 ? 1.0 / a : a);
  return with_sign_f64(a > 1.0 ? HALF_PI_F64 - y : y, x);
}
/* atan2: of the smaller over the larger; 0/0 counts as 0 and Inf/Inf as 1, as in C99. */
static inline float atan2_f32(float y, float x) {
  float a = abs_f32(y), b = abs_f32(x);
  float q = (a < b ? a : b) / (a < b ? b : a);
  q = a == b ? (a == 0.0f ? 0.0f : 1.0f) : q;
  float t = atan_core_f32(q);
  t = a > b ? HALF_PI_F32 - t : t;
  t = bits_of_f32(x) & SIGN_F32 ? PI_F32 - t : t;
  return __builtin_isunordered(x, y) ? x + y : with_sign_f32(t, y);
}
static inline double atan2_f64(double y, double x) {
  double a = abs_f64(y), b = abs_f64(x);
  double q = (a < b ? a : b) / (a < b ? b : a);
  q = a == b ? (a == 0.0 ? 0.0 : 1.0) : q;
  double t = atan_core_f64(q);
  t = a > b ? HALF_PI_F64 - t : t;
  t = bits_of_f64(x) & SIGN_F64 ? PI_F64 - t : t;
  return __builtin_isunordered(x, y) ? x + y : with_sign_f64(t, y);
}

#endif
