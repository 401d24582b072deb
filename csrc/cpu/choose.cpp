#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "philox.h"

namespace ftengine::cpu {
namespace {

// Best first.
std::vector<const InstructionSet*> usable() {
  std::vector<const InstructionSet*> found;
  for (const InstructionSet* set : {
#ifdef FTENGINE_HAVE_AVX512BF16
           &kAvx512Bf16,
#endif
#ifdef FTENGINE_HAVE_AVX512
           &kAvx512,
#endif
#ifdef FTENGINE_HAVE_AVX2
           &kAvx2,
#endif
           &kBaseline}) {
    if (set->usable()) found.push_back(set);
  }
  return found;
}

std::atomic<const InstructionSet*>& chosen() {
  static std::atomic<const InstructionSet*> set{usable().front()};
  return set;
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen().load(std::memory_order_relaxed); }

std::atomic<int64_t> least_for_onednn{std::numeric_limits<int64_t>::max()};

}  // namespace ftengine::cpu

// For Python, by dlsym: neither needs torch.

#define FTENGINE_EXPORT extern "C" __attribute__((visibility("default")))

FTENGINE_EXPORT const char* ftengine_instruction_set() { return ftengine::cpu::instruction_set().name; }

// Those that can be used here, best first, separated by commas.
FTENGINE_EXPORT const char* ftengine_instruction_sets() {
  static const std::string names = [] {
    std::string all;
    for (const auto* set : ftengine::cpu::usable()) all += (all.empty() ? "" : ",") + std::string(set->name);
    return all;
  }();
  return names.c_str();
}

FTENGINE_EXPORT int ftengine_philox_rounds() { return ftengine::kPhiloxRounds; }

FTENGINE_EXPORT int64_t ftengine_onednn_from() { return ftengine::cpu::least_for_onednn.load(); }

FTENGINE_EXPORT void ftengine_use_onednn(int64_t least) { ftengine::cpu::least_for_onednn.store(least); }

// Returns 0, or 1 when there is no such instruction set here; "auto" is the best.
FTENGINE_EXPORT int ftengine_use_instruction_set(const char* name) {
  for (const auto* set : ftengine::cpu::usable()) {
    if (std::strcmp(name, "auto") == 0 || std::strcmp(name, set->name) == 0) {
      ftengine::cpu::chosen().store(set, std::memory_order_relaxed);
      return 0;
    }
  }
  return 1;
}
