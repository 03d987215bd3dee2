// Loops over planes, and sums over their pixels: mean and variance, or the two sums of a backward
// pass.
//
// A float32 sum over a whole plane is wrong: a variance was off by 3e-4 at mean/deviation 3 over
// 131,000 values. So at most kSummed values per lane are summed in float32, about a shift that is
// taken from these values, and such partial sums are merged in double precision (Chan, Golub and
// LeVeque, "Algorithms for computing the sample variance", 1983).
#pragma once

#include "../../instance_norm.h"
#include "activations.h"
#include "pairs.h"

namespace stylekernels::CPU_CAPABILITY {

constexpr int kSummed = 256;  // values per lane summed in float32
constexpr int kSummedFirst =
    16;  // the first sums take so many of them: a tenth of the rounding error
constexpr int kShiftValues = 8;  // values whose mean is the shift, spread over those summed
constexpr int kPairsAtOnce = 2;  // vector pairs whose accumulators are in registers

template <class T>
inline const T* at(const void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<const T*>(p) + offset;
}

template <class T>
inline T* at(void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<T*>(p) + offset;
}

// A unit shares no sums with others: it is a plane (contiguous) or an image (channels_last). Units
// are divided into chunks.
inline int64_t units_of(const PlaneGrid& g) {
  return g.layout == Layout::contiguous ? g.n * g.c : g.n;
}
inline int64_t units_of_image(const PlaneGrid& g) {
  return g.layout == Layout::contiguous ? g.c : 1;
}
inline int64_t channels_of_unit(const PlaneGrid& g) {
  return g.layout == Layout::contiguous ? 1 : g.c;
}

inline int64_t chunk_begin(const PlaneGrid& g, int64_t chunk) { return chunk * g.chunk_pixels; }
inline int64_t chunk_count(const PlaneGrid& g, int64_t chunk) {
  return smaller(g.chunk_pixels, g.pixels - chunk_begin(g, chunk));
}

// Returns the distance in elements from a plane to that of the next group, which is prefetched
// while this one is written: its statistics need nothing but its pixels and would wait for them (a
// sixth of the forward pass of planes of 64 KiB). 0 if both would not stay in the cache.
inline int64_t ahead_of(const PlaneGrid& g, int64_t plane) {
  constexpr int64_t kElements = 32768;
  const int64_t distance = g.group * g.pixels;
  return distance <= kElements && plane + g.group < g.n * g.c ? distance : 0;
}

// Returns 1 / deviation, or 0 for a deviation of 0: a constant plane without eps is normalised to
// 0.
inline double inverse_deviation(double var, double eps) {
  return var + eps == 0 ? 0 : 1 / __builtin_sqrt(var + eps);
}

// Rounds a coefficient of a kernel to W. NaN becomes the default one: see round_to_bfloat16.
template <class W>
inline W coefficient(double value) {
  return value == value ? W(value) : W(__builtin_nan(""));
}

// Tells whether store_pair may use streaming stores from p on.
template <class V>
inline bool aligned_for_streaming(const void* p) {
  return uintptr_t(p) % sizeof(V) == 0;
}

inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// -- channels_last rows ----------------------------------------------------------------------
//
// A row of these loops is one pixel with its channels. With few channels it is a wide pixel: as
// many pixels as make a whole number of vector pairs, and the pixels left over are taken one by
// one. The last vector pair of a row ends with the row. If it overlaps the pair before, the
// channels in both are computed twice. Arrays of a value per channel are kept in the order of the
// lanes of these pairs.

constexpr int64_t kFewChannels = 64;

template <class V>
inline int64_t pixels_per_row(int64_t channels) {
  if (channels >= kFewChannels) return 1;
  int64_t repeat = 1;
  while (repeat * channels % kPairLanes<V> != 0) repeat *= 2;
  return repeat;
}

// Returns the number of lanes of all vector pairs of a row.
template <class V>
inline int64_t lanes_of_row(int64_t channels) {
  const int64_t width = pixels_per_row<V>(channels) * channels;
  return ceil_divide(width, kPairLanes<V>) * kPairLanes<V>;
}

template <int kSize>
struct Count {
  static constexpr int value = kSize;
};

// Calls f(pairs, offset, lane) for every `pairs` vector pairs (a constant: kPairs or 1) of a row of
// `width` elements. `offset` is their first element, `lane` their first lane in arrays of the row.
template <class V, int kPairs, class F>
inline void for_pairs_of_row(int64_t width, const F& f) {
  constexpr int64_t kPairElements = kPairLanes<V>;
  int64_t offset = 0;
  for (; offset + kPairs * kPairElements <= width; offset += kPairs * kPairElements)
    f(Count<kPairs>{}, offset, offset);
  if constexpr (kPairs > 1)
    for (; offset + kPairElements <= width; offset += kPairElements) f(Count<1>{}, offset, offset);
  if (offset < width) f(Count<1>{}, width - kPairElements, offset);
}

// Calls f(channel, j) for the lanes j of `width` elements that start at element `first` of a row.
template <class T, class F>
inline void for_channels_of_lanes(int64_t first, int64_t width, int64_t channels, const F& f) {
  constexpr int kPairElements = kPairLanes<Vec<T>>;
  for_pairs_of_row<Vec<T>, 1>(width, [&](auto pairs, int64_t offset, int64_t lane) {
    for (int v = 0; v < pairs.value; ++v)
      for (int j = 0; j < kPairElements; ++j) {
        const int64_t element = first + offset + v * kPairElements + element_of_lane<T>(j);
        f(element < channels ? element : element % channels, lane + v * kPairElements + j);
      }
  });
}

// Copies values of channels to the lanes of a row.
template <class T>
inline void spread_over_row(const Wide<T>* values, int64_t channels, Wide<T>* lanes) {
  const int64_t width = pixels_per_row<Vec<T>>(channels) * channels;
  for_channels_of_lanes<T>(0, width, channels,
                           [&](int64_t channel, int64_t j) { lanes[j] = values[channel]; });
}

// Table of coefficients: a row per coefficient, a value per plane (N, C). For channels_last each
// row is followed by a copy in the order of the lanes of a row of pixels, (N, lanes).
template <class T>
struct CoefficientTable {
  using W = Wide<T>;
  W* first;
  int64_t images, channels, lanes;

