// Instance norm on the CPU, forward and backward.
//
// Reads and writes, in images: forward 2 reads and 1 write (the second read comes from a cache
// when a plane fits there), backward 4 reads and 1 write. At about two operations per byte both
// are bound by memory. contiguous: a thread owns a plane, or a chunk of one where planes are few
// and large. channels_last: a thread owns a chunk of pixels with all their channels. The second
// pass goes backwards through the chunks, because what was read last is still in the caches.
//
// y = scale * (x - center) + shift, where center is the mean rounded to float32 and its rounding
// error is part of the shift: exact also where the mean is large against the deviation.

#include "../parallel.h"
#include "planes.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// -- statistics ------------------------------------------------------------------------------

// Moments of one chunk of channels_last pixels: mean and m2 of every channel.
template <class T>
void chunk_moments(const T* x, int64_t channels, int64_t pixels, double* mean, double* m2) {
  using V = Vec<T>;
  const int64_t repeat = pixels_per_row<V>(channels);
  const int64_t rows = pixels / repeat, width = repeat * channels;
  double count[kFewChannels];  // pixels merged so far; needed only where rows hold several
  for (int64_t j = 0; j < channels; ++j) mean[j] = m2[j] = 0;
  for (int64_t j = 0; j < smaller(channels, kFewChannels); ++j) count[j] = 0;
  const auto merge = [&](int64_t channel, double n, double part_mean, double part_m2) {
    Moments moments{count[channel], mean[channel], m2[channel]};
    moments.merge(n, part_mean, part_m2);
    count[channel] = moments.count, mean[channel] = moments.mean, m2[channel] = moments.m2;
  };
  if (rows > 0) {
    for_row_groups<V>(width, [&](auto lane, auto vectors, int64_t offset) {
      using U = decltype(lane);
      constexpr int kVectors = decltype(vectors)::value, kWidth = kVectors * kLanes<U>;
      if (repeat == 1) {
        add_moments<U, kVectors>(x + offset, width, rows, mean + offset, m2 + offset);
        return;
      }
      double part_mean[kWidth] = {}, part_m2[kWidth] = {};
      add_moments<U, kVectors>(x + offset, width, rows, part_mean, part_m2);
      for (int j = 0; j < kWidth; ++j)
        merge((offset + j) % channels, double(rows), part_mean[j], part_m2[j]);
    });
  }
  for (int64_t p = rows * repeat; p < pixels; ++p)
    for (int64_t j = 0; j < channels; ++j)
      merge(j, 1, double(load<Wide<T>>(x + p * channels + j)), 0);
}

template <class T>
void partial_moments(const PlaneGrid& g, const void* x, double* partials) {
  if (g.layout == Layout::contiguous) {
    parallel_tasks(g.n * g.c * g.chunks, g.chunk_pixels, [&](int64_t task) {
      const int64_t plane = task / g.chunks, chunk = task % g.chunks;
      const T* p = at<T>(x, plane * g.pixels + chunk_begin(g, chunk));
      const Moments moments = moments_of_run<Vec<T>>(p, chunk_count(g, chunk));
      partials[task * 2] = moments.mean;
      partials[task * 2 + 1] = moments.m2;
    });
  } else {
    parallel_tasks(g.n * g.chunks, g.chunk_pixels * g.c, [&](int64_t task) {
      const int64_t image = task / g.chunks, chunk = task % g.chunks;
      double* mean = partials + task * 2 * g.c;
      chunk_moments(at<T>(x, (image * g.pixels + chunk_begin(g, chunk)) * g.c), g.c,
                    chunk_count(g, chunk), mean, mean + g.c);
    });
  }
}

// Merges the partial moments of channel c of image n, in the order of the chunks.
Moments merged_moments(const PlaneGrid& g, const double* partials, int64_t n, int64_t c) {
  const bool contiguous = g.layout == Layout::contiguous;
  const double* first =
      partials + (contiguous ? (n * g.c + c) * g.chunks * 2 : n * g.chunks * 2 * g.c + c);
  const int64_t step = contiguous ? 2 : 2 * g.c, to_m2 = contiguous ? 1 : g.c;
  Moments moments;
  for (int64_t chunk = 0; chunk < g.chunks; ++chunk)
    moments.merge(double(chunk_count(g, chunk)), first[chunk * step], first[chunk * step + to_m2]);
  return moments;
}

