// Sixteen exponentials or logarithms at a time, to a few units in the last place.
#pragma once
#include <immintrin.h>

namespace vec {

using V = __m512;

inline V set(float x) { return _mm512_set1_ps(x); }

// exp(r) - 1 for |r| <= ln2/2, and the power of two that was split off; x <= 0, -inf included.
inline V reduced_expm1(V x, V &power) {
  // Operand order matters: max returns its second operand for NaN, which must not be swallowed.
  x = _mm512_max_ps(set(-120.0f), x);
  power = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)), 0);
  V r = _mm512_fnmadd_ps(power, set(0.693359375f), x);
  r = _mm512_fnmadd_ps(power, set(-2.12194440e-4f), r);
  V s = set(1.9841270e-4f);
  s = _mm512_fmadd_ps(s, r, set(1.3888889e-3f));
  s = _mm512_fmadd_ps(s, r, set(8.3333333e-3f));
  s = _mm512_fmadd_ps(s, r, set(4.1666667e-2f));
  s = _mm512_fmadd_ps(s, r, set(1.6666667e-1f));
  s = _mm512_fmadd_ps(s, r, set(0.5f));
  return _mm512_fmadd_ps(_mm512_mul_ps(s, r), r, r);
}

inline V exp(V x) {
  V power;
  V tail = reduced_expm1(x, power);
  return _mm512_scalef_ps(_mm512_add_ps(tail, set(1.0f)), power);
}

// For x <= 0.
inline V expm1(V x) {
  V power;
  V tail = reduced_expm1(x, power);
  V scale = _mm512_scalef_ps(set(1.0f), power);
  return _mm512_fmadd_ps(scale, tail, _mm512_sub_ps(scale, set(1.0f)));
}

// log(1 + x) for -1 < x <= 0: with y = 1 + x rounded and y = 2^e m, m near 1, the rounding
// error of y is put back to first order.
inline V log1p(V x) {
  V y = _mm512_add_ps(set(1.0f), x);
  V lost = _mm512_sub_ps(x, _mm512_sub_ps(y, set(1.0f)));
  V m = _mm512_getmant_ps(y, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  V e = _mm512_getexp_ps(_mm512_div_ps(y, m));
  V f = _mm512_sub_ps(m, set(1.0f));
  // log(m) = 2 atanh(s), s = f / (2 + f), |s| <= 0.2
  V s = _mm512_div_ps(f, _mm512_add_ps(f, set(2.0f)));
  V q = _mm512_mul_ps(s, s);
  V p = set(0.18181818f);
  p = _mm512_fmadd_ps(p, q, set(0.22222222f));
  p = _mm512_fmadd_ps(p, q, set(0.28571429f));
  p = _mm512_fmadd_ps(p, q, set(0.4f));
  p = _mm512_fmadd_ps(p, q, set(0.66666667f));
  p = _mm512_mul_ps(p, q);
  // 2 s = f - s f, which keeps the leading term exact for small f.
  V r = _mm512_fmadd_ps(s, p, _mm512_fnmadd_ps(s, f, f));
  r = _mm512_fmadd_ps(e, set(0.693147181f), r);
  return _mm512_add_ps(r, _mm512_div_ps(lost, y));
}

}  // namespace vec
