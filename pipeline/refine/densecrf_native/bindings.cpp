// Python module pipeline.refine._densecrf: one class that owns the buffers. pipeline/refine/native.py checks dtypes,
// ranges and sizes; the checks here only keep reads and writes inside the arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <optional>
#include <string>

#include "workspace.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
const T* data_or_null(const std::optional<Array<T>>& array) {
    return array ? array->data() : nullptr;
}

void require(bool held, const char* what) {
    if (!held) throw py::value_error(what);
}

class Engine {
public:
    explicit Engine(const std::string& isa)
        : isa_(isa.empty() ? crf::best_isa() : isa), run_(crf::kernels(isa_.c_str())) {
        if (!run_) throw py::value_error("no kernels for instruction set '" + isa_ + "' on this machine");
    }

    // The results as a tuple, or None for more vertices than `most_vertices`.
    py::object refine(const Array<uint8_t>& image, const Array<float>& logits, const std::optional<Array<bool>>& valid,
                      const Array<float>& band_sigmas, float bi_w, float bi_xy, float pos_w, float pos_xy,
                      int iterations, bool separable, bool full_size, int stride, bool align_corners, int origin_y,
                      int origin_x, float freeze, double seconds_left, int64_t most_vertices, bool want_probs,
                      bool want_labels, bool want_first) {
        require(image.ndim() == 3 && logits.ndim() == 3, "image is (H, W, bands), logits are (K, h, w)");
        crf::Request ask{};
        ask.height = int(image.shape(0));
        ask.width = int(image.shape(1));
        ask.bands = int(image.shape(2));
        ask.classes = int(logits.shape(0));
        ask.cells_y = int(logits.shape(1));
        ask.cells_x = int(logits.shape(2));
        require(ask.height > 0 && ask.width > 0 && int64_t(ask.height) * ask.width <= (int64_t(1) << 26), "image size");
        require(ask.bands >= 1 && ask.bands <= crf::MAX_BANDS, "1 to 8 bands");
        require(ask.classes >= 1 && ask.classes <= crf::MAX_CLASSES, "1 to 255 classes");
        require(ask.cells_y > 0 && ask.cells_x > 0, "logits have no cells");
        require(!full_size || (ask.cells_y == ask.height && ask.cells_x == ask.width), "full-size logits, other size");
        require(stride >= 1 && origin_y >= 0 && origin_x >= 0, "stride, origin");
        require(band_sigmas.ndim() == 1 && band_sigmas.shape(0) == ask.bands, "one sigma per band");
        require(!valid || (valid->ndim() == 2 && valid->shape(0) == ask.height && valid->shape(1) == ask.width),
                "valid mask, other size");
        ask.image = image.data();
        ask.valid = reinterpret_cast<const uint8_t*>(data_or_null(valid));
        ask.logits = logits.data();
        ask.band_sigmas = band_sigmas.data();
        ask.bi_w = bi_w;
        ask.bi_xy = bi_xy;
        ask.pos_w = pos_w;
        ask.pos_xy = pos_xy;
        ask.iterations = iterations;
        ask.separable = separable;
        ask.full_size = full_size;
        ask.stride = stride;
        ask.align_corners = align_corners;
        ask.origin_y = origin_y;
        ask.origin_x = origin_x;
        ask.freeze = freeze;
        ask.seconds_left = seconds_left;
        ask.most_vertices = most_vertices;
        py::object probs = py::none(), labels = py::none();
        if (want_probs) {
            Array<float> made({ask.classes, ask.height, ask.width});
            ask.probs = made.mutable_data();
            probs = made;
        }
        if (want_labels) {
            Array<uint8_t> made({ask.height, ask.width});
            ask.labels = made.mutable_data();
            labels = made;
        }
        py::object first = py::none(), confidence = py::none(), nats = py::none();
        if (want_first) {
            Array<uint8_t> made({ask.height, ask.width});
            Array<float> sure({ask.height, ask.width}), unsure({ask.height, ask.width});
            ask.first = made.mutable_data();
            ask.confidence = sure.mutable_data();
            ask.nats = unsure.mutable_data();
            first = made, confidence = sure, nats = unsure;
        }
        crf::Outcome outcome;
        {
            py::gil_scoped_release unlocked;
            const std::lock_guard<std::mutex> alone(mutex_);
            run_(work_, ask, outcome);
        }
        require(outcome.status != crf::Outcome::LOGITS_NOT_FINITE, "logits must be finite and within 1e30");
        require(outcome.status != crf::Outcome::SIGMA_TOO_SMALL, "a sigma is too small for this image size");
        if (outcome.status == crf::Outcome::TOO_MANY_VERTICES) return py::none();
        return py::make_tuple(probs, labels, first, confidence, nats, outcome.iterations, outcome.spatial_vertices,
                              outcome.bilateral_vertices);
    }

    size_t bytes_held() const { return work_.bytes_held(); }
    const std::string& isa() const { return isa_; }

private:
    std::string isa_;
    crf::Run run_;
    crf::Workspace work_;
    std::mutex mutex_;
};

}  // namespace

PYBIND11_MODULE(_densecrf, m) {
    m.attr("INTERFACE") = 3;  // raised with every change of arguments or results of refine
    m.doc() = "Kernels of the dense CRF; use pipeline.refine.native.";
    m.def(
        "largest_row",
        [](int height, int width, int bands, float bi_w, float bi_xy) {
            crf::Request ask{};
            ask.height = height, ask.width = width, ask.bands = bands, ask.bi_w = bi_w, ask.bi_xy = bi_xy;
            return crf::largest_row(ask);
        },
        py::kw_only(), py::arg("height"), py::arg("width"), py::arg("bands"), py::arg("bi_w"), py::arg("bi_xy"));
    py::class_<Engine>(m, "Engine")
        .def(py::init<const std::string&>(), py::arg("isa") = "")
        .def("refine", &Engine::refine, py::kw_only(), py::arg("image").noconvert(), py::arg("logits").noconvert(),
             py::arg("valid").noconvert(), py::arg("band_sigmas").noconvert(), py::arg("bi_w"), py::arg("bi_xy"),
             py::arg("pos_w"), py::arg("pos_xy"), py::arg("iterations"), py::arg("separable"), py::arg("full_size"),
             py::arg("stride"), py::arg("align_corners"), py::arg("origin_y"), py::arg("origin_x"),
             py::arg("freeze"), py::arg("seconds_left"), py::arg("most_vertices"), py::arg("want_probs"),
             py::arg("want_labels"), py::arg("want_first"))
        .def_property_readonly("bytes_held", &Engine::bytes_held)
        .def_property_readonly("isa", &Engine::isa);
}
