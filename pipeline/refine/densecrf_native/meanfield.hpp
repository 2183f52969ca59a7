// The mean field (Krähenbühl and Koltun 2011, algorithm 1) in passes over the image. One pass slices both kernels,
// adds the logits, takes the softmax and splats the result for the next iteration: Q of a pixel lives in registers
// and is never stored.
#pragma once

#include <cmath>
#include <ctime>

#include "blur.hpp"
#include "lattice.hpp"
#include "separable.hpp"
#include "unary.hpp"

namespace {

using crf::MAX_CLASSES;
using crf::Outcome;
using crf::Request;

constexpr int MAX_VECTORS = (MAX_CLASSES + LANES - 1) / LANES;

// One kernel within a pass; null records: the model does not have it.
struct Side {
    const char* records = nullptr;
    int corners = 0;
    bool halves = false;            // type of the blurred rows: halves or floats
    const void* blurred = nullptr;  // null before the first blur
    float* sums = nullptr;          // floats always: a vertex adds up hundreds of pixels
    float* base = nullptr;          // the part of the sums that frozen pixels add; null if none are frozen
    bool large = false;             // its rows outgrow the L2 cache
};

// Pixels that are not frozen: the first pass lists them, later passes visit no others.
struct Active {
    int64_t* starts = nullptr;  // height + 1: where the pixels of each row begin
    int32_t* pixels = nullptr;

    void prepare(Workspace& work, const Request& ask) {
        const size_t rows = size_t(ask.height) + 1, count = size_t(ask.height) * size_t(ask.width);
        starts = static_cast<int64_t*>(work.active.reserve(rows * sizeof(int64_t) + count * sizeof(int32_t)));
        pixels = reinterpret_cast<int32_t*>(starts + rows);
        starts[0] = 0;
    }
};

struct Pass {
    const Request& ask;
    const Unary& unary;
    int vectors;
    Side spatial, bilateral;
    Separable* separable;
    bool slices, splats;
    float* segment;  // CHUNK pixels of logits
    float* result;   // CHUNK pixels of Q
    float* message;  // CHUNK pixels from the separable kernel
    Active* active;  // null if none are frozen
};

// Numbers from one blurred row to the next. Three vectors of halves (17 to 24 classes) are padded to a cache line, of
// which each vertex would otherwise touch one or two.
template <class T>
constexpr int64_t row_stride(int vectors) {
    return int64_t(sizeof(T) == sizeof(Half) && vectors == 3 ? 4 : vectors) * LANES;
}

// N vectors of classes, or as many as `vectors` says if N is 0; C corners, or side.corners if C is 0; rows of T.
template <int N, int C, class T>
CRF_INLINE void slice(const Side& side, int vectors, int64_t pixel, Vec* sum) {
    const int n = N ? N : vectors, corners = C ? C : side.corners;
    const char* record = side.records + pixel * corners * 8;
    const int32_t* vertex = reinterpret_cast<const int32_t*>(record);
    const float* weight = reinterpret_cast<const float*>(record) + corners;
#pragma GCC unroll 6
    for (int k = 0; k < corners; ++k) {
        const T* row = static_cast<const T*>(side.blurred) + int64_t(vertex[k]) * row_stride<T>(n);
        const Vec w = splat(weight[k]);
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) sum[v] = multiply_add(w, load(row + v * LANES), sum[v]);
    }
}

template <int N, int C>
CRF_INLINE void splat_pixel(const Side& side, float* sums, int vectors, int64_t pixel, const Vec* q) {
    const int n = N ? N : vectors, corners = C ? C : side.corners;
    const char* record = side.records + pixel * corners * 8;
    const int32_t* vertex = reinterpret_cast<const int32_t*>(record);
    const float* weight = reinterpret_cast<const float*>(record) + corners;
#pragma GCC unroll 6
    for (int k = 0; k < corners; ++k) {
        float* row = sums + int64_t(vertex[k]) * n * LANES;
        const Vec w = splat(weight[k]);
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) store(row + v * LANES, multiply_add(w, q[v], load(row + v * LANES)));
    }
}

