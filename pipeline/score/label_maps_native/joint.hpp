// Joint counts of two maps: pixels of every pair of values. Labels come in runs, so eight pixels are compared as one
// word: eight equal ones are one addition, and a run that continues needs no lookup. Separate additions to one cell
// would also wait for each other's stores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace label_maps {

constexpr int WORD = 8;

inline uint64_t word_at(const uint8_t* from) {
    uint64_t word;
    std::memcpy(&word, from, WORD);
    return word;
}

inline bool all_equal(uint64_t word) { return word == (word & 0xff) * 0x0101010101010101u; }

// Table of counts (groups, rows, columns), and the row and column of each value of a byte.
struct Table {
    int64_t* counts;
    size_t group_size;         // rows * columns
    size_t row_start[256];     // first cell of the row of each value, below group_size
    const uint8_t* column_of;  // column of each value

    int64_t& at(size_t group, uint8_t row, uint8_t column) const {
        return counts[group * group_size + row_start[row] + column_of[column]];
    }
};

// Without GROUPS every pixel is in group 0, and `groups` is not read. Each group must be one that the table has.
template <bool GROUPS>
void joint(const uint8_t* rows, const uint8_t* columns, const uint8_t* groups, size_t pixels, const Table& table) {
    uint64_t row = 0, column = 0, group = 0;  // eight equal pixels each, repeated `run` times
    int64_t run = 0;
    size_t i = 0;
    for (; i + WORD <= pixels; i += WORD) {
        const uint64_t r = word_at(rows + i), c = word_at(columns + i), g = GROUPS ? word_at(groups + i) : 0;
        if (r == row && c == column && g == group) {
            ++run;
        } else if (all_equal(r) && all_equal(c) && all_equal(g)) {
            table.at(uint8_t(group), uint8_t(row), uint8_t(column)) += run * WORD;
            row = r, column = c, group = g, run = 1;
        } else {
            for (size_t j = i; j < i + WORD; ++j) ++table.at(GROUPS ? groups[j] : 0, rows[j], columns[j]);
        }
    }
    table.at(uint8_t(group), uint8_t(row), uint8_t(column)) += run * WORD;
    for (; i < pixels; ++i) ++table.at(GROUPS ? groups[i] : 0, rows[i], columns[i]);
}

}  // namespace label_maps
