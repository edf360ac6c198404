/* What no library does fast enough for packed frames (rows, channels), float32 or bfloat16: the depthwise convolution,
   and batch normalisation with what follows it; forward and all gradients. See kvarts/native.py.

   Depthwise convolution. A task is one utterance (in the backward pass all of them) and the channels of a register. It gathers its
   columns into a buffer of its own, float32, with zeros before and after, because rows of a power of two bytes would
   fall on each other in the cache; then sums stay in registers while the taps slide over the buffer. Frames t,
   t + dilation, … meet only each other, so a dilated convolution is `dilation` undilated ones.

   Where the processor multiplies pairs of bfloat16, a vector of that buffer holds 16 pairs: a frame's value in the low
   half, and the next one's in the high one. One instruction then does two taps (of the gradient by weight: two frames),
   and sums them in float32.

   Batch normalisation. A task is a chunk of neighbouring rows, read from end to end: by columns, rows of a power of two
   bytes would throw each other out of the cache. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* Intel's processors, which alone have AMX, take two cycles for a pair: there nothing is gained, and gathering costs. */
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#include <immintrin.h>
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

/* Channels of a task: as many as a register holds. Of vectors longer than that GCC 12 keeps the sums in memory, which
   took 5 times as long (16 channels with AVX2: 7 to 9 GFLOP/s on two cores of an AMD EPYC, 8 channels: 31 to 66). */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4 /* SSE, Arm */
#endif
#define TILE 12 /* sums held at a time, of 16 or 32 registers: with more GCC 12 begins to keep them in memory */

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

/* As many numbers as a register holds, of each of `frames` rows, from `index` on, `pitch` apart, with `margin` zero vectors before and after. */
static void gather(vec *buffer, const void *rows, int64_t index, int64_t pitch, int64_t frames, int64_t margin,
                   int bf16) {
    memset(buffer, 0, margin * sizeof *buffer);
    for (int64_t t = 0; t < frames; t++)
        buffer[margin + t] = load(rows, index + t * pitch, bf16);
    memset(buffer + margin + frames, 0, margin * sizeof *buffer);
}

/* The same in pairs of neighbouring frames; what would pair with a frame behind the buffer's end is 0. */
static void gather_pairs(vec *buffer, const void *rows, int64_t index, int64_t pitch, int64_t frames, int64_t margin) {
    gather(buffer, rows, index, pitch, frames, margin, 1);
    const int64_t room = frames + 2 * margin;
    for (int64_t t = 0; t < room; t++) /* a bfloat16 is the upper half of a float */
        buffer[t] = (vec)(((words)buffer[t] >> 16) | (t + 1 < room ? (words)buffer[t + 1] : (words){0}));
}

/* taps[0], taps[1], … of a task's channels in steps of `step` floats; in pairs the last, odd one pairs with 0. */
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

/* sums[i] += sum_j taps[j] x[i + j step] for `number` sums; step is 2 for pairs. Two taps at a time, so that what is
   loaded serves two sums: else loads, not multiplications, set the pace. */
INLINE void slide(vec *sums, const vec *x, const vec *taps, int64_t number_of_taps, const int pairs, const int number) {
    const int step = 1 + pairs;
    vec sum[TILE];
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sum[i] = sums[i];
    int64_t j = 0;
    for (; j + 2 <= number_of_taps; j += 2) {
        const vec first = taps[j], second = taps[j + 1], *at = x + j * step;
#pragma GCC unroll 32
        for (int i = 0; i < number + step; i++) {
            const vec value = at[i];
            if (i < number)
                sum[i] = multiply_add(sum[i], value, first, pairs);
            if (i >= step)
                sum[i - step] = multiply_add(sum[i - step], value, second, pairs);
        }
    }
    if (j < number_of_taps) {
        const vec last = taps[j], *at = x + j * step;
#pragma GCC unroll 32
        for (int i = 0; i < number; i++)
            sum[i] = multiply_add(sum[i], at[i], last, pairs);
    }
#pragma GCC unroll 32
    for (int i = 0; i < number; i++)
        sums[i] = sum[i];
}

/* out[t] = bias + sum_j taps[j] x[t + j] for all frames; x begins `margin` before the first one. What does not fill a
   tile at the end is computed together with frames before it, once more. */
