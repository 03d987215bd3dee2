// Operations that the lanes of a warp meet at.
#pragma once

#include "grid.h"

namespace stylekernels::device::emulation {

// Waits for all lanes of the thread's warp, which give operands of the same type. The last lane
// calls `finish` with those of all lanes before any goes on.
template <class Operands, class F>
void meet(Thread& thread, State operation, Operands& own, const F& finish) {
  const size_t number = size_t(thread.index / kWarp);
  Warp& warp = thread.block->warps[number];
  Grid& grid = *thread.grid;
  if (warp.exited > 0)
    grid.fail(thread, "waits for lanes that have exited: " + grid.describe(*thread.block));
  if (warp.waiting > 0 && warp.operation != operation) {
    thread.state = operation;
    grid.fail(thread, "meets its warp at another operation: " + grid.describe(*thread.block));
  }
  warp.operation = operation;
  thread.operands = &own;
  if (++warp.waiting < kWarp) return grid.wait(thread, operation);
  warp.waiting = 0;
  Thread** lanes = &thread.block->threads[number * kWarp];
  Operands* operands[kWarp];
  for (int lane = 0; lane < kWarp; lane++)
    operands[lane] = static_cast<Operands*>(lanes[lane]->operands);
  finish(operands);
  for (int lane = 0; lane < kWarp; lane++) grid.wake(*lanes[lane]);
  grid.leave(thread);
}

}  // namespace stylekernels::device::emulation
