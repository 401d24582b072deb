// The intrinsics of AVX-512 that csrc/cpu uses, lane by lane in plain C++, as Intel's guide to intrinsics defines them.
//
// Found before GCC's header of this name, it lets kernels for AVX-512 run on any processor with AVX2, slowly. A masked
// load or store touches the lanes of its mask and no others, so that sanitizers see what it reads and writes.

#pragma once

// GCC's headers ask for this name; its header of AVX-512, whose names these are, stays out.
#define _IMMINTRIN_H_INCLUDED
// clang-format off: each of these needs the one before
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
// clang-format on

#include <cstdint>
#include <cstring>

#define __builtin_cpu_supports(name) 1

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef double __m512d __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef short __m512bh __attribute__((vector_size(64), may_alias));
typedef short __m256bh __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;
constexpr int _MM_PERM_CCAA = 0b10100000;

namespace emulated {

template <class Lane, class Vector>
struct Lanes {
  static constexpr int kCount = sizeof(Vector) / sizeof(Lane);
  Lane lane[kCount];
  Lanes() : lane{} {}
  explicit Lanes(const Vector& vector) { std::memcpy(lane, &vector, sizeof vector); }
  Vector vector() const {
    Vector result;
    std::memcpy(&result, lane, sizeof result);
    return result;
  }
};

// result[i] = value(i)
template <class Lane, class Vector, class Value>
inline Vector each(const Value& value) {
  Lanes<Lane, Vector> result;
  for (int i = 0; i < result.kCount; ++i) result.lane[i] = value(i);
  return result.vector();
}

// mask[i] = test(i)
template <class Mask, int kCount, class Test>
inline Mask where(const Test& test) {
  Mask mask = 0;
  for (int i = 0; i < kCount; ++i) mask = static_cast<Mask>(mask | static_cast<Mask>(Mask{test(i)} << i));
  return mask;
}

template <class Lane, class Vector>
inline Vector load_some(uint64_t mask, const void* from) {
  Lanes<Lane, Vector> result;
  for (int i = 0; i < result.kCount; ++i) {
    if (mask >> i & 1) std::memcpy(&result.lane[i], static_cast<const Lane*>(from) + i, sizeof(Lane));
  }
  return result.vector();
}

template <class Lane, class Vector>
inline void store_some(void* to, uint64_t mask, const Vector& vector) {
  const Lanes<Lane, Vector> lanes(vector);
  for (int i = 0; i < lanes.kCount; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<Lane*>(to) + i, &lanes.lane[i], sizeof(Lane));
  }
}

template <class Vector>
inline Vector load(const void* from) {
  Vector result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

template <class Vector>
inline Vector load_aligned(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Vector) != 0) __builtin_trap();
  return load<Vector>(from);
}

template <class Vector>
inline void store(void* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

template <class Vector>
inline void store_aligned(void* to, const Vector& vector) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Vector) != 0) __builtin_trap();
  store(to, vector);
}

// Interleaves the lower or upper halves of each quarter of 128 bits.
template <class Lane, class Vector>
inline Vector unpack(const Vector& a, const Vector& b, bool upper) {
  constexpr int kQuarter = 16 / sizeof(Lane);
  const Lanes<Lane, Vector> left(a), right(b);
  return each<Lane, Vector>([&](int i) {
    const int from = i / kQuarter * kQuarter + (upper ? kQuarter / 2 : 0) + i % kQuarter / 2;
    return (i % 2 == 0 ? left : right).lane[from];
  });
}

// --- bf16, as the processor computes it: subnormal numbers are zeros -------------------------------------------------

inline float flushed(float value) {
  const float tiny = 1.17549435e-38F;  // the smallest normal one
  return value > -tiny && value < tiny ? __builtin_copysignf(0, value) : value;
}

