// Matrix products with float32 results, of bfloat16 (two factors to a 32-bit lane) or float32.
//
// A lane is 32 bits: one float, or two bfloat16 that are neighbours in the summed dimension. The
// micro-kernel multiplies MR rows of A, read lane by lane and broadcast, with a packed panel of B,
// WIDTH columns wide, held in registers of 16 lanes.
#pragma once
#include <algorithm>
#include <cstring>

#include "lanes.h"
#include "tasks.h"

namespace gemm {

using bf16 = uint16_t;
using vec::first;
constexpr int MR = 8, NV = 3, WIDTH = 16 * NV;

template <class E>
constexpr int PER_LANE = 4 / sizeof(E);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class E>
inline __m512 multiply_add(__m512 sum, __m512i a, __m512 b) {
#ifdef __AVX512BF16__
  if constexpr (sizeof(E) == 2)
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_castps_si512(b));
#endif
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), b, sum);
}

struct Tile {
  const uint32_t *a;
  int64_t row, step;  // lanes from one row of A to the next, and from one step of the sum
  float *c;
  int64_t ldc;
  int64_t columns;   // that exist, up to WIDTH
  const float *bias;  // one a column, padded to WIDTH, or null
  bool add, stream;
};

// Longest sum in one go, in lanes: of float32 a longer one is added up from parts, as its rounding
// grows with its length. What bfloat16 loses is in the factors.
template <class E>
constexpr int64_t PART = sizeof(E) == 4 ? 96 : INT64_MAX;

template <class E, int ROWS>
inline void micro(const Tile &t, int64_t lanes, const uint32_t *panel) {
  __m512 sum[ROWS][NV];
  alignas(64) float before[ROWS][WIDTH];
  const uint32_t *a = t.a;
  for (int64_t done = 0; done < lanes; done += PART<E>) {
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < NV; j++) {
        if (done) _mm512_store_ps(before[i] + 16 * j, sum[i][j]);
        sum[i][j] = _mm512_setzero_ps();
      }
    int64_t part = std::min(lanes - done, PART<E>);
    for (int64_t k = 0; k < part; k++, a += t.step, panel += WIDTH) {
      __m512 b[NV];
      for (int j = 0; j < NV; j++) b[j] = _mm512_load_ps((const float *)panel + 16 * j);
      for (int i = 0; i < ROWS; i++) {
        __m512i broadcast = _mm512_set1_epi32((int)a[i * t.row]);
        for (int j = 0; j < NV; j++) sum[i][j] = multiply_add<E>(sum[i][j], broadcast, b[j]);
      }
    }
    if (done)
      for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < NV; j++)
          sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_load_ps(before[i] + 16 * j));
    if (lanes - done <= PART<E>) break;
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < NV; j++) {
      float *c = t.c + i * t.ldc + 16 * j;
      __m512 value = sum[i][j];
      if (t.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(t.bias + 16 * j));
      __mmask16 m = first(t.columns - 16 * j);
      if (t.add) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(m, c));
      if (t.stream && m == 0xffff)
        _mm512_stream_ps(c, value);
      else
        _mm512_mask_storeu_ps(c, m, value);
    }
}

template <class E>
inline void tile(Tile t, int64_t rows, int64_t lanes, const uint32_t *panel) {
  for (; rows >= MR; rows -= MR, t.a += MR * t.row, t.c += MR * t.ldc)
    micro<E, MR>(t, lanes, panel);
  switch (rows) {
    case 7: return micro<E, 7>(t, lanes, panel);
    case 6: return micro<E, 6>(t, lanes, panel);
    case 5: return micro<E, 5>(t, lanes, panel);
    case 4: return micro<E, 4>(t, lanes, panel);
    case 3: return micro<E, 3>(t, lanes, panel);
    case 2: return micro<E, 2>(t, lanes, panel);
    case 1: return micro<E, 1>(t, lanes, panel);
  }
}

