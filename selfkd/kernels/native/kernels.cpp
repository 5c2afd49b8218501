// The C interface that cpu.py calls. Sizes: C tokens, H hidden, V vocabulary; strides (ld) are
// in elements of what they belong to. `narrow`: factors are bfloat16, else float32; a head may
// be stored in either and is converted while it is packed. Products are there with AVX-512 only.
#include "rows.h"
#ifdef __AVX512F__
#include "gemm.h"
#endif

using bf16 = uint16_t;

#ifdef __AVX512BF16__
#define BY_FACTOR(CALL) \
  if (narrow) {         \
    using E = bf16;     \
    CALL;               \
  } else {              \
    using E = float;    \
    CALL;               \
  }
#else
#define BY_FACTOR(CALL) \
  {                     \
    using E = float;    \
    CALL;               \
  }
#endif

#define BY_HEAD(CALL)              \
  if (head_is_bf16) {              \
    auto *head = (const bf16 *)w;  \
    CALL;                          \
  } else {                         \
    auto *head = (const float *)w; \
    CALL;                          \
  }

extern "C" {

#ifdef __AVX512F__
void selfkd_project(int narrow, int head_is_bf16, const void *hidden, const void *w,
                    int64_t head_ld, const float *bias, float *out, int64_t ld, int64_t C,
                    int64_t H, int64_t V, int threads) {
  BY_FACTOR(BY_HEAD((gemm::project<E>((const uint32_t *)hidden, head, head_ld, bias, out, ld, C, H,
                                      V, threads))))
}

void selfkd_hidden_gradient(int narrow, int head_is_bf16, const void *gradient, int64_t lane_ld,
                            const void *w, int64_t head_ld, float *out, int64_t C, int64_t H,
                            int64_t V, int threads) {
  BY_FACTOR(BY_HEAD((gemm::hidden_gradient<E>((const uint32_t *)gradient, lane_ld, head, head_ld,
                                              out, C, H, V, threads))))
}

void selfkd_weight_gradient(int narrow, const void *gradient, int64_t ld, const void *hidden,
                            int64_t hidden_ld, float *out, int64_t C, int64_t H, int64_t V,
                            int first, int threads) {
  BY_FACTOR((gemm::weight_gradient<E>((const E *)gradient, ld, (const E *)hidden, hidden_ld, out,
                                      C, H, V, first, threads)))
}
#endif

// Figures is [4, C]: loss, student entropy, teacher entropy, agreement.
void selfkd_rows(int narrow, int kind, float share, float inverse_temperature, float *student,
                 const float *teacher, int64_t ld, const float *scale, float *figures, int64_t C,
                 int64_t V, int64_t padded, int gradient, int threads) {
  tasks::run(C, threads, [&](int64_t c) {
    rows::Row row{student + c * ld, teacher + c * ld, V, padded, inverse_temperature, share,
                  scale[c], (bool)gradient};
    rows::Figures f;
    BY_FACTOR(f = rows::dispatch<E>(kind, row))
    figures[c] = f.loss;
    figures[C + c] = f.student_entropy;
    figures[2 * C + c] = f.teacher_entropy;
    figures[3 * C + c] = f.agreement;
  });
}

// Figures is [3, C]: largest logit, log of the sum of exponentials, entropy.
void selfkd_softmax(float inverse_temperature, const float *logits, int64_t ld, float *figures,
                    int64_t C, int64_t V, int threads) {
  tasks::run(C, threads, [&](int64_t c) {
    rows::Softmax s = rows::softmax(logits + c * ld, V, inverse_temperature);
    figures[c] = s.top;
    figures[C + c] = s.log_sum;
    figures[2 * C + c] = s.entropy;
  });
}

void selfkd_spread(int narrow, float inverse_temperature, float *logits, int64_t ld,
                   const float *log_sum, const float *factor, int64_t C, int64_t V, int64_t padded,
                   int threads) {
  tasks::run(C, threads, [&](int64_t c) {
    BY_FACTOR((rows::spread<E>(logits + c * ld, V, padded, inverse_temperature, log_sum[c],
                               factor[c])))
  });
}
}