// Prefetches the rows a pixel will read or add to; worth it only where they do not fit into the L2 cache.
template <int N, int C, class T>
CRF_INLINE void prefetch_rows(const Side& side, const T* rows, int vectors, int64_t pixel) {
    const int n = N ? N : vectors, corners = C ? C : side.corners;
    const int64_t stride = row_stride<T>(n);
    const int32_t* vertex = reinterpret_cast<const int32_t*>(side.records + pixel * corners * 8);
#pragma GCC unroll 6
    for (int k = 0; k < corners; ++k) {
        const T* row = rows + int64_t(vertex[k]) * stride;
        for (int line = 0; line < n * LANES; line += int(CACHE_LINE / sizeof(T))) __builtin_prefetch(row + line);
        if (size_t(stride) * sizeof(T) % CACHE_LINE) __builtin_prefetch(row + n * LANES - 1);
    }
}

// exp(q - largest) of eight pixels, in place; `largest` holds each pixel's largest logits, lane by lane. Returns the
// reciprocal of each pixel's sum.
template <int N>
CRF_INLINE Vec exponentials(float* q, int vectors, const Vec* largest) {
    const int n = N ? N : vectors;
    alignas(32) float tops[LANES];
    store(tops, reduce_each(largest, larger));
    Vec sums[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; ++i) {
        const Vec top = splat(tops[i]);
        sums[i] = splat(0.0f);
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) {
            float* at = q + (i * n + v) * LANES;
            const Vec e = exp_of_negative(load(at) - top);
            store(at, e);
            sums[i] += e;
        }
    }
    return splat(1.0f) / reduce_each(sums, [](Vec a, Vec b) __attribute__((always_inline)) { return a + b; });
}

constexpr int PIXELS_AHEAD = 12;

// Up to CHUNK pixels of one row, with their intermediate values in a pass. Three loops with short dependency chains in
// place of one with a long chain keep several pixels in flight.
struct Span {
    int count;
    int64_t line;                     // number of the row's first pixel
    const int32_t *ahead, *last;      // numbers of the pixels from here on, and their end; null if none is left out
    int columns[CHUNK];
    const float* logits;              // compact, as everything below
    Vec largest[CHUNK];               // per pixel, lane by lane
    alignas(32) float shares[CHUNK];  // reciprocals of the sums of exponentials

    // Pixel that a pass reaches PIXELS_AHEAD pixels later, to prefetch; -1 past the end.
    CRF_INLINE_MEMBER int64_t soon(int i, int64_t end) const {
        if (ahead) return ahead + i + PIXELS_AHEAD < last ? ahead[i + PIXELS_AHEAD] : -1;
        const int64_t pixel = line + columns[i] + PIXELS_AHEAD;
        return pixel < end ? pixel : -1;
    }
};

// Q of a span into the caller's arrays; where two classes are equal, the first is the label.
inline void write_out(const Request& ask, const Span& span, const float* q, int vectors) {
    const int64_t pixels = int64_t(ask.height) * ask.width;
    for (int first = 0; first < span.count; first += LANES) {
        const int some = span.count - first < LANES ? span.count - first : LANES;
        const int* columns = span.columns + first;
        const bool adjacent = columns[some - 1] - columns[0] == some - 1;
        const int64_t pixel = span.line + columns[0];
        const Vec share = load(span.shares + first);
        Vec best = splat(-1.0f);
        Int label = Int{};
        for (int v = 0; v < vectors; ++v) {
            Vec block[LANES];
            for (int i = 0; i < LANES; ++i) block[i] = load(q + (int64_t(first + i) * vectors + v) * LANES);
            transpose(block);
            for (int i = 0; i < LANES && v * LANES + i < ask.classes; ++i) {
                const Vec prob = block[i] * share;
                const Int wins = prob > best;
                label = (label & ~wins) | (wins & (v * LANES + i));
                best = larger(best, prob);
                if (!ask.probs) continue;
                float* to = ask.probs + (v * LANES + i) * pixels + pixel;
                if (adjacent && some == LANES) {
                    store_loose(to, prob);
                } else {
                    for (int j = 0; j < some; ++j) to[columns[j] - columns[0]] = prob[j];
                }
            }
        }
        for (int i = 0; ask.labels && i < some; ++i) ask.labels[span.line + columns[i]] = uint8_t(label[i]);
    }
}

