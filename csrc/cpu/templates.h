// The kernels, written once over vectors of fp32. Each instruction set includes this file after defining, in an unnamed
// namespace,
//
//   struct Vector {
//     static constexpr int kWidth;                       // lanes
//     Vector(); explicit Vector(float);                  // zeros; one value in every lane
//     static Vector load(const T*);  static Vector load(const T*, int n);    // n < kWidth lanes, zeros above
//     void store(T*) const;          void store(T*, int n) const;            // rounds to nearest even
//     Vector keep(const uint8_t* bits, int64_t column) const;  // zero where bit `column + lane` is 0; kWidth | column
//     float sum() const;
//   };
//   Vector fma(Vector a, Vector b, Vector c);            // a b + c
//   Vector add(Vector a, Vector b);
//   void keep_bits(const PhiloxKeys&, uint32_t row, uint32_t block, int threshold, uint8_t* bits);  // 8 blocks
//
// and the tiles that its registers hold: kDotRows x kDotRanks, kExpandRows x kExpandVectors and kOuterRanks x
// kOuterVectors accumulators.

#pragma once

#include "cpu/bfloat16.h"
#include "cpu/compiler.h"
#include "cpu/kernels.h"
#include "cpu/philox_keys.h"

namespace ftengine::cpu {
namespace {

constexpr int W = Vector::kWidth;
constexpr int64_t kRowTile = 48;       // rows whose mask and sums are held at once
constexpr int64_t kDotChunk = 1024;    // columns: (r, chunk) of a stays in the second-level cache for every row
constexpr int64_t kExpandChunk = 256;  // columns: (r, chunk) of b
constexpr int64_t kStrip = 128;        // columns: (kStripRows, strip) of x and (r, strip) of a stay in cache
constexpr int64_t kStripRows = 32;
constexpr int64_t kRankBlock = 64;  // long sums are sums of sums, whose rounding errors grow more slowly
static_assert(kDotChunk % kColumnUnit == 0 && kStrip % kColumnUnit == 0, "a mask is made by 64 columns");

FTENGINE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Full {};  // the number of lanes of a whole vector

template <class T>
FTENGINE_INLINE Vector load(const T* from, Full) {
  return Vector::load(from);
}
template <class T>
FTENGINE_INLINE Vector load(const T* from, int lanes) {
  return Vector::load(from, lanes);
}
template <class T>
FTENGINE_INLINE void store(Vector value, T* to, Full) {
  value.store(to);
}
template <class T>
FTENGINE_INLINE void store(Vector value, T* to, int lanes) {
  value.store(to, lanes);
}

// The mask of a tile, a bit an element.
template <int64_t kRows, int64_t kColumns>
class Mask {
 public:
  static constexpr int64_t kStride = kColumns / 8;

  void fill(const PhiloxKeys& keys, int threshold, int64_t first_row, int64_t rows, int64_t first_column,
            int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t column = 0; column < columns; column += 64) {
        keep_bits(keys, static_cast<uint32_t>(first_row + i), static_cast<uint32_t>((first_column + column) / 8),
                  threshold, bits_ + i * kStride + column / 8);
      }
    }
  }

  const uint8_t* row(int64_t i) const { return bits_ + i * kStride; }

 private:
  alignas(64) uint8_t bits_[kRows * kStride];
};

// --- project: s = factor · dropout(x) aᵀ -----------------------------------------------------------------------------

struct DotTile {
  int64_t x_stride, length, a_stride, sums_stride;
  const uint8_t* bits;  // of the first row; the others follow at bits_stride
  int64_t bits_stride;
};

// sums[i][j] += x[i] · a[j] for kRows rows and kRanks ranks.
template <int kRows, int kRanks, bool kDropout, class T>
FTENGINE_INLINE void dot(const DotTile& tile, const T* x, const float* a, float* sums) {
  Vector acc[kRows][kRanks];
  auto step = [&](int64_t column, auto lanes) FTENGINE_LAMBDA {
    Vector values[kRows];
    FTENGINE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      values[i] = load(x + i * tile.x_stride + column, lanes);
      if constexpr (kDropout) values[i] = values[i].keep(tile.bits + i * tile.bits_stride, column);
    }
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const Vector factor = load(a + j * tile.a_stride + column, lanes);
      FTENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) acc[i][j] = fma(values[i], factor, acc[i][j]);
    }
  };
  int64_t column = 0;
  for (; column + W <= tile.length; column += W) step(column, Full{});
  if (column < tile.length) step(column, static_cast<int>(tile.length - column));
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kRanks; ++j) sums[i * tile.sums_stride + j] += acc[i][j].sum();
  }
}

