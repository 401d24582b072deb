// Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405) and the dropout mask made of it.
//
// ftengine/ops/philox.py specifies the mask bit for bit: key = seed, counter = (row, column / 8, 0, 0); the j-th of the
// block's eight half-words decides about column 8 * (column / 8) + j: kept when, as a signed number, it is at least
// n - 32768, where p = n / 65536.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FTENGINE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FTENGINE_HOST_DEVICE static inline  // a copy in each file: they are compiled for different processors
#endif

namespace ftengine {

constexpr uint32_t kPhiloxM0 = 0xD2511F53, kPhiloxM1 = 0xCD9E8D57;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9, kPhiloxW1 = 0xBB67AE85;  // key increments
constexpr int kPhiloxRounds = 10;
constexpr int kColumnsPerBlock = 8;

struct PhiloxBlock {
  uint32_t w[4];
};

FTENGINE_HOST_DEVICE PhiloxBlock philox(uint64_t seed, uint32_t row, uint32_t column_block) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = row, c1 = column_block, c2 = 0, c3 = 0;
  for (int i = 0; i < kPhiloxRounds; ++i) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0, p1 = static_cast<uint64_t>(kPhiloxM1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// Bit j says whether column j of the block is kept.
FTENGINE_HOST_DEVICE uint32_t kept(const PhiloxBlock& block, int threshold) {
  uint32_t bits = 0;
  for (int j = 0; j < kColumnsPerBlock; ++j) {
    const int16_t half = static_cast<int16_t>(block.w[j / 2] >> (16 * (j % 2)));
    bits |= static_cast<uint32_t>(half >= threshold) << j;
  }
  return bits;
}

}  // namespace ftengine
