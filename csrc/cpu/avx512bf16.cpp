// bf16 through AVX-512-BF16's products of pairs, twice as fast as fp32's: acc += x[2i] a[2i] + x[2i+1] a[2i+1].
//
// The pairs lie along the sum: columns for project, ranks for expand, rows for contract. Small operands arrive in fp32,
// rounded to bf16 already, so that their upper halves are all there is; they are packed into pairs once a task.

#include <cstdlib>

#include "cpu/vector_avx512.h"

#include "cpu/templates.h"

namespace ftengine::cpu {
namespace {

constexpr int kPairWidth = 2 * W;  // columns in a vector of bf16

// Memory of one task. Aligned, so that whole vectors may be read and written up to the padded end.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {
    if (data_ == nullptr) std::abort();  // a few bytes a column: nothing else would have worked either
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

FTENGINE_INLINE int64_t pairs(int64_t count) { return (count + 1) / 2; }
FTENGINE_INLINE int64_t padded(int64_t columns) { return (columns + kPairWidth - 1) / kPairWidth * kPairWidth; }
FTENGINE_INLINE __mmask32 first_halves(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }
FTENGINE_INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1); }

FTENGINE_INLINE __m512i load_bits(const float* from, __mmask16 lanes) {
  return _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes, from));
}

// Lane by lane (upper half of low) | (upper half of high) << 16.
FTENGINE_INLINE __m512i pair(__m512i low, __m512i high) {
  return _mm512_mask_mov_epi16(_mm512_srli_epi32(low, 16), 0xAAAAAAAA, high);
}

// (rows, columns) -> (pairs of rows, columns); after an odd last row come zeros.
void pair_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, uint32_t* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t column = 0; column < columns; column += W) {
      const __mmask16 lanes = first_lanes(columns - column);
      const __m512i low = load_bits(from + i * stride + column, lanes);
      const __m512i high = load_bits(from + (i + 1) * stride + column, i + 1 < rows ? lanes : 0);
      _mm512_mask_storeu_epi32(to + i / 2 * to_stride + column, lanes, pair(low, high));
    }
  }
}

// (rows, rank) -> (rows, pairs of ranks)
void pair_ranks(const float* from, int64_t rows, int64_t rank, uint32_t* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < rank; j += 2) {
      uint32_t low, high = 0;
      __builtin_memcpy(&low, from + i * rank + j, sizeof low);
      if (j + 1 < rank) __builtin_memcpy(&high, from + i * rank + j + 1, sizeof high);
      *to++ = low >> 16 | (high & 0xFFFF0000);
    }
  }
}

FTENGINE_INLINE __m512 product(__m512 acc, __m512i x, __m512i a) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(a));
}

FTENGINE_INLINE __mmask32 kept_halves(const uint8_t* bits, int64_t column) {
  uint32_t mask;
  __builtin_memcpy(&mask, bits + column / 8, sizeof mask);
  return mask;
}

// --- project ---------------------------------------------------------------------------------------------------------

template <int kRows, int kRanks, bool kDropout>
FTENGINE_INLINE void dot_pairs(const DotTile& tile, const bfloat16* x, const uint16_t* a, float* sums) {
  __m512 acc[kRows][kRanks];
  FTENGINE_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) acc[i][j] = _mm512_setzero_ps();
  }
  for (int64_t column = 0; column < tile.length; column += kPairWidth) {
    const __mmask32 present = first_halves(tile.length - column);
    __m512i values[kRows];
    FTENGINE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const __mmask32 mask = kDropout ? present & kept_halves(tile.bits + i * tile.bits_stride, column) : present;
      values[i] = _mm512_maskz_loadu_epi16(mask, x + i * tile.x_stride + column);
    }
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const __m512i factor = _mm512_load_si512(a + j * tile.a_stride + column);
      FTENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) acc[i][j] = product(acc[i][j], values[i], factor);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kRanks; ++j) sums[i * tile.sums_stride + j] += _mm512_reduce_add_ps(acc[i][j]);
  }
}

template <int kRows, int kRanks, bool kDropout>
void dot_pairs_ranks(const DotTile& tile, const bfloat16* x, const uint16_t* a, float* sums, int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, a += kRanks * tile.a_stride, sums += kRanks) {
    dot_pairs<kRows, kRanks, kDropout>(tile, x, a, sums);
  }
  if constexpr (kRanks > 1) {
    if (ranks > 0) dot_pairs_ranks<kRows, kRanks / 2, kDropout>(tile, x, a, sums, ranks);
  }
}

