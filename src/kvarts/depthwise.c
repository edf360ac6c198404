/* Depthwise convolution over packed frames (rows, channels): forward and all gradients. See kvarts/native.py.

   A task is one utterance (or all of them) and 16 channels. It gathers its columns into a buffer of its own, float32, with
   zeros before and after, because rows of a power of two of bytes would fall on each other in the cache; then every
   multiplication reads one vector from that buffer and keeps its sum in a register. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* channels of a task */
#if defined(__AVX512F__)
#define TILE 24 /* sums held at a time; 32 registers of 16 floats */
#elif defined(__aarch64__)
#define TILE 6 /* 32 registers of 4 floats */
#else
#define TILE 6 /* 16 registers of 8 floats */
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t signs __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline vec load(const void *rows, int64_t index, int bf16) {
    if (bf16) {
        halves h;
        memcpy(&h, (const uint16_t *)rows + index, sizeof h);
        return (vec)(__builtin_convertvector(h, words) << 16);
    }
    vec v;
    memcpy(&v, (const float *)rows + index, sizeof v);
    return v;
}

static inline void store(void *rows, int64_t index, int bf16, vec v) {
    if (bf16) { /* to the nearest, ties to even; NaN stays NaN */
        words u = (words)v, nan = (words)(v != v);
        u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        halves h = __builtin_convertvector((u & ~nan) | (0x7fc0 & nan), halves);
        memcpy((uint16_t *)rows + index, &h, sizeof h);
    } else {
        memcpy((float *)rows + index, &v, sizeof v);
    }
}

/* Columns channel … channel + 15 of `frames` rows, with `margin` zero vectors before and after. */
static void gather(vec *buffer, const void *rows, int64_t first, int64_t frames, int64_t channels, int64_t channel,
                   int64_t margin, int bf16) {
    memset(buffer, 0, margin * sizeof *buffer);
    for (int64_t t = 0; t < frames; t++)
        buffer[margin + t] = load(rows, (first + t) * channels + channel, bf16);
    memset(buffer + margin + frames, 0, margin * sizeof *buffer);
}

#define INLINE static inline __attribute__((always_inline))

/* out[t] = bias + sum_j taps[j] x[t + j dilation] for `number` frames from t on (a constant where it is inlined). */
INLINE void convolve_tile(void *out, int64_t index, int64_t pitch, int bf16, const vec *x, const vec *taps,
                          int64_t kernel, int64_t dilation, vec bias, const int number) {
    vec sum[TILE];
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sum[i] = bias;
    for (int64_t j = 0; j < kernel; j++) {
        const vec tap = taps[j], *at = x + j * dilation;
#pragma GCC unroll 32
        for (int i = 0; i < number; i++)
            sum[i] += tap * at[i];
    }
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        store(out, index + i * pitch, bf16, sum[i]);
}

/* x begins `margin` before the first frame. */
static void convolve(void *out, int64_t first, int64_t frames, int64_t channels, int64_t channel, int bf16,
                     const vec *x, const vec *taps, int64_t kernel, int64_t dilation, vec bias) {
#define CONVOLVE(n)                                                                                                    \
    for (; frames - t >= n; t += n)                                                                                    \
    convolve_tile(out, (first + t) * channels + channel, channels, bf16, x + t, taps, kernel, dilation, bias, n)
    int64_t t = 0;
    CONVOLVE(TILE);
    CONVOLVE(TILE / 3);
    CONVOLVE(1);
}

/* total[j] += sum_t grad[t] x[t + j dilation] for `number` taps from j on. */
INLINE void correlate_tile(vec *total, const vec *x, const vec *grad, int64_t frames, const int64_t dilation,
                           const int number) {
    vec sum[TILE];
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sum[i] = total[i];
    for (int64_t t = 0; t < frames; t++) {
        const vec g = grad[t];
#pragma GCC unroll 32
        for (int i = 0; i < number; i++)
            sum[i] += g * x[t + i * dilation];
    }
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        total[i] = sum[i];
}

