// What the operators need of CUDA beside the kernels: the device made current, its stream, and errors of a launch.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "device.cuh"

// Weak: a torch without CUDA has no such symbols, and must be able to load this library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                                          AtenTensorHandle left, AtenTensorHandle right,
                                                                          double beta, double alpha);

namespace ftengine::runtime {

constexpr char kDevice[] = "CUDA";

inline bool is_here(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

using Guard = torch::stable::accelerator::DeviceGuard;

inline device::Stream current_stream(int32_t index) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA; install one that has");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launches() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "a low-rank kernel did not launch: ", cudaGetErrorString(error));
}

// Null in a torch without CUDA, which current_stream refuses before.
const auto addmm_out = aoti_torch_cuda_addmm_out;

}  // namespace ftengine::runtime
