// The kernels, written once over vectors of fp32. Each instruction set includes this file after naming, as
// FTENGINE_VECTOR, a header that defines in an unnamed namespace
//
//   struct Vector {
//     static constexpr int kWidth;                     // lanes: 16 or a divisor of it
//     Vector(); explicit Vector(float);                // zeros; one value in every lane
//     static Vector load(const T*);  static Vector load(const T*, int n);  // n < kWidth lanes, zeros above
//     void store(T*) const;          void store(T*, int n) const;          // rounds to nearest even
//     Vector keep(uint64_t bits) const;                // zero in the lanes whose bit is 0
//   };
//   Vector fma(Vector a, Vector b, Vector c);          // a b + c
//   Vector add(Vector a, Vector b);
//   void add_sums(const Vector (&v)[4], float* to);    // to[j] += the sum of v[j]'s lanes
//   uint64_t keep_bits(const PhiloxKeys&, uint32_t row, uint32_t block, int threshold);  // the mask of 64 columns
//
// and the tiles that its registers hold: kDotRows x kDotRanks, kExpandRows x kExpandVectors and kOuterRanks x
// kOuterVectors accumulators.

#pragma once

#include "cpu/bfloat16.h"
#include "cpu/compiler.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/philox_keys.h"
#include "cpu/scratch.h"
#include FTENGINE_VECTOR

namespace ftengine::cpu {
namespace {

constexpr int W = Vector::kWidth;
constexpr int kDotRanks = 4;
constexpr int kDotTileRows = 12, kDotTileBytes = 2048;  // of a row: with as many of a, within the first-level cache
constexpr int64_t kExpandChunk = 256;                   // columns: (r, chunk) of b
constexpr int64_t kExpandTileRows = 48;
constexpr int64_t kStrip = 128, kStripRows = 36;  // columns and rows: a tile of x, and (r, strip) of a
constexpr int64_t kRankBlock = 64;                // long sums are sums of sums, whose rounding errors grow more slowly
static_assert(kDotTileRows % kDotRows == 0 && kStripRows % kDotRows == 0 && 12 % kDotRows == 0 &&
              kStrip % kColumnUnit == 0 && kOuterRanks % 2 == 0);

FTENGINE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FTENGINE_INLINE int64_t multiple(int64_t value, int64_t of) { return (value + of - 1) / of * of; }

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

// The mask under one seed and level, by 64 columns of a row.
class Masks {
 public:
  explicit Masks(const Dropout& dropout) : keys_(dropout.seed), level_(dropout.level) {}

  FTENGINE_INLINE uint64_t operator()(int64_t row, int64_t column) const {
    return keep_bits(keys_, static_cast<uint32_t>(row), static_cast<uint32_t>(column / 8), level_ - 32768);
  }

