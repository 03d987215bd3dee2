// The backward pass of instance norm, see instance_norm.cpp.
//
// With d = x - mean, z = scale * d + bias (+ residual) and g = grad * activation'(z), all
// recomputed from x: first sum(g) and sum(g d) over every plane, then
//   grad_x = scale * (g - sum(g) / P - d * rstd^2 * sum(g d) / P),   P pixels per plane.
// The pixels meet the rounded mean; its rounding error is carried by bias, sum and offset.

#include "../parallel.h"
#include "planes.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// Per plane: z = scale * (x - mean) + bias, and grad_x = scale * g + slope * (x - mean) + offset.
enum Row { kMean, kScale, kBias, kSlope, kOffset, kRows };

// Gives the gradient before the activation, and d, at element i of the tensors and column j of
// the coefficients.
template <Activation A, class T>
struct Terms {
  const T *grad, *x, *residual;
  const Wide<T>* rows[kRows];
  Wide<T> negative_slope;

  template <class V>
  void operator()(V mean, V scale, V bias, int64_t i, V& g, V& d) const {
    g = load<V>(grad + i);
    d = load<V>(x + i) - mean;
    if constexpr (A != Activation::none) {
      V z = multiply_add(d, scale, bias);
      if (residual != nullptr) z += load<V>(residual + i);
      g = activation_gradient<A>(g, z, negative_slope);
    }
  }
};

// Adds g and g d of `pixels` pixels of kVectors vectors, `stride` apart, to double sums.
template <class V, int kVectors, class T, Activation A>
void add_sums(const Terms<A, T>& terms, int64_t first, int64_t column, int64_t column_step,
              int64_t stride, int64_t pixels, double* sum_g, double* sum_gd) {
  using W = ElementOf<V>;
  constexpr int kWidth = kVectors * kLanes<V>;
  W lanes[2][kWidth];
  V mean[kVectors], scale[kVectors], bias[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const auto row = [&](Row r) {
      if (column_step == 0) return splat<V>(terms.rows[r][column]);
      return load<V>(terms.rows[r] + column + v * kLanes<V>);
    };
    mean[v] = row(kMean), scale[v] = row(kScale), bias[v] = row(kBias);
  }
  for (int64_t begin = 0; begin < pixels; begin += kBlock) {
    const int64_t end = smaller(begin + kBlock, pixels);
    V part_g[kVectors] = {}, part_gd[kVectors] = {};
    for (int64_t run = begin; run < end; run += kRun) {
      V run_g[kVectors] = {}, run_gd[kVectors] = {};
      for (int64_t p = run; p < smaller(run + kRun, end); ++p) {
        for (int v = 0; v < kVectors; ++v) {
          V g, d;
          terms(mean[v], scale[v], bias[v], first + p * stride + v * kLanes<V>, g, d);
          run_g[v] += g;
          run_gd[v] = multiply_add(g, d, run_gd[v]);
        }
      }
      for (int v = 0; v < kVectors; ++v) part_g[v] += run_g[v], part_gd[v] += run_gd[v];
    }
    for (int v = 0; v < kVectors; ++v) {
      store(lanes[0] + v * kLanes<V>, part_g[v]);
      store(lanes[1] + v * kLanes<V>, part_gd[v]);
    }
    for (int j = 0; j < kWidth; ++j) {
      sum_g[j] += double(lanes[0][j]);
      sum_gd[j] += double(lanes[1][j]);
    }
  }
}

template <Activation A, class T>
void sum_run(const Terms<A, T>& terms, int64_t first, int64_t column, int64_t count, double* sums) {
  using V = Vec<T>;
  constexpr int kVectors = 2, kWidth = kVectors * kLanes<V>;
  double sum_g[kWidth] = {}, sum_gd[kWidth] = {};
  const int64_t steps = count / kWidth, done = steps * kWidth;
  add_sums<V, kVectors>(terms, first, column, 0, kWidth, steps, sum_g, sum_gd);
  add_sums<Wide<T>, 1>(terms, first + done, column, 0, 1, count - done, sum_g, sum_gd);
  sums[0] = sums[1] = 0;
  for (int j = 0; j < kWidth; ++j) sums[0] += sum_g[j], sums[1] += sum_gd[j];
}

