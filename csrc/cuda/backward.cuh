// The kernels of the backward: dS and dB from dy, dA and dx from x.

#pragma once

#include "dropout.cuh"
#include "walk.cuh"

namespace ftengine {

template <typename T>
struct BackwardOutput {
  Dense<const T> dy;
  Narrow<T> s;
  Factor b;
  Narrow<T> ds;
  float scale;
  float* partial;  // of ds: (column blocks, rows, ranks), where there are several
  RowSums db;
};

constexpr int kDyWords = kTileRows * kTileColumns / 2;  // of a warp's tile

// ds = scale · dy B and db = scale · dyᵀ S. A warp's tile of dy lies in shared memory, whence it is read by rows and by
// columns; chunks of 16 bytes are permuted so that neither order, nor the copy, meets a bank twice.
// Shared memory: (stage, warp) of tiles; two of S transposed; two of ds (row warp, column warp, 16 rows, Ranks).
template <typename T, int Ranks>
__global__ void __launch_bounds__(kThreads, 1) lowrank_backward_output_kernel(BackwardOutput<T> args, Grid grid) {
  const Dense<const T>& dy = args.dy;
  const BlockCoord coord(grid, dy.rows);
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4, warp = device::warp_index();
  const int warps = grid.column_warps * grid.row_warps, block_rows = grid.block_rows();
  const int first_rank = coord.group * Ranks, ranks = ranks_of_group(args.b.ranks, coord.group, Ranks);
  const int s_stride = padded_words(block_rows), s_words = Ranks * s_stride,
            ds_words = block_rows * grid.column_warps * Ranks;
  const int s_tile = kStages * warps * kDyWords, ds_tile = s_tile + 2 * s_words;
  Shared shared;

  const auto word_of = [&](int stage, int row, int chunk) {
    const int permuted = chunk ^ ((row >> 2 & 3) << 1) ^ ((row & 1) << 2);
    return (stage * warps + warp) * kDyWords + (row * 8 + permuted) * 4;
  };
  const auto request = [&](int64_t block_row, int stage) {
    const int64_t row = block_row + coord.row_warp * kTileRows + lane / 8, column = coord.column + 8 * (lane % 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool inside = row + 4 * i < coord.end_row && column < dy.columns;
      const int word = word_of(stage, lane / 8 + 4 * i, lane % 8);
      shared.copy_async(word, inside ? dy.at(row + 4 * i, column) : dy.data, inside);
    }
    device::commit_copies();
  };
  const auto stage_s = [&](int64_t row, int buffer) {
    if (row < coord.end_row) args.s.stage(shared, row, block_rows, first_rank, Ranks, -1, s_tile + buffer * s_words);
  };

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) request(coord.first_row + i * block_rows, i);
  Vec8 factor[2][Ranks / 8];  // of rank g + 8n, columns 8t … 8t + 7 of each half
#pragma unroll
  for (int i = 0; i < Ranks / 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t column = coord.column + 32 * (i % 2) + 8 * t + 2 * j;
      const int rank = first_rank + 8 * (i / 2) + g;
      factor[i % 2][i / 2].word[j] =
          device::make_word<T>(args.b.template element<T>(rank, column), args.b.template element<T>(rank, column + 1));
    }
  }
  stage_s(coord.first_row, 0);
  device::barrier();
  ColumnSums<T, Ranks> sums;
  int buffer = 0, stage = 0;
#pragma unroll 1
  for (int64_t block_row = coord.first_row; block_row < coord.end_row; block_row += block_rows) {
    device::wait_for_copies<kStages - 2>();
    device::warp_barrier();
    Vec8 by_columns[4], by_rows[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      by_columns[i] = shared.load<Vec8>(word_of(stage, 4 * t + i, g));
      by_rows[i / 2][i % 2] = shared.load<Vec8>(word_of(stage, g + 8 * (i % 2), t + 4 * (i / 2)));
    }
    request(block_row + (kStages - 1) * block_rows, (stage + kStages - 1) % kStages);
    stage_s(block_row + block_rows, 1 - buffer);
    sums.add(by_columns, shared, s_tile + buffer * s_words + coord.row_warp * kTileRows / 2, s_stride, ranks);
    const int ds = ds_tile + buffer * ds_words;
#pragma unroll
    for (int n = 0; n < Ranks / 8; ++n) {
      float c[4] = {};
      add_over_columns<T>(c, by_rows[0][0], by_rows[0][1], factor[0][n]);
      add_over_columns<T>(c, by_rows[1][0], by_rows[1][1], factor[1][n]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        shared.store(ds + (warp * kTileRows + g + 8 * (i / 2)) * Ranks + 8 * n + 2 * t + i % 2, c[i]);
    }
    device::barrier();
    for (int i = device::thread_index(); i < block_rows * Ranks; i += device::thread_count()) {
      const int row = i / Ranks, rank = i % Ranks;
      if (block_row + row >= coord.end_row || rank >= ranks) continue;
      float sum = 0.0f;
      for (int w = 0; w < grid.column_warps; ++w) {
        const int of_warp = row / kTileRows * grid.column_warps + w;
        sum += shared.load<float>(ds + (of_warp * kTileRows + row % kTileRows) * Ranks + rank);
      }
      if (grid.column_blocks == 1) {
        args.ds.store(block_row + row, first_rank + rank, sum * args.scale);
      } else {
        args.partial[(coord.column_block * dy.rows + block_row + row) * args.b.ranks + first_rank + rank] = sum;
      }
    }
    buffer = 1 - buffer;
    stage = (stage + 1) % kStages;
  }
  device::wait_for_copies<0>();
  args.db.write(sums, grid, coord);
}

