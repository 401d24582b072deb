// How operands lie in registers and shared memory, and what tensor cores make of them.
//
// mma sums over an index that a lane shares with its quad, in whatever order, as long as both factors agree on it. So
// fragments of a large matrix are vec8 as they come from memory, eight neighbouring columns of a row, in two layouts:
//
//   by rows      lane 4g + t holds rows g and g + 8, columns 8t … 8t + 7 of 32: sums over columns (x̂ Aᵀ, dy B)
//   by columns   lane 4g + t holds rows 4t … 4t + 3, columns 8g … 8g + 7 of 64: sums over 16 rows (dSᵀ x̂, dyᵀ S),
//                and receives products of rank r (S Bᵀ, dS A) for the same elements

#pragma once

#include "device.cuh"

namespace ftengine {

using device::Shared;
using device::Vec4;
using device::Vec8;

constexpr int kTileRows = 16;     // of a warp
constexpr int kTileColumns = 64;  // of a warp: 128 bytes of each row
constexpr int kRankTile = 16;     // of an mma
constexpr int kWarps = 8;         // of a block, at most
constexpr int kThreads = 32 * kWarps;

// A large operand: rows × columns, contiguous, every vec8 at a multiple of 16 bytes.
template <typename T>
struct Dense {
  T* data;
  int64_t rows, columns;

  __device__ __forceinline__ bool inside(int64_t row, int64_t column) const { return row < rows && column < columns; }
  __device__ __forceinline__ T* at(int64_t row, int64_t column) const { return data + row * columns + column; }
};

// A factor, A or B, or its gradient: element (rank, i) of T or, where it is wide, of float.
struct Factor {
  void* data;
  bool is_wide;
  int ranks;
  int64_t length, rank_stride, stride;

  template <typename T>
  __device__ __forceinline__ uint32_t word(int rank, int64_t i) const {  // ranks rank and rank + 1, zeros outside
    return device::make_word<T>(element<T>(rank, i), element<T>(rank + 1, i));
  }
  template <typename T>
  __device__ __forceinline__ float element(int rank, int64_t i) const {
    if (rank >= ranks || i >= length) return 0.0f;
    const int64_t offset = rank * rank_stride + i * stride;
    return is_wide ? static_cast<const float*>(data)[offset] : device::to_float(static_cast<const T*>(data)[offset]);
  }
  // i … i + 7 of a rank, where they are neighbours.
  template <typename T>
  __device__ __forceinline__ Vec8 vector(int rank, int64_t i) const {
    if (rank >= ranks || i >= length) return {};
    const int64_t offset = rank * rank_stride + i;
    if (!is_wide) return device::load_vector<Vec8>(static_cast<const T*>(data) + offset);
    Vec8 vec8;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto four = device::load_vector<device::Float4>(static_cast<const float*>(data) + offset + 4 * j);
      vec8.word[2 * j] = device::make_word<T>(four.f[0], four.f[1]);
      vec8.word[2 * j + 1] = device::make_word<T>(four.f[2], four.f[3]);
    }
    return vec8;
  }
  template <typename T>
  __device__ __forceinline__ void store(int64_t offset, float value) const {
    if (is_wide) {
      static_cast<float*>(data)[offset] = value;
    } else {
      static_cast<T*>(data)[offset] = {static_cast<uint16_t>(device::make_word<T>(value, 0.0f))};
    }
  }
};

// sums (16 rows, 8 ranks) += x (16 rows, 32 columns) aᵀ, where top and bottom are x by rows, and a a lane's vec8 of
// rank g.
template <typename T>
__device__ __forceinline__ void add_over_columns(float (&sums)[4], const Vec8& top, const Vec8& bottom, const Vec8& a) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t left[4] = {top.word[i], bottom.word[i], top.word[i + 1], bottom.word[i + 1]};
    const uint32_t right[2] = {a.word[i], a.word[i + 1]};
    device::mma<T>(sums, left, right);
  }
}

// Words from one row of a shared tile to the next, such that lanes 4g + t that read vec4 t of rows g meet no bank
// twice.
__host__ __device__ __forceinline__ constexpr int padded_words(int elements) {
  return elements / 2 + (elements % 32 == 0 ? 8 : 0);
}

// A narrow matrix (M, r), S or dS, or some columns of one; and some rows of it in shared memory, as they are, or
// transposed.
template <typename T>
struct Narrow {
  T* data;
  int64_t rows, stride;
  int ranks;

  __device__ __forceinline__ void store(int64_t row, int rank, float value) const {
    data[row * stride + rank] = {static_cast<uint16_t>(device::make_word<T>(value, 0.0f))};
  }

  // Copies rows row … row + count - 1 and ranks rank … rank + width - 1, zeros outside, two by two: to word `straight`
  // by rows, to word `transposed` by ranks; neither where it is negative.
  __device__ __forceinline__ void stage(Shared& shared, int64_t row, int count, int rank, int width, int straight,
                                        int transposed) const {
    const int pairs = width / 2, straight_stride = padded_words(width), transposed_stride = padded_words(count);
    for (int i = device::thread_index(); i < count / 2 * pairs; i += device::thread_count()) {
      const int down = i / pairs, across = i % pairs;
      uint32_t top = 0, bottom = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = rank + 2 * across + j;
        const int64_t from = row + 2 * down;
        if (at < ranks && from < rows) top |= static_cast<uint32_t>(data[from * stride + at].bits) << 16 * j;
        if (at < ranks && from + 1 < rows) {
          bottom |= static_cast<uint32_t>(data[(from + 1) * stride + at].bits) << 16 * j;
        }
      }
      if (straight >= 0) {
        shared.store(straight + 2 * down * straight_stride + across, top);
        shared.store(straight + (2 * down + 1) * straight_stride + across, bottom);
      }
      if (transposed >= 0) {
        shared.store(transposed + 2 * across * transposed_stride + down, device::lows(top, bottom));
        shared.store(transposed + (2 * across + 1) * transposed_stride + down, device::highs(top, bottom));
      }
    }
  }
};