template <Activation A, class T>
void sum_rows(const Terms<A, T>& terms, int64_t first, int64_t column, int64_t channels,
              int64_t pixels, double* sum_g, double* sum_gd) {
  using V = Vec<T>;
  const int64_t repeat = pixels_per_row<V>(channels);
  const int64_t rows = pixels / repeat, width = repeat * channels;
  for (int64_t j = 0; j < channels; ++j) sum_g[j] = sum_gd[j] = 0;
  Terms<A, T> wide = terms;
  Wide<T> repeated[3][kWidestRow];
  for (int r = 0; r < 3; ++r) {
    wide.rows[r] = terms.rows[r] + column;
    if (repeat == 1) continue;
    for (int64_t j = 0; j < width; ++j) repeated[r][j] = wide.rows[r][j % channels];
    wide.rows[r] = repeated[r];
  }
  for_row_groups<V>(width, [&](auto lane, auto vectors, int64_t offset) {
    using U = decltype(lane);
    constexpr int kVectors = decltype(vectors)::value, kWidth = kVectors * kLanes<U>;
    double part[2][kWidth] = {};
    add_sums<U, kVectors>(wide, first + offset, offset, 1, width, rows, part[0], part[1]);
    for (int j = 0; j < kWidth; ++j) {
      sum_g[(offset + j) % channels] += part[0][j];
      sum_gd[(offset + j) % channels] += part[1][j];
    }
  });
  for (int64_t p = rows * repeat; p < pixels; ++p)
    for (int64_t j = 0; j < channels; ++j)
      add_sums<Wide<T>, 1>(wide, first + p * channels + j, j, 0, 1, 1, sum_g + j, sum_gd + j);
}

template <Activation A, class T>
struct Writer {
  Terms<A, T> terms;
  T *grad_x, *grad_residual;
  bool past_caches;
  bool own_stats;

  template <class V>
  struct Values {
    V grad_x, grad_residual;
  };

  template <class V>
  inline Values<V> values(int64_t i, const V (&row)[kRows]) const {
    V g, d;
    terms(row[kMean], row[kScale], row[kBias], i, g, d);
    if (!own_stats) return {g * row[kScale], g};  // not 0 * d: d may be NaN or infinite
    return {multiply_add(g, row[kScale], multiply_add(d, row[kSlope], row[kOffset])), g};
  }

  template <class V>
  inline void write(int64_t i, Values<V> v) const {
    store(grad_x + i, v.grad_x);
    if (grad_residual != nullptr) store(grad_residual + i, v.grad_residual);
  }

  template <class V>
  inline void write_pair(int64_t i, Values<V> a, Values<V> b) const {
    store_pair(grad_x + i, a.grad_x, b.grad_x, past_caches);
    if (grad_residual != nullptr)
      store_pair(grad_residual + i, a.grad_residual, b.grad_residual, past_caches);
  }
};

template <Activation A, class T>
void write_run(const Writer<A, T>& arguments, int64_t first, int64_t column, int64_t count) {
  using V = Vec<T>;
  const Writer<A, T> writer = arguments;  // a copy that nothing written can alias
  const auto values = [&](auto lane, int64_t i) {
    using U = decltype(lane);
    U row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = splat<U>(writer.terms.rows[r][column]);
    return writer.values(i, row);
  };
  int64_t i = first;
  const int64_t end = first + count;
  if (writer.past_caches)
    for (; i < end && !aligned_for_pair<V>(writer.grad_x + i); ++i)
      writer.write(i, values(Wide<T>{}, i));
  for (; i + 2 * kLanes<V> <= end; i += 2 * kLanes<V>)
    writer.write_pair(i, values(V{}, i), values(V{}, i + kLanes<V>));
  for (; i < end; ++i) writer.write(i, values(Wide<T>{}, i));
}

template <Activation A, class T>
void write_rows(const Writer<A, T>& arguments, int64_t first, int64_t column, int64_t channels,
                int64_t pixels) {
  using V = Vec<T>;
  const Writer<A, T> writer = arguments;
  const int64_t repeat = pixels_per_row<V>(channels), width = repeat * channels;
  Wide<T> repeated[kRows][kWidestRow];
  const Wide<T>* columns[kRows];
  for (int r = 0; r < kRows; ++r) {
    columns[r] = writer.terms.rows[r] + column;
    if (repeat == 1) continue;
    for (int64_t j = 0; j < width; ++j) repeated[r][j] = columns[r][j % channels];
    columns[r] = repeated[r];
  }
  const auto values = [&](auto lane, int64_t i, int64_t j) {
    using U = decltype(lane);
    U row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = load<U>(columns[r] + j);
    return writer.values(i, row);
  };
  const int64_t end = first + pixels * channels;
  for (int64_t i = first; i < end; i += width) {
    const int64_t count = smaller(width, end - i);
    int64_t j = 0;
    for (; j + 2 * kLanes<V> <= count; j += 2 * kLanes<V>)
      writer.write_pair(i + j, values(V{}, i + j, j),
                        values(V{}, i + j + kLanes<V>, j + kLanes<V>));
    for (; j < count; ++j) writer.write(i + j, values(Wide<T>{}, i + j, j));
  }
}

