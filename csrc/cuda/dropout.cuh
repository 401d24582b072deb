// The dropout mask as kernels make it: Philox with what depends on the row or the column alone taken out of the loop.
//
// ../philox.h says what is computed. Two counter words are zero, so the first two rounds and one product of the third
// belong to the row or to the column; the state after them is put together from a PhiloxRow and a PhiloxColumn.

#pragma once

#include "device.cuh"

namespace ftengine {

// p = level / 65536.
struct Dropout {
  const int64_t* seed;
  int level;
};

struct PhiloxRow {
  uint32_t key_low, word0, word2, word3;
};

struct PhiloxColumn {
  uint32_t high, low;
};

// Says which elements are kept; all are where Drop is false.
template <bool Drop>
class Mask {
 public:
  explicit __device__ __forceinline__ Mask(Dropout dropout) {
    if constexpr (Drop) {
      const auto seed = static_cast<uint64_t>(*dropout.seed);
#pragma unroll
      for (int i = 0; i < kPhiloxRounds; ++i) {
        keys_[i][0] = static_cast<uint32_t>(seed) + i * kPhiloxW0;
        keys_[i][1] = static_cast<uint32_t>(seed >> 32) + i * kPhiloxW1;
      }
      complement_ = static_cast<uint32_t>(65536 - dropout.level) * 0x10001;
    }
  }

  __device__ __forceinline__ PhiloxRow row(int64_t row) const {
    if constexpr (!Drop) return {};
    const uint64_t first = product(kPhiloxM0, static_cast<uint32_t>(row));
    const uint64_t second = product(kPhiloxM1, high(first) ^ keys_[0][1]);
    const uint64_t third = product(kPhiloxM0, high(second) ^ keys_[1][0]);
    return {static_cast<uint32_t>(first) ^ keys_[1][1], static_cast<uint32_t>(second) ^ keys_[2][0],
            high(third) ^ keys_[2][1], static_cast<uint32_t>(third)};
  }
  __device__ __forceinline__ PhiloxColumn column(int64_t column) const {
    if constexpr (!Drop) return {};
    const uint64_t second = product(kPhiloxM0, static_cast<uint32_t>(column / kColumnsPerBlock) ^ keys_[0][0]);
    return {high(second), static_cast<uint32_t>(second)};
  }

  // For eight elements, all bits of those that are kept.
  __device__ __forceinline__ device::Vec8 kept(const PhiloxRow& row, const PhiloxColumn& column) const {
    if constexpr (!Drop) return {{~0u, ~0u, ~0u, ~0u}};
    const uint64_t third = product(kPhiloxM1, column.high ^ row.key_low);
    uint32_t c0 = high(third) ^ row.word0, c1 = static_cast<uint32_t>(third), c2 = column.low ^ row.word2,
             c3 = row.word3;
#pragma unroll
    for (int i = 3; i < kPhiloxRounds; ++i) {
      const uint64_t p0 = product(kPhiloxM0, c0), p1 = product(kPhiloxM1, c2);
      c0 = high(p1) ^ c1 ^ keys_[i][0];
      c2 = high(p0) ^ c3 ^ keys_[i][1];
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
    }
    return {{keep(c0), keep(c1), keep(c2), keep(c3)}};
  }

 private:
  static __device__ __forceinline__ uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
  static __device__ __forceinline__ uint32_t high(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

  // A half, read as a signed number, is at least level - 32768 exactly when its bits with the sign turned, plus
  // 65536 - level, carry out of sixteen. Both halves at once: add the lower fifteen bits, then take the carry of
  // bit 15.
  __device__ __forceinline__ uint32_t keep(uint32_t random) const {
    const uint32_t turned = random ^ 0x80008000, sum = (random & 0x7FFF7FFF) + (complement_ & 0x7FFF7FFF);
    return device::spread_signs((turned & complement_) | (sum & (turned | complement_)));
  }

  uint32_t keys_[kPhiloxRounds][2];
  uint32_t complement_;
};

// Dropped elements become exact zeros, even where they are infinite.
template <bool Drop>
__device__ __forceinline__ void drop(device::Vec8& x, const device::Vec8& kept) {
  if constexpr (Drop) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.word[i] &= kept.word[i];
  }
}

}  // namespace ftengine
