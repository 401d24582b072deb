// Blocks of threads as fibers of one host thread.

// Where it is on, as by default on some systems, longjmp refuses to leave for another stack.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.cuh"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ftengine::device::emulated {

int multiprocessors = 4;
int64_t launches = 0;

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kMaxResident = 3;  // blocks whose threads take turns
constexpr int kNobody = -1, kSeveral = -2;
constexpr int kMaxPolls = 1 << 16;
const char* const kMeetingNames[] = {"a barrier", "a warp's barrier", "an mma"};

struct Copy {
  int word;
  uint32_t value[4];
  int group;
};

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it goes on: unlike swapcontext, _longjmp makes no system call
  const void* stack;
  size_t stack_bytes;
  void* fake_stack;  // AddressSanitizer's
  bool begun, waiting, finished;
  Meeting meeting;
  Site site;
  struct Block* block;
  int index;
  std::vector<Copy> copies;
  int groups;  // of copies that were committed
};

// Who last read or wrote a word of shared memory, and when: thread and warp, or kSeveral.
struct Access {
  int thread = kNobody, warp = kNobody;
  int64_t epoch = -1, warp_epoch = -1;
};

struct Word {
  uint32_t value = 0;
  bool written = false;
  Access write, read;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Thread> threads;
  std::vector<Word> shared;
  int64_t epoch;                     // counts barriers
  std::vector<int64_t> warp_epochs;  // counts barriers of a warp, mma among them
  int unfinished;
};

struct Launch {
  int64_t count, next;
  int threads;
  int64_t words;
  const std::function<void()>* body;
  std::vector<int> order;
  std::vector<std::unique_ptr<Block>> blocks;
  Fiber scheduler{};
  Fiber* running = nullptr;
  std::vector<Fiber*> ready;
  std::exception_ptr error;
  bool block_ended = false;
  int polls = 0;
  uint64_t random;
};

Launch* grid = nullptr;

// SplitMix64 (Steele et al. 2014).
uint64_t next_random() {
  uint64_t z = (grid->random += 0x9E3779B97F4A7C15);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

Fiber* take_ready() {
  std::swap(grid->ready[next_random() % grid->ready.size()], grid->ready.back());
  Fiber* fiber = grid->ready.back();
  grid->ready.pop_back();
  return fiber;
}

// Told of every switch, AddressSanitizer knows whose stack it watches.
void arrive(Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self.fake_stack, &stack, &bytes);
  if (grid->scheduler.stack == nullptr) grid->scheduler.stack = stack, grid->scheduler.stack_bytes = bytes;
#else
  (void)self;
#endif
}

void go(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  if (_setjmp(from.place) == 0) {
    grid->running = &to;
    if (to.begun) _longjmp(to.place, 1);
    to.begun = true;
    setcontext(&to.context);
  }
  arrive(from);
}

// Lets another thread run: one that is ready, or the scheduler where there is something for it to do.
void pass_on(Fiber& self) {
  if (grid->error || grid->ready.empty() || grid->block_ended) return go(self, grid->scheduler);
  Fiber* next = take_ready();
  if (next != &self) go(self, *next);
}

void fiber_main() {
  Fiber& self = *grid->running;
  arrive(self);
  try {
    (*grid->body)();
  } catch (...) {
    grid->error = std::current_exception();
  }
  self.finished = true;
  grid->polls = 0;
  if (--self.block->unfinished == 0) grid->block_ended = true;
  pass_on(self);
}

std::string name(const Fiber& fiber) {
  return "thread " + std::to_string(fiber.index) + " of block " + std::to_string(fiber.block->threads[0].block);
}

std::string place(const Fiber& fiber) {
  if (fiber.finished) return " has ended";
  const std::string file = fiber.site.file;
  return std::string(" is at ") + kMeetingNames[static_cast<int>(fiber.meeting)] + " in " +
         file.substr(file.rfind('/') + 1) + ":" + std::to_string(fiber.site.line);
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("emulated kernel: " + what); }

