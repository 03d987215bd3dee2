#include "grid.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace stylekernels::device::emulation {

constinit thread_local Thread* current = nullptr;

namespace {

// Threads of earlier launches: their stacks are used again.
thread_local std::vector<std::unique_ptr<Thread>> pool;

const char* text_of(State state) {
  switch (state) {
    case State::runnable:
      return "can go on";
    case State::block_barrier:
      return "wait at a block barrier";
    case State::warp_barrier:
      return "wait at a warp barrier";
    case State::shuffle:
      return "wait at a shuffle";
    case State::shuffle_xor:
      return "wait at a shuffle_xor";
    case State::load_matrices:
      return "wait at a load_matrices";
    case State::load_matrices_transposed:
      return "wait at a load_matrices_transposed";
    case State::multiply_bfloat16:
      return "wait at a multiply of BFloat16";
    case State::multiply_float16:
      return "wait at a multiply of Float16";
    case State::multiply_tf32:
      return "wait at a multiply_tf32";
    case State::multiply_float64:
      return "wait at a multiply_float64";
    case State::cluster_barrier:
      return "wait at the cluster barrier";
    case State::grid_barrier:
      return "wait at the grid barrier";
    case State::exited:
      break;
  }
  return "have exited";
}

}  // namespace

Thread::Thread() : fiber(Grid::run_fiber, this) {}

Thread& self() {
  if (current == nullptr) throw std::runtime_error("CUDA emulation: expected a call in a kernel");
  return *current;
}

Grid::Grid(const Launch& config, const std::function<void()>& kernel, unsigned seed)
    : config(config), kernel_(kernel), seed_(seed), random_(seed + 1) {
  random_.discard(8);  // small seeds begin alike
  newest_first_ = random_() % 2 == 0;
  order_.resize(size_t(config.blocks / config.cluster));
  std::iota(order_.begin(), order_.end(), 0);
  std::shuffle(order_.begin(), order_.end(), random_);
  const size_t resident = config.cooperative ? order_.size() : 1;
  while (pool.size() < resident * size_t(config.cluster * config.threads))
    pool.push_back(std::make_unique<Thread>());
  auto thread = pool.begin();
  for (size_t i = 0; i < resident; i++) {
    Cluster& cluster = resident_.emplace_back();
    for (int rank = 0; rank < config.cluster; rank++) {
      Block& block = cluster.blocks.emplace_back(cluster, rank, size_t(config.shared_bytes));
      block.warps.resize(size_t(config.threads / kWarp));
      for (int index = 0; index < config.threads; index++, thread++) {
        (*thread)->grid = this;
        (*thread)->block = &block;
        (*thread)->index = index;
        block.threads.push_back(thread->get());
      }
    }
  }
}

void Grid::run() {
  unfinished_ = int(resident_.size());
  for (Cluster& cluster : resident_) start(cluster, order_[started_++]);
  try {
    while (unfinished_ > 0) {
      if (runnable_.empty()) fail_stuck();
      current = &choose();
      switch_context(main_, current->fiber.context);
      if (failure_) std::rethrow_exception(failure_);
      if (finished_ != nullptr) {
        if (started_ < order_.size())
          start(*finished_, order_[started_++]);
        else
          unfinished_--;
        finished_ = nullptr;
      }
    }
  } catch (...) {
    pool.clear();  // threads are in the middle of the kernel
    throw;
  }
}

// Begins to run the blocks of a cluster.
void Grid::start(Cluster& cluster, int group) {
  cluster.arrived = cluster.exited = 0;
  for (Block& block : cluster.blocks) {
    block.index = group * config.cluster + block.rank;
    block.exited = 0;
    block.memory.open((unsigned(block.index) + seed_) % 2 == 0);
    for (Warp& warp : block.warps) warp.exited = 0;
    for (Thread* thread : block.threads) {
      thread->copies.clear();
      thread->groups = 0;
      thread->arrived = false;
    }
    wake_all(block.threads);
  }
}

void Grid::wake_all(const std::vector<Thread*>& threads) {
  if (random_() % 8 == 0) newest_first_ = !newest_first_;
  const size_t first = random_() % threads.size();
  for (size_t i = 0; i < threads.size(); i++) wake(*threads[(first + i) % threads.size()]);
}

void Grid::run_fiber(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  for (;;) {
    Grid& grid = *thread.grid;
    try {
      grid.kernel_();
      grid.exit(thread);
    } catch (...) {
      grid.failure_ = std::current_exception();
    }
    grid.leave(thread);
  }
}

void Grid::exit(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = block.warps[size_t(thread.index / kWarp)];
  if (block.waiting > 0 || warp.waiting > 0)
    fail(thread, "exits while others wait for it: " + describe(block));
  thread.state = State::exited;
  warp.exited++;
  if (++block.exited < config.threads) return;
  const std::string outside = block.memory.write_outside();
  if (!outside.empty())
    fail(thread, "is the last to exit, and byte " + outside + " of the block's " +
                     std::to_string(config.shared_bytes) + " bytes of shared memory was written");
  if (config.cluster > 1) block.memory.close();
  if (++block.cluster.exited == config.cluster) finished_ = &block.cluster;
}

