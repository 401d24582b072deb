// torch.ops.ftengine for CPU: RMS norms, gates and rotary embeddings, which ATen computes in a pass over memory for
// every step of theirs, and dropout, whose random numbers ATen draws one by one.
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

// silu(gate) ∘ up
Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up) {
  const int64_t elements = check_rows(gate, "gate");
  check_rows(up, "up");
  check_same(up, "up", gate, "gate");
  Tensor y = torch::stable::empty_like(gate);
  by_large_type(gate, [&](auto zero) {
    using T = decltype(zero);
    parallel((elements + kColumnUnit - 1) / kColumnUnit, kColumnUnit, [&](int64_t begin, int64_t end) {
      chosen_kernels<T>().silu_mul(begin * kColumnUnit, std::min(end * kColumnUnit, elements), const_data<T>(gate),
                                   const_data<T>(up), data<T>(y));
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> silu_mul_backward_cpu(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  const int64_t elements = check_rows(gate, "gate");
  for (const auto& [x, name] : {std::pair(dy, "dy"), std::pair(up, "up")}) {
    check_rows(x, name);
    check_same(x, name, gate, "gate");
  }
  Tensor dgate = torch::stable::empty_like(gate), dup = torch::stable::empty_like(up);
  by_large_type(gate, [&](auto zero) {
    using T = decltype(zero);
    parallel((elements + kColumnUnit - 1) / kColumnUnit, kColumnUnit, [&](int64_t begin, int64_t end) {
      chosen_kernels<T>().silu_mul_backward(begin * kColumnUnit, std::min(end * kColumnUnit, elements),
                                            const_data<T>(dy), const_data<T>(gate), const_data<T>(up), data<T>(dgate),
                                            data<T>(dup));
    });
  });
  return {dgate, dup};
}

// (B, L, heads, D): x (B, heads, L, D) by a rotation's matrix, or its transpose.
Tensor rotate_cpu(const Tensor& x, const Tensor& cos, const Tensor& sin, bool transposed) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0 && (x.stride(3) == 1 || x.size(3) == 0),
                  "x must be (batch, heads, length, depth) of an even depth, contiguous in its last dimension");
  check_large_type(x, "x");
  check_same(sin, "sin", cos, "cos");
  for (const auto& [angles, name] : {std::pair(cos, "cos"), std::pair(sin, "sin")}) {
    STD_TORCH_CHECK(angles.dim() == 3 && angles.is_contiguous() &&
                        (angles.size(0) == 1 || angles.size(0) == x.size(0)) && angles.size(1) == x.size(2) &&
                        angles.size(2) == x.size(3) && angles.scalar_type() == x.scalar_type(),
                    name, " must be (batch or 1, length, depth), contiguous, in x's dtype");
    check_large_type(angles, name);
  }
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(2), x.size(1), x.size(3)});
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    Rotation<T> call{const_data<T>(x), const_data<T>(cos), const_data<T>(sin), data<T>(y)};
    for (int i = 0; i < 3; ++i) call.x_stride[i] = x.stride(i);
    call.heads = x.size(1);
    call.length = x.size(2);
    call.depth = x.size(3);
    call.angles_by_batch = cos.size(0) > 1;
    call.transposed = transposed;
    parallel(x.size(0) * call.length, call.heads * call.depth,
             [&](int64_t begin, int64_t end) { chosen_kernels<T>().rotate(begin, end, call); });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ftengine, CPU, library) {
  library.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward_cpu));
  library.impl("dropout", TORCH_BOX(&dropout_cpu));
  library.impl("silu_mul", TORCH_BOX(&silu_mul_cpu));
  library.impl("silu_mul_backward", TORCH_BOX(&silu_mul_backward_cpu));
  library.impl("rotate", TORCH_BOX(&rotate_cpu));
}

}  // namespace ftengine::cpu