  CoefficientTable(const PlaneGrid& g, void* memory)
      : first(static_cast<W*>(memory)),
        images(g.n),
        channels(g.c),
        lanes(g.layout == Layout::contiguous ? 0 : lanes_of_row<Vec<T>>(g.c)) {}

  int64_t row_elements() const { return images * (channels + lanes); }
  W* of_image(int row, int64_t image) const {
    return first + row * row_elements() + image * channels;
  }
  W* of_lanes(int row, int64_t image) const {
    return first + row * row_elements() + images * channels + image * lanes;
  }
  // Copies rows [begin, end) of an image to the lanes.
  void spread(int begin, int end, int64_t image) const {
    if (lanes == 0) return;
    for (int row = begin; row < end; ++row)
      spread_over_row<T>(of_image(row, image), channels, of_lanes(row, image));
  }
};

// -- sums ------------------------------------------------------------------------------------

// Moments of `count` values: mean, and m2, the sum of squared deviations.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  void merge(double other_count, double other_mean, double other_m2) {
    const double total = count + other_count;
    if (total == 0) return;
    const double delta = other_mean - mean;
    const double share = other_count / total;
    mean += delta * share;
    m2 += other_m2 + delta * delta * count * share;
    count = total;
  }
};

// Segment: elements of a row that are summed at a time. Their sums stay in the L1 cache, and the
// pixels are read in order of memory.
constexpr int64_t kSegment = 512;

// Calls f(first, lane, width) for the segments of a row: at most kSegment elements, at least a
// vector pair. The last one may overlap the one before.
template <class V, class F>
inline void for_segments_of_row(int64_t width, const F& f) {
  for (int64_t offset = 0; offset < width; offset += kSegment) {
    const int64_t rest = width - offset;
    const int64_t first = rest < kPairLanes<V> ? width - kPairLanes<V> : offset;
    f(first, offset, smaller(kSegment, width - first));
  }
}

template <class V>
inline void add_to(ElementOf<V>* lanes, const Pair<V>& pair) {
  store(lanes, load<V>(lanes) + pair.a);
  store(lanes + kLanes<V>, load<V>(lanes + kLanes<V>) + pair.b);
}

// Adds the lanes of a vector: float ones in double precision.
inline double sum_of_lanes(VecD v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(v);
#elif defined(__AVX2__)
  const __m128d halves = _mm256_castpd256_pd128(v) + _mm256_extractf128_pd(v, 1);
  return halves[0] + halves[1];
#else
  return v[0] + v[1];
#endif
}
inline double sum_of_lanes(VecF v) {
#if defined(__AVX512F__)
  const __m256 low = _mm512_castps512_ps256(v);
  const __m256 high = (__m256)_mm512_extractf64x4_pd((__m512d)v, 1);
  return sum_of_lanes((VecD)(_mm512_cvtps_pd(low) + _mm512_cvtps_pd(high)));
#elif defined(__AVX2__)
  const __m128 low = _mm256_castps256_ps128(v), high = _mm256_extractf128_ps(v, 1);
  return sum_of_lanes((VecD)(_mm256_cvtps_pd(low) + _mm256_cvtps_pd(high)));
#else
  return (double(v[0]) + double(v[2])) + (double(v[1]) + double(v[3]));
#endif
}