inline uint16_t to_bf16(float value) {
  const float normal = flushed(value);
  uint32_t bits;
  std::memcpy(&bits, &normal, sizeof bits);
  if (normal != normal) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float to_fp32(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return flushed(value);
}

// sum + odd products + even products, each rounded on its own.
inline float dot(float sum, uint16_t even_a, uint16_t even_b, uint16_t odd_a, uint16_t odd_b) {
  sum = flushed(__builtin_fmaf(to_fp32(odd_a), to_fp32(odd_b), flushed(sum)));
  return flushed(__builtin_fmaf(to_fp32(even_a), to_fp32(even_b), sum));
}

}  // namespace emulated

#define FTENGINE_INTRINSIC inline __attribute__((always_inline))
#define FTENGINE_EACH(lane, vector, ...) \
  emulated::each<lane, vector>([&](int i) __attribute__((always_inline)) { return __VA_ARGS__; })

// --- fp32 ------------------------------------------------------------------------------------------------------------

FTENGINE_INTRINSIC __m512 _mm512_setzero_ps() { return __m512{}; }
FTENGINE_INTRINSIC __m512 _mm512_set1_ps(float value) { return FTENGINE_EACH(float, __m512, (void(i), value)); }
FTENGINE_INTRINSIC __m512 _mm512_loadu_ps(const void* from) { return emulated::load<__m512>(from); }
FTENGINE_INTRINSIC __m512 _mm512_load_ps(const void* from) { return emulated::load_aligned<__m512>(from); }
FTENGINE_INTRINSIC __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
  return emulated::load_some<float, __m512>(mask, from);
}
FTENGINE_INTRINSIC void _mm512_storeu_ps(void* to, __m512 a) { emulated::store(to, a); }
FTENGINE_INTRINSIC void _mm512_store_ps(void* to, __m512 a) { emulated::store_aligned(to, a); }
FTENGINE_INTRINSIC void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 a) {
  emulated::store_some<float>(to, mask, a);
}
FTENGINE_INTRINSIC __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
FTENGINE_INTRINSIC __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
FTENGINE_INTRINSIC __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return FTENGINE_EACH(float, __m512, __builtin_fmaf(a[i], b[i], c[i]));
}
FTENGINE_INTRINSIC __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
  return FTENGINE_EACH(float, __m512, mask >> i & 1 ? a[i] : 0.0F);
}
FTENGINE_INTRINSIC __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  if (predicate != _CMP_UNORD_Q) __builtin_trap();
  return emulated::where<__mmask16, 16>([&](int i) { return a[i] != a[i] || b[i] != b[i]; });
}
FTENGINE_INTRINSIC __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) { return emulated::unpack<float>(a, b, false); }
FTENGINE_INTRINSIC __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) { return emulated::unpack<float>(a, b, true); }
FTENGINE_INTRINSIC __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) { return emulated::unpack<double>(a, b, false); }
FTENGINE_INTRINSIC __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) { return emulated::unpack<double>(a, b, true); }
FTENGINE_INTRINSIC __m512 _mm512_permutex2var_ps(__m512 a, __m512i from, __m512 b) {
  const emulated::Lanes<int, __m512i> index(from);
  return FTENGINE_EACH(float, __m512, index.lane[i] & 16 ? b[index.lane[i] & 15] : a[index.lane[i] & 15]);
}

// --- as other types, and parts of a vector ---------------------------------------------------------------------------

FTENGINE_INTRINSIC __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
FTENGINE_INTRINSIC __m512i _mm512_castps_si512(__m512 a) { return (__m512i)a; }
FTENGINE_INTRINSIC __m512d _mm512_castps_pd(__m512 a) { return (__m512d)a; }
FTENGINE_INTRINSIC __m512 _mm512_castpd_ps(__m512d a) { return (__m512)a; }
FTENGINE_INTRINSIC __m256 _mm512_castps512_ps256(__m512 a) { return FTENGINE_EACH(float, __m256, a[i]); }
FTENGINE_INTRINSIC __m256 _mm512_extractf32x8_ps(__m512 a, int half) {
  return FTENGINE_EACH(float, __m256, a[8 * half + i]);
}
FTENGINE_INTRINSIC __m256i _mm512_castsi512_si256(__m512i a) { return FTENGINE_EACH(long long, __m256i, a[i]); }
FTENGINE_INTRINSIC __m256i _mm512_extracti64x4_epi64(__m512i a, int half) {
  return FTENGINE_EACH(long long, __m256i, a[4 * half + i]);
}

