// Attention of sequences whose tokens lie anywhere, over the vectors of templates.h, computed in fp32 for any element
// type.
//
// Scores of some queries against all of their keys are held at once, and computed anew in the backward pass: no matrix
// of queries x keys is kept. Each product is C (+)= A B with B's columns in vectors; A is read number by number, so
// that it may be a transpose.

#pragma once

namespace ftengine::cpu {
namespace {

constexpr int64_t kTileRows = 4;                           // of C, with as many accumulators in each as fit
constexpr int kTileVectors = W == 16 ? 4 : 2;              // of 16, 8 or 4 columns
constexpr int64_t kAttentionUnit = 16;                     // keys and depths are multiples of this in copies
constexpr int64_t kProductSteps = 32;                      // long sums are sums of sums
constexpr int64_t kScores = 1 << 16, kMostQueryRows = 64;  // of a block, as far as it has more than kTileRows rows
constexpr int64_t kFewRows = 16, kFewKeys = 128;           // of queries and groups that are computed without copies
static_assert(kAttentionUnit % kTileRows == 0 && kAttentionUnit % W == 0);

// Where an operand's element (row, step) lies.
struct Strided {
  const float* data;
  int64_t row, step;
};

template <int kVectors>
FTENGINE_INLINE void product_tile(const Strided& a, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                                  int64_t steps, bool add_to_c) {
  Vector sums[kTileRows][kVectors];
  for (int64_t k = 0; k < steps; ++k) {
    Vector columns[kVectors];
    FTENGINE_UNROLL
    for (int j = 0; j < kVectors; ++j) columns[j] = Vector::load(b + k * b_stride + j * W);
    FTENGINE_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      const Vector value(a.data[i * a.row + k * a.step]);
      FTENGINE_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[i][j] = fma(value, columns[j], sums[i][j]);
    }
  }
  FTENGINE_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    FTENGINE_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + i * c_stride + j * W;
      (add_to_c ? add(sums[i][j], Vector::load(to)) : sums[i][j]).store(to);
    }
  }
}

// C (rows, columns) = A (rows, steps) B (steps, columns), or += that. rows are a multiple of kTileRows, columns of
// kAttentionUnit.
void product(int64_t rows, int64_t columns, int64_t steps, const Strided& a, const float* b, int64_t b_stride, float* c,
             int64_t c_stride, bool add_to_c) {
  for (int64_t k = 0; k < steps; k += kProductSteps) {
    const int64_t some = least(kProductSteps, steps - k);
    const bool add = add_to_c || k > 0;
    int64_t column = 0;
    const auto strip = [&](auto vectors) FTENGINE_LAMBDA {
      for (int64_t row = 0; row < rows; row += kTileRows) {
        product_tile<decltype(vectors)::value>({a.data + row * a.row + k * a.step, a.row, a.step},
                                               b + k * b_stride + column, b_stride, c + row * c_stride + column,
                                               c_stride, some, add);
      }
      column += decltype(vectors)::value * W;
    };
    while (column + kTileVectors * W <= columns) strip(Count<kTileVectors>{});
    if constexpr (kTileVectors == 4) {
      if (column + 2 * W <= columns) strip(Count<2>{});
      if (column < columns) strip(Count<1>{});
    }
  }
}

// (columns, rows) of (rows, columns), both multiples of kAttentionUnit; by four at a time.
void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  using Four = float __attribute__((vector_size(16)));
  const auto at = [](const float* x) FTENGINE_LAMBDA {
    Four value;
    __builtin_memcpy(&value, x, sizeof value);
    return value;
  };
  for (int64_t row = 0; row < rows; row += 4) {
    for (int64_t column = 0; column < columns; column += 4) {
      const float* x = from + row * columns + column;
      const Four a = at(x), b = at(x + columns), c = at(x + 2 * columns), d = at(x + 3 * columns);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four low = __builtin_shufflevector(a, b, 2, 6, 3, 7), high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four columns_of[4] = {
          __builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
          __builtin_shufflevector(low, high, 0, 1, 4, 5), __builtin_shufflevector(low, high, 2, 3, 6, 7)};
      FTENGINE_UNROLL
      for (int j = 0; j < 4; ++j) __builtin_memcpy(to + (column + j) * rows + row, &columns_of[j], sizeof(Four));
    }
  }
}

