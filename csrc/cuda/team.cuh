// Teams: the blocks that share a strip, and how they exchange results.
#pragma once

#include "device.cuh"

namespace stylekernels::device {

// single: a block alone, or a part of one. cluster: the blocks of a cluster, over their shared
// memory. grid: blocks of a cooperative grid, over global memory; the teams take turns through the
// strips, in rounds.
enum class TeamKind { single, cluster, grid };

struct TeamPlan {
  TeamKind kind;
  int size;          // blocks of a team; 1 if it is a part of one
  int parts, shift;  // small strips: teams of a block, log2 of the threads that each has there
  int teams;         // at the same time
  unsigned char* exchange;  // grid: memory for two rounds of all blocks
  int exchange_bytes;       // what a block publishes
};

// A block's place in its team. Every block writes to `own()`, all pass `barrier`, and read `of`
// every rank; `leave` follows once at the end.
class Team {
 public:
  __device__ Team(const TeamPlan& plan, unsigned char* shared) : plan_(plan), shared_(shared) {}

  __device__ int rank() const { return block_index() % plan_.size; }
  __device__ int size() const { return plan_.size; }

  // The strip of a round; there may be none.
  __device__ int64_t strip(int round) const {
    return int64_t(round) * plan_.teams + block_index() / plan_.size;
  }

  // The strip of this thread's part of the block. Parts behind the last of `count` strips repeat
  // it, and write the same results, because the lanes of a warp shuffle together.
  __device__ int64_t strip_of_part(int count) const {
    const int strip = block_index() * plan_.parts + (thread_index() >> plan_.shift);
    return strip < count ? strip : count - 1;
  }

  __device__ unsigned char* own(int round) const {
    return plan_.kind == TeamKind::grid ? buffer(block_index(), round) : shared_;
  }

  __device__ const unsigned char* of(int rank, int round) const {
    if (plan_.kind == TeamKind::cluster) return shared_of(shared_, rank);
    if (plan_.kind == TeamKind::single) return shared_;
    return buffer(block_index() - this->rank() + rank, round);
  }

  __device__ void barrier() const {
    if (plan_.kind == TeamKind::grid) {
      grid_barrier();
    } else if (plan_.kind == TeamKind::cluster) {
      cluster_arrive();
      cluster_wait();
    } else {
      block_barrier();
    }
  }

  // Says that this block has read what others published. Clusters have one round only.
  __device__ void done_reading() const {
    if (plan_.kind == TeamKind::cluster) cluster_arrive_relaxed();
  }

  // Waits until no block reads this block's shared memory.
  __device__ void leave() const {
    if (plan_.kind == TeamKind::cluster) cluster_wait();
  }

 private:
  // Rounds alternate between two buffers: a block may write the next one while others read this.
  __device__ unsigned char* buffer(int block, int round) const {
    return plan_.exchange + (int64_t(round % 2) * grid_blocks() + block) * plan_.exchange_bytes;
  }

  const TeamPlan& plan_;
  unsigned char* shared_;
};

}  // namespace stylekernels::device
