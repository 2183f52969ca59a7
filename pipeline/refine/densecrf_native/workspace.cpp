#include "workspace.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace crf {

namespace {
constexpr size_t LARGE_PAGE = size_t(2) << 20;
}  // namespace

Buffer::~Buffer() { release(); }

void Buffer::release() {
    std::free(data_);
    data_ = nullptr;
    bytes_ = 0;
}

void Buffer::swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
}

void* Buffer::reserve(size_t bytes) {
    if (bytes > bytes_) {
        release();
        grow(bytes, 0);
    }
    return data_;
}

void* Buffer::grow(size_t bytes, size_t kept) {
    if (bytes <= bytes_) return data_;
    const bool large = bytes >= 2 * LARGE_PAGE;
    const size_t align = large ? LARGE_PAGE : CACHE_LINE;
    const size_t rounded = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void* fresh = nullptr;
    if (posix_memalign(&fresh, align, rounded) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (large) madvise(fresh, rounded, MADV_HUGEPAGE);
#endif
    if (kept) std::memcpy(fresh, data_, kept);
    std::free(data_);
    data_ = fresh;
    bytes_ = rounded;
    return data_;
}

size_t Workspace::bytes_held() const {
    size_t sum = 0;
    for (const Lattice* lattice : {&spatial, &bilateral}) {
        sum += lattice->records.bytes() + lattice->chains.bytes();
        sum += lattice->values[0].bytes() + lattice->values[1].bytes() + lattice->base.bytes();
    }
    for (const Buffer* b : {&logits, &rows, &messages, &active, &table, &keys, &next, &heads, &scalars}) {
        sum += b->bytes();
    }
    return sum;
}

double largest_row(const Request& ask) {
    const double width = 3.0 * double(ask.bi_xy) + 1.0, pixels = double(ask.height) * ask.width;
    const double near = width * width < pixels ? width * width : pixels;
    return std::ldexp(std::sqrt(double(ask.bi_w) * near), 3 + ask.bands);
}

}  // namespace crf