// n numbers as fp32, times factor, and zeros up to `length`.
template <class T>
FTENGINE_INLINE void copy_wide(const T* from, int64_t n, float factor, float* to, int64_t length) {
  for (int64_t i = 0; i < n; ++i) to[i] = factor * to_float(from[i]);
  for (int64_t i = n; i < length; ++i) to[i] = 0;
}

// One head of keys of a sequence, and the blocks of queries that it is computed by.
template <class T>
class Head {
 public:
  Head(const Attention<T>& call, int64_t item)
      : call(call),
        sequence(call.sequences[item / call.some_heads]),
        head(call.first_head + item % call.some_heads),
        depth(multiple(call.depth, kAttentionUnit)),
        length(multiple(sequence.keys, kAttentionUnit)),
        before(sequence.keys - sequence.queries) {
    const int64_t rows = least(kMostQueryRows, kScores / length > kTileRows ? kScores / length : kTileRows);
    block = rows / call.groups > 1 ? rows / call.groups : 1;
    block_rows = multiple(block * call.groups, kTileRows);
  }

  // (length, depth), zeros where there is no key
  void copy(const T* from, const int64_t (&stride)[2], float* to) const {
    const int64_t* token = call.keys + sequence.first_key;
    for (int64_t i = 0; i < sequence.keys; ++i) {
      copy_wide(from + token[i] * stride[0] + head * stride[1], call.depth, 1.0f, to + i * depth, depth);
    }
    for (int64_t i = sequence.keys * depth; i < length * depth; ++i) to[i] = 0;
  }

  // Of row i of a block: the query's token and head.
  int64_t token(int64_t first, int64_t row) const {
    return call.queries[sequence.first_query + first + row / call.groups];
  }
  int64_t head_of(int64_t row) const { return head * call.groups + row % call.groups; }

  // The keys that a query sees.
  int64_t begin_of(int64_t query) const {
    const int64_t end = end_of(query);
    return call.window > 0 && end > call.window ? end - call.window : 0;
  }
  int64_t end_of(int64_t query) const { return before + query + 1; }

  // body(first query, rows, first key, keys) of blocks of queries, keys multiples of kAttentionUnit
  template <class Body>
  void by_blocks_of_queries(const Body& body) const {
    for (int64_t first = 0; first < sequence.queries; first += block) {
      const int64_t queries = least(block, sequence.queries - first);
      const int64_t begin = begin_of(first) / kAttentionUnit * kAttentionUnit;
      body(first, queries * call.groups, begin, multiple(end_of(first + queries - 1) - begin, kAttentionUnit));
    }
  }

  const Attention<T>& call;
  const Sequence sequence;
  const int64_t head, depth, length, before;
  int64_t block, block_rows;
};

// A thread's scratch memory, given out piece by piece.
class Room {
 public:
  explicit Room(int64_t numbers)
      : next_(static_cast<float*>(scratch(kSumsSlot, numbers * static_cast<int64_t>(sizeof(float))))) {}
  float* take(int64_t numbers) {
    float* here = next_;
    next_ += numbers;
    return here;
  }

 private:
  float* next_;
};

// --- out = softmax(scale · q kᵀ) v -----------------------------------------------------------------------------------

// Scores of a row to weights: e^(score - highest), zeros outside of begin <= key < end. Returns the log of their sum
// before they were divided by e^highest, and their sum.
FTENGINE_INLINE float softmax(float* scores, int64_t keys, int64_t begin, int64_t end, float* sum) {
  float parts[kSums];
  for (float& part : parts) part = scores[begin];
  int64_t i = begin;
  for (; i + kSums <= end; i += kSums) {
    for (int j = 0; j < kSums; ++j) parts[j] = parts[j] < scores[i + j] ? scores[i + j] : parts[j];
  }
  for (; i < end; ++i) parts[0] = parts[0] < scores[i] ? scores[i] : parts[0];
  float highest = parts[0];
  for (float part : parts) highest = highest < part ? part : highest;
  for (int64_t k = 0; k < begin; ++k) scores[k] = 0;
  for (int64_t k = begin; k < end; ++k) scores[k] = exp_of(scores[k] - highest);
  for (int64_t k = end; k < keys; ++k) scores[k] = 0;
  Sum total;
  by_blocks(begin, end, [&](int64_t at, int n) FTENGINE_LAMBDA {
    add(total, n, [=](int j) FTENGINE_LAMBDA { return scores[at + j]; });
  });
  *sum = total.total();
  return highest + __builtin_logf(*sum);
}

