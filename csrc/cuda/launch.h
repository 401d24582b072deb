// The kernels' launches, planned before they run, so that an operator can allocate one workspace for all of them.
// No torch: ops.cu gives them tensors.

#pragma once

#include <cstdint>
#include <functional>

#include "tiles.cuh"

namespace ftengine {

enum class Type { kBFloat16, kHalf };

// A matrix of the type of the call. Large ones are contiguous, begin at a multiple of 16 bytes and have rows of whole
// vec8; narrow ones, S and dS, may be some columns of another.
struct Matrix {
  void* data;
  int64_t rows, columns, stride;  // stride: from row to row
};

// What a launch gets of the workspace: its counters, which begin as zeros, its floats, and the counters of all
// launches.
struct Workspace {
  uint32_t* counters;
  float* floats;
  uint32_t* all_counters;
  int64_t all_count;
};

// A launch or two, and what they need of the workspace. Those that clear leave all counters as zeros.
struct Plan {
  int64_t counters = 0, floats = 0;
  bool clears = false;
  std::function<void(device::Stream, const Workspace&)> run;  // empty where there is nothing to compute
};

// What an update is added to: base is out itself, another matrix of its size, a row (base_stride 0), or null for zeros.
struct Base {
  const void* data;
  int64_t stride;
};

// level = 65536 p.
Plan plan_shrink(Type type, Matrix s, Matrix x, Factor a, int level, const int64_t* seed);
Plan plan_expand(Type type, Matrix out, Base base, Matrix s, Factor b, float scale);
Plan plan_backward_output(Type type, Matrix ds, Factor db, Matrix dy, Matrix s, Factor b, float scale);
// out.data is null when nobody wants it.
Plan plan_backward_input(Type type, Factor da, Matrix out, Base base, Matrix x, Matrix ds, Factor a, int level,
                         const int64_t* seed);

}  // namespace ftengine
