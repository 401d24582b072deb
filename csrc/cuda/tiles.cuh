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
  T* data;
  int64_t rows, columns;
  bool aligned;  // every octet begins at a multiple of 16 bytes and lies in one row

  // Elements outside are zero.
  FTENGINE_DEVICE Octet<T> load(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns) return {};
    const T* from = data + row * columns + column;
    if (aligned) return device::load_octet(from);
    Octet<T> octet;
    FTENGINE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float first = column + 2 * i < columns ? device::to_float(from[2 * i]) : 0.0f;
      const float second = column + 2 * i + 1 < columns ? device::to_float(from[2 * i + 1]) : 0.0f;
      octet.pair[i] = device::make_pair<T>(first, second);
    }
    return octet;
  }

  FTENGINE_DEVICE void store(int64_t row, int64_t column, const Octet<T>& octet) const {
    if (row >= rows || column >= columns) return;
    T* to = data + row * columns + column;
    if (aligned) return device::store_octet(to, octet);
    FTENGINE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (column + 2 * i < columns) to[2 * i] = device::from_float<T>(device::low(octet.pair[i]));
      if (column + 2 * i + 1 < columns) to[2 * i + 1] = device::from_float<T>(device::high(octet.pair[i]));
    }
  }
};

// Dropout with p = level / 65536; none when seed is null.
struct Dropout {
  const int64_t* seed;
  int level;

  // Compares half-words as the upper halves of 32-bit words: one comparison each, whichever half it was.
  FTENGINE_DEVICE int32_t threshold() const { return (level - 32768) * 65536; }

  FTENGINE_DEVICE PhiloxBlock block(int64_t row, int64_t column) const {
    return philox(static_cast<uint64_t>(*seed), static_cast<uint32_t>(row),
                  static_cast<uint32_t>(column / kColumnsPerBlock));
  }
};

FTENGINE_DEVICE bool keeps_low(uint32_t word, int32_t threshold) {
  return static_cast<int32_t>(word << 16) >= threshold;
}
FTENGINE_DEVICE bool keeps_high(uint32_t word, int32_t threshold) { return static_cast<int32_t>(word) >= threshold; }

template <typename T>
FTENGINE_DEVICE Pair<T> select(Pair<T> pair, bool low, bool high) {
  return {pair.bits & ((low ? 0xFFFFu : 0u) | (high ? 0xFFFF0000u : 0u))};
}
FTENGINE_DEVICE Pair<float> select(Pair<float> pair, bool low, bool high) {
  return {low ? pair.low : 0.0f, high ? pair.high : 0.0f};
}

// Dropped elements become exact zeros, even where they are infinite.
template <typename T>
FTENGINE_DEVICE void drop(Octet<T>& octet, const PhiloxBlock& block, int32_t threshold) {
  FTENGINE_UNROLL
  for (int i = 0; i < 4; ++i) {
    octet.pair[i] = select(octet.pair[i], keeps_low(block.w[i], threshold), keeps_high(block.w[i], threshold));
  }
}

// Small operands come packed: cast to T, padded with zeros to whole tiles, in the order in which lanes read them.
//
//   by rank     (rank, length)            element (rank, i) at rank * stride + i
//   in pairs    (rank / 2, length, 2)     two ranks of one i are neighbours
//   by length   (length, rank)            element (rank, i) at i * stride + rank

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

// The wide factor of an update, 16 ranks by 64 columns, packed in pairs: a lane's share of it as mma takes it.
template <typename T>
struct Factor {
  Pair<T> a[4][4];  // by pair of columns of an octet

  // from: at rank 0 of the tile and the first of the 64 columns.
  FTENGINE_DEVICE void load(const T* from, int64_t stride) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int i = 0; i < 2; ++i) {  // ranks 4t + 2i and 4t + 2i + 1
      const T* row = from + ((2 * t + i) * stride + 8 * g) * 2;
      FTENGINE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Octet<T> octet = device::load_octet(row + 8 * half);
        a[2 * half][2 * i] = octet.pair[0];
        a[2 * half][2 * i + 1] = octet.pair[1];
        a[2 * half + 1][2 * i] = octet.pair[2];
        a[2 * half + 1][2 * i + 1] = octet.pair[3];
      }
    }
  }
};

// The narrow factor, 16 rows by 16 ranks, packed by length.
template <typename T>
struct Rows {
  Pair<T> b[2][2];  // by pair of a lane's four rows

  // from: at the first row and rank 0 of the tile.
  FTENGINE_DEVICE void load(const T* from, int64_t stride) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    FTENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = 4 * (g / 2) + 2 * half + g % 2;
      const auto* four = reinterpret_cast<const Pair<T>*>(from + row * stride + 4 * t);
      b[half][0] = four[0];
      b[half][1] = four[1];
    }
  }
};

// Products of rank r for a lane's four octets by columns: row 2 half + i, pair q of columns in c[half][q][i], [2 + i].
struct Products {
  float c[2][4][4] = {};

  template <typename T>
  FTENGINE_DEVICE void add(const Factor<T>& factor, const Rows<T>& rows) {
    FTENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      FTENGINE_UNROLL
      for (int q = 0; q < 4; ++q) device::mma(c[half][q], factor.a[q], rows.b[half]);
    }
  }

  FTENGINE_DEVICE float low(int row, int q) const { return c[row / 2][q][row % 2]; }
  FTENGINE_DEVICE float high(int row, int q) const { return c[row / 2][q][2 + row % 2]; }
};

}  // namespace ftengine
