// A launched grid: its threads are fibers, which the host thread runs in random order.
//
// A fiber runs until it has to wait. Memory is that of the host thread, so that writes are visible
// at once: what a missing fence or a stale cache does is not shown.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.cuh"
#include "fiber.h"
#include "shared_memory.h"

namespace stylekernels::device::emulation {

struct Block;
struct Cluster;
class Grid;

// What a thread waits for.
enum class State {
  runnable,
  block_barrier,
  warp_barrier,
  shuffle,
  shuffle_xor,
  load_matrices,
  load_matrices_transposed,
  multiply_bfloat16,
  multiply_float16,
  multiply_tf32,
  multiply_float64,
  cluster_barrier,
  grid_barrier,
  exited,
};

// A copy that has begun.
struct Copy {
  void* shared;
  const void* global;
  int bytes;  // of 16; the others become zero
  int group;
};

struct Thread {
  Thread();

  Fiber fiber;
  Grid* grid = nullptr;
  Block* block = nullptr;
  int index = 0;
  State state = State::exited;

  // Operands and results of the operation at which the thread meets its warp.
  void* operands = nullptr;

  std::vector<Copy> copies;
  int groups = 0;  // of copies that were committed

  bool arrived = false;  // at the cluster's barrier, and has not waited
  unsigned arrived_phase = 0;
};

struct Warp {
  State operation = State::runnable;  // of the waiting lanes
  int waiting = 0;
  int exited = 0;
};

struct Block {
  Block(Cluster& cluster, int rank, size_t shared_bytes)
      : cluster(cluster), rank(rank), memory(shared_bytes) {}

  Cluster& cluster;
  int rank;
  int index = 0;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  int waiting = 0;  // at the block's barrier
  int exited = 0;
  SharedMemory memory;
};

struct Cluster {
  std::deque<Block> blocks;
  std::vector<Thread*> waiting;  // at the cluster's barrier
  int arrived = 0;
  unsigned phase = 0;  // of the barrier
  int exited = 0;      // blocks
};

class Grid {
 public:
  Grid(const Launch& config, const std::function<void()>& kernel, unsigned seed);

  // Runs all blocks. Throws what a thread threw, or if no thread can go on.
  void run();

  // Lets others run until the running thread is woken.
  void wait(Thread& thread, State state);
  void leave(Thread& thread);
  void wake(Thread& thread);
  // Wakes them in a random order, and draws in which way threads take turns until the next call.
  void wake_all(const std::vector<Thread*>& threads);
  // Waits for all threads of the grid.
  void wait_for_all(Thread& thread);
  [[noreturn]] void fail(const Thread& thread, const std::string& what) const;

  // Which threads of a block wait for what.
  std::string describe(const Block& block) const;
  // Explains an access to an inaccessible address, without taking memory.
  void explain(const Thread& thread, const void* address, char* text, size_t size) const;

  const Launch config;

 private:
  static void run_fiber(void* thread);
  friend struct Thread;

  void start(Cluster& cluster, int group);
  void exit(Thread& thread);
  Thread& choose();
  [[noreturn]] void fail_stuck() const;
  std::string seed_text() const;

  const std::function<void()>& kernel_;
  const unsigned seed_;
  std::minstd_rand random_;
  bool newest_first_ = false;  // the thread that was woken last runs next, else any
  std::vector<int> order_;     // of the clusters
  size_t started_ = 0;
  std::deque<Cluster> resident_;  // clusters that run at the same time
  int unfinished_ = 0;            // of the resident ones
  Cluster* finished_ = nullptr;
  std::vector<Thread*> runnable_;
  std::vector<Thread*> waiting_;  // at the grid's barrier
  std::exception_ptr failure_;
  Context main_;
};

// The running thread; null outside of kernels.
extern constinit thread_local Thread* current;

// Throws outside of kernels.
Thread& self();

}  // namespace stylekernels::device::emulation
