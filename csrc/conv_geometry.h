// Geometry of a convolution that may upsample its input: the window of input pixels that an output
// pixel reads. Used on the CPU. stylekernels/triton/conv_geometry.py is the GPU's.
#pragma once

#include <cstdint>

#include "types.h"

namespace stylekernels {

enum class Upsample { none, nearest, transpose };

// Arguments that decide the geometry.
struct ConvMode {
  int64_t stride, padding;
  PaddingMode padding_mode;
  Upsample upsample;
};

// One direction of a convolution, for one parity of the output. Output pixel o of that parity is
// the sum over t < taps of input pixel stride * o + first + t times the kernel elements k with
// tap_of[k] = t. Each parity of an upsampled output has a kernel of its own. A transposed
// convolution uses some of the elements for it (the others have tap_of -1). Nearest upsampling adds
// up the elements that read the same input pixel.
//
//   nearest, kernel 3    parity 0: taps 2, first -1, tap_of {0, 1, 1}
//                        parity 1: taps 2, first  0, tap_of {0, 0, 1}
struct ConvAxis {
  static constexpr int kMaxKernel = 9;
  int taps;
  int first;
  int tap_of[kMaxKernel];
};

struct ConvGeometry {
  int64_t kernel;  // elements a side
  int64_t stride;
  int64_t parities;  // of output rows, and of columns: 2 if upsampled per parity, else 1
  int64_t repeats;   // copies of a pixel of x, in each direction, in the image that is convolved
  PaddingMode padding_mode;
  ConvAxis axes[2];  // by parity of the output
};

// Turns `reflect` into `replicate` for nearest upsampling with small kernels. A kernel of 3 reads
// one row beyond the large image. Reflected, it equals the border row, which replicating gives too.
ConvGeometry conv_geometry(int64_t kernel, const ConvMode& mode);

// Returns the smallest height or width of x that the mode takes.
int64_t smallest_side(int64_t kernel, const ConvMode& mode);

// Returns height or width of one parity of the output, for that of x.
int64_t output_side(int64_t side, const ConvGeometry& geometry, int64_t padding);

}  // namespace stylekernels