// What blocks of the kernel above left in parts, a number a thread. Its last blocks alone would take longer: for large
// N they are few, and what they read is as large as a tenth of dy. Clears the counters of later launches meanwhile.
template <typename T>
struct SumOfParts {
  Narrow<T> ds;
  Factor db;
  const float *ds_parts, *db_parts;  // (column blocks, rows, ranks) and (splits, as db)
  int column_blocks, splits;
  int64_t ds_size, db_size;  // numbers of each; none where there is one part
  float scale;
  uint32_t* counters;
  int64_t counter_count;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) lowrank_sum_of_parts_kernel(SumOfParts<T> args) {
  int64_t i = int64_t{device::block_index()} * device::thread_count() + device::thread_index();
  if (i < args.counter_count) args.counters[i] = 0;
  if (i < args.ds_size) {
    const float sum = sum_splits(args.ds_parts + i, args.column_blocks, args.ds_size);
    args.ds.store(i / args.ds.ranks, static_cast<int>(i % args.ds.ranks), args.scale * sum);
  } else if ((i -= args.ds_size) < args.db_size) {
    args.db.template store<T>(i, args.scale * sum_splits(args.db_parts + i, args.splits, args.db_size));
  }
}

template <typename T>
struct BackwardInput {
  Dense<const T> x;
  Dropout dropout;
  Update<T> update;  // of dx; out.data is null when nobody wants it
  RowSums da;
};

// da = scale · dsᵀ x̂, and dx = base + scale · mask ∘ (dS A) by the first group.
// Shared memory: (stage, 4 rows of a lane, threads) of vec8; the wide factor; two tiles of ds, each straight, then
// transposed.
template <typename T, int Ranks, bool Drop>
__global__ void __launch_bounds__(kThreads, Ranks == 16 ? 2 : 1)
    lowrank_backward_input_kernel(BackwardInput<T> args, Grid grid, int tiles) {
  const Dense<const T>& x = args.x;
  const BlockCoord coord(grid, x.rows);
  const int g = device::lane_index() / 4, t = device::lane_index() % 4, thread = device::thread_index();
  const int threads = device::thread_count(), block_rows = grid.block_rows();
  const int first_rank = coord.group * Ranks, ranks = ranks_of_group(args.da.to.ranks, coord.group, Ranks);
  const bool updates = args.update.out.data != nullptr && coord.group == 0;
  const int straight_stride = padded_words(tiles * kRankTile), stride = padded_words(block_rows);
  const int wide = kStages * threads * 16, straight = wide + grid.column_warps * tiles * kWideWords;
  const int straight_words = block_rows * straight_stride, tile_words = straight_words + Ranks * stride;
  const int64_t column = coord.column + 8 * g;
  Shared shared;

  const auto request = [&](int64_t block_row, int stage) {
    const int64_t row = block_row + coord.row_warp * kTileRows + 4 * t;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool inside = row + i < coord.end_row && column < x.columns;
      shared.copy_async(((stage * 4 + i) * threads + thread) * 4, inside ? x.at(row + i, column) : x.data, inside);
    }
    device::commit_copies();
  };
  const auto stage_ds = [&](int64_t row, int buffer) {
    if (row >= coord.end_row) return;
    const int tile = straight + buffer * tile_words;
    if (updates) args.update.narrow.stage(shared, row, block_rows, 0, tiles * kRankTile, tile, -1);
    args.update.narrow.stage(shared, row, block_rows, first_rank, Ranks, -1, tile + straight_words);
  };

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) request(coord.first_row + i * block_rows, i);
  if (updates) {
    stage_wide<T>(shared, wide, args.update.wide, coord.first_column, grid.column_warps, tiles);
  }
  stage_ds(coord.first_row, 0);
  device::barrier();
  const Mask<Drop> mask(args.dropout);
  const PhiloxColumn philox_column = mask.column(column);
  ColumnSums<T, Ranks> sums;
  int buffer = 0, stage = 0;
#pragma unroll 1
  for (int64_t block_row = coord.first_row; block_row < coord.end_row; block_row += block_rows) {
    const int64_t row = block_row + coord.row_warp * kTileRows + 4 * t;
    const int tile = straight + buffer * tile_words;
    device::wait_for_copies<kStages - 2>();
    Vec8 x4[4], kept[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x4[i] = shared.load<Vec8>(((stage * 4 + i) * threads + thread) * 4);
    request(block_row + (kStages - 1) * block_rows, (stage + kStages - 1) % kStages);
    stage_ds(block_row + block_rows, 1 - buffer);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      kept[i] = mask.kept(mask.row(row + i), philox_column);
      drop<Drop>(x4[i], kept[i]);
    }
    sums.add(x4, shared, tile + straight_words + coord.row_warp * kTileRows / 2, stride, ranks);
    if (updates) {
      Vec8 updated[4];
      args.update.load(updated, row, column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Products products;
        const int narrow = tile + coord.row_warp * kTileRows * straight_stride;
        products.add<T>(shared, wide + coord.column_warp * tiles * kWideWords, narrow, straight_stride, tiles, half);
        args.update.add(updated, products, half, kept);
      }
      args.update.store(updated, row, column);
    }
    device::barrier();
    buffer = 1 - buffer;
    stage = (stage + 1) % kStages;
  }
  device::wait_for_copies<0>();
  args.da.write(sums, grid, coord);
}

}  // namespace ftengine
