// The passes of a gated layer over its activations on a CPU, each one walk through memory.
//
// Tensors are rows of pixels: image n, pixel p, channel c lies at (n * P + p) * stride + c, so that
// both halves of a stacked tensor are read where they lie. What a channel sums up depends neither
// on the number of threads nor on how channels are dealt out to them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float get(float v) { return v; }
inline double get(double v) { return v; }
inline float get(bf16 v) {
    uint32_t bits = uint32_t(v.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void put(float *to, float v) { *to = v; }
inline void put(double *to, double v) { *to = v; }
inline void put(bf16 *to, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = v == v ? uint16_t(rounded) : uint16_t(0x7fc0);
}

// Sums run in the tensors' own precision over this many pixels, then in double.
constexpr int64_t RUN = 64;
constexpr int64_t WIDEST = 256;
// Pixels whose values are added to a channel's sums before these are stored again, one after the
// other.
constexpr int TURN = 2, LONG_TURN = 4;
constexpr int64_t AHEAD = 2048; // bytes

// Channels summed up together: wide rows, unless that left threads without work.
int64_t width(int64_t N, int64_t C, int threads) {
    int64_t wide = std::min(C, WIDEST);
    return N * ((C + wide - 1) / wide) >= 2 * threads ? wide : std::min<int64_t>(C, 64);
}

// How many pixels ahead memory is asked for. A processor does not look beyond a page by itself, nor
// far where the rows of half a stacked tensor lie apart.
template <class T>
int64_t pixels_ahead(int64_t W) {
    return std::max<int64_t>(2, AHEAD / (W * int64_t(sizeof(T))));
}

// Asks for a row of W channels. It may lie behind the last one: nothing is read.
template <class T>
inline void prefetch(const T *row, int64_t W) {
    for (int64_t c = 0; c < W; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + c);
}

// Mean and variance of all images from those of each, which have the same number of pixels.
template <class A>
void combine(const A *means, const A *vars, int64_t N, int64_t C, A *mean, A *var) {
    std::vector<double> middle(C), spread(C);
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) middle[c] += means[n * C + c];
    for (int64_t c = 0; c < C; ++c) middle[c] /= N;
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const double off = means[n * C + c] - middle[c];
            spread[c] += vars[n * C + c] + off * off;
        }
    for (int64_t c = 0; c < C; ++c) mean[c] = A(middle[c]), var[c] = A(spread[c] / N);
}

template <int PIXELS, class T, class A>
inline void moments_rows(const T *rows, int64_t stride, const A *pivot, int64_t W, A *sum,
                         A *square) {
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) {
        A first = sum[c], second = square[c];
        for (int i = 0; i < PIXELS; ++i) {
            const A off = get(rows[i * stride + c]) - pivot[c];
            first += off;
            second += off * off;
        }
        sum[c] = first, square[c] = second;
    }
}

template <class T, class A>
void moments(const T *y, int64_t stride, int64_t N, int64_t P, int64_t C, A *means, A *vars,
             A *mean, A *var, int threads) {
    const int64_t wide = width(N, C, threads), blocks = (C + wide - 1) / wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < N * blocks; ++item) {
        const int64_t n = item / blocks, first = item % blocks * wide, W = std::min(wide, C - first);
        const T *rows = y + n * P * stride + first;
        A pivot[WIDEST], sum[WIDEST], square[WIDEST];
        double all[WIDEST] = {}, squares[WIDEST] = {};
        // Around the first pixel's value: no digits are lost where the mean is far from zero.
        for (int64_t c = 0; c < W; ++c) pivot[c] = get(rows[c]);
        for (int64_t from = 0; from < P; from += RUN) {
            std::fill(sum, sum + W, A(0));
            std::fill(square, square + W, A(0));
            const int64_t end = std::min(P, from + RUN);
            int64_t p = from;
            for (; p + LONG_TURN <= end; p += LONG_TURN)
                moments_rows<LONG_TURN>(rows + p * stride, stride, pivot, W, sum, square);
            for (; p < end; ++p) moments_rows<1>(rows + p * stride, stride, pivot, W, sum, square);
            for (int64_t c = 0; c < W; ++c) all[c] += sum[c], squares[c] += square[c];
        }
        for (int64_t c = 0; c < W; ++c) {
            const double off = all[c] / P;
            means[n * C + first + c] = A(pivot[c] + off);
            vars[n * C + first + c] = A(std::max(0.0, squares[c] / P - off * off));
        }
    }
    if (mean) combine(means, vars, N, C, mean, var);
}