void begin(Block& block) {
  const int index = grid->order[grid->next++];
  block.epoch = 0;
  block.warp_epochs.assign(grid->threads / 32, 0);
  block.shared.assign(grid->words, {});
  block.unfinished = grid->threads;
  for (int i = 0; i < grid->threads; ++i) {
    Fiber& fiber = block.fibers[i];
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // what the fiber before left, since none returns
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<void*>(fiber.stack);
    fiber.context.uc_stack.ss_size = fiber.stack_bytes;
    fiber.context.uc_link = nullptr;
    fiber.fake_stack = nullptr;
    fiber.begun = fiber.waiting = fiber.finished = false;
    fiber.copies.clear();
    fiber.groups = 0;
    makecontext(&fiber.context, fiber_main, 0);
    block.threads[i] = {index, i, {}, {}};
    grid->ready.push_back(&fiber);
  }
}

// Says who waits in vain: somebody of the same block or warp ended, or waits elsewhere.
[[noreturn]] void explain_deadlock() {
  for (const auto& block : grid->blocks) {
    for (const Fiber& fiber : block->fibers) {
      if (fiber.finished || !fiber.waiting) continue;
      const bool all = fiber.meeting == Meeting::kBarrier;
      for (const Fiber& other : block->fibers) {
        if (!all && other.index / 32 != fiber.index / 32) continue;
        const bool together = !other.finished && other.meeting == fiber.meeting && other.site.line == fiber.site.line;
        if (!together) fail(name(fiber) + place(fiber) + ", but thread " + std::to_string(other.index) + place(other));
      }
    }
  }
  fail("threads wait for ever");
}

Word& word_at(int index) {
  std::vector<Word>& shared = grid->running->block->shared;
  if (index >= 0 && index < static_cast<int>(shared.size())) return shared[index];
  fail(name(*grid->running) + " accesses word " + std::to_string(index) + " of " + std::to_string(shared.size()) +
       " in shared memory");
}

Access now() {
  const Fiber& self = *grid->running;
  const int warp = self.index / 32;
  return {self.index, warp, self.block->epoch, self.block->warp_epochs[warp]};
}

// Whether nothing orders an access by others before one by the running thread.
bool races(const Access& other) {
  const Access self = now();
  if (other.thread == kNobody || other.thread == self.thread || other.epoch != self.epoch) return false;
  return other.warp != self.warp || other.warp_epoch == self.warp_epoch;
}

[[noreturn]] void report_race(int word, int other) {
  fail(name(*grid->running) + " and thread " + (other == kSeveral ? "others" : std::to_string(other)) +
       " access word " + std::to_string(word) + " of shared memory without a barrier between, one of them to write");
}

void check_word_alignment(int word, int count) {
  if (word % count != 0) {
    fail(name(*grid->running) + ": a misaligned address: word " + std::to_string(word) + " of shared memory for " +
         std::to_string(4 * count) + " bytes");
  }
}

}  // namespace

Thread& current() { return grid->running->block->threads[grid->running->index]; }
int thread_count() { return grid->threads; }

void meet(Meeting meeting, Site site, void (*work)(Thread* threads)) {
  Fiber& self = *grid->running;
  Block& block = *self.block;
  const bool all = meeting == Meeting::kBarrier;
  const int first = all ? 0 : self.index / 32 * 32, size = all ? grid->threads : 32;
  self.waiting = true;
  self.meeting = meeting;
  self.site = site;
  int arrived = 0;
  for (int i = first; i < first + size; ++i) {
    const Fiber& other = block.fibers[i];
    arrived += other.waiting && other.meeting == meeting && other.site.line == site.line &&
               std::strcmp(other.site.file, site.file) == 0;
  }
  if (arrived == size) {
    if (work != nullptr) work(&block.threads[first]);
    if (all) ++block.epoch;
    if (!all) ++block.warp_epochs[first / 32];
    grid->polls = 0;
    for (int i = first; i < first + size; ++i) {
      block.fibers[i].waiting = false;
      grid->ready.push_back(&block.fibers[i]);
    }
  }
  pass_on(self);
}

void yield(bool polls) {
  if (polls && ++grid->polls > kMaxPolls) {
    fail(name(*grid->running) + " waits for ever: " + std::to_string(grid->count - grid->next) +
         " blocks begin only when others have ended");
  }
  if (!polls) grid->polls = 0;
  grid->ready.push_back(grid->running);
  pass_on(*grid->running);
}

void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail(name(*grid->running) + ": a misaligned address for " + std::to_string(bytes) + " bytes");
  }
}