template <class T>
void stats_of(const InstanceNormStats& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  partial_moments<T>(g, args.x, args.partials);
  parallel_tasks(g.n, g.c * g.chunks, [&](int64_t n) {
    for (int64_t c = 0; c < g.c; ++c) {
      const Moments moments = merged_moments(g, args.partials, n, c);
      const W mean = W(moments.mean);
      at<W>(args.mean, n * g.c)[c] = mean;
      if (args.mean_error) at<W>(args.mean_error, n * g.c)[c] = W(moments.mean - double(mean));
      at<W>(args.var, n * g.c)[c] = W(moments.m2 / double(g.pixels));
    }
  });
}

// -- forward ---------------------------------------------------------------------------------

template <class W>
struct Coefficients {
  W *center, *scale, *shift;  // (N, C) each
};

template <class W>
void set_coefficients(const InstanceNormForward& args, int64_t n, int64_t c, double mean,
                      double var, const Coefficients<W>& out) {
  const int64_t plane = n * args.grid.c + c;
  const double rstd = 1.0 / std::sqrt(var + args.eps);
  const double weight = args.weight ? at<W>(args.weight, n * args.weight_stride)[c] : 1;
  const double bias = args.bias ? at<W>(args.bias, n * args.bias_stride)[c] : 0;
  const W center = W(mean);
  const double error = mean - double(center);
  at<W>(args.mean, plane)[0] = center;
  at<W>(args.mean, plane + args.grid.n * args.grid.c)[0] = W(error);
  at<W>(args.rstd, plane)[0] = W(rstd);
  out.center[plane] = center;
  out.scale[plane] = W(weight * rstd);
  out.shift[plane] = W(bias - error * weight * rstd);
}

// Where the residual is added, and how results are written, are branches inside the loops: always
// taken the same way, they cost nothing beside the memory traffic, and a quarter of the code.
template <Activation A, class T>
struct Apply {
  const T *x, *residual;
  T* y;
  Wide<T> negative_slope;
  bool residual_first, past_caches;

  template <class V>
  inline V value(int64_t i, V center, V scale, V shift) const {
    const V z = multiply_add(load<V>(x + i) - center, scale, shift);
    if (residual == nullptr) return activate<A>(z, negative_slope);
    const V r = load<V>(residual + i);
    return residual_first ? activate<A>(z + r, negative_slope) : activate<A>(z, negative_slope) + r;
  }
};

// One plane, or a chunk of it.
template <Activation A, class T>
void apply_run(const Apply<A, T>& arguments, int64_t count, Wide<T> center, Wide<T> scale,
               Wide<T> shift) {
  using V = Vec<T>;
  const Apply<A, T> apply = arguments;  // a copy that nothing written can alias
  const auto value = [&](auto lane, int64_t i) {
    using U = decltype(lane);
    return apply.value(i, splat<U>(center), splat<U>(scale), splat<U>(shift));
  };
  int64_t i = 0;
  if (apply.past_caches)  // up to the first address a streaming store accepts
    for (; i < count && !aligned_for_pair<V>(apply.y + i); ++i)
      store(apply.y + i, value(Wide<T>{}, i));
  for (; i + 2 * kLanes<V> <= count; i += 2 * kLanes<V>)
    store_pair(apply.y + i, value(V{}, i), value(V{}, i + kLanes<V>), apply.past_caches);
  for (; i < count; ++i) store(apply.y + i, value(Wide<T>{}, i));
}

