// The divergence of one token and its gradient, in three passes over its two rows of logits.
//
// Summands carry a multiple of q - p, as in measures.py: see docs/kernel.md.
#pragma once
#include <cmath>

#include "gemm.h"

namespace rows {

enum Kind { FORWARD_KL, REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL, TVD };
using vec::V;
using vec::set;

constexpr float FLOOR = -1e30f;

struct Summand {
  V loss, pull;  // of the divergence; q times its derivative by q, up to a multiple of q
};

template <int KIND>
inline Summand summand(V log_p, V log_q, V p, V q, float share) {
  V gap = _mm512_sub_ps(log_p, log_q), excess = _mm512_sub_ps(q, p);
  if constexpr (KIND == FORWARD_KL)
    return {_mm512_fmadd_ps(p, gap, excess), _mm512_sub_ps(_mm512_setzero_ps(), p)};
  if constexpr (KIND == REVERSE_KL) {
    V pull = _mm512_fnmadd_ps(q, gap, _mm512_setzero_ps());
    return {_mm512_sub_ps(pull, excess), pull};
  }
  __mmask16 above = _mm512_cmp_ps_mask(gap, _mm512_setzero_ps(), _CMP_GE_OQ);
  if constexpr (KIND == TVD) {
    V half = _mm512_mul_ps(set(0.5f), q);
    V loss = _mm512_mul_ps(set(0.5f), _mm512_abs_ps(excess));
    V pull = _mm512_mask_sub_ps(half, above, _mm512_setzero_ps(), half);
    __mmask16 tie = _mm512_cmp_ps_mask(gap, _mm512_setzero_ps(), _CMP_EQ_OQ);
    return {loss, _mm512_mask_mov_ps(pull, tie, _mm512_setzero_ps())};
  }
  V far = _mm512_abs_ps(gap);
  V t = vec::expm1(_mm512_sub_ps(_mm512_setzero_ps(), far));
  V shrunk = _mm512_mul_ps(_mm512_mask_mov_ps(set(share), above, set(1 - share)), t);
  V near = vec::log1p(shrunk);  // log(m / max(p, q))
  V other = _mm512_add_ps(near, far);  // log(m / min(p, q))
  V p_over_m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mask_mov_ps(other, above, near));
  V q_over_m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mask_mov_ps(near, above, other));
  V m = _mm512_add_ps(set(1.0f), shrunk);  // m / max(p, q)
  if constexpr (KIND == JSD) {
    V pull = _mm512_mul_ps(_mm512_mul_ps(set(1 - share), q), q_over_m);
    return {_mm512_fmadd_ps(_mm512_mul_ps(set(share), p), p_over_m, pull), pull};
  }
  V step = _mm512_div_ps(t, m);
  if constexpr (KIND == SKEW_KL) {
    V change = _mm512_mul_ps(_mm512_mask_mov_ps(set(1 - share), above, set(share - 1)), step);
    V pull = _mm512_mul_ps(_mm512_mul_ps(set(share - 1), q), change);  // change: p / m - 1
    return {_mm512_fmadd_ps(p, p_over_m, _mm512_mul_ps(set(1 - share), excess)), pull};
  }
  V change = _mm512_mul_ps(_mm512_mask_mov_ps(set(-share), above, set(share)), step);  // q / m - 1
  V part = _mm512_fnmadd_ps(set(1 - share), change, q_over_m);
  return {_mm512_fnmadd_ps(set(share), excess, _mm512_mul_ps(q, q_over_m)),
          _mm512_mul_ps(q, part)};
}

