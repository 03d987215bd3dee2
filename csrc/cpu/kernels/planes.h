// Walking over planes, and sums over their pixels: mean and variance, or the two sums of a
// backward pass.
//
// float32 sums of a whole plane are wrong (a variance off by 3e-4 at mean/deviation 3 over 131,000
// values), so a block of at most kBlock values per lane is summed in float32, about a shift taken
// from the block itself, and blocks are merged in double precision (Chan, Golub and LeVeque,
// "Algorithms for computing the sample variance", 1983).
#pragma once

#include "../instance_norm.h"
#include "simd.h"

namespace stylekernels::CPU_CAPABILITY {

constexpr int kBlock = 256;  // values per lane summed in float32,
constexpr int kRun = 16;     // runs of so many first, then the runs: a tenth of the rounding error
constexpr int kShift = 4;    // values whose mean is the shift
constexpr int kGroup = 4;    // vectors summed side by side: their sums stay in registers

template <class T>
inline T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
inline const T* at(const void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<const T*>(p) + offset;
}

template <class T>
inline T* at(void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<T*>(p) + offset;
}

inline int64_t chunk_begin(const PlaneGrid& g, int64_t chunk) { return chunk * g.chunk_pixels; }
inline int64_t chunk_count(const PlaneGrid& g, int64_t chunk) {
  return smaller(g.chunk_pixels, g.pixels - chunk_begin(g, chunk));
}

template <class V, class T>
inline bool aligned_for_pair(const T* p) {
  constexpr int64_t kBytes =
      sizeof(T) == sizeof(ElementOf<V>) ? sizeof(V) : 2 * kLanes<V> * sizeof(T);
  return uintptr_t(p) % kBytes == 0;
}

inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// -- sums ------------------------------------------------------------------------------------

// Mean and sum of squared deviations of `count` values.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  void merge(double other_count, double other_mean, double other_m2) {
    const double total = count + other_count;
    if (total == 0) return;
    const double delta = other_mean - mean;
    const double share = other_count / total;
    mean += delta * share;
    m2 += other_m2 + delta * delta * count * share;
    count = total;
  }
};

// Moments of `count` pixels of `kVectors` vectors that are `stride` elements apart.
// mean and m2 are arrays of kVectors * lanes; the moments are merged into them.
template <class V, int kVectors, class T>
inline void add_moments(const T* x, int64_t stride, int64_t pixels, double* mean, double* m2) {
  using W = ElementOf<V>;
  constexpr int kWidth = kVectors * kLanes<V>;
  W shift_lane[kWidth], sum_lane[kWidth], square_lane[kWidth];
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t count = smaller<int64_t>(kBlock, pixels - first);
    const T* p = x + first * stride;
    V shift[kVectors], sum[kVectors], square[kVectors];
    const int64_t in_shift = smaller<int64_t>(kShift, count);
    for (int v = 0; v < kVectors; ++v) {
      shift[v] = sum[v] = square[v] = V{};
      for (int64_t i = 0; i < in_shift; ++i) shift[v] += load<V>(p + i * stride + v * kLanes<V>);
      shift[v] *= splat<V>(W(1) / W(in_shift));
    }
    for (int64_t run = 0; run < count; run += kRun) {
      V run_sum[kVectors] = {}, run_square[kVectors] = {};
      const T* end = p + smaller<int64_t>(kRun, count - run) * stride;
      for (; p != end; p += stride) {
        for (int v = 0; v < kVectors; ++v) {
          const V d = load<V>(p + v * kLanes<V>) - shift[v];
          run_sum[v] += d;
          run_square[v] = multiply_add(d, d, run_square[v]);
        }
      }
      for (int v = 0; v < kVectors; ++v) sum[v] += run_sum[v], square[v] += run_square[v];
    }
    for (int v = 0; v < kVectors; ++v) {
      store(shift_lane + v * kLanes<V>, shift[v]);
      store(sum_lane + v * kLanes<V>, sum[v]);
      store(square_lane + v * kLanes<V>, square[v]);
    }
    const double inverse = 1.0 / double(count);
    const double share = double(count) / double(first + count);
    const double weight = double(first) * share;
    for (int j = 0; j < kWidth; ++j) {
      const double sum = sum_lane[j];
      const double delta = double(shift_lane[j]) + sum * inverse - mean[j];
      mean[j] += delta * share;
      m2[j] += double(square_lane[j]) - sum * sum * inverse + delta * delta * weight;
    }
  }
}

// Moments of `count` values that follow each other.
template <class V, class T>
inline Moments moments_of_run(const T* x, int64_t count) {
  constexpr int kWidth = kGroup * kLanes<V>;
  const int64_t steps = count / kWidth;
  Moments result;
  if (steps > 0) {
    double mean[kWidth] = {}, m2[kWidth] = {};
    add_moments<V, kGroup>(x, kWidth, steps, mean, m2);
    double sum = 0, within = 0, between = 0;  // the lanes have the same count
    for (int j = 0; j < kWidth; ++j) sum += mean[j], within += m2[j];
    for (int j = 0; j < kWidth; ++j) between += (mean[j] - sum / kWidth) * (mean[j] - sum / kWidth);
    result = {double(steps) * kWidth, sum / kWidth, within + double(steps) * between};
  }
  const int64_t done = steps * kWidth;
  if (done < count) {
    double mean = 0, m2 = 0;
    add_moments<ElementOf<V>, 1>(x + done, 1, count - done, &mean, &m2);
    result.merge(double(count - done), mean, m2);
  }
  return result;
}

// -- channels_last rows ----------------------------------------------------------------------
//
// With few channels, as many pixels as make a whole number of pairs of vectors are treated as one
// wide pixel, and the few pixels left over one by one. With many channels a row is one pixel, and
// what is not a whole vector is done by scalars.

constexpr int64_t kFewChannels = 64;
constexpr int64_t kWidestRow = kFewChannels * VECTOR_BYTES / 2;

template <class V>
inline int64_t pixels_per_row(int64_t channels) {
  if (channels >= kFewChannels) return 1;
  int64_t repeat = 1;
  while (repeat * channels % (2 * kLanes<V>) != 0) repeat *= 2;
  return repeat;
}

// Calls f(V{}, vectors, offset) for runs of `vectors` vectors (a constant: kGroup or 1) that
// cover a row of `width` elements, and f(scalar, 1, offset) for the rest.
template <int kSize>
struct Count {
  static constexpr int value = kSize;
};

template <class V, class F>
inline void for_row_groups(int64_t width, const F& f) {
  int64_t offset = 0;
  for (; offset + kGroup * kLanes<V> <= width; offset += kGroup * kLanes<V>)
    f(V{}, Count<kGroup>{}, offset);
  for (; offset + kLanes<V> <= width; offset += kLanes<V>) f(V{}, Count<1>{}, offset);
  for (; offset < width; ++offset) f(ElementOf<V>{}, Count<1>{}, offset);
}

}  // namespace stylekernels::CPU_CAPABILITY
