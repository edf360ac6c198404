/* Depthwise convolution over packed frames (rows, channels): forward and all gradients. See kvarts/native.py.

   A task is one utterance (or all of them) and 16 channels. It gathers its columns into a buffer of its own, float32,
   with zeros before and after, because rows of a power of two bytes would fall on each other in the cache; then every
   multiplication reads one vector from that buffer and keeps its sum in a register.

   Where the processor multiplies pairs of bfloat16, a vector of that buffer holds 16 pairs: a frame's value in the low
   half, and that of the frame `apart` later in the high one. One instruction then does two taps (of the gradient by
   weight: two frames), and sums them in float32. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

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

/* To the nearest bfloat16, ties to even; NaN stays NaN. In the low halves. */
static inline words rounded(vec v) {
    words u = (words)v, nan = (words)(v != v);
    u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return (u & ~nan) | (0x7fc0 & nan);
}

static inline void store(void *rows, int64_t index, int bf16, vec v) {
    if (bf16) {
        halves h = __builtin_convertvector(rounded(v), halves);
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

/* The same in pairs of frames that lie `apart`; what would pair with a frame behind the buffer's end is 0. */
static void gather_pairs(vec *buffer, const void *rows, int64_t first, int64_t frames, int64_t channels,
                         int64_t channel, int64_t margin, int64_t apart) {
    gather(buffer, rows, first, frames, channels, channel, margin, 1);
    const int64_t room = frames + 2 * margin;
    for (int64_t t = 0; t < room; t++) /* a bfloat16 is the upper half of a float */
        buffer[t] = (vec)(((words)buffer[t] >> 16) | (t + apart < room ? (words)buffer[t + apart] : (words){0}));
}

/* taps[0], taps[1], … of 16 channels in steps of `step` floats; in pairs the last, odd one pairs with 0. */
static void gather_taps(vec *taps, const float *weight, int64_t step, int64_t kernel, const int pairs) {
    for (int64_t j = 0; j < kernel; j += 1 + pairs) {
        const vec tap = load(weight, j * step, 0);
        if (pairs) {
            const vec next = j + 1 < kernel ? load(weight, (j + 1) * step, 0) : (vec){0};
            taps[j / 2] = (vec)(rounded(tap) | (rounded(next) << 16));
        } else {
            taps[j] = tap;
        }
    }
}

#define INLINE static inline __attribute__((always_inline))

INLINE vec multiply_add(vec sum, vec a, vec b, const int pairs) {
#if HAS_PAIRS
    if (pairs)
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

/* out[t] = bias + sum_j taps[j] x[t + j dilation] for `number` frames from t on (a constant where it is inlined). */
INLINE void convolve_tile(void *out, int64_t index, int64_t pitch, int bf16, const vec *x, const vec *taps,
                          int64_t kernel, int64_t dilation, vec bias, const int pairs, const int number) {
    vec sum[TILE];
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sum[i] = bias;
    for (int64_t j = 0; j < kernel; j += 1 + pairs) {
        const vec tap = taps[pairs ? j / 2 : j], *at = x + j * dilation;
#pragma GCC unroll 32
        for (int i = 0; i < number; i++)
            sum[i] = multiply_add(sum[i], at[i], tap, pairs);
    }
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        store(out, index + i * pitch, bf16, sum[i]);
}

/* x begins `margin` before the first frame. */
INLINE void convolve(void *out, int64_t first, int64_t frames, int64_t channels, int64_t channel, int bf16,
                     const vec *x, const vec *taps, int64_t kernel, int64_t dilation, vec bias, const int pairs) {
#define CONVOLVE(n)                                                                                                    \
    for (; frames - t >= n; t += n)                                                                                    \
    convolve_tile(out, (first + t) * channels + channel, channels, bf16, x + t, taps, kernel, dilation, bias, pairs, n)
    int64_t t = 0;
    CONVOLVE(TILE);
    CONVOLVE(TILE / 3);
    CONVOLVE(1);
}

/* total[j] += sum_t grad[t] x[t + j dilation] for `number` taps from j on. Pairs are of neighbouring frames; behind the
   last of an odd number of frames `grad` pairs it with 0. */
INLINE void correlate_tile(vec *total, const vec *x, const vec *grad, int64_t frames, const int64_t dilation,
                           const int pairs, const int number) {
    vec sum[TILE];
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sum[i] = total[i];
    for (int64_t t = 0; t < frames; t += 1 + pairs) {
        const vec g = grad[t];
#pragma GCC unroll 32
        for (int i = 0; i < number; i++)
            sum[i] = multiply_add(sum[i], x[t + i * dilation], g, pairs);
    }
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        total[i] = sum[i];
}

/* Of the 33, 39, 51, 63, 75 and 87 taps of QuartzNet, threes remain. */
INLINE void correlate(vec *total, const vec *x, const vec *grad, int64_t frames, int64_t kernel,
                      const int64_t dilation, const int pairs) {
#define CORRELATE(n)                                                                                                   \
    for (; kernel - j >= n; j += n)                                                                                    \
    correlate_tile(total + j, x + j * dilation, grad, frames, dilation, pairs, n)
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

/* One utterance and 16 channels: y of x. */
INLINE void forward_task(const void *x, void *y, int64_t first, int64_t frames, int64_t channels, int64_t channel,
                         int bf16, vec *buffer, const vec *taps, int64_t kernel, int64_t dilation, vec bias,
                         const int pairs) {
    const int64_t margin = dilation * (kernel - 1) / 2;
    if (pairs)
        gather_pairs(buffer, x, first, frames, channels, channel, margin, dilation);
    else
        gather(buffer, x, first, frames, channels, channel, margin, bf16);
    convolve(y, first, frames, channels, channel, bf16, buffer, taps, kernel, dilation, bias, pairs);
}

/* One utterance and 16 channels: adds to `total` and `shift`, writes grad_x (unless NULL). */
INLINE void backward_task(const void *x, const void *grad_y, void *grad_x, int64_t first, int64_t frames,
                          int64_t channels, int64_t channel, int bf16, vec *xs, vec *grads, const vec *flipped,
                          vec *total, vec *shift, int64_t kernel, int64_t dilation, const int pairs) {
    const int64_t margin = dilation * (kernel - 1) / 2;
    if (pairs) {
        gather_pairs(xs, x, first, frames, channels, channel, margin, 1);
        gather_pairs(grads, grad_y, first, frames, channels, channel, margin, 1);
    } else {
        gather(xs, x, first, frames, channels, channel, margin, bf16);
        gather(grads, grad_y, first, frames, channels, channel, margin, bf16);
    }
    for (int64_t t = 0; t < frames; t++)
        *shift += pairs ? (vec)((words)grads[margin + t] << 16) : grads[margin + t];
    if (dilation == 1) /* offsets known to the compiler */
        correlate(total, xs, grads + margin, frames, kernel, 1, pairs);
    else
        correlate(total, xs, grads + margin, frames, kernel, dilation, pairs);
    if (!grad_x)
        return;
    if (pairs && dilation != 1)
        gather_pairs(grads, grad_y, first, frames, channels, channel, margin, dilation);
    convolve(grad_x, first, frames, channels, channel, bf16, grads, flipped, kernel, dilation, (vec){0}, pairs);
}

/* weight (kernel, channels) float32, bias (channels) float32 or NULL, x and y (rows, channels); offsets (batch + 1).
   Returns 0, or 1 where memory ran out. */
int forward(const void *x, const float *weight, const float *bias, void *y, const int64_t *offsets, int64_t batch,
            int64_t channels, int64_t kernel, int64_t dilation, int bf16, int threads) {
    const int64_t margin = dilation * (kernel - 1) / 2, most = longest(offsets, batch);
    const int pairs = HAS_PAIRS && bf16;
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
                    const vec shift = bias ? load(bias, channel, 0) : (vec){0};
                    gather_taps(taps, weight + channel, channels, kernel, pairs);
                    if (pairs) /* a constant for the compiler */
                        forward_task(x, y, first, frames, channels, channel, bf16, buffer, taps, kernel, dilation,
                                     shift, 1);
                    else
                        forward_task(x, y, first, frames, channels, channel, bf16, buffer, taps, kernel, dilation,
                                     shift, 0);
                }
        }
        free(buffer);
        free(taps);
    }
    return failed;
}

/* From grad_y (rows, channels): grad_x like it (or NULL), grad_weight (kernel, channels) and grad_bias (channels),
   float32. Returns 0, or 1 where memory ran out. */
int backward(const void *x, const void *grad_y, const float *weight, void *grad_x, float *grad_weight,
             float *grad_bias, const int64_t *offsets, int64_t batch, int64_t channels, int64_t kernel,
             int64_t dilation, int bf16, int threads) {
    const int64_t margin = dilation * (kernel - 1) / 2, most = longest(offsets, batch);
    const int pairs = HAS_PAIRS && bf16;
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
                /* by input: the flipped kernel */
                gather_taps(taps, weight + (kernel - 1) * channels + channel, -channels, kernel, pairs);
                for (int64_t b = 0; b < batch; b++) {
                    const int64_t first = offsets[b], frames = offsets[b + 1] - first;
                    if (pairs)
                        backward_task(x, grad_y, grad_x, first, frames, channels, channel, bf16, xs, grads, taps, total,
                                      &shift, kernel, dilation, 1);
                    else
                        backward_task(x, grad_y, grad_x, first, frames, channels, channel, bf16, xs, grads, taps, total,
                                      &shift, kernel, dilation, 0);
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
