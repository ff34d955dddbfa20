/* Attention of T tokens to themselves, causal, through a window of the last W keys, in blocks whose scores stay in the cache:
   FlashAttention-2 (Dao 2307.08691, algorithms 1 and 2). The backward pass goes over the scores twice, once for the queries and
   once for keys and values: so all blocks are independent, and the result is the same on any number of threads.

   Query head h reads key/value head h / (H / G). Probabilities are 2^(score log2(e) / sqrt(D) - lse). */
#include <math.h>

#include "tiles.h"

#define HIDDEN -1e30f /* a score that is as good as none, but a number */

enum { BLOCK = 32, WIDEST = 128, LANES = 16 };

typedef struct {
    View q, k, v, y, dy, dq, dk, dv;
    float *lse, *delta; /* [B, H, T]; delta is the sum of y times dy (section 3.1.2: D) */
    int64_t B, H, G, T, W;
} Attention;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int padded(int64_t width) { return (int)((width + 31) / 32 * 32); }

/* BLOCK tokens from `first` on, [BLOCK, padded(width)]: where they are, or a copy padded with zeros. */
static Rows load(bf16 *copy, View x, int64_t b, int64_t head, int64_t first, int64_t T) {
    const int width = padded(x.width), count = (int)min64(BLOCK, T - first);
    if (count == BLOCK && width == x.width) return (Rows){vector(x, b, head, first), x.token_stride};
    memset(copy, 0, sizeof(bf16) * BLOCK * width);
    for (int i = 0; i < count; i++) memcpy(copy + i * width, vector(x, b, head, first + i), sizeof(bf16) * x.width);
    return (Rows){copy, width};
}

/* Such a block of numbers, times a scale for each token. */
static void store(View x, int64_t b, int64_t head, int64_t first, int64_t T, const float *from, const float *scales) {
    const int width = padded(x.width), count = (int)min64(BLOCK, T - first);
    for (int i = 0; i < count; i++) {
        float scaled[WIDEST];
        bf16 rounded[WIDEST];
        for (int d = 0; d < width; d++) scaled[d] = from[i * width + d] * scales[i];
        narrow_all(rounded, scaled, width);
        memcpy(vector(x, b, head, first + i), rounded, sizeof(bf16) * x.width);
    }
}

/* Fill what is hidden of a block whose rows start at token i and columns at token j; the rows are queries, or else keys. */
static void hide(float *block, float with, int64_t i, int64_t j, int rows_are_queries, int64_t T, int64_t W) {
    if (rows_are_queries ? j + BLOCK <= i + 1 && i + BLOCK - j <= W : i + BLOCK <= j + 1 && j + BLOCK - i <= W && j + BLOCK <= T)
        return;
    const int end = (int)min64(BLOCK, T - j);
    for (int r = 0; r < BLOCK; r++) {
        const int64_t own = i + r - j;
        const int low = (int)max64(rows_are_queries ? own - W + 1 : own, 0);
        const int high = (int)min64(rows_are_queries ? own + 1 : own + W, end);
        for (int c = 0; c < BLOCK; c++) block[r * BLOCK + c] = (c < low) | (c >= high) ? with : block[r * BLOCK + c];
    }
}

/* Scores to probabilities, and the states of the softmax with them: the largest score so far of each query, the sum of
   probabilities relative to it (in lanes), and by how much what was summed before has to shrink. */
static void softmax(float *s, float scale, float *largest, float (*sum)[LANES], float *shrink) {
    float most[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
        float top = largest[r];
#pragma omp simd reduction(max : top)
        for (int c = 0; c < BLOCK; c++) top = s[r * BLOCK + c] > top ? s[r * BLOCK + c] : top;
        most[r] = top;
    }
    for (int r = 0; r < BLOCK; r++) {
        shrink[r] = power_of_two(largest[r] * scale - most[r] * scale);
        largest[r] = most[r];
    }
    for (int r = 0; r < BLOCK; r++) {
        float *row = s + r * BLOCK;
        const float shift = largest[r] * scale;
        for (int c = 0; c < BLOCK; c++) row[c] = power_of_two(row[c] * scale - shift);
        for (int l = 0; l < LANES; l++) sum[r][l] *= shrink[r];
        for (int c = 0; c < BLOCK; c += LANES)
            for (int l = 0; l < LANES; l++) sum[r][l] += row[c + l];
    }
}

