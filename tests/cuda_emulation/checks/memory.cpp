// Limits of shared memory, its first contents, stacks, and exceptions.

#include <stdexcept>

#include "checks.h"

namespace checks {

namespace {

constexpr int kCount = 100;  // 400 bytes: 112 more up to a multiple of 128

// Thread 0 reads or writes one element.
__global__ void access(float* y, int index, bool writes) {
  float* values = reinterpret_cast<float*>(shared_memory());
  for (int i = thread_index(); i < kCount; i += block_threads()) values[i] = 1;
  block_barrier();
  if (thread_index() != 0) return;
  if (writes) values[index] = 2;
  *y = values[index];
}

bool check_access(int index, bool writes) {
  float y = NAN;
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = kCount * int(sizeof(float))}, nullptr,
         access, &y, index, writes);
  return y == (writes ? 2 : 1);
}

template <class T>
__global__ void first_contents(float* y, int count) {
  const T* values = reinterpret_cast<const T*>(shared_memory());
  for (int i = thread_index(); i < count; i += block_threads()) y[i] = float(widen(values[i]));
  // The next block must not find it.
  block_barrier();
  for (int i = thread_index(); i < count; i += block_threads())
    if (block_index() == 0) y[count + i] = 1;
  block_barrier();
  for (int i = thread_index(); i < count * int(sizeof(T)); i += block_threads())
    shared_memory()[i] = 0;
}

template <class T>
bool first_contents_are_nan() {
  constexpr int kBytes = 4800, kElements = kBytes / int(sizeof(T));
  std::vector<float> y(2 * kElements, 0.0f);
  launch({.blocks = 4, .threads = 64, .shared_bytes = kBytes}, nullptr, first_contents<T>, y.data(),
         kElements);
  bool right = true;
  for (int i = 0; i < kElements; i++)
    right &= std::isnan(y[size_t(i)]) && y[size_t(kElements + i)] == 1;
  return right;
}

bool check_first_contents() {
  return first_contents_are_nan<float>() && first_contents_are_nan<double>() &&
         first_contents_are_nan<stylekernels::BFloat16>() &&
         first_contents_are_nan<stylekernels::Float16>();
}

__global__ void alignment(unsigned* misaligned) {
  if (reinterpret_cast<uintptr_t>(shared_memory()) % 128 != 0) ++*misaligned;
}

bool check_alignment() {
  unsigned misaligned = 0;
  for (int bytes : {0, 1, 100, 128, 4095, 4096, 4097, 227 << 10})
    launch({.blocks = 4, .threads = 32, .shared_bytes = bytes}, nullptr, alignment, &misaligned);
  return misaligned == 0;
}

// Sums bytes that it keeps on the stack.
__device__ int use_stack(int kilobytes) {
  volatile unsigned char bytes[1024];
  for (volatile unsigned char& byte : bytes) byte = 1;
  int sum = kilobytes > 1 ? use_stack(kilobytes - 1) : 0;
  for (volatile unsigned char& byte : bytes) sum += byte;
  return sum;
}

__global__ void local_variables(int kilobytes, int* sum) { *sum = use_stack(kilobytes); }

bool check_local_variables(int kilobytes) {
  int sum = 0;
  launch({.blocks = 1, .threads = 32, .shared_bytes = 0}, nullptr, local_variables, kilobytes,
         &sum);
  return sum == kilobytes * 1024;
}

__global__ void throw_error(int thread) {
  if (thread_index() == thread) throw std::logic_error("thrown by a kernel");
  block_barrier();
}

bool check_exception(int thread) {
  launch({.blocks = 3, .threads = 64, .shared_bytes = 0}, nullptr, throw_error, thread);
  return true;
}

// A failed launch leaves nothing behind.
bool check_after_exception() {
  for (int i = 0; i < 3; i++) {
    try {
      check_exception(20);
      return false;
    } catch (const std::logic_error&) {
    }
    if (!all().at("block_sums")() || !all().at("cluster_sums")()) return false;
  }
  return true;
}

const Registration registrations[] = {
    {"access", [] { return check_access(0, true) && check_access(kCount - 1, false); }},
    {"access/read_before", [] { return check_access(-1, false); }},
    {"access/read_after", [] { return check_access(kCount, false); }},
    {"access/read_far_after", [] { return check_access(1024, false); }},
    {"access/write_before", [] { return check_access(-1, true); }},
    {"access/write_after", [] { return check_access(kCount, true); }},
    {"access/write_far_before", [] { return check_access(-1024, true); }},
    {"first_contents", check_first_contents},
    {"alignment", check_alignment},
    {"local_variables", [] { return check_local_variables(64); }},
    {"local_variables/too_many", [] { return check_local_variables(256); }},
    {"exception", [] { return check_exception(-1); }},
    {"exception/thrown", [] { return check_exception(20); }},
    {"after_exception", check_after_exception},
    {"device_function_on_host", [] { return thread_index() == 0; }},
};

}  // namespace

}  // namespace checks