// Of the images that chose each filter, from the moments of each image: an image weighs g, or 1 - g
// in the other branch, and the running statistics weigh `prior` images times the share that chose
// otherwise. Six rows of C: mean, variance and weight of all these; then the choosers' own mean and
// unbiased variance times their share, and that share.
template <class A>
void choosers(const A *means, const A *vars, const A *g, int tuned, const A *rm, const A *rv,
              double prior, int64_t N, int64_t P, int64_t C, A *rows) {
    std::vector<double> total(C), middle(C), spread(C);
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const double weight = tuned ? g[n * C + c] : A(1) - g[n * C + c];
            total[c] += weight, middle[c] += weight * means[n * C + c];
        }
    for (int64_t c = 0; c < C; ++c) middle[c] /= total[c] > 0 ? total[c] : 1;
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const double weight = tuned ? g[n * C + c] : A(1) - g[n * C + c];
            const double off = means[n * C + c] - middle[c];
            spread[c] += weight * (vars[n * C + c] + off * off);
        }
    for (int64_t c = 0; c < C; ++c) {
        const double share = total[c] / N, own = spread[c] / (total[c] > 0 ? total[c] : 1);
        const double added = std::max(0.0, prior * (1 - share)), all = total[c] + added;
        // As a step from the choosers' own: exactly theirs if all chose, the running ones if none.
        const double part = added / all, off = rm[c] - middle[c];
        const double var = own + part * (rv[c] - own) + part * (1 - part) * off * off;
        rows[c] = A(middle[c] + part * off);
        rows[C + c] = A(std::max(0.0, var));
        rows[2 * C + c] = A(all);
        // A single value has no variance: then the running one stays.
        const double count = total[c] * P, factor = count / std::max(count - 1, 1.0);
        rows[3 * C + c] = A(share) * A(middle[c]);
        rows[4 * C + c] = A(share) * (count > 1 ? A(own) * A(factor) : rv[c]);
        rows[5 * C + c] = A(share);
    }
}

template <class A>
void coefficients(const A *g, const A *w1, const A *b1, const A *m1, const A *v1, double eps1,
                  const A *w2, const A *b2, const A *m2, const A *v2, double eps2, int64_t N,
                  int64_t C, A *a1, A *a2, A *b, A *rstd1, A *rstd2) {
    std::vector<A> both(4 * C);
    A *scale1 = both.data(), *scale2 = scale1 + C, *shift1 = scale2 + C, *shift2 = shift1 + C;
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
        rstd1[c] = A(1) / std::sqrt(v1[c] + A(eps1)), rstd2[c] = A(1) / std::sqrt(v2[c] + A(eps2));
        scale1[c] = w1[c] * rstd1[c], scale2[c] = w2[c] * rstd2[c];
        shift1[c] = b1[c] - m1[c] * scale1[c], shift2[c] = b2[c] - m2[c] * scale2[c];
    }
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const int64_t at = n * C + c;
            const A other = 1 - g[at];
            a1[at] = g[at] * scale1[c], a2[at] = other * scale2[c];
            b[at] = other * shift2[c] + g[at] * shift1[c];
        }
}

// q and r of dy = p dz + q (y - mean) + r: by an image's weight in the statistics, which are those
// of `total` images' worth, or of all alike without it; zero where they are not the batch's own.
template <class A>
void input_gradient(const A *g, bool tuned, const A *w, const A *rstd, const A *dw, const A *db,
                    int batch, const A *total, int64_t pixels, int64_t N, int64_t C, A *q, A *r) {
    std::vector<A> both(2 * C);
    A *of_q = both.data(), *of_r = of_q + C;
    for (int64_t c = 0; batch && c < C; ++c) {
        const A each = w[c] * rstd[c] / ((total ? total[c] : A(N)) * A(pixels));
        of_q[c] = -each * rstd[c] * dw[c], of_r[c] = -each * db[c];
    }
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const int64_t at = n * C + c;
            const A weight = !total ? A(1) : tuned ? g[at] : 1 - g[at];
            q[at] = weight * of_q[c], r[at] = weight * of_r[c];
        }
}

