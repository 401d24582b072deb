// torch.ops.ftengine for CPU, layers whole: frozen products and low-rank updates of all layers that read one x.
//
// The frozen products are ATen's, called without its dispatcher, or oneDNN's where that is quicker.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <limits>
#include <tuple>

#include "cpu/operands.h"

// x Wᵀ + bias, and x Wᵀ + other, by oneDNN. Of the functions that compiled models call, which are not of the stable
// ABI: ftengine.ops.library compares the operators' schemas before it lets them be used. Weak, as a torch without
// oneDNN has neither.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle x, AtenTensorHandle w,
                                                                      AtenTensorHandle* bias, const char* after,
                                                                      const double** scalars, int64_t scalars_length,
                                                                      const char** algorithm, AtenTensorHandle* y);
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise_binary(AtenTensorHandle x, AtenTensorHandle other,
                                                                             AtenTensorHandle w, AtenTensorHandle* bias,
                                                                             const char* after, AtenTensorHandle* y);
}

namespace ftengine::cpu {
namespace {

using Tensors = std::vector<Tensor>;

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  return strides;
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A view of x's memory as a matrix.
Tensor strided(const Tensor& x, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  AtenTensorHandle made;  // 0 is added to x's offset
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 2, sizes, strides, 0, &made));
  return Tensor(made);
}

Tensor transposed(const Tensor& w) { return strided(w, w.size(1), w.size(0), w.stride(1), w.stride(0)); }

// Contiguous x (M, L) as (..., L).
Tensor with_sizes(const Tensor& x, const std::vector<int64_t>& sizes) {
  if (sizes.size() == 2) return x;
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                                        contiguous_strides(sizes).data(), 0, &made));
  return Tensor(made);
}

// Contiguous x (..., L) as (M, L).
Tensor as_rows(const Tensor& x, int64_t rows, int64_t length) {
  return x.dim() == 2 ? x : strided(x, rows, length, length, 1);
}

// x (..., L) as contiguous (M, L): x itself or a view wherever x is contiguous.
Tensor as_matrix(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() >= 1, name, " must have at least one dimension");
  check_large_type(x, name);
  const Tensor whole = x.is_contiguous() ? x : torch::stable::contiguous(x);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < whole.dim(); ++d) rows *= whole.size(d);
  return as_rows(whole, rows, whole.size(whole.dim() - 1));
}

Tensor in_type_of(const Tensor& x, const Tensor& w) {
  return w.scalar_type() == x.scalar_type() ? w : torch::stable::to(w, x.scalar_type());
}

constexpr int64_t kOneDnnRows = 8;  // fewer are not its strength

// Whether a matrix's rows or columns are contiguous and do not overlap.
bool dense(const Tensor& w) {
  return (w.stride(1) == 1 && w.stride(0) >= w.size(1)) || (w.stride(0) == 1 && w.stride(1) >= w.size(0));
}

// x wᵀ + bias (N,), or x wᵀ added to `sum` (M, N), which may be written over.  x (M, K) contiguous, w (N, K).
Tensor product(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor* sum) {
  const int64_t rows = x.size(0), n = w.size(0);
  AtenTensorHandle made;
  if (x.scalar_type() == ScalarType::Float && rows >= kOneDnnRows &&
      rows * n * w.size(1) >= least_for_onednn.load(std::memory_order_relaxed) && dense(w) &&
      aoti_torch_cpu__linear_pointwise != nullptr && aoti_torch_cpu__linear_pointwise_binary != nullptr) {
    AtenTensorHandle added = bias ? bias->get() : nullptr;
    TORCH_ERROR_CODE_CHECK(
        sum ? aoti_torch_cpu__linear_pointwise_binary(x.get(), sum->get(), w.get(), nullptr, "add", &made)
            : aoti_torch_cpu__linear_pointwise(x.get(), w.get(), bias ? &added : nullptr, "none", nullptr, 0, nullptr,
                                               &made));
    return Tensor(made);
  }
  const Tensor out = sum ? *sum : empty({rows, n}, x.scalar_type()), right = transposed(w);
  const Tensor* c = sum ? sum : bias;
  TORCH_ERROR_CODE_CHECK(c == nullptr ? aoti_torch_cpu_mm_out(out.get(), x.get(), right.get())
                                      : aoti_torch_cpu_addmm_out(out.get(), c->get(), x.get(), right.get(), 1.0, 1.0));
  return out;
}

