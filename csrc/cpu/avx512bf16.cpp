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
FTENGINE_INLINE __mmask32 first_halves(Full) { return ~0u; }
FTENGINE_INLINE __mmask32 first_halves(int n) { return (1u << n) - 1; }
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

constexpr int64_t kPairColumns = kDotTileBytes / sizeof(bfloat16);
constexpr int64_t kPairStrip = 2 * kStrip;  // halves of a pair of rows

struct InPairs {
  using Large = bfloat16;
  using Element = uint16_t;
  using Factor = uint32_t;

  static constexpr int64_t kDotColumns = kPairColumns;
  static constexpr int64_t kStripRows = 60;
  static constexpr int kColumns = kPairWidth, kVectors = 2;
  static constexpr int64_t kOuterColumns = kPairWidth;

  static FTENGINE_INLINE int64_t steps(int64_t count) { return pairs(count); }
  static FTENGINE_INLINE int64_t a_stride(int64_t) { return kPairColumns; }
  static FTENGINE_INLINE int64_t b_stride(int64_t length) { return multiple(length, kPairWidth); }
  static FTENGINE_INLINE const uint16_t* a_at(const uint16_t* a, int64_t column, int64_t rank) {
    return a + column / kPairColumns * kPairColumns * rank + column % kPairColumns;
  }

  template <bool kDropout>
  static FTENGINE_INLINE void copy_row(const bfloat16* x, int64_t columns, uint16_t* to, const Masks& masks,
                                       int64_t row, int64_t column, uint64_t* bits) {
    const auto store = [to](int64_t at, __m512i value) FTENGINE_LAMBDA { _mm512_store_si512(to + at, value); };
    copy_halves<kDropout>(x, columns, masks, row, column, bits, store);
  }

  // Pairs of rows, interleaved. That leaves 32 columns in the order 0-3, 8-11, 16-19, 24-27, then 4-7, 12-15, …; sums
  // keep it, finish() undoes it.
  struct Strip {
    alignas(64) uint16_t x[kStripRows / 2 * kPairStrip];
  };

  // Copies a tile of x by pairs of rows, after an odd last row zeros.
  template <bool kDropout, class Ahead>
  static FTENGINE_INLINE void copy_strip(const bfloat16* x, int64_t stride, int64_t rows, int64_t columns, Strip& strip,
                                         const Masks& masks, int64_t row, int64_t column, uint64_t* bits,
                                         const Ahead& fetch_ahead) {
    for (int64_t i = 0; i < rows; i += 2) {
      __m512i even[kStrip / kPairWidth], odd[kStrip / kPairWidth];
      const auto keep_row = [&](int64_t k, __m512i* to) FTENGINE_LAMBDA {
        fetch_ahead(k);
        copy_halves<kDropout>(x + k * stride, columns, masks, row + k, column, bits + k * (kStrip / 64),
                              [to](int64_t at, __m512i value) FTENGINE_LAMBDA { to[at / kPairWidth] = value; });
      };
      keep_row(i, even);
      if (i + 1 < rows) {
        keep_row(i + 1, odd);
      } else {
        for (__m512i& value : odd) value = _mm512_setzero_si512();
      }
      uint16_t* to = strip.x + i / 2 * kPairStrip;
      for (int64_t v = 0; v * kPairWidth < columns; ++v, to += 2 * kPairWidth) {
        _mm512_store_si512(to, _mm512_unpacklo_epi16(even[v], odd[v]));
        _mm512_store_si512(to + kPairWidth, _mm512_unpackhi_epi16(even[v], odd[v]));
      }
    }
  }