// Logits plus the messages of all kernels; blurred rows of the appearance kernel of T.
template <int N, int C, class T>
CRF_INLINE void gather(const Pass& pass, Span& span) {
    const int n = N ? N : pass.vectors;
    const uint8_t* valid = pass.ask.valid;
    const int64_t pixels = int64_t(pass.ask.height) * pass.ask.width;
    Vec q[N ? N : MAX_VECTORS];
    for (int i = 0; i < span.count; ++i) {
        const int64_t pixel = span.line + span.columns[i], soon = span.soon(i, pixels);
        for (int v = 0; v < n; ++v) q[v] = load(span.logits + (i * n + v) * LANES);
        if (pass.slices && !(valid && !valid[pixel])) {
            if (pass.separable) {
                const Vec factor = splat(pass.separable->factors[pixel]);
                const float* message = pass.message + i * n * LANES;
                for (int v = 0; v < n; ++v) q[v] = multiply_add(factor, load(message + v * LANES), q[v]);
            }
            if (pass.spatial.records) slice<N, 3, float>(pass.spatial, n, pixel, q);
            if (pass.bilateral.records) slice<N, C, T>(pass.bilateral, n, pixel, q);
        }
        if (pass.slices && soon >= 0) {
            const Side &near = pass.spatial, &alike = pass.bilateral;
            if (near.large) prefetch_rows<N, 3>(near, static_cast<const float*>(near.blurred), n, soon);
            if (alike.large) prefetch_rows<N, C>(alike, static_cast<const T*>(alike.blurred), n, soon);
        }
        span.largest[i] = q[0];
        for (int v = 0; v < n; ++v) {
            store(pass.result + (i * n + v) * LANES, q[v]);
            span.largest[i] = larger(span.largest[i], q[v]);
        }
    }
}

// Splats Q into all kernels.
template <int N, int C>
CRF_INLINE void scatter(const Pass& pass, const Span& span) {
    const int n = N ? N : pass.vectors;
    const uint8_t* valid = pass.ask.valid;
    const int64_t pixels = int64_t(pass.ask.height) * pass.ask.width;
    Vec q[N ? N : MAX_VECTORS];
    for (int i = 0; i < span.count; ++i) {
        const int64_t pixel = span.line + span.columns[i], soon = span.soon(i, pixels);
        if (soon >= 0) {
            if (pass.spatial.large) prefetch_rows<N, 3>(pass.spatial, pass.spatial.sums, n, soon);
            if (pass.bilateral.large) prefetch_rows<N, C>(pass.bilateral, pass.bilateral.sums, n, soon);
        }
        const Vec share = splat(span.shares[i]);
        for (int v = 0; v < n; ++v) q[v] = share * load(pass.result + (i * n + v) * LANES);
        if (pass.separable) {
            const Vec factor = splat(pass.separable->factors[pixel]);  // 0 where not valid
            float* to = pass.separable->row + int64_t(pass.separable->radius + span.columns[i]) * n * LANES;
            for (int v = 0; v < n; ++v) store(to + v * LANES, factor * q[v]);
        }
        if (valid && !valid[pixel]) continue;
        const bool frozen = pass.active && !pass.slices && span.shares[i] > pass.ask.freeze;
        const Side &near = pass.spatial, &alike = pass.bilateral;
        if (near.records) splat_pixel<N, 3>(near, frozen ? near.base : near.sums, n, pixel, q);
        if (alike.records) splat_pixel<N, C>(alike, frozen ? alike.base : alike.sums, n, pixel, q);
    }
}

// Answer of the logits alone: label, largest probability, entropy in nats. `q` holds exp(logit - top).
inline void write_first(const Request& ask, const Span& span, const float* q, int vectors) {
    for (int begin = 0; begin < span.count; begin += LANES) {
        const int some = span.count - begin < LANES ? span.count - begin : LANES;
        const Vec tops = reduce_each(span.largest + begin, larger), share = load(span.shares + begin);
        Vec best = splat(2 * ABSENT), spread = splat(0.0f);
        Int label = Int{};
        for (int v = 0; v < vectors; ++v) {
            Vec scores[LANES], weights[LANES];
            for (int i = 0; i < LANES; ++i) {
                const int64_t at = (int64_t(begin + i) * vectors + v) * LANES;
                scores[i] = i < some ? load(span.logits + at) : splat(0.0f);
                weights[i] = load(q + at);
            }
            transpose(scores);
            transpose(weights);
            for (int i = 0; i < LANES && v * LANES + i < ask.classes; ++i) {
                const Int wins = scores[i] > best;
                label = (label & ~wins) | (wins & (v * LANES + i));
                best = larger(best, scores[i]);
                spread = multiply_add(weights[i], tops - scores[i], spread);
            }
        }
        for (int i = 0; i < some; ++i) {
            const int64_t pixel = span.line + span.columns[begin + i];
            ask.first[pixel] = uint8_t(label[i]);
            ask.confidence[pixel] = share[i];
            ask.nats[pixel] = share[i] * spread[i] - std::log(share[i]);
        }
    }
}