// Sums over rows: sᵀ x. A lane's share of (Ranks, 64 columns).
template <typename T, int Ranks>
struct ColumnSums {
  float c[Ranks / kRankTile][8][4] = {};

  // x: by columns. s: a transposed tile, at rank 0 and the first of the 16 rows. Ranks from `ranks` on are left out.
  __device__ __forceinline__ void add(const Vec8 (&x)[4], const Shared& s, int word, int stride, int ranks) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
#pragma unroll
    for (int tile = 0; tile < Ranks / kRankTile; ++tile) {
      if (tile * kRankTile >= ranks) break;
      const auto top = s.load<Vec4>(word + (tile * kRankTile + g) * stride + 2 * t);
      const auto bottom = s.load<Vec4>(word + (tile * kRankTile + g + 8) * stride + 2 * t);
      const uint32_t left[4] = {top.word[0], bottom.word[0], top.word[1], bottom.word[1]};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int i = j / 2;
        const uint32_t right[2] = {
            j % 2 == 0 ? device::lows(x[0].word[i], x[1].word[i]) : device::highs(x[0].word[i], x[1].word[i]),
            j % 2 == 0 ? device::lows(x[2].word[i], x[3].word[i]) : device::highs(x[2].word[i], x[3].word[i]),
        };
        device::mma<T>(c[tile][j], left, right);
      }
    }
  }

  static constexpr int kStride = kTileColumns + 8;

  // Writes to shared memory (Ranks, kStride), or adds to what is there.
  __device__ __forceinline__ void put(Shared& shared, int word, bool adds) const {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
#pragma unroll
    for (int i = 0; i < Ranks / kRankTile * 8; ++i) {
      const int tile = i / 8, element = i / 2 % 4, half = i % 2;  // c's element: rank g + 8 (e / 2), vec8 2t + e % 2
      const int at = word + (tile * kRankTile + g + 8 * (element / 2)) * kStride + 8 * (2 * t + element % 2) + 4 * half;
      device::Float4 four = {};
      if (adds) four = shared.load<device::Float4>(at);
#pragma unroll
      for (int j = 0; j < 4; ++j) four.f[j] += c[tile][4 * half + j][element];
      shared.store(at, four);
    }
  }
};

// The wide factor of a product of rank r, for some warps' columns, as fragments in shared memory: for each 16 ranks and
// quarter of the lanes' vec8, a lane's four words, which are ranks 4t … 4t + 3 of two neighbouring columns.
template <typename T>
__device__ __forceinline__ void stage_wide(Shared& shared, int word, const Factor& factor, int64_t column, int warps,
                                           int tiles) {
  const int words = warps * tiles * 4 * 32 * 4;
  for (int i = device::thread_index(); i < words; i += device::thread_count()) {
    const int part = i % 4, lane = i / 4 % 32, quarter = i / 128 % 4, tile = i / 512 % tiles, warp = i / 512 / tiles;
    const int64_t at = column + kTileColumns * warp + 8 * (lane / 4) + 2 * quarter + part % 2;
    shared.store(word + i, factor.word<T>(tile * kRankTile + 4 * (lane % 4) + 2 * (part / 2), at));
  }
}

// Products of rank r for a lane's four vec8 by columns, one half of each: registers would not suffice for whole ones.
struct Products {
  float c[2][2][4] = {};

  // wide: fragments of the warp's columns. narrow: a tile of (16 rows, 16 tiles ranks).
  template <typename T>
  __device__ __forceinline__ void add(const Shared& shared, int wide, int narrow, int stride, int tiles, int half) {
    const int lane = device::lane_index(), g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      Vec8 left[2];
      Vec4 right[2];
#pragma unroll
      for (int q = 0; q < 2; ++q) left[q] = shared.load<Vec8>(wide + ((tile * 4 + 2 * half + q) * 32 + lane) * 4);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // mma's column g is a row of ours, and a lane receives columns 2t and 2t + 1: rows 4t + 2i and 4t + 2i + 1.
        const int row = 4 * (g / 2) + 2 * i + g % 2;
        right[i] = shared.load<Vec4>(narrow + row * stride + tile * kRankTile / 2 + 2 * t);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) device::mma<T>(c[i / 2][i % 2], left[i % 2].word, right[i / 2].word);
    }
  }

  // Of the lane's row and the half's pair of columns.
  __device__ __forceinline__ float low(int row, int pair) const { return c[row / 2][pair][row % 2]; }
  __device__ __forceinline__ float high(int row, int pair) const { return c[row / 2][pair][2 + row % 2]; }
};

// Says in every thread of the block whether it is the last of `count` blocks to come here; what the others wrote before
// is then there to be read. word: one of shared memory that is free.
__device__ __forceinline__ bool arrives_last(uint32_t* counter, int count, Shared& shared, int word) {
  device::fence();
  device::barrier();
  if (device::thread_index() == 0) shared.store(word, device::atomic_add(counter, 1));
  device::barrier();
  device::fence();
  return shared.load<uint32_t>(word) == static_cast<uint32_t>(count - 1);
}

// The sum of `count` floats that blocks wrote `stride` apart, always in the same order.
__device__ __forceinline__ float sum_splits(const float* from, int count, int64_t stride) {
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += device::load_coherent(from + i * stride);
  return sum;
}

}  // namespace ftengine
