/* A convolution in which every image has its own filters, picked from a table: float32, channels
 * last, one group. The filters of a block are laid out once, as vectors over the filters, and serve
 * all images; what an image chose is blended from the two layouts, a few percent of the products.
 * Layouts are as deep as the second cache allows: each further visit reads and writes all of y.
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
    DEPTH = 1024               /* products between two visits of the sums in memory, at most */
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
    const float *residual;                   /* like y, or NULL */
    float *y;
    int relu;
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

/* Two layouts, and which of them an image takes for each filter: all bits of `take` for `one`. */
typedef struct {
    const float *one, *two;
    mask take[VECTORS];
    float *mixed;
} mixture;

/* sums (pixels, FILTERS) += inputs x layout; the number of pixels is a constant to the compiler.
 * With `of`, the layout is blended on the way, and kept in of->mixed. */
static inline __attribute__((always_inline)) void tile(int pixels, const float *const *inputs,
                                                       const stretch *parts, int64_t count,
                                                       const float *layout, const mixture *of,
                                                       vector *sums) {
    vector s[PIXELS][VECTORS];
    for (int i = 0; i < pixels; i++)
        for (int v = 0; v < VECTORS; v++) s[i][v] = sums[i * VECTORS + v];
    const vector *w = (const vector *)layout;
    const mask *one = of ? (const mask *)of->one : 0, *two = of ? (const mask *)of->two : 0;
    vector *mixed = of ? (vector *)of->mixed : 0;
    for (int64_t part = 0; part < count; part++) {
        const float *x[PIXELS];
        for (int i = 0; i < pixels; i++) x[i] = inputs[i] + parts[part].input;
        for (int64_t k = 0; k < parts[part].length; k++, w += VECTORS) {
            if (of) {
                for (int v = 0; v < VECTORS; v++)
                    mixed[v] = (vector)((one[v] & of->take[v]) | (two[v] & ~of->take[v]));
                w = mixed, mixed += VECTORS, one += VECTORS, two += VECTORS;
            }
            for (int i = 0; i < pixels; i++)
                for (int v = 0; v < VECTORS; v++) s[i][v] += x[i][k] * w[v];
        }
    }
    for (int i = 0; i < pixels; i++)
        for (int v = 0; v < VECTORS; v++) sums[i * VECTORS + v] = s[i][v];
}

static void tiles(int pixels, const float *const *inputs, const stretch *parts, int64_t count,
                  const float *layout, vector *sums) {
    switch (pixels) {
        case 1: tile(1, inputs, parts, count, layout, 0, sums); break;
        case 2: tile(2, inputs, parts, count, layout, 0, sums); break;
        case 3: tile(3, inputs, parts, count, layout, 0, sums); break;
        case 4: tile(4, inputs, parts, count, layout, 0, sums); break;
        case 5: tile(5, inputs, parts, count, layout, 0, sums); break;
        default: tile(6, inputs, parts, count, layout, 0, sums);
    }
}

static void mixing_tiles(int pixels, const float *const *inputs, const stretch *parts,
                         int64_t count, const mixture *of, vector *sums) {
    switch (pixels) {
        case 1: tile(1, inputs, parts, count, 0, of, sums); break;
        case 2: tile(2, inputs, parts, count, 0, of, sums); break;
        case 3: tile(3, inputs, parts, count, 0, of, sums); break;
        case 4: tile(4, inputs, parts, count, 0, of, sums); break;
        case 5: tile(5, inputs, parts, count, 0, of, sums); break;
        default: tile(6, inputs, parts, count, 0, of, sums);
    }
}

