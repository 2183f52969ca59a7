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
constexpr size_t PAGE = size_t(64) << 10;  // a multiple of the page of every usual system

size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Large buffers are mappings of their own, at large pages: what a buffer gives back to grow returns to the system at
// once. malloc would keep it in pieces that the grown one does not fit.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)  // the sanitizer only guards what malloc gives
constexpr size_t MAPPED_FROM = 2 * LARGE_PAGE;

void* map(size_t bytes) {
    const size_t room = bytes + LARGE_PAGE;
    void* got = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    const size_t before = rounded_up(reinterpret_cast<size_t>(got), LARGE_PAGE) - reinterpret_cast<size_t>(got);
    char* begin = static_cast<char*>(got) + before;
    if (before) munmap(got, before);
    munmap(begin + bytes, room - before - bytes);
#if defined(MADV_HUGEPAGE)
    madvise(begin, bytes, MADV_HUGEPAGE);
#endif
    return begin;
}

void unmap(void* data, size_t bytes) { munmap(data, bytes); }
#else
constexpr size_t MAPPED_FROM = SIZE_MAX;
void* map(size_t) { throw std::bad_alloc(); }
void unmap(void*, size_t) {}
#endif

void* take(size_t bytes) {
    if (bytes >= MAPPED_FROM) return map(bytes);
    void* fresh = nullptr;
    if (posix_memalign(&fresh, CACHE_LINE, bytes) != 0) throw std::bad_alloc();
    return fresh;
}

void give_back(void* data, size_t bytes) {
    if (bytes >= MAPPED_FROM) {
        unmap(data, bytes);
    } else {
        std::free(data);
    }
}
}  // namespace

Buffer::~Buffer() { release(); }

void Buffer::release() {
    give_back(data_, bytes_);
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
    const size_t rounded = rounded_up(bytes, bytes >= MAPPED_FROM ? PAGE : CACHE_LINE);
    void* fresh = take(rounded);
    if (kept) std::memcpy(fresh, data_, kept);
    give_back(data_, bytes_);
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