/* Of the 33, 39, 51, 63, 75 and 87 taps of QuartzNet, threes remain. */
INLINE void correlate(vec *total, const vec *x, const vec *grad, int64_t frames, int64_t kernel,
                      const int64_t dilation) {
#define CORRELATE(n)                                                                                                   \
    for (; kernel - j >= n; j += n)                                                                                    \
    correlate_tile(total + j, x + j * dilation, grad, frames, dilation, n)
    int64_t j = 0;
    CORRELATE(TILE);
    CORRELATE(TILE / 2);
    CORRELATE(TILE / 2 - 3);
    CORRELATE(3);
    CORRELATE(1);
}

static int64_t longest(const int64_t *offsets, int64_t batch) {
    int64_t most = 0;
    for (int64_t b = 0; b < batch; b++)
        if (offsets[b + 1] - offsets[b] > most)
            most = offsets[b + 1] - offsets[b];
    return most;
}

static vec *vectors(int64_t number) { return aligned_alloc(sizeof(vec), number * sizeof(vec)); }

/* weight (kernel, channels) float32, bias (channels) float32 or NULL, x and y (rows, channels); offsets (batch + 1).
   Returns 0, or 1 where memory ran out. */
int forward(const void *x, const float *weight, const float *bias, void *y, const int64_t *offsets, int64_t batch,
            int64_t channels, int64_t kernel, int64_t dilation, int bf16, int threads) {
    const int64_t margin = dilation * (kernel - 1) / 2, most = longest(offsets, batch);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        vec *buffer = vectors(most + 2 * margin), *taps = vectors(kernel);
        if (!buffer || !taps) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for collapse(2) schedule(static)
            for (int64_t channel = 0; channel < channels; channel += LANES)
                for (int64_t b = 0; b < batch; b++) {
                    const int64_t first = offsets[b], frames = offsets[b + 1] - first;
                    for (int64_t j = 0; j < kernel; j++)
                        taps[j] = load(weight, j * channels + channel, 0);
                    const vec shift = bias ? load(bias, channel, 0) : (vec){0};
                    gather(buffer, x, first, frames, channels, channel, margin, bf16);
                    convolve(y, first, frames, channels, channel, bf16, buffer, taps, kernel, dilation, shift);
                }
        }
        free(buffer);
        free(taps);
    }
    return failed;
}

/* From grad_y (rows, channels): grad_x like it (or NULL), grad_weight (kernel, channels) and grad_bias (channels), float32.
   Returns 0, or 1 where memory ran out. */
int backward(const void *x, const void *grad_y, const float *weight, void *grad_x, float *grad_weight,
             float *grad_bias, const int64_t *offsets, int64_t batch, int64_t channels, int64_t kernel,
             int64_t dilation, int bf16, int threads) {
    const int64_t margin = dilation * (kernel - 1) / 2, most = longest(offsets, batch);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const int64_t room = most + 2 * margin;
        vec *xs = vectors(room), *grads = vectors(room), *taps = vectors(kernel), *total = vectors(kernel);
        if (!xs || !grads || !taps || !total) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for schedule(static)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                vec shift = {0};
                memset(total, 0, kernel * sizeof *total);
                for (int64_t j = 0; j < kernel; j++) /* by input: the flipped kernel */
                    taps[j] = load(weight, (kernel - 1 - j) * channels + channel, 0);
                for (int64_t b = 0; b < batch; b++) {
                    const int64_t first = offsets[b], frames = offsets[b + 1] - first;
                    gather(grads, grad_y, first, frames, channels, channel, margin, bf16);
                    gather(xs, x, first, frames, channels, channel, margin, bf16);
                    for (int64_t t = 0; t < frames; t++)
                        shift += grads[margin + t];
                    if (dilation == 1) /* offsets known to the compiler */
                        correlate(total, xs, grads + margin, frames, kernel, 1);
                    else
                        correlate(total, xs, grads + margin, frames, kernel, dilation);
                    if (grad_x)
                        convolve(grad_x, first, frames, channels, channel, bf16, grads, taps, kernel, dilation,
                                 (vec){0});
                }
                for (int64_t j = 0; j < kernel; j++)
                    store(grad_weight, j * channels + channel, 0, total[j]);
                store(grad_bias, channel, 0, shift);
            }
        }
        free(xs);
        free(grads);
        free(taps);
        free(total);
    }
    return failed;
}
