/* The products of a linear layer with few weights, whose bf16 operands are read where they are: x [M, K], w [N, K], y [M, N] and
   their gradients, M, N and K multiples of 32. */
#include "tiles.h"

enum { ROWS = 64, COLUMNS = 128 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* y [M, N] = x [M, K] w + bias, where w is [N, K], to be transposed, or [K, N]; y in bf16, or in fp32 if `is_wide`.
   `paired` has room for w. */
void linear(const bf16 *x, const bf16 *w, const float *bias, void *y, bf16 *paired, int64_t M, int64_t N, int64_t K,
            int64_t is_transposed, int64_t is_wide) {
    const int64_t across = (N + COLUMNS - 1) / COLUMNS, blocks = (M + ROWS - 1) / ROWS * across;
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n += 32)
            if (is_transposed)
                pair_transposed(paired + n * K, (Rows){w + n * K, K}, 32, (int)K);
            else
                pair_rows(paired + n * K, (Rows){w + n, N}, (int)K, 32);
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
