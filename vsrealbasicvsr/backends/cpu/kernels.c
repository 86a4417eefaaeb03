/* The convolutions of the network on a CPU: channels-last, float32, with everything that follows them fused.
 *
 * 3x3 convolutions are Winograd F(4x4, 3x3) (Lavin and Gray, CVPR 2016): 36 products for 16 pixels instead of 144; 7x7
 * ones F(2x2, 7x7): 64 products for 4 pixels instead of 196.
 * One source for every instruction set: it is compiled once for each, and `LANES` follows from the compiler's flags.
 * Knows no Python and no torch. Results do not depend on the number of threads: every value is computed by one thread,
 * in one order.
 *
 * Maps are (rows, columns, channels) with the channels of a pixel one after another, padded with zeros to a multiple of
 * LANES (`stride` floats in all). Planes are (3, rows, columns), as a picture is kept.
 */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <malloc.h>
#else
#include <pthread.h>
#include <sched.h>
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#ifdef _WIN32
#define EXPORT __attribute__((dllexport))
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))
#define TILES 12 /* Winograd tiles in a block: a multiple of every micro-kernel's rows */
#define CHUNKS 8 /* portions of an operation for each thread */
#define SPINS 200
#define PLANE_PAD 16 /* floats between planes of a block, against conflicts in the cache's sets */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }

/* LANES values of 16 bits. */
INLINE vec load_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vec v;
    for (int i = 0; i < LANES; i++) {
        _Float16 half;
        memcpy(&half, p + i, sizeof half);
        v[i] = (float)half;
    }
    return v;
#endif
}

INLINE vec splat(float x) { return x - (vec){0}; }

/* x, below zero slope * x: 1 is the identity, 0 a ReLU, 0.1 a LeakyReLU. What is no number stays none. */
INLINE vec activate(vec x, float slope) {
    const mask leaks = splat(slope) != splat(0); /* an infinite value times 0 is no number: it is masked out */
    const mask negative = x < splat(0);
    return (vec)((negative & leaks & (mask)(x * slope)) | (~negative & (mask)x));
}

/* ---- what is to be done ------------------------------------------------------------------------------------------ */

enum { CONV3 = 0, CONV1 = 1, GATHER = 2, CONV7 = 3, FLOW_INPUT = 4, ENLARGE = 5, DOT3 = 6, DOT7 = 7 };
enum { TO_MAP = 0, TO_SHUFFLED_MAP = 1 };

/* One operation. library.py declares the same. Rows are counted in the picture: `source` begins at row `source_first`,
 * and outside of [0, height) lie zeros. Rows [first, stop) are made; `target` begins at row `target_first` (counted at
 * the source's resolution). */
typedef struct {
    int32_t kind, store_as;
    int32_t height, width, first, stop, source_first, target_first;
    int32_t channels_in, source_stride, channels_out, target_stride; /* channels_out: padded, all groups */
    int32_t half_source; /* the maps that are read are of 16 bits */
    int32_t kept_first, kept_stop;
    float slope;
    const float *source, *second, *weights, *bias, *residual;
    float *target, *second_target;
} operation;

/* ---- matrix products --------------------------------------------------------------------------------------------- */

