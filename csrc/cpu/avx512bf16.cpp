// bf16 through AVX-512-BF16's products of pairs, twice as fast as fp32's: acc += x[2i] a[2i] + x[2i+1] a[2i+1].
//
// The pairs lie along the sum: columns for project, ranks for expand, rows for contract. These instructions take
// subnormal numbers (below 1.2e-38) for zeros and make none, where the other instruction sets keep them.

#define FTENGINE_VECTOR "cpu/vector_avx512.h"
#include "cpu/templates.h"

namespace ftengine::cpu {
namespace {

constexpr int kPairWidth = 2 * W;  // columns in a vector of bf16

FTENGINE_INLINE int64_t pairs(int64_t count) { return (count + 1) / 2; }
FTENGINE_INLINE __mmask32 first_halves(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }
FTENGINE_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xFFFF : n > 0 ? static_cast<__mmask16>((1u << n) - 1) : 0;
}

// Rounded to bf16, lane by lane: low in the lower half, high in the upper.
FTENGINE_INLINE __m512i pair(__m512 low, __m512 high) {
  const __m512i order = _mm512_or_si512(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_setr_epi32(16 << 16, 17 << 16, 18 << 16, 19 << 16, 20 << 16, 21 << 16, 22 << 16, 23 << 16, 24 << 16,
                        25 << 16, 26 << 16, 27 << 16, 28 << 16, 29 << 16, 30 << 16, 31 << 16));
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// (rows, columns) -> (pairs of rows, columns), columns begin <= column < end of them; after an odd last row come zeros.
void pair_rows(const float* from, int64_t rows, int64_t columns, int64_t begin, int64_t end, uint32_t* to,
               int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += 2, to += to_stride) {
    const float *even = from + i * columns, *odd = even + columns;
    const bool both = i + 1 < rows;
    int64_t column = begin;
    for (; column + W <= end; column += W) {
      const __m512 high = both ? _mm512_loadu_ps(odd + column) : _mm512_setzero_ps();
      _mm512_storeu_si512(to + column, pair(_mm512_loadu_ps(even + column), high));
    }
    if (column < end) {
      const __mmask16 lanes = first_lanes(end - column);
      const __m512 high = _mm512_maskz_loadu_ps(both ? lanes : 0, odd + column);
      _mm512_mask_storeu_epi32(to + column, lanes, pair(_mm512_maskz_loadu_ps(lanes, even + column), high));
    }
  }
}

// `count` numbers, rounded, and zeros up to the end of the vector.
FTENGINE_INLINE void round_row(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i += W) {
    const __m512 values = _mm512_maskz_loadu_ps(first_lanes(count - i), from + i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
  }
}

// (rows, rank) -> (rows, pairs of ranks); after an odd last rank comes a zero.
void pair_ranks(const float* from, int64_t rows, int64_t rank, uint32_t* to) {
  alignas(64) uint16_t row[kMaxRank + W];
  for (int64_t i = 0; i < rows; ++i, to += pairs(rank)) {
    round_row(from + i * rank, rank, row);
    __builtin_memcpy(to, row, static_cast<uint64_t>(pairs(rank)) * sizeof *to);
  }
}

FTENGINE_INLINE __m512 product(__m512 acc, __m512i x, __m512i a) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(a));
}

// Copies columns of a row of x, dropped ones as zeros, and zeros up to a multiple of 64: calls store(at, 32 columns).
template <bool kDropout, class Store>
FTENGINE_INLINE void copy_halves(const bfloat16* x, int64_t columns, const Masks& masks, int64_t row, int64_t column,
                                 uint64_t* bits, const Store& store) {
  for (int64_t at = 0; at < columns; at += 64) {
    const uint64_t kept = kDropout ? masks(row, column + at) : ~uint64_t{0};
    if (kDropout && bits != nullptr) bits[at / 64] = kept;
    if (at + 64 <= columns && !kDropout) {
      store(at, _mm512_loadu_si512(x + at));
      store(at + kPairWidth, _mm512_loadu_si512(x + at + kPairWidth));
    } else {
      const uint64_t present = columns - at >= 64 ? kept : kept & ((uint64_t{1} << (columns - at)) - 1);
      store(at, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(present), x + at));
      store(at + kPairWidth, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(present >> 32), x + at + kPairWidth));
    }
  }
}