// The seed to use: as in ftengine.ops.draw_seed where there is dropout and none is given. Never the given tensor.
Tensor own_seed(int level, const std::optional<Tensor>& given) {
  if (level == 0) return empty({0}, ScalarType::Long);
  Tensor seed = empty({}, ScalarType::Long);
  if (given) {
    *data<int64_t>(seed) = static_cast<int64_t>(read_dropout(level / 65536.0, given).seed);
  } else {
    const int64_t no_sizes = 0;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_randint_low_out(seed.get(), 0, std::numeric_limits<int64_t>::max(), &no_sizes, 0));
  }
  return seed;
}

// Checks the operands of layers that read x (M, length); returns their ranks together.
int64_t check_layers(const Tensors& weights, const Tensors& a, const Tensors& b, const std::vector<double>& scales,
                     int64_t length) {
  const size_t layers = weights.size();
  STD_TORCH_CHECK(layers > 0 && a.size() == layers && b.size() == layers && scales.size() == layers,
                  "each layer needs a weight, a, b and a scale");
  int64_t all = 0;
  for (size_t i = 0; i < layers; ++i) {
    const Tensor& weight = weights[i];
    const int64_t rank = rank_of(a[i], "a", 0);
    STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.size(1) == length, "weight must be (N, ", length,
                    ") and on the CPU");
    check_storage(weight, "weight");
    check_small(a[i], "a", rank, length);
    check_small(b[i], "b", weight.size(0), rank);
    all += rank;
  }
  STD_TORCH_CHECK(all <= kMaxRank, "ranks add up to ", all, "; kernels exist for 1 to ", kMaxRank);
  return all;
}

// Columns of a (rows, ...) matrix of T's whose rows lie `stride` apart.
template <class T>
View columns_of(const T* first, int64_t rows, int64_t columns, int64_t stride) {
  return {first, kTypeOf<T>, rows, columns, stride, 1};
}

std::vector<View> views(const Tensors& factors) {
  std::vector<View> result;
  for (const Tensor& factor : factors) result.push_back(view(factor));
  return result;
}

std::tuple<Tensors, Tensor, Tensor> lowrank_group_forward_cpu(const Tensor& x, const Tensors& weights,
                                                              const std::vector<std::optional<Tensor>>& biases,
                                                              const Tensors& a, const Tensors& b,
                                                              const std::vector<double>& scales, double p,
                                                              const std::optional<Tensor>& given_seed) {
  STD_TORCH_CHECK(biases.size() == weights.size(), "each layer needs a bias or none");
  const Tensor matrix = as_matrix(x, "x");
  const int64_t rows = matrix.size(0), length = matrix.size(1), rank = check_layers(weights, a, b, scales, length);
  const int level = dropout_level(p);
  const Tensor seed = own_seed(level, given_seed), s = empty({rows, rank}, x.scalar_type());
  const Dropout dropout{level == 0 ? 0 : static_cast<uint64_t>(*const_data<int64_t>(seed)), level};
  std::vector<int64_t> sizes = x.sizes().vec();
  Tensors ys;
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    shrink(kernels, slots, const_data<T>(matrix), views(a), data<T>(s), rows, length, rank, dropout);
    const int before = slots.used();
    const T* columns = const_data<T>(s);
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t n = weights[i].size(0), r = a[i].size(0);
      std::optional<Tensor> bias;
      if (biases[i]) {
        STD_TORCH_CHECK(biases[i]->dim() == 1 && biases[i]->size(0) == n, "bias must be (", n, ",)");
        bias = torch::stable::contiguous(in_type_of(x, *biases[i]));
      }
      const Tensor y = product(matrix, in_type_of(x, weights[i]), bias ? &*bias : nullptr, nullptr);
      sizes.back() = n;
      ys.push_back(with_sizes(y, sizes));
      slots.use_again_from(before);
      expand(kernels, slots, data<T>(y), columns_of(columns, rows, r, rank), view(b[i], true), rows, scales[i]);
      columns += r;
    }
  });
  return {ys, s, seed};
}

