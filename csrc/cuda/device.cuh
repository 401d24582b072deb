// The thin device layer under the kernels: who a thread is, where threads meet, and what memory and tensor cores do.
//
// A compiler that is not nvcc gets emulated/device.h instead, which runs a grid on the host. Kernels use nothing of
// CUDA but what this file offers, so that both run the same text.

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

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

#define FTENGINE_DEVICE __device__ __forceinline__
#define FTENGINE_HOST_DEVICE __host__ __device__ __forceinline__
#define FTENGINE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FTENGINE_UNROLL _Pragma("unroll")
#define FTENGINE_KEEP_LOOP _Pragma("unroll 1")  // where copies of the body would not fit into registers

namespace ftengine::device {

using Stream = cudaStream_t;

// How many blocks of a kernel the current device holds at once: multiprocessors times occupancy. 0 where CUDA fails,
// which the launch will say.
template <typename Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, int64_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, int64_t>, int64_t> known;
  int device = 0, processors = 0, blocks = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] =
      known.try_emplace({device, reinterpret_cast<const void*>(kernel), threads, shared_bytes});
  if (is_new) {
    if (shared_bytes > kDefaultSharedBytes) {
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
    }
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes);
    found->second = int64_t{processors} * blocks;
  }
  return found->second;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kMaxParameterBytes, "too many parameters for a kernel");
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
}

inline void zero(void* memory, int64_t bytes, Stream stream) { cudaMemsetAsync(memory, 0, bytes, stream); }

FTENGINE_DEVICE int block_index() { return blockIdx.x; }
FTENGINE_DEVICE int thread_index() { return threadIdx.x; }
FTENGINE_DEVICE int thread_count() { return blockDim.x; }

// Every thread of the block, or of the warp, waits for every other and sees what it wrote before.
FTENGINE_DEVICE void barrier() { __syncthreads(); }
FTENGINE_DEVICE void warp_barrier() { __syncwarp(); }

// What this thread wrote before is seen by whoever sees what it writes afterwards.
FTENGINE_DEVICE void fence() { __threadfence(); }
// Returns the old value.
FTENGINE_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
// What other blocks wrote: from L2, since L1 may hold what was there before.
FTENGINE_DEVICE float load_coherent(const float* from) { return __ldcg(from); }

// A wide access; the address is a multiple of V's alignment.
template <typename V>
FTENGINE_DEVICE V load_vector(const void* from) {
  return *static_cast<const V*>(from);
}
template <typename V>
FTENGINE_DEVICE void store_vector(void* to, const V& value) {
  *static_cast<V*>(to) = value;
}

// The block's shared memory, in words of four bytes; an access is aligned as V is.
class Shared {
 public:
  FTENGINE_DEVICE Shared() {
    extern __shared__ uint4 memory[];
    memory_ = reinterpret_cast<uint32_t*>(memory);
  }
  template <typename V>
  FTENGINE_DEVICE V load(int word) const {
    return *reinterpret_cast<const V*>(memory_ + word);
  }
  template <typename V>
  FTENGINE_DEVICE void store(int word, const V& value) {
    *reinterpret_cast<V*>(memory_ + word) = value;
  }
  // Begins to copy sixteen bytes, or zeros where they lie outside of their operand.
  FTENGINE_DEVICE void copy_async(int word, const void* from, bool inside) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(memory_ + word));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(inside ? 16 : 0)
                 : "memory");
  }

 private:
  uint32_t* memory_;
};

// Ends a group of this thread's copies; waits until at most N groups are on their way.
FTENGINE_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
FTENGINE_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

FTENGINE_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FTENGINE_DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounds two floats to a word.
template <typename T>
FTENGINE_DEVICE uint32_t make_word(float low, float high);
template <>
FTENGINE_DEVICE uint32_t make_word<BFloat16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
FTENGINE_DEVICE uint32_t make_word<Half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// 0xFFFF for each half whose highest bit is set, else 0.
FTENGINE_DEVICE uint32_t spread_signs(uint32_t word) {
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(spread) : "r"(word));
  return spread;
}

// c (16, 8) += a (16, 16) b (16, 8), over the warp, all of whose lanes come here together. PTX ISA, "Matrix fragments
// for mma.m16n8k16 with floating point type": lane 4g + t holds of a the rows g and g + 8, of b the column g, of c the
// columns 2t and 2t + 1.
template <typename T>
FTENGINE_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
FTENGINE_DEVICE void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  __syncwarp();
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
FTENGINE_DEVICE void mma<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  __syncwarp();
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace ftengine::device

#else
#include "emulated/device.h"
#endif

namespace ftengine::device {

FTENGINE_DEVICE int lane_index() { return thread_index() % 32; }
FTENGINE_DEVICE int warp_index() { return thread_index() / 32; }

template <typename T>
FTENGINE_DEVICE float low(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word)});
}
template <typename T>
FTENGINE_DEVICE float high(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

// The first, or second, elements of two words.
FTENGINE_DEVICE uint32_t lows(uint32_t first, uint32_t second) { return (first & 0xFFFF) | second << 16; }
FTENGINE_DEVICE uint32_t highs(uint32_t first, uint32_t second) { return first >> 16 | (second & 0xFFFF0000); }

}  // namespace ftengine::device
