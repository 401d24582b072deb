// The device layer on the host: a block of threads as fibers that take turns in random order.
//
// A fiber runs until it meets others: at a barrier (the block), at a shuffle or an mma (the warp). Whoever arrives last
// does the work of the meeting. So a result depends on the order of fibers only where a kernel is wrong, and wrong
// kernels are found in four ways: shared memory begins as NaN, every access to it is checked for bounds and for a race
// (two threads, no barrier between, one of them writing), and a meeting that some thread never joins is an error.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>

#define FTENGINE_DEVICE inline
#define FTENGINE_KERNEL(threads, blocks) inline void
#define FTENGINE_UNROLL
#define FTENGINE_KEEP_LOOP

namespace ftengine::device {

// The order in which blocks and fibers run.
struct Stream {
  uint64_t order;
};

namespace emulated {

// What every thread of a warp or block brings to a meeting; they must agree on what it is.
enum class Meeting { kBarrier, kShuffle, kMma };

constexpr int kBrought = 16;  // floats that a lane brings and takes, at most

struct Thread {
  int index;
  float brought[kBrought];
  float taken[4];
};

int block_index();
int block_count();
int thread_count();
Thread& current();

// Waits until all have come; the last one calls work with the threads of its warp, or of the block.
void meet(Meeting meeting, void (*work)(Thread* threads));

float load_shared(int index);
void store_shared(int index, float value);

// Runs body as every thread of every block. Throws std::runtime_error on the first thing found wrong.
void run(int64_t blocks, int threads, int64_t shared_bytes, Stream stream, const std::function<void()>& body);

}  // namespace emulated

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  emulated::run(blocks, threads, shared_bytes, stream, [&] { kernel(arguments...); });
}

inline int block_index() { return emulated::block_index(); }
inline int block_count() { return emulated::block_count(); }
inline int thread_index() { return emulated::current().index; }
inline int thread_count() { return emulated::thread_count(); }

inline void barrier() {
  emulated::meet(emulated::Meeting::kBarrier, [](emulated::Thread*) {});
}

inline float shuffle(float value, int lane) {
  emulated::Thread& self = emulated::current();
  self.brought[0] = value;
  self.brought[1] = static_cast<float>(lane);
  emulated::meet(emulated::Meeting::kShuffle, [](emulated::Thread* warp) {
    for (int i = 0; i < 32; ++i) warp[i].taken[0] = warp[static_cast<int>(warp[i].brought[1])].brought[0];
  });
  return self.taken[0];
}

class Shared {
 public:
  float load(int index) const { return emulated::load_shared(index); }
  void store(int index, float value) { emulated::store_shared(index, value); }
};

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(double x) { return static_cast<float>(x); }
inline float to_float(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00) return bits_to_float(sign | 0x7F800000 | magnitude << 13);  // infinite, or no number
  // Exponents differ by 112; the product rounds nothing and makes subnormal numbers normal.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline double from_float<double>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = float_to_bits(x);
  if (std::isnan(x)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float x) {
  const uint16_t sign = static_cast<uint16_t>(float_to_bits(x) >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return {0x7FFF};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};  // rounds beyond the largest, 65504
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24, rounded to even by the host
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  const uint32_t bits = float_to_bits(magnitude) - (112u << 23);
  return {static_cast<uint16_t>(sign | (bits + 0xFFF + (bits >> 13 & 1)) >> 13)};
}

// mma.m16n8k16 with the fragments of the PTX manual, see device.cuh.
template <typename T>
void mma(float (&c)[4], const Pair<T> (&a)[4], const Pair<T> (&b)[2]) {
  emulated::Thread& self = emulated::current();
  const auto bring = [&self](int i, Pair<T> pair) {
    self.brought[i] = to_float(T{static_cast<uint16_t>(pair.bits)});
    self.brought[i + 1] = to_float(T{static_cast<uint16_t>(pair.bits >> 16)});
  };
  for (int i = 0; i < 4; ++i) bring(2 * i, a[i]);
  for (int i = 0; i < 2; ++i) bring(8 + 2 * i, b[i]);
  for (int i = 0; i < 4; ++i) self.brought[12 + i] = c[i];
  emulated::meet(emulated::Meeting::kMma, [](emulated::Thread* warp) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const float* brought = warp[lane].brought;
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) left[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = brought[i];
      for (int i = 0; i < 4; ++i) right[2 * t + i % 2 + 8 * (i / 2)][g] = brought[8 + i];
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        float sum = warp[lane].brought[12 + i];
        for (int k = 0; k < 16; ++k) sum += left[g + 8 * (i / 2)][k] * right[k][2 * t + i % 2];
        warp[lane].taken[i] = sum;
      }
    }
  });
  for (int i = 0; i < 4; ++i) c[i] = self.taken[i];
}

// A GPU faults on sixteen bytes that do not begin at a multiple of sixteen; so does this.
inline void check_octet(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    throw std::runtime_error("emulated kernel: a misaligned address for sixteen bytes");
  }
}

template <typename T>
Octet<T> load_octet(const T* from) {
  check_octet(from);
  Octet<T> octet;
  std::memcpy(&octet, from, sizeof octet);
  return octet;
}
template <typename T>
void store_octet(T* to, const Octet<T>& octet) {
  check_octet(to);
  std::memcpy(to, &octet, sizeof octet);
}

}  // namespace ftengine::device