// Scores of kRows rows of queries, (kRows, of.depth) in fp32, against keys begin <= key < end, which are read where
// they lie, four at a time; row by row, `length` apart.
template <int kRows, class T>
void few_scores(const Head<T>& of, const float* q, int64_t begin, int64_t end, float* scores) {
  const Attention<T>& call = of.call;
  const int64_t* token = call.keys + of.sequence.first_key;
  const T* k = call.k + of.head * call.k_stride[1];
  const int64_t whole = call.depth / W * W;
  for (int64_t key = begin; key < end; key += 4) {
    const T* rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = k + token[least(key + i, end - 1)] * call.k_stride[0];
    Vector sums[kRows][4];
    const auto step = [&](int64_t d, auto lanes) FTENGINE_LAMBDA {
      Vector columns[4];
      FTENGINE_UNROLL
      for (int i = 0; i < 4; ++i) columns[i] = load(rows[i] + d, lanes);
      FTENGINE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vector query = Vector::load(q + r * of.depth + d);
        FTENGINE_UNROLL
        for (int i = 0; i < 4; ++i) sums[r][i] = fma(columns[i], query, sums[r][i]);
      }
    };
    for (int64_t d = 0; d < whole; d += W) step(d, Full{});
    if (whole < call.depth) step(whole, static_cast<int>(call.depth - whole));
    for (int r = 0; r < kRows; ++r) {
      float four[4] = {0, 0, 0, 0};
      add_sums(sums[r], four);
      for (int i = 0; i < 4; ++i) scores[r * of.length + key + i] = four[i];
    }
  }
}

// out (kRows, of.depth) = weights (kRows, keys) v of keys begin <= key < end; long sums are sums of sums.
template <int kRows, class T>
void few_sums(const Head<T>& of, const float* weights, int64_t begin, int64_t end, float* out) {
  const Attention<T>& call = of.call;
  const int64_t* token = call.keys + of.sequence.first_key;
  const T* v = call.v + of.head * call.v_stride[1];
  for (int64_t first = begin; first < end; first += kFewKeys) {
    const int64_t last = least(first + kFewKeys, end);
    const auto strip = [&](int64_t d, auto vectors, auto lanes) FTENGINE_LAMBDA {
      constexpr int kVectors = decltype(vectors)::value;
      Vector sums[kRows][kVectors];
      for (int64_t key = first; key < last; ++key) {
        const T* row = v + token[key] * call.v_stride[0] + d;
        Vector columns[kVectors];
        FTENGINE_UNROLL
        for (int j = 0; j < kVectors; ++j) columns[j] = load(row + j * W, lanes);
        FTENGINE_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const Vector weight(weights[r * of.length + key]);
          FTENGINE_UNROLL
          for (int j = 0; j < kVectors; ++j) sums[r][j] = fma(weight, columns[j], sums[r][j]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int j = 0; j < kVectors; ++j) {
          float* to = out + r * of.depth + d + j * W;
          (first == begin ? sums[r][j] : add(sums[r][j], Vector::load(to))).store(to);
        }
      }
    };
    int64_t d = 0;
    for (; d + kTileVectors * W <= call.depth; d += kTileVectors * W) strip(d, Count<kTileVectors>{}, Full{});
    for (; d + W <= call.depth; d += W) strip(d, Count<1>{}, Full{});
    if (d < call.depth) strip(d, Count<1>{}, static_cast<int>(call.depth - d));
  }
}

