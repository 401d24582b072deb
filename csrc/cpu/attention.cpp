// torch.ops.ftengine for CPU: attention of sequences that may share tokens, so that short ones pad nothing and what
// several begin with is there once.
//
// ftengine/ops/attention.py holds schemas and meaning.

#include <numeric>
#include <tuple>

#include "cpu/operands.h"

namespace ftengine::cpu {
namespace {

// (N, heads, D), rows of D contiguous.
void check_heads(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 3 && (x.stride(2) == 1 || x.size(2) == 1), name,
                  " must be (tokens, heads, depth), contiguous in its last dimension");
  check_large_type(x, name);
}

const int64_t* check_tokens(const Tensor& x, const char* name, int64_t tokens, bool once) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Long && x.dim() == 1 && x.is_contiguous(), name,
                  " must be a contiguous vector of int64 on the CPU");
  check_storage(x, name);
  STD_TORCH_CHECK(!once || x.size(0) == tokens, name, " has ", x.size(0), " numbers; each of ", tokens,
                  " must be there once");
  const int64_t* numbers = const_data<int64_t>(x);
  std::vector<bool> there(static_cast<size_t>(once ? tokens : 0));
  for (int64_t i = 0; i < x.size(0); ++i) {
    STD_TORCH_CHECK(numbers[i] >= 0 && numbers[i] < tokens, name, " has ", numbers[i], "; there are ", tokens);
    if (!once) continue;
    STD_TORCH_CHECK(!there[numbers[i]], name, " has ", numbers[i], " twice");
    there[numbers[i]] = true;
  }
  return numbers;
}

std::vector<Sequence> check_sequences(const Tensor& sizes, const Tensor& queries, const Tensor& keys) {
  STD_TORCH_CHECK(sizes.is_cpu() && sizes.scalar_type() == ScalarType::Long && sizes.dim() == 2 && sizes.size(1) == 2 &&
                      sizes.is_contiguous(),
                  "sizes must be (sequences, 2), contiguous, of int64 and on the CPU");
  check_storage(sizes, "sizes");
  const int64_t* given = const_data<int64_t>(sizes);
  std::vector<Sequence> sequences;
  int64_t query = 0, key = 0;
  for (int64_t i = 0; i < sizes.size(0); ++i) {
    const int64_t asked = given[2 * i], seen = given[2 * i + 1];
    STD_TORCH_CHECK(asked >= 1 && seen >= asked, "sequence ", i, " has ", asked, " queries and ", seen,
                    " keys; it needs a query at least, and as many keys");
    STD_TORCH_CHECK(asked <= queries.size(0) - query && seen <= keys.size(0) - key,
                    "sizes must add up to the queries and keys");
    sequences.push_back({query, asked, key, seen});
    query += asked;
    key += seen;
  }
  STD_TORCH_CHECK(query == queries.size(0) && key == keys.size(0), "sizes must add up to the queries and keys");
  // A large one beside a small one, so that threads, which take neighbours, have as much to do as each other.
  const auto cost = [](const Sequence& sequence) { return sequence.queries * sequence.keys; };
  std::stable_sort(sequences.begin(), sequences.end(),
                   [&](const Sequence& one, const Sequence& other) { return cost(one) > cost(other); });
  std::vector<Sequence> dealt;
  for (size_t i = 0; i < sequences.size(); ++i) {
    dealt.push_back(sequences[i % 2 == 0 ? i / 2 : sequences.size() - 1 - i / 2]);
  }
  return dealt;
}

template <class T>
Attention<T> described(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& queries, const Tensor& keys,
                       double scale, int64_t window) {
  const int64_t heads = k.size(1), groups = heads > 0 ? q.size(1) / heads : 0;
  STD_TORCH_CHECK(groups >= 1 && groups * heads == q.size(1), "q has ", q.size(1), " heads and k ", heads,
                  "; the first must be a multiple of the second");
  STD_TORCH_CHECK(q.size(2) == k.size(2) && k.sizes().equals(v.sizes()) && k.scalar_type() == q.scalar_type() &&
                      v.scalar_type() == q.scalar_type(),
                  "q, k and v must agree in depth and dtype, and k and v in shape");
  STD_TORCH_CHECK(window >= 0, "window is ", window, "; it must be a number of keys, or 0 for all");
  Attention<T> call{};
  call.q = const_data<T>(q);
  call.k = const_data<T>(k);
  call.v = const_data<T>(v);
  for (int i = 0; i < 2; ++i) {
    call.q_stride[i] = q.stride(i);
    call.k_stride[i] = k.stride(i);
    call.v_stride[i] = v.stride(i);
  }
  call.queries = check_tokens(queries, "queries", q.size(0), true);
  call.keys = check_tokens(keys, "keys", k.size(0), false);
  call.heads = call.some_heads = heads;
  call.groups = groups;
  call.depth = q.size(2);
  call.window = window;
  call.scale = static_cast<float>(scale);
  return call;
}

