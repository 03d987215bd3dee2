// Methods of convolution. The first of these that takes a layer computes it:
//
//   method       takes                                                     file
//   tiles        bfloat16, with AMX                                        conv_tiles.h
//   winograd     2 or 3 taps, or stride 2 and kernels of 3 or 4;           winograd.h
//                Cin of a panel or more, Cout of a vector or more
//   few_outputs  kernels of 5 to 9, stride 1, Cout <= 3                    nested_few_outputs.h
//   few_inputs   kernels of 5 to 9, stride 1, Cin <= 8                     nested_few_inputs.h
//   planar       stride 1, Cout <= 3                                       norm_conv2d.cpp
//   pairs        bfloat16, with AVX512-BF16                                norm_conv2d.cpp
//   direct       all                                                       norm_conv2d.cpp
//
// Taps are those of one parity of the output: see ConvAxis. The three transforms (winograd, few_*)
// take no float64: they would round its results too much. few_* and planar take no output with
// parities. pairs takes no kernel whose elements are added up: their sums would be rounded.
#pragma once

#include "../../norm_conv2d.h"
#include "../vector/matrix.h"
#include "../vector/tiles.h"

namespace stylekernels::CPU_CAPABILITY {

enum class Method { tiles, winograd, few_outputs, few_inputs, planar, pairs, direct };

constexpr int64_t kFewInputs = 8;   // with more, the ring buffer of transformed rows exceeds L2
constexpr int64_t kFewOutputs = 3;  // vectors hold pixels, or tiles of them

// Largest Cin * Cout, and Cin or Cout, of a strided layer by Winograd's method. Transformed weights
// are six to nine times as large as the kernel, and layers of more channels have small images.
constexpr int64_t kStridedWeights = 128 * 256, kStridedChannels = 256;

// Tells whether kernel elements that read the same input pixel are added up.
inline bool adds_up(const ConvAxis& axis, int64_t kernel) {
  int64_t used = 0;
  for (int64_t k = 0; k < kernel; ++k) used += axis.tap_of[k] >= 0;
  return used > axis.taps;
}

// Chooses the method for element type T: it depends on the layer, never on the image.
template <class T>
inline Method method_of(const NormConv2d& a) {
  constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>;
  if constexpr (HAS_TILES && kBFloat16) return Method::tiles;
  const bool transforms = sizeof(Wide<T>) == 4 && a.stride == 1;
  const bool whole = a.parities == 1;  // no parities
  const int taps = a.axes[0].taps;
  // With fewer input channels a direct sum rounds much less than the transforms do.
  const bool wide = sizeof(Wide<T>) == 4 && a.cin >= kPanel<Vec<T>> && a.cout >= kLanes<Vec<T>>;
  if (wide && a.stride == 1 && (taps == 2 || taps == 3) && (whole || a.axes[1].taps == taps) &&
      a.repeats == 1)
    return Method::winograd;
  // With a kernel of 3 pairs are faster.
  const bool gains = a.kernel == 4 || (a.kernel == 3 && !(HAS_PAIRS && kBFloat16));
  const bool small =
      a.cin * a.cout <= kStridedWeights && a.cin <= kStridedChannels && a.cout <= kStridedChannels;
  if (wide && a.stride == 2 && gains && small) return Method::winograd;
  const bool large = transforms && whole && a.kernel >= kLargeKernel;
  if (large && a.cout <= kFewOutputs) return Method::few_outputs;
  if (large && a.cin <= kFewInputs) return Method::few_inputs;
  if (whole && a.stride == 1 && a.cout <= kFewOutputs) return Method::planar;
  if (HAS_PAIRS && kBFloat16 && !adds_up(a.axes[0], a.kernel) &&
      (whole || !adds_up(a.axes[1], a.kernel)))
    return Method::pairs;
  return Method::direct;
}

}  // namespace stylekernels::CPU_CAPABILITY
