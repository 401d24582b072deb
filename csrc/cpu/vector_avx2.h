// Eight fp32 lanes of AVX2 with FMA.

#pragma once

#include <immintrin.h>

#include "cpu/compiler.h"
#include "cpu/kernels.h"
#include "cpu/philox_keys.h"

namespace ftengine::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 8;

  FTENGINE_INLINE Vector() : lanes(_mm256_setzero_ps()) {}
  FTENGINE_INLINE explicit Vector(float value) : lanes(_mm256_set1_ps(value)) {}
  FTENGINE_INLINE explicit Vector(__m256 value) : lanes(value) {}

  static FTENGINE_INLINE Vector load(const float* from) { return Vector(_mm256_loadu_ps(from)); }
  static FTENGINE_INLINE Vector load(const float* from, int n) { return Vector(_mm256_maskload_ps(from, first(n))); }
  static FTENGINE_INLINE Vector load(const bfloat16* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static FTENGINE_INLINE Vector load(const bfloat16* from, int n) {
    __m128i halves = _mm_setzero_si128();
    __builtin_memcpy(&halves, from, n * sizeof *from);
    return widen(halves);
  }

  FTENGINE_INLINE void store(float* to) const { _mm256_storeu_ps(to, lanes); }
  FTENGINE_INLINE void store(float* to, int n) const { _mm256_maskstore_ps(to, first(n), lanes); }
  FTENGINE_INLINE void store(bfloat16* to) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow()); }
  FTENGINE_INLINE void store(bfloat16* to, int n) const {
    const __m128i halves = narrow();
    __builtin_memcpy(to, &halves, n * sizeof *to);
  }

  FTENGINE_INLINE Vector keep(uint64_t bits) const {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane);
    return Vector(_mm256_and_ps(lanes, _mm256_castsi256_ps(kept)));
  }

  __m256 lanes;

 private:
  static FTENGINE_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static FTENGINE_INLINE Vector widen(__m128i halves) {
    return Vector(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)));
  }

  FTENGINE_INLINE __m128i narrow() const {  // to bf16, to nearest even
    const __m256i bits = _mm256_castps_si256(lanes);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(lanes, lanes, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), nan), 16);
    const __m256i packed = _mm256_packus_epi32(words, words);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
};

FTENGINE_INLINE Vector fma(Vector a, Vector b, Vector c) { return Vector(_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)); }
FTENGINE_INLINE Vector add(Vector a, Vector b) { return Vector(_mm256_add_ps(a.lanes, b.lanes)); }

FTENGINE_INLINE void add_sums(const Vector (&v)[4], float* to) {
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(v[0].lanes, v[1].lanes), _mm256_hadd_ps(v[2].lanes, v[3].lanes));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
}

constexpr int kDotRows = 3;
constexpr int kExpandRows = 4, kExpandVectors = 2;
constexpr int kOuterRanks = 4, kOuterVectors = 2;

// The 32 mask bits of blocks block … block + 3: a 64-bit lane a block, words in the lower halves. See vector_avx512.h
// for what is scalar in the first rounds.
FTENGINE_INLINE uint32_t keep_four_blocks(const PhiloxKeys& keys, uint32_t row, uint32_t block, int threshold) {
  const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
  const auto word = [](uint32_t value) FTENGINE_LAMBDA { return _mm256_set1_epi64x(value); };
  const auto high = [](__m256i product) FTENGINE_LAMBDA { return _mm256_srli_epi64(product, 32); };
  const auto xor3 = [](__m256i a, __m256i b, __m256i c)
                        FTENGINE_LAMBDA { return _mm256_xor_si256(_mm256_xor_si256(b, c), a); };
  const uint64_t first = static_cast<uint64_t>(kPhiloxM0) * row;
  __m256i c0 = _mm256_xor_si256(_mm256_add_epi64(word(block), _mm256_setr_epi64x(0, 1, 2, 3)), word(keys.k0[0]));
  const uint64_t second = static_cast<uint64_t>(kPhiloxM1) * (static_cast<uint32_t>(first >> 32) ^ keys.k1[0]);
  __m256i c3 = _mm256_mul_epu32(c0, m0);
  __m256i c2 = xor3(high(c3), word(static_cast<uint32_t>(first)), word(keys.k1[1]));
  const uint64_t third = static_cast<uint64_t>(kPhiloxM0) * (static_cast<uint32_t>(second >> 32) ^ keys.k0[1]);
  __m256i c1 = _mm256_mul_epu32(c2, m1);
  c0 = xor3(high(c1), word(static_cast<uint32_t>(second)), word(keys.k0[2]));
  c2 = xor3(c3, word(static_cast<uint32_t>(third >> 32)), word(keys.k1[2]));
  c3 = word(static_cast<uint32_t>(third));
  FTENGINE_UNROLL
  for (int i = 3; i < kPhiloxRounds; ++i) {
    const __m256i p0 = _mm256_mul_epu32(c0, m0), p1 = _mm256_mul_epu32(c2, m1);
    c0 = xor3(high(p1), c1, word(keys.k0[i]));
    c2 = xor3(high(p0), c3, word(keys.k1[i]));
    c1 = p1;
    c3 = p0;
  }
  const __m256i lower = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
  const __m256i upper = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
  const __m256i limit = _mm256_set1_epi16(static_cast<short>(threshold - 1));
  // Blocks 0 and 2, then 1 and 3; packing puts them in order.
  const __m256i even = _mm256_cmpgt_epi16(_mm256_unpacklo_epi64(lower, upper), limit);
  const __m256i odd = _mm256_cmpgt_epi16(_mm256_unpackhi_epi64(lower, upper), limit);
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(even, odd)));
}

FTENGINE_INLINE uint64_t keep_bits(const PhiloxKeys& keys, uint32_t row, uint32_t block, int threshold) {
  const uint64_t low = keep_four_blocks(keys, row, block, threshold);
  return low | static_cast<uint64_t>(keep_four_blocks(keys, row, block + 4, threshold)) << 32;
}

}  // namespace
}  // namespace ftengine::cpu
