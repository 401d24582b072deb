// torch.ops.ftengine for CPU: check, pack the small operands, allocate, share the work out among torch's threads.
//
// ftengine/ops/schemas.py holds the schemas, reference.py the meaning. Only LibTorch's stable ABI is used.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>

#include "cpu/bfloat16.h"
#include "cpu/choose.h"
#include "cpu/scratch.h"

namespace ftengine::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsATask = 1 << 15;  // fewer are not worth another thread

// --- checks ----------------------------------------------------------------------------------------------------------

void check_large(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 2, name, " must have two dimensions; it has ", x.dim());
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, name, " is ",
                  torch::headeronly::toString(x.scalar_type()), "; kernels exist for Float and BFloat16");
}

void check_small(const Tensor& a, const char* name, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(a.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(a.dim() == 2 && a.size(0) == rows && a.size(1) == columns, name, " must be (", rows, ", ", columns,
                  ")");
}

// The rank that a (r, L) or b (L, r) has.
int64_t rank_of(const Tensor& factor, const char* name, int64_t dimension) {
  STD_TORCH_CHECK(factor.dim() == 2, name, " must have two dimensions; it has ", factor.dim());
  const int64_t rank = factor.size(dimension);
  STD_TORCH_CHECK(rank >= 1 && rank <= kMaxRank, "rank is ", rank, "; kernels exist for 1 to ", kMaxRank);
  return rank;
}

void check_same(const Tensor& x, const char* name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(x.size(0) == other.size(0) && x.size(1) == other.size(1) && x.scalar_type() == other.scalar_type(),
                  name, " and ", other_name, " must agree in shape and dtype");
}

Dropout read_dropout(double p, const std::optional<Tensor>& seed) {
  const double level = p * 65536;
  STD_TORCH_CHECK(level >= 0 && level < 65536 && level == std::floor(level), "p is ", p,
                  "; it must be a multiple of 1/65536 in [0, 1)");
  if (level == 0) return {0, 0};
  STD_TORCH_CHECK(seed.has_value(), "dropout with p = ", p, " needs a seed; draw one with ftengine.ops.draw_seed()");
  STD_TORCH_CHECK(seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                  "seed must be a () int64 tensor on the CPU");
  return {static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr())), static_cast<int>(level)};
}

float inverse(Dropout dropout) { return 65536.0f / static_cast<float>(65536 - dropout.level); }  // 1 / (1 - p)

// --- dtypes ----------------------------------------------------------------------------------------------------------

// Calls body(T{}) with the element type of x.
template <class Body>
auto by_large_type(const Tensor& x, const Body& body) {
  return x.scalar_type() == ScalarType::Float ? body(float{}) : body(bfloat16{});
}

template <class Body>
void by_small_type(const Tensor& a, const Body& body) {
  switch (a.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::Double:
      return body(double{});
    default:
      STD_TORCH_CHECK(false, torch::headeronly::toString(a.scalar_type()),
                      " is no dtype of low-rank factors: they are Float, BFloat16, Half or Double");
  }
}

// Asked for once an operator: another instruction set may be chosen at any time.
template <class T>
const Kernels<T>& chosen_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return instruction_set().float32;
  } else {
    return instruction_set().bfloat16_;
  }
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// --- small operands --------------------------------------------------------------------------------------------------

template <class Body>
void parallel(int64_t count, int64_t elements_each, const Body& body) {
  const int64_t grain = elements_each > 0 ? 1 + kElementsATask / elements_each : kElementsATask;
  torch::stable::parallel_for(0, count, grain, body);
}

// Each small operand of an operator, each of its arranged forms and the fp32 gradient have a slot of scratch memory.
class Slots {
 public:
  ~Slots() { shrink_scratch(); }