void load_shared(int first, int count, uint32_t* to) {
  check_word_alignment(first, count);
  for (int i = 0; i < count; ++i) {
    Word& word = word_at(first + i);
    if (!word.written) fail(name(*grid->running) + " reads word " + std::to_string(first + i) + " that nobody wrote");
    if (races(word.write)) report_race(first + i, word.write.thread);
    const Access before = word.read;
    word.read = now();
    if (before.thread != kNobody && before.epoch == word.read.epoch) {
      if (before.thread != word.read.thread) word.read.thread = kSeveral;
      if (before.warp != word.read.warp) word.read.warp = kSeveral;
    }
    to[i] = word.value;
  }
}

void store_shared(int first, int count, const uint32_t* from) {
  check_word_alignment(first, count);
  for (int i = 0; i < count; ++i) {
    Word& word = word_at(first + i);
    if (races(word.write)) report_race(first + i, word.write.thread);
    if (races(word.read)) report_race(first + i, word.read.thread);
    word.value = from[i];
    word.written = true;
    word.write = now();
    word.read = {};
  }
}

// What a copy brings is there when it has been waited for, and unknown until then.
void copy_async(int first, const void* from, bool inside) {
  check_word_alignment(first, 4);
  check_aligned(from, 16);
  const uint32_t nothing[4] = {};
  store_shared(first, 4, nothing);
  for (int i = 0; i < 4; ++i) word_at(first + i).written = false;
  Copy copy{first, {}, grid->running->groups};
  if (inside) std::memcpy(copy.value, from, 16);
  grid->running->copies.push_back(copy);
}

void commit_copies() { ++grid->running->groups; }

void wait_for_copies(int pending) {
  Fiber& self = *grid->running;
  const auto done = [&](const Copy& copy) { return copy.group < self.groups - pending; };
  for (const Copy& copy : self.copies) {
    if (done(copy)) store_shared(copy.word, 4, copy.value);
  }
  self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(), done), self.copies.end());
}

void run(int64_t blocks, int threads, int64_t shared_bytes, Stream stream, const std::function<void()>& body) {
  if (threads < 1 || threads > kMaxThreads || threads % 32 != 0) {
    fail(std::to_string(threads) + " threads a block: it must be whole warps, of at most " +
         std::to_string(kMaxThreads) + " threads");
  }
  if (blocks < 1 || blocks >= int64_t{1} << 31) fail("a grid of " + std::to_string(blocks) + " blocks");
  if (shared_bytes > kMaxSharedBytes) {
    fail(std::to_string(shared_bytes) + " bytes of shared memory; a block has at most " +
         std::to_string(kMaxSharedBytes));
  }
  Launch state{};
  grid = &state;
  state.count = blocks;
  state.threads = threads;
  state.words = shared_bytes / 4;
  state.body = &body;
  state.random = stream.order;
  state.order.resize(blocks);
  for (int i = 0; i < static_cast<int>(blocks); ++i) {
    state.order[i] = i;
    std::swap(state.order[i], state.order[next_random() % (i + 1)]);
  }
  const int64_t resident = std::min<int64_t>(blocks, 1 + next_random() % kMaxResident);
  static std::vector<char> stacks;  // kept from launch to launch
  if (stacks.size() < resident * threads * kStackBytes) stacks.resize(resident * threads * kStackBytes);
  char* stack = stacks.data();
  for (int64_t i = 0; i < resident; ++i) {
    state.blocks.push_back(std::make_unique<Block>());
    Block& block = *state.blocks.back();
    block.threads.resize(threads);
    block.fibers.resize(threads);
    for (int j = 0; j < threads; ++j, stack += kStackBytes) {
      block.fibers[j].block = &block;
      block.fibers[j].index = j;
      block.fibers[j].stack = stack;
      block.fibers[j].stack_bytes = kStackBytes;
    }
  }
  state.scheduler.begun = true;
  while (true) {
    state.block_ended = false;
    for (const auto& block : state.blocks) {
      if (block->unfinished == 0 && state.next < state.count) begin(*block);
    }
    if (state.ready.empty()) break;
    go(state.scheduler, *take_ready());  // comes back when a block has ended, or no thread is ready
    if (state.error) std::rethrow_exception(state.error);
  }
  for (const auto& block : state.blocks) {
    if (block->unfinished > 0) explain_deadlock();
  }
}

}  // namespace ftengine::device::emulated
