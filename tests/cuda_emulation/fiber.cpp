// The first switch to a fiber is swapcontext's. Later ones are _setjmp's and _longjmp's, which do
// the same without a system call.
#undef _FORTIFY_SOURCE  // its check of longjmp refuses to go to another stack

#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>

namespace stylekernels::device::emulation {

namespace {

// Tops of stacks differ by it, so that they don't compete for the same lines of a cache.
constexpr size_t kStagger = 320, kStaggers = 12;
thread_local size_t fibers_made = 0;

thread_local ucontext_t* creator = nullptr;

size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

}  // namespace

[[gnu::noinline]] void switch_context(Context& from, Context& to) {
  if (_setjmp(from.registers) == 0) _longjmp(to.registers, 1);
}

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument) {
  const size_t guard = page();
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulation: no memory for a stack");
  memory_ = static_cast<std::byte*>(memory);
  if (mprotect(memory_ + guard, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(memory_, guard + kStackBytes);
    throw std::runtime_error(
        "CUDA emulation: the system allows no more stacks; launch fewer threads at the same time, "
        "or raise vm.max_map_count");
  }
  ucontext_t here, start;
  getcontext(&start);
  start.uc_stack.ss_sp = memory_ + guard;
  start.uc_stack.ss_size = kStackBytes - kStagger * (fibers_made++ % kStaggers);
  start.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&start, reinterpret_cast<void (*)()>(enter), 2, unsigned(self >> 32), unsigned(self));
  creator = &here;
  swapcontext(&here, &start);
}

void Fiber::enter(unsigned high, unsigned low) {
  Fiber* fiber = reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
  if (_setjmp(fiber->context.registers) == 0) setcontext(creator);
  fiber->body_(fiber->argument_);
}

Fiber::~Fiber() { munmap(memory_, page() + kStackBytes); }

bool Fiber::is_overflow(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return byte >= memory_ && byte < memory_ + page();
}

}  // namespace stylekernels::device::emulation
