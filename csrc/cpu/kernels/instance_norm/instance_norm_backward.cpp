// Backward pass of instance and group norm, see instance_norm.cpp.
//
// With d = x - mean, z = scale * d + bias (+ residual) and g = grad * activation'(z), all
// recomputed from x: first sum(g) and sum(g d) over every plane, then
//   grad_x = scale * g - (sum(scale * g) + d * rstd^2 * sum(scale * g d)) / P,
// with sums over the P pixels of a group, which is a plane in instance norm.
// The pixels are compared with the rounded mean; bias, sum and offset carry its rounding error.

#include "../../parallel.h"
#include "../vector/planes.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// Coefficients per plane: z = scale * (x - mean) + bias, and grad_x = scale * g + slope * (x -
// mean) + offset.
enum Row { kMean, kScale, kBias, kSlope, kOffset, kRowCount };

template <class U>
struct Term {
  U g, d;
};

// Computes g and d at element i of the tensors.
template <Activation A, class T>
struct Terms {
  using V = Vec<T>;
  using W = Wide<T>;
  const T *grad, *x, *residual;
  W negative_slope;

  template <class U>
  [[gnu::always_inline]] inline Term<U> term(U grad, U x, U added, U mean, U scale, U bias) const {
    const U d = x - mean;
    if constexpr (A == Activation::none) return {grad, d};
    U z = multiply_add(d, scale, bias);
    if (residual != nullptr) z += added;
    return {activation_gradient<A>(grad, z, negative_slope), d};
  }

  inline Term<W> one(int64_t i, W mean, W scale, W bias) const {
    const W added = residual == nullptr ? W(0) : load<W>(residual + i);
    return term(load<W>(grad + i), load<W>(x + i), added, mean, scale, bias);
  }

  template <class Access = WholePair>
  [[gnu::always_inline]] inline Pair<Term<V>> pair(int64_t i, const Pair<V>& mean,
                                                   const Pair<V>& scale, const Pair<V>& bias,
                                                   const Access& access = {}) const {
    const Pair<V> g = access.load(grad + i), in = access.load(x + i);
    const Pair<V> added = residual == nullptr ? Pair<V>{} : access.load(residual + i);
    return {term(g.a, in.a, added.a, mean.a, scale.a, bias.a),
            term(g.b, in.b, added.b, mean.b, scale.b, bias.b)};
  }
};

// Sums of g and of g d.
struct Sums {
  double g = 0, gd = 0;
};

// Longest run that is faster value by value than as part of a vector pair.
constexpr int64_t kOneByOne = 10;

template <Activation A, class T>
inline void add_one(const Terms<A, T>& terms, int64_t i, Wide<T> mean, Wide<T> scale, Wide<T> bias,
                    double& sum_g, double& sum_gd) {
  const Term<Wide<T>> t = terms.one(i, mean, scale, bias);
  sum_g += double(t.g), sum_gd += double(t.g) * double(t.d);
}

