/* bf16 numbers: views of tensors of them, their rounding, and a power that C vectorises. */
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512")
#include <immintrin.h>
#endif

typedef uint16_t bf16;

typedef struct { /* [B, heads, T, width]; each vector in one piece */
    bf16 *data;
    int64_t batch_stride, head_stride, token_stride, width;
} View;

static inline bf16 *vector(View x, int64_t b, int64_t head, int64_t t) {
    return x.data + b * x.batch_stride + head * x.head_stride + t * x.token_stride;
}

static inline float wide(bf16 value) { /* a bf16 is the upper half of an fp32 */
    uint32_t bits = (uint32_t)value << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline bf16 narrow(float number) { /* to the nearest; halfway, to the even one */
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return number != number ? 0x7fc0 : (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* `count`, a multiple of 32, numbers rounded. */
static inline void narrow_all(bf16 *to, const float *from, int count) {
#ifdef __AVX512BF16__
    for (int i = 0; i < count; i += 32)
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i)));
#else
    for (int i = 0; i < count; i++) to[i] = narrow(from[i]);
#endif
}

/* 2^x of a finite x up to 127, to 3e-7 of it; 0 where that is below 2^-126. The bound is set to integers, whose comparison
   the compiler vectorises best. */
static inline float power_of_two(float x) {
    const float shifted = x + 12582912.f, f = x - (shifted - 12582912.f); /* 1.5 x 2^23: x is rounded to a whole number */
    int32_t bits; /* 0x4b400000 and that number */
    float whole;
    memcpy(&bits, &shifted, sizeof bits);
    bits = bits > 0x4b400000 - 127 ? bits : 0x4b400000 - 127;
    bits = (int32_t)(((uint32_t)bits << 23) + 0x3f800000);
    memcpy(&whole, &bits, sizeof whole);
    return whole * (1 + f * (.693147182f + f * (.240226462f + f * (.0555032730f + f * (.00967884250f + f * .00132647192f)))));
}
