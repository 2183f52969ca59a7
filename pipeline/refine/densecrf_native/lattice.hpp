// Permutohedral lattice (Adams, Baek and Davis 2010) of an image: the simplex and weights of each pixel, and the
// neighbours of each vertex along each axis.
//
// A vertex is named by d of its d + 1 coordinates, packed into the bit fields of one integer. Going from vertex to
// vertex is then an addition, and the hash table compares one word.
#pragma once

#include <cmath>
#include <cstring>

#include "simd.hpp"
#include "workspace.hpp"

namespace {

using crf::Buffer;
using crf::CACHE_LINE;
using crf::Lattice;
using crf::MAX_DIMENSIONS;
using crf::Workspace;
using Status = crf::Outcome::Status;

using Key64 = uint64_t;
using Key128 = unsigned __int128;

constexpr int CHUNK = 64;  // pixels per block
constexpr uint32_t CHAIN_END = 0x80000000u;

// Features of the pixels: x and y over the spatial sigma, then each band over its own sigma.
struct Guide {
    int height, width, bands, dimensions;
    const uint8_t* image;
    const uint8_t* valid;
    // Per dimension j = 1..d, by coordinate value: the scaled feature, and j times it.
    const float* scaled[MAX_DIMENSIONS];
    const float* times_j[MAX_DIMENSIONS];
    float largest[MAX_DIMENSIONS];
};

// Layout of a key: the bit field of each coordinate.
template <class Key>
struct Packing {
    Key unit[MAX_DIMENSIONS + 1];  // 1 in the field of a coordinate; 0 for the last one, which is implied
    Key ones;                      // 1 in every field
    Key bias;                      // makes every field positive
};

inline int bits_of(int64_t values) {
    int bits = 0;
    while ((int64_t(1) << bits) < values) ++bits;
    return bits;
}

// Lays out the fields for all vertices an image can touch and their neighbours. Returns the bits of a key; -1 if a
// coordinate leaves the range in which float resolves neighbouring vertices.
template <class Key>
int lay_out(const Guide& guide, Packing<Key>& packing) {
    const int d = guide.dimensions;
    float above = 0;
    for (int c = 0; c < d; ++c) above += guide.largest[c];
    int used = 0;
    packing.ones = packing.bias = 0;
    for (int i = 0; i < d; ++i) {
        // elevated[i] = sum of the features from i on, less i times feature i - 1
        const float low = i == 0 ? 0 : -float(i) * guide.largest[i - 1];
        const float high = above;
        above -= guide.largest[i];
        if (!(high - low < float(1 << 20))) return -1;
        const int64_t margin = 3 * (d + 1);
        const int64_t first = int64_t(std::floor(low)) - margin;
        const int64_t count = int64_t(std::ceil(high)) + margin - first + 1;
        if (used < int(sizeof(Key) * 8)) {
            packing.unit[i] = Key(1) << used;
            packing.ones += packing.unit[i];
            packing.bias += Key(-first) << used;
        }
        used += bits_of(count);
    }
    packing.unit[d] = 0;
    return used;
}

CRF_INLINE uint64_t mixed(Key64 key) { return (key ^ (key >> 29)) * 0x9E3779B97F4A7C15u; }
CRF_INLINE uint64_t mixed(Key128 key) { return mixed(uint64_t(key) ^ (uint64_t(key >> 64) * 0xD6E8FEB86659FD93u)); }

// Open addressing, at most half full. Vertices are numbered in the order in which they are first seen.
template <class Key>
struct Table {
    struct Slot {
        Key key;
        int32_t vertex;
    };
    Workspace& work;
    Slot* slots = nullptr;
    Key* keys = nullptr;
    int64_t vertices = 0;
    int bits = 0;

    Table(Workspace& workspace, int64_t pixels) : work(workspace) {
        // As many slots as the last image left, so that most images never grow the table.
        const int64_t wanted = pixels / 2 > 4096 ? pixels / 2 : 4096;
        int start = bits_of(wanted);
        while (start > 12 && (size_t(1) << start) * sizeof(Slot) > work.table.bytes()) --start;
        resize(start < 12 ? 12 : start);
    }

    int64_t capacity() const { return int64_t(1) << bits; }
    CRF_INLINE_MEMBER size_t home(Key key) const { return size_t(mixed(key) >> (64 - bits)); }
    CRF_INLINE_MEMBER void prefetch(Key key) const { __builtin_prefetch(&slots[home(key)]); }

    void resize(int new_bits) {
        bits = new_bits;
        slots = static_cast<Slot*>(work.table.reserve(size_t(capacity()) * sizeof(Slot)));
        keys = static_cast<Key*>(work.keys.grow(size_t(capacity() / 2) * sizeof(Key), size_t(vertices) * sizeof(Key)));
        for (int64_t i = 0; i < capacity(); ++i) slots[i].vertex = -1;
        for (int64_t v = 0; v < vertices; ++v) {
            size_t at = home(keys[v]);
            while (slots[at].vertex >= 0) at = (at + 1) & size_t(capacity() - 1);
            slots[at] = {keys[v], int32_t(v)};
        }
    }