// --- project ---------------------------------------------------------------------------------------------------------

constexpr int64_t kPairColumns = kDotTileBytes / sizeof(bfloat16);
static_assert(kPairColumns >= kChunkColumns && kPairColumns % kPartUnit == 0 && kPartUnit % kStrip == 0);

// sums[i][j] += x[i] · a[j] for kDotRows rows and kRanks ranks, both padded with zeros; a's rows are kPairColumns
// apart.
template <int kRanks>
FTENGINE_INLINE void dot_pairs(const uint16_t* x, int64_t x_stride, const uint16_t* a, int64_t columns, float* sums,
                               int64_t sums_stride) {
  Vector acc[kDotRows][kDotRanks];
  for (int64_t column = 0; column < columns; column += kPairWidth) {
    __m512i values[kDotRows];
    FTENGINE_UNROLL
    for (int i = 0; i < kDotRows; ++i) values[i] = _mm512_load_si512(x + i * x_stride + column);
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const __m512i factor = _mm512_load_si512(a + j * kPairColumns + column);
      FTENGINE_UNROLL
      for (int i = 0; i < kDotRows; ++i) acc[i][j].lanes = product(acc[i][j].lanes, values[i], factor);
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < kDotRows; ++i) add_sums(acc[i], sums + i * sums_stride);
}

FTENGINE_INLINE void dot_pairs_tile(const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* a,
                                    int64_t columns, float* sums, int64_t rank) {
  const int64_t sums_stride = multiple(rank, kDotRanks);
  const auto ranks = [&](int64_t j, auto dot_ranks) FTENGINE_LAMBDA {
    for (int64_t i = 0; i < rows; i += kDotRows) {
      dot_ranks(x + i * x_stride, x_stride, a + j * kPairColumns, columns, sums + i * sums_stride + j, sums_stride);
    }
  };
  int64_t j = 0;
  for (; j + kDotRanks <= rank; j += kDotRanks) ranks(j, dot_pairs<kDotRanks>);
  switch (rank - j) {
    case 1:
      return ranks(j, dot_pairs<1>);
    case 2:
      return ranks(j, dot_pairs<2>);
    case 3:
      return ranks(j, dot_pairs<3>);
  }
}

// (r, L) -> (chunks of kPairColumns, r, kPairColumns), chunks begin <= chunk < end of them; zeros up to the end of the
// last vector of pairs.
void round_chunks(const float* a, int64_t length, int64_t rank, int64_t begin, int64_t end, uint16_t* to) {
  to += begin * kPairColumns * rank;
  for (int64_t column = begin * kPairColumns; column < least(end * kPairColumns, length); column += kPairColumns) {
    const int64_t columns = least(kPairColumns, length - column);
    for (int64_t j = 0; j < rank; ++j, to += kPairColumns) {
      round_row(a + j * length + column, columns, to);
      for (int64_t i = multiple(columns, W); i < multiple(columns, kPairWidth); ++i) to[i] = 0;
    }
  }
}

