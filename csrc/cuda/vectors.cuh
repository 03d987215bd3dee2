// Vectors of elements: what a thread loads or stores at once.
#pragma once

#include "device.cuh"

namespace stylekernels::device {

// kLanes elements, 16 bytes as a rule, or one element where rows are not aligned.
template <class T, int kLanes>
struct alignas(sizeof(T) * kLanes) Vector {
  T elements[kLanes];
};

// The most elements of type T that a thread loads at once.
template <class T>
constexpr int kVectorLanes = 16 / sizeof(T);

// Reads vector number `index` of a tensor that nobody writes meanwhile. The last vector may reach
// over the end of the tensor's `count` elements; what is there reads as zeros.
template <class T, int kLanes>
__device__ inline Vector<T, kLanes> load_vector(const T* tensor, int64_t index, int64_t count) {
  Vector<T, kLanes> vector{};
  const int64_t first = index * kLanes;
  if constexpr (kLanes > 1) {
    if (first + kLanes <= count) {
      if constexpr (sizeof(vector) < sizeof(Vector16))
        return *reinterpret_cast<const Vector<T, kLanes>*>(tensor + first);
      const Vector16 bits = load16(tensor + first);
      __builtin_memcpy(&vector, &bits, sizeof(vector));
      return vector;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (first + lane < count) vector.elements[lane] = tensor[first + lane];
  return vector;
}

// Writes those elements of vector number `index` that are in [begin, end).
template <class T, int kLanes>
__device__ inline void store_vector(T* tensor, int64_t index, const Vector<T, kLanes>& vector,
                                    int64_t begin, int64_t end) {
  const int64_t first = index * kLanes;
  if constexpr (kLanes > 1) {
    if (first >= begin && first + kLanes <= end) {
      if constexpr (sizeof(vector) < sizeof(Vector16)) {
        *reinterpret_cast<Vector<T, kLanes>*>(tensor + first) = vector;
      } else {
        Vector16 bits;
        __builtin_memcpy(&bits, &vector, sizeof(vector));
        store16(tensor + first, bits);
      }
      return;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (first + lane >= begin && first + lane < end) tensor[first + lane] = vector.elements[lane];
}

}  // namespace stylekernels::device