template <class T>
void over_heads(const std::vector<Sequence>& sequences, const Attention<T>& call,
                void (*kernel)(int64_t, int64_t, const Attention<T>&)) {
  const int64_t items = static_cast<int64_t>(sequences.size()) * call.some_heads;
  const int64_t products =
      std::accumulate(sequences.begin(), sequences.end(), int64_t{0},
                      [](int64_t sum, const Sequence& sequence) { return sum + sequence.queries * sequence.keys; });
  const int64_t each = products * call.groups * call.depth / std::max<int64_t>(1, sequences.size());
  parallel(items, each, [&](int64_t begin, int64_t end) {
    kernel(begin, end, call);
    shrink_scratch();
  });
}

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& queries,
                                         const Tensor& keys, const Tensor& sizes, double scale, int64_t window) {
  check_heads(q, "q");
  check_heads(k, "k");
  check_heads(v, "v");
  const std::vector<Sequence> sequences = check_sequences(sizes, queries, keys);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1)}, ScalarType::Float);
  by_large_type(q, [&](auto zero) {
    using T = decltype(zero);
    Attention<T> call = described<T>(q, k, v, queries, keys, scale, window);
    call.sequences = sequences.data();
    call.out = data<T>(out);
    call.lse = data<float>(lse);
    over_heads(sequences, call, chosen_kernels<T>().attend);
  });
  return {out, lse};
}

// Where each token's parts of a gradient lie among those of all sequences' keys.
struct Parts {
  std::vector<int64_t> starts, places;

  Parts(const int64_t* keys, int64_t count, int64_t tokens)
      : starts(static_cast<size_t>(tokens) + 1), places(static_cast<size_t>(count)) {
    for (int64_t i = 0; i < count; ++i) ++starts[keys[i] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < count; ++i) places[next[keys[i]]++] = i;
  }

  // Adds them up, for each token in the same order: numbers of (parts, numbers) to some of (tokens, stride).
  template <class T>
  void add_up(const float* parts, int64_t numbers, T* to, int64_t stride) const {
    const int64_t tokens = static_cast<int64_t>(starts.size()) - 1;
    parallel(tokens, numbers * 2, [&](int64_t begin, int64_t end) {
      std::vector<float> sums(static_cast<size_t>(numbers));
      for (int64_t token = begin; token < end; ++token) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t i = starts[token]; i < starts[token + 1]; ++i) {
          const float* part = parts + places[i] * numbers;
          for (int64_t j = 0; j < numbers; ++j) sums[j] += part[j];
        }
        for (int64_t j = 0; j < numbers; ++j) round_to(sums[j], to + token * stride + j);
      }
    });
  }
};

constexpr int64_t kPartBytes = int64_t{64} << 20;  // of parts that exist at one time, or those of one head

std::tuple<Tensor, Tensor, Tensor> attention_backward_cpu(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                          const Tensor& v, const Tensor& lse, const Tensor& queries,
                                                          const Tensor& keys, const Tensor& sizes, double scale,
                                                          int64_t window) {
  check_heads(q, "q");
  check_heads(k, "k");
  check_heads(v, "v");
  check_same(dout, "dout", q, "q");
  for (const auto& [x, name] : {std::pair(dout, "dout"), std::pair(lse, "lse")}) {
    STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), name, " must be contiguous and on the CPU");
    check_storage(x, name);
  }
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Float && lse.numel() == q.size(0) * q.size(1), "lse must be (",
                  q.size(0), ", ", q.size(1), ") in Float");
  const std::vector<Sequence> sequences = check_sequences(sizes, queries, keys);
  Tensor dq = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  Tensor dk = torch::stable::new_empty(k, {k.size(0), k.size(1), k.size(2)});
  Tensor dv = torch::stable::new_empty(k, {k.size(0), k.size(1), k.size(2)});
  const int64_t heads = k.size(1), depth = k.size(2), each = 2 * keys.size(0) * depth * 4;
  const int64_t most = std::clamp<int64_t>(each > 0 ? kPartBytes / each : heads, 1, std::max<int64_t>(1, heads));
  Tensor parts = torch::stable::new_empty(k, {2, keys.size(0), most, depth}, ScalarType::Float);
  by_large_type(q, [&](auto zero) {
    using T = decltype(zero);
    Attention<T> call = described<T>(q, k, v, queries, keys, scale, window);
    const Parts where(call.keys, keys.size(0), k.size(0));
    call.sequences = sequences.data();
    call.lse = const_cast<float*>(const_data<float>(lse));
    call.dout = const_data<T>(dout);
    call.dq = data<T>(dq);
    for (int64_t head = 0; head < heads; head += most) {
      call.first_head = head;
      call.some_heads = std::min(most, heads - head);
      const int64_t numbers = call.some_heads * depth;
      call.dk = data<float>(parts);
      call.dv = call.dk + keys.size(0) * numbers;
      over_heads(sequences, call, chosen_kernels<T>().attend_backward);
      where.add_up(call.dk, numbers, data<T>(dk) + head * depth, heads * depth);
      where.add_up(call.dv, numbers, data<T>(dv) + head * depth, heads * depth);
    }
  });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ftengine, CPU, library) {
  library.impl("attention", TORCH_BOX(&attention_cpu));
  library.impl("attention_backward", TORCH_BOX(&attention_backward_cpu));
}

}  // namespace ftengine::cpu
