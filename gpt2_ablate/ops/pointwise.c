/* What is done to each number, or to each pair of channels, by itself: bf16 in and out, fp32 between. */
#include "bf16.h"

enum { CHUNK = 1024 };

/* GELU by its tanh, x (1 + tanh u) / 2 = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), in place of x; and its
   derivative, in place of d. Beyond 10 the two are what they are at 10, to 1e-36. */
static inline void gelu_and_derivative(float *x, float *d) {
    const float least = *x < -10 ? -10 : *x, bounded = least > 10 ? 10 : least, square = bounded * bounded;
    const float s = 1 / (1 + power_of_two(bounded * (-2.30220819f - .102943240f * square))); /* of 2: times log2(e) */
    *d = s + bounded * s * (1 - s) * (1.59576912f + .214064403f * square);
    *x = least * s;
}

/* y = gelu(x); or, where there is dy, y = dy gelu'(x). */
void gelu(const bf16 *x, const bf16 *dy, bf16 *y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < count; start += CHUNK) {
        const int size = (int)(count - start < CHUNK ? count - start : CHUNK);
        float values[CHUNK], derivatives[CHUNK];
        for (int i = 0; i < size; i++) values[i] = wide(x[start + i]);
        for (int i = 0; i < size; i++) gelu_and_derivative(values + i, derivatives + i);
        if (dy)
            for (int i = 0; i < size; i++) values[i] = derivatives[i] * wide(dy[start + i]);
        for (int i = 0; i < size; i++) y[start + i] = narrow(values[i]);
    }
}

static inline void rotate_pair(const bf16 *x, bf16 *y, int first, int second, float c, float s) {
    const float a = wide(x[first]), b = wide(x[second]);
    y[first] = narrow(a * c - b * s);
    y[second] = narrow(b * c + a * s);
}

/* Pairs of channels of x, neighbours or one of either half, rotated by angles whose cosines and sines are [B or 1, T, width / 2];
   back, where `sign` is -1. */
void rotate(const View *x, const View *y, const float *cosines, const float *sines, int64_t B, int64_t heads, int64_t T,
            int64_t table_stride, int64_t is_interleaved, int64_t sign) {
    const int half = (int)x->width / 2;
    const float direction = (float)sign;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < B * T; n++) {
        const int64_t b = n / T, t = n % T;
        const float *c = cosines + b * table_stride + t * half, *s = sines + b * table_stride + t * half;
        for (int64_t h = 0; h < heads; h++) {
            const bf16 *from = vector(*x, b, h, t);
            bf16 *restrict to = vector(*y, b, h, t);
            if (is_interleaved)
                for (int i = 0; i < half; i++) rotate_pair(from, to, 2 * i, 2 * i + 1, c[i], direction * s[i]);
            else
#pragma omp simd
                for (int i = 0; i < half; i++) rotate_pair(from, to, i, i + half, c[i], direction * s[i]);
        }
    }
}