template <Activation A, class T>
void backward_of(const InstanceNormBackward& args) {
  using W = Wide<T>;
  const PlaneGrid& g = args.grid;
  const int64_t planes = g.n * g.c;
  const bool contiguous = g.layout == Layout::contiguous;
  W* rows = at<W>(args.coefficients, 0);
  Writer<A, T> writer{
      {at<T>(args.grad, 0), at<T>(args.x, 0), at<T>(args.residual, 0), {}, W(args.negative_slope)},
      at<T>(args.grad_x, 0),
      at<T>(args.grad_residual, 0),
      args.stream,
      args.own_stats};
  Terms<A, T>& terms = writer.terms;
  for (int r = 0; r < kRows; ++r) terms.rows[r] = rows + r * planes;

  const W *mean = at<W>(args.mean, 0), *mean_error = mean + planes;
  for (int64_t n = 0; n < g.n; ++n) {
    for (int64_t c = 0; c < g.c; ++c) {
      const int64_t plane = n * g.c + c;
      const double weight = args.weight ? at<W>(args.weight, n * args.weight_stride)[c] : 1;
      const double bias = args.bias ? at<W>(args.bias, n * args.bias_stride)[c] : 0;
      const double scale = weight * double(at<W>(args.rstd, plane)[0]);
      rows[kMean * planes + plane] = mean[plane];
      rows[kScale * planes + plane] = W(scale);
      rows[kBias * planes + plane] = W(bias - scale * double(mean_error[plane]));
    }
  }

  const auto finish_plane = [&](int64_t plane, double sum_g, double sum_gd) {
    const double rstd = double(at<W>(args.rstd, plane)[0]);
    const double scale = double(rows[kScale * planes + plane]);
    const double share = scale / double(g.pixels);
    const double error = double(mean_error[plane]);
    sum_gd -= error * sum_g;
    const double slope = -share * rstd * rstd * sum_gd;
    rows[kSlope * planes + plane] = W(slope);
    rows[kOffset * planes + plane] = W(-share * sum_g - slope * error);
    at<W>(args.sum_grad, plane)[0] = W(sum_g);
    at<W>(args.sum_grad_normalized, plane)[0] = W(sum_gd * rstd);
  };

  if (contiguous && g.chunks == 1) {  // plane by plane, in cache
    parallel_tasks(planes, g.pixels, [&](int64_t plane) {
      double sums[2];
      sum_run(terms, plane * g.pixels, plane, g.pixels, sums);
      finish_plane(plane, sums[0], sums[1]);
      write_run(writer, plane * g.pixels, plane, g.pixels);
      if (args.stream) finish_streaming();
    });
    return;
  }

  const int64_t blocks = contiguous ? planes : g.n, tasks = blocks * g.chunks;
  parallel_tasks(tasks, g.chunk_pixels * (contiguous ? 1 : g.c), [&](int64_t task) {
    const int64_t block = task / g.chunks, chunk = task % g.chunks;
    const int64_t pixel = block * g.pixels + chunk_begin(g, chunk);
    if (contiguous) {
      sum_run(terms, pixel, block, chunk_count(g, chunk), args.partials + task * 2);
    } else {
      double* sum_g = args.partials + task * 2 * g.c;
      sum_rows(terms, pixel * g.c, block * g.c, g.c, chunk_count(g, chunk), sum_g, sum_g + g.c);
    }
  });
  const int64_t per_block = contiguous ? 1 : g.c;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const double* part =
        args.partials + plane / per_block * g.chunks * 2 * per_block + plane % per_block;
    double sum_g = 0, sum_gd = 0;
    for (int64_t chunk = 0; chunk < g.chunks; ++chunk, part += 2 * per_block)
      sum_g += part[0], sum_gd += part[per_block];
    finish_plane(plane, sum_g, sum_gd);
  }
  parallel_tasks(tasks, g.chunk_pixels * (contiguous ? 1 : g.c), [&](int64_t task) {
    const int64_t last = tasks - 1 - task, block = last / g.chunks, chunk = last % g.chunks;
    const int64_t pixel = block * g.pixels + chunk_begin(g, chunk);
    if (contiguous)
      write_run(writer, pixel, block, chunk_count(g, chunk));
    else
      write_rows(writer, pixel * g.c, block * g.c, g.c, chunk_count(g, chunk));
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