  template <class T>
  T* next(int64_t count) {
    return static_cast<T*>(scratch(slot_++, count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  int slot_ = 0;
};

constexpr int64_t kPiece = 64;  // columns: a transposed piece stays in the first-level cache

// A small matrix in fp32, row-major, rounded to T unless arranging it does that: a copy, or the tensor's own memory
// where that is the same. With one instruction set from beginning to end, whatever is chosen meanwhile.
template <class T>
class Packed {
 public:
  Packed(const Kernels<T>& kernels, Slots& slots, const Tensor& a, bool transposed)
      : kernels_(kernels), slots_(slots), rows_(a.size(transposed ? 1 : 0)), columns_(a.size(transposed ? 0 : 1)) {
    const int64_t row_stride = a.stride(transposed ? 1 : 0), column_stride = a.stride(transposed ? 0 : 1);
    const bool in_order = (column_stride == 1 || columns_ == 1) && (row_stride == columns_ || rows_ == 1);
    const bool rounds_here = !std::is_same_v<T, float> && kernels.arrange == nullptr;
    if (a.scalar_type() == ScalarType::Float && in_order && !rounds_here) {
      data_ = const_data<float>(a);
      return;
    }
    float* to = slots.next<float>(rows_ * columns_);
    data_ = to;
    by_small_type(a, [&](auto zero) {
      const auto* from = const_data<decltype(zero)>(a);
      parallel((columns_ + kPiece - 1) / kPiece, rows_ * kPiece, [=](int64_t begin, int64_t end) {
        for (int64_t first = begin * kPiece; first < std::min(end * kPiece, columns_); first += kPiece) {
          const int64_t last = std::min(first + kPiece, columns_);
          for (int64_t row = 0; row < rows_; ++row) {
            const auto* values = from + row * row_stride;
            float* out = to + row * columns_;
            for (int64_t i = first; i < last; ++i) out[i] = static_cast<float>(values[i * column_stride]);
            if (rounds_here) {
              for (int64_t i = first; i < last; ++i) out[i] = rounded(out[i]);
            }
          }
        }
      });
    });
  }

  const float* in_fp32() const { return data_; }

  // In the form that a kernel of the chosen instruction set reads.
  const void* as(Operand operand) const {
    if (kernels_.arrange == nullptr) return data_;
    void* to = slots_.template next<char>(kernels_.arranged_bytes(operand, rows_, columns_));
    kernels_.arrange(operand, data_, rows_, columns_, to);
    return to;
  }

 private:
  static float rounded(float value) {
    T result;
    round_to(value, &result);
    return to_float(result);
  }

  const Kernels<T>& kernels_;
  Slots& slots_;
  int64_t rows_, columns_;
  const float* data_;
};

// Writes (rows, columns) of fp32 as (columns, rows) of a's dtype, or as (rows, columns).
void unpack(const float* from, int64_t rows, int64_t columns, bool transposed, const Tensor& to) {
  by_small_type(to, [&](auto zero) {
    using T = decltype(zero);
    T* out = data<T>(to);
    const int64_t row_stride = transposed ? 1 : columns, column_stride = transposed ? rows : 1;
    parallel(columns, rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = begin; column < end; ++column) {
          out[row * row_stride + column * column_stride] = static_cast<T>(from[row * columns + column]);
        }
      }
    });
  });
}

// --- the operators ---------------------------------------------------------------------------------------------------

template <class T>
void project(const Kernels<T>& kernels, const T* x, const void* a, T* s, int64_t rows, int64_t length, int64_t rank,
             float factor, Dropout dropout) {
  parallel(rows, length * rank,
           [&](int64_t begin, int64_t end) { kernels.project(begin, end, x, a, s, length, rank, factor, dropout); });
}

template <class T>
void contract(const Kernels<T>& kernels, T* dx, const T* x, const void* s, const void* expand_s, const void* a,
              float* g, int64_t rows, int64_t length, int64_t rank, float factor, Dropout dropout) {
  const int64_t units = (length + kColumnUnit - 1) / kColumnUnit;
  parallel(units, rows * kColumnUnit * rank, [&](int64_t begin, int64_t end) {
    kernels.contract(begin * kColumnUnit, std::min(end * kColumnUnit, length), dx, x, s, expand_s, a, g, rows, length,
                     rank, factor, dropout);
  });
}

Tensor lowrank_shrink_cpu(const Tensor& x, const Tensor& a, double p, const std::optional<Tensor>& seed) {
  check_large(x, "x");
  const int64_t rows = x.size(0), length = x.size(1), rank = rank_of(a, "a", 0);
  check_small(a, "a", rank, length);
  const Dropout dropout = read_dropout(p, seed);
  Tensor s = torch::stable::new_empty(x, {rows, rank});
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    const Packed<T> packed_a(kernels, slots, a, false);
    project(kernels, const_data<T>(x), packed_a.as(Operand::kProjectA), data<T>(s), rows, length, rank,
            inverse(dropout), dropout);
  });
  return s;
}