template <bool kDropout>
void dot_pairs_rows(DotTile tile, int64_t rows, const bfloat16* x, const uint16_t* a, float* sums, int64_t rank) {
  int64_t i = 0;
  for (; i + kDotRows <= rows; i += kDotRows, tile.bits += kDotRows * tile.bits_stride) {
    dot_pairs_ranks<kDotRows, kDotRanks, kDropout>(tile, x + i * tile.x_stride, a, sums + i * rank, rank);
  }
  for (; i < rows; ++i, tile.bits += tile.bits_stride) {
    dot_pairs_ranks<1, kDotRanks, kDropout>(tile, x + i * tile.x_stride, a, sums + i * rank, rank);
  }
}

void project_pairs(int64_t begin, int64_t end, const bfloat16* x, const float* a, bfloat16* s, int64_t length,
                   int64_t rank, float factor, Dropout dropout) {
  const PhiloxKeys keys(dropout.seed);
  const int64_t stride = padded(length);
  const Scratch<uint16_t> packed(rank * stride);
  for (int64_t j = 0; j < rank; ++j) {
    for (int64_t column = 0; column < stride; column += W) {
      const __m512i bits = load_bits(a + j * length + column, first_lanes(length > column ? length - column : 0));
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed.get() + j * stride + column),
                         _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    }
  }
  Mask<kRowTile, kDotChunk> mask;
  float sums[kRowTile * kMaxRank];
  for (int64_t first = begin; first < end; first += kRowTile) {
    const int64_t rows = least(kRowTile, end - first);
    for (int64_t i = 0; i < rows * rank; ++i) sums[i] = 0;
    for (int64_t column = 0; column < length; column += kDotChunk) {
      const int64_t columns = least(kDotChunk, length - column);
      const DotTile tile{length, columns, stride, rank, mask.row(0), mask.kStride};
      const bfloat16* from = x + first * length + column;
      if (dropout.level != 0) {
        mask.fill(keys, dropout.level - 32768, first, rows, column, columns);
        dot_pairs_rows<true>(tile, rows, from, packed.get() + column, sums, rank);
      } else {
        dot_pairs_rows<false>(tile, rows, from, packed.get() + column, sums, rank);
      }
    }
    for (int64_t i = 0; i < rows * rank; ++i) round_to(factor * sums[i], s + first * rank + i);
  }
}

// --- expand ----------------------------------------------------------------------------------------------------------

struct PairTile {
  int64_t y_stride, s_stride, b_stride, pairs;
  const uint8_t* bits;
  int64_t bits_stride;
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
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(s[i * tile.s_stride + j]));
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
        const __mmask32 kept = kept_halves(tile.bits + i * tile.bits_stride, at);
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
    update_pairs_columns<kExpandRows, kDropout>(tile, y + i * tile.y_stride, s + i * tile.s_stride, b, columns);
    if (kDropout) tile.bits += kExpandRows * tile.bits_stride;
  }
  for (; i < rows; ++i) {
    update_pairs_columns<1, kDropout>(tile, y + i * tile.y_stride, s + i * tile.s_stride, b, columns);
    if (kDropout) tile.bits += tile.bits_stride;
  }
}

void expand_pairs(int64_t begin, int64_t end, bfloat16* y, const float* s, const float* b, int64_t length, int64_t rank,
                  float factor) {
  const int64_t stride = padded(length);
  const Scratch<uint32_t> b_pairs(pairs(rank) * stride), s_pairs((end - begin) * pairs(rank));
  pair_rows(b, length, rank, length, b_pairs.get(), stride);
  pair_ranks(s + begin * rank, end - begin, rank, s_pairs.get());
  const PairTile tile{length, pairs(rank), stride, pairs(rank), nullptr, 0, _mm512_set1_ps(factor)};
  for (int64_t first = begin; first < end; first += kRowTile) {
    for (int64_t column = 0; column < length; column += kExpandChunk) {
      update_pairs_rows<false>(tile, least(kRowTile, end - first), y + first * length + column,
                               s_pairs.get() + (first - begin) * pairs(rank), b_pairs.get() + column,
                               least(kExpandChunk, length - column));
    }
  }
}

// --- contract --------------------------------------------------------------------------------------------------------

