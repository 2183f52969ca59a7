// Neighbourhood of each pixel in a map of labels: distance to the nearest boundary, and squares of a single label.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace label_maps {

struct Map {
    const uint8_t* labels;
    ptrdiff_t height, width;

    const uint8_t* row(ptrdiff_t y) const { return labels + y * width; }
};

// 1 where the pixel to the left, right, above or below has another label.
inline void mark_edges(const Map& map, uint8_t* edge) {
    const ptrdiff_t height = map.height, width = map.width;
    for (ptrdiff_t y = 0; y < height; ++y) {
        const uint8_t* here = map.row(y);
        const uint8_t *above = map.row(std::max<ptrdiff_t>(y - 1, 0)), *below = map.row(std::min(y + 1, height - 1));
        uint8_t* out = edge + y * width;
        for (ptrdiff_t x = 0; x < width; ++x) out[x] = (here[x] != above[x]) | (here[x] != below[x]);
        for (ptrdiff_t x = 1; x < width; ++x) out[x] |= here[x] != here[x - 1];
        for (ptrdiff_t x = 1; x < width; ++x) out[x - 1] |= here[x] != here[x - 1];
    }
}

// Rows to the nearest edge of the same column, at most `cap`.
template <class T>
void column_distance(const uint8_t* edge, ptrdiff_t height, ptrdiff_t width, T cap, T* distance) {
    for (ptrdiff_t y = 0; y < height; ++y) {
        const uint8_t* marked = edge + y * width;
        T* here = distance + y * width;
        const T* above = here - width;
        for (ptrdiff_t x = 0; x < width; ++x)
            here[x] = marked[x] ? T(0) : y ? std::min(T(above[x] + 1), cap) : cap;
    }
    for (ptrdiff_t y = height - 2; y >= 0; --y) {
        T* here = distance + y * width;
        const T* below = here + width;
        for (ptrdiff_t x = 0; x < width; ++x) here[x] = std::min(here[x], T(below[x] + 1));
    }
}

// The ring of each pixel: ring_of[d], where d is the squared Euclidean distance to the nearest edge, at most cap * cap.
// The minimum over a row's columns within reach is taken one offset at a time, for the whole row, which the compiler
// turns into vectors: at the widths of trimaps faster than the transforms whose cost does not grow with the distance.
// T holds 2 * cap * cap.
template <class T>
void rings(const Map& map, T cap, const uint8_t* ring_of, uint8_t* ring) {
    const ptrdiff_t height = map.height, width = map.width;
    std::vector<T> distance(size_t(height) * width);
    mark_edges(map, ring);
    column_distance(ring, height, width, cap, distance.data());
    const T far = T(cap * cap);
    std::vector<T> padded(size_t(width) + 2 * cap, far), nearest(width);
    for (ptrdiff_t y = 0; y < height; ++y) {
        const T* down = distance.data() + y * width;
        T* squared = padded.data() + cap;
        for (ptrdiff_t x = 0; x < width; ++x) squared[x] = T(down[x] * down[x]);
        std::copy(squared, squared + width, nearest.begin());
        T farthest = far;
        for (T dx = 1; T(dx * dx) < farthest; ++dx) {
            const T across = T(dx * dx), *left = squared - dx, *right = squared + dx;
            T* out = nearest.data();
            T largest = 0;
            for (ptrdiff_t x = 0; x < width; ++x) {
                out[x] = std::min(out[x], T(std::min(left[x], right[x]) + across));
                largest = std::max(largest, out[x]);
            }
            farthest = largest;
        }
        for (ptrdiff_t x = 0; x < width; ++x) ring[y * width + x] = ring_of[nearest[x]];
    }
}

// 1 unless the square of `reach` rows and columns around the pixel lies inside the map and holds a single label.
inline void has_neighbour(const Map& map, ptrdiff_t reach, uint8_t* mask) {
    const ptrdiff_t height = map.height, width = map.width, side = 2 * reach + 1;
    std::fill(mask, mask + height * width, uint8_t(1));
    std::vector<uint8_t> alike(width);       // the row holds a single label within reach
    std::vector<ptrdiff_t> rows(width, 0);   // consecutive rows of that kind with the same label
    for (ptrdiff_t y = 0; y < height; ++y) {
        const uint8_t *here = map.row(y), *above = map.row(std::max<ptrdiff_t>(y - 1, 0));
        std::fill(alike.begin(), alike.end(), uint8_t(0));
        ptrdiff_t run = 0;
        for (ptrdiff_t x = 0; x < width; ++x) {
            run = x && here[x] == here[x - 1] ? run + 1 : 1;
            if (run >= side) alike[x - reach] = 1;
        }
        for (ptrdiff_t x = 0; x < width; ++x) rows[x] = !alike[x] ? 0 : here[x] == above[x] ? rows[x] + 1 : 1;
        if (y < 2 * reach) continue;
        uint8_t* out = mask + (y - reach) * width;
        for (ptrdiff_t x = 0; x < width; ++x) out[x] = rows[x] < side;
    }
}

}  // namespace label_maps
