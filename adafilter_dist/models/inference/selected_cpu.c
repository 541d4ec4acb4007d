/* A convolution in which every image has its own filters, one of two each: float32, channels last,
 * one group. Filters lie in blocks, as vectors over the filters of a block, all frozen ones of it,
 * then all tuned ones; what an image chose is blended of the two within its first tile of pixels.
 *
 * Compiled on first use, see native.py. GNU C vectors, so GCC or Clang, any processor.
 */
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 };
#else
enum { LANES = 8, VECTORS = 2 };
#endif
enum {
    FILTERS = LANES * VECTORS, /* of a block */
    PIXELS = 6,                /* of a tile: with FILTERS, what the registers hold as sums */
    DEPTH = 1024,              /* products between two visits of the sums in memory, at most */
    NEAR = 1 << 16             /* floats of x that a cache holds beside all else */
};

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

/* A stretch of inputs that lie together, and how many. */
typedef struct {
    int64_t input, length;
} stretch;

typedef struct {
    const float *x, *layouts, *bias;         /* layouts (blocks, 2, depth, FILTERS) */
    const uint8_t *bits;
    const float *residual;                   /* like y, or NULL */
    float *y;
    int relu;
    int64_t filters, depth;                  /* channels of the output; weights of a filter */
    int64_t image, line, step;               /* floats from image, row, column to the next */
    int64_t height, width;                   /* of the output */
    int64_t stretches, stretch, weight_line; /* per filter; floats each; to the next one's input */
    int64_t inner, inner_step;               /* stretches in a kernel row; floats between them */
} problem;

/* Two layouts, and which of them an image takes for each filter: all bits of `take` for `tuned`. */
typedef struct {
    const float *frozen, *tuned;
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
    const mask *frozen = of ? (const mask *)of->frozen : 0;
    const mask *tuned = of ? (const mask *)of->tuned : 0;
    vector *mixed = of ? (vector *)of->mixed : 0;
    for (int64_t part = 0; part < count; part++) {
        const float *x[PIXELS];
        for (int i = 0; i < pixels; i++) x[i] = inputs[i] + parts[part].input;
        for (int64_t k = 0; k < parts[part].length; k++, w += VECTORS) {
            if (of) {
                for (int v = 0; v < VECTORS; v++)
                    mixed[v] = (vector)((tuned[v] & of->take[v]) | (frozen[v] & ~of->take[v]));
                w = mixed, mixed += VECTORS, frozen += VECTORS, tuned += VECTORS;
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

/* What image n takes of a block's layouts: one of them as it is, or else of->mixed, to be made. */
static const float *layout_of(const problem *p, int64_t n, int64_t first, int64_t count,
                              mixture *of, float *bias) {
    const uint8_t *bits = p->bits + n * p->filters + first;
    int32_t *take = (int32_t *)of->take;
    int64_t tuned = 0;
    for (int64_t f = 0; f < count; f++) {
        tuned += bits[f] != 0;
        take[f] = bits[f] ? -1 : 0;
        bias[f] = p->bias[(bits[f] ? p->filters : 0) + first + f];
    }
    return tuned == 0 ? of->frozen : tuned == count ? of->tuned : of->mixed;
}

/* Filters first..first+count of tiles begin..end, counted over images. */
static void block(const problem *p, int64_t first, int64_t count, int64_t begin, int64_t end) {
    static _Thread_local vector mixed[DEPTH * VECTORS];
    int64_t pixels = p->height * p->width, each = (pixels + PIXELS - 1) / PIXELS;
    int64_t size = (pixels + each - 1) / each; /* as even as can be: 25 pixels are 5 x 5 */
    int64_t visits = (p->depth + DEPTH - 1) / DEPTH, even = (p->depth + visits - 1) / visits;
    stretch parts[DEPTH];
    int64_t done = 0, at = 0, place = 0; /* products done so far; stretch, and place in it */
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
        mixture of = {.frozen = p->layouts + (2 * first * p->depth + done * FILTERS)};
        of.tuned = of.frozen + p->depth * FILTERS, of.mixed = (float *)mixed;
        float bias[FILTERS] = {0};
        const float *layout = 0;
        int to_mix = 0;
        /* Counted on from tile to tile: a division takes as long as a dozen products. */
        int64_t n = begin / each, from = begin % each * size, shown = -1;
        int64_t row = from / p->width, column = from % p->width;
        for (int64_t t = begin; t < end; t++, from += size) {
            if (from >= each * size) n++, from = row = column = 0;
            if (n != shown) {
                layout = layout_of(p, n, first, count, &of, bias);
                shown = n, to_mix = layout == of.mixed;
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

/* Filters of a block. */
int block_of_filters(void) { return FILTERS; }

/* x (images, height, width, channels); padded, room for x with its padding, or NULL without any;
 * layouts (blocks, 2, kernel_h * kernel_w * channels, block_of_filters()), zeros beyond the last
 * filter; bias (2, filters); bits (images, filters), 1 tuned; residual, or NULL, and y (images,
 * out_h, out_w, filters); apart: the dilation. */
void selected_conv(const float *x, float *padded, const float *layouts, const float *bias,
                  const uint8_t *bits, const float *residual, float *y, int64_t images,
                  int64_t height, int64_t width, int64_t channels, int64_t filters,
                  int64_t kernel_h, int64_t kernel_w, int64_t out_h, int64_t out_w,
                  int64_t stride_h, int64_t stride_w, int64_t apart_h, int64_t apart_w,
                  int64_t pad_h, int64_t pad_w, int relu, int threads) {
    problem p = {.x = x, .layouts = layouts, .bias = bias, .bits = bits, .y = y};
    p.filters = filters;
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
    /* Pieces of x that stay in a cache while all filters go over them, unless that meant to fetch
     * the filters more often than x; enough to go round; none so small that blending is most. */
    int64_t fetched = blocks * 2 * p.depth * FILTERS / 2, piece = fetched > NEAR ? fetched : NEAR;
    int64_t pieces = (images * p.image + piece - 1) / piece, least = 4 * threads;
    if (pieces * blocks < least) pieces = (least + blocks - 1) / blocks;
    if (pieces > all / 16) pieces = all / 16;
    if (pieces < 1) pieces = 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
    for (int64_t i = 0; i < pieces; i++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * FILTERS, count = p.filters - first;
            /* Whole images where there are enough: what one takes is blended once. */
            int64_t from = pieces > images ? all * i / pieces : images * i / pieces * each;
            int64_t to = pieces > images ? all * (i + 1) / pieces : images * (i + 1) / pieces * each;
            if (from < to) block(&p, first, count < FILTERS ? count : FILTERS, from, to);
        }
}
