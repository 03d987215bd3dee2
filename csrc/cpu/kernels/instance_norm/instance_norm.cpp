// Instance and group norm on the CPU, forward and backward. A group of channels shares mean and
// variance; in instance norm it has one channel.
//
// Memory traffic, in images: forward 2 reads and 1 write (the second read comes from a cache if a
// plane fits there), backward 4 reads and 1 write. At about two operations per byte both are bound
// by memory. contiguous: a thread owns a group of planes, a plane, or a chunk of one if planes are
// few and large. channels_last: a thread owns a chunk of pixels with all their channels. The second
// pass goes backwards through the chunks, because what was read last is still in the caches.
//
// y = scale * (x - center) + shift: center is the mean rounded to float32, and its rounding error
// is part of the shift. That is exact also if the mean is large against the deviation.

#include "../../parallel.h"
#include "../vector/planes.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// -- statistics ------------------------------------------------------------------------------

// Computes mean and m2 of every channel of a chunk of channels_last pixels.
template <class T>
void chunk_moments(const T* x, int64_t channels, int64_t pixels, double* mean, double* m2) {
  using V = Vec<T>;
  const int64_t repeat = pixels_per_row<V>(channels);
  const int64_t rows = pixels / repeat, width = repeat * channels;
  double count[kFewChannels] = {};  // pixels merged so far, if a row holds several
  for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
  const auto merge = [&](int64_t channel, double n, double part_mean, double part_m2) {
    Moments moments{count[channel], mean[channel], m2[channel]};
    moments.merge(n, part_mean, part_m2);
    count[channel] = moments.count, mean[channel] = moments.mean, m2[channel] = moments.m2;
  };
  if (rows > 0) {
    double part_mean[kSegment], part_m2[kSegment];
    for_segments_of_row<V>(width, [&](int64_t first, int64_t, int64_t segment) {
      lane_moments(x + first, width, rows, segment, part_mean, part_m2);
      for_channels_of_lanes<T>(first, segment, channels, [&](int64_t channel, int64_t j) {
        if (repeat > 1)
          merge(channel, double(rows), part_mean[j], part_m2[j]);
        else
          mean[channel] = part_mean[j], m2[channel] = part_m2[j];
      });
    });
  }
  for (int64_t p = rows * repeat; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c)
      merge(c, 1, double(load<Wide<T>>(x + p * channels + c)), 0);
}

template <class T>
void partial_moments(const PlaneGrid& g, const void* x, double* partials) {
  const int64_t channels = channels_of_unit(g);
  parallel_small_tasks(units_of(g) * g.chunks, g.chunk_pixels * channels, [&](int64_t task) {
    const int64_t unit = task / g.chunks, chunk = task % g.chunks;
    const T* p = at<T>(x, (unit * g.pixels + chunk_begin(g, chunk)) * channels);
    double* mean = partials + task * 2 * channels;
    if (g.layout == Layout::contiguous) {
      const Moments moments = moments_of_run(p, chunk_count(g, chunk));
      mean[0] = moments.mean, mean[1] = moments.m2;
    } else {
      chunk_moments(p, channels, chunk_count(g, chunk), mean, mean + channels);
    }
  });
}

// Merges the moments of a unit's chunks, in their order, into those of the first.
void merge_chunks(const PlaneGrid& g, double* partials) {
  const int64_t channels = channels_of_unit(g);
  double *mean = partials, *m2 = mean + channels;
  double count = double(chunk_count(g, 0));
  for (int64_t chunk = 1; chunk < g.chunks; ++chunk) {
    const double *other_mean = partials + chunk * 2 * channels, *other_m2 = other_mean + channels;
    const double added = double(chunk_count(g, chunk)), share = added / (count + added);
    const double weight = count * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double delta = other_mean[c] - mean[c];
      mean[c] += delta * share;
      m2[c] += other_m2[c] + delta * delta * weight;
    }
    count += added;
  }
}