    void make_room(int64_t more) {
        if (vertices + more > capacity() / 2) resize(bits + 1);
    }

    CRF_INLINE_MEMBER int32_t find_or_add(Key key) {
        size_t at = home(key);
        while (slots[at].vertex >= 0) {
            if (slots[at].key == key) return slots[at].vertex;
            at = (at + 1) & size_t(capacity() - 1);
        }
        slots[at] = {key, int32_t(vertices)};
        keys[vertices] = key;
        return int32_t(vertices++);
    }

    CRF_INLINE_MEMBER int32_t find(Key key) const {
        size_t at = home(key);
        while (slots[at].vertex >= 0 && slots[at].key != key) at = (at + 1) & size_t(capacity() - 1);
        return slots[at].vertex;
    }
};

// Number of dimensions, a compile-time constant where the kernels are compiled for it.
template <int D>
CRF_INLINE int exact(const Guide& guide) {
    return D == MAX_DIMENSIONS ? guide.dimensions : D;
}

// Eight pixels of one row: nearest vertex of colour 0, order of the differences, barycentric coordinates.
template <int D>
struct Simplices {
    alignas(32) int32_t origin[D + 1][LANES];
    alignas(32) int32_t rank[D + 1][LANES];
    alignas(32) float weight[D + 1][LANES];
};

template <int D>
CRF_INLINE void locate(const Guide& guide, int y, int x, Simplices<D>& out) {
    const int d = exact<D>(guide);
    Vec elevated[D + 1], difference[D + 1], origin[D + 1];
    Int rank[D + 1];
    alignas(32) float lanes[2][LANES];
    Vec below = splat(0.0f);
    for (int j = d; j > 0; --j) {
        Vec feature, times_j;
        if (j == 1) {
            feature = load_loose(guide.scaled[0] + x);
            times_j = load_loose(guide.times_j[0] + x);
        } else if (j == 2) {
            feature = splat(guide.scaled[1][y]);
            times_j = splat(guide.times_j[1][y]);
        } else {
            const int left = guide.width - x;
            const uint8_t* pixel = guide.image + (int64_t(y) * guide.width + x) * guide.bands + (j - 3);
            for (int lane = 0; lane < LANES; ++lane) {
                const int value = lane < left ? pixel[lane * guide.bands] : 0;
                lanes[0][lane] = guide.scaled[j - 1][value];
                lanes[1][lane] = guide.times_j[j - 1][value];
            }
            feature = load(lanes[0]);
            times_j = load(lanes[1]);
        }
        elevated[j] = below - times_j;
        below += feature;
    }
    elevated[0] = below;

    const float size = float(d + 1);
    const Vec shrink = splat(1.0f / size);
    Vec sum = splat(0.0f);
    for (int i = 0; i <= d; ++i) {
        const Vec steps = nearest(shrink * elevated[i]);
        origin[i] = steps * splat(size);
        difference[i] = elevated[i] - origin[i];
        sum += steps;
        rank[i] = Int{};
    }
    for (int i = 0; i < d; ++i) {
        for (int j = i + 1; j <= d; ++j) {
            const Int less = difference[i] < difference[j];
            rank[i] -= less;
            rank[j] += less + 1;
        }
    }
    // Off the plane by `sum` steps: move the coordinates with the largest or smallest differences back.
    const Int off = __builtin_convertvector(sum, Int);
    Vec by_rank[D + 1] = {};
    for (int i = 0; i <= d; ++i) {
        rank[i] += off;
        const Int move = ((rank[i] < 0) & (d + 1)) - ((rank[i] > d) & (d + 1));
        rank[i] += move;
        origin[i] += __builtin_convertvector(move, Vec);
        const Vec share = (elevated[i] - origin[i]) * shrink;
        for (int r = 0; r <= d; ++r) by_rank[r] += as_float(as_int(share) & (rank[i] == r));
        *reinterpret_cast<Int*>(out.rank[i]) = rank[i];
        *reinterpret_cast<Int*>(out.origin[i]) = __builtin_convertvector(origin[i], Int);
    }
    store(out.weight[0], by_rank[d] - by_rank[0] + splat(1.0f));
    for (int k = 1; k <= d; ++k) store(out.weight[k], by_rank[d - k] - by_rank[d - k + 1]);
}

// Fills the records of every pixel and the table of vertices. Returns false before there are more than `most` vertices.
template <class Key, int D>
bool place_pixels(const Guide& guide, const Packing<Key>& packing, Table<Key>& table, Lattice& lattice, int64_t most) {
    const int d = exact<D>(guide), corners = d + 1;
    char* record = static_cast<char*>(lattice.records.data());
    Simplices<D> simplices[CHUNK / LANES];
    Key keys[CHUNK][D + 1];
    const Key size = Key(d + 1);
    for (int y = 0; y < guide.height; ++y) {
        for (int x = 0; x < guide.width; x += CHUNK) {
            const int count = guide.width - x < CHUNK ? guide.width - x : CHUNK;
            const uint8_t* valid = guide.valid ? guide.valid + int64_t(y) * guide.width + x : nullptr;
            if (table.vertices + int64_t(count) * corners > most) return false;
            table.make_room(int64_t(CHUNK) * corners);
            for (int i = 0; i < count; i += LANES) locate<D>(guide, y, x + i, simplices[i / LANES]);
            for (int i = 0; i < count; ++i) {
                const Simplices<D>& simplex = simplices[i / LANES];
                const int lane = i % LANES;
                Key step[D + 1];
                Key key = packing.bias;
                for (int c = 0; c <= d; ++c) {
                    key += Key(int64_t(simplex.origin[c][lane])) * packing.unit[c];
                    step[simplex.rank[c][lane]] = packing.unit[c] * size;
                }
                keys[i][0] = key;
                for (int k = 1; k <= d; ++k) keys[i][k] = key = key + packing.ones - step[d - k + 1];
                if (!valid || valid[i]) {
                    for (int k = 0; k <= d; ++k) table.prefetch(keys[i][k]);
                }
            }
            const int32_t* before = nullptr;
            for (int i = 0; i < count; ++i, record += corners * 8) {
                int32_t* vertex = reinterpret_cast<int32_t*>(record);
                float* weight = reinterpret_cast<float*>(record) + corners;
                if (valid && !valid[i]) {
                    std::memset(record, 0, size_t(corners) * 8);
                    before = nullptr;
                    continue;
                }
                for (int k = 0; k <= d; ++k) weight[k] = simplices[i / LANES].weight[k][i % LANES];
                if (before && std::memcmp(keys[i], keys[i - 1], size_t(corners) * sizeof(Key)) == 0) {
                    std::memcpy(vertex, before, size_t(corners) * 4);
                } else {
                    for (int k = 0; k <= d; ++k) vertex[k] = table.find_or_add(keys[i][k]);
                }
                before = vertex;
            }
        }
    }
    return true;
}

// Chains of vertices that are neighbours along each axis; a vertex without any neighbour is in none.
template <class Key>
void link_vertices(const Guide& guide, const Packing<Key>& packing, const Table<Key>& table, Lattice& lattice) {
    const int d = guide.dimensions;
    const int64_t count = table.vertices;
    int32_t* next = static_cast<int32_t*>(table.work.next.reserve(size_t(count + 1) * 4));
    uint8_t* follows = static_cast<uint8_t*>(table.work.heads.reserve(size_t(count + 1)));
    uint32_t* chain = static_cast<uint32_t*>(lattice.chains.reserve(size_t(count + 1) * size_t(d + 1) * 4));
    constexpr int64_t AHEAD = 16;
    int64_t length = 0;
    for (int axis = 0; axis <= d; ++axis) {
        const Key step = packing.unit[axis] * Key(d + 1) - packing.ones;
        std::memset(follows, 0, size_t(count));
        for (int64_t v = 0; v < count; ++v) {
            if (v + AHEAD < count) table.prefetch(table.keys[v + AHEAD] + step);
            next[v] = table.find(table.keys[v] + step);
            follows[next[v] >= 0 ? next[v] : count] = 1;  // a branch would be right half of the time
        }
        lattice.chain_start[axis] = length;
        for (int64_t v = 0; v < count; ++v) {
            if (follows[v] || next[v] < 0) continue;
            int32_t at = int32_t(v);
            for (; next[at] >= 0; at = next[at]) chain[length++] = uint32_t(at);
            chain[length++] = uint32_t(at) | CHAIN_END;
        }
    }
    lattice.chain_start[d + 1] = length;
}

// Turns barycentric coordinates into weights: times the symmetric normalisation (D^-1/2 K D^-1/2) and the square root
// of the kernel's weight, once for splatting and once for slicing.
inline void normalise(Workspace& work, const Guide& guide, Lattice& lattice, float kernel_weight) {
    const int corners = lattice.dimensions + 1;
    const int64_t pixels = int64_t(guide.height) * guide.width;
    float* values = static_cast<float*>(work.scalars.reserve(size_t(lattice.vertices + 1) * 4));
    std::memset(values, 0, size_t(lattice.vertices + 1) * 4);
    const char* record = static_cast<const char*>(lattice.records.data());
    for (int64_t p = 0; p < pixels * corners * 8; p += corners * 8) {
        const int32_t* vertex = reinterpret_cast<const int32_t*>(record + p);
        const float* weight = reinterpret_cast<const float*>(record + p) + corners;
        for (int k = 0; k < corners; ++k) values[vertex[k]] += weight[k];
    }
    const uint32_t* chain = static_cast<const uint32_t*>(lattice.chains.data());
    for (int axis = 0; axis < corners; ++axis) {
        float before = 0;
        for (int64_t i = lattice.chain_start[axis]; i < lattice.chain_start[axis + 1]; ++i) {
            const uint32_t at = chain[i] & ~CHAIN_END;
            const bool last = chain[i] & CHAIN_END;
            const float here = values[at];
            const float after = last ? 0 : values[chain[i + 1] & ~CHAIN_END];
            values[at] = here + 0.5f * (before + after);
            before = last ? 0 : here;
        }
    }
    const float alpha = 1.0f / (1.0f + std::ldexp(1.0f, -lattice.dimensions));
    const float scale = __builtin_sqrtf(kernel_weight * alpha);
    char* writable = static_cast<char*>(lattice.records.data());
    for (int64_t p = 0; p < pixels * corners * 8; p += corners * 8) {
        const int32_t* vertex = reinterpret_cast<const int32_t*>(writable + p);
        float* weight = reinterpret_cast<float*>(writable + p) + corners;
        float sum = 0;
        for (int k = 0; k < corners; ++k) sum += weight[k] * values[vertex[k]];
        const float factor = scale / __builtin_sqrtf(alpha * sum + 1e-20f);
        for (int k = 0; k < corners; ++k) weight[k] *= factor;
    }
}

template <class Key, int D>
Status build_with(Workspace& work, const Guide& guide, const Packing<Key>& packing, Lattice& lattice, float weight,
                  int64_t most) {
    const int64_t pixels = int64_t(guide.height) * guide.width;
    lattice.dimensions = guide.dimensions;
    lattice.records.reserve(size_t(pixels) * size_t(guide.dimensions + 1) * 8);
    Table<Key> table(work, pixels);
    if (!place_pixels<Key, D>(guide, packing, table, lattice, most)) return Status::TOO_MANY_VERTICES;
    lattice.vertices = table.vertices;
    link_vertices<Key>(guide, packing, table, lattice);
    normalise(work, guide, lattice, weight);
    return Status::OK;
}

// Tables of the scaled features (p. 5 of the paper: E scaled so that blurring by [1 2 1] has variance 1).
inline Guide guide_of(Workspace& work, const crf::Request& ask, float sigma_xy, int bands) {
    Guide guide{ask.height, ask.width, bands, 2 + bands, ask.image, ask.valid, {}, {}, {}};
    const int d = guide.dimensions;
    const int longest = ask.width > ask.height ? ask.width : ask.height;
    const int row = (longest > 256 ? longest : 256) + LANES;
    float* tables = static_cast<float*>(work.rows.reserve(size_t(row) * size_t(d) * 2 * 4));
    const float spread = float(std::sqrt(2.0 / 3.0) * (d + 1));
    for (int c = 0; c < d; ++c) {
        const float sigma = c < 2 ? sigma_xy : ask.band_sigmas[c - 2];
        const int values = c == 0 ? ask.width : c == 1 ? ask.height : 256;
        const float scale = float(1.0 / std::sqrt(double((c + 2) * (c + 1))) * double(spread));
        float* scaled = tables + size_t(2 * c) * size_t(row);
        for (int v = 0; v < row; ++v) {
            scaled[v] = float(v < values ? v : values - 1) / sigma * scale;
            scaled[row + v] = float(c + 1) * scaled[v];
        }
        guide.scaled[c] = scaled;
        guide.times_j[c] = scaled + row;
        guide.largest[c] = scaled[values - 1];
    }
    return guide;
}

// Builds the lattice of a kernel, unless the sigmas are too small for its coordinates or it has more than `most` vertices.
inline Status build(Workspace& work, const crf::Request& ask, Lattice& lattice, float sigma_xy, int bands, float weight,
                    int64_t most) {
    const Guide guide = guide_of(work, ask, sigma_xy, bands);
    Packing<Key64> narrow;
    Packing<Key128> wide;
    const int bits = lay_out(guide, narrow);
    if (bits < 0 || lay_out(guide, wide) > 128) return Status::SIGMA_TOO_SMALL;
    if (bits > 64) return build_with<Key128, MAX_DIMENSIONS>(work, guide, wide, lattice, weight, most);
    if (guide.dimensions == 2) return build_with<Key64, 2>(work, guide, narrow, lattice, weight, most);
    if (guide.dimensions == 5) return build_with<Key64, 5>(work, guide, narrow, lattice, weight, most);
    return build_with<Key64, MAX_DIMENSIONS>(work, guide, narrow, lattice, weight, most);
}

}  // namespace