template <class A>
void gradients(const A *g, const A *s0, const A *s1, const A *s2, const A *w1, const A *b1,
               const A *rstd1, int batch1, const A *total1, const A *w2, const A *b2,
               const A *rstd2, int batch2, const A *total2, int64_t pixels, int64_t N, int64_t C,
               A *dg, A *dw1, A *db1, A *dw2, A *db2, A *p1, A *q1, A *r1, A *p2, A *q2, A *r2) {
    for (A *sum : {dw1, db1, dw2, db2}) std::fill(sum, sum + C, A(0));
    for (int64_t n = 0; n < N; ++n)
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const int64_t at = n * C + c;
            const A on = g[at], off = 1 - on, t0 = s0[at];
            const A t1 = s1[at] * rstd1[c], t2 = s2[at] * rstd2[c]; // times what was normalised
            // w1 t1 - w2 t2 by differences: exactly zero where both branches are the same, also
            // where the compiler fuses a product with its sum.
            const A apart = (s1[at] - s2[at]) * rstd1[c] + s2[at] * (rstd1[c] - rstd2[c]);
            dg[at] = w1[c] * apart + (w1[c] - w2[c]) * t2 + (b1[c] - b2[c]) * t0;
            dw1[c] += on * t1, db1[c] += on * t0, dw2[c] += off * t2, db2[c] += off * t0;
            p1[at] = on * w1[c] * rstd1[c], p2[at] = off * w2[c] * rstd2[c];
        }
    input_gradient(g, true, w1, rstd1, dw1, db1, batch1, total1, pixels, N, C, q1, r1);
    input_gradient(g, false, w2, rstd2, dw2, db2, batch2, total2, pixels, N, C, q2, r2);
}

template <bool RESIDUAL, bool RELU, int PIXELS, class T, class A>
inline void blend_turn(const T *row1, int64_t stride1, const T *row2, int64_t stride2, const A *a1,
                       const A *a2, const A *b, const T *third, int64_t C, int64_t W, T *to,
                       A *sum) {
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) {
        A all = sum[c];
        for (int i = 0; i < PIXELS; ++i) {
            // The branch that was not chosen stays out, even if it is not finite. Both are read and
            // multiplied: reading one or the other takes twice as long.
            const A one = a1[c] * get(row1[i * stride1 + c]);
            const A two = a2[c] * get(row2[i * stride2 + c]);
            A value = (a1[c] == 0 ? A(0) : one) + (a2[c] == 0 ? A(0) : two) + b[c];
            if (RESIDUAL) value += get(third[i * C + c]);
            if (RELU) value = value < 0 ? A(0) : value; // not max(): a NaN stays one
            T stored;
            put(&stored, value);
            to[i * C + c] = stored;
            all += get(stored);
        }
        sum[c] = all;
    }
}

template <bool RESIDUAL, bool RELU, class T, class A>
void blend_rows(const T *y1, int64_t stride1, const T *y2, int64_t stride2, const A *a1,
                const A *a2, const A *b, const T *residual, int64_t rows, int64_t C, int64_t W,
                T *out, A *sum) {
    const int64_t ahead = pixels_ahead<T>(W);
    int64_t p = 0;
    for (; p + TURN <= rows; p += TURN) {
        for (int64_t next = p + ahead; next < p + ahead + TURN; ++next) {
            prefetch(y1 + next * stride1, W), prefetch(y2 + next * stride2, W);
            if (RESIDUAL) prefetch(residual + next * C, W);
        }
        blend_turn<RESIDUAL, RELU, TURN>(y1 + p * stride1, stride1, y2 + p * stride2, stride2, a1,
                                         a2, b, residual + p * C, C, W, out + p * C, sum);
    }
    for (; p < rows; ++p)
        blend_turn<RESIDUAL, RELU, 1>(y1 + p * stride1, stride1, y2 + p * stride2, stride2, a1, a2,
                                      b, residual + p * C, C, W, out + p * C, sum);
}

