// What CUDA offers to device.cuh: launches, threads, memory, conversions, tensor cores.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

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

__device__ __forceinline__ int block_index() { return blockIdx.x; }
__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int thread_count() { return blockDim.x; }

// Every thread of the block, or of the warp, waits for every other and sees what it wrote before.
__device__ __forceinline__ void barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

// What this thread wrote before is seen by whoever sees what it writes afterwards.
__device__ __forceinline__ void fence() { __threadfence(); }
// Returns the old value.
__device__ __forceinline__ uint32_t atomic_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
// What other blocks wrote: from L2, since L1 may hold what was there before.
__device__ __forceinline__ float load_coherent(const float* from) { return __ldcg(from); }

// A wide access; the address is a multiple of V's alignment.
template <typename V>
__device__ __forceinline__ V load_vector(const void* from) {
  return *static_cast<const V*>(from);
}
template <typename V>
__device__ __forceinline__ void store_vector(void* to, const V& value) {
  *static_cast<V*>(to) = value;
}

// The block's shared memory, in words of four bytes; an access is aligned as V is.
class Shared {
 public:
  __device__ __forceinline__ Shared() {
    extern __shared__ uint4 memory[];
    memory_ = reinterpret_cast<uint32_t*>(memory);
  }
  template <typename V>
  __device__ __forceinline__ V load(int word) const {
    return *reinterpret_cast<const V*>(memory_ + word);
  }
  template <typename V>
  __device__ __forceinline__ void store(int word, const V& value) {
    *reinterpret_cast<V*>(memory_ + word) = value;
  }
  // Begins to copy sixteen bytes, or zeros where they lie outside of their operand.
  __device__ __forceinline__ void copy_async(int word, const void* from, bool inside) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(memory_ + word));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(inside ? 16 : 0)
                 : "memory");
  }

 private:
  uint32_t* memory_;
};

// Ends a group of this thread's copies; waits until at most N groups are on their way.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounds two floats to a word.
template <typename T>
__device__ __forceinline__ uint32_t make_word(float low, float high);
template <>
__device__ __forceinline__ uint32_t make_word<BFloat16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
__device__ __forceinline__ uint32_t make_word<Half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// 0xFFFF for each half whose highest bit is set, else 0.
__device__ __forceinline__ uint32_t spread_signs(uint32_t word) {
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(spread) : "r"(word));
  return spread;
}

// c (16, 8) += a (16, 16) b (16, 8), over the warp, all of whose lanes come here together. PTX ISA, "Matrix fragments
// for mma.m16n8k16 with floating point type": lane 4g + t holds of a the rows g and g + 8, of b the column g, of c the
// columns 2t and 2t + 1.
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  __syncwarp();
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  __syncwarp();
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace ftengine::device