struct Sum {
  V lanes[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  void add(V x, int which) { lanes[which] = _mm512_add_ps(lanes[which], x); }
  double total() const {
    float x[32];
    _mm512_storeu_ps(x, lanes[0]);
    _mm512_storeu_ps(x + 16, lanes[1]);
    double sum = 0;
    for (float value : x) sum += value;
    return sum;
  }
};

// A row's largest scaled logit and the log of its sum of exponentials relative to it.
struct Normalizer {
  float top, log_sum;
};

inline V scaled(const float *row, int64_t v, int64_t count, float factor) {
  __mmask16 m = gemm::mask(count - v);
  return _mm512_mask_mul_ps(set(-INFINITY), m, _mm512_maskz_loadu_ps(m, row + v), set(factor));
}

inline float largest(const float *row, int64_t count) {
  V top[2] = {set(-INFINITY), set(-INFINITY)};
  for (int64_t v = 0; v < count; v += 16) {
    V &lane = top[v / 16 % 2];
    lane = _mm512_max_ps(lane, scaled(row, v, count, 1));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(top[0], top[1]));
}

inline Normalizer normalizer(const float *row, int64_t count, float factor) {
  float top = largest(row, count) * factor;
  Sum sum;
  for (int64_t v = 0; v < count; v += 16)
    sum.add(vec::exp(_mm512_sub_ps(scaled(row, v, count, factor), set(top))), v / 16 % 2);
  return {top, (float)std::log(sum.total())};
}

// Over the row itself: where factors are narrower, what is written has been read before.
template <class E>
inline void store_factor(float *row, int64_t v, V x) {
  if constexpr (sizeof(E) == 2)
    _mm256_storeu_si256((__m256i *)((gemm::bf16 *)row + v), gemm::round_bf16(x));
  else
    _mm512_storeu_ps(row + v, x);
}

struct Figures {
  float loss, student_entropy, teacher_entropy, agreement;
};

struct Row {
  float *student, *teacher;  // logits; both are written over where a gradient is wanted
  int64_t count, padded;
  float inverse_temperature, share, scale;
  bool gradient;
};

template <int KIND, class E>
Figures work(const Row &r) {
  const float factor = r.inverse_temperature;
  Normalizer zq = normalizer(r.student, r.count, factor);
  Normalizer zp = normalizer(r.teacher, r.count, factor);
  Sum loss, pull, hq, hp;
  bool same = false;
  for (int64_t v = 0; v < r.count; v += 16) {
    int which = v / 16 % 2;
    __mmask16 m = gemm::mask(r.count - v);
    V z = _mm512_sub_ps(scaled(r.student, v, r.count, factor), set(zq.top));
    V u = _mm512_sub_ps(scaled(r.teacher, v, r.count, factor), set(zp.top));
    same |= _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_EQ_OQ) &
            _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_EQ_OQ);
    V log_q = _mm512_max_ps(set(FLOOR), _mm512_sub_ps(z, set(zq.log_sum)));
    V log_p = _mm512_max_ps(set(FLOOR), _mm512_sub_ps(u, set(zp.log_sum)));
    V q = vec::exp(log_q), p = vec::exp(log_p);
    Summand s = summand<KIND>(log_p, log_q, p, q, r.share);
    loss.add(s.loss, which);
    pull.add(s.pull, which);
    hq.add(_mm512_mul_ps(q, log_q), which);
    hp.add(_mm512_mul_ps(p, log_p), which);
    if (r.gradient) {
      _mm512_mask_storeu_ps(r.student + v, m, s.pull);
      _mm512_mask_storeu_ps(r.teacher + v, m, q);
    }
  }
  if (r.gradient) {
    // For forward_kl the sum is -1 by definition: equal rows then have a gradient of exactly 0.
    float centre = KIND == FORWARD_KL ? -1.0f : (float)pull.total();
    for (int64_t v = 0; v < r.padded; v += 16) {
      __mmask16 m = gemm::mask(r.count - v);
      V q = _mm512_maskz_loadu_ps(m, r.teacher + v);
      V g = _mm512_fnmadd_ps(set(centre), q, _mm512_maskz_loadu_ps(m, r.student + v));
      g = _mm512_mul_ps(g, set(r.scale * factor));
      store_factor<E>(r.student, v, g);
    }
  }
  return {(float)loss.total(), (float)-hq.total(), (float)-hp.total(), same ? 1.0f : 0.0f};
}

struct Softmax {
  float top, log_sum, entropy;  // the largest logit as it is, the others at the temperature
};

inline Softmax softmax(const float *row, int64_t count, float factor) {
  Normalizer z = normalizer(row, count, factor);
  if (z.top == -INFINITY) return {-INFINITY, -INFINITY, 0};
  Sum sum;
  for (int64_t v = 0; v < count; v += 16) {
    V log_q = _mm512_sub_ps(scaled(row, v, count, factor), set(z.top));
    log_q = _mm512_max_ps(set(FLOOR), _mm512_sub_ps(log_q, set(z.log_sum)));
    sum.add(_mm512_mul_ps(vec::exp(log_q), log_q), v / 16 % 2);
  }
  return {largest(row, count), z.top + z.log_sum, (float)-sum.total()};
}

template <class E>
void spread(float *row, int64_t count, int64_t padded, float factor, float log_sum, float scale) {
  if (log_sum == -INFINITY) log_sum = 0;  // of a row without mass: all its logits are -inf
  for (int64_t v = 0; v < padded; v += 16) {
    V q = vec::exp(_mm512_sub_ps(scaled(row, v, count, factor), set(log_sum)));
    store_factor<E>(row, v, _mm512_mul_ps(q, set(scale)));
  }
}

template <class E>
Figures dispatch(int kind, const Row &r) {
  switch (kind) {
    case FORWARD_KL: return work<FORWARD_KL, E>(r);
    case REVERSE_KL: return work<REVERSE_KL, E>(r);
    case JSD: return work<JSD, E>(r);
    case SKEW_KL: return work<SKEW_KL, E>(r);
    case SKEW_REVERSE_KL: return work<SKEW_REVERSE_KL, E>(r);
    default: return work<TVD, E>(r);
  }
}

}  // namespace rows
