// Sizes of a deferred-norm convolution, by method: register blocks, tiles, rows of the ring,
// scratch and packed weights.
#pragma once

#include "method.h"

namespace stylekernels::CPU_CAPABILITY {

// A planar register block is kFewOutputs outputs x kPlanarVectors vectors of pixels. With the
// weights it fits in 16 registers.
constexpr int kPlanarVectors = 3;

// Winograd tiles: 4 x 4 outputs. A batch is so many that their points, for 128 input channels
// without a stride, stay in the L2 cache. Strided layers have up to three times as many, but
// smaller batches were not faster.
constexpr int64_t kWinogradOutputs = 4;
constexpr int64_t kWinogradTerms = 64;  // products summed in registers before memory is added to
constexpr int64_t kWinogradBatch = VECTOR_BYTES == 64 ? 24 : 18;
static_assert(kWinogradBatch % kBlockRows == 0, "batches are whole register blocks");

// Phases of the input of a layer of stride 2: rows and columns of one parity each, counted from the
// first that is read. In this order the phases that are not zero at a point are consecutive:
//
//    phase          0          1           2          3
//    rows, columns  even, odd  even, even  odd, even  odd, odd
//
// With a kernel of 3, odd rows are zero at the last row of points, odd columns at the last column.
struct InputPhases {
  struct Range {
    int64_t begin, end;
  };
  int64_t stride;
  bool odd_kernel;

  int64_t count() const { return stride * stride; }
  int64_t row(int64_t phase) const { return phase / 2; }
  int64_t column(int64_t phase) const { return stride == 1 ? 0 : phase == 0 || phase == 3; }

  Range at_point(bool last_row, bool last_column) const {
    if (stride == 1) return {0, 1};
    if (!odd_kernel) return {0, 4};
    return {last_column ? 1 : 0, last_row ? 2 : last_column ? 3 : 4};
  }

  // Returns how many phases all points of a tile have together.
  int64_t total(int64_t side) const {
    const auto size = [&](bool last_row, bool last_column) {
      const Range range = at_point(last_row, last_column);
      return range.end - range.begin;
    };
    const int64_t inner = side - 1;
    return inner * inner * size(false, false) + inner * size(true, false) +
           inner * size(false, true) + size(true, true);
  }
};

// Nested Winograd transforms: see nested_winograd.h. A tile is 3 x 3 outputs, from 5 x 5 inputs and
// up to 3 x 3 kernel blocks. A batch is so many tiles (few inputs), or vectors of tiles (few
// outputs), that their points stay in the L2 cache.
constexpr int64_t kNestedOutputs = 3, kNestedSide = 5, kNestedPoints = 25, kMostKernelBlocks = 3;
constexpr int64_t kNestedBatch = 4 * kBlockRows;
constexpr int64_t kNestedVectors = 8;

// Window of output pixel 0, all parities together: it reads input pixels from low to high.
struct Window {
  int64_t low, high;

  explicit Window(const NormConv2d& a) : low(a.axes[0].first), high(low + a.axes[0].taps - 1) {
    if (a.parities == 1) return;
    low = smaller<int64_t>(low, a.axes[1].first);
    const int64_t end = a.axes[1].first + a.axes[1].taps - 1;
    high = high < end ? end : high;
  }
};

template <class T>
struct Geometry {
  static constexpr int64_t kPanelChannels = kPanel<Vec<T>>;
  int64_t low, high;  // see Window
  int64_t span;       // rows in the ring: those that an output row, or a row of tiles, reads
  int64_t width;      // columns of a row in the ring
  // Rows in the ring are [channel][column] for planar, else [column][channel]. For pairs they are
  // bfloat16. With few_outputs vectors hold tiles.
  Method method;
  int64_t side;           // inputs a side of a Winograd tile, of four output rows
  InputPhases phases;     // with Winograd's method
  int64_t tile_pitch;     // elements from one tile to the next at a point
  int64_t point_pitch;    // elements from one point to the next
  int64_t kernel_blocks;  // a side of the kernel; 0: not nested_winograd.h
  int64_t row_advance;    // input rows from one output row, or row of tiles, to the next
  int64_t pitch;          // elements from one column, or channel, to the next
  int64_t row_elements;
  int64_t panels;  // panels of the weights, per parity

