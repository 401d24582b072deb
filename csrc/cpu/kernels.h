// What each instruction set provides to the operators; no torch here, so that an object file compiled for a newer
// processor shares no inline function with the rest.
//
// The long dimension L is K for x, dx and a, N for y, dy and b, K for w. Large matrices are row-major and contiguous in
// element type T. Small ones come packed: in fp32, row-major, a and the transpose of b as (r, L), s and ds as (M, r);
// rounded to T (except for merge), or arranged as the instruction set likes it, which rounds as well. A kernel works on
// a range of rows or columns, whose results depend on nothing outside it: the number of threads does not change a bit
// of the result.

#pragma once

#include <atomic>
#include <cstdint>

namespace ftengine::cpu {

struct bfloat16 {
  uint16_t bits;
};

// Dropout with p = level / 65536 under a seed; none when level is 0.
struct Dropout {
  uint64_t seed;
  int level;
};

// A small operand by the kernel that reads it: project's a, expand's s and b, contract's s. Its a is arranged as
// expand's b, and its s as expand's s as well.
enum class Operand { kProjectA, kExpandS, kExpandB, kContractS };

// n queries and P >= n keys: query i sees the first P - n + i + 1 of them (causal, aligned at the end).
struct Sequence {
  int64_t first_query, queries, first_key, keys;  // keys >= queries
};

// q (Nq, heads · groups, D), k and v (Nk, heads, D), rows of D contiguous; out, dout, dq as q and contiguous; lse (Nq,
// heads · groups), the log of the sum of a query's exponentials, in fp32; dk and dv (keys of all sequences, some_heads,
// D) in fp32.
template <class T>
struct Attention {
  const T *q, *k, *v;
  int64_t q_stride[2], k_stride[2], v_stride[2];
  const Sequence* sequences;
  const int64_t *queries, *keys;  // the tokens that they are
  int64_t heads, groups, depth;
  int64_t first_head, some_heads;  // those that are computed
  int64_t window;                  // how many keys back a query sees, itself included; 0: all
  float scale;
  T* out;
  float* lse;
  const T* dout;
  T* dq;
  float *dk, *dv;
};

// x (B, heads, L, D) of any strides, rows of D contiguous; cos and sin (B or 1, L, D); y (B, L, heads, D), contiguous.
template <class T>
struct Rotation {
  const T *x, *cos, *sin;
  T* y;
  int64_t x_stride[3];
  int64_t heads, length, depth;
  bool angles_by_batch, transposed;
};

template <class T>
struct Kernels {
  // null: the packed matrix itself serves
  int64_t (*arranged_bytes)(Operand operand, int64_t rows, int64_t columns);
  // Arranging falls into units, of which those begin <= unit < end are written; threads share them.
  int64_t (*arranged_units)(Operand operand, int64_t rows, int64_t columns);
  void (*arrange)(Operand operand, const float* packed, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                  void* to);

  // s[m] = factor · dropout(x[m]) aᵀ for rows begin <= m < end.  x (M, L), a (r, L), s (M, r), rows s_stride apart
  void (*project)(int64_t begin, int64_t end, const T* x, const void* a, T* s, int64_t s_stride, int64_t length,
                  int64_t rank, float factor, Dropout dropout);

  // y[m] += factor · s[m] b for rows begin <= m < end.  y (M, L), s (M, r), b (r, L)
  void (*expand)(int64_t begin, int64_t end, T* y, const void* s, const void* b, int64_t length, int64_t rank,
                 float factor);

  // g = factor · sᵀ dropout(x); unless dx is null, dx += factor · mask ∘ (s a). For columns begin <= l < end, begin a
  // multiple of kColumnUnit.  x, dx (M, L), s (M, r) twice: as kContractS and as kExpandS; a (r, L); g (r, L) in fp32
  void (*contract)(int64_t begin, int64_t end, T* dx, const T* x, const void* s, const void* expand_s, const void* a,
                   float* g, int64_t rows, int64_t length, int64_t rank, float factor, Dropout dropout);

  // As expand, where y is a weight and s and b are in full fp32, packed but not arranged.
  void (*merge)(int64_t begin, int64_t end, T* y, const void* s, const void* b, int64_t length, int64_t rank,
                float factor);

  // y = factor · dropout(x) for elements begin <= i < end of the mask's first row, begin a multiple of kColumnUnit.
  void (*drop)(int64_t begin, int64_t end, const T* x, T* y, float factor, Dropout dropout);

  // What elementwise.h has, for rows or columns begin <= … < end. x, y, dy, dx (M, L); w, dw (L,) and rstd (M,) in fp32
  void (*rms_norm)(int64_t begin, int64_t end, const T* x, const float* w, T* y, float* rstd, int64_t length,
                   float eps);
  void (*rms_norm_backward)(int64_t begin, int64_t end, const T* dy, const T* x, const float* w, const float* rstd,
                            T* dx, int64_t length);
  void (*rms_norm_weight)(int64_t begin, int64_t end, const T* dy, const T* x, const float* rstd, float* dw,
                          int64_t rows, int64_t length);

  // Elements begin <= i < end of contiguous operands; tokens begin <= b · L + l < end.
  void (*silu_mul)(int64_t begin, int64_t end, const T* gate, const T* up, T* y);
  void (*silu_mul_backward)(int64_t begin, int64_t end, const T* dy, const T* gate, const T* up, T* dgate, T* dup);
  void (*rotate)(int64_t begin, int64_t end, const Rotation<T>& call);

  // What attention.h has, of heads of keys begin <= i < end of sequences, some_heads · sequence + head. Each query is
  // in one sequence.
  void (*attend)(int64_t begin, int64_t end, const Attention<T>& call);
  void (*attend_backward)(int64_t begin, int64_t end, const Attention<T>& call);
};

constexpr int64_t kColumnUnit = 64;
constexpr int64_t kMaxRank = 256;

struct InstructionSet {
  const char* name;
  bool (*usable)();
  Kernels<float> float32;
  Kernels<bfloat16> bfloat16_;
};

extern const InstructionSet kBaseline;
#ifdef FTENGINE_HAVE_AVX2
extern const InstructionSet kAvx2;
#endif
#ifdef FTENGINE_HAVE_AVX512
extern const InstructionSet kAvx512;
#endif
#ifdef FTENGINE_HAVE_AVX512BF16
extern const InstructionSet kAvx512Bf16;
#endif

// The one in use: the best that was built and that this processor has, or the one asked for.
const InstructionSet& instruction_set();

// The least M·N·K from which layers have oneDNN multiply matrices of float32, not what torch takes by itself; the most
// that there is until ftengine.ops.library, which knows processor and torch, says otherwise.
extern std::atomic<int64_t> least_for_onednn;

}  // namespace ftengine::cpu