  // sums[i][j] += x[i] · a[j] for kDotRows rows and kRanks ranks, both padded with zeros.
  template <int kRanks>
  static FTENGINE_INLINE void dot(const uint16_t* x, int64_t x_stride, const uint16_t* a, int64_t a_stride,
                                  int64_t columns, float* sums, int64_t sums_stride) {
    Vector acc[kDotRows][kDotRanks];
    for (int64_t column = 0; column < columns; column += kPairWidth) {
      __m512i values[kDotRows];
      FTENGINE_UNROLL
      for (int i = 0; i < kDotRows; ++i) values[i] = _mm512_load_si512(x + i * x_stride + column);
      FTENGINE_UNROLL
      for (int j = 0; j < kRanks; ++j) {
        const __m512i factor = _mm512_load_si512(a + j * a_stride + column);
        FTENGINE_UNROLL
        for (int i = 0; i < kDotRows; ++i) acc[i][j].lanes = product(acc[i][j].lanes, values[i], factor);
      }
    }
    FTENGINE_UNROLL
    for (int i = 0; i < kDotRows; ++i) add_sums(acc[i], sums + i * sums_stride);
  }

  // y[i] += factor · mask[i] ∘ Σ_j s[i][j] b[j] for kRows rows and kVectors times 32 columns from `column`, the last of
  // which `lanes` cuts off.
  template <int kRows, int kVectors, bool kDropout, class Lanes>
  static FTENGINE_INLINE void update(const ExpandTile& tile, bfloat16* y, const uint32_t* s, const uint32_t* b,
                                     int64_t column, Lanes lanes) {
    const __mmask32 present = first_halves(lanes);
    __m512 acc[kRows][2 * kVectors];
    FTENGINE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      FTENGINE_UNROLL
      for (int v = 0; v < 2 * kVectors; ++v) acc[i][v] = _mm512_setzero_ps();
    }
    for (int64_t j = 0; j < tile.steps; ++j) {
      __m512i row[2 * kVectors];
      FTENGINE_UNROLL
      for (int v = 0; v < 2 * kVectors; ++v) row[v] = _mm512_load_si512(b + j * tile.b_stride + column + v * W);
      FTENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const __m512i weight = _mm512_set1_epi32(static_cast<int>(s[i * tile.steps + j]));
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
        low = _mm512_fmadd_ps(tile.factor.lanes, low, widen(_mm512_castsi512_si256(old)));
        high = _mm512_fmadd_ps(tile.factor.lanes, high, widen(_mm512_extracti64x4_epi64(old, 1)));
        _mm512_mask_storeu_epi16(to, present, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
      }
    }
  }

  // sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and 32 columns.
  template <int kRanks>
  static FTENGINE_INLINE void outer(const uint16_t* x, int64_t column, int64_t row_pairs, const uint32_t* s,
                                    int64_t s_stride, float* sums) {
    __m512 acc[kRanks][2];
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) acc[j][0] = acc[j][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < row_pairs; ++i) {
      const __m512i low = _mm512_load_si512(x + i * kPairStrip + 2 * column),
                    high = _mm512_load_si512(x + i * kPairStrip + 2 * column + kPairWidth);
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

  static FTENGINE_INLINE void finish(const float* sums, float factor, float* to, int64_t columns) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m512 scale = _mm512_set1_ps(factor);
    for (; columns > 0; columns -= kPairWidth, sums += kPairWidth, to += kPairWidth) {
      const __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + W);
      const __m512 left = _mm512_mul_ps(scale, _mm512_permutex2var_ps(low, first, high));
      const __m512 right = _mm512_mul_ps(scale, _mm512_permutex2var_ps(low, second, high));
      _mm512_mask_storeu_ps(to, first_lanes(columns), left);
      if (columns > W) _mm512_mask_storeu_ps(to + W, first_lanes(columns - W), right);
    }
  }
};

// --- arranging and the table
// -------------------------------------------------------------------------------------------------------

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
    "avx512bf16", [] { return kAvx512.usable() && __builtin_cpu_supports("avx512bf16"); }, kernels_of<InFp32<float>>(),
    kernels_of<InPairs>(arranged_bytes, arranged_units, arrange)};

}  // namespace ftengine::cpu
