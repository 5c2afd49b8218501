// Exponentials and logarithms of all lanes, to a few units in the last place.
#pragma once
#include "lanes.h"

namespace vec {

// exp(r) - 1 for |r| <= ln2/2, and the power of two that was split off; x <= 0, -inf included.
inline V reduced_expm1(V x, V &power) {
  // Operand order matters: max returns its second operand for NaN, which must not be swallowed.
  x = max(set(-120.0f), x);
  power = round(x * set(1.44269504f));
  V r = fnmadd(power, set(0.693359375f), x);
  r = fnmadd(power, set(-2.12194440e-4f), r);
  V s = set(1.9841270e-4f);
  s = fmadd(s, r, set(1.3888889e-3f));
  s = fmadd(s, r, set(8.3333333e-3f));
  s = fmadd(s, r, set(4.1666667e-2f));
  s = fmadd(s, r, set(1.6666667e-1f));
  s = fmadd(s, r, set(0.5f));
  return fmadd(s * r, r, r);
}

inline V exp(V x) {
  V power;
  V tail = reduced_expm1(x, power);
  return scale(tail + set(1.0f), power);
}

// For x <= 0.
inline V expm1(V x) {
  V power;
  V tail = reduced_expm1(x, power);
  V whole = scale(set(1.0f), power);
  return fmadd(whole, tail, whole - set(1.0f));
}

// log(1 + x) for -1 < x <= 0. With y = 1 + x = 2^e m, m in [0.75, 1.5), it is e ln2 + log(m);
// where e is 0, m - 1 is x itself, so nothing is lost to the rounding of y. The polynomial in
// m - 1 is Chebyshev's, to 2e-8.
inline V log1p(V x) {
  V y = set(1.0f) + x;
  V m = mantissa(y), e = exponent(y);
  Mask large = at_least(m, set(1.5f));
  m = where(large, m * set(0.5f), m);
  e = where(large, e + set(1.0f), e);
  V f = where(equal(e, zero()), x, m - set(1.0f));
  V p = set(-4.4713844e-2f);
  p = fmadd(p, f, set(1.045625e-1f));
  p = fmadd(p, f, set(-1.3191901e-1f));
  p = fmadd(p, f, set(1.4492492e-1f));
  p = fmadd(p, f, set(-1.6645353e-1f));
  p = fmadd(p, f, set(1.9989294e-1f));
  p = fmadd(p, f, set(-2.5000092e-1f));
  p = fmadd(p, f, set(3.3333501e-1f));
  p = fmadd(p, f, set(-0.5f));
  p = fmadd(p * f, f, f);
  return fmadd(e, set(0.693147181f), p);
}

}  // namespace vec
