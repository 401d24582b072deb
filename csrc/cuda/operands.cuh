// Small operands before a kernel and partial sums after it.

#pragma once

#include "device.cuh"
#include "launch.h"

namespace ftengine {

// How lanes read a packed operand; tiles.cuh draws the three.
enum class Order { kByRank, kInPairs, kByLength };

// A small matrix (length, ranks) of any dtype and strides, to be packed as T, padded with zeros.
struct Packing {
  Matrix from;
  void* to;
  int64_t length;  // padded
  int ranks;       // padded
  Order order;
};

constexpr int kPackings = 3;  // the most that an operator has

struct Packings {
  Packing list[kPackings];
  int count;
};

FTENGINE_DEVICE float load_as_float(const Matrix& matrix, int64_t row, int64_t column) {
  const int64_t offset = row * matrix.row_stride + column * matrix.column_stride;
  switch (matrix.type) {
    case Type::kFloat:
      return static_cast<const float*>(matrix.data)[offset];
    case Type::kDouble:
      return device::to_float(static_cast<const double*>(matrix.data)[offset]);
    case Type::kBFloat16:
      return device::to_float(static_cast<const device::BFloat16*>(matrix.data)[offset]);
    default:
      return device::to_float(static_cast<const device::Half*>(matrix.data)[offset]);
  }
}

FTENGINE_DEVICE void store_float(const Matrix& matrix, int64_t row, int64_t column, float value) {
  const int64_t offset = row * matrix.row_stride + column * matrix.column_stride;
  switch (matrix.type) {
    case Type::kFloat:
      static_cast<float*>(matrix.data)[offset] = value;
      return;
    case Type::kDouble:
      static_cast<double*>(matrix.data)[offset] = value;
      return;
    case Type::kBFloat16:
      static_cast<device::BFloat16*>(matrix.data)[offset] = device::from_float<device::BFloat16>(value);
      return;
    default:
      static_cast<device::Half*>(matrix.data)[offset] = device::from_float<device::Half>(value);
  }
}

constexpr int kSmallThreads = 256;  // a block of the two kernels here

template <typename T>
FTENGINE_KERNEL(kSmallThreads, 1)
lowrank_pack_kernel(Packings packings) {
  for (int item = 0; item < packings.count; ++item) {
    const Packing& packing = packings.list[item];
    const int64_t elements = packing.length * packing.ranks;
    const int64_t first = int64_t{kSmallThreads} * device::block_index() + device::thread_index();
    for (int64_t index = first; index < elements; index += int64_t{kSmallThreads} * device::block_count()) {
      int64_t i, rank;
      if (packing.order == Order::kByLength) {
        i = index / packing.ranks, rank = index % packing.ranks;
      } else if (packing.order == Order::kByRank) {
        i = index % packing.length, rank = index / packing.length;
      } else {
        i = index / 2 % packing.length, rank = index / (2 * packing.length) * 2 + index % 2;
      }
      const bool inside = i < packing.from.rows && rank < packing.from.columns;
      static_cast<T*>(packing.to)[index] = device::from_float<T>(inside ? load_as_float(packing.from, i, rank) : 0.0f);
    }
  }
}

// to = scale · the sum of `parts` partial matrices, always in the same order. No part at all gives zeros.
struct Reduction {
  const float* from;
  int64_t part_stride, row_stride, column_stride;
  int parts;
  float scale;
  Matrix to;
  bool rows_first;  // neighbouring threads take neighbouring rows: where row_stride is 1
};

constexpr int kReductions = 2;

struct Reductions {
  Reduction list[kReductions];
  int count;
};

FTENGINE_KERNEL(kSmallThreads, 1) lowrank_reduce_kernel(Reductions reductions) {
  for (int item = 0; item < reductions.count; ++item) {
    const Reduction& reduction = reductions.list[item];
    const int64_t rows = reduction.to.rows, columns = reduction.to.columns;
    const int64_t first = int64_t{kSmallThreads} * device::block_index() + device::thread_index();
    for (int64_t index = first; index < rows * columns; index += int64_t{kSmallThreads} * device::block_count()) {
      const int64_t row = reduction.rows_first ? index % rows : index / columns;
      const int64_t column = reduction.rows_first ? index / rows : index % columns;
      const float* from = reduction.from + row * reduction.row_stride + column * reduction.column_stride;
      float sum = 0.0f;
      for (int part = 0; part < reduction.parts; ++part) sum += from[part * reduction.part_stride];
      store_float(reduction.to, row, column, sum * reduction.scale);
    }
  }
}

}  // namespace ftengine
