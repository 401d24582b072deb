// Memory for the packed forms of small operands.

#pragma once

#include <cstdint>

namespace ftengine::cpu {

// Returns at least this many bytes, aligned to 64, of this thread's memory for a slot; valid until the thread's next
// call with that slot. It is kept: allocated anew, its pages would cost more than the packing.
void* scratch(int slot, int64_t bytes);

// Gives back this thread's slots that are larger than kKeptBytes.
void shrink_scratch();

constexpr int kScratchSlots = 12;
constexpr int kSumsSlot = kScratchSlots - 1;  // of a kernel's own sums; the others are an operator's
constexpr int64_t kKeptBytes = int64_t{16} << 20;

}  // namespace ftengine::cpu
