// The five operations on device memory. No torch: ops.cu gives them tensors, the emulator's module gives them copies.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "device.cuh"

namespace ftengine {

enum class Type { kFloat, kBFloat16, kHalf, kDouble };

// A matrix in device memory. Large operands are contiguous; small ones may have any strides and any type.
struct Matrix {
  void* data;
  Type type;
  int64_t rows, columns, row_stride, column_stride;
};

struct Context {
  std::function<void*(size_t bytes)> allocate;  // workspace that lives until the stream has passed the launches
  device::Stream stream;
};

// level = 65536 p; seed is null when level is 0.
void launch_lowrank_shrink(const Context& context, Matrix s, Matrix x, Matrix a, int level, const int64_t* seed);
void launch_lowrank_expand(const Context& context, Matrix y, Matrix s, Matrix b, float scale);
void launch_lowrank_backward_output(const Context& context, Matrix ds, Matrix db, Matrix dy, Matrix s, Matrix b,
                                    float scale);
// dx.data is null when nobody wants it.
void launch_lowrank_backward_input(const Context& context, Matrix da, Matrix dx, Matrix x, Matrix ds, Matrix a,
                                   int level, const int64_t* seed);
void launch_lowrank_merge(const Context& context, Matrix w, Matrix a, Matrix b, float scale);

}  // namespace ftengine
