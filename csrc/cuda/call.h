// A call of an operator: checks, conversions, workspace, launches.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <list>
#include <optional>
#include <utility>

#include "cuda/runtime.h"
#include "launch.h"

namespace ftengine {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRank = 256;

// A call on the device of its first large operand: what it checks, converts and runs.
class Call {
 public:
  Call(const Tensor& large, const char* name) : large_(large), guard_(index_of(large, name)) {
    STD_TORCH_CHECK(large.scalar_type() == ScalarType::BFloat16 || large.scalar_type() == ScalarType::Half, name,
                    " is ", torch::headeronly::toString(large.scalar_type()), "; kernels exist for BFloat16 and Half");
  }

  Type type() const { return large_.scalar_type() == ScalarType::Half ? Type::kHalf : Type::kBFloat16; }

  // A large operand: its rows are whole vec8 and begin where wide accesses may.
  Matrix large(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) const {
    const Matrix matrix = check(tensor, name, rows, columns);
    STD_TORCH_CHECK(tensor.is_contiguous() && columns % 8 == 0 && is_aligned(tensor), name,
                    " must be contiguous, begin at a multiple of 16 bytes and have a multiple of 8 columns");
    return matrix;
  }
  Matrix large(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 2, name, " must have two dimensions; it has ", tensor.dim());
    return large(tensor, name, tensor.size(0), tensor.size(1));
  }
  // A large operand that is read only: copied where it begins elsewhere.
  Matrix input(const Tensor& tensor, const char* name) {
    return large(is_aligned(tensor) ? tensor : keep(torch::stable::clone(tensor)), name);
  }
  // S or dS, of any floating dtype and layout.
  Matrix narrow(const Tensor& tensor, const char* name, int64_t rows, int64_t rank) {
    check_device(tensor, name);
    const bool own = tensor.scalar_type() == large_.scalar_type();
    const Tensor rounded = own ? tensor : keep(torch::stable::to(tensor, large_.scalar_type()));
    return check(rounded.is_contiguous() ? rounded : keep(torch::stable::contiguous(rounded)), name, rows, rank);
  }
  // A result of this call.
  static Matrix matrix(const Tensor& tensor) {
    return {tensor.mutable_data_ptr(), tensor.size(0), tensor.size(1), tensor.size(1)};
  }
  // A factor of any floating dtype and layout: A (r, K), or B (N, r) where by_rank says that ranks are neighbours.
  // Kernels read float and the call's own dtype.
  Factor factor(const Tensor& tensor, const char* name, bool by_rank, int64_t rank, int64_t length) {
    check_device(tensor, name);
    const int64_t rows = by_rank ? length : rank, columns = by_rank ? rank : length;
    check_size(tensor, name, rows, columns);
    STD_TORCH_CHECK(rank >= 1 && rank <= kMaxRank, "rank is ", rank, "; kernels exist for 1 to ", kMaxRank);
    const ScalarType type = tensor.scalar_type();
    Tensor own = tensor;
    if (type != ScalarType::Float && type != large_.scalar_type()) {
      own = keep(torch::stable::to(own, type == ScalarType::Double ? ScalarType::Float : large_.scalar_type()));
    }
    if (!own.is_contiguous()) own = keep(torch::stable::contiguous(own));
    if (!is_aligned(own)) own = keep(torch::stable::clone(own));
    return {const_cast<void*>(own.const_data_ptr()),
            own.scalar_type() == ScalarType::Float,
            static_cast<int>(rank),
            length,
            by_rank ? 1 : length,
            by_rank ? rank : 1};
  }
  // A row that updates begin with: in the call's dtype, where wide accesses may begin.
  const void* bias(const Tensor& tensor, int64_t columns) {
    check_device(tensor, "bias");
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == columns, "bias must be (", columns, ",)");
    const bool own = tensor.scalar_type() == large_.scalar_type() && tensor.is_contiguous() && is_aligned(tensor);
    if (own) return tensor.const_data_ptr();
    const int64_t size[] = {columns};
    Tensor copy = torch::stable::new_empty(large_, {size, 1});
    return keep(torch::stable::copy_(copy, tensor)).const_data_ptr();
  }

  Tensor empty(int64_t rows, int64_t columns, ScalarType type) const {
    const int64_t size[] = {rows, columns};
    return torch::stable::new_empty(large_, {size, 2}, type);
  }
  Tensor empty(int64_t rows, int64_t columns) const { return empty(rows, columns, large_.scalar_type()); }
  // The gradient of a factor as a kernel writes it; `finished` makes it the factor's dtype.
  Tensor gradient(const Tensor& factor) const {
    const bool own = factor.scalar_type() == large_.scalar_type();
    return empty(factor.size(0), factor.size(1), own ? factor.scalar_type() : ScalarType::Float);
  }
  static Tensor finished(const Tensor& gradient, const Tensor& factor) {
    return gradient.scalar_type() == factor.scalar_type() ? gradient
                                                          : torch::stable::to(gradient, factor.scalar_type());
  }

  // p as a level of 1/65536, and where the seed is.
  std::pair<int, const int64_t*> dropout(double p, const std::optional<Tensor>& seed) const {
    const double level = p * 65536;
    STD_TORCH_CHECK(level >= 0 && level < 65536 && level == std::floor(level), "p is ", p,
                    "; it must be a multiple of 1/65536 in [0, 1)");
    if (level == 0) return {0, nullptr};
    STD_TORCH_CHECK(seed.has_value(), "dropout with p = ", p, " needs a seed; draw one with ftengine.ops.draw_seed()");
    check_device(*seed, "seed");
    STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "seed must be a () int64 tensor");
    return {static_cast<int>(level), static_cast<const int64_t*>(seed->const_data_ptr())};
  }

  // Runs launches one after the other, with one workspace for all.
  void run(const std::list<Plan>& plans) const {
    int64_t counters = 0, floats = 0;
    for (const Plan& plan : plans) counters += plan.counters, floats += plan.floats;
    const device::Stream stream = runtime::current_stream(large_.get_device_index());
    // Freed when the call returns; torch's allocator hands memory out in the order of the stream.
    std::optional<Tensor> workspace;
    uint32_t* counter = nullptr;
    if (counters + floats > 0) {
      workspace = empty(1, 4 * (counters + floats), ScalarType::Byte);
      counter = static_cast<uint32_t*>(workspace->mutable_data_ptr());
    }
    Workspace own{counter, reinterpret_cast<float*>(counter + counters), counter, counters};
    bool cleared = false;
    for (const Plan& plan : plans) {
      if (plan.counters > 0 && !cleared) device::zero(counter, 4 * counters, stream), cleared = true;
      if (plan.run) plan.run(stream, own);
      cleared = cleared || plan.clears;
      own.counters += plan.counters, own.floats += plan.floats;
    }
    runtime::check_launches();
  }

 private:
  static int32_t index_of(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(runtime::is_here(tensor), name, " must be on a ", runtime::kDevice,
                    " device, as other operands are");
    return tensor.get_device_index();
  }
  static bool is_aligned(const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % sizeof(Vec8) == 0;
  }
  void check_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(runtime::is_here(tensor) && tensor.get_device_index() == large_.get_device_index(), name,
                    " must be on the device of the other operands, ", runtime::kDevice, " ", large_.get_device_index());
  }
  void check_size(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) const {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, name, " must be (", rows,
                    ", ", columns, ")");
  }
  Matrix check(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) const {
    check_device(tensor, name);
    check_size(tensor, name, rows, columns);
    STD_TORCH_CHECK(tensor.scalar_type() == large_.scalar_type(), name, " must have the dtype of the other operands, ",
                    torch::headeronly::toString(large_.scalar_type()));
    return {const_cast<void*>(tensor.const_data_ptr()), rows, columns, columns};
  }
  const Tensor& keep(Tensor tensor) { return kept_.emplace_back(std::move(tensor)); }

  Tensor large_;
  runtime::Guard guard_;
  std::list<Tensor> kept_;  // converted operands, until the launches are in the stream
};

}  // namespace ftengine
