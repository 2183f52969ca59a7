// Request, outcome and buffers of one refinement. Plain data: shared by the bindings and by the kernels, which are
// compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crf {

constexpr int MAX_BANDS = 8;
constexpr int MAX_DIMENSIONS = 2 + MAX_BANDS;
constexpr int MAX_CLASSES = 255;
constexpr size_t CACHE_LINE = 64;

// Memory kept from image to image, aligned to cache lines; large buffers ask for huge pages.
class Buffer {
public:
    Buffer() = default;
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // At least `bytes` bytes; growing loses the content. Throws std::bad_alloc.
    void* reserve(size_t bytes);
    // The same, keeping the first `kept` bytes.
    void* grow(size_t bytes, size_t kept);
    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    void release();
    void swap(Buffer& other);

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// The permutohedral lattice of one kernel over one image.
struct Lattice {
    int dimensions = 0;
    int64_t vertices = 0;
    // Per pixel: dimensions + 1 vertex numbers (int32), then as many weights (float) that hold the barycentric
    // coordinate, the square root of the kernel's weight and the symmetric normalisation.
    Buffer records;
    // Per axis: chains of neighbouring vertices of two or more, one after another; the last of each has bit 31 set.
    Buffer chains;
    int64_t chain_start[MAX_DIMENSIONS + 2] = {};
    // Rows of padded classes, one per vertex: the values that a pass reads, floats or halves, and the sums that it writes.
    Buffer values[2];
    Buffer base;  // the same rows: the part of every sum that frozen pixels add
};

struct Request {
    int height, width, classes, bands;
    const uint8_t* image;  // (height, width, bands)
    const uint8_t* valid;  // (height, width) or null

    const float* logits;    // (classes, cells_y, cells_x)
    int cells_y, cells_x;
    bool full_size;         // cells are the pixels; else upsampled by `stride`
    int stride;
    bool align_corners;
    int origin_y, origin_x;  // of the image within the upsampled map

    float bi_w, bi_xy, pos_w, pos_xy;
    const float* band_sigmas;  // (bands)
    int iterations;
    bool separable;        // spatial kernel as truncated separable Gaussian instead of a lattice
    float freeze;          // largest probability of the logits above which a pixel keeps that Q; 1 or more freezes none
    double seconds_left;
    int64_t most_vertices;  // of the appearance kernel's lattice: more are refused before they take memory

    float* probs;     // (classes, height, width) or null
    uint8_t* labels;  // (height, width) or null

    // (height, width) each, or all null: label, largest probability and entropy (nats) of the logits alone.
    uint8_t* first;
    float *confidence, *nats;
};

// Upper bound on a number in the blurred rows of the appearance lattice, from image size, weight, sigma and bands.
//
// A pixel p adds w_v(p) q to the sum of a vertex v, where q <= 1 and w_v(p) = b_v(p) sqrt(bi_w / t(p)): b are barycentric
// coordinates, t is the blurred sum of b, sliced at p. Blurring only adds, so that t(p) >= b_v(p) s with s the sum of all
// b_v, and w_v(p) <= sqrt(bi_w b_v(p) / s). By Cauchy and Schwarz n pixels add at most sqrt(bi_w n). These lie within 1.5
// sigma of the vertex in x and in y (diameter of a simplex: Adams et al. 2010, sec. 3). Each axis of the blur at most
// doubles the largest number.
double largest_row(const Request& ask);

struct Outcome {
    enum Status { OK, LOGITS_NOT_FINITE, SIGMA_TOO_SMALL, TOO_MANY_VERTICES } status = OK;
    int iterations = 0;
    int64_t spatial_vertices = 0, bilateral_vertices = 0;
};

struct Workspace {
    Lattice spatial, bilateral;
    // Key of the cached spatial lattice: image size, sigma and weight.
    int spatial_height = 0, spatial_width = 0;
    float spatial_sigma = 0, spatial_weight = 0;

    Buffer logits;   // pixel-major, classes padded to LANES: full-size, or the cells of the network
    Buffer rows;     // scratch of a pass: upsampled rows, the segment in work
    Buffer messages; // separable kernel: Q blurred along the rows
    Buffer active;   // pixels that are not frozen: start of each row, then their numbers
    Buffer table, keys, next, heads, scalars;  // scratch of building a lattice

    size_t bytes_held() const;
};

// Kernels built for an instruction set; null where this compiler or this processor lacks it.
using Run = void (*)(Workspace&, const Request&, Outcome&);
Run kernels(const char* isa);
const char* best_isa();

}  // namespace crf
