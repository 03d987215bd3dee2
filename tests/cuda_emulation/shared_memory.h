// The shared memory of a block, with inaccessible pages around it.
#pragma once

#include <cstddef>
#include <string>

namespace stylekernels::device::emulation {

// Whole pages between two pages that cannot be accessed. Shared memory lies at their end or at
// their beginning, so that one side is next to an inaccessible page. The rest of the pages is
// filled with a pattern that shows writes.
class SharedMemory {
 public:
  static constexpr size_t kAlignment = 128;

  explicit SharedMemory(size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Makes it accessible, and fills it with NaN.
  void open(bool at_end);
  // Makes it inaccessible.
  void close();

  std::byte* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }
  bool closed() const { return closed_; }
  // Whether it contains `count` bytes at an address.
  bool contains(const void* address, size_t count) const;
  // An address as text: its offset, and the size.
  std::string place(const void* address) const;
  // Whether an address is in it or in the pages around it.
  bool surrounds(const void* address) const;
  // Offset of a byte outside of it that was written, as text; empty if there is none.
  std::string write_outside() const;

 private:
  size_t bytes_, page_, pages_bytes_;  // pages_bytes_ without the two around
  std::byte* mapping_;
  std::byte* pages_;
  std::byte* begin_ = nullptr;
  bool closed_ = true;
};

}  // namespace stylekernels::device::emulation
