#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace ftengine::cpu {
namespace {

struct Slot {
  ~Slot() { release(); }
  void release() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }

  void* data = nullptr;
  int64_t bytes = 0;
};

thread_local Slot slots[kScratchSlots];

}  // namespace

void* scratch(int slot, int64_t bytes) {
  Slot& here = slots[slot];
  if (here.bytes < bytes) {
    const int64_t rounded = (bytes + bytes / 4 + 63) / 64 * 64;
    here.release();
    here.data = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (here.data == nullptr) throw std::bad_alloc();
    here.bytes = rounded;
  }
  return here.data;
}

void shrink_scratch() {
  for (Slot& slot : slots) {
    if (slot.bytes > kKeptBytes) slot.release();
  }
}

}  // namespace ftengine::cpu