template <class T, class A>
void blend(const T *y1, int64_t stride1, const T *y2, int64_t stride2, const A *a1, const A *a2,
           const A *b, const T *residual, int relu, int64_t N, int64_t P, int64_t C, T *out,
           A *mean, int threads) {
    const auto rows = residual ? (relu ? blend_rows<true, true, T, A> : blend_rows<true, false, T, A>)
                               : (relu ? blend_rows<false, true, T, A> : blend_rows<false, false, T, A>);
    const int64_t wide = width(N, C, threads), blocks = (C + wide - 1) / wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < N * blocks; ++item) {
        const int64_t n = item / blocks, first = item % blocks * wide, W = std::min(wide, C - first);
        const int64_t here = n * C + first;
        A sum[WIDEST];
        double all[WIDEST] = {};
        for (int64_t from = 0; from < P; from += RUN) {
            const int64_t at = n * P + from, to = at * C + first;
            std::fill(sum, sum + W, A(0));
            rows(y1 + at * stride1 + first, stride1, y2 + at * stride2 + first, stride2, a1 + here,
                 a2 + here, b + here, residual ? residual + to : out + to, std::min(RUN, P - from),
                 C, W, out + to, sum);
            for (int64_t c = 0; c < W; ++c) all[c] += sum[c];
        }
        for (int64_t c = 0; c < W; ++c) mean[here + c] = A(all[c] / P);
    }
}

template <bool RELU, int PIXELS, class T, class A>
inline void sums_turn(const T *of, const A *also, const T *kept, const T *row1, int64_t stride1,
                      const T *row2, int64_t stride2, const A *m1, const A *m2, int64_t C,
                      int64_t W, A *t0, A *t1, A *t2) {
#pragma omp simd
    for (int64_t c = 0; c < W; ++c) {
        A all0 = t0[c], all1 = t1[c], all2 = t2[c];
        for (int i = 0; i < PIXELS; ++i) {
            const A added = get(of[i * C + c]) + also[c];
            const A z = !RELU || get(kept[i * C + c]) > 0 ? added : A(0);
            all0 += z;
            all1 += z * (get(row1[i * stride1 + c]) - m1[c]);
            all2 += z * (get(row2[i * stride2 + c]) - m2[c]);
        }
        t0[c] = all0, t1[c] = all1, t2[c] = all2;
    }
}

template <bool RELU, class T, class A>
void sums_rows(const T *grad, const A *also, const T *out, const T *y1, int64_t stride1,
               const T *y2, int64_t stride2, const A *m1, const A *m2, int64_t rows, int64_t C,
               int64_t W, A *t0, A *t1, A *t2) {
    const int64_t ahead = pixels_ahead<T>(W);
    const T *kept = RELU ? out : grad;
    int64_t p = 0;
    for (; p + TURN <= rows; p += TURN) {
        for (int64_t next = p + ahead; next < p + ahead + TURN; ++next) {
            prefetch(grad + next * C, W);
            if (RELU) prefetch(out + next * C, W);
            prefetch(y1 + next * stride1, W), prefetch(y2 + next * stride2, W);
        }
        sums_turn<RELU, TURN>(grad + p * C, also, kept + p * C, y1 + p * stride1, stride1,
                              y2 + p * stride2, stride2, m1, m2, C, W, t0, t1, t2);
    }
    for (; p < rows; ++p)
        sums_turn<RELU, 1>(grad + p * C, also, kept + p * C, y1 + p * stride1, stride1,
                           y2 + p * stride2, stride2, m1, m2, C, W, t0, t1, t2);
}

