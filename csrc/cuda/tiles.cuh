// What a warp does with a piece of a large matrix: read it, drop elements, and multiply it by something skinny.
//
// A lane holds octets: eight neighbouring columns of a row, which is one wide load and one block of Philox. mma sums
// over an index that a lane shares with its quad, in whatever order, as long as both factors agree on it. So octets go
// into the tensor cores as they come from memory, without shared memory or shuffles, in two arrangements:
//
//   by rows      lane 4g + t holds rows g and g + 8, columns 8t … 8t + 7 of 32: sums over columns (x̂ Aᵀ, dy B)
//   by columns   lane 4g + t holds rows 4t … 4t + 3, columns 8g … 8g + 7: sums over 16 rows (dSᵀ x̂, dyᵀ S),
//                and receives products of rank r (S Bᵀ, dS A) for the same elements

#pragma once

#include <type_traits>

#include "device.cuh"

namespace ftengine {

using device::Octet;
using device::Pair;

constexpr int kTileRows = 16;     // of a warp, in both arrangements
constexpr int kTileColumns = 64;  // of a warp: 128 bytes of bf16 from each row
constexpr int kRankTile = 16;     // of an mma

// A large operand: contiguous, rows × columns.
template <typename T>
struct Dense {
  using Element = std::remove_const_t<T>;

  T* data;
  int64_t rows, columns;
  bool aligned;  // every octet begins at a multiple of 16 bytes and lies in one row

  // Reads octets of rows row, row + step, … at a column; elements outside are zero. All of them are requested before
  // the first is used, so that a lane has several loads in flight.
  template <int N>
  FTENGINE_DEVICE void load(Octet<Element> (&octets)[N], int64_t row, int step, int64_t column) const {
    const T* from = data + row * columns + column;
    const int rows_left = left(rows - row), columns_left = left(columns - column);
    FTENGINE_UNROLL
    for (int i = 0; i < N; ++i) octets[i] = {};
    if (aligned) {
      FTENGINE_UNROLL
      for (int i = 0; i < N; ++i) {
        if (i * step < rows_left && columns_left > 0) octets[i] = device::load_octet(from + i * step * columns);
      }
    } else {
      FTENGINE_UNROLL
      for (int i = 0; i < N; ++i) {
        FTENGINE_UNROLL
        for (int j = 0; j < 8; j += 2) {
          const int inside = i * step < rows_left ? columns_left - j : 0;
          const T* pair = from + i * step * columns + j;
          octets[i].pair[j / 2] = device::make_pair<Element>(inside > 0 ? device::to_float(pair[0]) : 0.0f,
                                                             inside > 1 ? device::to_float(pair[1]) : 0.0f);
        }
      }
    }
  }

  // Writes octets of rows row, row + 1, …; nothing outside.
  template <int N>
  FTENGINE_DEVICE void store(const Octet<Element> (&octets)[N], int64_t row, int64_t column) const {
    T* to = data + row * columns + column;
    const int rows_left = left(rows - row), columns_left = left(columns - column);
    FTENGINE_UNROLL
    for (int i = 0; i < N; ++i) {
      if (i >= rows_left || columns_left <= 0) continue;
      if (aligned) {
        device::store_octet(to + i * columns, octets[i]);
      } else {
        FTENGINE_UNROLL
        for (int j = 0; j < 8; j += 2) {
          if (columns_left > j) to[i * columns + j] = device::from_float<T>(device::low(octets[i].pair[j / 2]));
          if (columns_left > j + 1)
            to[i * columns + j + 1] = device::from_float<T>(device::high(octets[i].pair[j / 2]));
        }
      }
    }
  }

 private:
  // As a small number: comparisons with it then take one register.
  static FTENGINE_DEVICE int left(int64_t count) { return count < 64 ? static_cast<int>(count) : 64; }
};

// Dropout with p = level / 65536; none when seed is null.
struct Dropout {
  const int64_t* seed;
  int level;
};

// The mask, with the seed read once.
struct Mask {
  bool active;
  uint64_t seed;
  int32_t threshold;  // compares half-words as upper halves of 32-bit words: one comparison, whichever half it was

  explicit FTENGINE_DEVICE Mask(Dropout dropout)
      : active(dropout.seed != nullptr),
        seed(active ? static_cast<uint64_t>(*dropout.seed) : 0),
        threshold((dropout.level - 32768) * 65536) {}

  // Bit j says whether column + j is kept; all are where there is no dropout.
  FTENGINE_DEVICE uint32_t kept(int64_t row, int64_t column) const {
    if (!active) return 0xFF;
    const PhiloxBlock block =
        philox(seed, static_cast<uint32_t>(row), static_cast<uint32_t>(column / kColumnsPerBlock));
    uint32_t bits = 0;
    FTENGINE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (static_cast<int32_t>(block.w[i] << 16) >= threshold) bits |= 1u << 2 * i;
      if (static_cast<int32_t>(block.w[i]) >= threshold) bits |= 2u << 2 * i;
    }
    return bits;
  }
};

template <typename T>
FTENGINE_DEVICE Pair<T> select(Pair<T> pair, bool low, bool high) {
  return {pair.bits & ((low ? 0xFFFFu : 0u) | (high ? 0xFFFF0000u : 0u))};
}
FTENGINE_DEVICE Pair<float> select(Pair<float> pair, bool low, bool high) {
  return {low ? pair.low : 0.0f, high ? pair.high : 0.0f};
}

