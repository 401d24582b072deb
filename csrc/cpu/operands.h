// What the operators share: checks, packing of small operands, and the sharing out of work among torch's threads.
//
// Only LibTorch's stable ABI is used.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/bfloat16.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace ftengine::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsATask = 1 << 15;  // fewer are not worth another thread

// --- checks ----------------------------------------------------------------------------------------------------------

// That the storage holds what the sizes say: it may have been resized or freed under its tensor.
void check_storage(const Tensor& x, const char* name) {
  int64_t last = 0, offset = 0, bytes = 0;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) == 0) return;
    last += (x.size(d) - 1) * x.stride(d);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(x.get(), &offset));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  const int64_t needed = (offset + last + 1) * static_cast<int64_t>(x.element_size());
  STD_TORCH_CHECK(bytes >= needed, name, " needs ", needed, " bytes of storage; its storage has ", bytes);
}

void check_large_type(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, name, " is ",
                  torch::headeronly::toString(x.scalar_type()), "; kernels exist for Float and BFloat16");
  check_storage(x, name);
}

void check_large(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, name, " must have two dimensions; it has ", x.dim());
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  check_large_type(x, name);
}

void check_small(const Tensor& a, const char* name, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(a.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(a.dim() == 2 && a.size(0) == rows && a.size(1) == columns, name, " must be (", rows, ", ", columns,
                  ")");
  check_storage(a, name);
}

// The rank that a (r, L) or b (L, r) has.
int64_t rank_of(const Tensor& factor, const char* name, int64_t dimension) {
  STD_TORCH_CHECK(factor.dim() == 2, name, " must have two dimensions; it has ", factor.dim());
  const int64_t rank = factor.size(dimension);
  STD_TORCH_CHECK(rank >= 1 && rank <= kMaxRank, "rank is ", rank, "; kernels exist for 1 to ", kMaxRank);
  return rank;
}

void check_same(const Tensor& x, const char* name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(x.sizes().equals(other.sizes()) && x.scalar_type() == other.scalar_type(), name, " and ", other_name,
                  " must agree in shape and dtype");
}

// n, where p = n / 65536.
int dropout_level(double p) {
  const double level = p * 65536;
  STD_TORCH_CHECK(level >= 0 && level < 65536 && level == std::floor(level), "p is ", p,
                  "; it must be a multiple of 1/65536 in [0, 1)");
  return static_cast<int>(level);
}

Dropout read_dropout(double p, const std::optional<Tensor>& seed) {
  const int level = dropout_level(p);
  if (level == 0) return {0, 0};
  STD_TORCH_CHECK(seed.has_value(), "dropout with p = ", p, " needs a seed; draw one with ftengine.ops.draw_seed()");
  STD_TORCH_CHECK(seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                  "seed must be a () int64 tensor on the CPU");
  check_storage(*seed, "seed");
  return {static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr())), level};
}

float inverse(Dropout dropout) { return 65536.0f / static_cast<float>(65536 - dropout.level); }  // 1 / (1 - p)

// --- dtypes ----------------------------------------------------------------------------------------------------------

// Calls body(T{}) with the element type of x.
template <class Body>
auto by_large_type(const Tensor& x, const Body& body) {
  return x.scalar_type() == ScalarType::Float ? body(float{}) : body(bfloat16{});
}

template <class Body>
void by_small_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::Double:
      return body(double{});
    default:
      STD_TORCH_CHECK(false, torch::headeronly::toString(type),
                      " is no dtype of low-rank factors: they are Float, BFloat16, Half or Double");
  }
}

template <class T>
constexpr ScalarType kTypeOf = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::BFloat16;

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

  // For a loop, whose rounds use the same slots.
  int used() const { return slot_; }
  void use_again_from(int slot) { slot_ = slot; }

 private:
  int slot_ = 0;
};

// A small matrix wherever it lies.
struct View {
  const void* data;
  ScalarType type;
  int64_t rows, columns, row_stride, column_stride;
};