// Next span of row y from its `from`th pixel on: the first pass takes all pixels, later ones those that are not frozen.
inline bool next_span(const Pass& pass, int y, int64_t from, Span& span) {
    const Active* active = pass.slices ? pass.active : nullptr;
    const int64_t begin = active ? active->starts[y] : 0, end = active ? active->starts[y + 1] : pass.ask.width;
    const int64_t left = end - begin - from;
    if (left <= 0) return false;
    span.line = int64_t(y) * pass.ask.width;
    span.count = left < CHUNK ? int(left) : CHUNK;
    span.ahead = active ? active->pixels + begin + from : nullptr;
    span.last = active ? active->pixels + active->starts[pass.ask.height] : nullptr;
    if (active) {
        for (int i = 0; i < span.count; ++i) span.columns[i] = int(span.ahead[i] - span.line);
    } else {
        for (int i = 0; i < CHUNK; ++i) span.columns[i] = int(from) + i;  // a constant number of them: vectors
    }
    return true;
}

// Messages of the separable kernel, run by run of adjacent pixels.
inline void slice_runs(const Pass& pass, int y, const Span& span) {
    const int* at = span.columns;
    for (int i = 0, j = span.ahead ? 1 : span.count; i < span.count; i = j++) {
        while (j < span.count && at[j] == at[j - 1] + 1) ++j;
        pass.separable->slice(y, at[i], j - i, pass.message + int64_t(i) * pass.vectors * LANES);
    }
}

// Lists the pixels of a span of the first pass that later passes visit.
inline void find_active(const Pass& pass, int y, const Span& span) {
    int64_t& end = pass.active->starts[y + 1];
    for (int i = 0; i < span.count; ++i) {
        const int64_t pixel = span.line + span.columns[i];
        const bool moves = span.shares[i] <= pass.ask.freeze && !(pass.ask.valid && !pass.ask.valid[pixel]);
        pass.active->pixels[end] = int32_t(pixel);
        end += moves;
    }
}

template <int N, int C, class T>
void run_pass(const Pass& pass) {
    const Request& ask = pass.ask;
    const int n = N ? N : pass.vectors;
    const bool finds = pass.active && !pass.slices;
    Span span{};
    for (int y = 0; y < ask.height; ++y) {
        pass.unary.start_row(y);
        if (pass.separable) pass.separable->start_row(y);
        if (finds) pass.active->starts[y + 1] = pass.active->starts[y];
        for (int64_t from = 0; next_span(pass, y, from, span); from += span.count) {
            span.logits = pass.unary.pixels<N>(y, span.columns, span.count, pass.segment);
            if (pass.separable && pass.slices) slice_runs(pass, y, span);
            gather<N, C, T>(pass, span);
            for (int i = 0; i < span.count; i += LANES) {
                const float* ahead = span.logits + (span.count + i) * n * LANES;
                for (int line = 0; line < n * LANES * LANES; line += 16) __builtin_prefetch(ahead + line);
                store(span.shares + i, exponentials<N>(pass.result + i * n * LANES, n, span.largest + i));
            }
            if (ask.first && !pass.slices) write_first(ask, span, pass.result, n);
            if (finds) find_active(pass, y, span);
            if (pass.splats) scatter<N, C>(pass, span);
            if (finds || !pass.splats) write_out(ask, span, pass.result, n);
        }
        if (pass.separable && pass.splats) pass.separable->finish_row(y);
    }
}

template <int C, class T>
void run_pass_of(const Pass& pass) {
    switch (pass.vectors) {
        case 1: return run_pass<1, C, T>(pass);
        case 2: return run_pass<2, C, T>(pass);
        case 3: return run_pass<3, C, T>(pass);
        case 4: return run_pass<4, C, T>(pass);
        default: return run_pass<0, C, T>(pass);
    }
}