// Computes both sums lane by lane of a segment: `width` elements (at most kSegment, in whole vector
// pairs or more) of `pixels` rows, `pitch` elements apart. sum_g and sum_gd have room for
// kSegment. coefficients(row, lane) gives the vector pair from a lane on. Not inlined: in
// sums_of_run, which knows the width, the compiler keeps an accumulator in memory.
template <Activation A, class T, class Load>
[[gnu::noinline]] void lane_sums(const Terms<A, T>& terms, int64_t first, int64_t pitch,
                                 int64_t pixels, int64_t width, const Load& coefficients,
                                 double* sum_g, double* sum_gd) {
  using V = Vec<T>;
  constexpr int64_t kPairElements = kPairLanes<V>;
  const int64_t lanes = ceil_divide(width, kPairElements) * kPairElements;
  Wide<T> part_g[kSegment], part_gd[kSegment];
  for (int64_t j = 0; j < lanes; ++j) sum_g[j] = sum_gd[j] = 0;
  for (int64_t begin = 0; begin < pixels; begin += kSummed) {
    const int64_t end = smaller(begin + kSummed, pixels);
    for (int64_t j = 0; j < lanes; j += kLanes<V>) {
      store(part_g + j, V{});
      store(part_gd + j, V{});
    }
    for (int64_t start = begin; start < end; start += kSummedFirst) {
      const int64_t inner_end = first + smaller(start + kSummedFirst, end) * pitch;
      for_pairs_of_row<V, 1>(width, [&](auto, int64_t offset, int64_t lane) {
        const Pair<V> mean = coefficients(kMean, lane), scale = coefficients(kScale, lane);
        const Pair<V> bias = coefficients(kBias, lane);
        Pair<V> inner_g{}, inner_gd{};
        for (int64_t i = first + start * pitch + offset; i != inner_end + offset; i += pitch) {
          const auto [a, b] = terms.pair(i, mean, scale, bias);
          inner_g.a += a.g, inner_g.b += b.g;
          inner_gd.a = multiply_add(a.g, a.d, inner_gd.a);
          inner_gd.b = multiply_add(b.g, b.d, inner_gd.b);
        }
        add_to(part_g + lane, inner_g);
        add_to(part_gd + lane, inner_gd);
      });
    }
    for (int64_t j = 0; j < lanes; ++j) {
      sum_g[j] += double(part_g[j]);
      sum_gd[j] += double(part_gd[j]);
    }
  }
}

// Computes the sums of elements [begin, count) of a run in registers: at most kSummedFirst vector
// pairs from a multiple of them on, and a rest.
template <Activation A, class T>
Sums sums_of_short_run(const Terms<A, T>& terms, int64_t first, int64_t begin, int64_t count,
                       const Wide<T> (&value)[3]) {
  using V = Vec<T>;
  constexpr int64_t kWidth = kPairLanes<V>;
  const Pair<V> mean = splat_pair<V>(value[kMean]), scale = splat_pair<V>(value[kScale]);
  const Pair<V> bias = splat_pair<V>(value[kBias]);
  Pair<V> g{}, gd{};
  int64_t i = begin;
  for (; i + kWidth <= count; i += kWidth) {
    const auto [a, b] = terms.pair(first + i, mean, scale, bias);
    g.a += a.g, g.b += b.g;
    gd.a = multiply_add(a.g, a.d, gd.a);
    gd.b = multiply_add(b.g, b.d, gd.b);
  }
  if (i < count) {
    const bool few = count < kWidth;
    const int64_t last = few ? 0 : count - kWidth;
    const auto [a, b] = few ? terms.pair(first, mean, scale, bias, FirstOfPair{count})
                            : terms.pair(first + last, mean, scale, bias);
    const auto only = [&](const Pair<V>& v) {
      return only_elements<T>(v, i - last, smaller(count, kWidth));
    };
    const Pair<V> rest_g = only({a.g, b.g}), rest_gd = only({a.g * a.d, b.g * b.d});
    g.a += rest_g.a, g.b += rest_g.b;
    gd.a += rest_gd.a, gd.b += rest_gd.b;
  }
  return {sum_of_lanes(g.a) + sum_of_lanes(g.b), sum_of_lanes(gd.a) + sum_of_lanes(gd.b)};
}

template <Activation A, class T>
Sums sums_of_run(const Terms<A, T>& terms, int64_t first, int64_t count,
                 const CoefficientTable<T>& table, int64_t plane) {
  using V = Vec<T>;
  constexpr int64_t kWidth = kPairLanes<V>;
  Wide<T> value[3];
  for (int row = kMean; row <= kBias; ++row) value[row] = table.of_image(row, 0)[plane];
  if (count <= kOneByOne) {
    Sums sums;
    for (int64_t i = first; i < first + count; ++i)
      add_one(terms, i, value[kMean], value[kScale], value[kBias], sums.g, sums.gd);
    return sums;
  }
  const int64_t rows = count / kWidth;
  if (rows <= kSummedFirst) return sums_of_short_run(terms, first, 0, count, value);
  double sum_g[kSegment], sum_gd[kSegment];
  lane_sums(
      terms, first, kWidth, rows, kWidth,
      [&](int row, int64_t) { return splat_pair<V>(value[row]); }, sum_g, sum_gd);
  const Sums rest = sums_of_short_run(terms, first, rows * kWidth, count, value);
  return {sum_of_doubles<kWidth>(sum_g) + rest.g, sum_of_doubles<kWidth>(sum_gd) + rest.gd};
}

