// Small kernels, each wrong in one way: the emulator must be able to fail.

#pragma once

#include <memory>
#include <string>

#include "cuda/device.cuh"

namespace ftengine {

// Hands a float to the thread before, through shared memory, and writes what thread 0 received to global memory.
inline void faulty_kernel(const char* fault, float* sum, float* memory, uint32_t* counter) {
  const std::string name = fault;
  const int thread = device::thread_index(), threads = device::thread_count(), block = device::block_index();
  const bool first_half = thread % 32 < 16;
  device::Shared shared;
  shared.store(thread, 1.0f + 1.0f / static_cast<float>(3 + thread));
  if (name == "out of bounds") shared.store(4 * threads, 0.0f);
  if (name == "divergent barrier" && thread >= 32) return;
  if (name == "two barriers" && thread >= 32) {
    device::barrier();
  } else if (name != "missing barrier") {
    device::barrier();
  }
  const float value =
      name == "unwritten" ? shared.load<float>(threads + thread) : shared.load<float>((thread + 1) % threads);
  if (name == "write after read") shared.store(thread, value);
  if (name == "missing warp barrier" || name == "warp barrier") {
    shared.store(threads + thread, value);
    if (name == "warp barrier") device::warp_barrier();
    shared.load<float>(threads + (thread ^ 1));
  }
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (name == "divergent mma" && thread % 32 != 5) device::mma<device::BFloat16>(c, a, b);
  if (name == "two mma") {
    if (first_half) {
      device::mma<device::BFloat16>(c, a, b);
    } else {
      device::mma<device::BFloat16>(c, a, b);
    }
  }
  if (name == "unordered sum") {
    *sum += value;  // as an atomic addition would: right, but in the order of threads
  } else if (thread == 0 && block == 0) {
    *sum = value;
  }
  if (thread != 0) return;
  alignas(16) const uint16_t elements[16] = {};
  if (name == "misaligned vec8") device::load_vector<device::Vec8>(elements + 1);
  if (name == "misaligned vec4") device::load_vector<device::Vec4>(elements + 2);
  if (name == "misaligned store") device::store_vector(memory + 1, device::Vec8{});
  if (name == "misaligned shared") shared.load<device::Vec8>(2);
  if (name == "misaligned copy") shared.copy_async(4, elements + 4, true);
  if (name == "no wait" || name == "wait") {
    shared.copy_async(2 * threads, elements, true);
    device::commit_copies();
    if (name == "wait") device::wait_for_copies<0>();
    shared.load<float>(2 * threads);
  }
  if (name == "global overrun") memory[threads] = value;
  if (name == "order of blocks") {  // as if those before had ended
    *sum += static_cast<float>(block) * static_cast<float>(*counter);
    device::atomic_add(counter, 1);
  }
  if (name == "second wave") {  // a barrier of the grid, which has more blocks than are there at once
    device::atomic_add(counter, 1);
    while (device::atomic_add(counter, 0) < 64) {
    }
  }
}

inline float run_fault(const std::string& fault, uint64_t order) {
  constexpr int kThreads = 64;
  const std::unique_ptr<float[]> memory(new float[kThreads]);
  float sum = 0.0f;
  uint32_t counter = 0;
  const bool of_blocks = fault == "order of blocks" || fault == "second wave";
  const int64_t blocks = fault == "no blocks" ? 0 : of_blocks ? 64 : 1;
  const int threads = fault == "too many threads" ? 2048 : fault == "no whole warps" ? 48 : kThreads;
  const int64_t bytes = fault == "too much shared memory" ? 128 << 10 : kThreads * 16;
  device::launch(faulty_kernel, blocks, threads, bytes, device::Stream{order}, fault.c_str(), &sum, memory.get(),
                 &counter);
  return sum;
}

}  // namespace ftengine
