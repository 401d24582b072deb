// The kernels of the five operations. ftengine/ops/reference.py says what they mean.
//
// Each reads its large operands once. A warp owns 64 columns and walks down the rows, so that what belongs to the
// columns stays in registers: sums over rows, and the factor that an update multiplies by. What is summed across warps
// and blocks goes through shared memory or a workspace in a fixed order, never through atomics. The grid follows from
// shapes alone. Thus a result is the same, bit for bit, in every run and on every GPU that multiplies alike.
//
// Ranks is how many ranks a block sums; more become groups of blocks that read the same rows at the same time, hence
// mostly from L2. Blocks of 256 threads, two of them a multiprocessor where 128 registers suffice: sixteen warps with
// two to four kilobytes on the way each, three times what bandwidth times latency asks for (about 18 kB on an H100).

#pragma once

#include "tiles.cuh"

namespace ftengine {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kShrinkRows = 2 * kTileRows;

// Blocks that a multiprocessor must be able to hold at once: what the compiler limits registers by.
template <typename T>
constexpr int blocks_resident(int ranks) {
  return sizeof(T) == 2 && ranks == 16 ? 2 : 1;
}

// Where a block stands: group varies fastest, so that groups which read the same rows run together.
struct Place {
  int group, stripe, part;

  FTENGINE_DEVICE Place(int groups, int stripes)
      : group(device::block_index() % groups),
        stripe(device::block_index() / groups % stripes),
        part(device::block_index() / groups / stripes) {}

  // First column of the calling warp.
  FTENGINE_DEVICE int64_t column() const {
    return int64_t{kTileColumns} * (stripe * device::warp_count() + device::warp_index());
  }
};

template <typename T>
FTENGINE_DEVICE int ranks_of_group(const Packed<T>& packed, int group, int ranks) {
  const int left = packed.ranks - group * ranks;
  return left < ranks ? left : ranks;
}

// s = scale · x̂ Aᵀ. A block takes 32 rows and a range of columns; its warps take turns at 64 of them.
// a: by rank. With several parts a row, sums go unscaled to partial (part, rows, ranks), else to s (rows, rank).
template <typename T, int Ranks>
FTENGINE_KERNEL(kThreads, blocks_resident<T>(Ranks))
lowrank_shrink_kernel(Dense<const T> x, Packed<T> a, Dropout dropout, float scale, int groups, int parts, int chunks,
                      T* s, int rank, float* partial) {
  const Place place(groups, parts);  // stripe: the range of columns; part: the rows
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4, warp = device::warp_index();
  const int64_t first_row = int64_t{kShrinkRows} * place.part, row = first_row + g;
  const int ranks = ranks_of_group(a, place.group, Ranks);
  const T* factor = a.data + (place.group * Ranks + g) * a.stride;
  const Mask mask(dropout);

  float c[2][Ranks / 8][4] = {};
  FTENGINE_KEEP_LOOP
  for (int chunk = warp; chunk < chunks; chunk += kWarps) {
    const int64_t first_column = kTileColumns * (int64_t{chunks} * place.stripe + chunk), column = first_column + 8 * t;
    if (first_column >= x.columns) break;
    Octet<T> octets[2][4];
    x.load(octets[0], row, 8, column);
    x.load(octets[1], row, 8, column + 32);
    FTENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      Octet<T>(&x32)[4] = octets[half];  // rows g, g + 8, g + 16, g + 24 of 32 columns
      FTENGINE_UNROLL
      for (int i = 0; i < 4; ++i) drop(x32[i], mask.kept(row + 8 * i, column + 32 * half));
      FTENGINE_UNROLL
      for (int n = 0; n < Ranks / 8; ++n) {
        if (8 * n >= ranks) break;
        const Octet<T> right = device::load_octet(factor + 8 * n * a.stride + column + 32 * half);
        add_over_columns(c[0][n], x32[0], x32[1], right);
        add_over_columns(c[1][n], x32[2], x32[3], right);
      }
    }
  }

  device::Shared shared;  // (warp, 32 rows, 8 ranks), eight ranks after another
  FTENGINE_UNROLL
  for (int n = 0; n < Ranks / 8; ++n) {
    if (8 * n >= ranks) break;
    FTENGINE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int of_tile = 16 * (i / 4) + g + 8 * (i / 2 % 2);
      shared.store((warp * kShrinkRows + of_tile) * 8 + 2 * t + i % 2, c[i / 4][n][i % 4]);
    }
    device::barrier();
    float sum = 0.0f;
    FTENGINE_UNROLL
    for (int w = 0; w < kWarps; ++w) sum += shared.load(w * kShrinkRows * 8 + device::thread_index());
    const int64_t out_row = first_row + device::thread_index() / 8;
    const int out_rank = place.group * Ranks + 8 * n + device::thread_index() % 8;
    if (out_row < x.rows && out_rank < rank) {
      if (partial != nullptr) {
        partial[(place.stripe * x.rows + out_row) * rank + out_rank] = sum;
      } else {
        s[out_row * rank + out_rank] = device::from_float<T>(sum * scale);
      }
    }
    device::barrier();
  }
}