template <Activation A, class T>
void sum_rows(const Terms<A, T>& terms, int64_t first, int64_t channels, int64_t pixels,
              const CoefficientTable<T>& table, int64_t image, double* sum_g, double* sum_gd) {
  using V = Vec<T>;
  const int64_t repeat = pixels_per_row<V>(channels);
  const int64_t rows = pixels / repeat, width = repeat * channels;
  for (int64_t c = 0; c < channels; ++c) sum_g[c] = sum_gd[c] = 0;
  double part_g[kSegment], part_gd[kSegment];
  for_segments_of_row<V>(width, [&](int64_t start, int64_t start_lane, int64_t segment) {
    lane_sums(
        terms, first + start, width, rows, segment,
        [&](int row, int64_t lane) {
          return load_lanes<V>(table.of_lanes(row, image) + start_lane + lane);
        },
        part_g, part_gd);
    for_channels_of_lanes<T>(start, segment, channels, [&](int64_t channel, int64_t j) {
      sum_g[channel] = repeat > 1 ? sum_g[channel] + part_g[j] : part_g[j];
      sum_gd[channel] = repeat > 1 ? sum_gd[channel] + part_gd[j] : part_gd[j];
    });
  });
  for (int64_t p = rows * repeat; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c)
      add_one(terms, first + p * channels + c, table.of_image(kMean, image)[c],
              table.of_image(kScale, image)[c], table.of_image(kBias, image)[c], sum_g[c],
              sum_gd[c]);
}

template <Activation A, class T>
struct Writer {
  using V = Vec<T>;
  using W = Wide<T>;
  Terms<A, T> terms;
  T *grad_x, *grad_residual;
  bool past_caches, own_stats;

  template <class U>
  [[gnu::always_inline]] inline U gradient(const Term<U>& t, U scale, U slope, U offset) const {
    const U rest =
        own_stats ? multiply_add(t.d, slope, offset) : U{};  // 0 * d would be NaN for a d of NaN
    return multiply_add(t.g, scale, rest);
  }

  inline void one(int64_t i, const W (&row)[kRowCount]) const {
    const Term<W> t = terms.one(i, row[kMean], row[kScale], row[kBias]);
    store(grad_x + i, gradient(t, row[kScale], row[kSlope], row[kOffset]));
    if (grad_residual != nullptr) store(grad_residual + i, t.g);
  }

  template <class Access = WholePair>
  [[gnu::always_inline]] inline void pair(int64_t i, const Pair<V> (&row)[kRowCount],
                                          const Access& access = {}) const {
    const auto [a, b] = terms.pair(i, row[kMean], row[kScale], row[kBias], access);
    access.store(grad_x + i,
                 {gradient(a, row[kScale].a, row[kSlope].a, row[kOffset].a),
                  gradient(b, row[kScale].b, row[kSlope].b, row[kOffset].b)},
                 past_caches);
    if (grad_residual != nullptr) access.store(grad_residual + i, {a.g, b.g}, past_caches);
  }
};

template <Activation A, class T>
void write_run(const Writer<A, T>& arguments, int64_t first, int64_t count,
               const CoefficientTable<T>& table, int64_t plane) {
  using V = Vec<T>;
  const Writer<A, T> writer = arguments;  // a local copy: stores cannot alias it
  Wide<T> row[kRowCount];
  Pair<V> pairs[kRowCount];
  for (int r = 0; r < kRowCount; ++r) {
    row[r] = table.of_image(r, 0)[plane];
    pairs[r] = splat_pair<V>(row[r]);
  }
  if (count > kOneByOne && count < kPairLanes<V>) {
    writer.pair(first, pairs, FirstOfPair{count});
    return;
  }
  int64_t i = first;
  const int64_t end = first + count;
  if (writer.past_caches)
    for (; i < end && !aligned_for_streaming<V>(writer.grad_x + i); ++i) writer.one(i, row);
  for (; i + kPairLanes<V> <= end; i += kPairLanes<V>) writer.pair(i, pairs);
  if (i < end && count > kOneByOne && !writer.past_caches)
    writer.pair(end - kPairLanes<V>, pairs);  // writes some values again, the same ones
  else
    for (; i < end; ++i) writer.one(i, row);
}

