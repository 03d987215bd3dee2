// Messages for accesses of kernels to inaccessible addresses.
#pragma once

namespace stylekernels::device::emulation {

// Called by each launch. A thread of a kernel that accesses an inaccessible address writes a
// message to stderr. Then the fault goes to whoever handled it before, or ends the process.
void watch_faults();

}  // namespace stylekernels::device::emulation