INLINE void convolve(void *out, int64_t index, int64_t pitch, int64_t frames, int bf16, const vec *x, const vec *taps,
                     int64_t kernel, vec bias, const int pairs) {
    const int64_t number_of_taps = pairs ? (kernel + 1) / 2 : kernel;
    int64_t t = 0;
#define CONVOLVE(number)                                                                                               \
    for (; frames >= number && t < frames; t += number) {                                                              \
        const int64_t from = t + number <= frames ? t : frames - number;                                               \
        vec sums[number];                                                                                              \
        for (int i = 0; i < number; i++)                                                                               \
            sums[i] = bias;                                                                                            \
        slide(sums, x + from, taps, number_of_taps, pairs, number);                                                    \
        for (int i = 0; i < number; i++)                                                                               \
            store(out, index + (from + i) * pitch, bf16, sums[i]);                                                     \
    }
    CONVOLVE(TILE);
    CONVOLVE(4);
    CONVOLVE(1);
}

/* total[j] += sum_t grad[t] x[t + j] for all taps. Pairs are of neighbouring frames; behind the last of an odd number
   of frames `grad` pairs it with 0. Of the 33, 39, 51, 63, 75 and 87 taps of QuartzNet, threes remain. */
INLINE void correlate(vec *total, const vec *x, const vec *grad, int64_t frames, int64_t kernel, const int pairs) {
    int64_t j = 0;
#define CORRELATE(number)                                                                                              \
    for (; kernel - j >= number; j += number)                                                                          \
    slide(total + j, x + j, grad, frames, pairs, number)
    CORRELATE(TILE);
    CORRELATE(9);
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

/* Frames `phase`, `phase` + dilation, … of an utterance of `frames`. */
static int64_t of_phase(int64_t frames, int64_t phase, int64_t dilation) {
    return (frames - phase + dilation - 1) / dilation;
}

/* One utterance, a task's channels from number `index` on: y of x. */
INLINE void forward_task(const void *x, void *y, int64_t index, int64_t channels, int64_t frames, int bf16, vec *buffer,
                         const vec *taps, int64_t kernel, int64_t dilation, vec bias, const int pairs) {
    const int64_t margin = (kernel - 1) / 2, pitch = dilation * channels;
    for (int64_t phase = 0; phase < dilation && phase < frames; phase++, index += channels) {
        const int64_t part = of_phase(frames, phase, dilation);
        if (pairs)
            gather_pairs(buffer, x, index, pitch, part, margin);
        else
            gather(buffer, x, index, pitch, part, margin, bf16);
        convolve(y, index, pitch, part, bf16, buffer, taps, kernel, bias, pairs);
    }
}

/* One utterance and a task's channels: adds to `total` and `shift`, writes grad_x (unless NULL). */
INLINE void backward_task(const void *x, const void *grad_y, void *grad_x, int64_t index, int64_t channels,
                          int64_t frames, int bf16, vec *xs, vec *grads, vec *paired, const vec *flipped, vec *total,
                          vec *shift, int64_t kernel, int64_t dilation, const int pairs) {
    const int64_t margin = (kernel - 1) / 2, pitch = dilation * channels;
    for (int64_t phase = 0; phase < dilation && phase < frames; phase++, index += channels) {
        const int64_t part = of_phase(frames, phase, dilation);
        if (pairs) {
            gather_pairs(xs, x, index, pitch, part, margin);
            gather_pairs(grads, grad_y, index, pitch, part, margin);
            for (int64_t t = 0; t < part; t += 2)
                paired[t / 2] = grads[margin + t];
            correlate(total, xs, paired, (part + 1) / 2, kernel, pairs);
        } else {
            gather(xs, x, index, pitch, part, margin, bf16);
            gather(grads, grad_y, index, pitch, part, margin, bf16);
            correlate(total, xs, grads + margin, part, kernel, pairs);
        }
        for (int64_t t = 0; t < part; t++)
            *shift += pairs ? (vec)((words)grads[margin + t] << 16) : grads[margin + t];
        if (grad_x)
            convolve(grad_x, index, pitch, part, bf16, grads, flipped, kernel, (vec){0}, pairs);
    }
}

/* weight (kernel, channels) float32, bias (channels) float32 or NULL, x and y (rows, channels); offsets (batch + 1).
   Returns 0, or 1 where memory ran out. */
int convolution(const void *x, const float *weight, const float *bias, void *y, const int64_t *offsets, int64_t batch,
                int64_t channels, int64_t kernel, int64_t dilation, int bf16, int threads) {
    const int64_t margin = (kernel - 1) / 2, most = longest(offsets, batch);
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
            for (int64_t b = 0; b < batch; b++) /* neighbouring channels in turn: they share cache lines */
                for (int64_t channel = 0; channel < channels; channel += LANES) {
                    const int64_t index = offsets[b] * channels + channel, frames = offsets[b + 1] - offsets[b];
                    const vec shift = bias ? load(bias, channel, 0) : (vec){0};
                    gather_taps(taps, weight + channel, channels, kernel, pairs);
                    if (pairs) /* a constant for the compiler */
                        forward_task(x, y, index, channels, frames, bf16, buffer, taps, kernel, dilation, shift, 1);
                    else
                        forward_task(x, y, index, channels, frames, bf16, buffer, taps, kernel, dilation, shift, 0);
                }
        }
        free(buffer);
        free(taps);
    }
    return failed;
}