// Dropped elements become exact zeros, even where they are infinite.
template <typename T>
FTENGINE_DEVICE void drop(Octet<T>& octet, uint32_t kept) {
  FTENGINE_UNROLL
  for (int i = 0; i < 4; ++i) octet.pair[i] = select(octet.pair[i], kept >> 2 * i & 1, kept >> 2 * i & 2);
}

// Small operands come packed: cast to T, padded with zeros to whole tiles, in the order in which lanes read them.
//
//   by rank     (rank, length)            element (rank, i) at rank * stride + i
//   in pairs    (rank / 2, length, 2)     two ranks of one i are neighbours
//   by length   (length, rank)            element (rank, i) at i * stride + rank
template <typename T>
struct Packed {
  const T* data;
  int64_t stride;
  int ranks;  // a multiple of kRankTile
};

// sums (16 rows, 8 ranks) += x (16 rows, 32 columns) aᵀ, where top and bottom are octets of x by rows.
template <typename T>
FTENGINE_DEVICE void add_over_columns(float (&sums)[4], const Octet<T>& top, const Octet<T>& bottom,
                                      const Octet<T>& a) {
  FTENGINE_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const Pair<T> left[4] = {top.pair[i], bottom.pair[i], top.pair[i + 1], bottom.pair[i + 1]};
    const Pair<T> right[2] = {a.pair[i], a.pair[i + 1]};
    device::mma(sums, left, right);
  }
}

// Sums over rows: sᵀ x, with s packed by rank. A lane's share of (Ranks, 64 columns).
template <typename T, int Ranks>
struct ColumnSums {
  float c[Ranks / kRankTile][8][4] = {};

  // x: octets by columns. s: at rank 0 and the first of the 16 rows. Ranks from `ranks` on are not computed.
  FTENGINE_DEVICE void add(const Octet<T> (&x)[4], const T* s, int64_t stride, int ranks) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int tile = 0; tile < Ranks / kRankTile; ++tile) {
      if (tile * kRankTile >= ranks) break;
      Pair<T> left[4];
      FTENGINE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto* four = reinterpret_cast<const Pair<T>*>(s + (tile * kRankTile + g + 8 * i) * stride + 4 * t);
        left[i] = four[0];
        left[2 + i] = four[1];
      }
      FTENGINE_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int i = j / 2;
        const Pair<T> right[2] = {
            j % 2 == 0 ? lows(x[0].pair[i], x[1].pair[i]) : highs(x[0].pair[i], x[1].pair[i]),
            j % 2 == 0 ? lows(x[2].pair[i], x[3].pair[i]) : highs(x[2].pair[i], x[3].pair[i]),
        };
        device::mma(c[tile][j], left, right);
      }
    }
  }

  // to: (rank, length), at rank 0 and the first of the 64 columns.
  FTENGINE_DEVICE void store(float* to, int64_t stride, int ranks) const {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int tile = 0; tile < Ranks / kRankTile; ++tile) {
      if (tile * kRankTile >= ranks) break;
      FTENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {  // c's element i: rank g + 8 (i / 2), octet 2t + i % 2, all j
        Octet<float> octet;
        FTENGINE_UNROLL
        for (int j = 0; j < 4; ++j) octet.pair[j] = {c[tile][2 * j][i], c[tile][2 * j + 1][i]};
        const int rank = tile * kRankTile + g + 8 * (i / 2), column = 8 * (2 * t + i % 2);
        device::store_octet(to + rank * stride + column, octet);
      }
    }
  }
};

// The wide factor of an update, 16 ranks by 64 columns, packed in pairs: a lane's share of it as mma takes it, for one
// half of the lane's octets (four columns). Halves, since sums and factors of whole octets would not fit into
// registers.
template <typename T>
struct Factor {
  Pair<T> a[2][4];  // by pair of columns

  // from: at rank 0 of the tile and the first of the 64 columns.
  FTENGINE_DEVICE void load(const T* from, int64_t stride, int half) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int i = 0; i < 2; ++i) {  // ranks 4t + 2i and 4t + 2i + 1
      const Octet<T> octet = device::load_octet(from + ((2 * t + i) * stride + 8 * g + 4 * half) * 2);
      FTENGINE_UNROLL
      for (int j = 0; j < 4; ++j) a[j / 2][2 * i + j % 2] = octet.pair[j];
    }
  }
};

// Products of rank r for a lane's four octets by columns, one half of each: of row 2i + j and the half's pair q of
// columns, c[i][q][j] and c[i][q][2 + j].
struct Products {
  float c[2][2][4] = {};

  // narrow: packed by length, at the first of the 16 rows and rank 0 of the tile.
  template <typename T>
  FTENGINE_DEVICE void add(const Factor<T>& factor, const T* narrow, int64_t stride) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int i = 0; i < 2; ++i) {
      // mma's column g is a row of ours, and a lane receives columns 2t and 2t + 1: rows 4t + 2i and 4t + 2i + 1.
      const int row = 4 * (g / 2) + 2 * i + g % 2;
      const auto* four = reinterpret_cast<const Pair<T>*>(narrow + row * stride + 4 * t);
      const Pair<T> right[2] = {four[0], four[1]};
      FTENGINE_UNROLL
      for (int q = 0; q < 2; ++q) device::mma(c[i][q], factor.a[q], right);
    }
  }

  FTENGINE_DEVICE float low(int row, int q) const { return c[row / 2][q][row % 2]; }
  FTENGINE_DEVICE float high(int row, int q) const { return c[row / 2][q][2 + row % 2]; }
};

}  // namespace ftengine
