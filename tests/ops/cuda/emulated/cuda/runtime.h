// csrc/cuda/runtime.h on the host: tensors of the CPU, under torch.ops.ftengine_emulated.

#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/device.cuh"

// What is registered for ftengine and CUDA.
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) _STABLE_TORCH_LIBRARY_IMPL(ftengine_emulated, CPU, m, C10_UID)

namespace ftengine::runtime {

constexpr char kDevice[] = "CPU";

inline uint64_t order = 0;  // in which fibers run, from now on

inline bool is_here(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

struct Guard {
  explicit Guard(int32_t) {}
};

inline device::Stream current_stream(int32_t) { return {order}; }

inline void check_launches() {}

constexpr auto addmm_out = aoti_torch_cpu_addmm_out;

}  // namespace ftengine::runtime