template <Activation A, class T>
void write_rows(const Writer<A, T>& arguments, int64_t first, int64_t channels, int64_t pixels,
                const CoefficientTable<T>& table, int64_t image) {
  using V = Vec<T>;
  const Writer<A, T> writer = arguments;
  const int64_t repeat = pixels_per_row<V>(channels), width = repeat * channels;
  const int64_t whole = width / kPairLanes<V> * kPairLanes<V>;
  const int64_t rows_end = pixels / repeat * width, end = pixels * channels;
  const Wide<T>* lanes[kRowCount];
  for (int r = 0; r < kRowCount; ++r) lanes[r] = table.of_lanes(r, image);
  const auto pair = [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    Pair<V> row[kRowCount];
    for (int r = 0; r < kRowCount; ++r) row[r] = load_lanes<V>(lanes[r] + lane);
    writer.pair(first + i, row);
  };
  for (int64_t i = 0; i < rows_end; i += width) {
    for (int64_t l = 0; l < whole; l += kPairLanes<V>) pair(i + l, l);
    if (whole < width) pair(i + width - kPairLanes<V>, whole);
  }
  for (int64_t i = rows_end; i < end; ++i) {
    Wide<T> row[kRowCount];
    for (int r = 0; r < kRowCount; ++r) row[r] = table.of_image(r, image)[i % channels];
    writer.one(first + i, row);
  }
}