static void forward(const Attention *a, int64_t b, int64_t h, int64_t i) {
    const int D = padded(a->q.width), Dv = padded(a->v.width);
    const int64_t g = h / (a->H / a->G), T = a->T;
    const float scale = (float)(M_LOG2E / sqrt((double)a->q.width));
    bf16 copies[2][BLOCK * WIDEST], k[BLOCK * WIDEST], v[BLOCK * WIDEST], p[BLOCK * BLOCK];
    float s[BLOCK * BLOCK], y[BLOCK * WIDEST], largest[BLOCK], sum[BLOCK][LANES] = {0}, shrink[BLOCK];
    memset(y, 0, sizeof(float) * BLOCK * Dv);
    for (int r = 0; r < BLOCK; r++) largest[r] = HIDDEN;
    const Rows q = load(copies[0], a->q, b, h, i, T);
    /* From the queries' own block backwards, so that each meets a key that it sees first of all. */
    for (int64_t j = i, first = max64(i - a->W + 1, 0); j + BLOCK > first; j -= BLOCK) {
        pair_transposed(k, load(copies[1], a->k, b, g, j, T), BLOCK, D);
        pair_rows(v, load(copies[1], a->v, b, g, j, T), BLOCK, Dv);
        multiply(s, q, k, BLOCK, BLOCK, D, 0);
        hide(s, HIDDEN, i, j, 1, T, a->W);
        softmax(s, scale, largest, sum, shrink);
        narrow_all(p, s, BLOCK * BLOCK);
        for (int r = 0; r < BLOCK; r++)
            for (int d = 0; d < Dv; d++) y[r * Dv + d] *= shrink[r];
        multiply(y, (Rows){p, BLOCK}, v, BLOCK, Dv, BLOCK, 1);
    }
    for (int r = 0; r < BLOCK; r++) {
        float total = 0;
        for (int l = 0; l < LANES; l++) total += sum[r][l];
        if (i + r < T) a->lse[(b * a->H + h) * T + i + r] = largest[r] * scale + log2f(total);
        shrink[r] = 1 / total;
    }
    store(a->y, b, h, i, T, y, shrink);
}

/* Scores to probabilities p, and the gradients of probabilities to those of scores; lse and delta are of the row's query. */
static inline void differentiate(float *s, float *ds, float scale, float lse, float delta) {
    *s = power_of_two(*s * scale - lse);
    *ds = *s * (*ds - delta);
}

static void backward_queries(const Attention *a, int64_t b, int64_t h, int64_t i) {
    const int D = padded(a->q.width), Dv = padded(a->v.width);
    const int64_t g = h / (a->H / a->G), T = a->T, offset = (b * a->H + h) * T + i;
    const float scale = (float)(M_LOG2E / sqrt((double)a->q.width));
    bf16 copies[3][BLOCK * WIDEST], k[BLOCK * WIDEST], right[BLOCK * WIDEST], v[BLOCK * WIDEST], narrow_ds[BLOCK * BLOCK];
    float s[BLOCK * BLOCK], ds[BLOCK * BLOCK], dq[BLOCK * WIDEST], lse[BLOCK] = {0}, delta[BLOCK], scales[BLOCK];
    const Rows q = load(copies[0], a->q, b, h, i, T), dy = load(copies[1], a->dy, b, h, i, T);
    memcpy(lse, a->lse + offset, sizeof(float) * min64(BLOCK, T - i));
    memset(dq, 0, sizeof(float) * BLOCK * D);
    /* By the product that makes ds below: the gradient of a query's only key then is zero, as it should be. */
    pair_transposed(v, load(copies[2], a->y, b, h, i, T), BLOCK, Dv);
    multiply(ds, dy, v, BLOCK, BLOCK, Dv, 0);
    for (int r = 0; r < BLOCK; r++) delta[r] = ds[r * BLOCK + r];
    memcpy(a->delta + offset, delta, sizeof(float) * min64(BLOCK, T - i));
    for (int64_t j = i, first = max64(i - a->W + 1, 0); j + BLOCK > first; j -= BLOCK) {
        const Rows keys = load(copies[2], a->k, b, g, j, T);
        pair_transposed(k, keys, BLOCK, D);
        pair_rows(right, keys, BLOCK, D);
        pair_transposed(v, load(copies[2], a->v, b, g, j, T), BLOCK, Dv);
        multiply(s, q, k, BLOCK, BLOCK, D, 0);
        multiply(ds, dy, v, BLOCK, BLOCK, Dv, 0);
        for (int r = 0; r < BLOCK; r++)
            for (int c = 0; c < BLOCK; c++) differentiate(s + r * BLOCK + c, ds + r * BLOCK + c, scale, lse[r], delta[r]);
        hide(ds, 0, i, j, 1, T, a->W);
        narrow_all(narrow_ds, ds, BLOCK * BLOCK);
        multiply(dq, (Rows){narrow_ds, BLOCK}, right, BLOCK, D, BLOCK, 1);
    }
    for (int r = 0; r < BLOCK; r++) scales[r] = 1 / sqrtf((float)a->q.width);
    store(a->dq, b, h, i, T, dq, scales);
}

