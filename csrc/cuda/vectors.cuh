// Vectors of elements: what a thread loads or stores at once.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace stylekernels::device {

// kLanes elements, 16 bytes as a rule, or one element where rows are not aligned. They are kept in
// whole words: elements of 2 bytes in registers of their own would make the compiler wait for each
// load before the next.
template <class T, int kLanes>
struct alignas(sizeof(T) * kLanes) Vector {
  using Word = std::conditional_t<sizeof(T) * kLanes % 4 == 0, uint32_t, uint16_t>;
  static constexpr int kWords = sizeof(T) * kLanes / sizeof(Word);

  Word words[kWords];

  __device__ T get(int lane) const {
    T element;
    if constexpr (sizeof(T) < sizeof(Word)) {
      const auto bits = uint16_t(words[lane / 2] >> (lane % 2 * 16));
      __builtin_memcpy(&element, &bits, sizeof(T));
    } else {
      __builtin_memcpy(&element, &words[lane * (sizeof(T) / sizeof(Word))], sizeof(T));
    }
    return element;
  }

  __device__ void set(int lane, T element) {
    if constexpr (sizeof(T) < sizeof(Word)) {
      uint16_t bits;
      __builtin_memcpy(&bits, &element, sizeof(T));
      const int shift = lane % 2 * 16;
      words[lane / 2] = (words[lane / 2] & ~(0xffffu << shift)) | (uint32_t(bits) << shift);
    } else {
      __builtin_memcpy(&words[lane * (sizeof(T) / sizeof(Word))], &element, sizeof(T));
    }
  }
};

// The most elements of type T that a thread loads at once.
template <class T>
constexpr int kVectorLanes = 16 / sizeof(T);

// The vector that begins at an element, in global or shared memory.
template <int kLanes, class T>
__device__ inline auto& vector_at(T* first) {
  using Plain = Vector<std::remove_const_t<T>, kLanes>;
  using Found = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;
  check_aligned(first, alignof(Found));
  return *reinterpret_cast<Found*>(first);
}

// Reads vector number `index` of a tensor that nobody writes meanwhile.
template <class T, int kLanes>
__device__ inline Vector<T, kLanes> load_whole(const T* tensor, int64_t index) {
  Vector<T, kLanes> vector;
  if constexpr (sizeof(vector) == sizeof(Vector16)) {
    const Vector16 bits = load16(tensor + index * kLanes);
    __builtin_memcpy(&vector, &bits, sizeof(vector));
  } else {
    vector = vector_at<kLanes>(tensor + index * kLanes);
  }
  return vector;
}

// Reads vector number `index` of a tensor that nobody writes meanwhile. The last vector may reach
// over the end of the tensor's `count` elements; what is there reads as zeros.
template <class T, int kLanes>
__device__ inline Vector<T, kLanes> load_vector(const T* tensor, int64_t index, int64_t count) {
  const int64_t first = index * kLanes;
  if (kLanes > 1 && first + kLanes <= count) return load_whole<T, kLanes>(tensor, index);
  Vector<T, kLanes> vector{};
  for (int lane = 0; lane < kLanes; ++lane)
    if (first + lane < count) vector.set(lane, tensor[first + lane]);
  return vector;
}

// Writes vector number `index`.
template <class T, int kLanes>
__device__ inline void store_whole(T* tensor, int64_t index, const Vector<T, kLanes>& vector) {
  if constexpr (sizeof(vector) == sizeof(Vector16)) {
    Vector16 bits;
    __builtin_memcpy(&bits, &vector, sizeof(vector));
    store16(tensor + index * kLanes, bits);
  } else {
    vector_at<kLanes>(tensor + index * kLanes) = vector;
  }
}

// Writes those elements of vector number `index` that are in [begin, end).
template <class T, int kLanes>
__device__ inline void store_vector(T* tensor, int64_t index, const Vector<T, kLanes>& vector,
                                    int64_t begin, int64_t end) {
  const int64_t first = index * kLanes;
  if (kLanes > 1 && first >= begin && first + kLanes <= end)
    return store_whole(tensor, index, vector);
  for (int lane = 0; lane < kLanes; ++lane)
    if (first + lane >= begin && first + lane < end) tensor[first + lane] = vector.get(lane);
}

}  // namespace stylekernels::device
