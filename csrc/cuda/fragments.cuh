// Matrix products of a warp: operands from panels in shared memory, sums in registers.
//
// A panel holds lines of elements: the rows of an operand, each with the depth that products are
// summed over, or the other way round. Both orders give the same fragments: 16 rows of some depth.
// A fragment is a left operand, or a right one, whose rows are columns of the product.
//
// Products of float32 are three products of tf32: each operand is the sum of two tf32 numbers, and
// the product of the small parts is dropped. Their error is that of float32.
#pragma once

#include "vectors.cuh"

namespace stylekernels::device {

// Rows of a fragment.
constexpr int kBlockRows = 16;

// Fragments of operands of type O, and their depth.
template <class O>
struct Fragment {
  static constexpr int kDepth = 16;
  uint32_t words[4];
};

template <>
struct Fragment<float> {
  static constexpr int kDepth = 8;
  // A number is high + low. finite: high, or zero if that is infinite or NaN, so that such a number
  // has one product with each other, whose signs cannot differ.
  uint32_t high[4], finite[4], low[4];

  __device__ void set(int i, float value) {
    high[i] = to_tf32(value) & ~0x1FFFu;  // the bits that a tf32 has
    float rounded;
    __builtin_memcpy(&rounded, &high[i], sizeof(rounded));
    const bool is_finite = rounded - rounded == 0;
    finite[i] = is_finite ? high[i] : 0;
    low[i] = to_tf32(is_finite ? value - rounded : 0);
  }
};

template <>
struct Fragment<double> {
  static constexpr int kDepth = 4;
  double values[2];
};

// A panel of elements of type T: kRows rows of kDepth. In a line the depth is dense, or else the
// rows are.
template <class T, bool kDepthDense, int kRows, int kDepth>
struct Panel {
  using Element = T;
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
  __device__ static Fragment<T> fragment(const T* panel, int row, int depth) {
    if constexpr (sizeof(T) == 2) {
      const int lane = thread_index() % kWarp;
      const int line = lane % 8, second = lane / 8 % 2 * 8, last = lane / 16 * 8;
      const Vector16 words =
          kDepthDense ? load_matrices(panel + offset(row + second + line, depth + last))
                      : load_matrices_transposed(panel + offset(row + second, depth + last + line));
      Fragment<T> result;
#pragma unroll
      for (int i = 0; i < 4; ++i) result.words[i] = words.words[i];
      return result;
    } else {
      return fragment<T>(panel, row, depth, [](T value, int, int) { return value; });
    }
  }

  // The same of widened elements, operands of type O: value(element, i, j) of a row, the lane's
  // first or second, and of a depth, its first or second.
  template <class O, class F>
  __device__ static Fragment<O> fragment(const T* panel, int row, int depth, const F& value) {
    const int lane = thread_index() % kWarp;
    const T* at = panel + offset(row + lane / 4, depth + lane % 4);
    Fragment<O> result;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (sizeof(O) == 8) {
        result.values[i] = value(widen(at[offset(i * 8, 0)]), i, 0);
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          result.set(i + 2 * j, value(widen(at[offset(i * 8, j * 4)]), i, j));
      }
    }
    return result;
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

// Words of a right operand for one half of its rows.
struct Half {
  uint32_t words[2];

  __device__ Half(const uint32_t (&all)[4], int half) : words{all[half], all[half + 2]} {}
};

template <class O>
__device__ inline void multiply_add(Block<float>& block, const Fragment<O>& left,
                                    const Fragment<O>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    multiply<O>(block.sums[half], left.words, Half(right.words, half).words);
}

__device__ inline void multiply_add(Block<float>& block, const Fragment<float>& left,
                                    const Fragment<float>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    multiply_tf32(block.sums[half], left.low, Half(right.finite, half).words);
    multiply_tf32(block.sums[half], left.finite, Half(right.low, half).words);
    multiply_tf32(block.sums[half], left.high, Half(right.high, half).words);
  }
}

__device__ inline void multiply_add(Block<double>& block, const Fragment<double>& left,
                                    const Fragment<double>& right) {
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