/* What stands behind the convolution, for one pixel's filters, and into y. */
static inline void finish(const problem *p, vector *sums, int64_t at, int64_t count) {
    float *y = p->y + at, *flat = (float *)sums;
    if (count < FILTERS) {
        for (int64_t f = 0; f < count; f++) {
            float value = p->residual ? flat[f] + p->residual[at + f] : flat[f];
            y[f] = p->relu && value < 0 ? 0 : value; /* NaN stays NaN */
        }
        return;
    }
    for (int v = 0; v < VECTORS; v++) {
        vector value = sums[v];
        if (p->residual) value += *(const loose *)(p->residual + at + v * LANES);
        if (p->relu) value = (vector)((mask)value & ~(mask)(value < 0));
        *(loose *)(y + v * LANES) = value;
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
    int64_t visits = (p->depth + DEPTH - 1) / DEPTH, even = (p->depth + visits - 1) / visits;
    int64_t done = 0, at = 0, place = 0; /* weights laid out so far; stretch, and place in it */
    while (done < p->depth) {
        int64_t depth = 0, number = 0;
        while (depth < even && at < p->stretches) {
            int64_t length = p->stretch - place;
            if (length > even - depth) length = even - depth;
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
        int to_mix = 0;
        mixture of = {.one = one, .two = two, .mixed = mixed};
        float bias[FILTERS] = {0};
        /* Counted on from tile to tile: a division takes as long as a dozen products. */
        int64_t n = image_first, from = begin % each * size;
        int64_t row = from / p->width, column = from % p->width;
        for (int64_t t = begin; t < end; t++, from += size) {
            if (from >= each * size) n++, from = row = column = 0;
            const int64_t *own = p->chosen + n * p->filters + first;
            if (n != shown) {
                shown = n;
                for (int64_t f = 0; f < count; f++) bias[f] = p->bias[own[f]];
                layout = one, to_mix = 0;
                if (differ && memcmp(own, row_one, sizeof(int64_t) * count)) {
                    int32_t *take = (int32_t *)of.take;
                    for (int64_t f = 0; f < count; f++) take[f] = own[f] == row_one[f] ? -1 : 0;
                    layout = mixed, to_mix = 1;
                }
            }
            int64_t here = pixels - from < size ? pixels - from : size;
            if (here <= 0) continue;
            vector sums[PIXELS * VECTORS];
            float *flat = (float *)sums;
            const float *inputs[PIXELS];
            for (int64_t i = 0; i < here; i++) {
                inputs[i] = p->x + n * p->image + row * p->line + column * p->step;
                if (++column == p->width) column = 0, row++;
                float *y = p->y + (n * pixels + from + i) * p->filters + first;
                if (done == 0)
                    memcpy(flat + i * FILTERS, bias, sizeof bias);
                else if (count == FILTERS)
                    for (int v = 0; v < VECTORS; v++)
                        sums[i * VECTORS + v] = *(const loose *)(y + v * LANES);
                else
                    memcpy(flat + i * FILTERS, y, sizeof(float) * count);
            }
            if (to_mix)
                mixing_tiles((int)here, inputs, parts, number, &of, sums), to_mix = 0;
            else
                tiles((int)here, inputs, parts, number, layout, sums);
            for (int64_t i = 0; i < here; i++) {
                int64_t at_y = (n * pixels + from + i) * p->filters + first;
                float *y = p->y + at_y;
                if (done + depth == p->depth)
                    finish(p, sums + i * VECTORS, at_y, count);
                else if (count == FILTERS)
                    for (int v = 0; v < VECTORS; v++)
                        *(loose *)(y + v * LANES) = sums[i * VECTORS + v];
                else
                    memcpy(y, flat + i * FILTERS, sizeof(float) * count);
            }
        }
        done += depth;
    }
}

/* Line `number` of all padded images: zeros around what x has there. */
static void pad_line(const float *x, float *padded, int64_t number, int64_t height, int64_t width,
                     int64_t channels, int64_t pad_h, int64_t pad_w) {
    int64_t wide = (width + 2 * pad_w) * channels, side = pad_w * channels;
    int64_t n = number / (height + 2 * pad_h), h = number % (height + 2 * pad_h) - pad_h;
    float *to = padded + number * wide;
    if (h < 0 || h >= height) {
        memset(to, 0, sizeof(float) * wide);
        return;
    }
    memset(to, 0, sizeof(float) * side);
    memcpy(to + side, x + (n * height + h) * width * channels, sizeof(float) * width * channels);
    memset(to + wide - side, 0, sizeof(float) * side);
}

/* x (images, height, width, channels); padded, room for x with its padding, or NULL without any;
 * rows (table, kernel_h, kernel_w, channels), bias (table); chosen (images, filters); residual, or
 * NULL, and y (images, out_h, out_w, filters); apart: the dilation. 0 when done, 1 without memory. */
int selected_conv(const float *x, float *padded, const float *rows, const float *bias,
                  const int64_t *chosen, const float *residual, float *y, int64_t images,
                  int64_t height, int64_t width, int64_t channels, int64_t filters,
                  int64_t kernel_h, int64_t kernel_w, int64_t out_h, int64_t out_w,
                  int64_t stride_h, int64_t stride_w, int64_t apart_h, int64_t apart_w,
                  int64_t pad_h, int64_t pad_w, int relu, int threads) {
    problem p = {.x = x, .rows = rows, .bias = bias, .chosen = chosen, .y = y, .filters = filters};
    p.residual = residual, p.relu = relu;
    if (padded) {
        int64_t lines = images * (height + 2 * pad_h);
#pragma omp parallel for num_threads(threads)
        for (int64_t number = 0; number < lines; number++)
            pad_line(x, padded, number, height, width, channels, pad_h, pad_w);
        p.x = padded, height += 2 * pad_h, width += 2 * pad_w;
    }
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
