// A block of threads as fibers of one host thread.

// Where it is on, as by default on some systems, longjmp refuses to leave for another stack.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../device.cuh"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ftengine::device::emulated {

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kNobody = -1, kSeveral = -2;
const char* const kMeetingNames[] = {"a barrier", "a shuffle", "an mma"};

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it goes on: unlike swapcontext, _longjmp makes no system call
  const void* stack;
  size_t stack_bytes;
  void* fake_stack;  // AddressSanitizer's
  bool begun, waiting, finished;
  Meeting meeting;
};

// A word of shared memory, and who touched it since the last barrier.
struct Word {
  float value = std::numeric_limits<float>::quiet_NaN();
  bool written = false;
  int64_t write_epoch = -1, read_epoch = -1;
  int writer = kNobody, reader = kNobody;
};

struct Block {
  int index, count, threads;
  const std::function<void()>* body;
  std::vector<Fiber> fibers;
  Fiber scheduler{};
  std::vector<Thread> thread;
  std::vector<Word> shared;
  int64_t epoch;
  int running = kNobody;
  std::vector<int> ready;
  std::exception_ptr error;
  uint64_t random;
};

Block* block = nullptr;

// SplitMix64 (Steele et al. 2014).
uint64_t next_random() {
  uint64_t z = (block->random += 0x9E3779B97F4A7C15);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

int take_ready() {
  const size_t chosen = next_random() % block->ready.size();
  const int index = block->ready[chosen];
  block->ready[chosen] = block->ready.back();
  block->ready.pop_back();
  return index;
}

// Told of every switch, AddressSanitizer knows whose stack it watches.
void arrive(Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self.fake_stack, &stack, &bytes);
  if (block->scheduler.stack == nullptr) block->scheduler.stack = stack, block->scheduler.stack_bytes = bytes;
#else
  (void)self;
#endif
}

void go(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
  if (_setjmp(from.place) == 0) {
    if (to.begun) _longjmp(to.place, 1);
    to.begun = true;
    setcontext(&to.context);
  }
  arrive(from);
}

// Lets another thread run: one that is ready, or the scheduler where none is.
void pass_on(Fiber& self) {
  if (block->error || block->ready.empty()) return go(self, block->scheduler);
  block->running = take_ready();
  Fiber& next = block->fibers[block->running];
  if (&next != &self) go(self, next);
}

void fiber_main() {
  Fiber& self = block->fibers[block->running];
  arrive(self);
  try {
    (*block->body)();
  } catch (...) {
    block->error = std::current_exception();
  }
  self.finished = true;
  pass_on(self);
}

std::string name(int thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(block->index);
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("emulated kernel: " + what); }

void run_block() {
  block->epoch = 0;
  block->ready.clear();
  for (int i = 0; i < block->threads; ++i) {
    Fiber& fiber = block->fibers[i];
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // what the fiber before left, since none returns
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<void*>(fiber.stack);
    fiber.context.uc_stack.ss_size = fiber.stack_bytes;
    fiber.context.uc_link = nullptr;
    fiber.fake_stack = nullptr;
    fiber.begun = fiber.waiting = fiber.finished = false;
    makecontext(&fiber.context, fiber_main, 0);
    block->thread[i].index = i;
    block->ready.push_back(i);
  }
  block->scheduler.begun = true;
  block->running = take_ready();
  go(block->scheduler, block->fibers[block->running]);  // comes back when no thread is ready
  if (block->error) std::rethrow_exception(block->error);
  for (int i = 0; i < block->threads; ++i) {
    if (!block->fibers[i].finished) {
      fail(name(i) + " waits for ever at " + kMeetingNames[static_cast<int>(block->fibers[i].meeting)] +
           ": not every thread reaches it");
    }
  }
}

Word& word(int index) {
  if (index < 0 || index >= static_cast<int>(block->shared.size())) {
    fail(name(block->running) + " accesses word " + std::to_string(index) + " of " +
         std::to_string(block->shared.size()) + " in shared memory");
  }
  return block->shared[index];
}

[[noreturn]] void race(int index, int other) {
  fail(name(block->running) + " and thread " + (other == kSeveral ? "others" : std::to_string(other)) +
       " access word " + std::to_string(index) + " of shared memory without a barrier between, one of them to write");
}

}  // namespace

int block_index() { return block->index; }
int block_count() { return block->count; }
int thread_count() { return block->threads; }
Thread& current() { return block->thread[block->running]; }

void meet(Meeting meeting, void (*work)(Thread* threads)) {
  const int index = block->running;
  Fiber& self = block->fibers[index];
  const bool all = meeting == Meeting::kBarrier;
  const int first = all ? 0 : index / 32 * 32, size = all ? block->threads : 32;
  self.waiting = true;
  self.meeting = meeting;
  int arrived = 0;
  for (int i = first; i < first + size; ++i) {
    const Fiber& other = block->fibers[i];
    arrived += other.waiting && other.meeting == meeting;
  }
  if (arrived == size) {
    work(&block->thread[first]);
    if (all) ++block->epoch;
    for (int i = first; i < first + size; ++i) {
      block->fibers[i].waiting = false;
      block->ready.push_back(i);
    }
  }
  pass_on(self);
}

float load_shared(int index) {
  Word& word = emulated::word(index);
  if (!word.written) fail(name(block->running) + " reads word " + std::to_string(index) + " that nobody wrote");
  if (word.write_epoch == block->epoch && word.writer != block->running) race(index, word.writer);
  const bool first = word.read_epoch != block->epoch;
  word.reader = first || word.reader == block->running ? block->running : kSeveral;
  word.read_epoch = block->epoch;
  return word.value;
}

void store_shared(int index, float value) {
  Word& word = emulated::word(index);
  if (word.write_epoch == block->epoch && word.writer != block->running) race(index, word.writer);
  if (word.read_epoch == block->epoch && word.reader != block->running) race(index, word.reader);
  word.value = value;
  word.written = true;
  word.write_epoch = block->epoch;
  word.writer = block->running;
}

void run(int64_t blocks, int threads, int64_t shared_bytes, Stream stream, const std::function<void()>& body) {
  if (threads % 32 != 0) fail(std::to_string(threads) + " threads are no whole number of warps");
  static std::vector<char> stacks;  // kept from launch to launch
  if (stacks.size() < threads * kStackBytes) stacks.resize(threads * kStackBytes);
  Block state{};
  block = &state;
  state.count = static_cast<int>(blocks);
  state.threads = threads;
  state.body = &body;
  state.random = stream.order;
  state.thread.resize(threads);
  state.fibers.resize(threads);
  for (int i = 0; i < threads; ++i) {
    state.fibers[i].stack = &stacks[i * kStackBytes];
    state.fibers[i].stack_bytes = kStackBytes;
  }
  std::vector<int> order(blocks);
  for (int i = 0; i < state.count; ++i) {
    const int j = static_cast<int>(next_random() % (i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  for (const int index : order) {
    state.index = index;
    state.shared.assign(shared_bytes / sizeof(float), {});
    run_block();
  }
  block = nullptr;
}

}  // namespace ftengine::device::emulated
