// The divergence of one token and its gradient, in three passes over its two rows of logits.
//
// Summands carry a multiple of q - p, as in measures.py: see docs/kernel.md.
#pragma once
#include <cmath>

#include "tasks.h"
#include "vecmath.h"

namespace rows {

enum Kind { FORWARD_KL, REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL, TVD };
using vec::LANES;
using vec::Mask;
using vec::V;
using vec::set;
using vec::where;

constexpr float FLOOR = -1e30f;

struct Summand {
  V loss, pull;  // of the divergence; q times its derivative by q, up to a multiple of q
};

template <int KIND>
inline Summand summand(V log_p, V log_q, V p, V q, float share) {
  const V zero = vec::zero();
  V gap = log_p - log_q, excess = q - p;
  if constexpr (KIND == FORWARD_KL) return {vec::fmadd(p, gap, excess), zero - p};
  if constexpr (KIND == REVERSE_KL) {
    V pull = vec::fnmadd(q, gap, zero);
    return {pull - excess, pull};
  }
  Mask above = vec::at_least(gap, zero);
  if constexpr (KIND == TVD) {
    V half = set(0.5f) * q;
    V pull = where(above, zero - half, half);
    return {set(0.5f) * vec::abs(excess), where(vec::equal(gap, zero), zero, pull)};
  }
  V far = vec::abs(gap);
  V t = vec::expm1(zero - far);
  V shrunk = where(above, set(1 - share), set(share)) * t;
  V near = vec::log1p(shrunk);  // log(m / max(p, q))
  V other = near + far;         // log(m / min(p, q))
  V p_over_m = zero - where(above, near, other);
  V q_over_m = zero - where(above, other, near);
  if constexpr (KIND == JSD) {
    V pull = set(1 - share) * q * q_over_m;
    return {vec::fmadd(set(share) * p, p_over_m, pull), pull};
  }
  V step = t / (set(1.0f) + shrunk);  // over m / max(p, q)
  if constexpr (KIND == SKEW_KL) {
    V change = where(above, set(share - 1), set(1 - share)) * step;  // p / m - 1
    return {vec::fmadd(p, p_over_m, set(1 - share) * excess), set(share - 1) * q * change};
  }
  V change = where(above, set(share), set(-share)) * step;  // q / m - 1
  V part = vec::fnmadd(set(1 - share), change, q_over_m);
  return {vec::fnmadd(set(share), excess, q * q_over_m), q * part};
}

struct Sum {
  V lanes[2] = {vec::zero(), vec::zero()};
  void add(V x, int which) { lanes[which] += x; }
  double total() const {
    float x[2 * LANES];
    vec::store(x, lanes[0]);
    vec::store(x + LANES, lanes[1]);
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
  Mask m = vec::first(count - v);
  return where(m, vec::load(row + v, m) * set(factor), set(-INFINITY));
}

inline float largest(const float *row, int64_t count) {
  V top[2] = {set(-INFINITY), set(-INFINITY)};
  for (int64_t v = 0; v < count; v += LANES) {
    V &lane = top[v / LANES % 2];
    lane = vec::max(lane, scaled(row, v, count, 1));
  }
  return vec::largest(vec::max(top[0], top[1]));
}

inline Normalizer normalizer(const float *row, int64_t count, float factor) {
  float top = largest(row, count) * factor;
  Sum sum;
  for (int64_t v = 0; v < count; v += LANES)
    sum.add(vec::exp(scaled(row, v, count, factor) - set(top)), v / LANES % 2);
  return {top, (float)std::log(sum.total())};
}

// Over the row itself: where factors are narrower, what is written has been read before.
template <class E>
inline void store_factor(float *row, int64_t v, V x) {
#ifdef __AVX512F__
  if constexpr (sizeof(E) == 2) {
    _mm256_storeu_si256((__m256i *)((uint16_t *)row + v), vec::round_bf16(x));
    return;
  }
#endif
  vec::store(row + v, x);
}

struct Figures {
  float loss, student_entropy, teacher_entropy, agreement;
};

struct Row {
  float *student;  // logits; written over where a gradient is wanted
  const float *teacher;
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
  // q for the last pass; here, and not over the teacher's logits, it never leaves the cache.
  auto *kept = (float *)tasks::scratch<0>(r.padded * sizeof(float));
  for (int64_t v = 0; v < r.count; v += LANES) {
    int which = v / LANES % 2;
    V z = scaled(r.student, v, r.count, factor) - set(zq.top);
    V u = scaled(r.teacher, v, r.count, factor) - set(zp.top);
    same |= vec::any_of_both(vec::equal(z, vec::zero()), vec::equal(u, vec::zero()));
    V log_q = vec::max(set(FLOOR), z - set(zq.log_sum));
    V log_p = vec::max(set(FLOOR), u - set(zp.log_sum));
    V q = vec::exp(log_q), p = vec::exp(log_p);
    Summand s = summand<KIND>(log_p, log_q, p, q, r.share);
    loss.add(s.loss, which);
    pull.add(s.pull, which);
    hq.add(q * log_q, which);
    hp.add(p * log_p, which);
    if (r.gradient) {
      vec::store(r.student + v, s.pull, vec::first(r.count - v));
      vec::store(kept + v, q);
    }
  }
  if (r.gradient) {
    // For forward_kl the sum is -1 by definition: equal rows then have a gradient of exactly 0.
    float centre = KIND == FORWARD_KL ? -1.0f : (float)pull.total();
    for (int64_t v = 0; v < r.padded; v += LANES) {
      Mask m = vec::first(r.count - v);
      V g = vec::fnmadd(set(centre), vec::load(kept + v, m), vec::load(r.student + v, m));
      store_factor<E>(r.student, v, g * set(r.scale * factor));
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
  for (int64_t v = 0; v < count; v += LANES) {
    V log_q = scaled(row, v, count, factor) - set(z.top);
    log_q = vec::max(set(FLOOR), log_q - set(z.log_sum));
    sum.add(vec::exp(log_q) * log_q, v / LANES % 2);
  }
  return {largest(row, count), z.top + z.log_sum, (float)-sum.total()};
}

template <class E>
void spread(float *row, int64_t count, int64_t padded, float factor, float log_sum, float scale) {
  if (log_sum == -INFINITY) log_sum = 0;  // of a row without mass: all its logits are -inf
  for (int64_t v = 0; v < padded; v += LANES) {
    V q = vec::exp(scaled(row, v, count, factor) - set(log_sum));
    store_factor<E>(row, v, q * set(scale));
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