void project_pairs(int64_t begin, int64_t end, const bfloat16* x, const void* arranged_a, bfloat16* s, int64_t length,
                   int64_t rank, float factor, Dropout dropout) {
  const auto* a = static_cast<const uint16_t*>(arranged_a);
  const Masks masks(dropout);
  alignas(64) uint16_t tile[kDotTileRows * kPairColumns] = {};
  float sums[kDotTileRows * kMaxRank];
  const int64_t sums_stride = multiple(rank, kDotRanks);
  for (int64_t first = begin; first < end; first += kDotTileRows) {
    const int64_t rows = least(kDotTileRows, end - first);
    for (int64_t i = 0; i < kDotTileRows * sums_stride; ++i) sums[i] = 0;
    for (int64_t column = 0; column < length; column += kPairColumns) {
      const int64_t columns = least(kPairColumns, length - column);
      for (int64_t i = 0; i < rows; ++i) {
        const bfloat16* from = x + (first + i) * length + column;
        uint16_t* to = tile + i * kPairColumns;
        const auto store = [to](int64_t at, __m512i value) FTENGINE_LAMBDA { _mm512_store_si512(to + at, value); };
        if (dropout.level != 0) {
          copy_halves<true>(from, columns, masks, first + i, column, nullptr, store);
        } else {
          copy_halves<false>(from, columns, masks, first + i, column, nullptr, store);
        }
      }
      dot_pairs_tile(tile, kPairColumns, rows, a + column * rank, columns, sums, rank);
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rank; ++j) round_to(factor * sums[i * sums_stride + j], s + (first + i) * rank + j);
    }
  }
}

// --- expand ----------------------------------------------------------------------------------------------------------

struct PairTile {
  int64_t y_stride, b_stride, pairs;
  const uint64_t* bits;  // kStrip / 64 words a row, or null
  __m512 factor;
};

// y[i] += factor · mask[i] ∘ Σ_j s[i][j] b[j] for kRows rows and kVectors times 32 columns from `column`, the last of
// which `present` cuts off.
template <int kRows, int kVectors, bool kDropout>
FTENGINE_INLINE void update_pairs(const PairTile& tile, bfloat16* y, const uint32_t* s, const uint32_t* b,
                                  int64_t column, __mmask32 present) {
  __m512 acc[kRows][2 * kVectors];
  FTENGINE_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FTENGINE_UNROLL
    for (int v = 0; v < 2 * kVectors; ++v) acc[i][v] = _mm512_setzero_ps();
  }
  for (int64_t j = 0; j < tile.pairs; ++j) {
    __m512i row[2 * kVectors];
    FTENGINE_UNROLL
    for (int v = 0; v < 2 * kVectors; ++v) row[v] = _mm512_load_si512(b + j * tile.b_stride + column + v * W);
    FTENGINE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(s[i * tile.pairs + j]));
      FTENGINE_UNROLL
      for (int v = 0; v < 2 * kVectors; ++v) acc[i][v] = product(acc[i][v], weight, row[v]);
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FTENGINE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = column + v * kPairWidth;
      bfloat16* to = y + i * tile.y_stride + at;
      const __m512i old = _mm512_maskz_loadu_epi16(present, to);
      __m512 low = acc[i][2 * v], high = acc[i][2 * v + 1];
      if constexpr (kDropout) {
        const auto kept = static_cast<__mmask32>(tile.bits[i * (kStrip / 64) + at / 64] >> (at % 64));
        low = _mm512_maskz_mov_ps(static_cast<__mmask16>(kept), low);
        high = _mm512_maskz_mov_ps(static_cast<__mmask16>(kept >> 16), high);
      }
      const auto widen = [](__m256i halves) FTENGINE_LAMBDA {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
      };
      low = _mm512_fmadd_ps(tile.factor, low, widen(_mm512_castsi512_si256(old)));
      high = _mm512_fmadd_ps(tile.factor, high, widen(_mm512_extracti64x4_epi64(old, 1)));
      _mm512_mask_storeu_epi16(to, present, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
}

template <int kRows, bool kDropout>
FTENGINE_INLINE void update_pairs_columns(const PairTile& tile, bfloat16* y, const uint32_t* s, const uint32_t* b,
                                          int64_t columns) {
  constexpr int64_t kBoth = 2 * kPairWidth;
  int64_t column = 0;
  for (; column + kBoth <= columns; column += kBoth) {
    update_pairs<kRows, 2, kDropout>(tile, y, s, b, column, ~0u);
  }
  for (; column < columns; column += kPairWidth) {
    update_pairs<kRows, 1, kDropout>(tile, y, s, b, column, first_halves(columns - column));
  }
}

