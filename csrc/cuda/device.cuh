// The thin device layer under the kernels: who a thread is, where threads meet, and what memory and tensor cores do.
//
// Of CUDA, kernels use the language and what platform.cuh offers, so that another platform.cuh can run the same text.

#pragma once

#include <cstdint>

#include "../philox.h"

namespace ftengine::device {

// Sixteen-bit types are bits to everything but conversions and mma. A word holds two neighbours, the first one low.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

struct alignas(8) Vec4 {  // four elements of 16 bits
  uint32_t word[2];
};
struct alignas(16) Vec8 {  // eight elements of 16 bits: a 16-byte access, and one block of Philox
  uint32_t word[4];
};
struct alignas(16) Float4 {
  float f[4];
};

constexpr int kMaxThreads = 1024;              // of a block
constexpr int kDefaultSharedBytes = 48 << 10;  // more has to be asked for
constexpr int kMaxSharedBytes = 99 << 10;      // of a block: what every architecture from sm_80 on offers
constexpr int kMaxParameterBytes = 4 << 10;

}  // namespace ftengine::device

#include "cuda/platform.cuh"

namespace ftengine::device {

__device__ __forceinline__ int lane_index() { return thread_index() % 32; }
__device__ __forceinline__ int warp_index() { return thread_index() / 32; }

template <typename T>
__device__ __forceinline__ float low(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word)});
}
template <typename T>
__device__ __forceinline__ float high(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

// The first, or second, elements of two words.
__device__ __forceinline__ uint32_t lows(uint32_t first, uint32_t second) { return (first & 0xFFFF) | second << 16; }
__device__ __forceinline__ uint32_t highs(uint32_t first, uint32_t second) {
  return first >> 16 | (second & 0xFFFF0000);
}

}  // namespace ftengine::device
