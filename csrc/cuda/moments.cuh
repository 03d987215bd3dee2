// Sums about a shift, from which mean and variance follow.
//
// A lane adds differences from a shift, the mean of its first values, in the wide type. After some
// kSummed values they are added to sums in double, about a new shift: the mean so far. Squares of
// differences therefore exceed the variance by about that factor at most, however large the mean
// is, and lose no more units of the last place. A lane whose squares exceed float32, those of
// values above 1e17, adds its values once more in double: the others pay for one comparison a lane.
#pragma once

#include "strips.cuh"
#include "vectors.cuh"

namespace stylekernels::device {

struct Moments {
  double count = 0, shift = 0, sum = 0, squares = 0;  // sums of x - shift and of its square

  __device__ double mean() const { return shift + sum / count; }

  // The biased variance. NaN stays NaN.
  __device__ double variance() const {
    const double offset = sum / count, variance = squares / count - offset * offset;
    return variance < 0 ? 0 : variance;
  }

  __device__ void move_to(double other) {
    const double by = shift - other;
    squares += by * (2 * sum + count * by);
    sum += count * by;
    shift = other;
  }

  __device__ void add(Moments other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    other.move_to(shift);
    count += other.count;
    sum += other.sum;
    squares += other.squares;
  }

  __device__ Moments of_lane(int mask) const {
    return {shuffle_xor(count, mask), shuffle_xor(shift, mask), shuffle_xor(sum, mask),
            shuffle_xor(squares, mask)};
  }
};

// Two sums of a plane.
struct Sums {
  double first = 0, second = 0;

  __device__ void add(const Sums& other) {
    first += other.first;
    second += other.second;
  }

  __device__ Sums of_lane(int mask) const {
    return {shuffle_xor(first, mask), shuffle_xor(second, mask)};
  }
};

// Adds up over the lanes whose numbers differ in bits from `from` on and below `to`; the first of
// them has the result of all, in an order that does not vary.
template <class S>
__device__ inline S sum_over_lanes(S sums, int from, int to) {
  for (int mask = from; mask < to; mask *= 2) sums.add(sums.of_lane(mask));
  return sums;
}

// The moments of the values that a lane has read: all its values together if contiguous, each
// element of its vectors by itself in channels_last.
template <class T, int kLanes, NormLayout kLayout>
class LaneMoments {
 public:
  static constexpr bool kContiguous = kLayout != NormLayout::channels_last;
  static constexpr int kCount = kContiguous ? 1 : kLanes;  // moments

  // Tells whether nothing was added.
  __device__ bool empty() const { return count_ == 0 && pending_ == 0; }

  // Takes the vector, whose elements [lo, hi) are added first, for the shift.
  __device__ void choose_shift(const Vector<T, kLanes>& vector, int64_t first, int64_t lo,
                               int64_t hi) {
    if constexpr (kContiguous) {
      W sum = 0;
      int values = 0;
      for (int i = 0; i < kLanes; ++i) {
        const bool inside = first + i >= lo && first + i < hi;
        sum += inside ? widen(vector.get(i)) / W(kLanes) : W(0);  // finite for the largest values
        values += inside;
      }
      shift_[0] = finite(sum * (W(kLanes) / W(values)), W(0));
    } else {
      for (int i = 0; i < kLanes; ++i) shift_[i] = finite(W(widen(vector.get(i))), W(0));
    }
  }

  // Adds a vector.
  __device__ void add(const Vector<T, kLanes>& vector) {
    for (int i = 0; i < kLanes; ++i) add(i, widen(vector.get(i)) - shift_[kContiguous ? 0 : i]);
    pending_ += kContiguous ? kLanes : 1;
  }

  // Adds those elements of the vector, which begins at element `first`, that are in [lo, hi).
  __device__ void add(const Vector<T, kLanes>& vector, int64_t first, int64_t lo, int64_t hi) {
    for (int i = 0; i < kLanes; ++i) {
      if (first + i < lo || first + i >= hi) continue;
      add(i, widen(vector.get(i)) - shift_[kContiguous ? 0 : i]);
      ++pending_;
    }
  }

  // Moves what was added to the sums in double, and the shift to the mean so far, if many values
  // were added.
  __device__ void settle_if_many() {
    if (pending_ >= kSummed) settle();
  }

  // Ends the sums, before results are taken.
  __device__ void finish() {
    if (pending_ > 0) settle();
  }

  // After `finish`: tells whether squares have exceeded float32, or values are not finite.
  __device__ bool exceeds_float32() const {
    if (sizeof(W) > 4 || std::is_same_v<T, Float16>) return false;
    bool finite = true;
    for (int i = 0; i < kCount; ++i) finite &= total_squares_[i] - total_squares_[i] == 0;
    return !finite;
  }

  // Begins to add the same values again, with `add_in_double`, about the shifts so far.
  __device__ void restart() {
    for (int i = 0; i < kCount; ++i) total_sum_[i] = total_squares_[i] = 0;
  }

  // Adds those elements of the vector, which begins at element `first`, that are in [lo, hi); all
  // of them in channels_last.
  __device__ void add_in_double(const Vector<T, kLanes>& vector, int64_t first, int64_t lo,
                                int64_t hi) {
    for (int i = 0; i < kLanes; ++i) {
      if (kContiguous && (first + i < lo || first + i >= hi)) continue;
      const int to = kContiguous ? 0 : i;
      const double difference = double(widen(vector.get(i))) - double(shift_[to]);
      total_sum_[to] += difference;
      total_squares_[to] += difference * difference;
    }
  }

  // The moments of element `index` of the vectors, 0 if contiguous.
  __device__ Moments result(int index) const {
    return {count_, double(shift_[index]), total_sum_[index], total_squares_[index]};
  }

 private:
  using W = Wide<T>;
  static constexpr int kSummed = kContiguous ? 16 * kLanes : 32;

  __device__ void add(int i, W difference) {
    sum_[i] += difference;
    squares_[i] += difference * difference;
  }

  // Shifts are finite: the sum of a plane with an infinite value is infinite, and so is its mean.
  __device__ static W finite(W value, W otherwise) {
    return value - value == 0 ? value : otherwise;
  }

  __device__ void settle() {
    count_ += pending_;
    pending_ = 0;
    for (int i = 0; i < kLanes; ++i) {
      total_sum_[kContiguous ? 0 : i] += double(sum_[i]);
      total_squares_[kContiguous ? 0 : i] += double(squares_[i]);
      sum_[i] = squares_[i] = 0;
    }
    for (int i = 0; i < kCount; ++i) {
      Moments moments{count_, double(shift_[i]), total_sum_[i], total_squares_[i]};
      const W shift = finite(shift_[i] + W(total_sum_[i]) / W(count_), shift_[i]);
      moments.move_to(double(shift));
      shift_[i] = shift;
      total_sum_[i] = moments.sum;
      total_squares_[i] = moments.squares;
    }
  }

  double count_ = 0, total_sum_[kCount]{}, total_squares_[kCount]{};
  W shift_[kCount]{}, sum_[kLanes]{}, squares_[kLanes]{};
  int pending_ = 0;
};

}  // namespace stylekernels::device