template <int kRows, int kRanks, bool kDropout, class T>
void dot_ranks(const DotTile& tile, const T* x, const float* a, float* sums, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, a += kRanks * tile.a_stride, sums += kRanks) {
    dot<kRows, kRanks, kDropout>(tile, x, a, sums);
  }
  if constexpr (kRanks > 1) {
    if (ranks > 0) dot_ranks<kRows, kRanks / 2, kDropout>(tile, x, a, sums, ranks);
  }
}

template <bool kDropout, class T>
void dot_rows(DotTile tile, int64_t rows, const T* x, const float* a, float* sums, int64_t rank) {
  int64_t i = 0;
  for (; i + kDotRows <= rows; i += kDotRows) {
    dot_ranks<kDotRows, kDotRanks, kDropout>(tile, x + i * tile.x_stride, a, sums + i * rank, rank);
    if (kDropout) tile.bits += kDotRows * tile.bits_stride;
  }
  for (; i < rows; ++i) {
    dot_ranks<1, kDotRanks, kDropout>(tile, x + i * tile.x_stride, a, sums + i * rank, rank);
    if (kDropout) tile.bits += tile.bits_stride;
  }
}

template <class T>
void project(int64_t begin, int64_t end, const T* x, const float* a, T* s, int64_t length, int64_t rank, float factor,
             Dropout dropout) {
  const PhiloxKeys keys(dropout.seed);
  Mask<kRowTile, kDotChunk> mask;
  float sums[kRowTile * kMaxRank];
  for (int64_t first = begin; first < end; first += kRowTile) {
    const int64_t rows = least(kRowTile, end - first);
    for (int64_t i = 0; i < rows * rank; ++i) sums[i] = 0;
    for (int64_t column = 0; column < length; column += kDotChunk) {
      const int64_t columns = least(kDotChunk, length - column);
      const DotTile tile{length, columns, length, rank, mask.row(0), mask.kStride};
      const T* from = x + first * length + column;
      if (dropout.level != 0) {
        mask.fill(keys, dropout.level - 32768, first, rows, column, columns);
        dot_rows<true>(tile, rows, from, a + column, sums, rank);
      } else {
        dot_rows<false>(tile, rows, from, a + column, sums, rank);
      }
    }
    for (int64_t i = 0; i < rows * rank; ++i) round_to(factor * sums[i], s + first * rank + i);
  }
}

// --- expand: y += factor · s b ---------------------------------------------------------------------------------------

struct ExpandTile {
  int64_t y_stride, s_stride, b_stride, rank;
  const uint8_t* bits;
  int64_t bits_stride;
  Vector factor;
};

// y[i] += factor · mask[i] ∘ Σ_j s[i][j] b[j] for kRows rows and kVectors vectors from `column`.
template <int kRows, int kVectors, bool kDropout, class T, class Lanes>
FTENGINE_INLINE void update(const ExpandTile& tile, T* y, const float* s, const float* b, int64_t column, Lanes lanes) {
  Vector sums[kRows][kVectors];
  for (int64_t first = 0; first < tile.rank; first += kRankBlock) {
    Vector acc[kRows][kVectors];
    for (int64_t j = first; j < least(first + kRankBlock, tile.rank); ++j) {
      Vector row[kVectors];
      FTENGINE_UNROLL
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + j * tile.b_stride + column + v * W, lanes);
      FTENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Vector weight(s[i * tile.s_stride + j]);
        FTENGINE_UNROLL
        for (int v = 0; v < kVectors; ++v) acc[i][v] = fma(weight, row[v], acc[i][v]);
      }
    }
    FTENGINE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      FTENGINE_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] = add(sums[i][v], acc[i][v]);
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FTENGINE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Vector sum = sums[i][v];
      if constexpr (kDropout) sum = sum.keep(tile.bits + i * tile.bits_stride, column + v * W);
      T* to = y + i * tile.y_stride + column + v * W;
      store(fma(tile.factor, sum, load(to, lanes)), to, lanes);
    }
  }
}

template <int kRows, bool kDropout, class T>
FTENGINE_INLINE void update_columns(const ExpandTile& tile, T* y, const float* s, const float* b, int64_t columns) {
  int64_t column = 0;
  for (; column + kExpandVectors * W <= columns; column += kExpandVectors * W) {
    update<kRows, kExpandVectors, kDropout>(tile, y, s, b, column, Full{});
  }
  for (; column + W <= columns; column += W) update<kRows, 1, kDropout>(tile, y, s, b, column, Full{});
  if (column < columns) update<kRows, 1, kDropout>(tile, y, s, b, column, static_cast<int>(columns - column));
}

template <bool kDropout, class T>
void update_rows(ExpandTile tile, int64_t rows, T* y, const float* s, const float* b, int64_t columns) {
  int64_t i = 0;
  for (; i + kExpandRows <= rows; i += kExpandRows) {
    update_columns<kExpandRows, kDropout>(tile, y + i * tile.y_stride, s + i * tile.s_stride, b, columns);
    if (kDropout) tile.bits += kExpandRows * tile.bits_stride;
  }
  for (; i < rows; ++i) {
    update_columns<1, kDropout>(tile, y + i * tile.y_stride, s + i * tile.s_stride, b, columns);
    if (kDropout) tile.bits += tile.bits_stride;
  }
}