// Merges the moments of each group of an image, after those of its chunks were merged, and calls
// f(first, mean, variance) for the first plane of each.
template <class F>
void for_group_statistics(const PlaneGrid& g, const double* partials, int64_t image, const F& f) {
  const int64_t channels = channels_of_unit(g);
  const auto moments_of = [&](int64_t plane) {
    const int64_t unit = plane / channels, c = plane % channels;
    const double* moments = partials + unit * g.chunks * 2 * channels + c;
    return Moments{double(g.pixels), moments[0], moments[channels]};
  };
  const int64_t end = (image + 1) * g.c;
  for (int64_t first = image * g.c; first < end; first += g.group) {
    Moments group = moments_of(first);
    for (int64_t plane = first + 1; plane < first + g.group; ++plane) {
      const Moments other = moments_of(plane);
      group.merge(other.count, other.mean, other.m2);
    }
    f(first, group.mean, group.m2 / group.count);
  }
}

template <class T>
void stats_of(const InstanceNormStats& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const int64_t channels = channels_of_unit(g);
  partial_moments<T>(g, args.x, args.partials);
  parallel_tasks(units_of(g), channels * g.chunks, [&](int64_t unit) {
    double* moments = args.partials + unit * g.chunks * 2 * channels;
    merge_chunks(g, moments);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t plane = unit * channels + c;
      const W mean = g.pixels == 0 ? W(__builtin_nan("")) : W(moments[c]);
      at<W>(args.mean, plane)[0] = mean;
      if (args.mean_error) at<W>(args.mean_error, plane)[0] = W(moments[c] - double(mean));
      at<W>(args.var, plane)[0] = W(moments[channels + c] / double(g.pixels));
    }
  });
}

// -- forward ---------------------------------------------------------------------------------

template <class W>
struct Coefficients {
  W center, scale, shift;
};

enum Row { kCenter, kScale, kShift, kRowCount };  // of a CoefficientTable

// Statistics that planes of a group share: the mean as W and its rounding error, and 1 / deviation.
template <class W>
struct Statistics {
  W center;
  double error, rstd;

  Statistics(double mean, double var, double eps)
      : center(coefficient<W>(mean)),
        error(mean - double(center)),
        rstd(inverse_deviation(var, eps)) {}
};

// Calls f(plane, coefficients) for `count` consecutive planes of an image that share statistics,
// and writes these.
template <class W, class F>
void for_coefficients(const InstanceNormForward& args, int64_t first, int64_t count,
                      const Statistics<W>& s, const F& f) {
  const int64_t planes = args.grid.n * args.grid.c;
  const int64_t n = first / args.grid.c, c = first % args.grid.c;
  const W* weight = at<W>(args.weight, n * args.weight_stride + c);
  const W* bias = at<W>(args.bias, n * args.bias_stride + c);
  W *mean = at<W>(args.mean, first), *error = mean + planes, *rstd = at<W>(args.rstd, first);
  for (int64_t i = 0; i < count; ++i) {
    mean[i] = s.center, error[i] = W(s.error), rstd[i] = W(s.rstd);
    const double scale = (weight ? double(weight[i]) : 1) * s.rstd;
    const double shift = (bias ? double(bias[i]) : 0) - s.error * scale;
    f(first + i, Coefficients<W>{s.center, coefficient<W>(scale), coefficient<W>(shift)});
  }
}

// Forward arithmetic of an element. Order of the residual and kind of store are branches inside the
// loops: always taken the same way, they cost nothing beside the memory traffic, and save three
// quarters of the code.
template <Activation A, class T>
struct Apply {
  using V = Vec<T>;
  const T *x, *residual;
  T* y;
  Wide<T> negative_slope;
  bool residual_first, past_caches;
  int64_t ahead;  // prefetch distance in elements; 0: no prefetch

  template <class U>
  [[gnu::always_inline]] inline U value(U in, U added, U center, U scale, U shift) const {
    U z = multiply_add(in - center, scale, shift);
    if (residual != nullptr && residual_first) z += added;
    z = activate<A>(z, negative_slope);
    if (residual != nullptr && !residual_first) z += added;
    return z;
  }