inline void run_pass(const Pass& pass) {
    if (pass.bilateral.corners != 6) return run_pass_of<0, float>(pass);
    if constexpr (HAVE_HALVES) {
        if (pass.bilateral.halves) return run_pass_of<6, Half>(pass);
    }
    run_pass_of<6, float>(pass);
}

inline double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Builds both kernels' lattices for this image; the spatial one is kept while size, sigma and weight stay the same.
inline Status build_lattices(Workspace& work, const Request& ask) {
    if (ask.pos_w > 0 && !ask.separable) {
        const bool same = !ask.valid && work.spatial_height == ask.height && work.spatial_width == ask.width &&
                          work.spatial_sigma == ask.pos_xy && work.spatial_weight == ask.pos_w;
        if (!same) {
            work.spatial_height = 0;
            const Status status = build(work, ask, work.spatial, ask.pos_xy, 0, ask.pos_w, INT64_MAX);
            if (status != Status::OK) return status;
            work.spatial_height = ask.valid ? 0 : ask.height;
            work.spatial_width = ask.width;
            work.spatial_sigma = ask.pos_xy;
            work.spatial_weight = ask.pos_w;
        }
    }
    if (ask.bi_w <= 0) return Status::OK;
    return build(work, ask, work.bilateral, ask.bi_xy, ask.bands, ask.bi_w, ask.most_vertices);
}

// Side of a kernel with memory for its values; blurred rows of halves or of floats.
inline Side side_of(Lattice& lattice, int vectors, bool freezes, bool halves) {
    const size_t rows = size_t(lattice.vertices + 1);
    const size_t bytes = rows * size_t(vectors) * LANES * 4;
    Side side;
    side.records = static_cast<const char*>(lattice.records.data());
    side.corners = lattice.dimensions + 1;
    side.large = bytes > (size_t(6) << 20);
    side.halves = halves;
    lattice.values[0].reserve(halves ? rows * size_t(row_stride<Half>(vectors)) * sizeof(Half) : bytes);
    lattice.values[1].reserve(bytes);
    if (freezes) {
        side.base = static_cast<float*>(lattice.base.reserve(bytes));
        std::memset(side.base, 0, bytes);
    }
    return side;
}

// The same with blurred rows of halves: each row of sums is rounded to halves and cleared for the next pass at once.
inline void turn_to_halves(Side& side, Lattice& lattice, int vectors, int done, bool more) {
    const int64_t floats = int64_t(vectors) * LANES, stride = row_stride<Half>(vectors);
    Half* rows = static_cast<Half*>(lattice.values[0].data());
    side.sums = static_cast<float*>(lattice.values[1].data());
    if (done == 0) {
        std::memset(side.sums, 0, size_t(lattice.vertices * floats) * 4);
        return;
    }
    for (int64_t vertex = 0; vertex < lattice.vertices; ++vertex) {
        float* sums = side.sums + vertex * floats;
        for (int64_t i = 0; i < floats; i += LANES) {
            const Vec still = side.base ? load(side.base + vertex * floats + i) : splat(0.0f);
            const Vec sum = load(sums + i);
            store(rows + vertex * stride + i, done == 1 ? sum + still : sum);
            if (more) store(sums + i, still);
        }
    }
    blur(lattice, rows, stride, vectors);
    side.blurred = rows;
}

// Blurs the sums of the last pass, which the next pass reads, and clears the buffer for its own sums.
inline void turn(Side& side, Lattice& lattice, int vectors, int done, bool more) {
    if (!side.records) return;
    if (side.halves) return turn_to_halves(side, lattice, vectors, done, more);
    const size_t floats = size_t(lattice.vertices) * size_t(vectors) * LANES;
    if (side.sums) {
        for (size_t i = 0; side.base && done == 1 && i < floats; i += LANES) {
            store(side.sums + i, load(side.sums + i) + load(side.base + i));
        }
        blur(lattice, side.sums, int64_t(vectors) * LANES, vectors);
        lattice.values[0].swap(lattice.values[1]);
    }
    side.blurred = lattice.values[0].data();
    side.sums = static_cast<float*>(lattice.values[1].data());
    if (more && side.base && done > 0) {
        std::memcpy(side.sums, side.base, floats * 4);
    } else if (more) {
        std::memset(side.sums, 0, floats * 4);
    }
}

