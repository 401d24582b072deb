// torch.ops.ftengine for CUDA: check, guard the device, allocate, launch, register.
//
// ftengine/ops/schemas.py holds the schemas, reference.py the meaning. Only LibTorch's stable ABI is used, so this
// compiles and links against a torch without CUDA, and one build serves every torch from 2.10 on.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "launch.h"

// Weak: a torch without CUDA has no such symbol, and must be able to load this library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace ftengine {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRank = 256;

Type type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::Double:
      return Type::kDouble;
    default:
      STD_TORCH_CHECK(false, name, " is ", torch::headeronly::toString(tensor.scalar_type()),
                      "; kernels exist for Float, BFloat16 and Half, with factors in these or Double");
  }
}

void check_rank(int64_t rank) {
  STD_TORCH_CHECK(rank >= 1 && rank <= kMaxRank, "rank is ", rank, "; kernels exist for 1 to ", kMaxRank);
}

// What a call needs besides its operands: the device made current, its stream, and workspace.
class Call {
 public:
  explicit Call(const Tensor& large) : large_(large), guard_(large.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA; install one that has");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(large.get_device_index(), &stream));
    context_.stream = static_cast<cudaStream_t>(stream);
    // Freed when the call returns; torch's allocator hands memory out in the order of the stream.
    context_.allocate = [this](size_t bytes) {
      const int64_t size[] = {static_cast<int64_t>(bytes)};
      workspace_.push_back(torch::stable::new_empty(large_, {size, 1}, ScalarType::Byte));
      return workspace_.back().mutable_data_ptr();
    };
  }

  const Context& context() const { return context_; }

  // A contiguous operand of the kernel's own dtypes.
  Matrix large(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.is_contiguous(), name,
                    " must be contiguous and of two dimensions; it has ", tensor.dim());
    STD_TORCH_CHECK(tensor.scalar_type() == large_.scalar_type(), name, " must have the dtype of the other operands, ",
                    torch::headeronly::toString(large_.scalar_type()));
    STD_TORCH_CHECK(tensor.scalar_type() != ScalarType::Double, name,
                    " is Double; kernels exist for Float, BFloat16 and Half");
    return small(tensor, name, tensor.size(0), tensor.size(1));
  }

  // An operand of any floating dtype and strides, of the shape given.
  Matrix small(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == large_.get_device_index(), name,
                    " must be on the device of the other operands, cuda:", large_.get_device_index());
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, name, " must be (", rows,
                    ", ", columns, ")");
    return {const_cast<void*>(tensor.const_data_ptr()),
            type_of(tensor, name),
            rows,
            columns,
            tensor.stride(0),
            tensor.stride(1)};
  }

  Tensor empty(const Tensor& like, int64_t rows, int64_t columns) const {
    const int64_t size[] = {rows, columns};
    return torch::stable::new_empty(like, {size, 2});
  }

  void finish() const {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "a low-rank kernel did not launch: ", cudaGetErrorString(error));
  }

 private:
  Tensor large_;
  torch::stable::accelerator::DeviceGuard guard_;
  Context context_;
  std::vector<Tensor> workspace_;
};

// p as a multiple of 1/65536, and where the seed is.
std::tuple<int, const int64_t*> read_dropout(double p, const std::optional<Tensor>& seed, const Tensor& x) {
  const double level = p * 65536;
  STD_TORCH_CHECK(level >= 0 && level < 65536 && level == std::floor(level), "p is ", p,
                  "; it must be a multiple of 1/65536 in [0, 1)");
  if (level == 0) return {0, nullptr};
  STD_TORCH_CHECK(seed.has_value(), "dropout with p = ", p, " needs a seed; draw one with ftengine.ops.draw_seed()");
  STD_TORCH_CHECK(seed->is_cuda() && seed->get_device_index() == x.get_device_index() &&
                      seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                  "seed must be a () int64 tensor on x's device");
  return {static_cast<int>(level), static_cast<const int64_t*>(seed->const_data_ptr())};
}

