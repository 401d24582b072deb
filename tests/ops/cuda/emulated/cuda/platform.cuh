// csrc/cuda/platform.cuh on the host: the threads of some blocks as fibers that take turns in random order.
//
// A fiber runs until it meets others: at a barrier (the block), at a warp's barrier or an mma (the warp). Whoever
// arrives last does the work of the meeting. So a result depends on the order of fibers only where a kernel is wrong.
// Found besides: shared memory that nobody wrote, accesses out of its bounds, races in it (two threads, no barrier
// between, one of them writing), misaligned wide accesses, a meeting that some thread never joins or joins at another
// place of the source, copies that nobody waited for, launches beyond the limits, and waiting for a block that has not
// begun. Not found: missing fences, since fibers see each other's writes to global memory at once.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __forceinline__ inline
#define __global__ inline
#define __launch_bounds__(threads, blocks)

namespace ftengine::device {

// The order in which blocks and fibers run.
struct Stream {
  uint64_t order;
};

namespace emulated {

// Where in the source something happens.
struct Site {
  const char* file;
  int line;
};
#define FTENGINE_SITE emulated::Site site = {__builtin_FILE(), __builtin_LINE()}

enum class Meeting { kBarrier, kWarpBarrier, kMma };

struct Thread {
  int block, index;
  // What a lane gives to an mma, and what it receives.
  float given[16], received[4];
};

extern int multiprocessors;  // of the emulated device, each of which holds one block
extern int64_t launches;     // of kernels and fillings of memory, so far

Thread& current();
int thread_count();

// Waits until all of the block, or of the warp, have come to this site; the last one calls work with their threads.
void meet(Meeting meeting, Site site, void (*work)(Thread* threads) = nullptr);
// Lets other threads run, of other blocks too; polls is true where nothing changes but by what they do.
void yield(bool polls);

void check_aligned(const void* address, size_t bytes);
void load_shared(int word, int count, uint32_t* to);
void store_shared(int word, int count, const uint32_t* from);
void copy_async(int word, const void* from, bool inside);
void commit_copies();
void wait_for_copies(int pending);

// Runs body as every thread of every block. Throws std::runtime_error on the first thing found wrong.
void run(int64_t blocks, int threads, int64_t shared_bytes, Stream stream, const std::function<void()>& body);

}  // namespace emulated

template <typename Kernel>
int64_t resident_blocks(Kernel*, int, int64_t) {
  return emulated::multiprocessors;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kMaxParameterBytes, "too many parameters for a kernel");
  ++emulated::launches;
  emulated::run(blocks, threads, shared_bytes, stream, [&] { kernel(arguments...); });
}

inline void zero(void* memory, int64_t bytes, Stream) {
  ++emulated::launches;
  std::memset(memory, 0, bytes);
}

inline int block_index() { return emulated::current().block; }
inline int thread_index() { return emulated::current().index; }
inline int thread_count() { return emulated::thread_count(); }

inline void barrier(FTENGINE_SITE) { emulated::meet(emulated::Meeting::kBarrier, site); }
inline void warp_barrier(FTENGINE_SITE) { emulated::meet(emulated::Meeting::kWarpBarrier, site); }

inline void fence() { emulated::yield(false); }
inline uint32_t atomic_add(uint32_t* to, uint32_t value) {
  emulated::yield(value == 0);
  const uint32_t before = *to;
  *to += value;
  return before;
}
inline float load_coherent(const float* from) { return *from; }

template <typename V>
V load_vector(const void* from) {
  emulated::check_aligned(from, sizeof(V));
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename V>
void store_vector(void* to, const V& value) {
  emulated::check_aligned(to, sizeof(V));
  std::memcpy(to, &value, sizeof value);
}

class Shared {
 public:
  template <typename V>
  V load(int word) const {
    static_assert(sizeof(V) % 4 == 0 && sizeof(V) <= 16, "shared memory is accessed by 1 to 4 words");
    uint32_t words[sizeof(V) / 4];
    emulated::load_shared(word, sizeof(V) / 4, words);
    V value;
    std::memcpy(&value, words, sizeof value);
    return value;
  }
  template <typename V>
  void store(int word, const V& value) {
    static_assert(sizeof(V) % 4 == 0 && sizeof(V) <= 16, "shared memory is accessed by 1 to 4 words");
    uint32_t words[sizeof(V) / 4];
    std::memcpy(words, &value, sizeof value);
    emulated::store_shared(word, sizeof(V) / 4, words);
  }
  void copy_async(int word, const void* from, bool inside) { emulated::copy_async(word, from, inside); }
};

inline void commit_copies() { emulated::commit_copies(); }
template <int N>
void wait_for_copies() {
  emulated::wait_for_copies(N);
}

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

inline float to_float(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00) return bits_to_float(sign | 0x7F800000 | magnitude << 13);  // infinite, or no number
  // Exponents differ by 112; the product rounds nothing and makes subnormal numbers normal.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

template <typename T>
T round_to(float x);
template <>
inline BFloat16 round_to<BFloat16>(float x) {
  const uint32_t bits = float_to_bits(x);
  if (std::isnan(x)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half round_to<Half>(float x) {
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

template <typename T>
uint32_t make_word(float low, float high) {
  return round_to<T>(low).bits | static_cast<uint32_t>(round_to<T>(high).bits) << 16;
}

inline uint32_t spread_signs(uint32_t word) { return (word >> 15 & 0x00010001) * 0xFFFF; }

// mma.m16n8k16 with the fragments of the PTX manual, see csrc/cuda/platform.cuh.
template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FTENGINE_SITE) {
  emulated::Thread& self = emulated::current();
  const auto give = [&self](int i, uint32_t word) {
    self.given[i] = to_float(T{static_cast<uint16_t>(word)});
    self.given[i + 1] = to_float(T{static_cast<uint16_t>(word >> 16)});
  };
  for (int i = 0; i < 4; ++i) give(2 * i, a[i]);
  for (int i = 0; i < 2; ++i) give(8 + 2 * i, b[i]);
  for (int i = 0; i < 4; ++i) self.given[12 + i] = c[i];
  emulated::meet(emulated::Meeting::kMma, site, [](emulated::Thread* warp) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const float* given = warp[lane].given;
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) left[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = given[i];
      for (int i = 0; i < 4; ++i) right[2 * t + i % 2 + 8 * (i / 2)][g] = given[8 + i];
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        float sum = warp[lane].given[12 + i];
        for (int k = 0; k < 16; ++k) sum += left[g + 8 * (i / 2)][k] * right[k][2 * t + i % 2];
        warp[lane].received[i] = sum;
      }
    }
  });
  for (int i = 0; i < 4; ++i) c[i] = self.received[i];
}

}  // namespace ftengine::device