 private:
  PhiloxKeys keys_;
  int level_;
};

// Copies columns of a row of x as fp32, dropped ones as zeros, and zeros up to a multiple of 64. A copy lies in one
// piece of cache, wherever x's rows lie, and is masked and widened once however many ranks there are. Leaves the masks
// in bits, where that is asked for.
template <bool kDropout, class T>
FTENGINE_INLINE void copy_row(const T* x, int64_t columns, float* to, const Masks& masks, int64_t row, int64_t column,
                              uint64_t* bits) {
  for (int64_t at = 0; at < columns; at += 64) {
    uint64_t kept = kDropout ? masks(row, column + at) : 0;
    if (kDropout && bits != nullptr) bits[at / 64] = kept;
    const auto copy = [&](int64_t i, auto lanes) FTENGINE_LAMBDA {
      const Vector value = load(x + at + i, lanes);
      store(kDropout ? value.keep(kept >> i) : value, to + at + i, Full{});
    };
    if (at + 64 <= columns) {
      FTENGINE_UNROLL
      for (int i = 0; i < 64; i += W) copy(i, Full{});
    } else {
      for (int64_t i = 0; i < 64; i += W) {
        const int64_t left = columns - at - i;
        copy(i, left >= W ? W : left > 0 ? static_cast<int>(left) : 0);
      }
    }
  }
}

// --- project: s = factor · dropout(x) aᵀ -----------------------------------------------------------------------------

// sums[i][j] += x[i] · a[j] for kDotRows rows and kRanks ranks. Columns are cut off by a alone: x is padded with zeros.
template <int kRanks>
FTENGINE_INLINE void dot(const float* x, int64_t x_stride, const float* a, int64_t a_stride, int64_t columns,
                         float* sums, int64_t sums_stride) {
  Vector acc[kDotRows][kDotRanks];
  const auto step = [&](int64_t column, auto lanes) FTENGINE_LAMBDA {
    Vector values[kDotRows];
    FTENGINE_UNROLL
    for (int i = 0; i < kDotRows; ++i) values[i] = Vector::load(x + i * x_stride + column);
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const Vector factor = load(a + j * a_stride + column, lanes);
      FTENGINE_UNROLL
      for (int i = 0; i < kDotRows; ++i) acc[i][j] = fma(values[i], factor, acc[i][j]);
    }
  };
  int64_t column = 0;
  for (; column + W <= columns; column += W) step(column, Full{});
  if (column < columns) step(column, static_cast<int>(columns - column));
  FTENGINE_UNROLL
  for (int i = 0; i < kDotRows; ++i) add_sums(acc[i], sums + i * sums_stride);
}

// For all rows of a tile and all ranks; sums are `multiple(rank, kDotRanks)` apart.
FTENGINE_INLINE void dot_tile(const float* x, int64_t x_stride, int64_t rows, const float* a, int64_t a_stride,
                              int64_t columns, float* sums, int64_t rank) {
  const int64_t sums_stride = multiple(rank, kDotRanks);
  const auto ranks = [&](int64_t j, auto dot_ranks) FTENGINE_LAMBDA {
    for (int64_t i = 0; i < rows; i += kDotRows) {
      dot_ranks(x + i * x_stride, x_stride, a + j * a_stride, a_stride, columns, sums + i * sums_stride + j,
                sums_stride);
    }
  };
  int64_t j = 0;
  for (; j + kDotRanks <= rank; j += kDotRanks) ranks(j, dot<kDotRanks>);
  switch (rank - j) {
    case 1:
      return ranks(j, dot<1>);
    case 2:
      return ranks(j, dot<2>);
    case 3:
      return ranks(j, dot<3>);
  }
}

template <class T>
void project(int64_t begin, int64_t end, const T* x, const void* packed_a, T* s, int64_t length, int64_t rank,
             float factor, Dropout dropout) {
  const auto* a = static_cast<const float*>(packed_a);
  constexpr int64_t kColumns = kDotTileBytes / sizeof(float);
  const Masks masks(dropout);
  alignas(64) float tile[kDotTileRows * kColumns] = {};
  float sums[kDotTileRows * kMaxRank];
  const int64_t sums_stride = multiple(rank, kDotRanks);
  for (int64_t first = begin; first < end; first += kDotTileRows) {
    const int64_t rows = least(kDotTileRows, end - first);
    for (int64_t i = 0; i < kDotTileRows * sums_stride; ++i) sums[i] = 0;
    for (int64_t column = 0; column < length; column += kColumns) {
      const int64_t columns = least(kColumns, length - column);
      for (int64_t i = 0; i < rows; ++i) {
        const T* from = x + (first + i) * length + column;
        if (dropout.level != 0) {
          copy_row<true>(from, columns, tile + i * kColumns, masks, first + i, column, nullptr);
        } else {
          copy_row<false>(from, columns, tile + i * kColumns, masks, first + i, column, nullptr);
        }
      }
      dot_tile(tile, kColumns, rows, a + column, length, columns, sums, rank);
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rank; ++j) round_to(factor * sums[i * sums_stride + j], s + (first + i) * rank + j);
    }
  }
}

