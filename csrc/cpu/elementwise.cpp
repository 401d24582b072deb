// torch.ops.ftengine for CPU: RMS norms, which ATen computes in a pass over memory for every step of theirs, and
// dropout, whose random numbers ATen draws one by one.
//
// ftengine/ops/elementwise.py holds schemas and meaning.

#include <tuple>

#include "cpu/operands.h"

namespace ftengine::cpu {
namespace {

// Checks a contiguous (..., L) operand; returns how many elements it has.
int64_t check_rows(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.is_contiguous(), name, " must be contiguous, of one dimension or more");
  check_large_type(x, name);
  return x.numel();
}

// weight (L,) + offset in fp32.
const float* weights(Slots& slots, const Tensor& weight, double offset, int64_t length) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 1 && weight.size(0) == length, "weight must be (", length,
                  ",) and on the CPU");
  check_storage(weight, "weight");
  float* w = slots.next<float>(length);
  copy_to_fp32<float>({weight.const_data_ptr(), weight.scalar_type(), 1, length, length, weight.stride(0)}, false, w);
  for (int64_t i = 0; i < length; ++i) w[i] += static_cast<float>(offset);
  return w;
}

std::tuple<Tensor, Tensor> rms_norm_cpu(const Tensor& x, const Tensor& weight, double offset, double eps) {
  const int64_t elements = check_rows(x, "x"), length = x.size(x.dim() - 1), rows = length ? elements / length : 0;
  Tensor y = torch::stable::empty_like(x), rstd = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    Slots slots;
    const float* w = weights(slots, weight, offset, length);
    const Kernels<T>& kernels = chosen_kernels<T>();
    parallel(rows, length, [&](int64_t begin, int64_t end) {
      kernels.rms_norm(begin, end, const_data<T>(x), w, data<T>(y), data<float>(rstd), length, static_cast<float>(eps));
    });
  });
  return {y, rstd};
}

// dx and, where asked for, dw; else (0,).
std::tuple<Tensor, Tensor> rms_norm_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                 const Tensor& rstd, double offset, bool weight_gradient) {
  const int64_t elements = check_rows(x, "x"), length = x.size(x.dim() - 1), rows = length ? elements / length : 0;
  check_same(dy, "dy", x, "x");
  check_rows(dy, "dy");
  STD_TORCH_CHECK(
      rstd.is_cpu() && rstd.scalar_type() == ScalarType::Float && rstd.is_contiguous() && rstd.numel() == rows,
      "rstd must be (", rows, ",), Float, contiguous and on the CPU");
  check_storage(rstd, "rstd");
  Tensor dx = torch::stable::empty_like(x), dw = torch::stable::new_empty(weight, {weight_gradient ? length : 0});
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    Slots slots;
    const float* w = weights(slots, weight, offset, length);
    const Kernels<T>& kernels = chosen_kernels<T>();
    const float* inverse = const_data<float>(rstd);
    parallel(rows, length, [&](int64_t begin, int64_t end) {
      kernels.rms_norm_backward(begin, end, const_data<T>(dy), const_data<T>(x), w, inverse, data<T>(dx), length);
    });
    if (!weight_gradient) return;
    float* sums = slots.next<float>(length);
    parallel((length + kColumnUnit - 1) / kColumnUnit, rows * kColumnUnit, [&](int64_t begin, int64_t end) {
      kernels.rms_norm_weight(begin * kColumnUnit, std::min(end * kColumnUnit, length), const_data<T>(dy),
                              const_data<T>(x), inverse, sums, rows, length);
    });
    unpack(sums, 1, length, false, dw);
  });
  return {dx, dw};
}

// dropout(x), its elements in order as the first row of the mask.
Tensor dropout_cpu(const Tensor& x, double p, const Tensor& seed) {
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  check_large_type(x, "x");
  const int64_t elements = x.numel();
  STD_TORCH_CHECK(elements / kColumnUnit < int64_t{1} << 29, "x has ", elements,
                  " elements; a row of the mask has 2^35");
  const Dropout dropout = read_dropout(p, seed);
  STD_TORCH_CHECK(dropout.level > 0, "p is 0, so there is nothing to drop");
  Tensor y = torch::stable::empty_like(x);
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    parallel((elements + kColumnUnit - 1) / kColumnUnit, kColumnUnit, [&](int64_t begin, int64_t end) {
      kernels.drop(begin * kColumnUnit, std::min(end * kColumnUnit, elements), const_data<T>(x), data<T>(y),
                   inverse(dropout), dropout);
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ftengine, CPU, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward_cpu));
  library.impl("dropout", TORCH_BOX(&dropout_cpu));
}

}  // namespace ftengine::cpu
