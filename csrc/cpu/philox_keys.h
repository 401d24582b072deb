// The keys of Philox's rounds, made once for many blocks.

#pragma once

#include "cpu/compiler.h"
#include "philox.h"

namespace ftengine::cpu {
namespace {

struct PhiloxKeys {
  explicit PhiloxKeys(uint64_t seed) {
    for (int i = 0; i < kPhiloxRounds; ++i) {
      k0[i] = static_cast<uint32_t>(seed) + static_cast<uint32_t>(i) * kPhiloxW0;
      k1[i] = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(i) * kPhiloxW1;
    }
  }

  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};

}  // namespace
}  // namespace ftengine::cpu
