// RMS norms and gates, written once in plain loops that each instruction set's compiler turns into vectors;
// rows are contiguous in element type T, and everything is computed in fp32 and rounded once.
//
// A number of a result depends on nothing but its own row (weight gradients: its own column): threads change no bit.

#pragma once

#include "cpu/bfloat16.h"
#include "cpu/compiler.h"
#include "cpu/kernels.h"

namespace ftengine::cpu {
namespace {

constexpr int kBlock = 64;  // elements: a few vectors, so that partial sums do not wait for each other
constexpr int kSums = 32;

// n <= kBlock elements in fp32: where they lie, or in the buffer.
FTENGINE_INLINE const float* widened(const float* from, int, float*) { return from; }
FTENGINE_INLINE const float* widened(const bfloat16* from, int n, float* buffer) {
  if (n == kBlock) {
    for (int i = 0; i < kBlock; ++i) buffer[i] = to_float(from[i]);
  } else {
    for (int i = 0; i < n; ++i) buffer[i] = to_float(from[i]);
  }
  return buffer;
}

// body(first, n) for blocks of kBlock elements, n a constant in all but the last.
template <class Body>
FTENGINE_INLINE void by_blocks(int64_t begin, int64_t end, const Body& body) {
  int64_t at = begin;
  for (; at + kBlock <= end; at += kBlock) body(at, kBlock);
  if (at < end) body(at, static_cast<int>(end - at));
}

struct Sum {
  float parts[kSums] = {};
  FTENGINE_INLINE float total() const {
    float sum = 0;
    for (float part : parts) sum += part;
    return sum;
  }
};

// sum += Σ value(i), i < n, in a fixed order.
template <class Value>
FTENGINE_INLINE void add(Sum& sum, int n, const Value& value) {
  int i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) sum.parts[j] += value(i + j);
  }
  for (int j = 0; i + j < n; ++j) sum.parts[j] += value(i + j);
}

// e^x for x <= 0, to two units of fp32's rounding; below the smallest normal number, zero; a NaN stays one. (Cody and
// Waite's reduction, and a polynomial of degree 6.)
FTENGINE_INLINE float exp_of(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2²³: what is added to it is rounded to an integer
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + kMagic, n = shifted - kMagic;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits, power;
  __builtin_memcpy(&bits, &p, sizeof bits);
  __builtin_memcpy(&power, &shifted, sizeof power);
  bits += power << 23;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return x != x ? x : x < -87.0f ? 0.0f : result;
}

// --- y = w ∘ x / rms(x) ----------------------------------------------------------------------------------------------

template <class T>
void rms_norm(int64_t begin, int64_t end, const T* x, const float* __restrict w, T* y, float* rstd, int64_t length,
              float eps) {
  float buffer[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const T* from = x + row * length;
    T* __restrict to = y + row * length;
    Sum squares;
    by_blocks(0, length, [&](int64_t at, int n) FTENGINE_LAMBDA {
      const float* v = widened(from + at, n, buffer);
      add(squares, n, [=](int i) FTENGINE_LAMBDA { return v[i] * v[i]; });
    });
    const float inverse = 1.0f / __builtin_sqrtf(squares.total() / static_cast<float>(length) + eps);
    rstd[row] = inverse;
    by_blocks(0, length, [&](int64_t at, int n) FTENGINE_LAMBDA {
      const float* v = widened(from + at, n, buffer);
      for (int i = 0; i < n; ++i) round_to(v[i] * inverse * w[at + i], to + at + i);
    });
  }
}

// dx = rstd · (w ∘ dy - x · rstd² · mean(w ∘ dy ∘ x))
template <class T>
void rms_norm_backward(int64_t begin, int64_t end, const T* dy, const T* x, const float* __restrict w,
                       const float* rstd, T* dx, int64_t length) {
  float buffer_x[kBlock], buffer_dy[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const T *of_x = x + row * length, *of_dy = dy + row * length;
    T* __restrict to = dx + row * length;
    const float inverse = rstd[row];
    Sum products;
    by_blocks(0, length, [&](int64_t at, int n) FTENGINE_LAMBDA {
      const float *v = widened(of_x + at, n, buffer_x), *d = widened(of_dy + at, n, buffer_dy);
      add(products, n, [=](int i) FTENGINE_LAMBDA { return v[i] * d[i] * w[at + i]; });
    });
    const float share = products.total() * inverse * inverse / static_cast<float>(length);
    by_blocks(0, length, [&](int64_t at, int n) FTENGINE_LAMBDA {
      const float *v = widened(of_x + at, n, buffer_x), *d = widened(of_dy + at, n, buffer_dy);
      for (int i = 0; i < n; ++i) round_to(inverse * (d[i] * w[at + i] - v[i] * share), to + at + i);
    });
  }
}

// dw[l] = Σ_m dy[m, l] · x[m, l] · rstd[m] for columns begin <= l < end.
template <class T>
void rms_norm_weight(int64_t begin, int64_t end, const T* dy, const T* x, const float* rstd, float* dw, int64_t rows,
                     int64_t length) {
  float buffer_x[kBlock], buffer_dy[kBlock];
  by_blocks(begin, end, [&](int64_t at, int n) FTENGINE_LAMBDA {
    float sums[kBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const float* v = widened(x + row * length + at, n, buffer_x);
      const float* d = widened(dy + row * length + at, n, buffer_dy);
      for (int i = 0; i < n; ++i) sums[i] += v[i] * d[i] * rstd[row];
    }
    for (int i = 0; i < n; ++i) dw[at + i] = sums[i];
  });
}

// --- y = silu(gate) ∘ up, silu(g) = g · σ(g) ---------------------------------------------------------

FTENGINE_INLINE float sigmoid(float x) {
  const float e = exp_of(x < 0 ? x : -x), share = 1.0f / (1.0f + e);
  return x < 0 ? e * share : share;
}

template <class T>
void silu_mul(int64_t begin, int64_t end, const T* gate, const T* up, T* __restrict y) {
  float buffer_gate[kBlock], buffer_up[kBlock];
  by_blocks(begin, end, [&](int64_t at, int n) FTENGINE_LAMBDA {
    const float *g = widened(gate + at, n, buffer_gate), *u = widened(up + at, n, buffer_up);
    for (int i = 0; i < n; ++i) round_to(g[i] * sigmoid(g[i]) * u[i], y + at + i);
  });
}

template <class T>
void silu_mul_backward(int64_t begin, int64_t end, const T* dy, const T* gate, const T* up, T* __restrict dgate,
                       T* __restrict dup) {
  float buffer_dy[kBlock], buffer_gate[kBlock], buffer_up[kBlock];
  by_blocks(begin, end, [&](int64_t at, int n) FTENGINE_LAMBDA {
    const float *d = widened(dy + at, n, buffer_dy), *g = widened(gate + at, n, buffer_gate);
    const float* u = widened(up + at, n, buffer_up);
    for (int i = 0; i < n; ++i) {
      const float share = sigmoid(g[i]);
      round_to(d[i] * u[i] * share * (1.0f + g[i] * (1.0f - share)), dgate + at + i);
      round_to(d[i] * g[i] * share, dup + at + i);
    }
  });
}

}  // namespace
}  // namespace ftengine::cpu
