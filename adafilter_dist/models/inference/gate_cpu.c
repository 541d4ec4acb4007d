/* One step of the recurrent gate for a few images: mean over the pixels, layer norm, projection,
 * LSTM, logits. float32. In PyTorch these are some twenty operations, each on a few thousand
 * numbers, and starting them takes longer than computing.
 *
 * Compiled on first use, see native.py. GNU C vectors, so GCC or Clang, any processor.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A thread pools at most MOST_CHANNELS at a time. Sums over PIXELS_IN_FLOAT pixels are float, sums of
 * those are double. */
enum { LANES = 16, MOST_CHANNELS = 1024, PIXELS_IN_FLOAT = 64, WORTH_THREADS = 1 << 19 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

/* The inner product of n numbers. */
static float dot(const float *a, const float *b, int64_t n) {
    vector sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int v = 0; v < 4; v++)
            sums[v] += *(const vector *)(a + i + v * LANES) * *(const vector *)(b + i + v * LANES);
    for (; i + LANES <= n; i += LANES)
        sums[0] += *(const vector *)(a + i) * *(const vector *)(b + i);
    sums[0] += sums[1] + (sums[2] + sums[3]);
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums[0][lane];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* y (images, rows) += x (images, n) times weight (rows, n); each row is read once for all images. */
static void add_product(const float *x, const float *weight, float *y, int64_t images, int64_t rows,
                        int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) if (images * rows * n >= WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < images; i++) y[i * rows + r] += dot(x + i * n, weight + r * n, n);
}

static void repeat(const float *row, float *y, int64_t images, int64_t n) {
    for (int64_t i = 0; i < images; i++) memcpy(y + i * n, row, sizeof(float) * n);
}

/* Mean over the pixels of an image (pixels, channels), of count channels from first on: float sums
 * over a few pixels, double sums of those. */
static void pool(const float *restrict x, float *restrict mean, int64_t pixels, int64_t channels,
                 int64_t first, int64_t count) {
    double total[MOST_CHANNELS] = {0};
    float sums[MOST_CHANNELS];
    for (int64_t p = 0; p < pixels; p += PIXELS_IN_FLOAT) {
        int64_t end = p + PIXELS_IN_FLOAT < pixels ? p + PIXELS_IN_FLOAT : pixels;
        memset(sums, 0, sizeof(float) * count);
        for (int64_t q = p; q < end; q++) {
            const float *restrict row = x + q * channels + first;
            for (int64_t c = 0; c < count; c++) sums[c] += row[c];
        }
        for (int64_t c = 0; c < count; c++) total[c] += sums[c];
    }
    for (int64_t c = 0; c < count; c++) mean[first + c] = (float)(total[c] / pixels);
}

static void normalise(float *row, int64_t n) {
    double mean = 0, square = 0;
    for (int64_t c = 0; c < n; c++) mean += row[c];
    mean /= n;
    for (int64_t c = 0; c < n; c++) square += (row[c] - mean) * (row[c] - mean);
    double scale = 1 / sqrt(square / n + 1e-5); /* torch's own eps */
    for (int64_t c = 0; c < n; c++) row[c] = (float)((row[c] - mean) * scale);
}

static float sigmoid(float z) { return 1 / (1 + expf(-z)); }

/* x (images, pixels, channels). into (hidden, channels) and its bias are null where input (4 hidden,
 * channels) takes the channels themselves; else input is (4 hidden, hidden). recurrent (4 hidden,
 * hidden), out (filters, hidden), null where no logits are wanted. state and memory (images,
 * hidden) are read and replaced. 0 when done, 1 without memory. */
int gate_step(const float *x, const float *into, const float *into_bias, const float *input,
              const float *input_bias, const float *recurrent, const float *recurrent_bias,
              const float *out, const float *out_bias, float *state, float *memory, float *logits,
              int64_t images, int64_t pixels, int64_t channels, int64_t hidden, int64_t filters,
              int norm, int threads) {
    float *scratch = malloc(sizeof(float) * images * (channels + 5 * hidden));
    if (!scratch) return 1;
    float *pooled = scratch, *u = pooled + images * channels, *z = u + images * hidden;
    /* One block of all channels, as they lie in memory, if there is an image for each thread. */
    int64_t per_block = images < threads ? (channels + threads - 1) / threads : channels;
    if (per_block > MOST_CHANNELS) per_block = MOST_CHANNELS;
    int64_t blocks = (channels + per_block - 1) / per_block;
#pragma omp parallel for num_threads(threads) if (images * pixels * channels >= WORTH_THREADS)
    for (int64_t s = 0; s < images * blocks; s++) {
        int64_t i = s / blocks, first = s % blocks * per_block;
        int64_t count = channels - first < per_block ? channels - first : per_block;
        pool(x + i * pixels * channels, pooled + i * channels, pixels, channels, first, count);
    }
    if (norm)
        for (int64_t i = 0; i < images; i++) normalise(pooled + i * channels, channels);
    const float *from = pooled;
    int64_t width = channels;
    if (into) {
        repeat(into_bias, u, images, hidden);
        add_product(pooled, into, u, images, hidden, channels, threads);
        from = u, width = hidden;
    }
    repeat(input_bias, z, images, 4 * hidden);
    add_product(from, input, z, images, 4 * hidden, width, threads);
    add_product(state, recurrent, z, images, 4 * hidden, hidden, threads);
    for (int64_t i = 0; i < images; i++)
        for (int64_t j = 0; j < hidden; j++) {
            float part[4];
            for (int g = 0; g < 4; g++)
                part[g] = z[(i * 4 + g) * hidden + j] + recurrent_bias[g * hidden + j];
            float *c = memory + i * hidden + j;
            *c = sigmoid(part[1]) * *c + sigmoid(part[0]) * tanhf(part[2]);
            state[i * hidden + j] = sigmoid(part[3]) * tanhf(*c);
        }
    if (out) {
        repeat(out_bias, logits, images, filters);
        add_product(state, out, logits, images, filters, hidden, threads);
    }
    free(scratch);
    return 0;
}
