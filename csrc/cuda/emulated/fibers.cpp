// A block of threads as fibers of one host thread.

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
#include <sanitizer/common_interface_defs.h>
#endif

namespace ftengine::device::emulated {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kNobody = -1, kSeveral = -2;
const char* const kMeetingNames[] = {"a barrier", "a shuffle", "an mma"};

// AddressSanitizer must know which stack it is on.
class Switch {
 public:
  void leave(const void* bottom, size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_stack_, bottom, bytes);
#else
    (void)bottom, (void)bytes;
#endif
  }
  void enter(const void** old_bottom, size_t* old_bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack_, old_bottom, old_bytes);
#else
    (void)old_bottom, (void)old_bytes;
#endif
  }

 private:
  [[maybe_unused]] void* fake_stack_ = nullptr;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Switch sanitizer;
  bool waiting, finished;
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
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Thread> thread;
  std::vector<Word> shared;
  int64_t epoch;
  int running = kNobody;
  std::vector<int> ready;
  std::exception_ptr error;
  uint64_t random;
  ucontext_t scheduler;
  Switch sanitizer;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
};

Block* block = nullptr;

// SplitMix64 (Steele et al. 2014).
uint64_t next_random() {
  uint64_t z = (block->random += 0x9E3779B97F4A7C15);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

void to_scheduler(Fiber& self) {
  self.sanitizer.leave(block->scheduler_stack, block->scheduler_bytes);
  swapcontext(&self.context, &block->scheduler);
  self.sanitizer.enter(nullptr, nullptr);
}

void fiber_main() {
  Fiber& self = *block->fibers[block->running];
  self.sanitizer.enter(&block->scheduler_stack, &block->scheduler_bytes);
  try {
    (*block->body)();
  } catch (...) {
    block->error = std::current_exception();
  }
  self.finished = true;
  to_scheduler(self);
}

void resume(int index) {
  Fiber& fiber = *block->fibers[index];
  block->running = index;
  block->sanitizer.leave(fiber.stack.get(), kStackBytes);
  swapcontext(&block->scheduler, &fiber.context);
  block->sanitizer.enter(nullptr, nullptr);
}

std::string name(int thread) { return "thread " + std::to_string(thread) + " of block " + std::to_string(block->index); }

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("emulated kernel: " + what); }

void run_block() {
  block->epoch = 0;
  block->ready.clear();
  for (int i = 0; i < block->threads; ++i) {
    Fiber& fiber = *block->fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.sanitizer = {};
    fiber.waiting = fiber.finished = false;
    makecontext(&fiber.context, fiber_main, 0);
    block->thread[i].index = i;
    block->thread[i].lane = i % 32;
    block->ready.push_back(i);
  }
  int finished = 0;
  while (!block->ready.empty()) {
    const size_t chosen = next_random() % block->ready.size();
    const int index = block->ready[chosen];
    block->ready[chosen] = block->ready.back();
    block->ready.pop_back();
    resume(index);
    if (block->error) std::rethrow_exception(block->error);
    finished += block->fibers[index]->finished;
  }
  if (finished == block->threads) return;
  for (int i = 0; i < block->threads; ++i) {
    if (block->fibers[i]->waiting) {
      fail(name(i) + " waits for ever at " + kMeetingNames[static_cast<int>(block->fibers[i]->meeting)] +
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
  Fiber& self = *block->fibers[index];
  const bool all = meeting == Meeting::kBarrier;
  const int first = all ? 0 : index / 32 * 32, size = all ? block->threads : 32;
  self.waiting = true;
  self.meeting = meeting;
  int arrived = 0;
  for (int i = first; i < first + size; ++i) arrived += block->fibers[i]->waiting && block->fibers[i]->meeting == meeting;
  if (arrived == size) {
    work(&block->thread[first]);
    if (all) ++block->epoch;
    for (int i = first; i < first + size; ++i) {
      block->fibers[i]->waiting = false;
      block->ready.push_back(i);
    }
  }
  to_scheduler(self);
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
  Block state{};
  block = &state;
  state.count = static_cast<int>(blocks);
  state.threads = threads;
  state.body = &body;
  state.random = stream.order;
  state.thread.resize(threads);
  for (int i = 0; i < threads; ++i) state.fibers.push_back(std::make_unique<Fiber>());
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
