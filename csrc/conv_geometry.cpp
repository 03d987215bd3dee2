#include "conv_geometry.h"

#include <algorithm>

namespace stylekernels {
namespace {

int64_t floor_half(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

// Builds the axis whose element k, if used(k), reads the input pixel at offset(k).
template <class Used, class Offset>
ConvAxis axis_of(int64_t kernel, const Used& used, const Offset& offset) {
  int64_t first = ConvAxis::kMaxKernel, last = -ConvAxis::kMaxKernel;
  for (int64_t k = 0; k < kernel; ++k) {
    if (!used(k)) continue;
    first = std::min(first, offset(k));
    last = std::max(last, offset(k));
  }
  ConvAxis axis{int(last - first + 1), int(first), {}};
  for (int64_t k = 0; k < kernel; ++k) axis.tap_of[k] = used(k) ? int(offset(k) - first) : -1;
  return axis;
}

}  // namespace

ConvGeometry conv_geometry(int64_t kernel, const ConvMode& mode) {
  const bool reflects = mode.padding_mode == PaddingMode::reflect;
  const auto all = [](int64_t) { return true; };
  ConvGeometry g{};
  g.kernel = kernel, g.stride = mode.stride, g.padding_mode = mode.padding_mode;
  g.parities = g.repeats = 1;
  if (mode.upsample == Upsample::transpose) {
    g.parities = 2;
    for (int64_t parity : {0, 1})
      g.axes[parity] = axis_of(
          kernel, [&](int64_t i) { return (parity + 1 - i) % 2 == 0; },
          [&](int64_t i) { return (parity + 1 - i) / 2; });
  } else if (mode.upsample == Upsample::nearest && (kernel <= 3 || !reflects)) {
    g.parities = 2;
    for (int64_t parity : {0, 1})
      g.axes[parity] =
          axis_of(kernel, all, [&](int64_t i) { return floor_half(parity + i - kernel / 2); });
    if (reflects) g.padding_mode = PaddingMode::replicate;
  } else {
    // A kernel above 3 reflects more than half a pixel, which `replicate` cannot stand for: the
    // large image is convolved.
    if (mode.upsample == Upsample::nearest) g.repeats = 2;
    g.axes[0] = axis_of(kernel, all, [&](int64_t i) { return i - mode.padding; });
  }
  return g;
}

int64_t smallest_side(int64_t kernel, const ConvMode& mode) {
  const bool upsamples = mode.upsample != Upsample::none;
  const int64_t needed = upsamples ? 1 : kernel - 2 * mode.padding;
  const int64_t reflected = mode.padding_mode != PaddingMode::reflect ? 0
                            : mode.upsample == Upsample::transpose    ? 1
                                                                      : mode.padding;
  const int64_t side = std::max<int64_t>({1, needed, reflected + 1});
  return mode.upsample == Upsample::nearest ? (side + 1) / 2 : side;
}

int64_t output_side(int64_t side, const ConvGeometry& geometry, int64_t padding) {
  if (geometry.parities == 2) return side;
  return (geometry.repeats * side + 2 * padding - geometry.kernel) / geometry.stride + 1;
}

}  // namespace stylekernels
