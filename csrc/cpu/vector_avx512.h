// Sixteen fp32 lanes of AVX-512 (F, BW, DQ, VL).

#pragma once

#include <immintrin.h>

#include "cpu/compiler.h"
#include "cpu/kernels.h"
#include "cpu/philox_keys.h"

namespace ftengine::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 16;

  FTENGINE_INLINE Vector() : lanes(_mm512_setzero_ps()) {}
  FTENGINE_INLINE explicit Vector(float value) : lanes(_mm512_set1_ps(value)) {}
  FTENGINE_INLINE explicit Vector(__m512 value) : lanes(value) {}

  static FTENGINE_INLINE Vector load(const float* from) { return Vector(_mm512_loadu_ps(from)); }
  static FTENGINE_INLINE Vector load(const float* from, int n) { return Vector(_mm512_maskz_loadu_ps(first(n), from)); }
  static FTENGINE_INLINE Vector load(const bfloat16* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static FTENGINE_INLINE Vector load(const bfloat16* from, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), from));
  }

  FTENGINE_INLINE void store(float* to) const { _mm512_storeu_ps(to, lanes); }
  FTENGINE_INLINE void store(float* to, int n) const { _mm512_mask_storeu_ps(to, first(n), lanes); }
  FTENGINE_INLINE void store(bfloat16* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow()); }
  FTENGINE_INLINE void store(bfloat16* to, int n) const { _mm256_mask_storeu_epi16(to, first(n), narrow()); }

  FTENGINE_INLINE Vector keep(uint64_t bits) const {
    return Vector(_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), lanes));
  }

  __m512 lanes;

 private:
  static FTENGINE_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static FTENGINE_INLINE Vector widen(__m256i halves) {
    return Vector(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)));
  }

  // To bf16, to nearest even, in integers: the processor's own conversion takes subnormal numbers for zeros.
  FTENGINE_INLINE __m256i narrow() const {
    const __m512i bits = _mm512_castps_si512(lanes);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(lanes, lanes, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
  }
};

FTENGINE_INLINE Vector fma(Vector a, Vector b, Vector c) { return Vector(_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)); }
FTENGINE_INLINE Vector add(Vector a, Vector b) { return Vector(_mm512_add_ps(a.lanes, b.lanes)); }

FTENGINE_INLINE void add_sums(const Vector (&v)[4], float* to) {
  const auto transpose_add = [](__m512 a, __m512 b) FTENGINE_LAMBDA {  // a0+a2, b0+b2, a1+a3, b1+b3 in each quarter
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d left = _mm512_castps_pd(transpose_add(v[0].lanes, v[1].lanes));
  const __m512d right = _mm512_castps_pd(transpose_add(v[2].lanes, v[3].lanes));
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
}

constexpr int kDotRows = 6;
constexpr int kExpandRows = 4, kExpandVectors = 4;
constexpr int kOuterRanks = 8, kOuterVectors = 2;

// The 64 mask bits of blocks block … block + 7. A 64-bit lane a block; a word lies in a lane's lower half, whose upper
// half is never read again: the whole product serves as its lower word. Until the third round half of the words depend
// on the row alone and stay scalars.
FTENGINE_INLINE uint64_t keep_bits(const PhiloxKeys& keys, uint32_t row, uint32_t block, int threshold) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
  const auto word = [](uint32_t value) FTENGINE_LAMBDA { return _mm512_set1_epi64(value); };
  const auto high = [](__m512i product) FTENGINE_LAMBDA { return _mm512_srli_epi64(product, 32); };
  const auto xor3 = [](__m512i a, __m512i b, __m512i c)
                        FTENGINE_LAMBDA { return _mm512_ternarylogic_epi64(a, b, c, 0x96); };
  // Round 1: (row, block, 0, 0).
  const uint64_t first = static_cast<uint64_t>(kPhiloxM0) * row;
  const __m512i blocks = _mm512_add_epi64(word(block), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  __m512i c0 = _mm512_xor_si512(blocks, word(keys.k0[0]));
  // Round 2: c0 has the block; c1 = 0; c2 and c3 have the row.
  const uint64_t second = static_cast<uint64_t>(kPhiloxM1) * (static_cast<uint32_t>(first >> 32) ^ keys.k1[0]);
  __m512i c3 = _mm512_mul_epu32(c0, m0);
  __m512i c2 = xor3(high(c3), word(static_cast<uint32_t>(first)), word(keys.k1[1]));
  // Round 3: c0 and c1 have the row.
  const uint64_t third = static_cast<uint64_t>(kPhiloxM0) * (static_cast<uint32_t>(second >> 32) ^ keys.k0[1]);
  __m512i c1 = _mm512_mul_epu32(c2, m1);
  c0 = xor3(high(c1), word(static_cast<uint32_t>(second)), word(keys.k0[2]));
  c2 = xor3(c3, word(static_cast<uint32_t>(third >> 32)), word(keys.k1[2]));
  c3 = word(static_cast<uint32_t>(third));
  FTENGINE_UNROLL
  for (int i = 3; i < kPhiloxRounds; ++i) {
    const __m512i p0 = _mm512_mul_epu32(c0, m0), p1 = _mm512_mul_epu32(c2, m1);
    c0 = xor3(high(p1), c1, word(keys.k0[i]));
    c2 = xor3(high(p0), c3, word(keys.k1[i]));
    c1 = p1;
    c3 = p0;
  }
  // (c0, c1) and (c2, c3) as 64-bit halves of each block, then blocks 0-3 and 4-7 as 32 half-words each.
  const __m512i lower = _mm512_mask_shuffle_epi32(c0, 0xAAAA, c1, _MM_PERM_CCAA);
  const __m512i upper = _mm512_mask_shuffle_epi32(c2, 0xAAAA, c3, _MM_PERM_CCAA);
  const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
  const uint64_t low = _mm512_cmpge_epi16_mask(_mm512_unpacklo_epi64(lower, upper), limit);
  const uint64_t high_half = _mm512_cmpge_epi16_mask(_mm512_unpackhi_epi64(lower, upper), limit);
  return low | high_half << 32;
}

}  // namespace
}  // namespace ftengine::cpu