static void backward_keys(const Attention *a, int64_t b, int64_t g, int64_t j) {
    const int D = padded(a->q.width), Dv = padded(a->v.width);
    const int64_t R = a->H / a->G, T = a->T;
    const float scale = (float)(M_LOG2E / sqrt((double)a->q.width));
    bf16 copies[3][BLOCK * WIDEST], q[BLOCK * WIDEST], dy[BLOCK * WIDEST], right[BLOCK * WIDEST], left[BLOCK * BLOCK];
    float s[BLOCK * BLOCK], ds[BLOCK * BLOCK], dk[BLOCK * WIDEST], dv[BLOCK * WIDEST], scales[BLOCK];
    memset(dk, 0, sizeof(float) * BLOCK * D);
    memset(dv, 0, sizeof(float) * BLOCK * Dv);
    const Rows k = load(copies[0], a->k, b, g, j, T), v = load(copies[1], a->v, b, g, j, T);
    for (int64_t h = g * R; h < g * R + R; h++)
        for (int64_t i = j, end = min64(j + BLOCK + a->W - 1, T); i < end; i += BLOCK) { /* transposed: [keys, queries] */
            float lse[BLOCK] = {0}, delta[BLOCK] = {0};
            memcpy(lse, a->lse + (b * a->H + h) * T + i, sizeof(float) * min64(BLOCK, T - i));
            memcpy(delta, a->delta + (b * a->H + h) * T + i, sizeof(float) * min64(BLOCK, T - i));
            Rows queries = load(copies[2], a->q, b, h, i, T);
            pair_transposed(q, queries, BLOCK, D);
            pair_rows(right, queries, BLOCK, D);
            Rows gradients = load(copies[2], a->dy, b, h, i, T);
            pair_transposed(dy, gradients, BLOCK, Dv);
            multiply(s, k, q, BLOCK, BLOCK, D, 0);
            multiply(ds, v, dy, BLOCK, BLOCK, Dv, 0);
            for (int r = 0; r < BLOCK; r++)
                for (int c = 0; c < BLOCK; c++) differentiate(s + r * BLOCK + c, ds + r * BLOCK + c, scale, lse[c], delta[c]);
            hide(s, 0, j, i, 0, T, a->W);
            hide(ds, 0, j, i, 0, T, a->W);
            narrow_all(left, ds, BLOCK * BLOCK);
            multiply(dk, (Rows){left, BLOCK}, right, BLOCK, D, BLOCK, 1);
            narrow_all(left, s, BLOCK * BLOCK);
            pair_rows(right, gradients, BLOCK, Dv);
            multiply(dv, (Rows){left, BLOCK}, right, BLOCK, Dv, BLOCK, 1);
        }
    for (int r = 0; r < BLOCK; r++) scales[r] = 1 / sqrtf((float)a->q.width);
    store(a->dk, b, g, j, T, dk, scales);
    for (int r = 0; r < BLOCK; r++) scales[r] = 1;
    store(a->dv, b, g, j, T, dv, scales);
}

typedef void Task(const Attention *, int64_t batch, int64_t head, int64_t first_token);

/* Each block of each head, those with most to do first. */
static void each_block(const Attention *a, int64_t heads, Task *run, int is_late) {
    const int64_t blocks = (a->T + BLOCK - 1) / BLOCK, count = a->B * heads * blocks;
#pragma omp parallel
    {
        begin_products();
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < count; n++) {
            int64_t rest = n % (a->B * heads), block = n / (a->B * heads);
            run(a, rest / heads, rest % heads, BLOCK * (is_late ? blocks - 1 - block : block));
        }
        end_products();
    }
}

void flash_forward(const Attention *a) { each_block(a, a->H, forward, 1); }

void flash_backward(const Attention *a) {
    each_block(a, a->H, backward_queries, 1);
    each_block(a, a->G, backward_keys, 0);
}
