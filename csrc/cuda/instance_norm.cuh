// Kernels of instance and group norm: arguments, and what forward and backward share.
#pragma once

#include "activations.cuh"
#include "moments.cuh"
#include "strips.cuh"
#include "team.cuh"
#include "vectors.cuh"

namespace stylekernels::device {

// Blocks of a multiprocessor, which limit the registers of a thread. Sums of float64 need more.
template <class T>
constexpr int kNormBlocks = sizeof(T) == 8 ? 1 : 2;

// A parameter (C,) or (N, C), or none: `missing` takes its place.
struct Parameter {
  const void* data;
  DType dtype;
  int64_t stride;  // from image to image

  template <class W>
  __device__ W at(int image, int channel, W missing) const {
    if (data == nullptr) return missing;
    const int64_t index = image * stride + channel;
    switch (dtype) {
      case DType::float32:
        return W(static_cast<const float*>(data)[index]);
      case DType::bfloat16:
        return W(widen(static_cast<const BFloat16*>(data)[index]));
      case DType::float16:
        return W(widen(static_cast<const Float16*>(data)[index]));
      case DType::float64:
        break;
    }
    return W(static_cast<const double*>(data)[index]);
  }
};

// Layout of a block's shared memory: offsets in bytes. The kept vectors are at its beginning.
struct NormMemory {
  int kept;   // vectors of a tensor that the block keeps
  int table;  // partial results of warps and spans
  int row;    // entries in a row of the table, one for each row of warps
  int rows;
  int own;      // what the block publishes for its team
  int results;  // statistics of the strip
  int bytes;    // of all; of each part of a block that takes a strip
};

struct NormArguments {
  Strips strips;
  TeamPlan team;
  NormMemory memory;
  const void* x;
  const void* residual;
  void* y;  // forward; none: statistics only
  Parameter weight, bias, mean_in, var_in;
  Activation activation;
  double negative_slope;
  bool residual_first;
  double eps;
  void* mean;  // (N, C), and behind it its rounding error if `exact`
  bool exact;
  void* rstd;  // (N, C), none: not wanted
  void* var;   // (N, C), none: not wanted
  // Backward.
  const void* grad;
  void* grad_x;
  void* grad_residual;  // none: not wanted
  void* sum_grad;
  void* sum_grad_normalized;
  bool own_stats;
};

// Mean, its rounding error and 1 / deviation of a group, which normalize x. Differences are halved:
// those of the largest values do not exceed float32 then, and x / 2 - mean / 2 is one instruction.
template <class W>
class GroupStatistics {
 public:
  GroupStatistics() = default;
  __device__ GroupStatistics(W mean, W error, double rstd)
      : half_mean_(mean / 2), half_error_(error / 2), twice_rstd_(W(2 * rstd)) {}

  __device__ W rstd() const { return twice_rstd_ / 2; }

  template <class T>
  __device__ W normalized(T x) const {
    return ((widen(x) / 2 - half_mean_) - half_error_) * twice_rstd_;
  }

 private:
  W half_mean_, half_error_, twice_rstd_;
};

// Statistics and parameters of a channel: they turn x into the value before the activation.
template <class W>
struct Affine {
  GroupStatistics<W> statistics;
  W weight, bias;
};

// 1 / sqrt(var + eps), or 0 where that is infinite: constant planes without eps become 0.
__device__ inline double inverse_deviation(double var, double eps) {
  const double square = var + eps;
  return square == 0 ? 0 : 1 / sqrt(square);
}

// Tells whether a round has strips. Small ones are taken in one round.
template <NormLayout kLayout>
__device__ inline bool has_strips(const NormArguments& a, int round) {
  if (kLayout == NormLayout::small) return round == 0;
  return int64_t(round) * a.team.teams < a.strips.count;
}

// Shared memory of the thread's part of the block.
template <NormLayout kLayout>
__device__ inline unsigned char* own_memory(const NormArguments& a) {
  if (kLayout != NormLayout::small) return shared_memory();
  return shared_memory() + (thread_index() >> a.team.shift) * a.memory.bytes;
}

template <class T, int kLanes, NormLayout kLayout>
__device__ inline Vector<T, kLanes>* kept_vectors(int tensor, const NormArguments& a) {
  return reinterpret_cast<Vector<T, kLanes>*>(own_memory<kLayout>(a)) + tensor * a.memory.kept;
}

}  // namespace stylekernels::device
