// Python module pipeline.score._label_maps. pipeline/score/label_maps.py documents the arrays; the checks here only
// keep reads and writes inside of them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "joint.hpp"
#include "neighbours.hpp"

namespace py = pybind11;
using namespace label_maps;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

void require(bool held, const char* what) {
    if (!held) throw py::value_error(what);
}

uint8_t largest(const uint8_t* values, size_t count) {
    uint8_t maximum = 0;
    for (size_t i = 0; i < count; ++i) maximum = std::max(maximum, values[i]);
    return maximum;
}

py::array_t<int64_t> count_joint(const Bytes& rows, const Bytes& columns, const std::optional<Bytes>& groups,
                                 const Bytes& row_of, const Bytes& column_of, int num_groups) {
    const size_t pixels = size_t(rows.size());
    require(size_t(columns.size()) == pixels && (!groups || size_t(groups->size()) == pixels), "maps of other sizes");
    require(row_of.size() == 256 && column_of.size() == 256, "row_of and column_of have 256 values");
    require(num_groups >= 1, "at least one group");
    require(!groups || largest(groups->data(), pixels) < num_groups, "a group that is not there");
    const size_t num_rows = size_t(largest(row_of.data(), 256)) + 1;
    const size_t num_columns = size_t(largest(column_of.data(), 256)) + 1;
    py::array_t<int64_t> counts({size_t(num_groups), num_rows, num_columns});
    Table table{counts.mutable_data(), num_rows * num_columns, {}, column_of.data()};
    for (int value = 0; value < 256; ++value) table.row_start[value] = row_of.data()[value] * num_columns;
    {
        py::gil_scoped_release unlocked;
        std::fill(table.counts, table.counts + counts.size(), 0);
        if (groups)
            joint<true>(rows.data(), columns.data(), groups->data(), pixels, table);
        else
            joint<false>(rows.data(), columns.data(), nullptr, pixels, table);
    }
    return counts;
}

Map map_of(const Bytes& labels) {
    require(labels.ndim() == 2, "labels are (H, W)");
    return {labels.data(), labels.shape(0), labels.shape(1)};
}

Bytes find_rings(const Bytes& labels, const Bytes& ring_of, int cap) {
    const Map map = map_of(labels);
    require(cap >= 0 && cap < (1 << 15) && ring_of.size() == int64_t(cap) * cap + 1, "ring_of has cap * cap + 1 values");
    Bytes ring({map.height, map.width});
    uint8_t* out = ring.mutable_data();
    const uint8_t* table = ring_of.data();
    {
        py::gil_scoped_release unlocked;
        if (cap <= 127)
            rings<int16_t>(map, int16_t(cap), table, out);
        else
            rings<int32_t>(map, cap, table, out);
    }
    return ring;
}

py::array_t<bool> find_neighbours(const Bytes& labels, int reach) {
    const Map map = map_of(labels);
    require(reach >= 0, "reach is at least 0");
    py::array_t<bool> mask({map.height, map.width});
    auto* out = reinterpret_cast<uint8_t*>(mask.mutable_data());
    {
        py::gil_scoped_release unlocked;
        has_neighbour(map, reach, out);
    }
    return mask;
}

}  // namespace

PYBIND11_MODULE(_label_maps, m) {
    m.attr("INTERFACE") = 1;  // raised with every change of arguments or results
    m.doc() = "Counting and looking around in maps of class ids; use pipeline.score.label_maps.";
    m.def("joint", &count_joint, py::arg("rows").noconvert(), py::arg("columns").noconvert(),
          py::arg("groups").noconvert(), py::arg("row_of").noconvert(), py::arg("column_of").noconvert(),
          py::arg("num_groups"));
    m.def("rings", &find_rings, py::arg("labels").noconvert(), py::arg("ring_of").noconvert(), py::arg("cap"));
    m.def("has_neighbour", &find_neighbours, py::arg("labels").noconvert(), py::arg("reach"));
}
