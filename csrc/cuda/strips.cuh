// Division of a batch of images: strips, their slices, and the spans of a warp.
//
//   strip  what shares no statistics with others. Contiguous: the planes of one group.
//          channels_last: some columns of channels of one image, whole groups
//   team   the blocks that share a strip; one of them may have several teams if strips are small
//   slice  what a block takes of a strip: consecutive elements, in channels_last rows of pixels
//   span   what a warp takes of a slice at a time: each of its lanes takes vectors at a fixed
//          distance, all of one plane (contiguous) or of one column of vectors (channels_last)
//   slot   the number of a vector in a slice, by which the block keeps it in shared memory
#pragma once

#include "device.cuh"

namespace stylekernels::device {

// Threads of a block.
constexpr int kNormThreads = 256, kNormWarps = kNormThreads / kWarp;

// Layout, and whether strips are so small that a block takes several of them.
enum class NormLayout { contiguous, small, channels_last };

struct Strips {
  int64_t elements;  // of the tensor
  int64_t pixels;    // of a plane
  int n, c, group;
  int count;      // strips
  int team;       // blocks of a strip
  int64_t slice;  // of a block: elements if contiguous, else rows of channels
  int64_t unit;   // contiguous: elements of a span at most, whole rounds of a warp's vectors
  int row;        // channels_last: vectors in a row of all channels
  int width;      // channels_last: vectors of a strip in a row
  int columns;    // channels_last: warps side by side in a row; divides those of a block
  // Lanes of a warp, a power of two: those that share a small strip; in channels_last those side by
  // side in a row.
  int lanes;
};

// A lane's part of a span.
struct Span {
  int64_t vector, step;  // its vectors in the tensor: first, distance
  int count;             // of them
  bool whole;            // none reaches over an end of the span
  int slot, slot_step;   // those of a block, counted from the beginning of its slice
  int64_t lo, hi;        // contiguous: elements of the span; vectors may reach over both ends
  int plane;             // of its first element: image * C + channel
  int local;  // contiguous: number of the span in the block; channels_last: channel in the strip
};

template <int kLanes, NormLayout kLayout>
class Walk {
 public:
  static constexpr bool kSmall = kLayout == NormLayout::small;

  __device__ Walk(const Strips& strips, int strip, int rank)
      : strips_(strips), warp_(kSmall ? 0 : thread_index() / kWarp), lane_(thread_index() % kWarp) {
    if constexpr (kLayout != NormLayout::channels_last) {
      const int64_t length = strips.group * strips.pixels, start = strip * length;
      begin_ = start + rank * strips.slice;
      end_ = min64(start + length, begin_ + strips.slice);
      pieces_ = (strips.pixels + strips.unit - 1) / strips.unit;
      spans_ = 0;
      if (begin_ >= end_) return;
      first_ = unit_of(begin_);
      spans_ = int(unit_of(end_ - 1) - first_ + 1);
    } else {
      const int across = (strips.row + strips.width - 1) / strips.width;
      image_ = strip / across;
      column_ = strip % across * strips.width;
      begin_ = min64(rank * strips.slice, strips.pixels);
      end_ = min64(begin_ + strips.slice, strips.pixels);
      width_ = column_ + strips.width <= strips.row ? strips.width : strips.row - column_;
      spans_ = (width_ + strips.lanes - 1) / strips.lanes;
    }
  }

  // Spans of the block, and which of them are this warp's. If contiguous a span belongs to one
  // warp, in channels_last to as many as there are rows of warps.
  __device__ int spans() const { return spans_; }
  __device__ int first_span() const {
    return kLayout != NormLayout::channels_last ? warp_ : warp_ % strips_.columns;
  }
  __device__ int span_step() const {
    return kLayout != NormLayout::channels_last ? warps() : strips_.columns;
  }

  // The thread's warp and lane among those that share the strip in this block, and their numbers.
  __device__ int warp() const { return warp_; }
  __device__ int warps() const { return kSmall ? 1 : kNormWarps; }
  __device__ int lane() const {
    // Kept in a register only where that avoids spills.
    return kLayout == NormLayout::contiguous ? lane_ : thread_index() & (lanes() - 1);
  }
  __device__ int lanes() const { return kSmall ? strips_.lanes : kWarp; }
  __device__ int thread() const { return warp() * lanes() + lane(); }
  __device__ int threads() const { return warps() * lanes(); }

