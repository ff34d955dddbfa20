/* Products of small bf16 matrices with fp32 sums, by whatever the processor has for them: AMX tiles, AVX512's dot products of
   pairs, or plain C.

   A left factor is stored by rows. A right factor [K, N] is *paired*, as all of them want it: in tiles of 32 x 16, and in a tile
   the numbers 2p and 2p + 1 of a column side by side, as one 32-bit word; K and N are multiples of 32. */
#include "bf16.h"

/* Rows of bf16 numbers that are `stride` apart. */
typedef struct {
    const bf16 *at;
    int64_t stride;
} Rows;

/* The transpose of 16 x 16 words, or pairs of numbers, into rows that are `to_stride` numbers apart. */
static inline void transpose_words(bf16 *to, int64_t to_stride, const bf16 *rows, int64_t stride) {
#ifdef __AVX512F__
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows + i * stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) { /* lane l of r[i + j] holds column 4 l + j of rows i to i + 3 */
        __m512i even = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88), odd = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        __m512i even2 = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88), odd2 = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
        _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(even, even2, 0x88));
        _mm512_storeu_si512(to + (j + 4) * to_stride, _mm512_shuffle_i32x4(odd, odd2, 0x88));
        _mm512_storeu_si512(to + (j + 8) * to_stride, _mm512_shuffle_i32x4(even, even2, 0xdd));
        _mm512_storeu_si512(to + (j + 12) * to_stride, _mm512_shuffle_i32x4(odd, odd2, 0xdd));
    }
#else
    for (int p = 0; p < 16; p++)
        for (int c = 0; c < 16; c++) memcpy(to + p * to_stride + 2 * c, rows + c * stride + 2 * p, 4);
#endif
}

/* The transpose [K, N] of rows [N, K], paired. */
static void pair_transposed(bf16 *to, Rows rows, int N, int K) {
    for (int n = 0; n < N; n += 16)
        for (int k = 0; k < K; k += 32, to += 512) transpose_words(to, 32, rows.at + n * rows.stride + k, rows.stride);
}

/* Rows [K, N], paired. */
static void pair_rows(bf16 *to, Rows rows, int K, int N) {
    for (int n = 0; n < N; n += 16)
        for (int k = 0; k < K; k += 2, to += 32) {
            const bf16 *even = rows.at + k * rows.stride + n, *odd = even + rows.stride;
            uint32_t words[16];
            for (int c = 0; c < 16; c++) words[c] = even[c] | (uint32_t)odd[c] << 16;
            memcpy(to, words, sizeof words);
        }
}

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives the tiles' registers to a process that asks for them (arch_prctl(2): ARCH_REQ_XCOMP_PERM). */
static int has_tiles = 0;
__attribute__((constructor)) static void ask_for_tiles(void) { has_tiles = !syscall(SYS_arch_prctl, 0x1023, 18); }

static void begin_products(void) { /* in each thread */
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    if (has_tiles) _tile_loadconfig(&config);
}

static void end_products(void) {
    if (has_tiles) _tile_release();
}

static void multiply_tiles(float *c, Rows a, const bf16 *b, int M, int N, int K, int add) {
    for (int m = 0; m < M; m += 32)
        for (int n = 0; n < N; n += 32) {
            float *sums = c + m * N + n, *below = sums + 16 * N;
            if (add) {
                _tile_loadd(0, sums, 4 * N);
                _tile_loadd(1, sums + 16, 4 * N);
                _tile_loadd(2, below, 4 * N);
                _tile_loadd(3, below + 16, 4 * N);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int k = 0; k < K; k += 32) {
                const bf16 *left = a.at + m * a.stride + k, *right = b + n * K + 16 * k;
                _tile_loadd(4, left, 2 * a.stride);
                _tile_loadd(5, left + 16 * a.stride, 2 * a.stride);
                _tile_loadd(6, right, 64);
                _tile_loadd(7, right + 16 * K, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, sums, 4 * N);
            _tile_stored(1, sums + 16, 4 * N);
            _tile_stored(2, below, 4 * N);
            _tile_stored(3, below + 16, 4 * N);
        }
}
#else
static const int has_tiles = 0;
static void begin_products(void) {}
static void end_products(void) {}
static void multiply_tiles(float *c, Rows a, const bf16 *b, int M, int N, int K, int add) {}
#endif

/* c [M, N] = a [M, K] b [K, N], added to what is there or not; a by rows, b paired; M, N and K are multiples of 32. */
static void multiply(float *c, Rows a, const bf16 *b, int M, int N, int K, int add) {
    if (has_tiles) {
        multiply_tiles(c, a, b, M, N, K, add);
        return;
    }
    for (int m = 0; m < M; m += 8)
        for (int n = 0; n < N; n += 32) {
            const bf16 *left = a.at + m * a.stride, *right = b + n * K;
            float *to = c + m * N + n;
#ifdef __AVX512BF16__
            __m512 sums[8][2];
            for (int r = 0; r < 8; r++)
                for (int h = 0; h < 2; h++) sums[r][h] = add ? _mm512_loadu_ps(to + r * N + 16 * h) : _mm512_setzero_ps();
            for (int k = 0; k < K; k += 2) {
                __m512bh one = (__m512bh)_mm512_loadu_si512(right + 16 * k);
                __m512bh two = (__m512bh)_mm512_loadu_si512(right + 16 * (k + K));
                for (int r = 0; r < 8; r++) {
                    int pair;
                    memcpy(&pair, left + r * a.stride + k, sizeof pair);
                    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], (__m512bh)_mm512_set1_epi32(pair), one);
                    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], (__m512bh)_mm512_set1_epi32(pair), two);
                }
            }
            for (int r = 0; r < 8; r++)
                for (int h = 0; h < 2; h++) _mm512_storeu_ps(to + r * N + 16 * h, sums[r][h]);
#else
            for (int h = 0; h < 2; h++, right += 16 * K, to += 16)
                for (int r = 0; r < 8; r += 4) {
                    float sums[4][16] = {0};
                    for (int k = 0; k < K; k += 2) {
                        uint32_t words[16];
                        float even[16], odd[16];
                        memcpy(words, right + 16 * k, sizeof words);
                        for (int i = 0; i < 16; i++) words[i] <<= 16;
                        memcpy(even, words, sizeof words);
                        memcpy(words, right + 16 * k, sizeof words);
                        for (int i = 0; i < 16; i++) words[i] &= 0xffff0000;
                        memcpy(odd, words, sizeof words);
                        for (int s = 0; s < 4; s++) {
                            const bf16 *pair = left + (r + s) * a.stride + k;
                            float x = wide(pair[0]), y = wide(pair[1]);
                            for (int i = 0; i < 16; i++) sums[s][i] += x * even[i] + y * odd[i];
                        }
                    }
                    for (int s = 0; s < 4; s++)
                        for (int i = 0; i < 16; i++) to[(r + s) * N + i] = sums[s][i] + (add ? to[(r + s) * N + i] : 0);
                }
#endif
        }
}