// Of a sequence with few queries, as when answers grow by a token: no key is copied.
template <class T>
void attend_few(const Head<T>& of) {
  const Attention<T>& call = of.call;
  const int64_t rows = of.sequence.queries * call.groups, keys = of.sequence.keys, depth = of.depth;
  const int64_t from = of.begin_of(0) / 4 * 4;  // scores are written four at a time
  Room room(rows * (of.length + 2 * depth));
  float *scores = room.take(rows * of.length), *q = room.take(rows * depth), *out = room.take(rows * depth);
  for (int64_t row = 0; row < rows; ++row) {
    copy_wide(call.q + of.token(0, row) * call.q_stride[0] + of.head_of(row) * call.q_stride[1], call.depth, call.scale,
              q + row * depth, depth);
  }
  const auto some = [&](int64_t row, auto count) FTENGINE_LAMBDA {
    constexpr int kRows = decltype(count)::value;
    float sums[kRows];
    few_scores<kRows>(of, q + row * depth, from, keys, scores + row * of.length);
    for (int i = 0; i < kRows; ++i) {
      const int64_t query = (row + i) / call.groups;
      call.lse[of.token(0, row + i) * call.heads * call.groups + of.head_of(row + i)] =
          softmax(scores + (row + i) * of.length + from, keys - from, of.begin_of(query) - from,
                  of.end_of(query) - from, sums + i);
    }
    few_sums<kRows>(of, scores + row * of.length, from, keys, out + row * depth);
    for (int i = 0; i < kRows; ++i) {
      T* to = call.out + (of.token(0, row + i) * call.heads * call.groups + of.head_of(row + i)) * call.depth;
      for (int64_t d = 0; d < call.depth; ++d) round_to(out[(row + i) * depth + d] / sums[i], to + d);
    }
  };
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) some(row, Count<4>{});
  for (; row + 3 <= rows; row += 3) some(row, Count<3>{});
  for (; row + 2 <= rows; row += 2) some(row, Count<2>{});
  for (; row < rows; ++row) some(row, Count<1>{});
}

template <class T>
void attend(int64_t begin, int64_t end, const Attention<T>& call) {
  for (int64_t item = begin; item < end; ++item) {
    const Head<T> of(call, item);
    if (of.sequence.queries * call.groups <= kFewRows) {
      attend_few(of);
      continue;
    }
    const int64_t depth = of.depth, length = of.length, rows = of.block_rows;
    Room room(3 * length * depth + rows * (length + 2 * depth + 1));
    float *k = room.take(length * depth), *v = room.take(length * depth), *across = room.take(length * depth);
    float *scores = room.take(rows * length), *q = room.take(rows * depth), *out = room.take(rows * depth);
    float* sums = room.take(rows);
    of.copy(call.k, call.k_stride, k);
    of.copy(call.v, call.v_stride, v);
    transpose(k, length, depth, across);
    of.by_blocks_of_queries([&](int64_t first, int64_t count, int64_t from, int64_t keys) {
      const int64_t padded = multiple(count, kTileRows);
      for (int64_t row = 0; row < padded; ++row) {
        const T* here = row < count
                            ? call.q + of.token(first, row) * call.q_stride[0] + of.head_of(row) * call.q_stride[1]
                            : call.q;
        copy_wide(here, row < count ? call.depth : 0, call.scale, q + row * depth, depth);
      }
      product(padded, keys, call.depth, {q, depth, 1}, across + from, length, scores, length, false);
      for (int64_t row = 0; row < count; ++row) {
        const int64_t query = first + row / call.groups;
        call.lse[of.token(first, row) * call.heads * call.groups + of.head_of(row)] =
            softmax(scores + row * length, keys, of.begin_of(query) - from, of.end_of(query) - from, sums + row);
      }
      product(padded, depth, keys, {scores, length, 1}, v + from * depth, depth, out, depth, false);
      for (int64_t row = 0; row < count; ++row) {
        T* to = call.out + (of.token(first, row) * call.heads * call.groups + of.head_of(row)) * call.depth;
        const float factor = 1.0f / sums[row];
        for (int64_t i = 0; i < call.depth; ++i) round_to(out[row * depth + i] * factor, to + i);
      }
    });
  }
}