inline Unary prepare(Workspace& work, const Request& ask, int vectors, Outcome& outcome) {
    const int64_t cells = int64_t(ask.cells_y) * ask.cells_x;
    float* turned = static_cast<float*>(work.logits.reserve(size_t(cells) * size_t(vectors) * LANES * 4));
    if (!turn_over(ask.logits, cells, ask.classes, vectors, turned)) outcome.status = Outcome::LOGITS_NOT_FINITE;
    return {ask, vectors, turned, nullptr, nullptr};
}

// Scratch rows of the passes, one after another in one buffer.
inline void share_rows(Workspace& work, const Request& ask, int vectors, Unary& unary, Pass& pass) {
    const size_t pixel = size_t(vectors) * LANES * 4;
    const size_t row = ask.full_size ? 0 : size_t(ask.cells_x) * pixel;
    char* at = static_cast<char*>(work.rows.reserve(3 * CHUNK * pixel + row + size_t(ask.width) * sizeof(Tap)));
    pass.segment = reinterpret_cast<float*>(at);
    pass.result = reinterpret_cast<float*>(at + CHUNK * pixel);
    pass.message = reinterpret_cast<float*>(at + 2 * CHUNK * pixel);
    unary.row = reinterpret_cast<float*>(at + 3 * CHUNK * pixel);
    Tap* taps = reinterpret_cast<Tap*>(at + 3 * CHUNK * pixel + row);
    for (int x = 0; x < ask.width; ++x) taps[x] = tap(ask.origin_x + x, ask.stride, ask.cells_x, ask.align_corners);
    unary.taps_x = taps;
}

inline void run_mean_field(Workspace& work, const Request& ask, Outcome& outcome) {
    const double deadline = seconds() + ask.seconds_left;
    const int vectors = (ask.classes + LANES - 1) / LANES;
    Unary unary = prepare(work, ask, vectors, outcome);
    if (outcome.status != Outcome::OK) return;
    outcome.status = build_lattices(work, ask);
    if (outcome.status != Outcome::OK) return;
    Separable separable;
    Active active;
    const bool freezes = ask.freeze < 1;
    if (freezes) active.prepare(work, ask);
    Pass pass{ask, unary, vectors, {}, {}, nullptr, false, true, nullptr, nullptr, nullptr, nullptr};
    if (freezes) pass.active = &active;
    share_rows(work, ask, vectors, unary, pass);
    if (ask.pos_w > 0 && ask.separable) {
        separable.prepare(work, ask, vectors);
        pass.separable = &separable;
    } else if (ask.pos_w > 0) {
        pass.spatial = side_of(work.spatial, vectors, freezes, false);
        outcome.spatial_vertices = work.spatial.vertices;
    }
    if (ask.bi_w > 0) {
        // Halves only beside the separable kernel, which is an approximation of its own: `lattice` stays exact.
        const bool halves =
            HAVE_HALVES && pass.separable && ask.bands == 3 && crf::largest_row(ask) < LARGEST_HALF;
        pass.bilateral = side_of(work.bilateral, vectors, freezes, halves);
        outcome.bilateral_vertices = work.bilateral.vertices;
    }
    // Q of iteration 0 is the softmax of the logits; each pass makes the next one, and the last writes it out. Once
    // the deadline has passed, the sums of the pass before are used up in one last pass.
    int last = pass.spatial.records || pass.bilateral.records || pass.separable ? ask.iterations : 0;
    for (int done = 0; done <= last; ++done) {
        if (seconds() > deadline) last = done;
        pass.slices = done > 0;
        pass.splats = done < last;
        turn(pass.spatial, work.spatial, vectors, done, pass.splats);
        turn(pass.bilateral, work.bilateral, vectors, done, pass.splats);
        if (pass.separable) separable.turn();
        run_pass(pass);
        outcome.iterations = done;
        if (freezes && active.starts[ask.height] == 0) {  // nothing will change
            outcome.iterations = last;
            break;
        }
    }
    if (last == 0 && !(ask.bi_w > 0 || ask.pos_w > 0)) outcome.iterations = ask.iterations;
}

}  // namespace