/* rows x (columns * LANES) of c = a b. b: panels of LANES columns, `panel` floats apart. */
INLINE void product(const int rows, const int columns, int depth, const float *a, ptrdiff_t a_stride, const float *b,
                    ptrdiff_t panel, float *c, ptrdiff_t c_stride) {
    vec sum[14][4];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[i][j] = (vec){0};
    for (int k = 0; k < depth; k++) {
        vec right[4];
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) right[j] = load(b + j * panel + (ptrdiff_t)k * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec left = splat(a[i * a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) store(c + i * c_stride + j * LANES, sum[i][j]);
}

/* `rows` <= TILES rows of c (rounded up to the micro-kernel's) = a b, all `panels` panels of columns. */
static void multiply(int rows, int depth, int panels, const float *a, ptrdiff_t a_stride, const float *b, float *c,
                     ptrdiff_t c_stride) {
    const ptrdiff_t panel = (ptrdiff_t)depth * LANES;
    int p = 0;
#if LANES == 16
    for (; p + 4 <= panels; p += 4)
        for (int i = 0; i < rows; i += 6)
            product(6, 4, depth, a + i * a_stride, a_stride, b + p * panel, panel, c + i * c_stride + p * LANES, c_stride);
#endif
    for (; p + 2 <= panels; p += 2)
        for (int i = 0; i < rows; i += (LANES == 16 ? 12 : 6))
            product(LANES == 16 ? 12 : 6, 2, depth, a + i * a_stride, a_stride, b + p * panel, panel,
                    c + i * c_stride + p * LANES, c_stride);
    for (; p < panels; p++)
        for (int i = 0; i < rows; i += 12)
            product(12, 1, depth, a + i * a_stride, a_stride, b + p * panel, panel, c + i * c_stride + p * LANES, c_stride);
}

/* ---- 3x3 and 7x7 convolution ------------------------------------------------------------------------------------- */

/* Winograd's transforms of `size` samples: F(4, 3) of 6, with the points 0, 1, -1, 2, -2 and infinity, and F(2, 7) of
 * 8, with 1/2 and -1/2 besides. Both steps are done along the columns, then along the rows. */

INLINE void transform_in(const int size, const vec *d, vec *t) {
    if (size == 6) {
        vec a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
        t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
        t[1] = a + b;
        t[2] = a - b;
        t[3] = c + e;
        t[4] = c - e;
        t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
    } else {
        vec a = d[2] + d[6] - 4.25f * d[4], b = d[1] + d[5] - 4.25f * d[3];
        vec c = 0.25f * d[2] - 1.25f * d[4] + d[6], e = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
        vec f = 4.0f * d[2] - 5.0f * d[4] + d[6], g = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
        t[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
        t[1] = a + b;
        t[2] = a - b;
        t[3] = c + e;
        t[4] = c - e;
        t[5] = f + g;
        t[6] = f - g;
        t[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
    }
}

INLINE void transform_out(const int size, const vec *m, vec *y) {
    vec s = m[1] + m[2], d = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    if (size == 6) {
        y[0] = m[0] + s + s2;
        y[1] = d + 2.0f * d2;
        y[2] = s + 4.0f * s2;
        y[3] = d + 8.0f * d2 + m[5];
    } else {
        y[0] = m[0] + s + s2 + m[5] + m[6];
        y[1] = d + 2.0f * d2 + 0.5f * (m[5] - m[6]) + m[7];
    }
}

/* The pixels of one tile, LANES channels of them, from `p` on, transformed; the bits say which rows and columns exist. */
INLINE void tile_in(const int size, const float *p, ptrdiff_t row, ptrdiff_t pixel, const int checked, unsigned rows_ok,
                    unsigned columns_ok, float *out, ptrdiff_t plane) {
    vec columns[8][8];
#pragma GCC unroll 8
    for (int x = 0; x < size; x++) {
        vec d[8], t[8];
#pragma GCC unroll 8
        for (int y = 0; y < size; y++)
            d[y] = !checked || (rows_ok >> y & columns_ok >> x & 1) ? load(p + y * row + x * pixel) : (vec){0};
        transform_in(size, d, t);
#pragma GCC unroll 8
        for (int y = 0; y < size; y++) columns[y][x] = t[y];
    }
#pragma GCC unroll 8
    for (int y = 0; y < size; y++) {
        vec t[8];
        transform_in(size, columns[y], t);
#pragma GCC unroll 8
        for (int x = 0; x < size; x++) store(out + (y * size + x) * plane, t[x]);
    }
}

INLINE void tile_out(const int size, const int made, const float *in, ptrdiff_t plane, vec out[4][4]) {
    vec columns[4][8];
#pragma GCC unroll 8
    for (int x = 0; x < size; x++) {
        vec m[8], y[4];
#pragma GCC unroll 8
        for (int i = 0; i < size; i++) m[i] = load(in + (i * size + x) * plane);
        transform_out(size, m, y);
#pragma GCC unroll 4
        for (int i = 0; i < made; i++) columns[i][x] = y[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < made; i++) transform_out(size, columns[i], out[i]);
}

INLINE void convolve(const operation *o, ptrdiff_t block, float *scratch, const int size, const int made) {
    const int reach = (size - made) / 2;
    const int tiles_across = (o->width + made - 1) / made, tiles_down = (o->stop - o->first + made - 1) / made;
    const ptrdiff_t first = block * TILES, all = (ptrdiff_t)tiles_across * tiles_down;
    const int num = (int)(all - first < TILES ? all - first : TILES);
    const int padded_in = (o->channels_in + LANES - 1) / LANES * LANES, points = size * size;
    const ptrdiff_t in_plane = (ptrdiff_t)TILES * padded_in + PLANE_PAD;
    const ptrdiff_t out_plane = (ptrdiff_t)TILES * o->channels_out + PLANE_PAD;
    float *in = scratch, *out = scratch + points * in_plane;
    const ptrdiff_t row = (ptrdiff_t)o->width * o->source_stride;

    for (int t = 0; t < num; t++) {
        const int ty = (int)((first + t) / tiles_across), tx = (int)((first + t) % tiles_across);
        const int y0 = o->first + made * ty - reach, x0 = made * tx - reach;
        const float *p = o->source + ((ptrdiff_t)(y0 - o->source_first) * o->width + x0) * o->source_stride;
        unsigned rows_ok = 0, columns_ok = 0;
        const unsigned every = (1u << size) - 1;
        for (int i = 0; i < size; i++) {
            /* rows from `stop` + reach on are needed by no row that is stored, and may lie outside of the source */
            rows_ok |= (unsigned)(y0 + i >= 0 && y0 + i < o->height && y0 + i < o->stop + reach) << i;
            columns_ok |= (unsigned)(x0 + i >= 0 && x0 + i < o->width) << i;
        }
        if ((rows_ok & columns_ok) == every)
            for (int c = 0; c < padded_in; c += LANES)
                tile_in(size, p + c, row, o->source_stride, 0, every, every, in + (ptrdiff_t)t * padded_in + c,
                        in_plane);
        else
            for (int c = 0; c < padded_in; c += LANES)
                tile_in(size, p + c, row, o->source_stride, 1, rows_ok, columns_ok, in + (ptrdiff_t)t * padded_in + c,
                        in_plane);
    }
    const int panels = o->channels_out / LANES;
    for (int f = 0; f < points; f++)
        multiply(num, o->channels_in, panels, in + f * in_plane, padded_in,
                 o->weights + (ptrdiff_t)f * o->channels_in * o->channels_out, out + f * out_plane, o->channels_out);

    const int group = o->channels_out / 4; /* of the pixel shuffle */
    for (int t = 0; t < num; t++) {
        const int ty = (int)((first + t) / tiles_across), tx = (int)((first + t) % tiles_across);
        const int y0 = o->first + made * ty, x0 = made * tx;
        const int rows = o->stop - y0 < made ? o->stop - y0 : made, columns = o->width - x0 < made ? o->width - x0 : made;
        for (int c = 0; c < o->channels_out; c += LANES) {
            vec y[4][4];
            tile_out(size, made, out + (ptrdiff_t)t * o->channels_out + c, out_plane, y);
            const vec bias = load(o->bias + c);
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) {
                    vec v = activate(y[i][j] + bias, o->slope);
                    const ptrdiff_t py = y0 + i - o->target_first, px = x0 + j;
                    if (o->store_as == TO_MAP) {
                        const ptrdiff_t at = (py * o->width + px) * o->target_stride + c;
                        if (o->residual) v += load(o->residual + at);
                        store(o->target + at, v);
                    } else {
                        const int quarter = c / group, k = c % group;
                        const ptrdiff_t sy = 2 * py + quarter / 2, sx = 2 * px + quarter % 2;
                        store(o->target + (sy * 2 * o->width + sx) * o->target_stride + k, v);
                    }
                }
        }
    }
}

static void convolve3(const operation *o, ptrdiff_t block, float *scratch) { convolve(o, block, scratch, 6, 4); }
static void convolve7(const operation *o, ptrdiff_t block, float *scratch) { convolve(o, block, scratch, 8, 2); }

/* ---- convolution to few channels --------------------------------------------------------------------------------- */

INLINE float sum_of(vec v) {
#if LANES >= 8
#if LANES == 16
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    const __m256 eight = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
#else
    return v[0] + v[2] + (v[1] + v[3]);
#endif
}

/* `num` pixels of a row, all their taps: sums of products along the channels, added to the planes. Winograd would make
 * LANES channels where two or three are wanted. weights: (planes, taps, taps, padded channels). */
INLINE void dot_pixels(const operation *o, int y, int x, const int num, const int taps, const int planes, int checked) {
    const int reach = taps / 2, padded = o->source_stride;
    vec sums[4][3] = {{{0}}};
    for (int dy = 0; dy < taps; dy++) {
        const int sy = y + dy - reach;
        if (sy < 0 || sy >= o->height) continue;
        const float *row = o->source + (ptrdiff_t)(sy - o->source_first) * o->width * padded;
        for (int dx = 0; dx < taps; dx++)
            for (int c = 0; c < padded; c += LANES) {
                vec w[3];
#pragma GCC unroll 3
                for (int k = 0; k < planes; k++) w[k] = load(o->weights + ((k * taps + dy) * taps + dx) * padded + c);
#pragma GCC unroll 4
                for (int p = 0; p < num; p++) {
                    const int sx = x + p + dx - reach;
                    if (checked && (sx < 0 || sx >= o->width)) continue;
                    const vec v = load(row + (ptrdiff_t)sx * padded + c);
#pragma GCC unroll 3
                    for (int k = 0; k < planes; k++) sums[p][k] += v * w[k];
                }
            }
    }
#pragma GCC unroll 4
    for (int p = 0; p < num; p++)
#pragma GCC unroll 3
        for (int k = 0; k < planes; k++)
            o->target[(ptrdiff_t)k * o->target_stride + (ptrdiff_t)(y - o->target_first) * o->width + x + p] +=
                sum_of(sums[p][k]) + o->bias[k];
}

INLINE void dot_row(const operation *o, ptrdiff_t block, const int taps, const int planes) {
    const int y = o->first + (int)block, reach = taps / 2;
    for (int x = 0; x < o->width;) {
        if (x >= reach && x + 4 + reach <= o->width) {
            dot_pixels(o, y, x, 4, taps, planes, 0);
            x += 4;
        } else {
            dot_pixels(o, y, x, 1, taps, planes, 1);
            x++;
        }
    }
}

static void dot3(const operation *o, ptrdiff_t block) { dot_row(o, block, 3, 3); }
static void dot7(const operation *o, ptrdiff_t block) { dot_row(o, block, 7, 2); }

/* ---- 1x1 convolution of two maps --------------------------------------------------------------------------------- */

/* target = activate(bias + source w + second w'), one row of pixels; both maps have `channels_in` = `source_stride`
 * channels, the weights of the second follow those of the first. */
static void convolve1(const operation *o, ptrdiff_t block, float *scratch) {
    const int y = o->first + (int)block, depth = o->channels_in, panels = o->channels_out / LANES;
    const ptrdiff_t row = (ptrdiff_t)(y - o->source_first) * o->width * depth;
    const float *sources[2] = {o->source, o->second};
    float *target = o->target + (ptrdiff_t)(y - o->target_first) * o->width * o->target_stride;
    float *copy = scratch, *sums[2] = {scratch + TILES * depth, scratch + TILES * (depth + o->channels_out)};
    for (int x = 0; x < o->width; x += TILES) {
        const int num = o->width - x < TILES ? o->width - x : TILES;
        for (int s = 0; s < 2; s++) {
            const ptrdiff_t at = row + (ptrdiff_t)x * depth;
            const float *a = sources[s] + at;
            if (o->half_source) {
                const uint16_t *halves = (const uint16_t *)sources[s] + at;
                for (ptrdiff_t i = 0; i < (ptrdiff_t)num * depth; i += LANES) store(copy + i, load_half(halves + i));
                a = copy;
            } else if (num < TILES) {
                a = memcpy(copy, a, (size_t)num * depth * sizeof *a); /* whole groups of rows are read */
            }
            multiply(num, depth, panels, a, depth, o->weights + (ptrdiff_t)s * depth * o->channels_out, sums[s],
                     o->channels_out);
        }
        for (int i = 0; i < num; i++)
            for (int c = 0; c < o->channels_out; c += LANES) {
                const ptrdiff_t at = (ptrdiff_t)i * o->channels_out + c;
                const vec sum = load(o->bias + c) + load(sums[0] + at) + load(sums[1] + at);
                store(target + (ptrdiff_t)(x + i) * o->target_stride + c, activate(sum, o->slope));
            }
    }
}

/* ---- the input of a trunk ---------------------------------------------------------------------------------------- */

static float within(float x, float low, float high) { return x > low ? (x < high ? x : high) : low; /* NaN: low */ }

INLINE void sample(const operation *o, const int half, float x, float y, float *target) {
    const int width = o->width, height = o->height;
    /* one pixel alone is everywhere: so says the range -1 to 1 that the network was trained with */
    const float sx = width > 1 ? within(x, -1.0f, (float)width) : 0.0f;
    const float sy = height > 1 ? within(y, -1.0f, (float)height) : 0.0f;
    const int x0 = (int)(sx + 1.0f) - 1, y0 = (int)(sy + 1.0f) - 1; /* rounded down */
    const float fx = sx - (float)x0, fy = sy - (float)y0;
    ptrdiff_t corner[4];
    float share[4];
    for (int i = 0; i < 4; i++) {
        const int cx = x0 + i % 2, cy = y0 + i / 2;
        const int inside = cx >= 0 && cx < width && cy >= 0 && cy < height;
        corner[i] = inside ? ((ptrdiff_t)cy * width + cx) * o->source_stride : 0;
        share[i] = inside ? (i % 2 ? fx : 1.0f - fx) * (i / 2 ? fy : 1.0f - fy) : 0.0f;
    }
    for (int c = 0; c < o->channels_in; c += LANES) {
        vec sum = {0};
        for (int i = 0; i < 4; i++)
            sum += share[i] *
                   (half ? load_half((const uint16_t *)o->source + corner[i] + c) : load(o->source + corner[i] + c));
        store(target + c, sum);
    }
}

/* One row of a trunk's input: the state (source, of `channels_in` channels; NULL: zeros) sampled where the flow
 * (second, two planes) points, bilinear, zero outside; then the frame (residual, three planes) in LANES channels. */
static void gather(const operation *o, ptrdiff_t block) {
    const int y = o->first + (int)block, channels = o->channels_in;
    const ptrdiff_t plane = (ptrdiff_t)o->height * o->width;
    float *target = o->target + (ptrdiff_t)(y - o->target_first) * o->width * o->target_stride;
    for (int x = 0; x < o->width; x++, target += o->target_stride) {
        const ptrdiff_t at = (ptrdiff_t)y * o->width + x;
        if (!o->source)
            memset(target, 0, (size_t)channels * sizeof *target);
        else if (o->half_source)
            sample(o, 1, (float)x + o->second[at], (float)y + o->second[plane + at], target);
        else
            sample(o, 0, (float)x + o->second[at], (float)y + o->second[plane + at], target);
        memset(target + channels, 0, LANES * sizeof *target);
        for (int k = 0; k < 3; k++) target[channels + k] = o->residual[k * plane + at];
    }
}

/* ---- the input of a level of the flow network -------------------------------------------------------------------- */

/* Between two samples of a row or column of `size`: the first of them, and how far to go to the next. */
INLINE float between(float at, int size, int *first, int *next) {
    *first = (int)at;
    *next = *first + 1 < size ? *first + 1 : *first;
    return at - (float)*first;
}

INLINE float bilinear(const float *p, int width, int y0, int y1, float fy, int x0, int x1, float fx) {
    const float *above = p + (ptrdiff_t)y0 * width, *below = p + (ptrdiff_t)y1 * width;
    const float a = above[x0] * (1.0f - fx) + above[x1] * fx, b = below[x0] * (1.0f - fx) + below[x1] * fx;
    return a * (1.0f - fy) + b * fy;
}

/* One row: the frame's planes (residual), the other frame's (source) sampled where the flow points, its outermost
 * pixels outside, and the flow: twice that of the coarser level (second; NULL: zeros), its corners on ours. The flow
 * goes to the planes `second_target` too, rows [kept_first, kept_stop) of it. */
static void flow_input(const operation *o, ptrdiff_t block) {
    const int y = o->first + (int)block, width = o->width, height = o->height, coarse = width / 2;
    const ptrdiff_t plane = (ptrdiff_t)height * width, coarse_plane = (ptrdiff_t)(height / 2) * coarse;
    float *target = o->target + (ptrdiff_t)(y - o->target_first) * width * o->target_stride;
    const float step_x = width > 1 ? (float)(coarse - 1) / (float)(width - 1) : 0.0f;
    const float step_y = height > 1 ? (float)(height / 2 - 1) / (float)(height - 1) : 0.0f;
    for (int x = 0; x < width; x++, target += o->target_stride) {
        const ptrdiff_t at = (ptrdiff_t)y * width + x;
        int x0, x1, y0, y1;
        float flow[2] = {0.0f, 0.0f};
        if (o->second) {
            const float fx = between(step_x * (float)x, coarse, &x0, &x1);
            const float fy = between(step_y * (float)y, height / 2, &y0, &y1);
            for (int k = 0; k < 2; k++)
                flow[k] = 2.0f * bilinear(o->second + k * coarse_plane, coarse, y0, y1, fy, x0, x1, fx);
        }
        const float fx = between(within((float)x + flow[0], 0.0f, (float)(width - 1)), width, &x0, &x1);
        const float fy = between(within((float)y + flow[1], 0.0f, (float)(height - 1)), height, &y0, &y1);
        memset(target, 0, (size_t)o->target_stride * sizeof *target);
        for (int k = 0; k < 3; k++) {
            target[k] = o->residual[k * plane + at];
            target[3 + k] = bilinear(o->source + k * plane, width, y0, y1, fy, x0, x1, fx);
        }
        for (int k = 0; k < 2; k++) {
            target[6 + k] = flow[k];
            if (y >= o->kept_first && y < o->kept_stop) o->second_target[k * plane + at] = flow[k];
        }
    }
}

/* ---- what the network adds to ------------------------------------------------------------------------------------ */

/* One row of three planes, four times as wide and high (bilinear, the pixels' areas aligned). Rows [first, stop) and
 * target_first are counted in what is made, height and width in the source. */
static void enlarge(const operation *o, ptrdiff_t block) {
    static const float share[4] = {0.625f, 0.875f, 0.125f, 0.375f}; /* of the later of two samples */
    const int y = o->first + (int)block, width = o->width;
    const ptrdiff_t plane = (ptrdiff_t)o->height * width;
    const int y0 = (y + 2) / 4 - 1, above = y0 < 0 ? 0 : y0, below = y0 + 1 < o->height ? y0 + 1 : o->height - 1;
    const float fy = y0 < 0 ? 0.0f : share[y % 4];
    for (int k = 0; k < 3; k++) {
        const float *a = o->source + k * plane + (ptrdiff_t)above * width;
        const float *b = o->source + k * plane + (ptrdiff_t)below * width;
        float *target = o->target + (ptrdiff_t)k * o->target_stride + (ptrdiff_t)(y - o->target_first) * 4 * width;
        float left = a[0] + (b[0] - a[0]) * fy;
        target[0] = target[1] = left;
        for (int x = 0; x < width; x++) {
            const int next = x + 1 < width ? x + 1 : x;
            const float right = a[next] + (b[next] - a[next]) * fy, step = right - left;
            float *t = target + 4 * x + 2;
            t[0] = left + step * 0.125f;
            t[1] = left + step * 0.375f;
            if (x + 1 < width) {
                t[2] = left + step * 0.625f;
                t[3] = left + step * 0.875f;
            }
            left = right;
        }
    }
}

/* ---- operations on threads --------------------------------------------------------------------------------------- */

static ptrdiff_t num_blocks(const operation *o) {
    const ptrdiff_t rows = o->stop - o->first, made = o->kind == CONV3 ? 4 : 2;
    if (o->kind != CONV3 && o->kind != CONV7) return rows;
    return ((rows + made - 1) / made * ((o->width + made - 1) / made) + TILES - 1) / TILES;
}

static size_t scratch_floats(const operation *o) {
    const size_t padded_in = (size_t)(o->channels_in + LANES - 1) / LANES * LANES, out = (size_t)o->channels_out;
    switch (o->kind) {
    case CONV3: return 36 * (TILES * (padded_in + out) + 2 * PLANE_PAD);
    case CONV7: return 64 * (TILES * (padded_in + out) + 2 * PLANE_PAD);
    case CONV1: return TILES * (padded_in + 2 * out);
    default: return 0;
    }
}

static void run_block(const operation *o, ptrdiff_t block, float *scratch) {
    switch (o->kind) {
    case CONV3: convolve3(o, block, scratch); break;
    case CONV7: convolve7(o, block, scratch); break;
    case CONV1: convolve1(o, block, scratch); break;
    case GATHER: gather(o, block); break;
    case FLOW_INPUT: flow_input(o, block); break;
    case ENLARGE: enlarge(o, block); break;
    case DOT3: dot3(o, block); break;
    case DOT7: dot7(o, block); break;
    }
}

/* Locks, conditions, threads and aligned memory, of Windows or of POSIX. */
#ifdef _WIN32
typedef SRWLOCK lock_type;
typedef CONDITION_VARIABLE condition;
typedef DWORD thread_result;
#define THREAD_CALL WINAPI

static void lock_init(lock_type *l) { InitializeSRWLock(l); }
static void lock_take(lock_type *l) { AcquireSRWLockExclusive(l); }
static void lock_give(lock_type *l) { ReleaseSRWLockExclusive(l); }
static void condition_init(condition *c) { InitializeConditionVariable(c); }
static void condition_wait(condition *c, lock_type *l) { SleepConditionVariableSRW(c, l, INFINITE, 0); }
static void condition_wake(condition *c) { WakeAllConditionVariable(c); }
static void yield_processor(void) { SwitchToThread(); }

static int start_thread(thread_result(THREAD_CALL *run)(void *), void *argument) {
    HANDLE thread = CreateThread(NULL, 0, run, argument, 0, NULL);
    return thread && CloseHandle(thread);
}

static float *scratch_memory(size_t floats) { return _aligned_malloc(floats * sizeof(float), 64); }
static void scratch_free(float *memory) { _aligned_free(memory); }
#else
typedef pthread_mutex_t lock_type;
typedef pthread_cond_t condition;
typedef void *thread_result;
#define THREAD_CALL

static void lock_init(lock_type *l) { pthread_mutex_init(l, NULL); }
static void lock_take(lock_type *l) { pthread_mutex_lock(l); }
static void lock_give(lock_type *l) { pthread_mutex_unlock(l); }
static void condition_init(condition *c) { pthread_cond_init(c, NULL); }
static void condition_wait(condition *c, lock_type *l) { pthread_cond_wait(c, l); }
static void condition_wake(condition *c) { pthread_cond_broadcast(c); }
static void yield_processor(void) { sched_yield(); }

static int start_thread(thread_result (*run)(void *), void *argument) {
    pthread_t thread;
    return !pthread_create(&thread, NULL, run, argument) && !pthread_detach(thread);
}

static float *scratch_memory(size_t floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, floats * sizeof(float)) ? NULL : memory;
}
static void scratch_free(float *memory) { free(memory); }
#endif

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

typedef struct pool {
    struct pool *older; /* the pool that was opened before this one */
    lock_type caller; /* held by the thread whose operations run */
    int num_threads, num_wanted;
    lock_type lock;
    condition begin, end;
    uint64_t round;
    int busy;
    const operation *operations;
    ptrdiff_t num_operations;
    atomic_ptrdiff_t *next, *done; /* blocks given out and finished, of each operation */
    float **scratch;
    size_t *scratch_size;
    atomic_int failed;
} pool;

static void work(pool *p, int number) {
    for (ptrdiff_t k = 0; k < p->num_operations; k++) {
        const operation *o = p->operations + k;
        const ptrdiff_t all = num_blocks(o);
        const size_t wanted = scratch_floats(o);
        if (wanted > p->scratch_size[number]) {
            scratch_free(p->scratch[number]);
            p->scratch[number] = scratch_memory(wanted);
            p->scratch_size[number] = p->scratch[number] ? wanted : 0;
            if (!p->scratch[number]) atomic_store(&p->failed, 1);
        }
        /* Neighbouring blocks go to one thread: they share rows, and each thread reads on where it was. */
        const ptrdiff_t chunk = (all + p->num_threads * CHUNKS - 1) / (p->num_threads * CHUNKS);
        for (;;) {
            const ptrdiff_t first = atomic_fetch_add(&p->next[k], chunk), stop = first + chunk < all ? first + chunk : all;
            if (first >= all) break;
            if (!atomic_load_explicit(&p->failed, memory_order_relaxed))
                for (ptrdiff_t block = first; block < stop; block++) run_block(o, block, p->scratch[number]);
            atomic_fetch_add(&p->done[k], stop - first);
        }
        for (int spins = 0; atomic_load(&p->done[k]) < all; spins++)
            if (spins > SPINS) yield_processor(); /* whoever has the block may be waiting for this core */
            else relax();
    }
}

typedef struct {
    pool *pool;
    int number;
    uint64_t round; /* the last one before it was started */
} worker;

static thread_result THREAD_CALL serve(void *argument) {
    worker self = *(worker *)argument;
    free(argument);
    pool *p = self.pool;
    uint64_t seen = self.round;
    lock_take(&p->lock);
    for (;;) {
        while (p->round == seen) condition_wait(&p->begin, &p->lock);
        seen = p->round;
        lock_give(&p->lock);
        work(p, self.number);
        lock_take(&p->lock);
        if (--p->busy == 0) condition_wake(&p->end);
    }
    return 0; /* never */
}

EXPORT int rbvsr_lanes(void) { return LANES; }

EXPORT int rbvsr_operation_bytes(void) { return (int)sizeof(operation); }

static _Atomic(pool *) newest;

/* Nothing that another thread may change outlives a fork: the child has none of the threads, and the fork may have come
 * while one of them held a lock, or was replacing its scratch memory. That memory is given up: it is the parent's until
 * somebody writes to it. */
static void begin_anew(pool *p) {
    lock_init(&p->caller);
    lock_init(&p->lock);
    condition_init(&p->begin);
    condition_init(&p->end);
    memset(p->scratch, 0, (size_t)p->num_wanted * sizeof *p->scratch);
    memset(p->scratch_size, 0, (size_t)p->num_wanted * sizeof *p->scratch_size);
    p->num_threads = 1;
    p->round = 0;
    p->busy = 0;
}

#ifndef _WIN32 /* where nothing forks */
static void after_fork(void) {
    for (pool *p = atomic_load(&newest); p; p = p->older) begin_anew(p);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }
#endif

/* Start the threads that are wanted and are not there; fewer do the same work, where no more can be had. */
static void start_threads(pool *p) {
    while (p->num_threads < p->num_wanted) {
        worker *w = malloc(sizeof *w);
        if (!w) break;
        *w = (worker){p, p->num_threads, p->round};
        if (!start_thread(serve, w)) {
            free(w);
            break;
        }
        p->num_threads++;
    }
    p->num_wanted = p->num_threads;
}

/* Threads that wait for work, asleep; NULL for want of memory. The caller's thread is one of the `num_threads`. They
 * live as ptrdiff_t as the process; after a fork the child starts its own when it first has work for them. */
EXPORT pool *rbvsr_open(int num_threads) {
    pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->scratch = calloc((size_t)num_threads, sizeof *p->scratch);
    p->scratch_size = calloc((size_t)num_threads, sizeof *p->scratch_size);
    if (!p->scratch || !p->scratch_size) {
        free(p->scratch);
        free(p->scratch_size);
        free(p);
        return NULL;
    }
    p->num_wanted = num_threads;
    begin_anew(p);
    start_threads(p);
    p->older = atomic_load(&newest);
    while (!atomic_compare_exchange_weak(&newest, &p->older, p)) {
    }
    return p;
}

/* Carry out the operations one after another; 0, or 1 for want of memory. Callers at once wait for each
 * other. */
EXPORT int rbvsr_run(pool *p, const operation *operations, ptrdiff_t num) {
    atomic_ptrdiff_t *counters = calloc(2 * (size_t)num, sizeof *counters);
    if (!counters) return 1;
    lock_take(&p->caller);
    start_threads(p);
    lock_take(&p->lock);
    p->operations = operations;
    p->num_operations = num;
    p->next = counters;
    p->done = counters + num;
    atomic_store(&p->failed, 0);
    p->busy = p->num_threads - 1;
    p->round++;
    condition_wake(&p->begin);
    lock_give(&p->lock);
    work(p, 0);
    lock_take(&p->lock);
    while (p->busy) condition_wait(&p->end, &p->lock);
    lock_give(&p->lock);
    const int failed = atomic_load(&p->failed);
    lock_give(&p->caller);
    free(counters);
    return failed;
}
