// As many floats at a time as the processor takes: sixteen with AVX-512, eight with AVX2.
// +, -, * and / are the compiler's own.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace vec {

#ifdef __AVX512F__

constexpr int LANES = 16;
using V = __m512;
using Mask = __mmask16;

inline V set(float x) { return _mm512_set1_ps(x); }
inline V zero() { return _mm512_setzero_ps(); }
inline V fmadd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V fnmadd(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
inline V abs(V x) { return _mm512_abs_ps(x); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V round(V x) { return _mm512_roundscale_ps(x, 0); }
inline float largest(V x) { return _mm512_reduce_max_ps(x); }

inline Mask at_least(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline bool any_of_both(Mask a, Mask b) { return a & b; }
inline V where(Mask m, V yes, V no) { return _mm512_mask_mov_ps(no, m, yes); }

inline Mask first(int64_t lanes) {
  return lanes >= 16 ? 0xffff : lanes <= 0 ? 0 : (1u << lanes) - 1;
}
inline V load(const float *p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
inline void store(float *p, V x) { _mm512_storeu_ps(p, x); }
inline void store(float *p, V x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }

// x 2^power, for whole powers of 0 or less.
inline V scale(V x, V power) { return _mm512_scalef_ps(x, power); }

// y = 2^exponent mantissa, mantissa in [1, 2), for y > 0.
inline V mantissa(V y) { return _mm512_getmant_ps(y, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
inline V exponent(V y) { return _mm512_getexp_ps(y); }

inline __m256i round_bf16(V x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16));
#endif
}

#else

constexpr int LANES = 8;
using V = __m256;
using Mask = __m256i;  // all bits of a lane, or none

inline V set(float x) { return _mm256_set1_ps(x); }
inline V zero() { return _mm256_setzero_ps(); }
inline V fmadd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V fnmadd(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
inline V abs(V x) { return _mm256_andnot_ps(set(-0.0f), x); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V round(V x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline float largest(V x) {
  float lanes[LANES];
  _mm256_storeu_ps(lanes, x);
  return *std::max_element(lanes, lanes + LANES);
}

inline Mask at_least(V a, V b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline Mask equal(V a, V b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline bool any_of_both(Mask a, Mask b) { return !_mm256_testz_si256(a, b); }
inline V where(Mask m, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }

inline Mask first(int64_t lanes) {
  static const int32_t edge[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  int64_t left = std::clamp<int64_t>(lanes, 0, LANES);
  return _mm256_loadu_si256((const __m256i *)(edge + LANES - left));
}
inline V load(const float *p, Mask m) { return _mm256_maskload_ps(p, m); }
inline void store(float *p, V x) { _mm256_storeu_ps(p, x); }
inline void store(float *p, V x, Mask m) { _mm256_maskstore_ps(p, m, x); }

inline V power_of_two(__m256i exponent) {
  __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

// x 2^power, for whole powers of 0 or less. In two steps, as half of float's range is below 1.
inline V scale(V x, V power) {
  __m256i whole = _mm256_cvtps_epi32(power), half = _mm256_srai_epi32(whole, 1);
  return x * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
}

// y = 2^exponent mantissa, mantissa in [1, 2), for y > 0.
inline V mantissa(V y) {
  __m256i bits = _mm256_and_si256(_mm256_castps_si256(y), _mm256_set1_epi32(0x7fffff));
  return _mm256_or_ps(_mm256_castsi256_ps(bits), set(1.0f));
}
inline V exponent(V y) {
  __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(y), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(bits, _mm256_set1_epi32(127)));
}

#endif

}  // namespace vec
