/* A convolution in which every image has its own filters, picked from a table: float32, channels
 * last, one group. The filters of a block are laid out once, as vectors over the filters, and serve
 * all images; what an image chose is blended from the two layouts, a few percent of the products.
 *
 * Compiled on first use, see native.py. GNU C vectors, so GCC or Clang, any processor.
 */
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 };
#else
enum { LANES = 8, VECTORS = 2 };
#endif
enum {
    FILTERS = LANES * VECTORS, /* of a block */
    PIXELS = 6,                /* of a tile: with FILTERS, what the registers hold as sums */
    DEPTH = 256                /* products between two visits of the sums in memory */
};

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

/* A stretch of inputs that lie together, and of the weights that go with them. */
typedef struct {
    int64_t input, weight, length;
} stretch;

typedef struct {
    const float *x, *rows, *bias;
    const int64_t *chosen;
    float *y;
    int64_t filters, depth;                  /* channels of the output; weights of a filter */
    int64_t image, line, step;               /* floats from image, row, column to the next */
    int64_t height, width;                   /* of the output */
    int64_t stretches, stretch, weight_line; /* per filter; floats each; to the next one's input */
    int64_t inner, inner_step;               /* stretches in a kernel row; floats between them */
} problem;

/* Rows of a square to columns, by halves: at distance d, of each pair of rows d apart, what lies d
 * apart changes places. */
static inline void transpose(vector *square) {
    for (int d = 1; d < LANES; d *= 2) {
        mask low, high;
        for (int lane = 0; lane < LANES; lane++) {
            low[lane] = lane & d ? LANES + lane - d : lane;
            high[lane] = lane & d ? LANES + lane : lane + d;
        }
        for (int i = 0; i < LANES; i++) {
            if (i & d) continue;
            vector a = square[i], b = square[i + d];
#ifdef __clang__
            for (int lane = 0; lane < LANES; lane++) {
                square[i][lane] = low[lane] < LANES ? a[low[lane]] : b[low[lane] - LANES];
                square[i + d][lane] = high[lane] < LANES ? a[high[lane]] : b[high[lane] - LANES];
            }
#else
            square[i] = __builtin_shuffle(a, b, low);
            square[i + d] = __builtin_shuffle(a, b, high);
#endif
        }
    }
}

/* layout[k][lane] = rows[of[lane]][from + k], 0 for lanes from count on. */
static void lay_out(const problem *p, const int64_t *of, int64_t count, int64_t from, int64_t depth,
                    float *layout) {
    for (int64_t lane = 0; lane < FILTERS; lane += LANES)
        for (int64_t k = 0; k < depth; k += LANES) {
            int64_t whole = depth - k < LANES ? depth - k : LANES;
            vector square[LANES];
            for (int i = 0; i < LANES; i++) {
                square[i] = (vector){0};
                if (lane + i >= count) continue;
                const float *row = p->rows + of[lane + i] * p->depth + from + k;
                if (whole == LANES)
                    square[i] = *(const loose *)row;
                else
                    memcpy(square + i, row, sizeof(float) * whole);
            }
            transpose(square);
            for (int64_t i = 0; i < whole; i++)
                *(vector *)(layout + (k + i) * FILTERS + lane) = square[i];
        }
}

/* sums (pixels, FILTERS) += inputs x layout; the number of pixels is a constant to the compiler. */
static inline __attribute__((always_inline)) void tile(int pixels, const float *const *inputs,
                                                       const stretch *parts, int64_t count,
                                                       const float *layout, vector *sums) {
    vector s[PIXELS][VECTORS];
    for (int i = 0; i < pixels; i++)
        for (int v = 0; v < VECTORS; v++) s[i][v] = sums[i * VECTORS + v];
    const vector *w = (const vector *)layout;
    for (int64_t part = 0; part < count; part++) {
        const float *x[PIXELS];
        for (int i = 0; i < pixels; i++) x[i] = inputs[i] + parts[part].input;
        for (int64_t k = 0; k < parts[part].length; k++, w += VECTORS)
            for (int i = 0; i < pixels; i++)
                for (int v = 0; v < VECTORS; v++) s[i][v] += x[i][k] * w[v];
    }
    for (int i = 0; i < pixels; i++)
        for (int v = 0; v < VECTORS; v++) sums[i * VECTORS + v] = s[i][v];
}

static void tiles(int pixels, const float *const *inputs, const stretch *parts, int64_t count,
                  const float *layout, vector *sums) {
    switch (pixels) {
        case 1: tile(1, inputs, parts, count, layout, sums); break;
        case 2: tile(2, inputs, parts, count, layout, sums); break;
        case 3: tile(3, inputs, parts, count, layout, sums); break;
        case 4: tile(4, inputs, parts, count, layout, sums); break;
        case 5: tile(5, inputs, parts, count, layout, sums); break;
        default: tile(6, inputs, parts, count, layout, sums);
    }
}