Tensor lowrank_shrink_cuda(Tensor x, Tensor a, double p, std::optional<Tensor> seed) {
  Call call(x);
  const Matrix x_matrix = call.large(x, "x");
  const int64_t rank = a.size(0);
  check_rank(rank);
  const auto [level, seed_data] = read_dropout(p, seed, x);
  const Tensor s = call.empty(x, x.size(0), rank);
  launch_lowrank_shrink(call.context(), call.large(s, "s"), x_matrix, call.small(a, "a", rank, x.size(1)), level,
                        seed_data);
  call.finish();
  return s;
}

void lowrank_expand_cuda(Tensor y, Tensor s, Tensor b, double scale) {
  Call call(y);
  const Matrix y_matrix = call.large(y, "y");
  const int64_t rank = b.size(1);
  check_rank(rank);
  launch_lowrank_expand(call.context(), y_matrix, call.small(s, "s", y.size(0), rank),
                        call.small(b, "b", y.size(1), rank), static_cast<float>(scale));
  call.finish();
}

std::tuple<Tensor, Tensor> lowrank_backward_output_cuda(Tensor dy, Tensor s, Tensor b, double scale) {
  Call call(dy);
  const Matrix dy_matrix = call.large(dy, "dy");
  const int64_t rank = b.size(1);
  check_rank(rank);
  const Tensor ds = call.empty(dy, dy.size(0), rank), db = call.empty(b, b.size(0), rank);
  launch_lowrank_backward_output(call.context(), call.large(ds, "ds"), call.small(db, "db", dy.size(1), rank),
                                 dy_matrix, call.small(s, "s", dy.size(0), rank), call.small(b, "b", dy.size(1), rank),
                                 static_cast<float>(scale));
  call.finish();
  return {ds, db};
}

Tensor lowrank_backward_input_cuda(std::optional<Tensor> dx, Tensor x, Tensor ds, Tensor a, double p,
                                   std::optional<Tensor> seed) {
  Call call(x);
  const Matrix x_matrix = call.large(x, "x");
  const int64_t rank = a.size(0);
  check_rank(rank);
  const auto [level, seed_data] = read_dropout(p, seed, x);
  Matrix dx_matrix{};
  if (dx) {
    dx_matrix = call.large(*dx, "dx");
    STD_TORCH_CHECK(dx->size(0) == x.size(0) && dx->size(1) == x.size(1), "dx must have x's shape, (", x.size(0), ", ",
                    x.size(1), ")");
  }
  const Tensor da = call.empty(a, rank, x.size(1));
  launch_lowrank_backward_input(call.context(), call.small(da, "da", rank, x.size(1)), dx_matrix, x_matrix,
                                call.small(ds, "ds", x.size(0), rank), call.small(a, "a", rank, x.size(1)), level,
                                seed_data);
  call.finish();
  return da;
}

void lowrank_merge_cuda(Tensor w, Tensor a, Tensor b, double scale) {
  Call call(w);
  const Matrix w_matrix = call.large(w, "w");
  const int64_t rank = a.size(0);
  check_rank(rank);
  launch_lowrank_merge(call.context(), w_matrix, call.small(a, "a", rank, w.size(1)),
                       call.small(b, "b", w.size(0), rank), static_cast<float>(scale));
  call.finish();
}

}  // namespace
}  // namespace ftengine

STABLE_TORCH_LIBRARY_IMPL(ftengine, CUDA, m) {
  m.impl("lowrank_shrink", TORCH_BOX(&ftengine::lowrank_shrink_cuda));
  m.impl("lowrank_expand_", TORCH_BOX(&ftengine::lowrank_expand_cuda));
  m.impl("lowrank_backward_output", TORCH_BOX(&ftengine::lowrank_backward_output_cuda));
  m.impl("lowrank_backward_input_", TORCH_BOX(&ftengine::lowrank_backward_input_cuda));
  m.impl("lowrank_merge_", TORCH_BOX(&ftengine::lowrank_merge_cuda));
}
