// The geometry of a convolution that may upsample its input: which input pixels an output pixel
// meets. For every device; its twin for Triton is stylekernels/triton/conv_geometry.py.
#pragma once

#include <cstdint>

#include "types.h"

namespace stylekernels {

enum class Upsample { none, nearest, transpose };

// How the output is found from the input.
struct ConvMode {
  int64_t stride, padding;
  PaddingMode padding_mode;
  Upsample upsample;
};

// One direction of a convolution, for one parity of the output: output pixel o (of every `step`-th)
// is the sum over t < taps of input pixel stride * o + first + t times the kernel's elements k with
// tap_of[k] = t. Upsampling gives every parity a kernel of its own: a transposed convolution uses
// some elements (the others have tap_of -1), nearest adds those up that meet the same input pixel.
struct ConvAxis {
  static constexpr int kMaxKernel = 9;
  int taps;
  int first;
  int tap_of[kMaxKernel];
};

struct ConvGeometry {
  int64_t kernel;  // its side
  int64_t stride;
  int64_t step;     // 2 where the output has parities, else 1
  int64_t repeats;  // how often a pixel of x follows itself in the image that is convolved
  PaddingMode padding_mode;
  ConvAxis axes[2];  // by parity
};

// Nearest upsampling with a padding mode of `reflect` may become `replicate`: half a pixel beyond
// the border of the large image is the border of the small one.
ConvGeometry conv_geometry(int64_t kernel, const ConvMode& mode);

// The smallest height or width of x that the mode takes.
int64_t smallest_side(int64_t kernel, const ConvMode& mode);

// Height or width of one parity of the output, for that of x.
int64_t output_side(int64_t side, const ConvGeometry& geometry, int64_t padding);

}  // namespace stylekernels
