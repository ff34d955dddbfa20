/* y = x W^T + b for one to four vectors x, where every number of W is read once: generating a token on a CPU is little else.

   x is [M, K], W [N, K], b [N] or NULL, y [M, N], all contiguous; x is fp32, the others fp32 (gemv_float32) or bf16
   (gemv_bfloat16). Sums are made in fp32. */
#include <stdint.h>
#include <string.h>

#define LANES 32  /* partial sums that are made side by side */
#define AHEAD 512 /* numbers: how long before its use memory is asked for; the hardware by itself asks too late */

static inline float read_float32(float value) { return value; }
static inline float write_float32(float value) { return value; }

static inline float read_bfloat16(uint16_t value) { /* the upper half of an fp32 */
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline uint16_t write_bfloat16(float wide) { /* to the nearest; halfway, to the even one */
    uint32_t bits;
    memcpy(&bits, &wide, sizeof bits);
    return wide != wide ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* M is written out below, so that the compiler keeps all sums in registers. */
#define GEMV(NAME, TYPE)                                                                                           \
    static inline __attribute__((always_inline)) void dots_##NAME(                                                 \
        const float *x, const TYPE *row, float bias, TYPE *y, const int M, int64_t N, int64_t K) {                 \
        float sums[4][LANES] = {0};                                                                                \
        int64_t k = 0;                                                                                             \
        for (; k + LANES <= K; k += LANES) {                                                                       \
            for (int i = 0; i < LANES; i += 16) __builtin_prefetch(row + k + AHEAD + i);                           \
            for (int i = 0; i < LANES; i++)                                                                        \
                for (int m = 0; m < M; m++) sums[m][i] += read_##NAME(row[k + i]) * x[m * K + k + i];              \
        }                                                                                                          \
        for (int m = 0; m < M; m++) {                                                                              \
            float sum = bias;                                                                                      \
            for (int i = 0; i < LANES; i++) sum += sums[m][i];                                                     \
            for (int64_t rest = k; rest < K; rest++) sum += read_##NAME(row[rest]) * x[m * K + rest];              \
            y[m * N] = write_##NAME(sum);                                                                          \
        }                                                                                                          \
    }                                                                                                              \
                                                                                                                   \
    void gemv_##NAME(const float *x, const TYPE *w, const TYPE *b, TYPE *y, int64_t M, int64_t N, int64_t K) {     \
        _Pragma("omp parallel for schedule(static)") for (int64_t n = 0; n < N; n++) {                             \
            float bias = b ? read_##NAME(b[n]) : 0;                                                                \
            switch (M) {                                                                                           \
                case 1: dots_##NAME(x, w + n * K, bias, y + n, 1, N, K); break;                                    \
                case 2: dots_##NAME(x, w + n * K, bias, y + n, 2, N, K); break;                                    \
                case 3: dots_##NAME(x, w + n * K, bias, y + n, 3, N, K); break;                                    \
                case 4: dots_##NAME(x, w + n * K, bias, y + n, 4, N, K); break;                                    \
            }                                                                                                      \
        }                                                                                                          \
    }

GEMV(float32, float)
GEMV(bfloat16, uint16_t)