// sums[j] += Σ_i s[i][j] x[i] for kRanks ranks and 32 columns, rows by pairs. Interleaving two rows leaves the columns
// in the order 0-3, 8-11, 16-19, 24-27, then 4-7, 12-15, …; sums keep it, in_order() undoes it.
template <int kRanks, bool kDropout>
FTENGINE_INLINE void outer_pairs(const OuterTile& tile, const bfloat16* x, const uint32_t* s, float* sums,
                                 int64_t column, __mmask32 present) {
  __m512 acc[kRanks][2];
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) acc[j][0] = acc[j][1] = _mm512_setzero_ps();
  const auto row = [&](int64_t i) FTENGINE_LAMBDA {
    const __mmask32 mask = kDropout ? present & kept_halves(tile.bits + i * tile.bits_stride, column) : present;
    return _mm512_maskz_loadu_epi16(mask, x + i * tile.x_stride + column);
  };
  for (int64_t i = 0; i < tile.rows; i += 2) {
    const __m512i even = row(i), odd = i + 1 < tile.rows ? row(i + 1) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    FTENGINE_UNROLL
    for (int j = 0; j < kRanks; ++j) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(s[i / 2 * tile.s_stride + j]));
      acc[j][0] = product(acc[j][0], weight, low);
      acc[j][1] = product(acc[j][1], weight, high);
    }
  }
  FTENGINE_UNROLL
  for (int j = 0; j < kRanks; ++j) {
    float* to = sums + j * kStrip + column;
    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), acc[j][0]));
    _mm512_store_ps(to + W, _mm512_add_ps(_mm512_load_ps(to + W), acc[j][1]));
  }
}

template <int kRanks, bool kDropout>
void outer_pairs_ranks(const OuterTile& tile, const bfloat16* x, const uint32_t* s, float* sums, int64_t columns,
                       int64_t ranks) {
  for (; ranks >= kRanks; ranks -= kRanks, s += kRanks, sums += kRanks * kStrip) {
    for (int64_t column = 0; column < columns; column += kPairWidth) {
      outer_pairs<kRanks, kDropout>(tile, x, s, sums, column, first_halves(columns - column));
    }
  }
  if constexpr (kRanks > 1) {
    if (ranks > 0) outer_pairs_ranks<kRanks / 2, kDropout>(tile, x, s, sums, columns, ranks);
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

void contract_pairs(int64_t begin, int64_t end, bfloat16* dx, const bfloat16* x, const float* s, const float* a,
                    float* g, int64_t rows, int64_t length, int64_t rank, float factor, Dropout dropout) {
  const PhiloxKeys keys(dropout.seed);
  const Scratch<uint32_t> s_by_rows(pairs(rows) * rank), s_by_ranks(dx ? rows * pairs(rank) : 0);
  const Scratch<uint32_t> a_pairs(dx ? pairs(rank) * kStrip : 0);
  pair_rows(s, rank, rows, rank, s_by_rows.get(), rank);
  if (dx) pair_ranks(s, rows, rank, s_by_ranks.get());
  Mask<kStripRows, kStrip> mask;
  alignas(64) float sums[kMaxRank * kStrip];
  for (int64_t column = begin; column < end; column += kStrip) {
    const int64_t columns = least(kStrip, end - column);
    for (int64_t i = 0; i < rank * kStrip; ++i) sums[i] = 0;
    if (dx) pair_rows(a + column, length, rank, columns, a_pairs.get(), kStrip);
    for (int64_t first = 0; first < rows; first += kStripRows) {
      const int64_t tile_rows = least(kStripRows, rows - first);
      const OuterTile outer_tile{tile_rows, length, rank, mask.row(0), mask.kStride};
      const PairTile pair_tile{length, pairs(rank), kStrip, pairs(rank), mask.row(0), mask.kStride,
                               _mm512_set1_ps(factor)};
      const uint32_t* by_rows = s_by_rows.get() + first / 2 * rank;
      const uint32_t* by_ranks = s_by_ranks.get() + first * pairs(rank);
      const bfloat16* from = x + first * length + column;
      bfloat16* to = dx + first * length + column;
      if (dropout.level != 0) {
        mask.fill(keys, dropout.level - 32768, first, tile_rows, column, columns);
        outer_pairs_ranks<kOuterRanks, true>(outer_tile, from, by_rows, sums, columns, rank);
        if (dx) update_pairs_rows<true>(pair_tile, tile_rows, to, by_ranks, a_pairs.get(), columns);
      } else {
        outer_pairs_ranks<kOuterRanks, false>(outer_tile, from, by_rows, sums, columns, rank);
        if (dx) update_pairs_rows<false>(pair_tile, tile_rows, to, by_ranks, a_pairs.get(), columns);
      }
    }
    for (int64_t j = 0; j < rank; ++j) {
      for (int64_t at = 0; at < columns; at += kPairWidth) {
        in_order(sums + j * kStrip + at, _mm512_set1_ps(factor), g + j * length + column + at, columns - at);
      }
    }
  }
}

}  // namespace

const InstructionSet kAvx512Bf16 = {"avx512bf16",
                                    [] { return kAvx512.usable() && __builtin_cpu_supports("avx512bf16"); },
                                    {project<float>, expand<float>, contract<float>, expand<float>},
                                    {project_pairs, expand_pairs, contract_pairs, expand<bfloat16>}};

}  // namespace ftengine::cpu
