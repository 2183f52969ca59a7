// Logits in the layout that the mean field reads: pixel-major, classes padded to whole vectors. Full-size logits are
// transposed once; logits at the network's stride stay small and are upsampled row by row in every pass.
#pragma once

#include <cstring>

#include "simd.hpp"
#include "workspace.hpp"

namespace {

constexpr float ABSENT = -1e30f;  // the logit of a padding class
constexpr float LARGEST_LOGIT = 1e30f;

// (classes, cells) to (cells, vectors * LANES). False if a logit is not finite or out of range.
inline bool turn_over(const float* logits, int64_t cells, int classes, int vectors, float* out) {
    Int bad = Int{};
    for (int64_t first = 0; first < cells; first += LANES) {
        const int count = cells - first < LANES ? int(cells - first) : LANES;
        for (int v = 0; v < vectors; ++v) {
            Vec block[LANES];
            for (int i = 0; i < LANES; ++i) {
                const int c = v * LANES + i;
                if (c >= classes) {
                    block[i] = splat(ABSENT);
                    continue;
                }
                const float* from = logits + int64_t(c) * cells + first;
                block[i] = splat(0.0f);
                if (count == LANES) {
                    block[i] = load_loose(from);
                } else {
                    std::memcpy(&block[i], from, size_t(count) * 4);
                }
                bad |= ~((block[i] < splat(LARGEST_LOGIT)) & (block[i] > splat(-LARGEST_LOGIT)));
            }
            transpose(block);
            for (int i = 0; i < count; ++i) store(out + (first + i) * vectors * LANES + v * LANES, block[i]);
        }
    }
    int any = 0;
    for (int lane = 0; lane < LANES; ++lane) any |= bad[lane];
    return any == 0;
}

// Interpolation of a pixel: the cells before and after it and the weight of the latter, as in `unary._taps`.
struct Tap {
    int before, after;
    float along;
};

inline Tap tap(int pixel, int stride, int cells, bool align_corners) {
    const float at = float(pixel), size = float(stride);
    float centre = align_corners ? at / size : (at + 0.5f) / size - 0.5f;
    const float last = float(cells - 1);
    centre = centre < 0 ? 0 : centre > last ? last : centre;
    const int before = int(centre);
    return {before, before + 1 < cells ? before + 1 : cells - 1, centre - float(before)};
}

// Rows of logits on demand.
struct Unary {
    const crf::Request& ask;
    int vectors;
    const float* cells;
    float* row;         // one row of cells, interpolated between two
    const Tap* taps_x;  // one per column

    void start_row(int y) const {
        if (ask.full_size) return;
        const Tap t = tap(ask.origin_y + y, ask.stride, ask.cells_y, ask.align_corners);
        const int64_t width = int64_t(ask.cells_x) * vectors * LANES;
        const float* above = cells + t.before * width;
        const float* below = cells + t.after * width;
        const Vec along = splat(t.along);
        const int64_t last = int64_t(taps_x[ask.width - 1].after + 1) * vectors * LANES;
        for (int64_t i = int64_t(taps_x[0].before) * vectors * LANES; i < last; i += LANES) {
            const Vec a = load(above + i);
            store(row + i, multiply_add(load(below + i) - a, along, a));
        }
    }

    // Logits of `count` pixels of row y, contiguous; copied to `segment` unless they are so in memory.
    template <int N>
    const float* pixels(int y, const int* columns, int count, float* segment) const {
        const int n = N ? N : vectors;
        if (ask.full_size) {
            const float* line = cells + int64_t(y) * ask.width * n * LANES;
            if (columns[count - 1] - columns[0] == count - 1) return line + int64_t(columns[0]) * n * LANES;
            for (int i = 0; i < count; ++i) {
                std::memcpy(segment + i * n * LANES, line + int64_t(columns[i]) * n * LANES, size_t(n) * LANES * 4);
            }
            return segment;
        }
        for (int i = 0; i < count; ++i) {
            const Tap t = taps_x[columns[i]];
            const float* left = row + int64_t(t.before) * n * LANES;
            const float* right = row + int64_t(t.after) * n * LANES;
            const Vec along = splat(t.along);
            for (int v = 0; v < n; ++v) {
                const Vec a = load(left + v * LANES);
                store(segment + (i * n + v) * LANES, multiply_add(load(right + v * LANES) - a, along, a));
            }
        }
        return segment;
    }
};

}  // namespace
