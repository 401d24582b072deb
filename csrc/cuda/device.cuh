// The thin device layer under the kernels: who a thread is, where threads meet, and the types that registers hold.
//
// A compiler that is not nvcc gets emulated/device.h instead, which runs a block on the host. Kernels use nothing of
// CUDA but what this file offers, so that both run the same text.

#pragma once

#include <cstdint>

#include "../philox.h"

namespace ftengine::device {

// 16-bit elements are bits to everything but the conversions below.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Two neighbouring elements, the first one low: what a fragment of mma is made of. One register, or two for fp32.
template <typename T>
struct Pair {
  uint32_t bits;
};
template <>
struct Pair<float> {
  float low, high;
};

// Eight neighbouring elements: a 16-byte load of bf16 or fp16, two of fp32, and one block of Philox.
template <typename T>
struct alignas(16) Octet {
  Pair<T> pair[4];
};

}  // namespace ftengine::device

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FTENGINE_DEVICE __device__ __forceinline__
#define FTENGINE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FTENGINE_UNROLL _Pragma("unroll")
#define FTENGINE_KEEP_LOOP _Pragma("unroll 1")  // where copies of the body would not fit into registers

namespace ftengine::device {

using Stream = cudaStream_t;

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
}

FTENGINE_DEVICE int block_index() { return blockIdx.x; }
FTENGINE_DEVICE int block_count() { return gridDim.x; }
FTENGINE_DEVICE int thread_index() { return threadIdx.x; }
FTENGINE_DEVICE int thread_count() { return blockDim.x; }

// Every thread of the block waits for every other.
FTENGINE_DEVICE void barrier() { __syncthreads(); }

// The value that another lane of the warp gives; all 32 take part.
FTENGINE_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xFFFFFFFF, value, lane); }

// The block's shared memory, as floats.
class Shared {
 public:
  FTENGINE_DEVICE Shared() {
    extern __shared__ float memory[];
    memory_ = memory;
  }
  FTENGINE_DEVICE float load(int index) const { return memory_[index]; }
  FTENGINE_DEVICE void store(int index, float value) { memory_[index] = value; }

 private:
  float* memory_;
};

FTENGINE_DEVICE float to_float(float x) { return x; }
FTENGINE_DEVICE float to_float(double x) { return static_cast<float>(x); }
FTENGINE_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FTENGINE_DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
FTENGINE_DEVICE T from_float(float x);
template <>
FTENGINE_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
FTENGINE_DEVICE double from_float<double>(float x) {
  return x;
}
template <>
FTENGINE_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
FTENGINE_DEVICE Half from_float<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// c (16, 8) += a (16, 16) b (16, 8), over the warp. PTX ISA, "Matrix fragments for mma.m16n8k16 with
// floating point type": lane 4g + t holds of a the rows g and g + 8, of b the column g, of c the columns 2t and 2t + 1.
FTENGINE_DEVICE void mma(float (&c)[4], const Pair<BFloat16> (&a)[4], const Pair<BFloat16> (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0].bits), "r"(a[1].bits), "r"(a[2].bits), "r"(a[3].bits), "r"(b[0].bits), "r"(b[1].bits));
}
FTENGINE_DEVICE void mma(float (&c)[4], const Pair<Half> (&a)[4], const Pair<Half> (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0].bits), "r"(a[1].bits), "r"(a[2].bits), "r"(a[3].bits), "r"(b[0].bits), "r"(b[1].bits));
}

// Octets as 16-byte accesses; the address is a multiple of 16.
template <typename T>
FTENGINE_DEVICE Octet<T> load_octet(const T* from) {
  Octet<T> octet;
  FTENGINE_UNROLL
  for (unsigned i = 0; i < sizeof(octet) / 16; ++i) {
    reinterpret_cast<uint4*>(&octet)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  return octet;
}
template <typename T>
FTENGINE_DEVICE void store_octet(T* to, const Octet<T>& octet) {
  FTENGINE_UNROLL
  for (unsigned i = 0; i < sizeof(octet) / 16; ++i) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&octet)[i];
  }
}

}  // namespace ftengine::device

#else
#include "emulated/device.h"
#endif

namespace ftengine::device {

FTENGINE_DEVICE int lane_index() { return thread_index() % 32; }
FTENGINE_DEVICE int warp_index() { return thread_index() / 32; }
FTENGINE_DEVICE int warp_count() { return thread_count() / 32; }

FTENGINE_DEVICE float low(Pair<float> pair) { return pair.low; }
FTENGINE_DEVICE float high(Pair<float> pair) { return pair.high; }
FTENGINE_DEVICE float low(Pair<BFloat16> pair) { return to_float(BFloat16{static_cast<uint16_t>(pair.bits)}); }
FTENGINE_DEVICE float high(Pair<BFloat16> pair) { return to_float(BFloat16{static_cast<uint16_t>(pair.bits >> 16)}); }
FTENGINE_DEVICE float low(Pair<Half> pair) { return to_float(Half{static_cast<uint16_t>(pair.bits)}); }
FTENGINE_DEVICE float high(Pair<Half> pair) { return to_float(Half{static_cast<uint16_t>(pair.bits >> 16)}); }

// Rounds two floats to a pair.
template <typename T>
FTENGINE_DEVICE Pair<T> make_pair(float low, float high) {
  return {from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16};
}
template <>
FTENGINE_DEVICE Pair<float> make_pair<float>(float low, float high) {
  return {low, high};
}

// The first, or second, elements of two pairs.
template <typename T>
FTENGINE_DEVICE Pair<T> lows(Pair<T> first, Pair<T> second) {
  return {(first.bits & 0xFFFF) | second.bits << 16};
}
template <typename T>
FTENGINE_DEVICE Pair<T> highs(Pair<T> first, Pair<T> second) {
  return {first.bits >> 16 | (second.bits & 0xFFFF0000)};
}
FTENGINE_DEVICE Pair<float> lows(Pair<float> first, Pair<float> second) { return {first.low, second.low}; }
FTENGINE_DEVICE Pair<float> highs(Pair<float> first, Pair<float> second) { return {first.high, second.high}; }

// The same product in fp32, by multiply-add: TF32 keeps 10 bits of the mantissa, which an fp32 layer may not lose. A
// lane fetches each factor from the lane that holds it. That costs a shuffle for each multiply-add, so fp32 is bound
// by shuffles, not by memory; beside its base product, which is as far from the tensor cores' rate, that is little.
// The sixteen products are summed before they go to c, which keeps long sums as accurate as a library's.
FTENGINE_DEVICE void mma(float (&c)[4], const Pair<float> (&a)[4], const Pair<float> (&b)[2]) {
  const int row = lane_index() / 4 * 4, column = lane_index() % 4 * 8;  // lanes that begin c's row and column
  float sums[4] = {};
  FTENGINE_UNROLL
  for (int half = 0; half < 2; ++half) {
    FTENGINE_UNROLL
    for (int k = 0; k < 8; ++k) {
      const int holder = k / 2;
      const auto factor = [k](Pair<float> pair) { return k % 2 == 0 ? pair.low : pair.high; };
      const float top = shuffle(factor(a[2 * half]), row + holder);
      const float bottom = shuffle(factor(a[2 * half + 1]), row + holder);
      const float left = shuffle(factor(b[half]), column + holder);
      const float right = shuffle(factor(b[half]), column + 4 + holder);
      sums[0] += top * left;
      sums[1] += top * right;
      sums[2] += bottom * left;
      sums[3] += bottom * right;
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < 4; ++i) c[i] += sums[i];
}

}  // namespace ftengine::device