// An update by a product of rank r. The wide factor's first 16 ranks stay in registers, the only ones more often than
// not; others, and all in fp32, where registers do not suffice, come from L1 again for every 16 rows.
template <typename T>
struct Update {
  static constexpr bool kKeeps = sizeof(T) == 2;

  Packed<T> wide, narrow;  // in pairs, by length
  int64_t column;
  Factor<T> first[2];

  FTENGINE_DEVICE Update(const Packed<T>& wide, const Packed<T>& narrow, int64_t column)
      : wide(wide), narrow(narrow), column(column) {
    if constexpr (kKeeps) {
      FTENGINE_UNROLL
      for (int half = 0; half < 2; ++half) first[half].load(wide.data + column * 2, wide.stride, half);
    }
  }

  FTENGINE_DEVICE Products multiply(int64_t row, int half) const {
    const T* rows = narrow.data + row * narrow.stride;
    Products products;
    if constexpr (kKeeps) products.add(first[half], rows, narrow.stride);
    FTENGINE_KEEP_LOOP
    for (int rank = kKeeps ? kRankTile : 0; rank < wide.ranks; rank += kRankTile) {
      Factor<T> next;
      next.load(wide.data + rank * wide.stride + column * 2, wide.stride, half);
      products.add(next, rows + rank, narrow.stride);
    }
    return products;
  }
};

// y += scale · S Bᵀ.  s: by length; b: in pairs.
template <typename T>
FTENGINE_KERNEL(kThreads, blocks_resident<T>(16))
lowrank_expand_kernel(Dense<T> y, Packed<T> s, Packed<T> b, float scale, int stripes, int64_t rows) {
  const Place place(1, stripes);
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4;
  const int64_t column = place.column();
  const Update<T> update(b, s, column);
  FTENGINE_KEEP_LOOP
  for (int64_t row = place.part * rows; row < (place.part + 1) * rows && row < y.rows; row += kTileRows) {
    Octet<T> octets[4];
    y.load(octets, row + 4 * t, 1, column + 8 * g);
    FTENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Products products = update.multiply(row, half);
      FTENGINE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int of_lane = i / 2, q = i % 2;
        Pair<T>& pair = octets[of_lane].pair[2 * half + q];
        pair = device::make_pair<T>(device::low(pair) + scale * products.low(of_lane, q),
                                    device::high(pair) + scale * products.high(of_lane, q));
      }
    }
    y.store(octets, row + 4 * t, column + 8 * g);
  }
}

// ds = dy B and dbᵀ = sᵀ dy, both unscaled and partial: ds (stripe, rows, ranks) and db (part, ranks, columns).
// Every octet is read twice, in both arrangements, the second time from L1.  s and b: by rank.
template <typename T, int Ranks>
FTENGINE_KERNEL(kThreads, blocks_resident<T>(Ranks))
lowrank_backward_output_kernel(Dense<const T> dy, Packed<T> s, Packed<T> b, int groups, int stripes, int64_t rows,
                               float* ds, float* db) {
  const Place place(groups, stripes);
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4, warp = device::warp_index();
  const int64_t column = place.column();
  const int ranks = ranks_of_group(b, place.group, Ranks), first_rank = place.group * Ranks;

  Octet<T> factor[2][Ranks / 8] = {};
  FTENGINE_UNROLL
  for (int i = 0; i < Ranks / 4; ++i) {
    const int n = i / 2, half = i % 2;
    if (8 * n < ranks) {
      factor[half][n] = device::load_octet(b.data + (first_rank + 8 * n + g) * b.stride + column + 32 * half + 8 * t);
    }
  }
  ColumnSums<T, Ranks> sums;
  device::Shared shared;  // (2, warp, 16 rows, Ranks): while one half is summed the other is filled
  int buffer = 0;
  FTENGINE_KEEP_LOOP
  for (int64_t row = place.part * rows; row < (place.part + 1) * rows && row < dy.rows; row += kTileRows) {
    Octet<T> by_columns[4], by_rows[2][2];
    dy.load(by_columns, row + 4 * t, 1, column + 8 * g);
    dy.load(by_rows[0], row + g, 8, column + 8 * t);
    dy.load(by_rows[1], row + g, 8, column + 32 + 8 * t);
    sums.add(by_columns, s.data + first_rank * s.stride + row, s.stride, ranks);
    FTENGINE_UNROLL
    for (int n = 0; n < Ranks / 8; ++n) {
      float c[4] = {};
      add_over_columns(c, by_rows[0][0], by_rows[0][1], factor[0][n]);
      add_over_columns(c, by_rows[1][0], by_rows[1][1], factor[1][n]);
      FTENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int of_tile = g + 8 * (i / 2);
        shared.store(((buffer * kWarps + warp) * kTileRows + of_tile) * Ranks + 8 * n + 2 * t + i % 2, c[i]);
      }
    }
    device::barrier();
    for (int i = device::thread_index(); i < kTileRows * Ranks; i += device::thread_count()) {
      float sum = 0.0f;
      for (int w = 0; w < device::warp_count(); ++w) {
        sum += shared.load((buffer * kWarps + w) * kTileRows * Ranks + i);
      }
      if (row + i / Ranks < dy.rows && i % Ranks < ranks) {
        ds[(place.stripe * dy.rows + row + i / Ranks) * b.ranks + first_rank + i % Ranks] = sum;
      }
    }
    buffer = 1 - buffer;
  }
  sums.store(db + (place.part * b.ranks + first_rank) * b.stride + column, b.stride, ranks);
}

