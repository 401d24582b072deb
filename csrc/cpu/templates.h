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
constexpr int64_t kStrip = 128;     // columns of a tile of x, and (r, strip) of a
constexpr int64_t kRankBlock = 64;  // long sums are sums of sums, whose rounding errors grow more slowly
static_assert(kDotTileRows % kDotRows == 0 && kStrip % kColumnUnit == 0 && kOuterRanks % 2 == 0);

FTENGINE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FTENGINE_INLINE int64_t multiple(int64_t value, int64_t of) { return (value + of - 1) / of * of; }

struct Full {};  // the number of lanes of a whole vector

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

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

struct ExpandTile {
  int64_t y_stride, b_stride, steps;
  const uint64_t* bits;  // kStrip / 64 words a row, or null
  Vector factor;
};

// --- how a kernel computes ------------------------------------------------------------------------------------------

// The kernels below are written once over a form, which has the innermost loops and the layout of small operands:
//
//   Large      of x and y; Element  of x's copies and of project's a; Factor  of s, and of expand's b
//   steps      of a sum over so many ranks or rows
//   a_stride, a_at, b_stride      where rows and columns of project's a, and rows of expand's b, lie
//   copy_row, Strip, copy_strip   copies of x, dropped elements as zeros
//   dot, update, outer, finish    what project, expand and contract do to a tile
//
// This one computes in fp32 for any T; avx512bf16.cpp has one for pairs of bf16.
template <class T>
struct InFp32 {
  using Large = T;
  using Element = float;
  using Factor = float;

  static constexpr int64_t kDotColumns = kDotTileBytes / sizeof(float);
  static constexpr int64_t kStripRows = 36;
  static constexpr int kColumns = W, kVectors = kExpandVectors;  // of a vector of y, and vectors in a tile of it
  static constexpr int64_t kOuterColumns = kOuterVectors * W;

  static FTENGINE_INLINE int64_t steps(int64_t count) { return count; }
  static FTENGINE_INLINE int64_t a_stride(int64_t length) { return length; }
  static FTENGINE_INLINE int64_t b_stride(int64_t length) { return length; }
  static FTENGINE_INLINE const float* a_at(const float* a, int64_t column, int64_t) { return a + column; }

