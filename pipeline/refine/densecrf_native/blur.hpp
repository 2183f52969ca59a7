// Blurring by [1/2 1 1/2] along one axis of a lattice, in place: along a chain of neighbours each row is read once and
// written once, with the unblurred predecessor kept in registers. Vertices without neighbours stay as they are.
#pragma once

#include "lattice.hpp"

namespace {

// Columns of the first N vectors of rows of T, floats or halves; `stride` numbers from row to row. Chains are short, two
// to five vertices for most, and where they end cannot be predicted: the loop has no branch for it and masks the
// neighbours that are not of the chain.
template <int N, class T>
void blur_columns(T* values, int64_t stride, const uint32_t* chain, const uint32_t* end) {
    constexpr int AHEAD = 32;
    if (chain == end) return;
    const bool long_rows = size_t(stride) * sizeof(T) > CACHE_LINE;
    const Vec half = splat(0.5f);
    const auto row_of = [&](uint32_t entry) { return values + int64_t(entry & ~CHAIN_END) * stride; };
    Vec before[N], here[N];
    for (int v = 0; v < N; ++v) {
        before[v] = splat(0.0f);
        here[v] = load(row_of(*chain) + v * LANES);
    }
    for (; chain < end; ++chain) {
        const T* far = row_of(chain[chain + AHEAD < end ? AHEAD : 0]);
        __builtin_prefetch(far, 1);
        if (long_rows) __builtin_prefetch(far + N * LANES - 1, 1);
        const int32_t goes_on = int32_t(*chain >> 31) - 1;
        const Int linked = Int{} + goes_on;
        T* row = row_of(*chain);
        const T* after = row_of(chain[chain + 1 < end]);
        for (int v = 0; v < N; ++v) {
            const Vec next = load(after + v * LANES);
            store(row + v * LANES, multiply_add(half, before[v] + as_float(as_int(next) & linked), here[v]));
            before[v] = as_float(as_int(here[v]) & linked);
            here[v] = next;
        }
    }
}

// All axes in the order of the reference implementation: where vertices are missing, the order matters.
template <class T>
void blur(const Lattice& lattice, T* values, int64_t stride, int vectors) {
    const uint32_t* chains = static_cast<const uint32_t*>(lattice.chains.data());
    for (int axis = 0; axis <= lattice.dimensions; ++axis) {
        const uint32_t* begin = chains + lattice.chain_start[axis];
        const uint32_t* end = chains + lattice.chain_start[axis + 1];
        int v = 0;
        for (; v + 4 <= vectors; v += 4) blur_columns<4>(values + v * LANES, stride, begin, end);
        switch (vectors - v) {
            case 3: blur_columns<3>(values + v * LANES, stride, begin, end); break;
            case 2: blur_columns<2>(values + v * LANES, stride, begin, end); break;
            case 1: blur_columns<1>(values + v * LANES, stride, begin, end); break;
            default: break;
        }
    }
}

}  // namespace
