// The constants of Philox4x32-7 (Salmon et al. 2011, doi:10.1145/2063384.2063405), of which dropout masks are made.
//
// ftengine/ops/philox.py specifies the mask bit for bit: key = seed, counter = (row, column / 8, 0, 0); the j-th of the
// block's eight half-words decides about column 8 * (column / 8) + j: kept when, as a signed number, it is at least
// n - 32768, where p = n / 65536.

#pragma once

#include <cstdint>

namespace ftengine {

constexpr uint32_t kPhiloxM0 = 0xD2511F53, kPhiloxM1 = 0xCD9E8D57;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9, kPhiloxW1 = 0xBB67AE85;  // key increments
constexpr int kPhiloxRounds = 7;
constexpr int kColumnsPerBlock = 8;

}  // namespace ftengine
