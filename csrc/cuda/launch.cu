// Which blocks run, and in what order: pack small operands, run the kernel, sum its partial results.

#include <algorithm>

#include "launch.h"
#include "lowrank.cuh"
#include "operands.cuh"

namespace ftengine {

namespace {

using device::BFloat16;
using device::Half;

// Grids follow from shapes alone, since partial sums, and so the last bits of gradients, depend on them. 256 blocks
// fill an H100 (132 multiprocessors, two blocks each) in one wave; more would cost more partial sums.
constexpr int64_t kBlocks = 256;
// Rows that a block walks down at least, to earn what it loads for its columns.
constexpr int64_t kLeastRows = 64;

int64_t ceil_divide(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return ceil_divide(value, multiple) * multiple; }

// Columns among warps and blocks, as evenly as 64 at a time allows; rows among parts.
struct Grid {
  int warps;
  int stripes, parts;
  int64_t rows;

  Grid(const Matrix& large, int groups, int64_t blocks) {
    const int64_t tiles = ceil_divide(large.columns, kTileColumns);
    stripes = ceil_divide(tiles, kWarps);
    warps = static_cast<int>(ceil_divide(tiles, stripes));
    const int64_t wanted = std::max<int64_t>(1, blocks / (stripes * groups));
    rows = std::max(kLeastRows, round_up(ceil_divide(large.rows, wanted), kTileRows));
    parts = ceil_divide(large.rows, rows);
  }
  int64_t columns() const { return stripes * warps * kTileColumns; }
};

template <typename T>
Dense<T> dense(const Matrix& matrix) {
  const bool aligned = matrix.columns % 8 == 0 && reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0;
  return {static_cast<T*>(matrix.data), matrix.rows, matrix.columns, aligned};
}

Matrix transposed(const Matrix& matrix) {
  return {matrix.data, matrix.type, matrix.columns, matrix.rows, matrix.column_stride, matrix.row_stride};
}

int64_t small_blocks(int64_t elements) { return std::clamp<int64_t>(ceil_divide(elements, kSmallThreads), 1, 1024); }

// Collects small operands and packs them with one launch.
template <typename T>
class Packer {
 public:
  explicit Packer(const Context& context) : context_(context) {}

  // small: (length, rank).
  Packed<T> add(const Matrix& small, int64_t length, Order order) {
    const int ranks = static_cast<int>(round_up(small.columns, kRankTile));
    T* to = static_cast<T*>(context_.allocate(length * ranks * sizeof(T)));
    packings_.list[packings_.count++] = {small, to, length, ranks, order};
    largest_ = std::max(largest_, length * ranks);
    return {to, order == Order::kByLength ? ranks : length, ranks};
  }
  void launch() const {
    device::launch(lowrank_pack_kernel<T>, small_blocks(largest_), kSmallThreads, 0, context_.stream, packings_);
  }