template <bool kDropout>
void update_pairs_rows(PairTile tile, int64_t rows, bfloat16* y, const uint32_t* s, const uint32_t* b,
                       int64_t columns) {
  int64_t i = 0;
  for (; i + kExpandRows <= rows; i += kExpandRows) {
    update_pairs_columns<kExpandRows, kDropout>(tile, y + i * tile.y_stride, s + i * tile.pairs, b, columns);
    if (kDropout) tile.bits += kExpandRows * (kStrip / 64);
  }
  for (; i < rows; ++i) {
    update_pairs_columns<1, kDropout>(tile, y + i * tile.y_stride, s + i * tile.pairs, b, columns);
    if (kDropout) tile.bits += kStrip / 64;
  }
}

void expand_pairs(int64_t begin, int64_t end, bfloat16* y, const void* arranged_s, const void* arranged_b,
                  int64_t length, int64_t rank, float factor) {
  const auto *s = static_cast<const uint32_t*>(arranged_s), *b = static_cast<const uint32_t*>(arranged_b);
  const PairTile tile{length, multiple(length, kPairWidth), pairs(rank), nullptr, _mm512_set1_ps(factor)};
  for (int64_t first = begin; first < end; first += kExpandTileRows) {
    for (int64_t column = 0; column < length; column += kExpandChunk) {
      update_pairs_rows<false>(tile, least(kExpandTileRows, end - first), y + first * length + column,
                               s + first * tile.pairs, b + column, least(kExpandChunk, length - column));
    }
  }
}

// --- contract --------------------------------------------------------------------------------------------------------

// Pairs of rows, interleaved. That leaves 32 columns in the order 0-3, 8-11, 16-19, 24-27, then 4-7, 12-15, …; sums
// keep it, in_order() undoes it.
constexpr int64_t kPairStrip = 2 * kStrip;  // halves of a pair of rows
constexpr int64_t kPairStripRows = 60;
static_assert(kPairStripRows % 12 == 0 && kPairColumns % kStrip == 0);

// sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and 32 columns.
template <int kRanks>
FTENGINE_INLINE void outer_pairs(const uint16_t* x, int64_t row_pairs, const uint32_t* s, int64_t s_stride,
                                 float* sums) {
  __m512 acc[kRanks][2];
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) acc[j][0] = acc[j][1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < row_pairs; ++i) {
    const __m512i low = _mm512_load_si512(x + i * kPairStrip),
                  high = _mm512_load_si512(x + i * kPairStrip + kPairWidth);
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(s[i * s_stride + j]));
      acc[j][0] = product(acc[j][0], weight, low);
      acc[j][1] = product(acc[j][1], weight, high);
    }
  }
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) {
    float* to = sums + j * kStrip;
    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), acc[j][0]));
    _mm512_store_ps(to + W, _mm512_add_ps(_mm512_load_ps(to + W), acc[j][1]));
  }
}

template <int kRanks>
FTENGINE_INLINE void outer_pairs_tile(const uint16_t* x, int64_t row_pairs, int64_t columns, const uint32_t* s,
                                      int64_t s_stride, float* sums, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, s += kRanks, sums += kRanks * kStrip) {
    for (int64_t column = 0; column < columns; column += kPairWidth) {
      outer_pairs<kRanks>(x + 2 * column, row_pairs, s, s_stride, sums + column);
    }
  }
  if constexpr (kRanks > 1) outer_pairs_tile<kRanks / 2>(x, row_pairs, columns, s, s_stride, sums, ranks);
}