  explicit Geometry(const NormConv2d& a) {
    const Window window(a);
    low = window.low, high = window.high;
    span = high - low + 1;
    const int taps = a.axes[0].taps;
    method = method_of<T>(a);
    const bool winograd = is(Method::winograd), planar = is(Method::planar);
    side = winograd ? ceil_divide(int64_t(taps), a.stride) + kWinogradOutputs - 1 : 0;
    phases = {a.stride, a.kernel % 2 == 1};
    tile_pitch = phases.count() * a.cin;
    // A cache line more than the tiles take: stores a multiple of the cache's size apart would
    // compete for one set of it.
    point_pitch = kWinogradBatch * tile_pitch + 16;
    row_advance = winograd ? a.stride * kWinogradOutputs : a.stride;
    const bool nested = is(Method::few_outputs) || is(Method::few_inputs);
    kernel_blocks = nested ? ceil_divide(a.kernel, kNestedOutputs) : 0;
    if (nested) span = kNestedSide;
    width =
        winograd
            ? a.stride * (ceil_divide(a.columns, kWinogradOutputs) * kWinogradOutputs - 1) + span
        : nested ? (tiles(a) + kernel_blocks - 1) * kNestedOutputs + 2
                 : a.stride * (a.columns - 1) + span;
    if (winograd) span += a.stride * (kWinogradOutputs - 1);
    // A reflected border reads columns that a cropped output may not read.
    const int64_t reflected = smaller<int64_t>(a.w, 1 - low) - low;
    if (width < reflected) width = reflected;
    // Vectors are loaded whole, up to kPlanarVectors of them from the last column of a plane on.
    pitch = planar              ? width + kPlanarVectors * kLanes<Vec<T>>
            : is(Method::pairs) ? (a.cin + 1) / 2 * 2
                                : a.cin;
    row_elements = ((planar ? a.cin : width) * pitch + 15) / 16 * 16;
    panels = planar || is(Method::few_outputs) ? 1 : ceil_divide(a.cout, kPanelChannels);
  }

  bool is(Method other) const { return method == other; }

  // Scratch of a worker: ring, one more row if pixels repeat, and an output row (transforms: see
  // their files).
  int64_t worker_elements(const NormConv2d& a) const {
    if (is(Method::winograd))
      return span * row_elements + side * side * point_pitch +
             kWinogradBatch * (side * side + kWinogradOutputs * kWinogradOutputs) * kPanelChannels;
    if (kernel_blocks > 0) {
      const int64_t rows = kernel_blocks * kNestedPoints * nested_pitch(a);
      const int64_t own = is(Method::few_outputs)
                              ? kNestedPoints * nested_point_pitch(a) + a.cout * rows +
                                    (kNestedOutputs + 1) * kNestedOutputs * a.cout * nested_pitch(a)
                              : kNestedSide * row_elements + rows +
                                    (kNestedPoints + kNestedOutputs * kNestedOutputs) *
                                        kNestedBatch * kPanelChannels;
      return (span + 1) * row_elements + own;
    }
    return (span + 1) * row_elements + a.columns * kPanelChannels;
  }

  // Tells whether tasks write the normalised input. Here another pass does.
  bool writes_input(const NormConv2d&) const { return false; }

  int64_t tiles(const NormConv2d& a) const { return ceil_divide(a.columns, kNestedOutputs); }

  // Returns the elements from one point of a row of tiles, or of their sums for one output, to the
  // next.
  int64_t nested_pitch(const NormConv2d& a) const {
    const int64_t multiple = is(Method::few_outputs) ? kLanes<Vec<T>> : kBlockRows;
    const int64_t count = ceil_divide(tiles(a), multiple) * multiple;
    if (is(Method::few_outputs)) return count;
    return ((count + kernel_blocks - 1) * a.cin + kLanes<Vec<T>> + 15) / 16 * 16;
  }
  // Returns the elements from one point of a batch to the next, with few outputs: see
  // point_pitch.
  int64_t nested_point_pitch(const NormConv2d& a) const {
    constexpr int64_t kCount = kLanes<Vec<T>>;
    return ceil_divide(a.cin, kCount) * kCount * (kNestedVectors + 1) * kCount + 16;
  }

  // Returns the output channels of a panel of the weights.
  int64_t panel_channels(const NormConv2d& a) const {
    return is(Method::planar) || is(Method::few_outputs) ? a.cout : kPanelChannels;
  }

  int64_t panel_elements(const NormConv2d& a, int64_t row_parity, int64_t column_parity) const {
    if (is(Method::winograd)) return phases.total(side) * a.cin * kPanelChannels;
    if (kernel_blocks > 0)
      return kNestedPoints * kernel_blocks * kernel_blocks * a.cin * panel_channels(a);
    const int64_t depth =
        is(Method::pairs) ? pitch / 2 : a.cin;  // a pair takes the room of one float
    return int64_t(a.axes[row_parity].taps) * a.axes[column_parity].taps * depth *
           panel_channels(a);
  }
  // Returns the offset of a panel of a parity.
  int64_t panel_begin(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                      int64_t panel) const {
    int64_t begin = 0;
    for (int64_t parity = 0; parity < row_parity * a.parities + column_parity; ++parity)
      begin += panels * panel_elements(a, parity / a.parities, parity % a.parities);
    return begin + panel * panel_elements(a, row_parity, column_parity);
  }
  int64_t packed_elements(const NormConv2d& a) const {
    return panel_begin(a, a.parities - 1, a.parities - 1, panels);
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