// Sixteen elements of a row as E, converted from S; the lower half of the register for bfloat16.
template <class S>
inline __m512 load_float(const S *p, __mmask16 m) {
  if constexpr (sizeof(S) == 4) return _mm512_maskz_loadu_ps(m, p);
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

template <class S>
inline __m256i load_bf16(const S *p, __mmask16 m) {
  if constexpr (sizeof(S) == 2) return _mm256_maskz_loadu_epi16(m, p);
  return vec::round_bf16(load_float(p, m));
}

// Rows are the summed dimension: `count` rows of `columns` columns into panels of `width`
// columns, each panel [lanes][width].
template <class E, class S>
void pack_rows(const S *from, int64_t ld, int64_t count, int64_t columns, int width,
               uint32_t *to) {
  int64_t lanes = ceil_div(count, PER_LANE<E>);
  for (int64_t c = 0; c < ceil_div(columns, width) * width; c += 16) {
    uint32_t *out = to + c / width * width * lanes + c % width;
    __mmask16 m = first(columns - c);
    for (int64_t k = 0; k < lanes; k++, out += width) {
      const S *row = from + k * PER_LANE<E> * ld + c;
      __m512i lane;
      if constexpr (sizeof(E) == 4) {
        lane = _mm512_castps_si512(load_float(row, m));
      } else {
        lane = _mm512_cvtepu16_epi32(load_bf16(row, m));
        __mmask16 second = 2 * k + 1 < count ? m : 0;
        __m512i high = _mm512_cvtepu16_epi32(load_bf16(second ? row + ld : row, second));
        lane = _mm512_or_si512(lane, _mm512_slli_epi32(high, 16));
      }
      _mm512_store_si512(out, lane);
    }
  }
}

inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; i++) {
    __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    __m512i b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    __m512i d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

// Columns are the summed dimension: up to WIDTH rows into one panel [lanes][WIDTH].
template <class E, class S>
void pack_columns(const S *from, int64_t ld, int64_t rows, int64_t columns, uint32_t *panel) {
  int64_t lanes = ceil_div(columns, PER_LANE<E>);
  for (int block = 0; block < WIDTH; block += 16)
    for (int64_t k = 0; k < lanes; k += 16) {
      __m512i r[16];
      int64_t at = k * PER_LANE<E>, left = columns - at;
      for (int i = 0; i < 16; i++) {
        if (block + i >= rows) {
          r[i] = _mm512_setzero_si512();
          continue;
        }
        const S *row = from + (block + i) * ld + at;
        if constexpr (sizeof(E) == 4) {
          r[i] = _mm512_castps_si512(load_float(row, first(left)));
        } else {
          __m256i low = load_bf16(row, first(left));
          __m256i high = left > 16 ? load_bf16(row + 16, first(left - 16)) : _mm256_setzero_si256();
          r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
      }
      transpose(r);
      for (int64_t i = 0; i < std::min<int64_t>(16, lanes - k); i++)
        _mm512_store_si512(panel + (k + i) * WIDTH + block, r[i]);
    }
}

// logits[C, V] = hidden[C, H] head[V, H]^T + bias. `hidden` is padded to whole lanes.
template <class E, class S>
void project(const uint32_t *hidden, const S *head, int64_t head_ld, const float *bias, float *out,
             int64_t ld, int64_t C, int64_t H, int64_t V, int threads) {
  int64_t lanes = ceil_div(H, PER_LANE<E>);
  tasks::run(ceil_div(V, WIDTH), threads, [&](int64_t at) {
    int64_t v = at * WIDTH, columns = std::min<int64_t>(WIDTH, V - v);
    auto *panel = (uint32_t *)tasks::scratch<0>(lanes * WIDTH * 4);
    pack_columns<E>(head + v * head_ld, head_ld, columns, H, panel);
    float padded[WIDTH] = {0};
    if (bias) std::memcpy(padded, bias + v, columns * sizeof(float));
    Tile t{hidden, lanes, 1, out + v, ld, columns, bias ? padded : nullptr, false, true};
    tile<E>(t, C, lanes, panel);
    _mm_sfence();
  });
}

// out[C, H] = gradient[C, V] head[V, H]. A task is a group of rows times a group of panels.
template <class E, class S>
void hidden_gradient(const uint32_t *gradient, int64_t row, const S *head, int64_t head_ld,
                     float *out, int64_t C, int64_t H, int64_t V, int threads) {
  constexpr int64_t BLOCK = 256;
  int64_t panels = ceil_div(H, WIDTH), row_groups = 1, panel_groups = 1;
  // The division whose slowest thread has least to do. A task packs its panels of the head anew,
  // at the cost of some PACKING rows, and its rows of the gradient stay in a cache.
  constexpr int64_t PACKING = 32, CACHED = 256;
  int64_t least = INT64_MAX;
  for (int64_t r = ceil_div(C, CACHED); r <= ceil_div(C, 32); r++)
    for (int64_t p = 1; p <= panels; p++) {
      int64_t turns = ceil_div(r * p, threads), share = ceil_div(panels, p);
      int64_t cost = turns * share * (ceil_div(ceil_div(C, r), MR) * MR + PACKING);
      if (cost < least) least = cost, row_groups = r, panel_groups = p;
    }
  int64_t rows = ceil_div(ceil_div(C, row_groups), MR) * MR;
  row_groups = ceil_div(C, rows);
  int64_t share = ceil_div(panels, panel_groups);
  tasks::run(row_groups * panel_groups, threads, [&](int64_t at) {
    int64_t r = at % row_groups * rows, first = at / row_groups * share * WIDTH;
    int64_t count = std::min(rows, C - r), columns = std::min(share * WIDTH, H - first);
    if (columns <= 0) return;
    auto *packed = (uint32_t *)tasks::scratch<0>(
        ceil_div(BLOCK, PER_LANE<E>) * ceil_div(columns, WIDTH) * WIDTH * 4);
    for (int64_t v = 0; v < V; v += BLOCK) {
      int64_t depth = std::min(BLOCK, V - v), lanes = ceil_div(depth, PER_LANE<E>);
      pack_rows<E>(head + v * head_ld + first, head_ld, depth, columns, WIDTH, packed);
      for (int64_t h = 0; h < columns; h += WIDTH) {
        Tile t{gradient + r * row + v / PER_LANE<E>, row, 1, out + r * H + first + h, H,
               std::min<int64_t>(WIDTH, columns - h), nullptr, v > 0, false};
        tile<E>(t, count, lanes, packed + h * lanes);
      }
    }
  });
}

// out[V, H] (+)= gradient[C, V]^T hidden[C, H]
template <class E>
void weight_gradient(const E *gradient, int64_t ld, const E *hidden, int64_t hidden_ld, float *out,
                     int64_t C, int64_t H, int64_t V, bool first, int threads) {
  constexpr int64_t ROWS = 128;
  int64_t lanes = ceil_div(C, PER_LANE<E>);
  auto *packed = (uint32_t *)tasks::scratch<1>(lanes * ceil_div(H, WIDTH) * WIDTH * 4);
  pack_rows<E>(hidden, hidden_ld, C, H, WIDTH, packed);
  tasks::run(ceil_div(V, ROWS), threads, [&](int64_t at) {
    int64_t v = at * ROWS, rows = std::min(ROWS, V - v);
    auto *turned = (uint32_t *)tasks::scratch<0>(lanes * ROWS * 4);
    pack_rows<E>(gradient + v, ld, C, rows, 16, turned);
    for (int64_t h = 0; h < H; h += WIDTH)
      for (int64_t r = 0; r < rows; r += 16) {
        Tile t{turned + r * lanes, 1, 16, out + (v + r) * H + h, H,
               std::min<int64_t>(WIDTH, H - h), nullptr, !first, false};
        tile<E>(t, std::min<int64_t>(16, rows - r), lanes, packed + h * lanes);
      }
  });
}

}  // namespace gemm