 private:
  const Context& context_;
  Packings packings_{};
  int64_t largest_ = 0;
};

void reduce(const Context& context, const Reductions& reductions) {
  int64_t largest = 0;
  for (int i = 0; i < reductions.count; ++i) {
    largest = std::max(largest, reductions.list[i].to.rows * reductions.list[i].to.columns);
  }
  if (largest == 0) return;
  device::launch(lowrank_reduce_kernel, small_blocks(largest), kSmallThreads, 0, context.stream, reductions);
}

float inverse(int level) { return 65536.0f / static_cast<float>(65536 - level); }

// Calls run(T()) for the type of a large operand.
template <typename Run>
void for_type(Type type, Run run) {
  switch (type) {
    case Type::kFloat:
      return run(float());
    case Type::kBFloat16:
      return run(BFloat16());
    default:
      return run(Half());
  }
}

// Calls run(integral_constant) with the ranks that a block takes: 16, or Most where there are more ranks and they fit
// into registers, which they do not in fp32.
template <typename T, int Most, typename Run>
void for_ranks(int64_t rank, Run run) {
  if constexpr (sizeof(T) == 2) {
    if (rank > 16) return run(std::integral_constant<int, Most>());
  }
  run(std::integral_constant<int, 16>());
}

}  // namespace

void launch_lowrank_shrink(const Context& context, Matrix s, Matrix x, Matrix a, int level, const int64_t* seed) {
  if (s.rows == 0) return;
  for_type(x.type, [&](auto element) {
    using T = decltype(element);
    for_ranks<T, 64>(a.rows, [&](auto constant) {
      constexpr int kRanks = constant();
      const int groups = static_cast<int>(ceil_divide(a.rows, kRanks));
      const int64_t tiles = ceil_divide(x.rows, kShrinkRows), chunks = ceil_divide(x.columns, kTileColumns);
      // Parts of a row, each of at least one chunk a warp; none where there are no columns.
      const int64_t wanted = std::clamp<int64_t>(kBlocks / (tiles * groups), 1, std::max<int64_t>(1, chunks / kWarps));
      const int64_t part_chunks = ceil_divide(chunks, wanted);
      const int64_t parts = chunks == 0 ? 0 : ceil_divide(chunks, part_chunks);
      const int rank = static_cast<int>(a.rows);
      float* partial = nullptr;
      if (parts > 1) partial = static_cast<float*>(context.allocate(parts * x.rows * rank * sizeof(float)));
      if (parts > 0) {
        Packer<T> packer(context);
        const auto a_packed = packer.add(transposed(a), chunks * kTileColumns, Order::kByRank);
        packer.launch();
        device::launch(lowrank_shrink_kernel<T, kRanks>, groups * parts * tiles, kThreads,
                       kWarps * kShrinkRows * 8 * sizeof(float), context.stream, dense<const T>(x), a_packed,
                       Dropout{seed, level}, inverse(level), groups, parts, part_chunks, static_cast<T*>(s.data), rank,
                       partial);
      }
      if (parts != 1) {
        const Reduction sum{partial, x.rows * rank, rank, 1, static_cast<int>(parts), inverse(level), s, false};
        reduce(context, {{sum}, 1});
      }
    });
  });
}

void launch_lowrank_expand(const Context& context, Matrix y, Matrix s, Matrix b, float scale) {
  if (y.rows == 0 || y.columns == 0) return;
  for_type(y.type, [&](auto element) {
    using T = decltype(element);
    const Grid grid(y, 1, 2 * kBlocks);  // no partial sums: finer
    Packer<T> packer(context);
    const auto s_packed = packer.add(s, round_up(y.rows, kTileRows), Order::kByLength);
    const auto b_packed = packer.add(b, grid.columns(), Order::kInPairs);
    packer.launch();
    device::launch(lowrank_expand_kernel<T>, grid.stripes * grid.parts, 32 * grid.warps, 0, context.stream, dense<T>(y),
                   s_packed, b_packed, scale, grid.stripes, grid.rows);
  });
}

void launch_lowrank_backward_output(const Context& context, Matrix ds, Matrix db, Matrix dy, Matrix s, Matrix b,
                                    float scale) {
  for_type(dy.type, [&](auto element) {
    using T = decltype(element);
    for_ranks<T, 32>(b.columns, [&](auto constant) {
      constexpr int kRanks = constant();
      Reduction ds_sum{nullptr, 0, 0, 1, 0, scale, ds, false}, db_sum{nullptr, 0, 1, 0, 0, scale, db, true};
      if (dy.rows > 0 && dy.columns > 0) {
        const int groups = static_cast<int>(ceil_divide(b.columns, kRanks));
        const Grid grid(dy, groups, kBlocks);
        Packer<T> packer(context);
        const auto s_packed = packer.add(s, round_up(dy.rows, kTileRows), Order::kByRank);
        const auto b_packed = packer.add(b, grid.columns(), Order::kByRank);
        packer.launch();
        const int64_t ranks = b_packed.ranks, columns = grid.columns();
        auto* ds_part = static_cast<float*>(context.allocate(grid.stripes * dy.rows * ranks * sizeof(float)));
        auto* db_part = static_cast<float*>(context.allocate(grid.parts * ranks * columns * sizeof(float)));
        device::launch(lowrank_backward_output_kernel<T, kRanks>, groups * grid.stripes * grid.parts, 32 * grid.warps,
                       2 * kWarps * kTileRows * kRanks * sizeof(float), context.stream, dense<const T>(dy), s_packed,
                       b_packed, groups, grid.stripes, grid.rows, ds_part, db_part);
        ds_sum = {ds_part, dy.rows * ranks, ranks, 1, static_cast<int>(grid.stripes), scale, ds, false};
        db_sum = {db_part, ranks * columns, 1, columns, static_cast<int>(grid.parts), scale, db, true};
      }
      reduce(context, {{ds_sum, db_sum}, 2});
    });
  });
}

void launch_lowrank_backward_input(const Context& context, Matrix da, Matrix dx, Matrix x, Matrix ds, Matrix a,
                                   int level, const int64_t* seed) {
  for_type(x.type, [&](auto element) {
    using T = decltype(element);
    for_ranks<T, 32>(a.rows, [&](auto constant) {
      constexpr int kRanks = constant();
      Reduction sum{nullptr, 0, 0, 1, 0, inverse(level), da, false};
      if (x.rows > 0 && x.columns > 0) {
        const int groups = static_cast<int>(ceil_divide(a.rows, kRanks));
        const Grid grid(x, groups, kBlocks);
        const int64_t length = round_up(x.rows, kTileRows), columns = grid.columns();
        Packer<T> packer(context);
        const auto by_rank = packer.add(ds, length, Order::kByRank);
        const auto by_length = packer.add(ds, length, Order::kByLength);
        const auto a_packed = packer.add(transposed(a), columns, Order::kInPairs);
        packer.launch();
        const int64_t ranks = a_packed.ranks;
        auto* partial = static_cast<float*>(context.allocate(grid.parts * ranks * columns * sizeof(float)));
        device::launch(lowrank_backward_input_kernel<T, kRanks>, groups * grid.stripes * grid.parts, 32 * grid.warps, 0,
                       context.stream, dense<T>(dx), dense<const T>(x), by_rank, by_length, a_packed,
                       Dropout{seed, level}, inverse(level), groups, grid.stripes, grid.rows, partial);
        sum = {partial, ranks * columns, columns, 1, static_cast<int>(grid.parts), inverse(level), da, false};
      }
      reduce(context, {{sum}, 1});
    });
  });
}

void launch_lowrank_merge(const Context& context, Matrix w, Matrix a, Matrix b, float scale) {
  if (w.rows == 0 || w.columns == 0) return;
  const int64_t stripes = ceil_divide(w.columns, kMergeColumns), parts = ceil_divide(w.rows, kWarps * kMergeRows);
  Packer<float> packer(context);
  const auto a_packed = packer.add(transposed(a), stripes * kMergeColumns, Order::kByRank);
  const auto b_packed = packer.add(b, parts * kWarps * kMergeRows, Order::kByLength);
  packer.launch();
  for_type(w.type, [&](auto element) {
    using T = decltype(element);
    device::launch(lowrank_merge_kernel<T>, stripes * parts, kThreads, 0, context.stream, dense<T>(w), a_packed,
                   b_packed, scale, stripes);
  });
}

}  // namespace ftengine