template <class T, class A>
void sums(const T *grad, const A *more, const T *out, const T *y1, int64_t stride1, const T *y2,
          int64_t stride2, const A *m1, const A *m2, int64_t N, int64_t P, int64_t C, A *s0, A *s1,
          A *s2, int threads) {
    const auto rows = out ? sums_rows<true, T, A> : sums_rows<false, T, A>;
    const int64_t wide = width(N, C, threads), blocks = (C + wide - 1) / wide;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < N * blocks; ++item) {
        const int64_t n = item / blocks, first = item % blocks * wide, W = std::min(wide, C - first);
        const int64_t here = n * C + first;
        A also[WIDEST] = {}, t0[WIDEST], t1[WIDEST], t2[WIDEST];
        if (more) std::copy(more + here, more + here + W, also);
        double all0[WIDEST] = {}, all1[WIDEST] = {}, all2[WIDEST] = {};
        for (int64_t from = 0; from < P; from += RUN) {
            const int64_t at = n * P + from, to = at * C + first;
            std::fill(t0, t0 + W, A(0));
            std::fill(t1, t1 + W, A(0));
            std::fill(t2, t2 + W, A(0));
            rows(grad + to, also, out ? out + to : nullptr, y1 + at * stride1 + first, stride1,
                 y2 + at * stride2 + first, stride2, m1 + first, m2 + first,
                 std::min(RUN, P - from), C, W, t0, t1, t2);
            for (int64_t c = 0; c < W; ++c)
                all0[c] += t0[c], all1[c] += t1[c], all2[c] += t2[c];
        }
        for (int64_t c = 0; c < W; ++c)
            s0[here + c] = A(all0[c]), s1[here + c] = A(all1[c]), s2[here + c] = A(all2[c]);
    }
}

template <bool RELU, bool RESIDUAL, class T, class A>
void spread_rows(const T *grad, const A *more, const T *out, const T *y1, int64_t stride1,
                 const T *y2, int64_t stride2, const A *m1, const A *q1, const A *r1, const A *m2,
                 const A *q2, const A *r2, const A *p1, const A *p2, int64_t rows, int64_t C,
                 T *dy1, T *dy2, int64_t stride, T *dz) {
    const int64_t ahead = pixels_ahead<T>(C);
    for (int64_t p = 0; p < rows; ++p) {
        prefetch(grad + (p + ahead) * C, C);
        if (RELU) prefetch(out + (p + ahead) * C, C);
        prefetch(y1 + (p + ahead) * stride1, C), prefetch(y2 + (p + ahead) * stride2, C);
        const T *of = grad + p * C, *kept = RELU ? out + p * C : of;
        const T *row1 = y1 + p * stride1, *row2 = y2 + p * stride2;
        T *to1 = dy1 + p * stride, *to2 = dy2 + p * stride, *too = RESIDUAL ? dz + p * C : nullptr;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const A z = !RELU || get(kept[c]) > 0 ? get(of[c]) + more[c] : A(0);
            put(to1 + c, p1[c] * z + (q1[c] * (get(row1[c]) - m1[c]) + r1[c]));
            put(to2 + c, p2[c] * z + (q2[c] * (get(row2[c]) - m2[c]) + r2[c]));
            if (RESIDUAL) put(too + c, z);
        }
    }
}

template <class T, class A>
void spread(const T *grad, const A *more, const T *out, const T *y1, int64_t stride1, const T *y2,
            int64_t stride2, const A *m1, const A *q1, const A *r1, const A *m2, const A *q2,
            const A *r2, const A *p1, const A *p2, int64_t N, int64_t P, int64_t C, T *dy1, T *dy2,
            int64_t stride, T *dz, int threads) {
    const auto rows = out ? (dz ? spread_rows<true, true, T, A> : spread_rows<true, false, T, A>)
                          : (dz ? spread_rows<false, true, T, A> : spread_rows<false, false, T, A>);
    const int64_t pieces = (P + RUN - 1) / RUN;
    const std::vector<A> nothing(more ? 0 : C);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < N * pieces; ++item) {
        const int64_t n = item / pieces, from = item % pieces * RUN, at = n * P + from;
        rows(grad + at * C, more ? more + n * C : nothing.data(), out ? out + at * C : nullptr,
             y1 + at * stride1, stride1, y2 + at * stride2, stride2, m1, q1 + n * C, r1 + n * C, m2,
             q2 + n * C, r2 + n * C, p1 + n * C, p2 + n * C, std::min(RUN, P - from), C, dy1 + at * stride,
             dy2 + at * stride, stride, dz ? dz + at * C : nullptr);
    }
}

}  // namespace