// --- integers --------------------------------------------------------------------------------------------------------

FTENGINE_INTRINSIC __m512i _mm512_setzero_si512() { return __m512i{}; }
FTENGINE_INTRINSIC __m512i _mm512_set1_epi16(short value) { return FTENGINE_EACH(short, __m512i, (void(i), value)); }
FTENGINE_INTRINSIC __m512i _mm512_set1_epi32(int value) { return FTENGINE_EACH(int, __m512i, (void(i), value)); }
FTENGINE_INTRINSIC __m512i _mm512_set1_epi64(long long value) {
  return FTENGINE_EACH(long long, __m512i, (void(i), value));
}
template <class... Values>
FTENGINE_INTRINSIC __m512i _mm512_setr_epi32(Values... values) {
  static_assert(sizeof...(values) == 16);
  const int all[] = {static_cast<int>(values)...};
  return emulated::load<__m512i>(all);
}
FTENGINE_INTRINSIC __m512i _mm512_setr_epi64(long long a, long long b, long long c, long long d, long long e,
                                             long long f, long long g, long long h) {
  return __m512i{a, b, c, d, e, f, g, h};
}
FTENGINE_INTRINSIC __m512i _mm512_loadu_si512(const void* from) { return emulated::load<__m512i>(from); }
FTENGINE_INTRINSIC __m512i _mm512_load_si512(const void* from) { return emulated::load_aligned<__m512i>(from); }
FTENGINE_INTRINSIC __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* from) {
  return emulated::load_some<short, __m512i>(mask, from);
}
FTENGINE_INTRINSIC __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* from) {
  return emulated::load_some<short, __m256i>(mask, from);
}
FTENGINE_INTRINSIC void _mm512_storeu_si512(void* to, __m512i a) { emulated::store(to, a); }
FTENGINE_INTRINSIC void _mm512_store_si512(void* to, __m512i a) { emulated::store_aligned(to, a); }
FTENGINE_INTRINSIC void _mm512_mask_storeu_epi16(void* to, __mmask32 mask, __m512i a) {
  emulated::store_some<short>(to, mask, a);
}
FTENGINE_INTRINSIC void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i a) {
  emulated::store_some<short>(to, mask, a);
}
FTENGINE_INTRINSIC void _mm512_mask_storeu_epi32(void* to, __mmask16 mask, __m512i a) {
  emulated::store_some<int>(to, mask, a);
}
FTENGINE_INTRINSIC __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
FTENGINE_INTRINSIC __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
FTENGINE_INTRINSIC __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
FTENGINE_INTRINSIC __m512i _mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, int table) {
  if (table != 0x96) __builtin_trap();
  return a ^ b ^ c;
}
FTENGINE_INTRINSIC __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  const emulated::Lanes<uint32_t, __m512i> left(a), right(b);
  return FTENGINE_EACH(uint32_t, __m512i, left.lane[i] + right.lane[i]);
}
FTENGINE_INTRINSIC __m512i _mm512_add_epi64(__m512i a, __m512i b) {
  const emulated::Lanes<uint64_t, __m512i> left(a), right(b);
  return FTENGINE_EACH(uint64_t, __m512i, left.lane[i] + right.lane[i]);
}
FTENGINE_INTRINSIC __m512i _mm512_mul_epu32(__m512i a, __m512i b) {
  const emulated::Lanes<uint64_t, __m512i> left(a), right(b);
  return FTENGINE_EACH(uint64_t, __m512i, (left.lane[i] & 0xFFFFFFFF) * (right.lane[i] & 0xFFFFFFFF));
}
FTENGINE_INTRINSIC __m512i _mm512_slli_epi32(__m512i a, unsigned count) {
  const emulated::Lanes<uint32_t, __m512i> lanes(a);
  return FTENGINE_EACH(uint32_t, __m512i, lanes.lane[i] << count);
}
FTENGINE_INTRINSIC __m512i _mm512_srli_epi32(__m512i a, unsigned count) {
  const emulated::Lanes<uint32_t, __m512i> lanes(a);
  return FTENGINE_EACH(uint32_t, __m512i, lanes.lane[i] >> count);
}
FTENGINE_INTRINSIC __m512i _mm512_srli_epi64(__m512i a, unsigned count) {
  const emulated::Lanes<uint64_t, __m512i> lanes(a);
  return FTENGINE_EACH(uint64_t, __m512i, lanes.lane[i] >> count);
}
FTENGINE_INTRINSIC __m512i _mm512_mask_mov_epi32(__m512i otherwise, __mmask16 mask, __m512i a) {
  const emulated::Lanes<int, __m512i> lanes(a), others(otherwise);
  return FTENGINE_EACH(int, __m512i, (mask >> i & 1 ? lanes : others).lane[i]);
}
FTENGINE_INTRINSIC __m512i _mm512_mask_shuffle_epi32(__m512i otherwise, __mmask16 mask, __m512i a, int order) {
  const emulated::Lanes<int, __m512i> lanes(a), others(otherwise);
  return FTENGINE_EACH(int, __m512i, mask >> i & 1 ? lanes.lane[i / 4 * 4 + (order >> i % 4 * 2 & 3)] : others.lane[i]);
}
FTENGINE_INTRINSIC __m512i _mm512_permutexvar_epi16(__m512i from, __m512i a) {
  const emulated::Lanes<uint16_t, __m512i> index(from), lanes(a);
  return FTENGINE_EACH(uint16_t, __m512i, lanes.lane[index.lane[i] & 31]);
}
FTENGINE_INTRINSIC __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return emulated::unpack<short>(a, b, false); }
FTENGINE_INTRINSIC __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return emulated::unpack<short>(a, b, true); }
FTENGINE_INTRINSIC __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return emulated::unpack<long long>(a, b, false);
}
FTENGINE_INTRINSIC __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return emulated::unpack<long long>(a, b, true);
}
FTENGINE_INTRINSIC __mmask32 _mm512_cmpge_epi16_mask(__m512i a, __m512i b) {
  const emulated::Lanes<short, __m512i> left(a), right(b);
  return emulated::where<__mmask32, 32>([&](int i) { return left.lane[i] >= right.lane[i]; });
}
FTENGINE_INTRINSIC __m512i _mm512_cvtepu16_epi32(__m256i a) {
  const emulated::Lanes<uint16_t, __m256i> lanes(a);
  return FTENGINE_EACH(uint32_t, __m512i, lanes.lane[i]);
}
FTENGINE_INTRINSIC __m256i _mm512_cvtepi32_epi16(__m512i a) {
  const emulated::Lanes<uint32_t, __m512i> lanes(a);
  return FTENGINE_EACH(uint16_t, __m256i, static_cast<uint16_t>(lanes.lane[i]));
}

// --- bf16 ------------------------------------------------------------------------------------------------------------

FTENGINE_INTRINSIC __m256bh _mm512_cvtneps_pbh(__m512 a) {
  return FTENGINE_EACH(uint16_t, __m256bh, emulated::to_bf16(a[i]));
}
FTENGINE_INTRINSIC __m512bh _mm512_cvtne2ps_pbh(__m512 upper, __m512 lower) {
  return FTENGINE_EACH(uint16_t, __m512bh, emulated::to_bf16(i < 16 ? lower[i] : upper[i - 16]));
}
FTENGINE_INTRINSIC __m512 _mm512_dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  const emulated::Lanes<uint16_t, __m512bh> left(a), right(b);
  return FTENGINE_EACH(
      float, __m512,
      emulated::dot(acc[i], left.lane[2 * i], right.lane[2 * i], left.lane[2 * i + 1], right.lane[2 * i + 1]));
}
