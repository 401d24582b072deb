// Between fp32 and bf16, number by number. Everything is static: each file compiles its own for its processor.

#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace ftengine::cpu {

static inline float to_float(float value) { return value; }

static inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

static inline void round_to(float value, float* to) { *to = value; }

// To nearest, ties to even; a NaN stays one.
static inline void round_to(float value, bfloat16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  to->bits = value != value ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace ftengine::cpu
