// What the kernels of the low-rank operations share. ftengine/ops/reference.py says what they mean.
//
// Each reads its large operands once. Sums over rows stay in a warp's registers while it walks down its columns; what
// is summed across warps goes through shared memory, and what is summed across blocks through a workspace, by the block
// that arrives last or by a launch of its own, always in the same order and never by atomics. The grid follows from
// shapes and from how many blocks the device holds at once, so that a result is the same, bit for bit, in every run on
// a device.
//
// A block sums 16, 32 or 64 ranks; more become groups of blocks that read the same rows at the same time, hence mostly
// from L2. cp.async keeps the next kStages - 1 tiles of a large operand on their way.

#pragma once

#include "tiles.cuh"

namespace ftengine {

constexpr int kStages = 3;

// How a kernel that walks down rows divides a matrix. A block's warps are column_warps × row_warps, a tile each.
struct Grid {
  int column_warps, row_warps;
  int groups, column_blocks, splits;  // splits: of the rows
  int64_t rows;                       // of a block

  __device__ __forceinline__ int block_rows() const { return row_warps * kTileRows; }
  __device__ __forceinline__ int block_columns() const { return column_warps * kTileColumns; }
};

// A block's coordinates in the grid: groups vary fastest, so that those which read the same rows run together.
struct BlockCoord {
  int group, column_block, split;
  int column_warp, row_warp;
  int64_t first_column, column, first_row, end_row;  // column: of the warp

  __device__ __forceinline__ BlockCoord(const Grid& grid, int64_t rows)
      : group(device::block_index() % grid.groups),
        column_block(device::block_index() / grid.groups % grid.column_blocks),
        split(device::block_index() / grid.groups / grid.column_blocks),
        column_warp(device::warp_index() % grid.column_warps),
        row_warp(device::warp_index() / grid.column_warps),
        first_column(int64_t{column_block} * grid.block_columns()),
        column(first_column + column_warp * kTileColumns),
        first_row(split * grid.rows),
        end_row(first_row + grid.rows < rows ? first_row + grid.rows : rows) {}
};

__device__ __forceinline__ int ranks_of_group(int ranks, int group, int most) {
  const int left = ranks - group * most;
  return left < most ? left : most;
}

// Where a kernel adds an update of rank r: out = base + scale · (narrow · wide).
template <typename T>
struct Update {
  Dense<T> out;
  const T* base;        // out itself, something else of its size, a row (bias), or null: zeros
  int64_t base_stride;  // 0 for a row
  Narrow<T> narrow;     // S or dS
  Factor wide;          // B or A
  float scale;

  // Reads a lane's four vec8 by columns of the base.
  __device__ __forceinline__ void load(Vec8 (&updated)[4], int64_t row, int64_t column) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      updated[i] = {};
      if (base != nullptr && out.inside(row + i, column)) {
        updated[i] = device::load_vector<Vec8>(base + (row + i) * base_stride + column);
      }
    }
  }
  // Adds a half of each; elements that are dropped stay as they are.
  __device__ __forceinline__ void add(Vec8 (&updated)[4], const Products& products, int half,
                                      const Vec8 (&kept)[4]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = i / 2, pair = i % 2;
      uint32_t& word = updated[row].word[2 * half + pair];
      const uint32_t mask = kept[row].word[2 * half + pair];
      word =
          device::make_word<T>(device::low<T>(word) + (mask & 0xFFFF ? scale * products.low(row, pair) : 0.0f),
                               device::high<T>(word) + (mask & 0xFFFF0000 ? scale * products.high(row, pair) : 0.0f));
    }
  }
  __device__ __forceinline__ void store(const Vec8 (&updated)[4], int64_t row, int64_t column) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (out.inside(row + i, column)) device::store_vector(out.at(row + i, column), updated[i]);
    }
  }
};

constexpr int kWideWords = 4 * 32 * 4;  // of 16 ranks and a warp's 64 columns, as fragments

// Where sums over rows go: a gradient of A or B, summed over splits of the rows.
struct RowSums {
  Factor to;
  float scale;
  float* partial;      // (splits, as `to`), where there are several
  uint32_t* counters;  // (column blocks, groups); null where another launch adds the parts up

  // Adds up the block's warps and writes: the gradient, or a part of it that the last block adds to the others.
  // Overwrites shared memory from word 0 on.
  template <typename T, int Ranks>
  __device__ __forceinline__ void write(const ColumnSums<T, Ranks>& sums, const Grid& grid,
                                        const BlockCoord& coord) const {
    constexpr int kStride = ColumnSums<T, Ranks>::kStride, kWarpWords = Ranks * kStride;
    Shared shared;
    for (int i = 0; i < grid.row_warps; ++i) {
      device::barrier();
      if (coord.row_warp == i) sums.put(shared, coord.column_warp * kWarpWords, i > 0);
    }
    device::barrier();
    const int first_rank = coord.group * Ranks, ranks = ranks_of_group(to.ranks, coord.group, Ranks);
    const int64_t size = to.length * to.ranks;
    const auto each = [&](auto function) {  // neighbouring threads write neighbours
      for (int i = device::thread_index(); i < ranks * grid.block_columns(); i += device::thread_count()) {
        const bool by_rank = to.rank_stride == 1;
        const int rank = by_rank ? i % ranks : i / grid.block_columns();
        const int column = by_rank ? i / ranks : i % grid.block_columns();
        const int64_t offset = (first_rank + rank) * to.rank_stride + (coord.first_column + column) * to.stride;
        if (coord.first_column + column < to.length) function(rank, column, offset);
      }
    };
    each([&](int rank, int column, int64_t offset) {
      const int word = column / kTileColumns * kWarpWords + rank * kStride + column % kTileColumns;
      const float sum = shared.load<float>(word);
      if (grid.splits == 1) {
        to.store<T>(offset, sum * scale);
      } else {
        partial[coord.split * size + offset] = sum;
      }
    });
    if (grid.splits == 1 || counters == nullptr) return;
    uint32_t* counter = counters + coord.column_block * grid.groups + coord.group;
    if (!arrives_last(counter, grid.splits, shared, grid.column_warps * kWarpWords)) return;
    each([&](int, int, int64_t offset) {
      to.store<T>(offset, scale * sum_splits(partial + offset, grid.splits, size));
    });
  }
};

// Words of shared memory that RowSums::write needs.
__host__ __device__ __forceinline__ constexpr int row_sums_words(int ranks, int column_warps) {
  return column_warps * ranks * (kTileColumns + 8) + 1;
}

}  // namespace ftengine
