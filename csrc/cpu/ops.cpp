// torch.ops.ftengine for CPU, the parts of a layer one by one; layer.cpp has layers whole.
//
// ftengine/ops/schemas.py holds the schemas, reference.py the meaning.

#include <tuple>

#include "cpu/operands.h"

namespace ftengine::cpu {
namespace {

Tensor lowrank_shrink_cpu(const Tensor& x, const Tensor& a, double p, const std::optional<Tensor>& seed) {
  check_large(x, "x");
  const int64_t rows = x.size(0), length = x.size(1), rank = rank_of(a, "a", 0);
  check_small(a, "a", rank, length);
  const Dropout dropout = read_dropout(p, seed);
  Tensor s = torch::stable::new_empty(x, {rows, rank});
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    Slots slots;
    shrink(chosen_kernels<T>(), slots, const_data<T>(x), {view(a)}, data<T>(s), rows, length, rank, dropout);
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
    Slots slots;
    expand(chosen_kernels<T>(), slots, data<T>(y), view(s), view(b, true), rows, scale);
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
    Slots slots;
    backward_output(chosen_kernels<T>(), slots, const_data<T>(dy), view(s), view(b, true), data<T>(ds), rank, db, rows,
                    scale);
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
    Slots slots;
    const bool direct = da.scalar_type() == ScalarType::Float;
    float* g = direct ? data<float>(da) : slots.next<float>(rank * length);
    backward_input(chosen_kernels<T>(), slots, dx ? data<T>(*dx) : nullptr, const_data<T>(x), view(ds), {view(a)}, g,
                   rows, length, dropout);
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
  const float* packed_b = Packed<float>(in_fp32, slots, view(b)).in_fp32();
  const float* packed_a = Packed<float>(in_fp32, slots, view(a)).in_fp32();
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