// Goes on with another thread, or with `run` if that has to do something.
void Grid::leave(Thread& thread) {
  if (failure_ || finished_ != nullptr || runnable_.empty()) {
    current = nullptr;
    switch_context(thread.fiber.context, main_);
    return;
  }
  Thread& next = choose();
  if (&next == &thread) return;
  current = &next;
  switch_context(thread.fiber.context, next.fiber.context);
}

void Grid::wait(Thread& thread, State state) {
  thread.state = state;
  leave(thread);
}

void Grid::wake(Thread& thread) {
  thread.state = State::runnable;
  runnable_.push_back(&thread);
}

// Newest first, a warp runs as far ahead of others as it can; else all advance evenly. Each shows
// missing barriers that the other does not. Both last for some eight barriers, so that a block can
// run to its end.
Thread& Grid::choose() {
  if (!newest_first_) std::swap(runnable_[random_() % runnable_.size()], runnable_.back());
  Thread& chosen = *runnable_.back();
  runnable_.pop_back();
  return chosen;
}

void Grid::wait_for_all(Thread& thread) {
  waiting_.push_back(&thread);
  if (waiting_.size() < size_t(config.blocks) * size_t(config.threads))
    return wait(thread, State::grid_barrier);
  wake_all(waiting_);
  waiting_.clear();
  leave(thread);
}

std::string Grid::seed_text() const {
  return " (CUDA_EMULATION_SEED=" + std::to_string(seed_) + " repeats this order)";
}

void Grid::fail(const Thread& thread, const std::string& what) const {
  throw std::runtime_error("CUDA emulation: thread " + std::to_string(thread.index) + " of block " +
                           std::to_string(thread.block->index) + " " + what + seed_text());
}

void Grid::fail_stuck() const {
  constexpr size_t kMost = 4;
  std::vector<const Block*> blocks;
  for (const Cluster& cluster : resident_)
    for (const Block& block : cluster.blocks)
      if (block.exited < config.threads) blocks.push_back(&block);
  // Blocks whose threads are in different places tell most.
  const auto place = [](const Block* block) {
    const auto differs = [&](const Thread* thread) {
      return thread->state != block->threads[0]->state;
    };
    return std::pair(std::ranges::none_of(block->threads, differs), block->index);
  };
  std::ranges::sort(blocks, {}, place);
  std::string text = "CUDA emulation: no thread can go on";
  for (size_t i = 0; i < std::min(kMost, blocks.size()); i++) text += "; " + describe(*blocks[i]);
  if (blocks.size() > kMost)
    text += "; " + std::to_string(blocks.size() - kMost) + " more blocks wait";
  throw std::runtime_error(text + seed_text());
}

std::string Grid::describe(const Block& block) const {
  constexpr int kMost = 6;  // ranges of a state
  struct Ranges {
    std::string text;
    int count = 0;
  };
  std::map<State, Ranges> states;
  for (int first = 0, end = 0; first < config.threads; first = end) {
    const State state = block.threads[size_t(first)]->state;
    for (end = first; end < config.threads && block.threads[size_t(end)]->state == state;) end++;
    Ranges& ranges = states[state];
    if (ranges.count++ >= kMost) continue;
    ranges.text += (ranges.text.empty() ? "" : ", ") + std::to_string(first);
    if (end > first + 1) ranges.text += "-" + std::to_string(end - 1);
  }
  std::string text = "in block " + std::to_string(block.index);
  for (const auto& [state, ranges] : states) {
    text += (state == states.begin()->first ? " threads " : ", threads ") + ranges.text;
    if (ranges.count > kMost) text += " and others";
    text += std::string(" ") + text_of(state);
  }
  return text;
}

void Grid::explain(const Thread& thread, const void* address, char* text, size_t size) const {
  int length = std::snprintf(text, size, "\nCUDA emulation: thread %d of block %d ", thread.index,
                             thread.block->index);
  const auto add = [&](const char* format, auto... values) {
    if (length >= 0 && size_t(length) < size)
      length += std::snprintf(text + length, size - size_t(length), format, values...);
  };
  const Block* owner = nullptr;
  for (const Cluster& cluster : resident_)
    for (const Block& block : cluster.blocks)
      if (block.memory.surrounds(address)) owner = &block;
  if (thread.fiber.is_overflow(address)) {
    add("has more than the %zu KB of local variables that fit", Fiber::kStackBytes >> 10);
  } else if (owner == nullptr) {
    add("accessed address %p, which is not memory", address);
  } else if (owner->memory.closed()) {
    add("accessed the shared memory of block %d, which has exited", owner->index);
  } else {
    add("accessed byte %td of the %d bytes of shared memory of block %d",
        static_cast<const std::byte*>(address) - owner->memory.begin(), config.shared_bytes,
        owner->index);
  }
  add(" (CUDA_EMULATION_SEED=%u repeats this order)\n", seed_);
}

}  // namespace stylekernels::device::emulation
