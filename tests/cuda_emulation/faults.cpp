#include "faults.h"

#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <mutex>

#include "grid.h"

namespace stylekernels::device::emulation {

namespace {

struct sigaction previous;
volatile sig_atomic_t entered = 0;

void on_fault(int, siginfo_t* info, void*) {
  if (entered) {  // the previous handler calls the one before it, which may be this
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  entered = 1;
  if (current != nullptr) {
    char text[512];
    current->grid->explain(*current, info->si_addr, text, sizeof(text));
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, std::strlen(text));
  }
  sigaction(SIGSEGV, &previous, nullptr);  // the access is repeated, and fails again
}

// The stack of a host thread's signal handlers: a fiber that has no stack left cannot run them.
class SignalStack {
 public:
  SignalStack() {
    stack_t used;
    if (sigaltstack(nullptr, &used) != 0 || (used.ss_flags & SS_DISABLE) == 0) return;
    memory_ = std::make_unique<std::byte[]>(kBytes);
    const stack_t own{memory_.get(), 0, kBytes};
    sigaltstack(&own, nullptr);
  }
  ~SignalStack() {
    if (memory_ == nullptr) return;
    const stack_t none{nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace

void watch_faults() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  struct sigaction set;
  sigaction(SIGSEGV, nullptr, &set);
  if (set.sa_sigaction != on_fault) {  // Python's faulthandler may have been enabled meanwhile
    previous = set;
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
  }
  thread_local SignalStack stack;
}

}  // namespace stylekernels::device::emulation
