#include "operations.h"

#include <cstring>
#include <string>

#include "grid.h"

namespace stylekernels::device::emulation {

namespace {

using std::to_string;

Warp& warp_of(const Thread& thread) { return thread.block->warps[size_t(thread.index / kWarp)]; }

// The lanes of the thread's warp.
Thread** lanes_of(const Thread& thread) {
  return &thread.block->threads[size_t(thread.index / kWarp * kWarp)];
}

// Waits for all lanes of the warp. The last one calls `finish` before any goes on.
template <class F>
void meet(Thread& thread, State operation, const F& finish) {
  Warp& warp = warp_of(thread);
  Grid& grid = *thread.grid;
  if (warp.exited > 0)
    grid.fail(thread, "waits for lanes that have exited: " + grid.describe(*thread.block));
  if (warp.waiting > 0 && warp.operation != operation) {
    thread.state = operation;
    grid.fail(thread, "meets its warp at another operation: " + grid.describe(*thread.block));
  }
  warp.operation = operation;
  if (++warp.waiting < kWarp) return grid.wait(thread, operation);
  warp.waiting = 0;
  Thread** lanes = lanes_of(thread);
  finish(lanes);
  for (int lane = 0; lane < kWarp; lane++) grid.wake(*lanes[lane]);
  grid.leave(thread);
}

uint64_t exchange(Thread& thread, State operation, uint64_t value, int source_lane) {
  if (source_lane < 0 || source_lane >= kWarp)
    thread.grid->fail(thread, "shuffles from lane " + to_string(source_lane) + " of 32");
  thread.value = value;
  thread.source_lane = source_lane;
  meet(thread, operation, [](Thread** lanes) {
    uint64_t values[kWarp];
    for (int lane = 0; lane < kWarp; lane++) values[lane] = lanes[lane]->value;
    for (int lane = 0; lane < kWarp; lane++) lanes[lane]->value = values[lanes[lane]->source_lane];
  });
  return thread.value;
}

std::string offset_text(const Thread& thread, const void* address) {
  return "byte " +
         to_string(static_cast<const std::byte*>(address) - thread.block->memory.begin()) + " of " +
         to_string(thread.block->memory.bytes());
}

}  // namespace

// -- indices -----------------------------------------------------------------------------------

int thread_index() { return self().index; }
int block_threads() { return self().grid->config.threads; }
int block_index() { return self().block->index; }
int grid_blocks() { return self().grid->config.blocks; }

unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(self().block->memory.begin());
}

// -- warps and blocks --------------------------------------------------------------------------

void block_barrier() {
  Thread& thread = self();
  Block& block = *thread.block;
  Grid& grid = *thread.grid;
  if (block.exited > 0)
    grid.fail(thread,
              "waits at a block barrier for threads that have exited: " + grid.describe(block));
  if (++block.waiting < grid.config.threads) return grid.wait(thread, State::block_barrier);
  block.waiting = 0;
  grid.wake_all(block.threads);
  grid.leave(thread);
}

void warp_barrier() {
  meet(self(), State::warp_barrier, [](Thread**) {});
}

uint64_t shuffle_xor(uint64_t value, int mask) {
  Thread& thread = self();
  return exchange(thread, State::shuffle_xor, value, (thread.index % kWarp) ^ mask);
}

uint64_t shuffle(uint64_t value, int lane) { return exchange(self(), State::shuffle, value, lane); }

// -- global memory -----------------------------------------------------------------------------

void check_global(const void* address, size_t bytes, size_t alignment, const char* what) {
  Thread& thread = self();
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0)
    thread.grid->fail(thread, std::string(what) + " an address that is not a multiple of " +
                                  to_string(alignment));
  if (thread.block->memory.contains(address, bytes))
    thread.grid->fail(thread, std::string(what) + " shared memory, " +
                                  offset_text(thread, address) + "; expected global memory");
}

// The bytes are unknown until the copy has ended: NaN shows who reads them earlier.
void copy16_async(void* shared, const void* global) {
  Thread& thread = self();
  check_global(global, 16, 16, "begins to copy from");
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0)
    thread.grid->fail(thread, "begins to copy to an address that is not a multiple of 16");
  if (!thread.block->memory.contains(shared, 16))
    thread.grid->fail(thread, "begins to copy to " + offset_text(thread, shared) +
                                  "; expected its block's shared memory");
  std::memset(shared, 0xFF, 16);
  thread.copies.push_back({shared, global, thread.groups});
}

void commit_copies() { self().groups++; }

void wait_for_copies(int pending) {
  Thread& thread = self();
  size_t done = 0;
  for (; done < thread.copies.size(); done++) {
    const Copy& copy = thread.copies[done];
    if (copy.group >= thread.groups - pending) break;
    std::memcpy(copy.shared, copy.global, 16);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(done));
}

// -- clusters ----------------------------------------------------------------------------------

int cluster_blocks() { return self().grid->config.cluster; }
int cluster_rank() { return self().block->rank; }

void cluster_arrive() {
  Thread& thread = self();
  Grid& grid = *thread.grid;
  Cluster& cluster = thread.block->cluster;
  if (thread.arrived)
    grid.fail(thread, "arrives at the cluster barrier for the second time without a wait");
  thread.arrived = true;
  thread.arrived_phase = cluster.phase;
  if (++cluster.arrived < grid.config.cluster * grid.config.threads) return;
  cluster.arrived = 0;
  cluster.phase++;
  if (!cluster.waiting.empty()) grid.wake_all(cluster.waiting);
  cluster.waiting.clear();
}

void cluster_wait() {
  Thread& thread = self();
  Cluster& cluster = thread.block->cluster;
  if (!thread.arrived)
    thread.grid->fail(thread, "waits at the cluster barrier without having arrived");
  thread.arrived = false;
  if (cluster.phase != thread.arrived_phase) return;
  cluster.waiting.push_back(&thread);
  thread.grid->wait(thread, State::cluster_barrier);
}

const void* shared_of(const void* shared, int rank) {
  Thread& thread = self();
  const Block& block = *thread.block;
  if (!block.memory.contains(shared, 1))
    thread.grid->fail(
        thread, "maps " + offset_text(thread, shared) + "; expected its block's shared memory");
  if (rank < 0 || rank >= thread.grid->config.cluster)
    thread.grid->fail(thread, "maps shared memory of rank " + to_string(rank) +
                                  " in a cluster of " + to_string(thread.grid->config.cluster));
  const SharedMemory& other = block.cluster.blocks[size_t(rank)].memory;
  return other.begin() + (static_cast<const std::byte*>(shared) - block.memory.begin());
}

// -- grids -------------------------------------------------------------------------------------

void grid_barrier() {
  Thread& thread = self();
  if (!thread.grid->config.cooperative)
    thread.grid->fail(thread, "waits at a grid barrier; expected a cooperative launch");
  thread.grid->wait_for_all(thread);
}

}  // namespace stylekernels::device::emulation