// Copies a tile of x by pairs of rows, after an odd last row zeros, and by rows unless by_rows is null.
template <bool kDropout, class Ahead>
FTENGINE_INLINE void copy_row_pairs(const bfloat16* x, int64_t stride, int64_t rows, int64_t columns, uint16_t* tile,
                                    uint16_t* by_rows, const Masks& masks, int64_t row, int64_t column, uint64_t* bits,
                                    const Ahead& fetch_ahead) {
  for (int64_t i = 0; i < rows; i += 2) {
    __m512i even[kStrip / kPairWidth], odd[kStrip / kPairWidth];
    const auto keep_row = [&](int64_t k, __m512i* to) FTENGINE_LAMBDA {
      fetch_ahead(k);
      copy_halves<kDropout>(x + k * stride, columns, masks, row + k, column, bits + k * (kStrip / 64),
                            [=](int64_t at, __m512i value) FTENGINE_LAMBDA {
                              to[at / kPairWidth] = value;
                              if (by_rows != nullptr) _mm512_store_si512(by_rows + k * kStrip + at, value);
                            });
    };
    keep_row(i, even);
    if (i + 1 < rows) {
      keep_row(i + 1, odd);
    } else {
      for (__m512i& value : odd) value = _mm512_setzero_si512();
    }
    uint16_t* to = tile + i / 2 * kPairStrip;
    for (int64_t v = 0; v * kPairWidth < columns; ++v, to += 2 * kPairWidth) {
      _mm512_store_si512(to, _mm512_unpacklo_epi16(even[v], odd[v]));
      _mm512_store_si512(to + kPairWidth, _mm512_unpackhi_epi16(even[v], odd[v]));
    }
  }
}

FTENGINE_INLINE void in_order(const float* sums, __m512 factor, float* to, int64_t columns) {
  const __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + W);
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  const __m512 left = _mm512_mul_ps(factor, _mm512_permutex2var_ps(low, first, high));
  const __m512 right = _mm512_mul_ps(factor, _mm512_permutex2var_ps(low, second, high));
  _mm512_mask_storeu_ps(to, first_lanes(columns), left);
  if (columns > W) _mm512_mask_storeu_ps(to + W, first_lanes(columns - W), right);
}

void contract_pairs(int64_t begin, int64_t end, bfloat16* dx, const bfloat16* x, const void* arranged_s,
                    const void* arranged_expand_s, const void* arranged_a, const void* arranged_b, float* g,
                    float* partial, int64_t rows, int64_t length, int64_t rank, float factor, Dropout dropout) {
  const auto* s_by_rows = static_cast<const uint32_t*>(arranged_s);
  const auto* s_by_ranks = static_cast<const uint32_t*>(arranged_expand_s);
  const auto* a = static_cast<const uint32_t*>(arranged_a);
  const auto* b = static_cast<const uint16_t*>(arranged_b);
  const Masks masks(dropout);
  alignas(64) uint16_t tile[kPairStripRows / 2 * kPairStrip];
  alignas(64) uint16_t row_tile[kPairStripRows * kStrip] = {};
  uint16_t* by_rows = partial == nullptr ? nullptr : row_tile;
  auto* sums = static_cast<float*>(scratch(kSumsSlot, rank * kStrip * static_cast<int64_t>(sizeof(float))));
  uint64_t bits[kPairStripRows * (kStrip / 64)];
  const PairTile pair_tile{length, multiple(length, kPairWidth), pairs(rank), bits, _mm512_set1_ps(factor)};
  for (int64_t column = begin; column < end; column += kStrip) {
    const int64_t columns = least(kStrip, end - column);
    for (int64_t i = 0; i < rank * kStrip; ++i) sums[i] = 0;
    for (int64_t first = 0; first < rows; first += kPairStripRows) {
      const int64_t tile_rows = least(kPairStripRows, rows - first);
      const bfloat16* from = x + first * length + column;
      const auto fetch_ahead = [&](int64_t i) FTENGINE_LAMBDA {
        const int64_t offset = ahead_of(first + i + kPairStripRows, rows, column, end, length);
        prefetch_strip<0>(x + offset);
        if (dx != nullptr) prefetch_strip<1>(dx + offset);
      };
      if (dropout.level != 0) {
        copy_row_pairs<true>(from, length, tile_rows, columns, tile, by_rows, masks, first, column, bits, fetch_ahead);
      } else {
        copy_row_pairs<false>(from, length, tile_rows, columns, tile, by_rows, masks, first, column, bits, fetch_ahead);
      }
      outer_pairs_tile<kOuterRanks>(tile, pairs(tile_rows), columns, s_by_rows + first / 2 * rank, rank, sums, rank);
      if (partial != nullptr) {
        const uint16_t* factors = b + column / kPairColumns * kPairColumns * rank + column % kPairColumns;
        dot_pairs_tile(row_tile, kStrip, tile_rows, factors, columns, partial + first * partial_stride(rank), rank);
      }
      if (dx == nullptr) continue;
      const uint32_t* weights = s_by_ranks + first * pairs(rank);
      bfloat16* to = dx + first * length + column;
      if (dropout.level != 0) {
        update_pairs_rows<true>(pair_tile, tile_rows, to, weights, a + column, columns);
      } else {
        update_pairs_rows<false>(pair_tile, tile_rows, to, weights, a + column, columns);
      }
    }
    for (int64_t j = 0; j < rank; ++j) {
      for (int64_t at = 0; at < columns; at += kPairWidth) {
        in_order(sums + j * kStrip + at, _mm512_set1_ps(factor), g + j * length + column + at, columns - at);
      }
    }
  }
}