template <int kCount>
inline double sum_of_doubles(const double* values) {
  VecD total{};
  for (int j = 0; j < kCount; j += kLanes<VecD>) total += load<VecD>(values + j);
  return sum_of_lanes(total);
}

// Computes moments lane by lane of a segment: `width` elements (at most kSegment, in whole vector
// pairs or more) of `pixels` rows, `pitch` elements apart. mean and m2 have room for
// kSegment.
template <class T>
inline void lane_moments(const T* x, int64_t pitch, int64_t pixels, int64_t width, double* mean,
                         double* m2) {
  using V = Vec<T>;
  using W = ElementOf<V>;
  constexpr int64_t kPairElements = kPairLanes<V>;
  const int64_t lanes = ceil_divide(width, kPairElements) * kPairElements;
  W shift[kSegment], sum[kSegment], square[kSegment];
  for (int64_t first = 0; first < pixels; first += kSummed) {
    const int64_t count = smaller<int64_t>(kSummed, pixels - first);
    // The first values alone may be a dark border, far from the mean. Differences from the first
    // value make the shift of equal values exact.
    const int64_t shift_count = smaller<int64_t>(kShiftValues, count), apart = count / shift_count;
    for_pairs_of_row<V, kPairsAtOnce>(width, [&](auto pairs, int64_t offset, int64_t lane) {
      for (int v = 0; v < pairs.value; ++v) {
        const T* from = x + first * pitch + offset + v * kPairElements;
        const Pair<V> origin = load_pair(from);
        Pair<V> total{};
        for (int64_t i = 1; i < shift_count; ++i) {
          const Pair<V> pair = load_pair(from + i * apart * pitch);
          total.a += pair.a - origin.a, total.b += pair.b - origin.b;
        }
        const V share = splat<V>(W(1) / W(shift_count));
        store(shift + lane + v * kPairElements, origin.a + total.a * share);
        store(shift + lane + v * kPairElements + kLanes<V>, origin.b + total.b * share);
      }
    });
    for (int64_t j = 0; j < lanes; j += kLanes<V>) {
      store(sum + j, V{});
      store(square + j, V{});
    }
    for (int64_t start = first; start < first + count; start += kSummedFirst) {
      const T* begin = x + start * pitch;
      const T* end = begin + smaller<int64_t>(kSummedFirst, first + count - start) * pitch;
      for_pairs_of_row<V, kPairsAtOnce>(width, [&](auto pairs, int64_t offset, int64_t lane) {
        constexpr int kPairs = decltype(pairs)::value;
        V center[2 * kPairs], inner_sum[2 * kPairs] = {}, inner_square[2 * kPairs] = {};
        for (int v = 0; v < 2 * kPairs; ++v) center[v] = load<V>(shift + lane + v * kLanes<V>);
        for (const T* p = begin + offset; p != end + offset; p += pitch) {
          for (int v = 0; v < kPairs; ++v) {
            const Pair<V> pair = load_pair(p + v * kPairElements);
            const V a = pair.a - center[2 * v], b = pair.b - center[2 * v + 1];
            inner_sum[2 * v] += a, inner_sum[2 * v + 1] += b;
            inner_square[2 * v] = multiply_add(a, a, inner_square[2 * v]);
            inner_square[2 * v + 1] = multiply_add(b, b, inner_square[2 * v + 1]);
          }
        }
        for (int v = 0; v < kPairs; ++v) {
          add_to(sum + lane + v * kPairElements, Pair<V>{inner_sum[2 * v], inner_sum[2 * v + 1]});
          add_to(square + lane + v * kPairElements,
                 Pair<V>{inner_square[2 * v], inner_square[2 * v + 1]});
        }
      });
    }
    const double inverse = 1.0 / double(count);
    const double share = double(count) / double(first + count);
    const double weight = double(first) * share;
    for (int64_t j = 0; j < lanes; ++j) {
      const double total = sum[j], before = first == 0 ? 0 : mean[j];
      const double delta = double(shift[j]) + total * inverse - before;
      const double rest = double(square[j]) - total * total * inverse;
      mean[j] = before + delta * share;
      // Rounding may make the rest of constant values negative. NaN stays.
      m2[j] = (first == 0 ? 0 : m2[j]) + (rest < 0 ? 0 : rest) + delta * delta * weight;
    }
  }
}