/* From grad_y (rows, channels): grad_x like it (or NULL), grad_weight (kernel, channels) and grad_bias (channels),
   float32. Returns 0, or 1 where memory ran out. */
int convolution_backward(const void *x, const void *grad_y, const float *weight, void *grad_x, float *grad_weight,
                         float *grad_bias, const int64_t *offsets, int64_t batch, int64_t channels, int64_t kernel,
                         int64_t dilation, int bf16, int threads) {
    const int64_t margin = (kernel - 1) / 2, most = longest(offsets, batch);
    const int pairs = HAS_PAIRS && bf16;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const int64_t room = most + 2 * margin;
        vec *xs = vectors(room), *grads = vectors(room), *paired = vectors(room / 2 + 1);
        vec *taps = vectors(kernel), *total = vectors(kernel);
        if (!xs || !grads || !paired || !taps || !total) {
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
                    const int64_t index = offsets[b] * channels + channel, frames = offsets[b + 1] - offsets[b];
                    if (pairs)
                        backward_task(x, grad_y, grad_x, index, channels, frames, bf16, xs, grads, paired, taps,
                                      total, &shift, kernel, dilation, 1);
                    else
                        backward_task(x, grad_y, grad_x, index, channels, frames, bf16, xs, grads, paired, taps,
                                      total, &shift, kernel, dilation, 0);
                }
                for (int64_t j = 0; j < kernel; j++)
                    store(grad_weight, j * channels + channel, 0, total[j]);
                store(grad_bias, channel, 0, shift);
            }
        }
        free(xs);
        free(grads);
        free(paired);
        free(taps);
        free(total);
    }
    return failed;
}

#define CHUNK 64 /* rows that are summed up together: they stay in the cache, and sums do not depend on the threads */

static vec inverse_root(vec variance, float eps) {
    for (int i = 0; i < LANES; i++)
        variance[i] = 1 / sqrtf(variance[i] + eps);
    return variance;
}

/* Mean and sum of squared distances from it, of `rows` rows and all channels. */
INLINE void chunk_moments(vec *mean, vec *squares, const void *x, int64_t first, int64_t rows, int64_t channels,
                          const int bf16) {
    const int64_t groups = channels / LANES;
    memset(mean, 0, groups * sizeof *mean);
    memset(squares, 0, groups * sizeof *squares);
    for (int64_t t = first; t < first + rows; t++)
        for (int64_t g = 0; g < groups; g++)
            mean[g] += load(x, t * channels + g * LANES, bf16);
    for (int64_t g = 0; g < groups; g++)
        mean[g] /= (float)rows;
    for (int64_t t = first; t < first + rows; t++)
        for (int64_t g = 0; g < groups; g++) {
            const vec apart = load(x, t * channels + g * LANES, bf16) - mean[g];
            squares[g] += apart * apart;
        }
}

/* Of all chunks' (groups, one behind the other in `means` and `squares`), for one group of channels: Chan, Golub and
   LeVeque 1979. */
