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

// log(1 + x) for -1 < x <= 0. With y = 1 + x = 2^e m, m in [0.75, 1.5), it is e ln2 + log(m);
// where e is 0, m - 1 is x itself, so nothing is lost to the rounding of y. The polynomial in
// m - 1 is Chebyshev's, to 2e-8.
inline V log1p(V x) {
  V y = _mm512_add_ps(set(1.0f), x);
  V m = _mm512_getmant_ps(y, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  V e = _mm512_getexp_ps(y);
  __mmask16 large = _mm512_cmp_ps_mask(m, set(1.5f), _CMP_GE_OQ);
  m = _mm512_mask_mul_ps(m, large, m, set(0.5f));
  e = _mm512_mask_add_ps(e, large, e, set(1.0f));
  __mmask16 whole = _mm512_cmp_ps_mask(e, _mm512_setzero_ps(), _CMP_EQ_OQ);
  V f = _mm512_mask_mov_ps(_mm512_sub_ps(m, set(1.0f)), whole, x);
  V p = set(-4.4713844e-2f);
  p = _mm512_fmadd_ps(p, f, set(1.045625e-1f));
  p = _mm512_fmadd_ps(p, f, set(-1.3191901e-1f));
  p = _mm512_fmadd_ps(p, f, set(1.4492492e-1f));
  p = _mm512_fmadd_ps(p, f, set(-1.6645353e-1f));
  p = _mm512_fmadd_ps(p, f, set(1.9989294e-1f));
  p = _mm512_fmadd_ps(p, f, set(-2.5000092e-1f));
  p = _mm512_fmadd_ps(p, f, set(3.3333501e-1f));
  p = _mm512_fmadd_ps(p, f, set(-0.5f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, f), f, f);
  return _mm512_fmadd_ps(e, set(0.693147181f), p);
}

}  // namespace vec