// Vector pairs of a run that is summed about its mean in float32: sums of more equal values would
// be rounded in the same direction too often.
constexpr int64_t kShortPairs = 16;

// Calls f(k, pair) for the vector pairs of a run of one or more, after change(pair), with
// accumulators k of kPairsAtOnce in turns. The last pair has zeros for what it has in common with
// the one before.
template <class T, class Change, class F>
inline void for_pairs_of_run(const T* x, int64_t count, const Change& change, const F& f) {
  constexpr int64_t kWidth = kPairLanes<Vec<T>>;
  int64_t i = 0;
  for (; i + kPairsAtOnce * kWidth <= count; i += kPairsAtOnce * kWidth)
    for (int k = 0; k < kPairsAtOnce; ++k) f(k, change(load_pair(x + i + k * kWidth)));
  for (; i + kWidth <= count; i += kWidth) f(0, change(load_pair(x + i)));
  if (i < count) {
    const int64_t last = count - kWidth;
    f(kPairsAtOnce - 1, only_elements<T>(change(load_pair(x + last)), i - last, kWidth));
  }
}

// Returns the moments of a run of 1 to kShortPairs vector pairs and a rest. The run is read twice:
// for its mean, and for sums about it. The result is empty, with a count of 0, if the mean is not
// finite in T.
template <class T>
inline Moments moments_of_short_run(const T* x, int64_t count) {
  using V = Vec<T>;
  V totals[kPairsAtOnce] = {};
  for_pairs_of_run(
      x, count, [](const Pair<V>& pair) { return pair; },
      [&](int k, const Pair<V>& pair) { totals[k] += pair.a + pair.b; });
  for (int k = 1; k < kPairsAtOnce; ++k) totals[0] += totals[k];
  // A shift rounded to T makes differences from half-precision values exact. Other shifts would add
  // the same rounding error to many of them.
  T rounded;
  store(&rounded, ElementOf<V>(sum_of_lanes(totals[0]) / double(count)));
  const auto shift = load<ElementOf<V>>(&rounded);
  if (!(shift - shift == 0)) return {};
  const V center = splat<V>(shift);
  V sums[2 * kPairsAtOnce] = {}, squares[2 * kPairsAtOnce] = {};
  for_pairs_of_run(
      x, count, [&](const Pair<V>& pair) { return Pair<V>{pair.a - center, pair.b - center}; },
      [&](int k, const Pair<V>& pair) {
        sums[2 * k] += pair.a, sums[2 * k + 1] += pair.b;
        squares[2 * k] = multiply_add(pair.a, pair.a, squares[2 * k]);
        squares[2 * k + 1] = multiply_add(pair.b, pair.b, squares[2 * k + 1]);
      });
  for (int v = 1; v < 2 * kPairsAtOnce; ++v) sums[0] += sums[v], squares[0] += squares[v];
  const double sum = sum_of_lanes(sums[0]), square = sum_of_lanes(squares[0]);
  const double offset = sum / double(count), m2 = square - sum * offset;
  return {double(count), double(shift) + offset, m2 < 0 ? 0 : m2};  // NaN stays
}

// Returns the moments of a run of `count` values.
template <class T>
inline Moments moments_of_run(const T* x, int64_t count) {
  constexpr int kWidth = kPairsAtOnce * kPairLanes<Vec<T>>;
  const int64_t rows = count / kWidth, done = rows * kWidth;
  Moments result;
  const int64_t pairs = count / kPairLanes<Vec<T>>;
  if (pairs > 0 && pairs <= kShortPairs) {
    result = moments_of_short_run(x, count);
    if (result.count > 0) return result;
  }
  if (rows > 0) {
    double mean[kSegment], m2[kSegment];
    lane_moments(x, kWidth, rows, kWidth, mean, m2);
    const double center = sum_of_doubles<kWidth>(mean) / kWidth;  // lanes have equal counts
    for (int j = 0; j < kWidth; ++j)
      m2[j] += double(rows) * (mean[j] - center) * (mean[j] - center);
    result = {double(done), center, sum_of_doubles<kWidth>(m2)};
  }
  if (done < count) {
    // Sums about the first value: the mean of equal values is then exact.
    const double rest = double(count - done), shift = double(load<Wide<T>>(x + done));
    double sum = 0, m2 = 0;
    for (int64_t i = done; i < count; ++i) sum += double(load<Wide<T>>(x + i)) - shift;
    const double mean = shift + sum / rest;
    for (int64_t i = done; i < count; ++i) {
      const double d = double(load<Wide<T>>(x + i)) - mean;
      m2 += d * d;
    }
    result.merge(rest, mean, m2);
  }
  return result;
}

}  // namespace stylekernels::CPU_CAPABILITY
