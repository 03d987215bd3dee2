// Methods of convolution. The first of these that takes a layer computes it:
//
//   method       takes                                                     file
//   tiles        bfloat16, with AMX                                        conv_tiles.h
//   winograd     2 or 3 taps, stride 1, Cin and Cout of a panel or more    winograd.h
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
  constexpr int64_t kPanelChannels = kPanel<Vec<T>>;
  const bool transforms = sizeof(Wide<T>) == 4 && a.stride == 1;
  const bool whole = a.parities == 1;  // no parities
  const int taps = a.axes[0].taps;
  if (transforms && (taps == 2 || taps == 3) && (whole || a.axes[1].taps == taps) &&
      a.repeats == 1 && a.cin >= kPanelChannels && a.cout >= kPanelChannels)
    return Method::winograd;
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
