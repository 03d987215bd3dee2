#include "shared_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace stylekernels::device::emulation {

namespace {

// NaN in float32, float64, bfloat16 and float16.
constexpr std::byte kPoison{0xFF};

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

SharedMemory::SharedMemory(size_t bytes)
    : bytes_(bytes), page_(size_t(sysconf(_SC_PAGESIZE))), pages_bytes_(round_up(bytes, page_)) {
  void* mapping =
      mmap(nullptr, pages_bytes_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("CUDA emulation: no shared memory");
  mapping_ = static_cast<std::byte*>(mapping);
  pages_ = mapping_ + page_;
}

SharedMemory::~SharedMemory() { munmap(mapping_, pages_bytes_ + 2 * page_); }

void SharedMemory::open(bool at_end) {
  if (closed_ && pages_bytes_ > 0 && mprotect(pages_, pages_bytes_, PROT_READ | PROT_WRITE) != 0)
    throw std::runtime_error("CUDA emulation: shared memory cannot be made accessible");
  closed_ = false;
  begin_ = at_end ? pages_ + pages_bytes_ - round_up(bytes_, kAlignment) : pages_;
  std::fill_n(pages_, pages_bytes_, kPoison);
}

void SharedMemory::close() {
  if (pages_bytes_ > 0) mprotect(pages_, pages_bytes_, PROT_NONE);
  closed_ = true;
}

bool SharedMemory::contains(const void* address, size_t count) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return byte >= begin_ && byte + count <= begin_ + bytes_;
}

std::string SharedMemory::place(const void* address) const {
  const ptrdiff_t offset = static_cast<const std::byte*>(address) - begin_;
  return "byte " + std::to_string(offset) + " of " + std::to_string(bytes_);
}

bool SharedMemory::surrounds(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return byte >= mapping_ && byte < mapping_ + pages_bytes_ + 2 * page_;
}

std::string SharedMemory::write_outside() const {
  const auto written = [](std::byte byte) { return byte != kPoison; };
  const std::byte* end = begin_ + bytes_;
  const std::byte* after =
      std::find_if(end, const_cast<const std::byte*>(pages_) + pages_bytes_, written);
  if (after != pages_ + pages_bytes_) return std::to_string(after - begin_);
  const std::byte* before = std::find_if(pages_, begin_, written);
  if (before != begin_) return std::to_string(before - begin_);
  return "";
}

}  // namespace stylekernels::device::emulation