// --- the table -------------------------------------------------------------------------------------------------------

// Rows are r or M, columns L or r, as they come. Rows of 32-bit pairs for expand are padded to whole vectors.
int64_t arranged_bytes(Operand operand, int64_t rows, int64_t columns) {
  switch (operand) {
    case Operand::kProjectA:
      return rows * multiple(columns, kPairColumns) * static_cast<int64_t>(sizeof(uint16_t));
    case Operand::kExpandS:
      return rows * pairs(columns) * static_cast<int64_t>(sizeof(uint32_t));
    case Operand::kExpandB:
      return pairs(rows) * multiple(columns, kPairWidth) * static_cast<int64_t>(sizeof(uint32_t));
    case Operand::kContractS:
      return pairs(rows) * columns * static_cast<int64_t>(sizeof(uint32_t));
  }
  return 0;
}

constexpr int64_t kArrangedColumns = 512;  // of expand's b in a unit

int64_t arranged_units(Operand operand, int64_t rows, int64_t columns) {
  switch (operand) {
    case Operand::kProjectA:
      return (columns + kPairColumns - 1) / kPairColumns;
    case Operand::kExpandS:
      return rows;
    case Operand::kExpandB:
      return (columns + kArrangedColumns - 1) / kArrangedColumns;
    case Operand::kContractS:
      return pairs(rows);
  }
  return 0;
}

void arrange(Operand operand, const float* packed, int64_t rows, int64_t columns, int64_t begin, int64_t end,
             void* to) {
  auto* to_pairs = static_cast<uint32_t*>(to);
  switch (operand) {
    case Operand::kProjectA:
      return round_chunks(packed, columns, rows, begin, end, static_cast<uint16_t*>(to));
    case Operand::kExpandS:
      return pair_ranks(packed + begin * columns, end - begin, columns, to_pairs + begin * pairs(columns));
    case Operand::kExpandB:
      return pair_rows(packed, rows, columns, begin * kArrangedColumns, least(end * kArrangedColumns, columns),
                       to_pairs, multiple(columns, kPairWidth));
    case Operand::kContractS:
      return pair_rows(packed + 2 * begin * columns, least(2 * end, rows) - 2 * begin, columns, 0, columns,
                       to_pairs + begin * columns, columns);
  }
}

}  // namespace

const InstructionSet kAvx512Bf16 = {
    "avx512bf16",
    [] { return kAvx512.usable() && __builtin_cpu_supports("avx512bf16"); },
    in_fp32<float>(),
    {arranged_bytes, arranged_units, arrange, project_pairs, expand_pairs, contract_pairs, expand<bfloat16>,
     drop<bfloat16>, rms_norm<bfloat16>, rms_norm_backward<bfloat16>, rms_norm_weight<bfloat16>}};

}  // namespace ftengine::cpu
