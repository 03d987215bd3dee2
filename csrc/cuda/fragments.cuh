// Matrix products of a warp: operands from panels in shared memory, sums in registers.
//
// A panel holds lines of elements: rows of an operand, along the depth that products are summed
// over, or the other way round. Both orders give the same fragments: 16 rows of some depth. The
// rows of a right operand are columns of the product.
//
// Products of float32 are three products of tf32: each operand is the sum of two tf32 numbers, and
// the product of the small parts is dropped. Their error is that of float32.
#pragma once

#include "vectors.cuh"

namespace stylekernels::device {

// Rows of a fragment.
constexpr int kBlockRows = 16;

// Depth of the fragments of operands of type O.
template <class O>
constexpr int kFragmentDepth = sizeof(O) == 2   ? 16
                               : sizeof(O) == 4 ? 8
                                                : 4;

// Fragments of left and right operands of 16 bits.
template <class O>
struct Left {
  uint32_t words[4];
};
template <class O>
struct Right {
  uint32_t words[2][2];  // of both halves of the rows
};

// A number is high + low. finite: high, or zero where the number is infinite; with high in all
// three products there would be infinite ones of both signs, whose sum is NaN. low is NaN where the
// number is: without its lowest bits, high may be infinite.
struct Tf32 {
  uint32_t high, finite, low;

  __device__ explicit Tf32(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const uint32_t size = bits & 0x7FFFFFFF;
    // Rounds to nearest; truncates numbers that would become infinite.
    high = (bits + (size < 0x7F7FF000 ? 0x1000 : 0)) & ~0x1FFFu;
    const bool is_infinite = size == 0x7F800000;
    finite = is_infinite ? 0 : high;
    float rounded;
    __builtin_memcpy(&rounded, &high, sizeof(rounded));
    low = to_tf32(is_infinite ? 0 : value - rounded);
  }
};

template <>
struct Left<float> {
  uint32_t high[4], finite[4], low[4];

  __device__ void set(int i, int j, float value) {
    const Tf32 parts(value);
    high[i + 2 * j] = parts.high;
    finite[i + 2 * j] = parts.finite;
    low[i + 2 * j] = parts.low;
  }
};
template <>
struct Right<float> {
  uint32_t high[2][2], finite[2][2], low[2][2];

  __device__ void set(int i, int j, float value) {
    const Tf32 parts(value);
    high[i][j] = parts.high;
    finite[i][j] = parts.finite;
    low[i][j] = parts.low;
  }
};

template <>
struct Left<double> {
  double values[2];

  __device__ void set(int i, int, double value) { values[i] = value; }
};
template <>
struct Right<double> : Left<double> {};

// A panel of elements of type T: kRows rows of kDepth. Lines are rows if kDepthDense, else depths.
template <class T, bool kDepthDense, int kRows, int kDepth>
struct Panel {
  static constexpr int kLines = kDepthDense ? kRows : kDepth;
  static constexpr int kLength = kDepthDense ? kDepth : kRows;
  // Bytes behind each line. They let the lanes of a warp read from different banks.
  static constexpr int kPadding = sizeof(T) == 2 || (sizeof(T) == 4 && kDepthDense) ? 16 : 32;
  static constexpr int kStride = kLength + kPadding / int(sizeof(T));
  static constexpr int kBytes = kLines * kStride * int(sizeof(T));

  __device__ static int offset(int row, int depth) {
    return kDepthDense ? row * kStride + depth : depth * kStride + row;
  }

  // Reads the fragment that begins at a row and depth. All lanes of the warp take part.
  __device__ static Left<T> left(const T* panel, int row, int depth) {
    if constexpr (sizeof(T) == 2) {
      const int lane = thread_index() % kWarp;
      const Vector16 words = matrices(panel, row + lane / 8 % 2 * 8, depth + lane / 16 * 8);
      return {{words.words[0], words.words[1], words.words[2], words.words[3]}};
    } else {
      return widened<Left<T>>(panel, row, depth, [](T value, int, int) { return value; });
    }
  }

  __device__ static Right<T> right(const T* panel, int row, int depth) {
    if constexpr (sizeof(T) == 2) {
      const int lane = thread_index() % kWarp;
      const Vector16 words = matrices(panel, row + lane / 16 * 8, depth + lane / 8 % 2 * 8);
      return {{{words.words[0], words.words[1]}, {words.words[2], words.words[3]}}};
    } else {
      return widened<Right<T>>(panel, row, depth, [](T value, int, int) { return value; });
    }
  }

  // Reads a fragment F of wide operands. value(element, i, j) turns an element into one, that of
  // row lane / 4 + 8 i and of depth lane % 4 + 4 j.
  template <class F, class V>
  __device__ static F widened(const T* panel, int row, int depth, const V& value) {
    const int lane = thread_index() % kWarp;
    const T* at = panel + offset(row + lane / 4, depth + lane % 4);
    F result;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < (sizeof(Wide<T>) == 8 ? 1 : 2); ++j)
        result.set(i, j, value(widen(at[offset(i * 8, j * 4)]), i, j));
    return result;
  }

 private:
  // Loads four matrices, of which this lane gives the address of a row of the one at (row, depth).
  __device__ static Vector16 matrices(const T* panel, int row, int depth) {
    const int line = thread_index() % 8;
    return kDepthDense ? load_matrices(panel + offset(row + line, depth))
                       : load_matrices_transposed(panel + offset(row, depth + line));
  }
};

// Sums of the product of two fragments, 16 x 16. A lane holds for each half of the columns four
// sums: those of rows lane / 4 and lane / 4 + 8, in columns 2 (lane % 4) and the next.
template <class W>
struct Block {
  W sums[2][4];

  __device__ void clear() {
#pragma unroll
    for (auto& half : sums)
#pragma unroll
      for (W& sum : half) sum = 0;
  }

  __device__ void add(const Block& other, W factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[half][i] += other.sums[half][i] * factor;
  }

  // Calls f(row, column, sum, next) for rows 0 to 7, or 8 to 15 if `lower`: the sums of a row's
  // column and of the column behind it.
  template <class F>
  __device__ void for_each_pair(bool lower, const F& f) const {
    const int lane = thread_index() % kWarp, i = lower ? 2 : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      f(lane / 4 + (lower ? 8 : 0), half * 8 + lane % 4 * 2, sums[half][i], sums[half][i + 1]);
  }
};

template <class O>
__device__ inline void multiply_add(Block<float>& block, const Left<O>& left,
                                    const Right<O>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) multiply<O>(block.sums[half], left.words, right.words[half]);
}

__device__ inline void multiply_add(Block<float>& block, const Left<float>& left,
                                    const Right<float>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    multiply_tf32(block.sums[half], left.low, right.finite[half]);
    multiply_tf32(block.sums[half], left.finite, right.low[half]);
    multiply_tf32(block.sums[half], left.high, right.high[half]);
  }
}

__device__ inline void multiply_add(Block<double>& block, const Left<double>& left,
                                    const Right<double>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      double sums[2] = {block.sums[half][2 * i], block.sums[half][2 * i + 1]};
      multiply_float64(sums, left.values[i], right.values[half]);
      block.sums[half][2 * i] = sums[0];
      block.sums[half][2 * i + 1] = sums[1];
    }
}

}  // namespace stylekernels::device