// --- expand: y += factor · s b ---------------------------------------------------------------------------------------

struct ExpandTile {
  int64_t y_stride, b_stride, rank;
  const uint64_t* bits;  // kStrip / 64 words a row, or null
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
        const Vector weight(s[i * tile.rank + j]);
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
      const int64_t at = column + v * W;
      Vector sum = sums[i][v];
      if constexpr (kDropout) sum = sum.keep(tile.bits[i * (kStrip / 64) + at / 64] >> (at % 64));
      T* to = y + i * tile.y_stride + at;
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
    update_columns<kExpandRows, kDropout>(tile, y + i * tile.y_stride, s + i * tile.rank, b, columns);
    if (kDropout) tile.bits += kExpandRows * (kStrip / 64);
  }
  for (; i < rows; ++i) {
    update_columns<1, kDropout>(tile, y + i * tile.y_stride, s + i * tile.rank, b, columns);
    if (kDropout) tile.bits += kStrip / 64;
  }
}

template <class T>
void expand(int64_t begin, int64_t end, T* y, const void* packed_s, const void* packed_b, int64_t length, int64_t rank,
            float factor) {
  const auto *s = static_cast<const float*>(packed_s), *b = static_cast<const float*>(packed_b);
  const ExpandTile tile{length, length, rank, nullptr, Vector(factor)};
  for (int64_t first = begin; first < end; first += kExpandTileRows) {
    const int64_t rows = least(kExpandTileRows, end - first);
    for (int64_t column = 0; column < length; column += kExpandChunk) {
      update_rows<false>(tile, rows, y + first * length + column, s + first * rank, b + column,
                         least(kExpandChunk, length - column));
    }
  }
}

// --- contract: g = factor · sᵀ dropout(x); dx += factor · mask ∘ (s a) or partial += dropout(x) bᵀ ------------------

// sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and kOuterVectors vectors; x and sums are kStrip wide.
template <int kRanks>
FTENGINE_INLINE void outer(const float* x, int64_t rows, const float* s, int64_t s_stride, float* sums) {
  Vector acc[kRanks][kOuterVectors];
  for (int64_t i = 0; i < rows; ++i) {
    Vector values[kOuterVectors];
    FTENGINE_UNROLL
    for (int v = 0; v < kOuterVectors; ++v) values[v] = Vector::load(x + i * kStrip + v * W);
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const Vector weight(s[i * s_stride + j]);
      FTENGINE_UNROLL
      for (int v = 0; v < kOuterVectors; ++v) acc[j][v] = fma(weight, values[v], acc[j][v]);
    }
  }
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) {
    FTENGINE_UNROLL
    for (int v = 0; v < kOuterVectors; ++v) {
      float* to = sums + j * kStrip + v * W;
      add(acc[j][v], Vector::load(to)).store(to);
    }
  }
}

template <int kRanks>
FTENGINE_INLINE void outer_tile(const float* x, int64_t rows, int64_t columns, const float* s, int64_t s_stride,
                                float* sums, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, s += kRanks, sums += kRanks * kStrip) {
    for (int64_t column = 0; column < columns; column += kOuterVectors * W) {
      outer<kRanks>(x + column, rows, s, s_stride, sums + column);
    }
  }
  if constexpr (kRanks > 1) outer_tile<kRanks / 2>(x, rows, columns, s, s_stride, sums, ranks);
}

// The offset of a row that follows a tile: in this strip, or past its end in the next one. Rows of a strip lie pages
// apart, where no hardware sees them coming, and the frozen product has washed x out of the caches: both are
// prefetched.
FTENGINE_INLINE int64_t ahead_of(int64_t row, int64_t rows, int64_t column, int64_t end, int64_t length) {
  if (row < rows) return row * length + column;
  return least(row - rows, rows - 1) * length + (column + kStrip < end ? column + kStrip : column);
}

