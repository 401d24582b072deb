// Which blocks run: grids from shapes and from what the device holds at once, shared memory, workspace.

#include <algorithm>
#include <type_traits>

#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"

namespace ftengine {

namespace {

using device::BFloat16;
using device::Half;

// Rows that a block walks down at least, to earn what it loads for its columns.
constexpr int64_t kLeastRows = 128;

int64_t ceil_divide(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return ceil_divide(value, multiple) * multiple; }
int rank_tiles(int64_t ranks) { return static_cast<int>(ceil_divide(ranks, kRankTile)); }
float inverse(int level) { return 65536.0f / static_cast<float>(65536 - level); }

// Warps by columns, then rows: no more columns than there are; fewer rows where so many ranks of them fill the memory.
Grid make_grid(const Matrix& large, int column_warps, int64_t ranks, int groups) {
  const int64_t tiles = std::max<int64_t>(1, ceil_divide(large.columns, kTileColumns));
  Grid grid{};
  grid.column_warps = static_cast<int>(std::min<int64_t>(ranks > 128 ? 1 : column_warps, tiles));
  grid.row_warps = ranks > 64 ? 2 : kWarps / column_warps;
  grid.groups = groups;
  grid.column_blocks = static_cast<int>(ceil_divide(tiles, grid.column_warps));
  return grid;
}

int threads_of(const Grid& grid) { return 32 * grid.column_warps * grid.row_warps; }

// Divides the rows among as many blocks as the device holds at once, and returns how many there are in all.
int64_t divide_rows(Grid& grid, int64_t rows, int64_t resident) {
  const int64_t wanted = std::max<int64_t>(1, resident / (int64_t{grid.column_blocks} * grid.groups));
  grid.rows = round_up(std::max(kLeastRows, ceil_divide(rows, wanted)), grid.row_warps * kTileRows);
  grid.splits = static_cast<int>(ceil_divide(rows, grid.rows));
  return int64_t{grid.splits} * grid.column_blocks * grid.groups;
}

template <typename T>
Dense<T> dense(const Matrix& matrix) {
  return {static_cast<T*>(matrix.data), matrix.rows, matrix.columns};
}

template <typename T>
Narrow<T> narrow(const Matrix& matrix) {
  return {static_cast<T*>(matrix.data), matrix.rows, matrix.stride, static_cast<int>(matrix.columns)};
}

template <typename Run>
auto for_type(Type type, Run run) {
  return type == Type::kBFloat16 ? run(BFloat16()) : run(Half());
}

// Calls run with the ranks that a block takes, 16 or Most, and with whether there is dropout.
template <int Most, typename Run>
auto for_ranks(int64_t ranks, Run run) {
  return ranks <= 16 ? run(std::integral_constant<int, 16>()) : run(std::integral_constant<int, Most>());
}
template <typename Run>
auto for_dropout(int level, Run run) {
  return level == 0 ? run(std::false_type()) : run(std::true_type());
}

}  // namespace

Plan plan_shrink(Type type, Matrix s, Matrix x, Factor a, int level, const int64_t* seed) {
  if (s.rows == 0) return {};
  return for_type(type, [&](auto element) {
    return for_ranks<64>(a.ranks, [&](auto ranks) {
      return for_dropout(level, [&](auto drop) {
        using T = decltype(element);
        const auto kernel = lowrank_shrink_kernel<T, ranks(), drop()>;
        constexpr int64_t kBytes = kShrinkWords * 4;
        const int groups = static_cast<int>(ceil_divide(a.ranks, ranks()));
        const int64_t tiles = ceil_divide(x.rows, kShrinkRows), chunks = ceil_divide(x.columns, kShrinkColumns);
        const int64_t resident = device::resident_blocks(kernel, kThreads, kBytes);
        // Splits of the columns, of at least two chunks a warp.
        const int64_t most = std::max<int64_t>(1, chunks / (2 * kWarps));
        const int64_t wanted = std::clamp<int64_t>(resident / (tiles * groups), 1, most);
        const int64_t split_chunks = std::max<int64_t>(1, ceil_divide(chunks, wanted));
        const int64_t splits = std::max<int64_t>(1, ceil_divide(chunks, split_chunks));
        Plan plan;
        if (splits > 1) plan.counters = tiles * groups, plan.floats = splits * x.rows * a.ranks;
        Shrink args{a, {seed, level}, inverse(level), groups, static_cast<int>(splits), static_cast<int>(split_chunks)};
        plan.run = [=](device::Stream stream, const Workspace& own) mutable {
          args.partial = own.floats, args.counters = own.counters;
          device::launch(kernel, groups * splits * tiles, kThreads, kBytes, stream, dense<const T>(x), narrow<T>(s),
                         args);
        };
        return plan;
      });
    });
  });
}

Plan plan_expand(Type type, Matrix out, Base base, Matrix s, Factor b, float scale) {
  if (out.rows == 0 || out.columns == 0) return {};
  return for_type(type, [&](auto element) {
    using T = decltype(element);
    const int tiles = rank_tiles(b.ranks);
    Grid grid = make_grid(out, 2, b.ranks, 1);
    const int words =
        grid.column_warps * tiles * kWideWords + 2 * grid.row_warps * kTileRows * padded_words(tiles * kRankTile);
    const auto kernel = lowrank_expand_kernel<T>;
    const int threads = threads_of(grid);
    const int64_t blocks = divide_rows(grid, out.rows, device::resident_blocks(kernel, threads, words * 4));
    const Update<T> update{dense<T>(out), static_cast<const T*>(base.data), base.stride, narrow<T>(s), b, scale};
    Plan plan;
    plan.run = [=](device::Stream stream, const Workspace&) {
      device::launch(kernel, blocks, threads, words * 4, stream, update, grid, tiles);
    };
    return plan;
  });
}

Plan plan_backward_output(Type type, Matrix ds, Factor db, Matrix dy, Matrix s, Factor b, float scale) {
  if (dy.rows == 0 || dy.columns == 0) return {};
  return for_type(type, [&](auto element) {
    return for_ranks<32>(b.ranks, [&](auto ranks) {
      using T = decltype(element);
      constexpr int kRanks = ranks();
      Grid grid = make_grid(dy, 4, 0, static_cast<int>(ceil_divide(b.ranks, kRanks)));
      const int threads = threads_of(grid), block_rows = grid.row_warps * kTileRows;
      const int words = std::max(kStages * threads / 32 * kDyWords + 2 * kRanks * padded_words(block_rows) +
                                     2 * block_rows * grid.column_warps * kRanks,
                                 row_sums_words(kRanks, grid.column_warps));
      const auto kernel = lowrank_backward_output_kernel<T, kRanks>;
      const int64_t blocks = divide_rows(grid, dy.rows, device::resident_blocks(kernel, threads, words * 4));
      BackwardOutput<T> args{dense<const T>(dy),           narrow<T>(s), b, narrow<T>(ds), scale, nullptr,
                             {db, scale, nullptr, nullptr}};
      SumOfParts<T> parts{args.ds, db, nullptr, nullptr, grid.column_blocks, grid.splits, 0, 0, scale, nullptr, 0};
      if (grid.column_blocks > 1) parts.ds_size = ds.rows * ds.columns;
      if (grid.splits > 1) parts.db_size = db.length * db.ranks;
      Plan plan;
      const bool in_parts = grid.column_blocks > 1 || grid.splits > 1;
      plan.clears = in_parts;
      plan.floats = grid.column_blocks * parts.ds_size + grid.splits * parts.db_size;
      plan.run = [=](device::Stream stream, const Workspace& own) mutable {
        args.partial = own.floats, args.db.partial = own.floats + grid.column_blocks * parts.ds_size;
        device::launch(kernel, blocks, threads, words * 4, stream, args, grid);
        if (!in_parts) return;
        parts.ds_parts = args.partial, parts.db_parts = args.db.partial;
        parts.counters = own.all_counters, parts.counter_count = own.all_count;
        const int64_t most = std::max(parts.ds_size + parts.db_size, own.all_count);
        device::launch(lowrank_sum_of_parts_kernel<T>, ceil_divide(most, kThreads), kThreads, 0, stream, parts);
      };
      return plan;
    });
  });
}

Plan plan_backward_input(Type type, Factor da, Matrix out, Base base, Matrix x, Matrix ds, Factor a, int level,
                         const int64_t* seed) {
  if (x.rows == 0 || x.columns == 0) return {};
  return for_type(type, [&](auto element) {
    return for_ranks<32>(a.ranks, [&](auto ranks) {
      return for_dropout(level, [&](auto drop) {
        using T = decltype(element);
        constexpr int kRanks = ranks();
        const int tiles = rank_tiles(a.ranks);
        Grid grid = make_grid(x, 2, a.ranks, static_cast<int>(ceil_divide(a.ranks, kRanks)));
        const int threads = threads_of(grid), block_rows = grid.row_warps * kTileRows;
        const int words =
            std::max(kStages * threads * 16 + grid.column_warps * tiles * kWideWords +
                         2 * (block_rows * padded_words(tiles * kRankTile) + kRanks * padded_words(block_rows)),
                     row_sums_words(kRanks, grid.column_warps));
        const auto kernel = lowrank_backward_input_kernel<T, kRanks, drop()>;
        const int64_t blocks = divide_rows(grid, x.rows, device::resident_blocks(kernel, threads, words * 4));
        const float scale = inverse(level);
        Plan plan;
        if (grid.splits > 1) {
          plan.counters = int64_t{grid.column_blocks} * grid.groups, plan.floats = grid.splits * da.length * da.ranks;
        }
        BackwardInput<T> args{dense<const T>(x),
                              {seed, level},
                              {dense<T>(out), static_cast<const T*>(base.data), base.stride, narrow<T>(ds), a, scale},
                              {da, scale, nullptr, nullptr}};
        plan.run = [=](device::Stream stream, const Workspace& own) mutable {
          args.da.counters = own.counters, args.da.partial = own.floats;
          device::launch(kernel, blocks, threads, words * 4, stream, args, grid, tiles);
        };
        return plan;
      });
    });
  });
}

}  // namespace ftengine
