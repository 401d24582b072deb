// Four fp32 lanes in plain C++, for any processor; compilers make of it what theirs has.

#pragma once

#include "cpu/bfloat16.h"
#include "cpu/compiler.h"
#include "cpu/kernels.h"
#include "cpu/philox_keys.h"

namespace ftengine::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 4;

  FTENGINE_INLINE Vector() : Vector(0.0f) {}
  FTENGINE_INLINE explicit Vector(float value) {
    for (float& lane : lanes) lane = value;
  }

  template <class T>
  static FTENGINE_INLINE Vector load(const T* from) {
    Vector result;
    for (int i = 0; i < kWidth; ++i) result.lanes[i] = to_float(from[i]);
    return result;
  }
  template <class T>
  static FTENGINE_INLINE Vector load(const T* from, int n) {
    Vector result;
    for (int i = 0; i < n; ++i) result.lanes[i] = to_float(from[i]);
    return result;
  }

  template <class T>
  FTENGINE_INLINE void store(T* to) const {
    for (int i = 0; i < kWidth; ++i) round_to(lanes[i], to + i);
  }
  template <class T>
  FTENGINE_INLINE void store(T* to, int n) const {
    for (int i = 0; i < n; ++i) round_to(lanes[i], to + i);
  }

  FTENGINE_INLINE Vector keep(uint64_t bits) const {
    Vector result;
    for (int i = 0; i < kWidth; ++i) result.lanes[i] = (bits >> i & 1) != 0 ? lanes[i] : 0.0f;
    return result;
  }

  float lanes[kWidth];
};

FTENGINE_INLINE Vector fma(Vector a, Vector b, Vector c) {
  for (int i = 0; i < Vector::kWidth; ++i) c.lanes[i] += a.lanes[i] * b.lanes[i];
  return c;
}

FTENGINE_INLINE Vector add(Vector a, Vector b) {
  for (int i = 0; i < Vector::kWidth; ++i) a.lanes[i] += b.lanes[i];
  return a;
}

FTENGINE_INLINE void add_sums(const Vector (&v)[4], float* to) {
  for (int j = 0; j < 4; ++j) to[j] += (v[j].lanes[0] + v[j].lanes[2]) + (v[j].lanes[1] + v[j].lanes[3]);
}

constexpr int kDotRows = 2;
constexpr int kExpandRows = 4, kExpandVectors = 2;
constexpr int kOuterRanks = 4, kOuterVectors = 2;

FTENGINE_INLINE uint64_t keep_bits(const PhiloxKeys& keys, uint32_t row, uint32_t block, int threshold) {
  uint64_t bits = 0;
  for (uint32_t b = 0; b < 8; ++b) {
    uint32_t c[4] = {row, block + b, 0, 0};
    for (int i = 0; i < kPhiloxRounds; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c[0], p1 = static_cast<uint64_t>(kPhiloxM1) * c[2];
      c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ keys.k0[i];
      c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ keys.k1[i];
      c[1] = static_cast<uint32_t>(p1);
      c[3] = static_cast<uint32_t>(p0);
    }
    for (uint32_t j = 0; j < kColumnsPerBlock; ++j) {
      const int16_t half = static_cast<int16_t>(c[j / 2] >> (16 * (j % 2)));
      bits |= static_cast<uint64_t>(half >= threshold) << (kColumnsPerBlock * b + j);
    }
  }
  return bits;
}

}  // namespace
}  // namespace ftengine::cpu
