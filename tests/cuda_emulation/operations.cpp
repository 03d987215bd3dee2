#include "operations.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "warps.h"

namespace stylekernels::device::emulation {

namespace {

using std::to_string;

// A value of up to 8 bytes, and the lane whose value replaces it.
struct Exchanged {
  uint64_t value;
  int source_lane;
};

uint64_t exchange(Thread& thread, State operation, uint64_t value, int source_lane) {
  if (source_lane < 0 || source_lane >= kWarp)
    thread.grid->fail(thread, "shuffles from lane " + to_string(source_lane) + " of 32");
  Exchanged own{value, source_lane};
  meet(thread, operation, own, [](Exchanged* const* lanes) {
    uint64_t values[kWarp];
    for (int lane = 0; lane < kWarp; lane++) values[lane] = lanes[lane]->value;
    for (int lane = 0; lane < kWarp; lane++) lanes[lane]->value = values[lanes[lane]->source_lane];
  });
  return own.value;
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
  struct Nothing {
  } own;
  meet(self(), State::warp_barrier, own, [](Nothing* const*) {});
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
                                  thread.block->memory.place(address) + "; expected global memory");
}

void check_aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  Thread& thread = self();
  thread.grid->fail(thread,
                    "accesses an address that is not a multiple of " + to_string(alignment));
}

// The bytes are unknown until the copy has ended: NaN shows who reads them earlier.
void copy16_async(void* shared, const void* global, int bytes) {
  Thread& thread = self();
  if (bytes < 0 || bytes > 16)
    thread.grid->fail(thread, "begins to copy " + to_string(bytes) + " bytes; expected 0 to 16");
  if (bytes > 0) check_global(global, size_t(bytes), 16, "begins to copy from");
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0)
    thread.grid->fail(thread, "begins to copy to an address that is not a multiple of 16");
  if (!thread.block->memory.contains(shared, 16))
    thread.grid->fail(thread, "begins to copy to " + thread.block->memory.place(shared) +
                                  "; expected its block's shared memory");
  std::memset(shared, 0xFF, 16);
  thread.copies.push_back({shared, global, bytes, thread.groups});
}

void commit_copies() { self().groups++; }

void wait_for_copies(int pending) {
  Thread& thread = self();
  size_t done = 0;
  for (; done < thread.copies.size(); done++) {
    const Copy& copy = thread.copies[done];
    if (copy.group >= thread.groups - pending) break;
    auto* to = static_cast<std::byte*>(copy.shared);
    to = std::copy_n(static_cast<const std::byte*>(copy.global), copy.bytes, to);
    std::fill_n(to, 16 - copy.bytes, std::byte{0});
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(done));
}

int count_arrival(int* counter) {
  check_global(counter, sizeof(int), alignof(int), "counts at");
  return (*counter)++;
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
        thread, "maps " + block.memory.place(shared) + "; expected its block's shared memory");
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