// Pixels of channels_last images.
template <Activation A, class T>
void apply_rows(const Apply<A, T>& arguments, int64_t channels, int64_t pixels,
                const Wide<T>* center, const Wide<T>* scale, const Wide<T>* shift) {
  using V = Vec<T>;
  const Apply<A, T> apply = arguments;
  const int64_t repeat = pixels_per_row<V>(channels), width = repeat * channels;
  Wide<T> repeated[3][kWidestRow];
  if (repeat > 1) {
    for (int64_t j = 0; j < width; ++j) {
      repeated[0][j] = center[j % channels];
      repeated[1][j] = scale[j % channels];
      repeated[2][j] = shift[j % channels];
    }
    center = repeated[0], scale = repeated[1], shift = repeated[2];
  }
  const auto value = [&](auto lane, int64_t i, int64_t j) {
    using U = decltype(lane);
    return apply.value(i, load<U>(center + j), load<U>(scale + j), load<U>(shift + j));
  };
  const int64_t end = pixels * channels;
  for (int64_t i = 0; i < end; i += width) {
    const int64_t count = smaller(width, end - i);
    int64_t j = 0;
    for (; j + 2 * kLanes<V> <= count; j += 2 * kLanes<V>)
      store_pair(apply.y + i + j, value(V{}, i + j, j),
                 value(V{}, i + j + kLanes<V>, j + kLanes<V>), apply.past_caches);
    for (; j < count; ++j) store(apply.y + i + j, value(Wide<T>{}, i + j, j));
  }
}

template <Activation A, class T>
void apply_chunk(const InstanceNormForward& args, int64_t block, int64_t chunk) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const int64_t planes = g.n * g.c;
  const W* coefficients = at<W>(args.coefficients, 0);
  const int64_t count = chunk_count(g, chunk);
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t first = (block * g.pixels + chunk_begin(g, chunk)) * (contiguous ? 1 : g.c);
  const Apply<A, T> apply{at<T>(args.x, first),   at<T>(args.residual, first), at<T>(args.y, first),
                          W(args.negative_slope), args.residual_first,         args.stream};
  if (contiguous) {
    apply_run(apply, count, coefficients[block], coefficients[planes + block],
              coefficients[2 * planes + block]);
  } else {
    const W* center = coefficients + block * g.c;
    apply_rows(apply, g.c, count, center, center + planes, center + 2 * planes);
  }
  if (args.stream) finish_streaming();
}

template <Activation A, class T>
void forward_of(const InstanceNormForward& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const int64_t planes = g.n * g.c;
  W* coefficients = at<W>(args.coefficients, 0);
  const Coefficients<W> out{coefficients, coefficients + planes, coefficients + 2 * planes};
  const auto variance = [&](const Moments& m) { return m.m2 / double(g.pixels); };
  const bool contiguous = g.layout == Layout::contiguous;

  if (contiguous && g.chunks == 1 && args.mean_in == nullptr) {  // plane by plane, in cache
    parallel_tasks(planes, g.pixels, [&](int64_t plane) {
      const Moments m = moments_of_run<Vec<T>>(at<T>(args.x, plane * g.pixels), g.pixels);
      set_coefficients(args, plane / g.c, plane % g.c, m.mean, variance(m), out);
      apply_chunk<A, T>(args, plane, 0);
    });
    return;
  }
  if (args.mean_in == nullptr) partial_moments<T>(g, args.x, args.partials);
  for (int64_t n = 0; n < g.n; ++n) {
    for (int64_t c = 0; c < g.c; ++c) {
      if (args.mean_in != nullptr) {
        const double mean = at<W>(args.mean_in, n * args.mean_stride)[c];
        set_coefficients(args, n, c, mean, double(at<W>(args.var_in, n * args.var_stride)[c]), out);
      } else {
        const Moments m = merged_moments(g, args.partials, n, c);
        set_coefficients(args, n, c, m.mean, variance(m), out);
      }
    }
  }
  const int64_t tasks = (contiguous ? planes : g.n) * g.chunks;
  parallel_tasks(tasks, g.chunk_pixels * (contiguous ? 1 : g.c), [&](int64_t task) {
    const int64_t last = tasks - 1 - task;
    apply_chunk<A, T>(args, last / g.chunks, last % g.chunks);
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

const InstanceNormKernels instance_norm_kernels = {stats, forward, instance_norm_backward};

}  // namespace stylekernels::CPU_CAPABILITY