static void pool_moments(vec *mean, vec *variance, const vec *means, const vec *squares, int64_t group, int64_t groups,
                         int64_t rows) {
    vec sum = {0}, square = {0};
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    for (int64_t c = 0; c < chunks; c++) {
        const float number = c + 1 < chunks ? CHUNK : rows - c * CHUNK;
        sum += means[c * groups + group] * number;
    }
    *mean = sum / (float)rows;
    for (int64_t c = 0; c < chunks; c++) {
        const float number = c + 1 < chunks ? CHUNK : rows - c * CHUNK;
        const vec apart = means[c * groups + group] - *mean;
        square += squares[c * groups + group] + apart * apart * number;
    }
    *variance = square / (float)rows;
}

/* Dropout: each number of a vector is 0 if its random one lies below `threshold` (of 2³²). The random numbers are a
   hash of their place and a seed (C. Wellons' "lowbias32"), so they cost no pass over memory and no state. */
INLINE vec dropped(vec value, int64_t index, uint32_t seed, uint32_t threshold) {
    words place;
    for (int i = 0; i < LANES; i++)
        place[i] = (uint32_t)index + i;
    words hash = place ^ seed; /* the same for every length of a register */
    hash = (hash ^ (hash >> 16)) * 0x7feb352d;
    hash = (hash ^ (hash >> 15)) * 0x846ca68b;
    hash ^= hash >> 16;
    return (vec)((words)value & (words)(hash >= threshold));
}

/* y = (x - mean) · scale + shift (+ branch, unless NULL), at least 0 if `relu`; then dropout of the share `drop`. */
INLINE void normalise_chunk(const void *x, const void *branch, void *y, int64_t first, int64_t rows, int64_t channels,
                            const vec *mean, const vec *scale, const float *shift, const int relu, float drop,
                            uint32_t seed, const int bf16) {
    const uint32_t threshold = (uint32_t)(drop * 4294967296.0);
    const float gain = 1 / (1 - drop);
    for (int64_t t = first; t < first + rows; t++)
        for (int64_t g = 0; g < channels / LANES; g++) {
            const int64_t index = t * channels + g * LANES;
            vec value = (load(x, index, bf16) - mean[g]) * scale[g] + load(shift, g * LANES, 0);
            if (branch)
                value += load(branch, index, bf16);
            if (relu) /* NaN stays */
                value = (vec)((words)value & ~(words)(value < 0));
            if (drop > 0)
                value = dropped(value * gain, index, seed, threshold);
            store(y, index, bf16, value);
        }
}

/* What of the gradient by y passed ReLU and dropout: where y is not 0, `gain` times. y is NULL without a ReLU. */
INLINE vec passed(const void *grad_y, const void *y, int64_t index, float gain, const int bf16) {
    const vec grad = load(grad_y, index, bf16);
    return y ? (vec)((words)grad & ~(words)(load(y, index, bf16) <= 0)) * gain : grad;
}

/* Sums over `rows` rows of the gradient, and of its product with x - mean; writes grad_branch (unless NULL). */
INLINE void chunk_sums(vec *sum, vec *product, const void *x, const void *y, const void *grad_y, void *grad_branch,
                       int64_t first, int64_t rows, int64_t channels, const vec *mean, float gain, const int bf16) {
    const int64_t groups = channels / LANES;
    memset(sum, 0, groups * sizeof *sum);
    memset(product, 0, groups * sizeof *product);
    for (int64_t t = first; t < first + rows; t++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t index = t * channels + g * LANES;
            const vec grad = passed(grad_y, y, index, gain, bf16);
            sum[g] += grad;
            product[g] += grad * (load(x, index, bf16) - mean[g]);
            if (grad_branch)
                store(grad_branch, index, bf16, grad);
        }
}

/* grad_x = (gradient - its mean - (x - mean) · slope) · scale. */
INLINE void gradient_chunk(const void *x, const void *y, const void *grad_y, void *grad_x, int64_t first, int64_t rows,
                           int64_t channels, const vec *mean, const vec *mean_grad, const vec *slope, const vec *scale,
                           float gain, const int bf16) {
    for (int64_t t = first; t < first + rows; t++)
        for (int64_t g = 0; g < channels / LANES; g++) {
            const int64_t index = t * channels + g * LANES;
            const vec grad = passed(grad_y, y, index, gain, bf16) - mean_grad[g];
            store(grad_x, index, bf16, (grad - (load(x, index, bf16) - mean[g]) * slope[g]) * scale[g]);
        }
}