// Gradients: da of each layer, db of each layer and, where asked for, dx.
Tensors lowrank_group_backward_cpu(const Tensors& dys, const Tensor& x, const Tensor& s, const Tensor& seed,
                                   const Tensors& weights, const Tensors& a, const Tensors& b,
                                   const std::vector<double>& scales, double p, bool input_gradient) {
  STD_TORCH_CHECK(dys.size() == weights.size(), "each layer needs a dy");
  const Tensor matrix = as_matrix(x, "x");
  const int64_t rows = matrix.size(0), length = matrix.size(1), rank = check_layers(weights, a, b, scales, length);
  check_large(s, "s");
  check_small(s, "s", rows, rank);
  STD_TORCH_CHECK(s.scalar_type() == x.scalar_type(), "s and x must agree in dtype");
  const Dropout dropout = read_dropout(p, seed);
  Tensors gradients;
  for (const Tensor& factor : a) gradients.push_back(empty({factor.size(0), length}, factor.scalar_type()));
  for (const Tensor& factor : b) gradients.push_back(empty({factor.size(0), factor.size(1)}, factor.scalar_type()));
  std::optional<Tensor> dx;
  by_large_type(x, [&](auto zero) {
    using T = decltype(zero);
    const Kernels<T>& kernels = chosen_kernels<T>();
    Slots slots;
    T* ds = slots.next<T>(rows * rank);
    const int before = slots.used();
    int64_t column = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t n = weights[i].size(0), r = a[i].size(0);
      const Tensor dy = as_matrix(dys[i], "dy");
      STD_TORCH_CHECK(dy.size(0) == rows && dy.size(1) == n && dy.scalar_type() == x.scalar_type(), "dy must be (",
                      rows, ", ", n, ") in x's dtype");
      if (input_gradient) dx = product(dy, transposed(in_type_of(x, weights[i])), nullptr, dx ? &*dx : nullptr);
      slots.use_again_from(before);
      backward_output(kernels, slots, const_data<T>(dy), columns_of(const_data<T>(s) + column, rows, r, rank),
                      view(b[i], true), ds + column, rank, gradients[a.size() + i], rows, scales[i]);
      column += r;
    }
    slots.use_again_from(before);
    const bool direct = a.size() == 1 && a[0].scalar_type() == ScalarType::Float;
    float* g = direct ? data<float>(gradients[0]) : slots.next<float>(rank * length);
    backward_input(kernels, slots, dx ? data<T>(*dx) : nullptr, const_data<T>(matrix), columns_of(ds, rows, rank, rank),
                   views(a), g, rows, length, dropout);
    for (size_t i = 0; !direct && i < a.size(); ++i) {
      unpack(g, a[i].size(0), length, false, gradients[i]);
      g += a[i].size(0) * length;
    }
  });
  if (dx) gradients.push_back(with_sizes(*dx, x.sizes().vec()));
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor> lowrank_forward_cpu(const Tensor& x, const Tensor& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& a,
                                                       const Tensor& b, double scale, double p,
                                                       const std::optional<Tensor>& given_seed) {
  auto [ys, s, seed] = lowrank_group_forward_cpu(x, {weight}, {bias}, {a}, {b}, {scale}, p, given_seed);
  return {ys[0], s, seed};
}

std::tuple<Tensor, Tensor, Tensor> lowrank_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& s,
                                                        const Tensor& seed, const Tensor& weight, const Tensor& a,
                                                        const Tensor& b, double scale, double p, bool input_gradient) {
  const Tensors gradients =
      lowrank_group_backward_cpu({dy}, x, s, seed, {weight}, {a}, {b}, {scale}, p, input_gradient);
  return {gradients[0], gradients[1], input_gradient ? gradients[2] : empty({0}, x.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ftengine, CPU, library) {
  library.impl("lowrank_forward", TORCH_BOX(&lowrank_forward_cpu));
  library.impl("lowrank_backward", TORCH_BOX(&lowrank_backward_cpu));
  library.impl("lowrank_group_forward", TORCH_BOX(&lowrank_group_forward_cpu));
  library.impl("lowrank_group_backward", TORCH_BOX(&lowrank_group_backward_cpu));
}

}  // namespace ftengine::cpu