void lowrank_expand_cpu_(const Tensor& y, const Tensor& s, const Tensor& b, double scale) {
  check_large(y, "y");
  const int64_t rows = y.size(0), length = y.size(1), rank = rank_of(b, "b", 1);
  check_small(b, "b", length, rank);
  check_small(s, "s", rows, rank);
  by_large_type(y, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    const void* packed_s = Packed<T>(kernels, slots, s, false).as(Operand::kExpandS);
    const void* packed_b = Packed<T>(kernels, slots, b, true).as(Operand::kExpandB);
    parallel(rows, length * rank, [&](int64_t begin, int64_t end) {
      kernels.expand(begin, end, data<T>(y), packed_s, packed_b, length, rank, static_cast<float>(scale));
    });
  });
}

std::tuple<Tensor, Tensor> lowrank_backward_output_cpu(const Tensor& dy, const Tensor& s, const Tensor& b,
                                                       double scale) {
  check_large(dy, "dy");
  const int64_t rows = dy.size(0), length = dy.size(1), rank = rank_of(b, "b", 1);
  check_small(b, "b", length, rank);
  check_small(s, "s", rows, rank);
  Tensor ds = torch::stable::new_empty(dy, {rows, rank});
  Tensor db = torch::stable::new_empty(b, {length, rank});
  by_large_type(dy, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    const T* from = const_data<T>(dy);
    const void* packed_s = Packed<T>(kernels, slots, s, false).as(Operand::kContractS);
    const void* packed_b = Packed<T>(kernels, slots, b, true).as(Operand::kProjectA);
    const float factor = static_cast<float>(scale);
    project(kernels, from, packed_b, data<T>(ds), rows, length, rank, factor, {});
    float* g = slots.next<float>(rank * length);
    contract<T>(kernels, nullptr, from, packed_s, nullptr, nullptr, g, rows, length, rank, factor, {});
    unpack(g, rank, length, true, db);
  });
  return {ds, db};
}

Tensor lowrank_backward_input_cpu_(const std::optional<Tensor>& dx, const Tensor& x, const Tensor& ds, const Tensor& a,
                                   double p, const std::optional<Tensor>& seed) {
  check_large(x, "x");
  const int64_t rows = x.size(0), length = x.size(1), rank = rank_of(a, "a", 0);
  check_small(a, "a", rank, length);
  check_small(ds, "ds", rows, rank);
  if (dx) {
    check_large(*dx, "dx");
    check_same(*dx, "dx", x, "x");
  }
  const Dropout dropout = read_dropout(p, seed);
  Tensor da = torch::stable::new_empty(a, {rank, length});
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    const Packed<T> packed_ds(kernels, slots, ds, false);
    const void *contract_ds = packed_ds.as(Operand::kContractS), *expand_ds = nullptr, *packed_a = nullptr;
    if (dx) {
      expand_ds = packed_ds.as(Operand::kExpandS);
      packed_a = Packed<T>(kernels, slots, a, false).as(Operand::kExpandB);
    }
    const bool direct = da.scalar_type() == ScalarType::Float;
    float* g = direct ? data<float>(da) : slots.next<float>(rank * length);
    contract(kernels, dx ? data<T>(*dx) : nullptr, const_data<T>(x), contract_ds, expand_ds, packed_a, g, rows, length,
             rank, inverse(dropout), dropout);
    if (!direct) unpack(g, rank, length, false, da);
  });
  return da;
}

void lowrank_merge_cpu_(const Tensor& w, const Tensor& a, const Tensor& b, double scale) {
  check_large(w, "w");
  const int64_t rows = w.size(0), length = w.size(1), rank = rank_of(a, "a", 0);
  check_small(a, "a", rank, length);
  check_small(b, "b", rows, rank);
  Slots slots;
  const Kernels<float>& in_fp32 = chosen_kernels<float>();  // a and b are not rounded to w's dtype
  const float* packed_b = Packed<float>(in_fp32, slots, b, false).in_fp32();
  const float* packed_a = Packed<float>(in_fp32, slots, a, false).in_fp32();
  by_large_type(w, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    parallel(rows, length * rank, [&](int64_t begin, int64_t end) {
      kernels.merge(begin, end, data<T>(w), packed_b, packed_a, length, rank, static_cast<float>(scale));
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ftengine, CPU, library) {
  library.impl("lowrank_shrink", TORCH_BOX(&lowrank_shrink_cpu));
  library.impl("lowrank_expand_", TORCH_BOX(&lowrank_expand_cpu_));
  library.impl("lowrank_backward_output", TORCH_BOX(&lowrank_backward_output_cpu));
  library.impl("lowrank_backward_input_", TORCH_BOX(&lowrank_backward_input_cpu_));
  library.impl("lowrank_merge_", TORCH_BOX(&lowrank_merge_cpu_));
}

}  // namespace ftengine::cpu