/* x, branch (or NULL) and y (rows, channels); weight, bias, means, variances (channels) float32; y and the last two are
   written. Returns 0, or 1 where memory ran out. */
int normalise(const void *x, const void *branch, void *y, const float *weight, const float *bias, float *means,
              float *variances, int64_t rows, int64_t channels, float eps, float drop, uint32_t seed, int relu,
              int bf16, int threads) {
    const int64_t groups = channels / LANES, chunks = (rows + CHUNK - 1) / CHUNK;
    vec *parts = vectors(2 * (chunks + 1) * groups);
    if (!parts)
        return 1;
    vec *squares = parts + chunks * groups, *mean = squares + chunks * groups, *scale = mean + groups;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = c * CHUNK, number = rows - first < CHUNK ? rows - first : CHUNK;
            if (bf16)
                chunk_moments(parts + c * groups, squares + c * groups, x, first, number, channels, 1);
            else
                chunk_moments(parts + c * groups, squares + c * groups, x, first, number, channels, 0);
        }
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            vec variance;
            pool_moments(mean + g, &variance, parts, squares, g, groups, rows);
            store(means, g * LANES, 0, mean[g]);
            store(variances, g * LANES, 0, variance);
            scale[g] = load(weight, g * LANES, 0) * inverse_root(variance, eps);
        }
#pragma omp for schedule(static) /* the same chunks as before: they may still be in this core's cache */
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = c * CHUNK, number = rows - first < CHUNK ? rows - first : CHUNK;
            if (bf16)
                normalise_chunk(x, branch, y, first, number, channels, mean, scale, bias, relu, drop, seed, 1);
            else
                normalise_chunk(x, branch, y, first, number, channels, mean, scale, bias, relu, drop, seed, 0);
        }
    }
    free(parts);
    return 0;
}

/* From grad_y, and y where there was a ReLU (else NULL): grad_x and grad_branch (or NULL) like it, grad_weight and
   grad_bias (channels) float32. Returns 0, or 1 where memory ran out. */
int normalise_backward(const void *x, const void *y, const void *grad_y, void *grad_x, void *grad_branch,
                       const float *weight, const float *means, const float *variances, float *grad_weight,
                       float *grad_bias, int64_t rows, int64_t channels, float eps, float drop, int bf16,
                       int threads) {
    const int64_t groups = channels / LANES, chunks = (rows + CHUNK - 1) / CHUNK;
    const float gain = 1 / (1 - drop);
    vec *sums = vectors(2 * (chunks + 2) * groups);
    if (!sums)
        return 1;
    vec *products = sums + chunks * groups, *mean = products + chunks * groups;
    vec *mean_grad = mean + groups, *slope = mean_grad + groups, *scale = slope + groups;
    for (int64_t g = 0; g < groups; g++)
        mean[g] = load(means, g * LANES, 0);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = c * CHUNK, number = rows - first < CHUNK ? rows - first : CHUNK;
            vec *sum = sums + c * groups, *product = products + c * groups;
            if (bf16)
                chunk_sums(sum, product, x, y, grad_y, grad_branch, first, number, channels, mean, gain, 1);
            else
                chunk_sums(sum, product, x, y, grad_y, grad_branch, first, number, channels, mean, gain, 0);
        }
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            vec sum = {0}, product = {0};
            for (int64_t c = 0; c < chunks; c++) {
                sum += sums[c * groups + g];
                product += products[c * groups + g];
            }
            const vec root = inverse_root(load(variances, g * LANES, 0), eps);
            store(grad_weight, g * LANES, 0, product * root);
            store(grad_bias, g * LANES, 0, sum);
            mean_grad[g] = sum / (float)rows;
            slope[g] = product * root * root / (float)rows;
            scale[g] = root * load(weight, g * LANES, 0);
        }
        if (grad_x) {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks; c++) {
                const int64_t first = c * CHUNK, number = rows - first < CHUNK ? rows - first : CHUNK;
                if (bf16)
                    gradient_chunk(x, y, grad_y, grad_x, first, number, channels, mean, mean_grad, slope, scale, gain,
                                   1);
                else
                    gradient_chunk(x, y, grad_y, grad_x, first, number, channels, mean, mean_grad, slope, scale, gain,
                                   0);
            }
        }
    }
    free(sums);
    return 0;
}