View view(const Tensor& a, bool transposed = false) {
  const int row = transposed ? 1 : 0, column = 1 - row;
  return {a.const_data_ptr(), a.scalar_type(), a.size(row), a.size(column), a.stride(row), a.stride(column)};
}

constexpr int64_t kPiece = 64;  // columns: a transposed piece stays in the first-level cache

template <class T>
float rounded(float value) {
  T result;
  round_to(value, &result);
  return to_float(result);
}

// Copies a matrix to fp32, row-major, rounded to T where asked.
template <class T>
void copy_to_fp32(const View& from, bool round, float* to) {
  by_small_type(from.type, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(from.data);
    const auto copy = [=](int64_t row, int64_t end, int64_t first, int64_t last) {
      for (; row < end; ++row) {
        const auto* values = data + row * from.row_stride;
        float* out = to + row * from.columns;
        for (int64_t i = first; i < last; ++i) out[i] = static_cast<float>(values[i * from.column_stride]);
        if (round) {
          for (int64_t i = first; i < last; ++i) out[i] = rounded<T>(out[i]);
        }
      }
    };
    if (from.rows > from.columns) {
      parallel(from.rows, from.columns, [&](int64_t begin, int64_t end) { copy(begin, end, 0, from.columns); });
      return;
    }
    parallel((from.columns + kPiece - 1) / kPiece, from.rows * kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * kPiece; first < std::min(end * kPiece, from.columns); first += kPiece) {
        copy(0, from.rows, first, std::min(first + kPiece, from.columns));
      }
    });
  });
}

// A small matrix in fp32, row-major, rounded to T unless arranging it does that: a copy, or the operand's own memory
// where that is the same. Several of equal width are stacked. With one instruction set from beginning to end, whatever
// is chosen meanwhile.
template <class T>
class Packed {
 public:
  Packed(const Kernels<T>& kernels, Slots& slots, const std::vector<View>& parts)
      : kernels_(kernels), slots_(slots), columns_(parts[0].columns) {
    for (const View& part : parts) rows_ += part.rows;
    const View& first = parts[0];
    const bool in_order = (first.column_stride == 1 || columns_ == 1) && (first.row_stride == columns_ || rows_ == 1);
    const bool round = !std::is_same_v<T, float> && kernels.arrange == nullptr;
    if (parts.size() == 1 && first.type == ScalarType::Float && in_order && !round) {
      data_ = static_cast<const float*>(first.data);
      return;
    }
    float* to = slots.next<float>(rows_ * columns_);
    data_ = to;
    for (const View& part : parts) {
      copy_to_fp32<T>(part, round, to);
      to += part.rows * columns_;
    }
  }

  Packed(const Kernels<T>& kernels, Slots& slots, const View& part) : Packed(kernels, slots, std::vector<View>{part}) {}

  const float* in_fp32() const { return data_; }

  // In the form that a kernel of the chosen instruction set reads.
  const void* as(Operand operand) const {
    if (kernels_.arrange == nullptr) return data_;
    void* to = slots_.template next<char>(kernels_.arranged_bytes(operand, rows_, columns_));
    const int64_t units = kernels_.arranged_units(operand, rows_, columns_);
    parallel(units, units > 0 ? rows_ * columns_ / units : 0,
             [&](int64_t begin, int64_t end) { kernels_.arrange(operand, data_, rows_, columns_, begin, end, to); });
    return to;
  }

 private:
  const Kernels<T>& kernels_;
  Slots& slots_;
  int64_t rows_ = 0, columns_;
  const float* data_;
};

