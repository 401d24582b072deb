// Small kernels, each wrong in one way: the emulator must be able to fail.

#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "../device.cuh"

namespace ftengine {

// Hands a float to the thread before, through shared memory, and writes what thread 0 received to global memory.
inline void faulty_kernel(const char* fault, float* sum, float* memory) {
  const std::string name = fault;
  const int thread = device::thread_index(), threads = device::thread_count();
  device::Shared shared;
  shared.store(thread, 1.0f + 1.0f / static_cast<float>(3 + thread));
  if (name == "out of bounds") shared.store(threads, 0.0f);
  if (name == "divergent barrier" && thread >= 32) return;
  if (name != "missing barrier") device::barrier();
  const float value = name == "unwritten" ? shared.load(threads + thread) : shared.load((thread + 1) % threads);
  if (name == "write after read") shared.store(thread, value);
  if (name == "divergent mma" && thread % 32 != 5) {
    float c[4] = {};
    const device::Pair<device::BFloat16> a[4] = {}, b[2] = {};
    device::mma(c, a, b);
  }
  if (name == "unordered sum") {
    *sum += value;  // as an atomic addition would: right, but in the order of threads
  } else if (thread == 0) {
    *sum = value;
  }
  if (name == "misaligned octet" && thread == 0) {
    alignas(16) device::BFloat16 octets[16] = {};
    device::store_octet(octets + 4, device::load_octet(octets + 1));
  }
  if (name == "global overrun" && thread == 0) memory[threads] = value;
}

inline float run_fault(const std::string& fault, uint64_t order) {
  constexpr int kThreads = 64;
  const int64_t words = fault == "unwritten" ? 2 * kThreads : kThreads;
  const std::unique_ptr<float[]> memory(new float[kThreads]);
  float sum = 0.0f;
  device::launch(faulty_kernel, 1, kThreads, words * sizeof(float), device::Stream{order}, fault.c_str(), &sum,
                 memory.get());
  return sum;
}

}  // namespace ftengine
