// The spatial kernel as a Gaussian cut off at three sigmas: separable, and exact within that radius. For sigmas of a
// pixel or two it costs less than a lattice, which would have more vertices than the image has pixels.
//
// A pass blurs each row of Q as it is made and keeps it; the next pass blurs along the columns where it needs the
// message. One buffer serves both: row y is written where row y - radius of the pass before stood, which no later row
// needs.
#pragma once

#include <cmath>
#include <cstring>

#include "lattice.hpp"

namespace {

struct Separable {
    int height = 0, width = 0, vectors = 0, radius = 0;
    float* taps = nullptr;          // (2 radius + 1), the middle one is 1
    float* factors = nullptr;       // (height, width): normalisation and root of the weight; 0 if not valid
    float* plane = nullptr;         // rows of weighted Q with `radius` zero pixels on either side
    int64_t next_row = 0;           // floats between two rows; 0 if one serves all: with frozen pixels, they are kept
    float* row = nullptr;           // the row that the pass writes
    bool halves = false;            // type of `sums`: halves or floats
    void* sums = nullptr;           // (height + radius) rows of Q blurred along the row, as a ring
    int64_t* lines = nullptr;       // where in `sums` the rows within the radius of that row begin
    int64_t first = 0, read_from = 0, write_to = 0;

    int64_t line() const { return int64_t(width) * vectors * LANES; }
    int64_t ring() const { return int64_t(height) + radius; }

    void prepare(Workspace& work, const crf::Request& ask, int class_vectors) {
        height = ask.height;
        width = ask.width;
        vectors = class_vectors;
        const int longest = height > width ? height : width;
        const double wanted = std::ceil(3.0 * double(ask.pos_xy));
        radius = wanted < longest ? int(wanted) : longest;
        const size_t pixels = size_t(height) * size_t(width), seen = size_t(2 * radius + 1);
        const size_t row_floats = size_t(width + 2 * radius) * size_t(vectors) * LANES;
        const size_t plane_floats = row_floats * (ask.freeze < 1 ? size_t(height) : 1);
        next_row = ask.freeze < 1 ? int64_t(row_floats) : 0;
        const size_t bytes = plane_floats * 4 + seen * sizeof(int64_t) + (seen + 2 * pixels) * 4;
        plane = static_cast<float*>(work.scalars.reserve(bytes));
        lines = reinterpret_cast<int64_t*>(plane + plane_floats);
        taps = reinterpret_cast<float*>(lines + seen);
        factors = taps + seen;
        std::memset(plane, 0, plane_floats * 4);
        for (int r = -radius; r <= radius; ++r) {
            taps[r + radius] = std::exp(-0.5f * float(r) * float(r) / (ask.pos_xy * ask.pos_xy));
        }
        normalise(ask, factors + pixels);
        // A number of a row is at most the sum of the taps times the largest factor: a valid pixel counts itself, so that
        // its factor is at most the root of the weight.
        double largest = 0;
        for (int r = 0; r <= 2 * radius; ++r) largest += double(taps[r]) * std::sqrt(double(ask.pos_w));
        halves = HAVE_HALVES && largest < LARGEST_HALF;
        sums = work.messages.reserve(size_t(ring() * line()) * (halves ? sizeof(Half) : sizeof(float)));
    }

    // factors = sqrt(weight / (kernel * valid))
    void normalise(const crf::Request& ask, float* along) {
        for (int64_t y = 0; y < height; ++y) {
            for (int64_t x = 0; x < width; ++x) {
                float sum = 0;
                for (int64_t c = x < radius ? 0 : x - radius; c < width && c <= x + radius; ++c) {
                    if (!ask.valid || ask.valid[y * width + c]) sum += taps[c - x + radius];
                }
                along[y * width + x] = sum;
            }
        }
        const float root = __builtin_sqrtf(ask.pos_w);
        for (int64_t y = 0; y < height; ++y) {
            float* out = factors + y * width;
            std::memset(out, 0, size_t(width) * 4);
            for (int64_t c = y < radius ? 0 : y - radius; c < height && c <= y + radius; ++c) {
                for (int64_t x = 0; x < width; ++x) out[x] += taps[c - y + radius] * along[c * width + x];
            }
            for (int64_t x = 0; x < width; ++x) {
                const bool valid = !ask.valid || ask.valid[y * width + x];
                out[x] = valid ? root / __builtin_sqrtf(out[x] + 1e-20f) : 0.0f;
            }
        }
    }

    // The next pass reads the rows that this one wrote.
    void turn() {
        read_from = write_to;
        write_to = (write_to + ring() - radius) % ring();
    }

    void start_row(int y) {
        row = plane + y * next_row;
        first = y < radius ? 0 : y - radius;
        const int64_t last = y + radius < height ? y + radius : height - 1;
        for (int64_t r = first; r <= last; ++r) lines[r - first] = (read_from + r) % ring() * line();
    }

    // to[i] = sum over r of w[r] * rows[r][i], four vectors at a time so that the additions do not wait on each other.
    template <class RowAt, class To>
    CRF_INLINE_MEMBER void weigh(const float* w, int64_t rows, RowAt row_at, int64_t numbers, To* to) const {
        constexpr int AT_ONCE = 8;
        int64_t i = 0;
        for (; i + AT_ONCE * LANES <= numbers; i += AT_ONCE * LANES) {
            Vec sum[AT_ONCE] = {};
            for (int64_t r = 0; r < rows; ++r) {
                const auto* from = row_at(r) + i;
                for (int j = 0; j < AT_ONCE; ++j) sum[j] = multiply_add(splat(w[r]), load(from + j * LANES), sum[j]);
            }
            for (int j = 0; j < AT_ONCE; ++j) store(to + i + j * LANES, sum[j]);
        }
        for (; i < numbers; i += LANES) {
            Vec sum = splat(0.0f);
            for (int64_t r = 0; r < rows; ++r) sum = multiply_add(splat(w[r]), load(row_at(r) + i), sum);
            store(to + i, sum);
        }
    }

    // The message of this kernel for `count` pixels, before the factor of the pixel.
    void slice(int y, int x, int count, float* message) const {
        halves ? slice_rows<Half>(y, x, count, message) : slice_rows<float>(y, x, count, message);
    }

    template <class T>
    void slice_rows(int y, int x, int count, float* message) const {
        const int64_t last = y + radius < height ? y + radius : height - 1;
        const T* at = static_cast<const T*>(sums) + int64_t(x) * vectors * LANES;
        weigh(taps + (first - y + radius), last - first + 1, [&](int64_t r) { return at + lines[r]; },
              int64_t(count) * vectors * LANES, message);
    }

    // Blurs row y of Q along the row, once all its pixels are written.
    void finish_row(int y) const { halves ? blur_row<Half>(y) : blur_row<float>(y); }

    template <class T>
    void blur_row(int y) const {
        const int64_t pixel = int64_t(vectors) * LANES;
        weigh(taps, 2 * radius + 1, [&](int64_t r) { return row + r * pixel; }, line(),
              static_cast<T*>(sums) + (write_to + y) % ring() * line());
    }
};

}  // namespace