#define PASSES(NAME, T, A)                                                                         \
    extern "C" void moments_##NAME(const T *y, int64_t stride, int64_t N, int64_t P, int64_t C,    \
                                   A *means, A *vars, A *mean, A *var, int threads) {              \
        moments<T, A>(y, stride, N, P, C, means, vars, mean, var, threads);                        \
    }                                                                                              \
    extern "C" void blend_##NAME(const T *y1, int64_t stride1, const T *y2, int64_t stride2,       \
                                 const A *a1, const A *a2, const A *b, const T *residual,          \
                                 int relu, int64_t N, int64_t P, int64_t C, T *out, A *mean,       \
                                 int threads) {                                                    \
        blend<T, A>(y1, stride1, y2, stride2, a1, a2, b, residual, relu, N, P, C, out, mean,       \
                    threads);                                                                      \
    }                                                                                              \
    extern "C" void sums_##NAME(const T *grad, const A *more, const T *out, const T *y1,           \
                                int64_t stride1, const T *y2, int64_t stride2, const A *m1,        \
                                const A *m2, int64_t N, int64_t P, int64_t C, A *s0, A *s1, A *s2, \
                                int threads) {                                                     \
        sums<T, A>(grad, more, out, y1, stride1, y2, stride2, m1, m2, N, P, C, s0, s1, s2,         \
                   threads);                                                                       \
    }                                                                                              \
    extern "C" void spread_##NAME(const T *grad, const A *more, const T *out, const T *y1,         \
                                  int64_t stride1, const T *y2, int64_t stride2, const A *m1,      \
                                  const A *q1, const A *r1, const A *m2, const A *q2, const A *r2, \
                                  const A *p1, const A *p2, int64_t N, int64_t P, int64_t C,       \
                                  T *dy1, T *dy2, int64_t stride, T *dz, int threads) {            \
        spread<T, A>(grad, more, out, y1, stride1, y2, stride2, m1, q1, r1, m2, q2, r2, p1, p2, N, \
                     P, C, dy1, dy2, stride, dz, threads);                                         \
    }

// Between the passes: arithmetic on (C,) and (N, C), too small to be dealt out.
#define SMALL(NAME, A)                                                                             \
    extern "C" void coefficients_##NAME(const A *g, const A *w1, const A *b1, const A *m1,         \
                                        const A *v1, double eps1, const A *w2, const A *b2,        \
                                        const A *m2, const A *v2, double eps2, int64_t N,          \
                                        int64_t C, A *a1, A *a2, A *b, A *rstd1, A *rstd2) {       \
        coefficients(g, w1, b1, m1, v1, eps1, w2, b2, m2, v2, eps2, N, C, a1, a2, b, rstd1,        \
                     rstd2);                                                                       \
    }                                                                                              \
    extern "C" void gradients_##NAME(                                                              \
        const A *g, const A *s0, const A *s1, const A *s2, const A *w1, const A *b1,               \
        const A *rstd1, int batch1, const A *total1, const A *w2, const A *b2, const A *rstd2,     \
        int batch2, const A *total2, int64_t pixels, int64_t N, int64_t C, A *dg, A *dw1, A *db1,  \
        A *dw2, A *db2, A *p1, A *q1, A *r1, A *p2, A *q2, A *r2) {                                \
        gradients(g, s0, s1, s2, w1, b1, rstd1, batch1, total1, w2, b2, rstd2, batch2, total2,     \
                  pixels, N, C, dg, dw1, db1, dw2, db2, p1, q1, r1, p2, q2, r2);                   \
    }                                                                                              \
    extern "C" void choosers_##NAME(const A *means, const A *vars, const A *g, int tuned,          \
                                    const A *rm, const A *rv, double prior, int64_t N, int64_t P,  \
                                    int64_t C, A *rows) {                                          \
        choosers(means, vars, g, tuned, rm, rv, prior, N, P, C, rows);                             \
    }

SMALL(float32, float)
SMALL(float64, double)
PASSES(float32, float, float)
PASSES(float64, double, double)
PASSES(bfloat16, bf16, float)