  // Copies columns of a row of x as fp32, dropped ones as zeros, and zeros up to a multiple of 64. A copy lies in one
  // piece of cache, wherever x's rows lie, and is masked and widened once however many ranks there are. Leaves the
  // masks in bits, where that is asked for.
  template <bool kDropout>
  static FTENGINE_INLINE void copy_row(const T* x, int64_t columns, float* to, const Masks& masks, int64_t row,
                                       int64_t column, uint64_t* bits) {
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

  struct Strip {
    alignas(64) float x[kStripRows * kStrip];
  };

  template <bool kDropout, class Ahead>
  static FTENGINE_INLINE void copy_strip(const T* x, int64_t stride, int64_t rows, int64_t columns, Strip& strip,
                                         const Masks& masks, int64_t row, int64_t column, uint64_t* bits,
                                         const Ahead& fetch_ahead) {
    for (int64_t i = 0; i < rows; ++i) {
      fetch_ahead(i);
      copy_row<kDropout>(x + i * stride, columns, strip.x + i * kStrip, masks, row + i, column,
                         bits + i * (kStrip / 64));
    }
  }

  // sums[i][j] += x[i] · a[j] for kDotRows rows and kRanks ranks. Columns are cut off by a alone: x is padded with
  // zeros.
  template <int kRanks>
  static FTENGINE_INLINE void dot(const float* x, int64_t x_stride, const float* a, int64_t a_stride, int64_t columns,
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

  // y[i] += factor · mask[i] ∘ Σ_j s[i][j] b[j] for kRows rows and kVectors vectors from `column`.
  template <int kRows, int kVectors, bool kDropout, class Lanes>
  static FTENGINE_INLINE void update(const ExpandTile& tile, T* y, const float* s, const float* b, int64_t column,
                                     Lanes lanes) {
    Vector sums[kRows][kVectors];
    for (int64_t first = 0; first < tile.steps; first += kRankBlock) {
      Vector acc[kRows][kVectors];
      for (int64_t j = first; j < least(first + kRankBlock, tile.steps); ++j) {
        Vector row[kVectors];
        FTENGINE_UNROLL
        for (int v = 0; v < kVectors; ++v) row[v] = load(b + j * tile.b_stride + column + v * W, lanes);
        FTENGINE_UNROLL
        for (int i = 0; i < kRows; ++i) {
          const Vector weight(s[i * tile.steps + j]);
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

  // sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and kOuterVectors vectors; x and sums are kStrip wide.
  template <int kRanks>
  static FTENGINE_INLINE void outer(const float* x, int64_t column, int64_t rows, const float* s, int64_t s_stride,
                                    float* sums) {
    Vector acc[kRanks][kOuterVectors];
    for (int64_t i = 0; i < rows; ++i) {
      Vector values[kOuterVectors];
      FTENGINE_UNROLL
      for (int v = 0; v < kOuterVectors; ++v) values[v] = Vector::load(x + i * kStrip + column + v * W);
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

  static FTENGINE_INLINE void finish(const float* sums, float factor, float* to, int64_t columns) {
    for (int64_t i = 0; i < columns; ++i) to[i] = factor * sums[i];
  }
};

// --- project: s = factor · dropout(x) aᵀ -----------------------------------------------------------------------------

// For all rows of a tile and all ranks; sums are `multiple(rank, kDotRanks)` apart.
template <class Form, class Element = typename Form::Element>
FTENGINE_INLINE void dot_tile(const Element* x, int64_t x_stride, int64_t rows, const Element* a, int64_t a_stride,
                              int64_t columns, float* sums, int64_t rank) {
  const int64_t sums_stride = multiple(rank, kDotRanks);
  const auto ranks = [&](int64_t j, auto dot_ranks) FTENGINE_LAMBDA {
    for (int64_t i = 0; i < rows; i += kDotRows) {
      dot_ranks(x + i * x_stride, x_stride, a + j * a_stride, a_stride, columns, sums + i * sums_stride + j,
                sums_stride);
    }
  };
  int64_t j = 0;
  for (; j + kDotRanks <= rank; j += kDotRanks) ranks(j, Form::template dot<kDotRanks>);
  switch (rank - j) {
    case 1:
      return ranks(j, Form::template dot<1>);
    case 2:
      return ranks(j, Form::template dot<2>);
    case 3:
      return ranks(j, Form::template dot<3>);
  }
}

template <class Form, class T = typename Form::Large>
void project(int64_t begin, int64_t end, const T* x, const void* packed_a, T* s, int64_t s_stride, int64_t length,
             int64_t rank, float factor, Dropout dropout) {
  using Element = typename Form::Element;
  const auto* a = static_cast<const Element*>(packed_a);
  constexpr int64_t kColumns = Form::kDotColumns;
  const Masks masks(dropout);
  alignas(64) Element tile[kDotTileRows * kColumns] = {};
  float sums[kDotTileRows * kMaxRank];
  const int64_t sums_stride = multiple(rank, kDotRanks);
  const Vector scale(factor);
  for (int64_t first = begin; first < end; first += kDotTileRows) {
    const int64_t rows = least(kDotTileRows, end - first);
    for (int64_t i = 0; i < kDotTileRows * sums_stride; ++i) sums[i] = 0;
    for (int64_t column = 0; column < length; column += kColumns) {
      const int64_t columns = least(kColumns, length - column);
      for (int64_t i = 0; i < rows; ++i) {
        const T* from = x + (first + i) * length + column;
        if (dropout.level != 0) {
          Form::template copy_row<true>(from, columns, tile + i * kColumns, masks, first + i, column, nullptr);
        } else {
          Form::template copy_row<false>(from, columns, tile + i * kColumns, masks, first + i, column, nullptr);
        }
      }
      dot_tile<Form>(tile, kColumns, rows, Form::a_at(a, column, rank), Form::a_stride(length), columns, sums, rank);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = sums + i * sums_stride;
      T* to = s + (first + i) * s_stride;
      int64_t j = 0;
      for (; j + W <= rank; j += W) store(fma(scale, Vector::load(from + j), Vector()), to + j, Full{});
      if (j < rank) {
        const int lanes = static_cast<int>(rank - j);
        store(fma(scale, load(from + j, lanes), Vector()), to + j, lanes);
      }
    }
  }
}

// --- expand: y += factor · s b ---------------------------------------------------------------------------------------

template <class Form, int kRows, bool kDropout, class Factor = typename Form::Factor>
FTENGINE_INLINE void update_columns(const ExpandTile& tile, typename Form::Large* y, const Factor* s, const Factor* b,
                                    int64_t columns) {
  constexpr int kColumns = Form::kColumns, kVectors = Form::kVectors;
  int64_t column = 0;
  for (; column + kVectors * kColumns <= columns; column += kVectors * kColumns) {
    Form::template update<kRows, kVectors, kDropout>(tile, y, s, b, column, Full{});
  }
  for (; column + kColumns <= columns; column += kColumns) {
    Form::template update<kRows, 1, kDropout>(tile, y, s, b, column, Full{});
  }
  if (column < columns) {
    Form::template update<kRows, 1, kDropout>(tile, y, s, b, column, static_cast<int>(columns - column));
  }
}

template <class Form, bool kDropout, class Factor = typename Form::Factor>
void update_rows(ExpandTile tile, int64_t rows, typename Form::Large* y, const Factor* s, const Factor* b,
                 int64_t columns) {
  int64_t i = 0;
  for (; i + kExpandRows <= rows; i += kExpandRows) {
    update_columns<Form, kExpandRows, kDropout>(tile, y + i * tile.y_stride, s + i * tile.steps, b, columns);
    if (kDropout) tile.bits += kExpandRows * (kStrip / 64);
  }
  for (; i < rows; ++i) {
    update_columns<Form, 1, kDropout>(tile, y + i * tile.y_stride, s + i * tile.steps, b, columns);
    if (kDropout) tile.bits += kStrip / 64;
  }
}

template <class Form, class T = typename Form::Large>
void expand(int64_t begin, int64_t end, T* y, const void* packed_s, const void* packed_b, int64_t length, int64_t rank,
            float factor) {
  using Factor = typename Form::Factor;
  const auto *s = static_cast<const Factor*>(packed_s), *b = static_cast<const Factor*>(packed_b);
  const ExpandTile tile{length, Form::b_stride(length), Form::steps(rank), nullptr, Vector(factor)};
  for (int64_t first = begin; first < end; first += kExpandTileRows) {
    const int64_t rows = least(kExpandTileRows, end - first);
    for (int64_t column = 0; column < length; column += kExpandChunk) {
      update_rows<Form, false>(tile, rows, y + first * length + column, s + first * tile.steps, b + column,
                               least(kExpandChunk, length - column));
    }
  }
}

// --- contract: g = factor · sᵀ dropout(x); dx += factor · mask ∘ (s a) ----------------------------------------------

template <class Form, int kRanks, class Factor = typename Form::Factor>
FTENGINE_INLINE void outer_tile(const typename Form::Element* x, int64_t steps, int64_t columns, const Factor* s,
                                int64_t s_stride, float* sums, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, s += kRanks, sums += kRanks * kStrip) {
    for (int64_t column = 0; column < columns; column += Form::kOuterColumns) {
      Form::template outer<kRanks>(x, column, steps, s, s_stride, sums + column);
    }
  }
  if constexpr (kRanks > 1) outer_tile<Form, kRanks / 2>(x, steps, columns, s, s_stride, sums, ranks);
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

template <class Form, class T = typename Form::Large>
void contract(int64_t begin, int64_t end, T* dx, const T* x, const void* packed_s, const void* packed_expand_s,
              const void* packed_a, float* g, int64_t rows, int64_t length, int64_t rank, float factor,
              Dropout dropout) {
  using Factor = typename Form::Factor;
  const auto *s = static_cast<const Factor*>(packed_s), *expand_s = static_cast<const Factor*>(packed_expand_s),
             *a = static_cast<const Factor*>(packed_a);
  const Masks masks(dropout);
  typename Form::Strip strip;
  auto* sums = static_cast<float*>(scratch(kSumsSlot, rank * kStrip * static_cast<int64_t>(sizeof(float))));
  uint64_t bits[Form::kStripRows * (kStrip / 64)];
  const ExpandTile tile{length, Form::b_stride(length), Form::steps(rank), bits, Vector(factor)};
  for (int64_t column = begin; column < end; column += kStrip) {
    const int64_t columns = least(kStrip, end - column);
    for (int64_t i = 0; i < rank * kStrip; ++i) sums[i] = 0;
    for (int64_t first = 0; first < rows; first += Form::kStripRows) {
      const int64_t strip_rows = least(Form::kStripRows, rows - first);
      const T* from = x + first * length + column;
      const auto fetch_ahead = [&](int64_t i) FTENGINE_LAMBDA {
        const int64_t offset = ahead_of(first + i + Form::kStripRows, rows, column, end, length);
        prefetch_strip<0>(x + offset);
        if (dx != nullptr) prefetch_strip<1>(dx + offset);
      };
      if (dropout.level != 0) {
        Form::template copy_strip<true>(from, length, strip_rows, columns, strip, masks, first, column, bits,
                                        fetch_ahead);
      } else {
        Form::template copy_strip<false>(from, length, strip_rows, columns, strip, masks, first, column, bits,
                                         fetch_ahead);
      }
      outer_tile<Form, kOuterRanks>(strip.x, Form::steps(strip_rows), columns, s + Form::steps(first) * rank, rank,
                                    sums, rank);
      if (dx == nullptr) continue;
      T* to = dx + first * length + column;
      if (dropout.level != 0) {
        update_rows<Form, true>(tile, strip_rows, to, expand_s + first * tile.steps, a + column, columns);
      } else {
        update_rows<Form, false>(tile, strip_rows, to, expand_s + first * tile.steps, a + column, columns);
      }
    }
    for (int64_t j = 0; j < rank; ++j) Form::finish(sums + j * kStrip, factor, g + j * length + column, columns);
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

// --- rotate: y = cos ∘ x + sin ∘ (-x₂, x₁), or its transpose ---------------------------------------------

template <class T>
void rotate(int64_t begin, int64_t end, const Rotation<T>& call) {
  const int64_t half = call.depth / 2;
  const Vector minus(-1.0f);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t batch = item / call.length, token = item % call.length;
    const int64_t angle = (call.angles_by_batch ? item : token) * call.depth;
    const T *cos = call.cos + angle, *sin = call.sin + angle;
    for (int64_t head = 0; head < call.heads; ++head) {
      const T* x = call.x + batch * call.x_stride[0] + head * call.x_stride[1] + token * call.x_stride[2];
      T* y = call.y + (item * call.heads + head) * call.depth;
      const auto some = [&](int64_t i, auto lanes) FTENGINE_LAMBDA {
        const Vector first = load(x + i, lanes), second = load(x + half + i, lanes);
        const Vector sin1 = fma(load(sin + i, lanes), minus, Vector()), sin2 = load(sin + half + i, lanes);
        const Vector one = fma(call.transposed ? sin2 : sin1, second, Vector());
        const Vector two = fma(call.transposed ? sin1 : sin2, first, Vector());
        store(fma(load(cos + i, lanes), first, one), y + i, lanes);
        store(fma(load(cos + half + i, lanes), second, two), y + half + i, lanes);
      };
      int64_t i = 0;
      for (; i + W <= half; i += W) some(i, Full{});
      if (i < half) some(i, static_cast<int>(half - i));
    }
  }
}

}  // namespace
}  // namespace ftengine::cpu

#include "cpu/attention.h"

namespace ftengine::cpu {
namespace {

// --- the table -------------------------------------------------------------------------------------------------------

// Where a form's small operands are not the packed matrices themselves, it has arranged_bytes, arranged_units and
// arrange.
template <class Form, class T = typename Form::Large>
constexpr Kernels<T> kernels_of(decltype(Kernels<T>::arranged_bytes) bytes = nullptr,
                                decltype(Kernels<T>::arranged_units) units = nullptr,
                                decltype(Kernels<T>::arrange) arrange = nullptr) {
  return {bytes,
          units,
          arrange,
          project<Form>,
          expand<Form>,
          contract<Form>,
          expand<InFp32<T>>,
          drop<T>,
          rms_norm<T>,
          rms_norm_backward<T>,
          rms_norm_weight<T>,
          silu_mul<T>,
          silu_mul_backward<T>,
          rotate<T>,
          attend<T>,
          attend_backward<T>};
}

}  // namespace
}  // namespace ftengine::cpu
