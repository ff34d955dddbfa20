/* The products of a linear layer with few weights, of bf16 vectors and fp32 weights: x [M, K], w [N, K], y [M, N], and their
   gradients; M, N and K are multiples of 32. */
#include "tiles.h"

enum { ROWS = 32, COLUMNS = 128 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The tile of 32 x 32 numbers at row k and column n of a right factor, paired, from fp32 w: that [K, N], or its transpose. */
static void pair_tile(bf16 *paired, const float *w, int64_t k, int64_t n, int64_t K, int64_t N, int64_t is_transpose) {
    bf16 tile[32 * 32];
    for (int64_t r = 0; r < 32; r++) narrow_all(tile + r * 32, is_transpose ? w + (n + r) * K + k : w + (k + r) * N + n, 32);
    for (int64_t half = 0; half < 32; half += 16) {
        bf16 *to = paired + (n + half) * K + 16 * k;
        if (is_transpose)
            transpose_words(to, 32, tile + half * 32, 32);
        else
            pair_rows(to, (Rows){tile + half, 32}, 32, 16);
    }
}

/* y [M, N] = x [M, K] w + bias, where fp32 w is [K, N], or [N, K] if `is_transpose`; y in bf16, or in fp32 if `is_wide`.
   `paired` has room for w. */
void linear(const bf16 *x, const float *w, const float *bias, void *y, bf16 *paired, int64_t M, int64_t N, int64_t K,
            int64_t is_transpose, int64_t is_wide) {
    const int64_t across = (N + COLUMNS - 1) / COLUMNS, blocks = (M + ROWS - 1) / ROWS * across;
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n += 32)
            for (int64_t k = 0; k < K; k += 32) pair_tile(paired, w, k, n, K, N, is_transpose);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t m = block / across * ROWS, n = block % across * COLUMNS;
            const int rows = (int)min64(ROWS, M - m), columns = (int)min64(COLUMNS, N - n);
            float sums[ROWS * COLUMNS];
            multiply(sums, (Rows){x + m * K, K}, paired + n * K, rows, columns, (int)K, 0);
            for (int r = 0; r < rows; r++) {
                float *row = sums + r * columns;
                if (bias)
                    for (int c = 0; c < columns; c++) row[c] += bias[n + c];
                if (is_wide)
                    memcpy((float *)y + (m + r) * N + n, row, sizeof(float) * columns);
                else
                    narrow_all((bf16 *)y + (m + r) * N + n, row, columns);
            }
        }
        end_products();
    }
}

/* dw [N, K] = dy [M, N]^T x [M, K], and db [N], the sums of dy over M. `paired` has room for x, `turned` for dy. */
void linear_gradients(const bf16 *dy, const bf16 *x, float *dw, float *db, bf16 *paired, bf16 *turned, int64_t M, int64_t N,
                      int64_t K) {
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < K; k += 32) pair_rows(paired + k * M, (Rows){x + k, K}, (int)M, 32);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n += 32) {
            bf16 *rows = turned + n * M, words[512];
            for (int64_t c = 0; c < 32; c += 16)
                for (int64_t m = 0; m < M; m += 32) {
                    pair_rows(words, (Rows){dy + m * N + n + c, N}, 32, 16);
                    transpose_words(rows + c * M + m, M, words, 32);
                }
            for (int64_t r = 0; r < 32; r++) {
                float lanes[16] = {0};
                for (int64_t m = 0; m < M; m += 16)
                    for (int i = 0; i < 16; i++) lanes[i] += wide(rows[r * M + m + i]);
                db[n + r] = 0;
                for (int i = 0; i < 16; i++) db[n + r] += lanes[i];
            }
            multiply(dw + n * K, (Rows){rows, M}, paired, 32, (int)K, (int)M, 0);
        }
        end_products();
    }
}