// da = dsᵀ x̂, unscaled and partial (part, ranks, columns); dx += scale · mask ∘ (dS A), by the first group only.
// ds_by_rank is for da, ds_by_length for dx; a: in pairs.
template <typename T, int Ranks>
FTENGINE_KERNEL(kThreads, 1)
lowrank_backward_input_kernel(Dense<T> dx, Dense<const T> x, Packed<T> ds_by_rank, Packed<T> ds_by_length, Packed<T> a,
                              Dropout dropout, float scale, int groups, int stripes, int64_t rows, float* da) {
  const Place place(groups, stripes);
  const int lane = device::lane_index(), g = lane / 4, t = lane % 4;
  const int64_t column = place.column();
  const int ranks = ranks_of_group(a, place.group, Ranks), first_rank = place.group * Ranks;
  const bool updates = dx.data != nullptr && place.group == 0;
  const Mask mask(dropout);

  const Update<T> update(a, ds_by_length, column);
  ColumnSums<T, Ranks> sums;
  FTENGINE_KEEP_LOOP
  for (int64_t row = place.part * rows; row < (place.part + 1) * rows && row < x.rows; row += kTileRows) {
    Octet<T> octets[4], updated[4];
    x.load(octets, row + 4 * t, 1, column + 8 * g);
    if (updates) dx.load(updated, row + 4 * t, 1, column + 8 * g);
    uint32_t kept = 0;  // eight bits an octet
    FTENGINE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = mask.kept(row + 4 * t + i, column + 8 * g);
      drop(octets[i], bits);
      kept |= bits << 8 * i;
    }
    sums.add(octets, ds_by_rank.data + first_rank * ds_by_rank.stride + row, ds_by_rank.stride, ranks);
    if (!updates) continue;
    FTENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Products products = update.multiply(row, half);
      FTENGINE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int of_lane = i / 2, q = i % 2;
        const uint32_t bits = kept >> (8 * of_lane + 4 * half + 2 * q);
        Pair<T>& pair = updated[of_lane].pair[2 * half + q];
        pair = device::make_pair<T>(device::low(pair) + (bits & 1 ? scale * products.low(of_lane, q) : 0.0f),
                                    device::high(pair) + (bits & 2 ? scale * products.high(of_lane, q) : 0.0f));
      }
    }
    dx.store(updated, row + 4 * t, column + 8 * g);
  }
  sums.store(da + (place.part * a.ranks + first_rank) * a.stride + column, a.stride, ranks);
}

constexpr int kMergeRows = 4;       // of a thread
constexpr int kMergeColumns = 256;  // of a warp

// w += scale · B A in fp32 by multiply-add, since a and b are not rounded.  a: by rank; b: by length.
template <typename T>
FTENGINE_KERNEL(kThreads, 2)
lowrank_merge_kernel(Dense<T> w, Packed<float> a, Packed<float> b, float scale, int stripes) {
  const Place place(1, stripes);
  const int64_t row = int64_t{kMergeRows} * (place.part * kWarps + device::warp_index());
  const int64_t column = int64_t{kMergeColumns} * place.stripe + 8 * device::lane_index();
  Octet<T> octets[kMergeRows];
  w.load(octets, row, 1, column);
  float sums[kMergeRows][8] = {};
  for (int rank = 0; rank < a.ranks; ++rank) {
    const Octet<float> right = device::load_octet(a.data + rank * a.stride + column);
    FTENGINE_UNROLL
    for (int i = 0; i < kMergeRows; ++i) {
      const float left = b.data[(row + i) * b.stride + rank];
      FTENGINE_UNROLL
      for (int q = 0; q < 4; ++q) {
        sums[i][2 * q] += left * right.pair[q].low;
        sums[i][2 * q + 1] += left * right.pair[q].high;
      }
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < kMergeRows; ++i) {
    FTENGINE_UNROLL
    for (int q = 0; q < 4; ++q) {
      Pair<T>& pair = octets[i].pair[q];
      pair = device::make_pair<T>(device::low(pair) + scale * sums[i][2 * q],
                                  device::high(pair) + scale * sums[i][2 * q + 1]);
    }
  }
  w.store(octets, row, column);
}

}  // namespace ftengine