  inline void one(int64_t i, Wide<T> center, Wide<T> scale, Wide<T> shift) const {
    using W = Wide<T>;
    const W added = residual == nullptr ? W(0) : load<W>(residual + i);
    store(y + i, value(load<W>(x + i), added, center, scale, shift));
  }

  template <class Access = WholePair>
  [[gnu::always_inline]] inline void pair(int64_t i, const Pair<V>& center, const Pair<V>& scale,
                                          const Pair<V>& shift, const Access& access = {}) const {
    if (ahead != 0) __builtin_prefetch(x + i + ahead);
    const Pair<V> in = access.load(x + i);
    const Pair<V> added = residual == nullptr ? Pair<V>{} : access.load(residual + i);
    access.store(y + i,
                 {value(in.a, added.a, center.a, scale.a, shift.a),
                  value(in.b, added.b, center.b, scale.b, shift.b)},
                 past_caches);
  }
};

// Applies the coefficients to a run of pixels: a contiguous plane, or a chunk of it.
template <Activation A, class T>
void apply_run(const Apply<A, T>& arguments, int64_t count, const Coefficients<Wide<T>>& c) {
  using V = Vec<T>;
  const Apply<A, T> apply = arguments;  // a local copy: stores cannot alias it
  const Pair<V> center = splat_pair<V>(c.center), scale = splat_pair<V>(c.scale);
  const Pair<V> shift = splat_pair<V>(c.shift);
  if (count < kPairLanes<V>) {
    apply.pair(0, center, scale, shift, FirstOfPair{count});
    return;
  }
  int64_t i = 0;
  if (apply.past_caches)  // up to an aligned address
    for (; i < count && !aligned_for_streaming<V>(apply.y + i); ++i)
      apply.one(i, c.center, c.scale, c.shift);
  for (; i + kPairLanes<V> <= count; i += kPairLanes<V>) apply.pair(i, center, scale, shift);
  if (i < count && !apply.past_caches)
    apply.pair(count - kPairLanes<V>, center, scale, shift);  // writes some values again
  else
    for (; i < count; ++i) apply.one(i, c.center, c.scale, c.shift);
}

// Applies the coefficients to channels_last pixels: `channel` by channel, `lane` in the order of a
// row's lanes.
template <Activation A, class T>
void apply_rows(const Apply<A, T>& arguments, int64_t channels, int64_t pixels,
                const Coefficients<const Wide<T>*>& channel,
                const Coefficients<const Wide<T>*>& lane) {
  using V = Vec<T>;
  const Apply<A, T> apply = arguments;
  const int64_t repeat = pixels_per_row<V>(channels), width = repeat * channels;
  const int64_t rows_end = pixels / repeat * width, end = pixels * channels;
  const auto pair = [&](int64_t i, int64_t l) __attribute__((always_inline)) {
    apply.pair(i, load_lanes<V>(lane.center + l), load_lanes<V>(lane.scale + l),
               load_lanes<V>(lane.shift + l));
  };
  const int64_t whole = width / kPairLanes<V> * kPairLanes<V>;
  for (int64_t i = 0; i < rows_end; i += width) {
    for (int64_t l = 0; l < whole; l += kPairLanes<V>) pair(i + l, l);
    if (whole < width) pair(i + width - kPairLanes<V>, whole);
  }
  for (int64_t i = rows_end; i < end; ++i) {
    const int64_t c = i % channels;
    apply.one(i, channel.center[c], channel.scale[c], channel.shift[c]);
  }
}

