// The kernels of the forward: S, and what it adds to y.

#pragma once

#include "dropout.cuh"
#include "walk.cuh"

namespace ftengine {

struct Shrink {
  Factor a;
  Dropout dropout;
  float scale;
  int groups, splits, chunks;  // splits: of the columns; chunks: of 32 columns, in a split
  float* partial;              // (splits, rows, ranks)
  uint32_t* counters;          // (row tiles, groups)
};

constexpr int kShrinkRows = 2 * kTileRows;
constexpr int kShrinkColumns = 32;
constexpr int kShrinkStageWords = 4 * kThreads * 4;
constexpr int kShrinkWords = kStages * kShrinkStageWords;

// s = scale · x̂ Aᵀ. A block takes 32 rows and a range of columns; its warps take turns at 32 of them.
template <typename T, int Ranks, bool Drop>
__global__ void __launch_bounds__(kThreads, Ranks == 16 ? 2 : 1)
    lowrank_shrink_kernel(Dense<const T> x, Narrow<T> s, Shrink args) {
  const int group = device::block_index() % args.groups, split = device::block_index() / args.groups % args.splits;
  const int64_t row_tile = device::block_index() / args.groups / args.splits, first_row = row_tile * kShrinkRows;
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4, warp = device::warp_index();
  const int first_rank = group * Ranks, ranks = ranks_of_group(args.a.ranks, group, Ranks);
  const int64_t first_column = int64_t{split} * args.chunks * kShrinkColumns + 8 * t, row = first_row + g;
  const int thread = device::thread_index();
  Shared shared;  // (stage, 4 rows of a lane, threads) of vec8, each read by the thread that asked for it

  const auto column_of = [&](int step) { return first_column + int64_t{kShrinkColumns} * (warp + kWarps * step); };
  const auto request = [&](int step) {
    const int64_t column = column_of(step);
    const bool wanted = warp + kWarps * step < args.chunks;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool inside = wanted && x.inside(row + 8 * i, column);
      const int word = step % kStages * kShrinkStageWords + (i * kThreads + thread) * 4;
      shared.copy_async(word, inside ? x.at(row + 8 * i, column) : x.data, inside);
    }
    device::commit_copies();
  };

  const Mask<Drop> mask(args.dropout);
  PhiloxRow philox_rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) philox_rows[i] = mask.row(row + 8 * i);
  float c[2][Ranks / 8][4] = {};

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) request(i);
#pragma unroll 1
  for (int step = 0; warp + kWarps * step < args.chunks; ++step) {
    const int64_t column = column_of(step);
    Vec8 factor[Ranks == 16 ? 2 : 1];  // before the random numbers, where registers suffice
    if constexpr (Ranks == 16) {
#pragma unroll
      for (int n = 0; n < 2; ++n) factor[n] = args.a.vector<T>(first_rank + 8 * n + g, column);
    }
    device::wait_for_copies<kStages - 2>();
    Vec8 x32[4];  // rows g, g + 8, g + 16, g + 24 of 32 columns
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x32[i] = shared.load<Vec8>(step % kStages * kShrinkStageWords + (i * kThreads + thread) * 4);
    }
    request(step + kStages - 1);
    const PhiloxColumn philox_column = mask.column(column);
#pragma unroll
    for (int i = 0; i < 4; ++i) drop<Drop>(x32[i], mask.kept(philox_rows[i], philox_column));
#pragma unroll
    for (int n = 0; n < Ranks / 8; ++n) {
      if (8 * n >= ranks) break;
      if constexpr (Ranks != 16) factor[0] = args.a.vector<T>(first_rank + 8 * n + g, column);
      const Vec8& right = factor[Ranks == 16 ? n : 0];
      add_over_columns<T>(c[0][n], x32[0], x32[1], right);
      add_over_columns<T>(c[1][n], x32[2], x32[3], right);
    }
  }
  device::wait_for_copies<0>();
  device::barrier();

  const int64_t out_row = first_row + thread / 8;
#pragma unroll
  for (int n = 0; n < Ranks / 8; ++n) {  // through (warp, 32 rows, 8 ranks)
    if (8 * n >= ranks) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int of_tile = 16 * (i / 4) + g + 8 * (i / 2 % 2);
      shared.store((warp * kShrinkRows + of_tile) * 8 + 2 * t + i % 2, c[i / 4][n][i % 4]);
    }
    device::barrier();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared.load<float>(w * kShrinkRows * 8 + thread);
    const int rank = 8 * n + thread % 8;
    if (out_row < x.rows && rank < ranks) {
      if (args.splits > 1) {
        args.partial[(split * x.rows + out_row) * args.a.ranks + first_rank + rank] = sum;
      } else {
        s.store(out_row, first_rank + rank, sum * args.scale);
      }
    }
    device::barrier();
  }
  if (args.splits == 1 || !arrives_last(args.counters + row_tile * args.groups + group, args.splits, shared, 0)) return;
  for (int rank = thread % 8; rank < ranks && out_row < x.rows; rank += 8) {
    const float* partial = args.partial + out_row * args.a.ranks + first_rank + rank;
    s.store(out_row, first_rank + rank, args.scale * sum_splits(partial, args.splits, x.rows * args.a.ranks));
  }
}

// y = base + scale · S Bᵀ.  Shared memory: the wide factor, then two tiles of S, one read while the other is filled.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) lowrank_expand_kernel(Update<T> update, Grid grid, int tiles) {
  const BlockCoord coord(grid, update.out.rows);
  const int g = device::lane_index() / 4, t = device::lane_index() % 4;
  const int stride = padded_words(tiles * kRankTile), wide = coord.column_warp * tiles * kWideWords;
  const int narrow = grid.column_warps * tiles * kWideWords, narrow_words = grid.block_rows() * stride;
  const Vec8 all[4] = {{{~0u, ~0u, ~0u, ~0u}}, {{~0u, ~0u, ~0u, ~0u}}, {{~0u, ~0u, ~0u, ~0u}}, {{~0u, ~0u, ~0u, ~0u}}};
  Shared shared;
  const auto stage = [&](int64_t row, int buffer) {
    if (row < coord.end_row) {
      update.narrow.stage(shared, row, grid.block_rows(), 0, tiles * kRankTile, narrow + buffer * narrow_words, -1);
    }
  };

  stage_wide<T>(shared, 0, update.wide, coord.first_column, grid.column_warps, tiles);
  stage(coord.first_row, 0);
  device::barrier();
  int buffer = 0;
#pragma unroll 1
  for (int64_t block_row = coord.first_row; block_row < coord.end_row; block_row += grid.block_rows()) {
    const int64_t row = block_row + coord.row_warp * kTileRows + 4 * t;
    Vec8 updated[4];
    update.load(updated, row, coord.column + 8 * g);
    stage(block_row + grid.block_rows(), 1 - buffer);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Products products;
      const int tile = narrow + buffer * narrow_words + coord.row_warp * kTileRows * stride;
      products.add<T>(shared, wide, tile, stride, tiles, half);
      update.add(updated, products, half, all);
    }
    update.store(updated, row, coord.column + 8 * g);
    device::barrier();
    buffer = 1 - buffer;
  }
}

}  // namespace ftengine