template <class T>
void expand(int64_t begin, int64_t end, T* y, const float* s, const float* b, int64_t length, int64_t rank,
            float factor) {
  const ExpandTile tile{length, rank, length, rank, nullptr, 0, Vector(factor)};
  for (int64_t first = begin; first < end; first += kRowTile) {
    const int64_t rows = least(kRowTile, end - first);
    for (int64_t column = 0; column < length; column += kExpandChunk) {
      update_rows<false>(tile, rows, y + first * length + column, s + first * rank, b + column,
                         least(kExpandChunk, length - column));
    }
  }
}

// --- contract: g = factor · sᵀ dropout(x); dx += factor · mask ∘ (s a) -----------------------------------------------

struct OuterTile {
  int64_t rows, x_stride, s_stride;
  const uint8_t* bits;
  int64_t bits_stride;
};

// sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and kVectors vectors from `column`; sums are kStrip apart.
template <int kRanks, int kVectors, bool kDropout, class T, class Lanes>
FTENGINE_INLINE void outer(const OuterTile& tile, const T* x, const float* s, float* sums, int64_t column,
                           Lanes lanes) {
  Vector acc[kRanks][kVectors];
  for (int64_t i = 0; i < tile.rows; ++i) {
    Vector values[kVectors];
    FTENGINE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      values[v] = load(x + i * tile.x_stride + column + v * W, lanes);
      if constexpr (kDropout) values[v] = values[v].keep(tile.bits + i * tile.bits_stride, column + v * W);
    }
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const Vector weight(s[i * tile.s_stride + j]);
      FTENGINE_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[j][v] = fma(weight, values[v], acc[j][v]);
    }
  }
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) {
    FTENGINE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums + j * kStrip + column + v * W;  // whole vectors: the strip is a multiple of them
      add(acc[j][v], Vector::load(to)).store(to);
    }
  }
}

template <int kRanks, bool kDropout, class T>
void outer_ranks(const OuterTile& tile, const T* x, const float* s, float* sums, int64_t columns, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, s += kRanks, sums += kRanks * kStrip) {
    int64_t column = 0;
    for (; column + kOuterVectors * W <= columns; column += kOuterVectors * W) {
      outer<kRanks, kOuterVectors, kDropout>(tile, x, s, sums, column, Full{});
    }
    for (; column + W <= columns; column += W) outer<kRanks, 1, kDropout>(tile, x, s, sums, column, Full{});
    if (column < columns) {
      outer<kRanks, 1, kDropout>(tile, x, s, sums, column, static_cast<int>(columns - column));
    }
  }
  if constexpr (kRanks > 1) {
    if (ranks > 0) outer_ranks<kRanks / 2, kDropout>(tile, x, s, sums, columns, ranks);
  }
}

template <class T>
void contract(int64_t begin, int64_t end, T* dx, const T* x, const float* s, const float* a, float* g, int64_t rows,
              int64_t length, int64_t rank, float factor, Dropout dropout) {
  const PhiloxKeys keys(dropout.seed);
  Mask<kStripRows, kStrip> mask;
  alignas(64) float sums[kMaxRank * kStrip];
  for (int64_t column = begin; column < end; column += kStrip) {
    const int64_t columns = least(kStrip, end - column);
    for (int64_t i = 0; i < rank * kStrip; ++i) sums[i] = 0;
    for (int64_t first = 0; first < rows; first += kStripRows) {
      const int64_t tile_rows = least(kStripRows, rows - first);
      const OuterTile tile{tile_rows, length, rank, mask.row(0), mask.kStride};
      const ExpandTile expand_tile{length, rank, length, rank, mask.row(0), mask.kStride, Vector(factor)};
      const T* from = x + first * length + column;
      const float* weights = s + first * rank;
      if (dropout.level != 0) {
        mask.fill(keys, dropout.level - 32768, first, tile_rows, column, columns);
        outer_ranks<kOuterRanks, true>(tile, from, weights, sums, columns, rank);
        if (dx) update_rows<true>(expand_tile, tile_rows, dx + first * length + column, weights, a + column, columns);
      } else {
        outer_ranks<kOuterRanks, false>(tile, from, weights, sums, columns, rank);
        if (dx) update_rows<false>(expand_tile, tile_rows, dx + first * length + column, weights, a + column, columns);
      }
    }
    for (int64_t j = 0; j < rank; ++j) {
      for (int64_t i = 0; i < columns; ++i) g[j * length + column + i] = factor * sums[j * kStrip + i];
    }
  }
}

}  // namespace
}  // namespace ftengine::cpu