template <int kWrite, class T>
FTENGINE_INLINE void prefetch_strip(const T* from) {
  FTENGINE_UNROLL
  for (uint64_t i = 0; i < kStrip * sizeof(T); i += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + i, kWrite, 3);
  }
}

template <class T>
void contract(int64_t begin, int64_t end, T* dx, const T* x, const void* packed_s, const void*, const void* packed_a,
              const void* packed_b, float* g, float* partial, int64_t rows, int64_t length, int64_t rank, float factor,
              Dropout dropout) {
  const auto *s = static_cast<const float*>(packed_s), *a = static_cast<const float*>(packed_a),
             *b = static_cast<const float*>(packed_b);
  const Masks masks(dropout);
  alignas(64) float tile[kStripRows * kStrip] = {};
  auto* sums = static_cast<float*>(scratch(kSumsSlot, rank * kStrip * static_cast<int64_t>(sizeof(float))));
  uint64_t bits[kStripRows * (kStrip / 64)];
  for (int64_t column = begin; column < end; column += kStrip) {
    const int64_t columns = least(kStrip, end - column);
    for (int64_t i = 0; i < rank * kStrip; ++i) sums[i] = 0;
    for (int64_t first = 0; first < rows; first += kStripRows) {
      const int64_t tile_rows = least(kStripRows, rows - first);
      for (int64_t i = 0; i < tile_rows; ++i) {
        const T* from = x + (first + i) * length + column;
        const int64_t ahead = ahead_of(first + i + kStripRows, rows, column, end, length);
        prefetch_strip<0>(x + ahead);
        if (dx != nullptr) prefetch_strip<1>(dx + ahead);
        if (dropout.level != 0) {
          copy_row<true>(from, columns, tile + i * kStrip, masks, first + i, column, bits + i * (kStrip / 64));
        } else {
          copy_row<false>(from, columns, tile + i * kStrip, masks, first + i, column, nullptr);
        }
      }
      outer_tile<kOuterRanks>(tile, tile_rows, columns, s + first * rank, rank, sums, rank);
      if (partial != nullptr) {
        dot_tile(tile, kStrip, tile_rows, b + column, length, columns, partial + first * partial_stride(rank), rank);
      }
      if (dx == nullptr) continue;
      const ExpandTile expand_tile{length, length, rank, bits, Vector(factor)};
      T* to = dx + first * length + column;
      if (dropout.level != 0) {
        update_rows<true>(expand_tile, tile_rows, to, s + first * rank, a + column, columns);
      } else {
        update_rows<false>(expand_tile, tile_rows, to, s + first * rank, a + column, columns);
      }
    }
    for (int64_t j = 0; j < rank; ++j) {
      for (int64_t i = 0; i < columns; ++i) g[j * length + column + i] = factor * sums[j * kStrip + i];
    }
  }
}

// --- drop: y = factor · dropout(x) -----------------------------------------------------------------------------------

template <class T>
void drop(int64_t begin, int64_t end, const T* x, T* y, float factor, Dropout dropout) {
  const Masks masks(dropout);
  const Vector scale(factor);
  for (int64_t at = begin; at < end; at += 64) {
    const uint64_t kept = masks(0, at);
    const auto some = [&](int64_t i, auto lanes) FTENGINE_LAMBDA {
      store(fma(scale, load(x + at + i, lanes), Vector()).keep(kept >> i), y + at + i, lanes);
    };
    int64_t i = 0;
    const int64_t elements = least(64, end - at);
    for (; i + W <= elements; i += W) some(i, Full{});
    if (i < elements) some(i, static_cast<int>(elements - i));
  }
}

// --- the table -------------------------------------------------------------------------------------------------------

template <class T>
constexpr Kernels<T> in_fp32() {
  return {nullptr,   nullptr, nullptr,     project<T>,           expand<T>,         contract<T>,
          expand<T>, drop<T>, rms_norm<T>, rms_norm_backward<T>, rms_norm_weight<T>};
}

}  // namespace
}  // namespace ftengine::cpu