  // The first of these lanes, among all of the warp.
  __device__ int first_lane() const { return thread_index() % kWarp - lane(); }

  // channels_last: the warp's row among the warps of the block.
  __device__ int warp_row() const { return warp_ / strips_.columns; }

  __device__ Span span(int index) const {
    Span span;
    if constexpr (kLayout != NormLayout::channels_last) {
      const int64_t unit = first_ + index, plane = unit / pieces_, piece = unit % pieces_;
      const int64_t start = plane * strips_.pixels;
      span.lo = max64(begin_, start + piece * strips_.unit);
      span.hi = min64(end_, start + min64(strips_.pixels, (piece + 1) * strips_.unit));
      span.vector = span.lo / kLanes + lane();
      span.step = span.slot_step = lanes();
      const int left = int((span.hi + kLanes - 1) / kLanes - span.vector);
      span.count = left > 0 ? (left + lanes() - 1) / lanes() : 0;
      span.whole = (span.lo | span.hi) % kLanes == 0;
      span.slot = int(span.vector - begin_ / kLanes);
      span.plane = int(plane);
      span.local = index;
    } else {
      const int rows = kWarp / strips_.lanes,
                column = index * strips_.lanes + lane() % strips_.lanes;
      const int all_rows = warps() / strips_.columns * rows;
      const int64_t row = begin_ + warp_row() * rows + lane() / strips_.lanes;
      const int64_t of_image = image_ * strips_.pixels;
      span.vector = (of_image + row) * strips_.row + column_ + column;
      span.step = int64_t(all_rows) * strips_.row;
      const int left = int(end_ - row);
      span.count = column < width_ && left > 0 ? (left + all_rows - 1) / all_rows : 0;
      span.whole = true;
      span.slot = int(row - begin_) * strips_.width + column;
      span.slot_step = all_rows * strips_.width;
      span.lo = 0;
      span.hi = strips_.elements;
      span.local = column * kLanes;
      span.plane = image_ * strips_.c + column_ * kLanes + span.local;
    }
    return span;
  }

  // Planes that the slice touches (contiguous) or channels of the strip (channels_last).
  __device__ int planes() const {
    if constexpr (kLayout == NormLayout::channels_last) return width_ * kLanes;
    return spans_ == 0 ? 0 : int((end_ - 1) / strips_.pixels - first_plane() + 1);
  }

  // The first of these: image * C + channel.
  __device__ int first_plane() const {
    if constexpr (kLayout == NormLayout::channels_last)
      return image_ * strips_.c + column_ * kLanes;
    return int(begin_ / strips_.pixels);
  }

  // Groups of the strip.
  __device__ int groups() const {
    return kLayout != NormLayout::channels_last ? 1 : width_ * kLanes / strips_.group;
  }

  // Contiguous: spans of plane number `index` of the block, [first, last).
  __device__ int first_span_of(int index) const {
    return index == 0 ? 0 : int((first_plane() + index) * pieces_ - first_);
  }
  __device__ int last_span_of(int index) const {
    const int64_t next = (first_plane() + index + 1) * pieces_ - first_;
    return next < spans_ ? int(next) : spans_;
  }

  // Contiguous: whether the slice has the first element of plane number `index` of the block.
  __device__ bool begins(int index) const {
    return (first_plane() + index) * strips_.pixels >= begin_;
  }

 private:
  __device__ static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
  __device__ static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

  __device__ int64_t unit_of(int64_t element) const {
    const int64_t plane = element / strips_.pixels;
    return plane * pieces_ + (element - plane * strips_.pixels) / strips_.unit;
  }

  const Strips& strips_;
  int warp_, lane_, spans_;
  int image_ = 0, column_ = 0, width_ = 0;
  int64_t begin_, end_, pieces_ = 0, first_ = 0;
};

}  // namespace stylekernels::device
