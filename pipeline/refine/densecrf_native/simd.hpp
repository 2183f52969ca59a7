// Vectors of eight floats: GCC vector extensions, lowered by the compiler to whatever the target has
// (AVX: one register, SSE2 and NEON: two). Included by one translation unit per instruction set.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define CRF_INLINE static inline __attribute__((always_inline))
#define CRF_INLINE_MEMBER inline __attribute__((always_inline))

namespace {

constexpr int LANES = 8;

typedef float Vec __attribute__((vector_size(32), may_alias));
typedef int32_t Int __attribute__((vector_size(32), may_alias));
typedef uint32_t Bits __attribute__((vector_size(32), may_alias));
typedef float LooseVec __attribute__((vector_size(32), may_alias, aligned(4)));

CRF_INLINE Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
CRF_INLINE void store(float* to, Vec v) { *reinterpret_cast<Vec*>(to) = v; }
CRF_INLINE Vec load_loose(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
CRF_INLINE void store_loose(float* to, Vec v) { *reinterpret_cast<LooseVec*>(to) = v; }
CRF_INLINE Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }
CRF_INLINE Int as_int(Vec v) { return reinterpret_cast<Int>(v); }
CRF_INLINE Vec as_float(Int v) { return reinterpret_cast<Vec>(v); }

// Halves (IEEE binary16, 11 bits of precision, at most 65504) in memory; all arithmetic is in floats. A load and a store
// convert eight of them, the store by rounding to nearest even. Where the target has no such instructions, HAVE_HALVES is
// false and rows stay floats: the functions then only serve the compiler.
struct Half {
    uint16_t bits;
};
constexpr double LARGEST_HALF = 65000;  // the format's 65504, less what rounding may add

#if defined(__F16C__)
constexpr bool HAVE_HALVES = true;
CRF_INLINE Vec load(const Half* from) {
    return reinterpret_cast<Vec>(_mm256_cvtph_ps(*reinterpret_cast<const __m128i*>(from)));
}
CRF_INLINE void store(Half* to, Vec v) {
    *reinterpret_cast<__m128i*>(to) = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
constexpr bool HAVE_HALVES = true;
CRF_INLINE Vec load(const Half* from) {
    const float16x8_t eight = vreinterpretq_f16_u16(vld1q_u16(&from->bits));
    return __builtin_shufflevector(vcvt_f32_f16(vget_low_f16(eight)), vcvt_high_f32_f16(eight), 0, 1, 2, 3, 4, 5, 6, 7);
}
CRF_INLINE void store(Half* to, Vec v) {
    const float16x4_t low = vcvt_f16_f32(__builtin_shufflevector(v, v, 0, 1, 2, 3));
    const float16x8_t eight = vcvt_high_f16_f32(low, __builtin_shufflevector(v, v, 4, 5, 6, 7));
    vst1q_u16(&to->bits, vreinterpretq_u16_f16(eight));
}
#else
constexpr bool HAVE_HALVES = false;
CRF_INLINE Vec load(const Half*) { return splat(0.0f); }
CRF_INLINE void store(Half*, Vec) {}
#endif

// The build sets -ffp-contract=off, so that lattices are the same on every instruction set; this function may fuse.
CRF_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__FMA__)
    return reinterpret_cast<Vec>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                 reinterpret_cast<__m256>(c)));
#else
    return a * b + c;
#endif
}

CRF_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX__)
    return reinterpret_cast<Vec>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
    const Int first = a > b;
    return as_float((as_int(a) & first) | (as_int(b) & ~first));
#endif
}

// Horizontal reductions: lane i of the result is the reduction of all lanes of v[i] by `op`.
template <class Op>
CRF_INLINE Vec reduce_each(const Vec* v, Op op) {
    Vec pairs[4], fours[2];
    for (int i = 0; i < 4; ++i) {
        const Vec a = v[2 * i], b = v[2 * i + 1];
        pairs[i] = op(__builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14),
                      __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15));
    }
    for (int i = 0; i < 2; ++i) {
        const Vec a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = op(__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13),
                      __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15));
    }
    return op(__builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11),
              __builtin_shufflevector(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15));
}

// Nearest integer, ties to even, for |v| below 2^22: what 1.5 * 2^23 leaves of the mantissa.
constexpr float ROUNDER = 12582912.0f;
CRF_INLINE Vec nearest(Vec v) { return (v + splat(ROUNDER)) - splat(ROUNDER); }

// exp(x) for x <= 0, relative error below 2e-7 (minimax polynomial of Cephes' expf). Clamped at exp(-50): smaller
// values times a lattice weight would be denormal, and denormals cost six times the whole pass.
CRF_INLINE Vec exp_of_negative(Vec x) {
    x = larger(x, splat(-50.0f));
    const Vec shifted = multiply_add(x, splat(1.44269504088896341f), splat(ROUNDER));
    const Vec n = shifted - splat(ROUNDER);
    Vec r = multiply_add(n, splat(-0.693359375f), x);
    r = multiply_add(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p, r * r, r + splat(1.0f));
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23));
}

// Transposes eight vectors of eight lanes, in place.
CRF_INLINE void transpose(Vec* v) {
    for (int i = 0; i < 8; i += 2) {
        const Vec a = v[i], b = v[i + 1];
        v[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
        v[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int half = 0; half < 8; half += 4) {
        for (int i = half; i < half + 2; ++i) {
            const Vec a = v[i], b = v[i + 2];
            v[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
            v[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; ++i) {
        const Vec a = v[i], b = v[i + 4];
        v[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

}  // namespace
