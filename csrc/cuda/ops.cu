// torch.ops.ftengine for CUDA: check, guard the device, allocate, launch, register.
//
// ftengine/ops/schemas.py holds the schemas, reference.py and composite.py the meaning. Only LibTorch's stable ABI is
// used, so this compiles and links against a torch without CUDA, and one build serves every torch from 2.10 on.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "call.h"

namespace ftengine {
namespace {

Tensor lowrank_shrink(Tensor x, Tensor a, double p, std::optional<Tensor> seed) {
  Call call(x, "x");
  const Matrix large = call.input(x, "x");
  const int64_t rank = a.size(0);
  const auto [level, seed_data] = call.dropout(p, seed);
  const Tensor s = call.empty(large.rows, rank);
  call.run({plan_shrink(call.type(), Call::matrix(s), large, call.factor(a, "a", false, rank, large.columns), level,
                        seed_data)});
  return s;
}

// Adds to y in place, or into a new tensor, which then is not copied first.
Tensor expand(const Tensor& y, const Tensor& s, const Tensor& b, double scale, bool in_place) {
  Call call(y, "y");
  const Matrix base = in_place ? call.large(y, "y") : call.input(y, "y");
  const int64_t rank = b.size(1);
  const Tensor out = in_place ? y : call.empty(base.rows, base.columns);
  call.run(
      {plan_expand(call.type(), call.large(out, "y"), {base.data, base.columns}, call.narrow(s, "s", base.rows, rank),
                   call.factor(b, "b", true, rank, base.columns), static_cast<float>(scale))});
  return out;
}

void lowrank_expand_in_place(Tensor y, Tensor s, Tensor b, double scale) { expand(y, s, b, scale, true); }
Tensor lowrank_expand(Tensor y, Tensor s, Tensor b, double scale) { return expand(y, s, b, scale, false); }

std::tuple<Tensor, Tensor> lowrank_backward_output(Tensor dy, Tensor s, Tensor b, double scale) {
  Call call(dy, "dy");
  const Matrix large = call.input(dy, "dy");
  const int64_t rank = b.size(1);
  Tensor ds = call.empty(large.rows, rank), db = call.gradient(b);
  if (large.rows == 0 || large.columns == 0) torch::stable::zero_(ds), torch::stable::zero_(db);
  const Factor factor = call.factor(b, "b", true, rank, large.columns);
  call.run({plan_backward_output(call.type(), Call::matrix(ds), call.factor(db, "db", true, rank, large.columns), large,
                                 call.narrow(s, "s", large.rows, rank), factor, static_cast<float>(scale))});
  return {ds, Call::finished(db, b)};
}

// da, and dx where it is wanted: added to what it holds, or written.
Tensor backward_input(const std::optional<Tensor>& dx, bool adds, const Tensor& x, const Tensor& ds, const Tensor& a,
                      double p, const std::optional<Tensor>& seed) {
  Call call(x, "x");
  const Matrix large = call.input(x, "x");
  const int64_t rank = a.size(0);
  const auto [level, seed_data] = call.dropout(p, seed);
  Matrix out{};
  if (dx) out = call.large(*dx, "dx", large.rows, large.columns);
  Tensor da = call.gradient(a);
  if (large.rows == 0 || large.columns == 0) torch::stable::zero_(da);
  const Factor factor = call.factor(a, "a", false, rank, large.columns);
  call.run({plan_backward_input(call.type(), call.factor(da, "da", false, rank, large.columns), out,
                                {adds ? out.data : nullptr, out.columns}, large,
                                call.narrow(ds, "ds", large.rows, rank), factor, level, seed_data)});
  return Call::finished(da, a);
}

Tensor lowrank_backward_input_in_place(std::optional<Tensor> dx, Tensor x, Tensor ds, Tensor a, double p,
                                       std::optional<Tensor> seed) {
  return backward_input(dx, true, x, ds, a, p, seed);
}

std::tuple<Tensor, Tensor> lowrank_backward_input(Tensor x, Tensor ds, Tensor a, double p, std::optional<Tensor> seed) {
  const Tensor dx = torch::stable::empty_like(x);
  return {dx, backward_input(dx, false, x, ds, a, p, seed)};
}

using Tensors = std::vector<Tensor>;

template <typename... Arguments>
Tensor call_aten(const char* name, const char* overload, const Arguments&... arguments) {
  StableIValue stack[] = {torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// to += left right: a product that reads `to` as its C operand. Not by name: the stable dispatcher takes no scalars.
void add_product(const Tensor& to, const Tensor& left, const Tensor& right) {
  TORCH_ERROR_CODE_CHECK(runtime::addmm_out(to.get(), to.get(), left.get(), right.get(), 1.0, 1.0));
}

Tensor in_type_of(const Tensor& x, const Tensor& tensor) {
  return tensor.scalar_type() == x.scalar_type() ? tensor : torch::stable::to(tensor, x.scalar_type());
}

Tensor stacked(const Tensors& factors) {
  return factors.size() == 1 ? factors[0] : call_aten("aten::cat", "", factors, int64_t{0});
}

// As ftengine.ops.draw_seed draws it, where there is dropout; never the tensor that is given.
Tensor own_seed(const Tensor& x, double p, const std::optional<Tensor>& given) {
  const std::vector<int64_t> none = {0}, scalar;
  if (p == 0) return torch::stable::new_empty(x, none, ScalarType::Long);
  if (given) return torch::stable::clone(*given);
  return call_aten("aten::randint", "", std::numeric_limits<int64_t>::max(),
                   torch::headeronly::IntHeaderOnlyArrayRef(scalar), std::optional(ScalarType::Long),
                   std::optional<torch::headeronly::Layout>(), std::optional(x.device()), std::optional<bool>());
}

// x (..., K) as (M, K), contiguous.
Tensor as_matrix(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, "x and dy must have at least one dimension");
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return torch::stable::contiguous(torch::stable::reshape(x, std::vector<int64_t>{rows, x.size(x.dim() - 1)}));
}

// A matrix (M, n) in the shape (..., n) that x (..., K) has.
Tensor in_shape_of(const Tensor& x, const Tensor& matrix) {
  if (x.dim() == 2) return matrix;
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(matrix.size(1));
  return torch::stable::view(matrix, shape);
}

// Some columns of S or dS.
Matrix columns_of(Matrix matrix, int64_t first, int64_t count) {
  matrix.data = static_cast<uint16_t*>(matrix.data) + first;
  matrix.columns = count;
  return matrix;
}

void check_layers(const Tensors& weights, const Tensors& a, const Tensors& b, const std::vector<double>& scales,
                  size_t others) {
  const size_t layers = weights.size();
  STD_TORCH_CHECK(layers > 0 && a.size() == layers && b.size() == layers && scales.size() == layers && others == layers,
                  "each layer needs a weight, a, b, a scale, and a bias or dy");
}

// y = x Wᵀ + (bias + scale · S Bᵀ) of each layer: the update is written first, and the product adds to it.
std::tuple<Tensors, Tensor, Tensor> lowrank_group_forward(Tensor x, Tensors weights,
                                                          std::vector<std::optional<Tensor>> biases, Tensors a,
                                                          Tensors b, std::vector<double> scales, double p,
                                                          std::optional<Tensor> given) {
  check_layers(weights, a, b, scales, biases.size());
  Call call(x, "x");
  const Tensor rows = as_matrix(x), seed = own_seed(x, p, given), factors = stacked(a);
  const auto [level, seed_data] = call.dropout(p, seed);
  const Matrix large = call.input(rows, "x");
  const Tensor s = call.empty(large.rows, factors.size(0));
  std::list<Plan> plans = {plan_shrink(call.type(), Call::matrix(s), large,
                                       call.factor(factors, "a", false, factors.size(0), large.columns), level,
                                       seed_data)};
  Tensors products, ys;
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t n = weights[i].size(0), rank = a[i].size(0);
    products.push_back(call.empty(large.rows, n));
    Base base{nullptr, 0};
    if (biases[i]) base.data = call.bias(*biases[i], n);
    plans.push_back(plan_expand(call.type(), call.large(products[i], "y"), base,
                                columns_of(Call::matrix(s), first, rank), call.factor(b[i], "b", true, rank, n),
                                static_cast<float>(scales[i])));
    first += rank;
  }
  call.run(plans);
  for (size_t i = 0; i < weights.size(); ++i) {
    add_product(products[i], rows, torch::stable::transpose(in_type_of(x, weights[i]), 0, 1));
    ys.push_back(in_shape_of(x, products[i]));
  }
  return {ys, s, seed};
}

// da of each layer, db of each, and dx = Σ dy W + mask ∘ (dS A) / (1 - p) where it is wanted: the update is written
// first, and each layer's product adds to it.
Tensors lowrank_group_backward(Tensors dys, Tensor x, Tensor s, Tensor seed, Tensors weights, Tensors a, Tensors b,
                               std::vector<double> scales, double p, bool input_gradient) {
  check_layers(weights, a, b, scales, dys.size());
  Call call(x, "x");
  const Tensor rows = as_matrix(x), factors = stacked(a);
  const auto [level, seed_data] = call.dropout(p, seed);
  const Matrix large = call.input(rows, "x");
  const int64_t ranks = factors.size(0);
  Tensor ds = call.empty(large.rows, ranks), da = call.gradient(factors);
  if (large.rows == 0 || large.columns == 0) torch::stable::zero_(da);
  const Matrix narrow_s = call.narrow(s, "s", large.rows, ranks);
  std::list<Plan> plans;
  Tensors matrices, db;
  int64_t first = 0;
  for (size_t i = 0; i < dys.size(); ++i) {
    const int64_t n = weights[i].size(0), rank = a[i].size(0);
    matrices.push_back(as_matrix(dys[i]));
    db.push_back(call.gradient(b[i]));
    if (large.rows == 0 || n == 0) torch::stable::zero_(db[i]), torch::stable::zero_(ds);
    plans.push_back(plan_backward_output(call.type(), columns_of(Call::matrix(ds), first, rank),
                                         call.factor(db[i], "db", true, rank, n), call.input(matrices[i], "dy"),
                                         columns_of(narrow_s, first, rank), call.factor(b[i], "b", true, rank, n),
                                         static_cast<float>(scales[i])));
    first += rank;
  }
  Matrix out{};
  std::optional<Tensor> dx;
  if (input_gradient) {
    dx = call.empty(large.rows, large.columns);
    out = call.large(*dx, "dx");
  }
  plans.push_back(plan_backward_input(call.type(), call.factor(da, "da", false, ranks, large.columns), out,
                                      {nullptr, 0}, large, Call::matrix(ds),
                                      call.factor(factors, "a", false, ranks, large.columns), level, seed_data));
  call.run(plans);
  Tensors gradients;
  first = 0;
  for (const Tensor& factor : a) {
    Tensor own = da;
    if (a.size() > 1) own = torch::stable::clone(torch::stable::narrow(own, 0, first, factor.size(0)));
    gradients.push_back(Call::finished(own, factor));
    first += factor.size(0);
  }
  for (size_t i = 0; i < b.size(); ++i) gradients.push_back(Call::finished(db[i], b[i]));
  if (dx) {
    for (size_t i = 0; i < dys.size(); ++i) add_product(*dx, matrices[i], in_type_of(x, weights[i]));
    gradients.push_back(in_shape_of(x, *dx));
  }
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor> lowrank_forward(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor a,
                                                   Tensor b, double scale, double p, std::optional<Tensor> given) {
  const auto [ys, s, seed] = lowrank_group_forward(x, {weight}, {bias}, {a}, {b}, {scale}, p, given);
  return {ys[0], s, seed};
}

std::tuple<Tensor, Tensor, Tensor> lowrank_backward(Tensor dy, Tensor x, Tensor s, Tensor seed, Tensor weight, Tensor a,
                                                    Tensor b, double scale, double p, bool input_gradient) {
  Tensors all = lowrank_group_backward({dy}, x, s, seed, {weight}, {a}, {b}, {scale}, p, input_gradient);
  if (!input_gradient) all.push_back(torch::stable::new_empty(x, std::vector<int64_t>{0}));
  return {all[0], all[1], all[2]};
}

}  // namespace
}  // namespace ftengine

extern "C" __attribute__((visibility("default"))) int ftengine_philox_rounds() { return ftengine::kPhiloxRounds; }

// lowrank_merge_ is not here: it is called once a layer, and ATen's product serves it.
STABLE_TORCH_LIBRARY_IMPL(ftengine, CUDA, m) {
  m.impl("lowrank_forward", TORCH_BOX(&ftengine::lowrank_forward));
  m.impl("lowrank_backward", TORCH_BOX(&ftengine::lowrank_backward));
  m.impl("lowrank_group_forward", TORCH_BOX(&ftengine::lowrank_group_forward));
  m.impl("lowrank_group_backward", TORCH_BOX(&ftengine::lowrank_group_backward));
  m.impl("lowrank_shrink", TORCH_BOX(&ftengine::lowrank_shrink));
  m.impl("lowrank_expand", TORCH_BOX(&ftengine::lowrank_expand));
  m.impl("lowrank_expand_", TORCH_BOX(&ftengine::lowrank_expand_in_place));
  m.impl("lowrank_backward_output", TORCH_BOX(&ftengine::lowrank_backward_output));
  m.impl("lowrank_backward_input", TORCH_BOX(&ftengine::lowrank_backward_input));
  m.impl("lowrank_backward_input_", TORCH_BOX(&ftengine::lowrank_backward_input_in_place));
}