// p = softmax; dv = pᵀ dout; ds = p ∘ (dout vᵀ - Σ p ∘ dout vᵀ); dq = scale · ds k; dk = scale · dsᵀ q. Gradients of
// keys and values are a sequence's own.
template <class T>
void attend_backward(int64_t begin, int64_t end, const Attention<T>& call) {
  for (int64_t item = begin; item < end; ++item) {
    const Head<T> of(call, item);
    const int64_t depth = of.depth, length = of.length, rows = of.block_rows, all_heads = call.heads * call.groups;
    Room room(6 * length * depth + rows * (2 * length + 3 * depth));
    float *k = room.take(length * depth), *v = room.take(length * depth), *k_across = room.take(length * depth);
    float *v_across = room.take(length * depth), *dk = room.take(length * depth), *dv = room.take(length * depth);
    float *weights = room.take(rows * length), *slopes = room.take(rows * length);
    float *q = room.take(rows * depth), *dout = room.take(rows * depth), *dq = room.take(rows * depth);
    of.copy(call.k, call.k_stride, k);
    of.copy(call.v, call.v_stride, v);
    transpose(k, length, depth, k_across);
    transpose(v, length, depth, v_across);
    for (int64_t i = 0; i < length * depth; ++i) dk[i] = dv[i] = 0;
    of.by_blocks_of_queries([&](int64_t first, int64_t count, int64_t from, int64_t keys) {
      const int64_t padded = multiple(count, kTileRows);
      for (int64_t row = 0; row < padded; ++row) {
        const int64_t token = row < count ? of.token(first, row) : 0, head = of.head_of(row),
                      n = row < count ? call.depth : 0;
        copy_wide(call.q + token * call.q_stride[0] + head * call.q_stride[1], n, call.scale, q + row * depth, depth);
        copy_wide(call.dout + (token * all_heads + head) * call.depth, n, 1.0f, dout + row * depth, depth);
      }
      product(padded, keys, call.depth, {q, depth, 1}, k_across + from, length, weights, length, false);
      product(padded, keys, call.depth, {dout, depth, 1}, v_across + from, length, slopes, length, false);
      for (int64_t row = 0; row < count; ++row) {
        const int64_t at = of.token(first, row) * all_heads + of.head_of(row), query = first + row / call.groups;
        const float lse = call.lse[at];
        float *p = weights + row * length, *ds = slopes + row * length;
        const int64_t seen = of.begin_of(query) - from, unseen = of.end_of(query) - from;
        for (int64_t i = 0; i < seen; ++i) p[i] = ds[i] = 0;
        for (int64_t i = seen; i < unseen; ++i) p[i] = exp_of(p[i] > lse ? 0 : p[i] - lse);
        if (of.sequence.queries * call.groups <= kFewRows) {  // scores were summed in another order
          Sum weights_of_row;
          by_blocks(seen, unseen, [&](int64_t i, int n) FTENGINE_LAMBDA {
            add(weights_of_row, n, [=](int j) FTENGINE_LAMBDA { return p[i + j]; });
          });
          const float factor = 1.0f / weights_of_row.total();
          for (int64_t i = seen; i < unseen; ++i) p[i] *= factor;
        }
        Sum products;
        by_blocks(seen, unseen, [&](int64_t i, int n) FTENGINE_LAMBDA {
          add(products, n, [=](int j) FTENGINE_LAMBDA { return p[i + j] * ds[i + j]; });
        });
        const float mean = products.total();
        for (int64_t i = seen; i < unseen; ++i) ds[i] = p[i] * (ds[i] - mean);
        for (int64_t i = unseen; i < keys; ++i) p[i] = ds[i] = 0;
      }
      product(keys, depth, count, {weights, 1, length}, dout, depth, dv + from * depth, depth, true);
      product(keys, depth, count, {slopes, 1, length}, q, depth, dk + from * depth, depth, true);
      product(padded, depth, keys, {slopes, length, 1}, k + from * depth, depth, dq, depth, false);
      for (int64_t row = 0; row < count; ++row) {
        T* to = call.dq + (of.token(first, row) * all_heads + of.head_of(row)) * call.depth;
        for (int64_t i = 0; i < call.depth; ++i) round_to(call.scale * dq[row * depth + i], to + i);
      }
    });
    for (int64_t i = 0; i < of.sequence.keys; ++i) {
      const int64_t to = ((of.sequence.first_key + i) * call.some_heads + of.head - call.first_head) * call.depth;
      for (int64_t d = 0; d < call.depth; ++d) call.dk[to + d] = dk[i * depth + d];
      for (int64_t d = 0; d < call.depth; ++d) call.dv[to + d] = dv[i * depth + d];
    }
  }
}

}  // namespace
}  // namespace ftengine::cpu