template <Activation A, class T>
void backward_of(const InstanceNormBackward& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t planes = g.n * g.c, units = units_of(g), channels = channels_of_unit(g);
  const CoefficientTable<T> table(g, args.coefficients);
  const Terms<A, T> terms{at<T>(args.grad, 0), at<T>(args.x, 0), at<T>(args.residual, 0),
                          coefficient<W>(args.negative_slope)};
  const Writer<A, T> writer{terms, at<T>(args.grad_x, 0), at<T>(args.grad_residual, 0), args.stream,
                            args.own_stats};
  const W *mean = at<W>(args.mean, 0), *mean_error = mean + planes, *rstd = at<W>(args.rstd, 0);
  W* rows[kRowCount];
  for (int r = 0; r < kRowCount; ++r) rows[r] = table.of_image(r, 0);

  // Computes the coefficients that the sums of consecutive planes of an image need.
  const auto start_planes = [&](int64_t first, int64_t count) {
    const int64_t n = first / g.c, c = first % g.c;
    const W* weight = at<W>(args.weight, n * args.weight_stride + c);
    const W* bias = at<W>(args.bias, n * args.bias_stride + c);
    for (int64_t i = 0, plane = first; i < count; ++i, ++plane) {
      const double scale = (weight ? double(weight[i]) : 1) * double(rstd[plane]);
      rows[kMean][plane] = coefficient<W>(mean[plane]);
      rows[kScale][plane] = coefficient<W>(scale);
      rows[kBias][plane] =
          coefficient<W>((bias ? double(bias[i]) : 0) - scale * double(mean_error[plane]));
    }
  };
  // Points to a plane's sum of g in the partials of the first chunk, `channels` before that of g d.
  const auto sums_of = [&](int64_t plane) {
    const int64_t unit = plane / channels;
    return args.partials + unit * g.chunks * 2 * channels + plane % channels;
  };
  const int64_t sums_apart = contiguous ? 2 * g.chunks : 1;  // from plane to plane
  const auto finish_group = [&](int64_t first) {
    double group_g = 0, group_gd = 0;
    const double error = double(mean_error[first]), inverse = double(rstd[first]);
    const double* sums = sums_of(first);
    for (int64_t plane = first; plane < first + g.group; ++plane, sums += sums_apart) {
      const double sum_g = sums[0], sum_gd = sums[channels] - error * sum_g;
      const double scale = double(rows[kScale][plane]);
      group_g += scale * sum_g, group_gd += scale * sum_gd;
      at<W>(args.sum_grad, plane)[0] = W(sum_g);
      // Statistics of a plane without pixels are NaN.
      at<W>(args.sum_grad_normalized, plane)[0] = g.pixels == 0 ? W(0) : W(sum_gd * inverse);
    }
    const double count = double(g.group * g.pixels);
    const double slope = -inverse * inverse * (group_gd / count);
    const double offset = -group_g / count - slope * error;
    for (int64_t plane = first; plane < first + g.group; ++plane) {
      rows[kSlope][plane] = coefficient<W>(slope);
      rows[kOffset][plane] = coefficient<W>(offset);
    }
  };

  if (g.whole_groups) {
    parallel_small_tasks(units / g.group, g.group * g.pixels, [&](int64_t group) {
      const int64_t first = group * g.group, end = first + g.group;
      start_planes(first, g.group);
      double* partials = sums_of(first);
      for (int64_t plane = first; plane < end; ++plane, partials += sums_apart) {
        const Sums sums = sums_of_run(terms, plane * g.pixels, g.pixels, table, plane);
        partials[0] = sums.g, partials[1] = sums.gd;
      }
      finish_group(first);
      for (int64_t plane = first; plane < end; ++plane)
        write_run(writer, plane * g.pixels, g.pixels, table, plane);
      if (args.stream) finish_streaming();
    });
    return;
  }

  parallel_tasks(units, channels, [&](int64_t unit) {
    start_planes(unit * channels, channels);
    table.spread(kMean, kSlope, unit);
  });
  const int64_t tasks = units * g.chunks;
  parallel_tasks(tasks, g.chunk_pixels * channels, [&](int64_t task) {
    const int64_t unit = task / g.chunks, chunk = task % g.chunks;
    const int64_t first = (unit * g.pixels + chunk_begin(g, chunk)) * channels;
    double *sum_g = args.partials + task * 2 * channels, *sum_gd = sum_g + channels;
    if (contiguous) {
      const Sums sums = sums_of_run(terms, first, chunk_count(g, chunk), table, unit);
      sum_g[0] = sums.g, sum_gd[0] = sums.gd;
    } else {
      sum_rows(terms, first, channels, chunk_count(g, chunk), table, unit, sum_g, sum_gd);
    }
  });
  parallel_tasks(g.n, g.c * g.chunks, [&](int64_t image) {
    for (int64_t i = 0, unit = image * units_of_image(g); i < units_of_image(g); ++i, ++unit) {
      double* sums = args.partials + unit * g.chunks * 2 * channels;
      for (int64_t chunk = 1; chunk < g.chunks; ++chunk)
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += sums[chunk * 2 * channels + i];
    }
    for (int64_t plane = image * g.c; plane < (image + 1) * g.c; plane += g.group)
      finish_group(plane);
    table.spread(kSlope, kRowCount, image);
  });
  parallel_tasks(Order::backwards, tasks, g.chunk_pixels * channels, [&](int64_t task) {
    const int64_t unit = task / g.chunks, chunk = task % g.chunks;
    const int64_t first = (unit * g.pixels + chunk_begin(g, chunk)) * channels;
    if (contiguous)
      write_run(writer, first, chunk_count(g, chunk), table, unit);
    else
      write_rows(writer, first, channels, chunk_count(g, chunk), table, unit);
    if (args.stream) finish_streaming();
  });
}

}  // namespace

void instance_norm_backward(const InstanceNormBackward& args) {
  for_dtype(args.grid.dtype, [&](auto element) {
    for_activation(args.activation, [&](auto activation) {
      using T = decltype(element);
      constexpr Activation A = decltype(activation)::value;
      backward_of<A, T>(args);
    });
  });
}

}  // namespace stylekernels::CPU_CAPABILITY