/* Filters first..first+count of tiles begin..end, counted over images. */
static void block(const problem *p, int64_t first, int64_t count, int64_t begin, int64_t end,
                  float *scratch) {
    int64_t pixels = p->height * p->width, each = (pixels + PIXELS - 1) / PIXELS;
    int64_t size = (pixels + each - 1) / each; /* as even as can be: 25 pixels are 5 x 5 */
    int64_t image_first = begin / each, image_last = (end - 1) / each;
    float *one = scratch, *two = one + DEPTH * FILTERS, *mixed = two + DEPTH * FILTERS;
    stretch parts[DEPTH];
    /* The row of the first image for each filter, and the other one where an image wants it. */
    int64_t row_one[FILTERS], row_two[FILTERS];
    int differ = 0;
    for (int64_t f = 0; f < count; f++) {
        row_one[f] = row_two[f] = p->chosen[image_first * p->filters + first + f];
        for (int64_t n = image_first + 1; n <= image_last; n++) {
            int64_t row = p->chosen[n * p->filters + first + f];
            if (row != row_one[f]) row_two[f] = row, differ = 1;
        }
    }
    int64_t done = 0, at = 0, place = 0; /* weights laid out so far; stretch, and place in it */
    while (done < p->depth) {
        int64_t depth = 0, number = 0;
        while (depth < DEPTH && at < p->stretches) {
            int64_t length = p->stretch - place;
            if (length > DEPTH - depth) length = DEPTH - depth;
            parts[number].input =
                at / p->inner * p->weight_line + at % p->inner * p->inner_step + place;
            parts[number++].length = length;
            depth += length, place += length;
            if (place == p->stretch) place = 0, at++;
        }
        lay_out(p, row_one, count, done, depth, one);
        if (differ) lay_out(p, row_two, count, done, depth, two);
        int64_t shown = -1;
        const float *layout = one;
        float bias[FILTERS] = {0};
        for (int64_t t = begin; t < end; t++) {
            int64_t n = t / each, from = t % each * size;
            const int64_t *own = p->chosen + n * p->filters + first;
            if (n != shown) {
                shown = n;
                for (int64_t f = 0; f < count; f++) bias[f] = p->bias[own[f]];
                layout = one;
                if (differ && memcmp(own, row_one, sizeof(int64_t) * count)) {
                    int32_t take[FILTERS] __attribute__((aligned(4 * LANES))) = {0};
                    for (int64_t f = 0; f < count; f++) take[f] = own[f] == row_one[f] ? -1 : 0;
                    const mask *m = (const mask *)take;
                    const vector *a = (const vector *)one, *b = (const vector *)two;
                    vector *to = (vector *)mixed;
                    for (int64_t k = 0; k < depth; k++)
                        for (int v = 0; v < VECTORS; v++)
                            to[k * VECTORS + v] = (vector)(((mask)a[k * VECTORS + v] & m[v]) |
                                                           ((mask)b[k * VECTORS + v] & ~m[v]));
                    layout = mixed;
                }
            }
            int64_t here = pixels - from < size ? pixels - from : size;
            if (here <= 0) continue;
            vector sums[PIXELS * VECTORS];
            float *flat = (float *)sums;
            const float *inputs[PIXELS];
            for (int64_t i = 0; i < here; i++) {
                int64_t row = (from + i) / p->width, column = (from + i) % p->width;
                inputs[i] = p->x + n * p->image + row * p->line + column * p->step;
                float *y = p->y + (n * pixels + from + i) * p->filters + first;
                if (done == 0)
                    memcpy(flat + i * FILTERS, bias, sizeof bias);
                else if (count == FILTERS)
                    for (int v = 0; v < VECTORS; v++)
                        sums[i * VECTORS + v] = *(const loose *)(y + v * LANES);
                else
                    memcpy(flat + i * FILTERS, y, sizeof(float) * count);
            }
            tiles((int)here, inputs, parts, number, layout, sums);
            for (int64_t i = 0; i < here; i++) {
                float *y = p->y + (n * pixels + from + i) * p->filters + first;
                if (count == FILTERS)
                    for (int v = 0; v < VECTORS; v++)
                        *(loose *)(y + v * LANES) = sums[i * VECTORS + v];
                else
                    memcpy(y, flat + i * FILTERS, sizeof(float) * count);
            }
        }
        done += depth;
    }
}

/* x (images, height, width, channels), padded already; rows (table, kernel_h, kernel_w, channels),
 * bias (table); chosen (images, filters); y (images, out_h, out_w, filters); apart: the dilation.
 * 0 when done, 1 without memory. */
int selected_conv(const float *x, const float *rows, const float *bias, const int64_t *chosen,
                  float *y, int64_t images, int64_t height, int64_t width, int64_t channels,
                  int64_t filters, int64_t kernel_h, int64_t kernel_w, int64_t out_h,
                  int64_t out_w, int64_t stride_h, int64_t stride_w, int64_t apart_h,
                  int64_t apart_w, int threads) {
    problem p = {.x = x, .rows = rows, .bias = bias, .chosen = chosen, .y = y, .filters = filters};
    p.height = out_h, p.width = out_w;
    p.depth = kernel_h * kernel_w * channels;
    p.image = height * width * channels;
    p.line = stride_h * width * channels, p.step = stride_w * channels;
    /* Without dilation a kernel row's inputs lie together. */
    p.inner = apart_w == 1 ? 1 : kernel_w;
    p.stretch = apart_w == 1 ? kernel_w * channels : channels;
    p.stretches = kernel_h * p.inner;
    p.weight_line = apart_h * width * channels, p.inner_step = apart_w * channels;

    int64_t pixels = p.height * p.width, each = (pixels + PIXELS - 1) / PIXELS;
    int64_t all = images * each, blocks = (p.filters + FILTERS - 1) / FILTERS;
    /* Enough pieces to go round, none so small that laying the filters out is most of it. */
    int64_t pieces = (4 * threads + blocks - 1) / blocks;
    if (pieces > all / 16) pieces = all / 16;
    if (pieces < 1) pieces = 1;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = aligned_alloc(64, sizeof(float) * 3 * DEPTH * FILTERS);
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t i = 0; i < pieces; i++) {
                int64_t first = b * FILTERS, count = p.filters - first;
                int64_t begin = all * i / pieces, end = all * (i + 1) / pieces;
                if (scratch && begin < end)
                    block(&p, first, count < FILTERS ? count : FILTERS, begin, end, scratch);
            }
        free(scratch);
    }
    return failed;
}