// Writes (rows, columns) of fp32 as (columns, rows) of a's dtype, or as (rows, columns).
void unpack(const float* from, int64_t rows, int64_t columns, bool transposed, const Tensor& to) {
  by_small_type(to.scalar_type(), [&](auto zero) {
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

// One where there are no columns: s is to be written all the same.
int64_t column_units(int64_t length) { return std::max<int64_t>((length + kColumnUnit - 1) / kColumnUnit, 1); }

// --- kernels over all rows or columns --------------------------------------------------------------------------------

template <class T>
void shrink(const Kernels<T>& kernels, Slots& slots, const T* x, const std::vector<View>& a, T* s, int64_t rows,
            int64_t length, int64_t rank, Dropout dropout) {
  const void* packed_a = Packed<T>(kernels, slots, a).as(Operand::kProjectA);
  parallel(rows, length * rank, [&](int64_t begin, int64_t end) {
    kernels.project(begin, end, x, packed_a, s, rank, length, rank, inverse(dropout), dropout);
  });
}

template <class T>
void expand(const Kernels<T>& kernels, Slots& slots, T* y, const View& s, const View& b, int64_t rows, double scale) {
  const int64_t rank = b.rows, length = b.columns;
  const void* packed_s = Packed<T>(kernels, slots, s).as(Operand::kExpandS);
  const void* packed_b = Packed<T>(kernels, slots, b).as(Operand::kExpandB);
  parallel(rows, length * rank, [&](int64_t begin, int64_t end) {
    kernels.expand(begin, end, y, packed_s, packed_b, length, rank, static_cast<float>(scale));
  });
}

// ds = scale · dy bᵀ, its rows `ds_stride` apart, and db = scale · dyᵀ s; b comes as (r, N).
template <class T>
void backward_output(const Kernels<T>& kernels, Slots& slots, const T* dy, const View& s, const View& b, T* ds,
                     int64_t ds_stride, const Tensor& db, int64_t rows, double scale) {
  const int64_t rank = b.rows, length = b.columns;
  const float factor = static_cast<float>(scale);
  const void* packed_s = Packed<T>(kernels, slots, s).as(Operand::kContractS);
  const void* packed_b = Packed<T>(kernels, slots, b).as(Operand::kProjectA);
  float* g = slots.next<float>(rank * length);
  // Threads share both at once: units of columns, then as many of rows, which are as much work.
  const int64_t units = column_units(length);
  parallel(2 * units, rows * kColumnUnit * rank, [&](int64_t begin, int64_t end) {
    if (begin < units) {
      kernels.contract(begin * kColumnUnit, std::min(std::min(end, units) * kColumnUnit, length), nullptr, dy, packed_s,
                       nullptr, nullptr, g, rows, length, rank, factor, {});
    }
    if (end > units) {
      kernels.project(std::max<int64_t>(begin - units, 0) * rows / units, (end - units) * rows / units, dy, packed_b,
                      ds, ds_stride, length, rank, factor, {});
    }
  });
  unpack(g, rank, length, true, db);
}

// g = dsᵀ dropout(x) and, unless dx is null, dx += mask ∘ (ds a) / (1 - p).
template <class T>
void backward_input(const Kernels<T>& kernels, Slots& slots, T* dx, const T* x, const View& ds,
                    const std::vector<View>& a, float* g, int64_t rows, int64_t length, Dropout dropout) {
  const int64_t rank = ds.columns;
  const Packed<T> packed_ds(kernels, slots, ds);
  const void *contract_ds = packed_ds.as(Operand::kContractS), *expand_ds = nullptr, *packed_a = nullptr;
  if (dx != nullptr) {
    expand_ds = packed_ds.as(Operand::kExpandS);
    packed_a = Packed<T>(kernels, slots, a).as(Operand::kExpandB);
  }
  parallel(column_units(length), rows * kColumnUnit * rank, [&](int64_t begin, int64_t end) {
    kernels.contract(begin * kColumnUnit, std::min(end * kColumnUnit, length), dx, x, contract_ds, expand_ds, packed_a,
                     g, rows, length, rank, inverse(dropout), dropout);
  });
}

}  // namespace
}  // namespace ftengine::cpu
