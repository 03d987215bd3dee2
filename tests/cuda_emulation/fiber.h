// Fibers: functions with stacks of their own, between which a host thread switches.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace stylekernels::device::emulation {

// Where a fiber, or the host thread, goes on.
struct Context {
  jmp_buf registers;
};

// Saves where the caller is in `from`, and goes on at `to`. Returns when something switches back.
void switch_context(Context& from, Context& to);

// Begins at the first switch to its context. The body never returns.
class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 << 10;

  Fiber(void (*body)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Whether an address is in the page below the stack, which cannot be accessed.
  bool is_overflow(const void* address) const;

  Context context;

 private:
  static void enter(unsigned high, unsigned low);

  void (*body_)(void*);
  void* argument_;
  std::byte* memory_;  // the page that cannot be accessed, then the stack
};

}  // namespace stylekernels::device::emulation