template <Activation A, class T>
void forward_of(const InstanceNormForward& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t units = units_of(g), channels = channels_of_unit(g);
  const auto apply_at = [&](int64_t element, int64_t ahead) {
    return Apply<A, T>{at<T>(args.x, element),
                       at<T>(args.residual, element),
                       at<T>(args.y, element),
                       coefficient<W>(args.negative_slope),
                       args.residual_first,
                       args.stream,
                       ahead};
  };

  if (g.whole_groups && args.mean_in == nullptr) {
    parallel_small_tasks(units / g.group, g.group * g.pixels, [&](int64_t group) {
      const int64_t first = group * g.group;
      const Moments m = moments_of_run(at<T>(args.x, first * g.pixels), g.group * g.pixels);
      const Statistics<W> statistics(m.mean, m.m2 / double(g.group * g.pixels), args.eps);
      for_coefficients(
          args, first, g.group, statistics, [&](int64_t plane, const Coefficients<W>& values) {
            apply_run(apply_at(plane * g.pixels, ahead_of(g, plane)), g.pixels, values);
          });
      if (args.stream) finish_streaming();
    });
    return;
  }

  const CoefficientTable<T> table(g, args.coefficients);
  if (args.mean_in == nullptr) partial_moments<T>(g, args.x, args.partials);
  parallel_tasks(g.n, g.c * g.chunks, [&](int64_t image) {
    const auto keep = [&](int64_t first, int64_t count, double mean, double var) {
      for_coefficients(args, first, count, Statistics<W>(mean, var, args.eps),
                       [&](int64_t plane, const Coefficients<W>& values) {
                         table.of_image(kCenter, 0)[plane] = values.center;
                         table.of_image(kScale, 0)[plane] = values.scale;
                         table.of_image(kShift, 0)[plane] = values.shift;
                       });
    };
    if (args.mean_in == nullptr) {
      for (int64_t i = 0, unit = image * units_of_image(g); i < units_of_image(g); ++i, ++unit)
        merge_chunks(g, args.partials + unit * g.chunks * 2 * channels);
      for_group_statistics(g, args.partials, image, [&](int64_t first, double mean, double var) {
        keep(first, g.group, mean, var);
      });
    } else {
      for (int64_t c = 0; c < g.c; ++c)
        keep(image * g.c + c, 1, at<W>(args.mean_in, image * args.mean_stride)[c],
             at<W>(args.var_in, image * args.var_stride)[c]);
    }
    table.spread(0, kRowCount, image);
  });

  const int64_t tasks = units * g.chunks;
  parallel_tasks(Order::backwards, tasks, g.chunk_pixels * channels, [&](int64_t task) {
    const int64_t unit = task / g.chunks, chunk = task % g.chunks;
    const int64_t count = chunk_count(g, chunk);
    const Apply<A, T> apply = apply_at((unit * g.pixels + chunk_begin(g, chunk)) * channels, 0);
    if (contiguous) {
      const auto row = [&](Row row) { return table.of_image(row, 0)[unit]; };
      apply_run(apply, count, Coefficients<W>{row(kCenter), row(kScale), row(kShift)});
    } else {
      const auto row = [&](auto of) {
        return Coefficients<const W*>{of(kCenter), of(kScale), of(kShift)};
      };
      apply_rows(apply, channels, count, row([&](Row row) { return table.of_image(row, unit); }),
                 row([&](Row row) { return table.of_lanes(row, unit); }));
    }
    if (args.stream) finish_streaming();
  });
}

int64_t coefficient_elements(const PlaneGrid& g) {
  return for_dtype(g.dtype, [&](auto element) {
    return CoefficientTable<decltype(element)>(g, nullptr).row_elements();
  });
}

void stats(const InstanceNormStats& args) {
  for_dtype(args.grid.dtype, [&](auto element) { stats_of<decltype(element)>(args); });
}

void forward(const InstanceNormForward& args) {
  for_dtype(args.grid.dtype, [&](auto element) {
    for_activation(args.activation, [&](auto activation) {
      using T = decltype(element);
      constexpr Activation A = decltype(activation)::value;
      forward_of<A, T>(args);
    });
  });
}

}  // namespace

void instance_norm_backward(const InstanceNormBackward& args);

const InstanceNormKernels instance_norm_kernels = {coefficient_elements, stats, forward,
                                                   instance_norm_backward};

}  // namespace stylekernels::CPU_CAPABILITY
