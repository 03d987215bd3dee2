// Deferred-norm convolution on the CPU: an implicit matrix product over rows of pixels.
//
// Memory traffic and work: reads x once (twice for rows that two tasks need) and writes y once;
// Cout Cin multiply-adds per kernel element and output pixel, in the wide dtype (bfloat16: below).
//
// Parallelism: a task owns one or more bands of output rows. It keeps the input rows of its window
// in a ring buffer of rows of float32, each normalised, activated, added to the residual and padded
// once, as [column][channel]: all values that a row of the kernel reads are consecutive, whatever
// the layout of x, and need no im2col. They are multiplied with panels of the weights; the register
// block is kBlockRowsOf pixels x kPanel channels, summed over the whole kernel. The band's
// statistics are taken from the rounded output row while it is in the L1 cache.
//
// Other methods: with few output channels rows are [channel][column], and lanes are pixels. If
// transforms save multiplications, winograd.h or nested_winograd.h compute the layer. method.h
// chooses.
//
// Upsampling: the output's parities have kernels of their own over the small image: see ConvAxis.
//
// bfloat16: with AMX it is multiplied in AMX tiles: see conv_tiles.h. With AVX512-BF16, and without
// a transform, the ring's rows and the weights stay in bfloat16, and pairs of channels are
// multiplied, unless kernel elements are added up: their sums would have to be rounded.

#include "../../parallel.h"
#include "conv_tiles.h"
#include "nested_few_inputs.h"
#include "nested_few_outputs.h"
#include "winograd.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// -- the weights -----------------------------------------------------------------------------

// Packs a panel: [kernel row][kernel column][input channel, or pair of them][kPanel output
// channels], zero beyond the last output channel. planar: [kernel row][input channel][kernel
// column][output channel].
template <class T, class R>
void pack_direct_weights(const NormConv2d& a, const Geometry<T>& g, int64_t row_parity,
                         int64_t column_parity, int64_t first, R* panel) {
  const int64_t width = g.panel_channels(a);
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  std::memset(panel, 0, g.panel_elements(a, row_parity, column_parity) * sizeof(Wide<T>));
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t c = 0; c < smaller(width, a.cout - first); ++c) {
    for (int64_t i = 0; i < a.cin; ++i) {
      const T* kernel = weight + (first + c) * a.weight_cout + i * a.weight_cin;
      for (int64_t ky = 0; ky < a.kernel; ++ky) {
        for (int64_t kx = 0; kx < a.kernel; ++kx) {
          const int64_t row = rows.tap_of[ky], column = columns.tap_of[kx];
          if (row < 0 || column < 0) continue;
          const int64_t term = g.is(Method::planar) ? (row * a.cin + i) * columns.taps + column
                                                    : (row * columns.taps + column) * g.pitch + i;
          R* to = panel + term / kTermsPerLane<R> * kTermsPerLane<R> * width +
                  c * kTermsPerLane<R> + term % kTermsPerLane<R>;
          store(to, load<Wide<T>>(to) +
                        load<Wide<T>>(kernel + ky * a.weight_row + kx * a.weight_column));
        }
      }
    }
  }
}

template <class T>
void pack_weights(const NormConv2d& a, const Geometry<T>& g, int64_t row_parity,
                  int64_t column_parity, int64_t first, Wide<T>* panel) {
  if constexpr (sizeof(Wide<T>) == 4) {
    if (g.method == Method::winograd && g.side == 6)
      return pack_weights_for_winograd<6, T>(a, g, row_parity, column_parity, first, panel);
    if (g.method == Method::winograd)
      return pack_weights_for_winograd<5, T>(a, g, row_parity, column_parity, first, panel);
    if (g.method == Method::few_outputs || g.method == Method::few_inputs)
      return pack_nested_weights<T>(a, g, first, panel);
  }
  if constexpr (HAS_PAIRS && std::is_same_v<T, BFloat16>) {
    if (g.method == Method::pairs)
      return pack_direct_weights(a, g, row_parity, column_parity, first,
                                 reinterpret_cast<T*>(panel));
  }
  pack_direct_weights(a, g, row_parity, column_parity, first, panel);
}

// -- the output ------------------------------------------------------------------------------

// Computes one row of a parity of the output, kPanel channels of every pixel, rounded as it will be
// stored.
//
// Not inlined: beside the caller's variables gcc finds no registers for the weights.
template <int kVectors, class T, class R>
[[gnu::noinline]] void multiply_row(const NormConv2d& a, const Ring<T, R>& ring, int64_t o,
                                    int64_t row_parity, int64_t column_parity, const Wide<T>* panel,
                                    const Wide<T>* bias, Wide<T>* out) {
  using V = Vec<T>;
  constexpr int kCount = kVectors == 1 ? 2 * kBlockRows : kBlockRowsOf<R>;
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  const int64_t depth = columns.taps * ring.g.pitch;
  for (int64_t p = 0; p < a.columns; p += kCount) {
    int64_t offset[kCount];
    for (int r = 0; r < kCount; ++r)
      offset[r] =
          (a.stride * smaller(p + r, a.columns - 1) + columns.first - ring.g.low) * ring.g.pitch;
    V sums[kCount][kVectors];
    for (int r = 0; r < kCount; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = load<V>(bias + v * kLanes<V>);
    const R* b = reinterpret_cast<const R*>(panel);
    for (int64_t t = 0; t < rows.taps; ++t, b += depth * kPanel<V>) {
      const R* row = ring.row(a.stride * o + rows.first + t);
      const R* pixels[kCount];
      for (int r = 0; r < kCount; ++r) pixels[r] = row + offset[r];
      multiply_panel(pixels, kTermsPerLane<R>, b, depth / kTermsPerLane<R>, sums);
    }
    for (int64_t r = 0; r < smaller<int64_t>(kCount, a.columns - p); ++r)
      for (int v = 0; v < 2; ++v)
        store(out + (p + r) * kPanel<V> + v * kLanes<V>,
              v < kVectors ? rounded_to<T>(sums[r][v < kVectors ? v : 0]) : V{});
  }
}

// Computes one row from a planar ring: lanes are pixels, and nothing is multiplied for channels
// that don't exist.
//
// Not inlined: beside the caller's variables gcc finds no registers for the weights.
template <int kOutputs, class T>
[[gnu::noinline]] void multiply_planar_row(const NormConv2d& a, const Ring<T>& ring, int64_t o,
                                           const Wide<T>* weights, const Wide<T>* bias,
                                           Wide<T>* out) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int kPanelChannels = kPlanarVectors * kLanes<V>;
  const ConvAxis& axis = a.axes[0];
  for (int64_t p = 0; p < a.columns; p += kPanelChannels) {
    V sums[kOutputs][kPlanarVectors];
    for (int c = 0; c < kOutputs; ++c)
      for (int v = 0; v < kPlanarVectors; ++v) sums[c][v] = splat<V>(bias[c]);
    const W* weight = weights;
    for (int64_t t = 0; t < axis.taps; ++t) {
      const W* plane = ring.row(o + axis.first + t) + p;
      for (int64_t i = 0; i < a.cin; ++i, plane += ring.g.pitch) {
        for (int64_t k = 0; k < axis.taps; ++k, weight += kOutputs) {
          for (int v = 0; v < kPlanarVectors; ++v) {
            const V pixels = load<V>(plane + k + v * kLanes<V>);
            for (int c = 0; c < kOutputs; ++c)
              sums[c][v] = multiply_add(splat<V>(weight[c]), pixels, sums[c][v]);
          }
        }
      }
    }
    W pixels[kOutputs][kPanelChannels];
    for (int c = 0; c < kOutputs; ++c)
      for (int v = 0; v < kPlanarVectors; ++v)
        store(pixels[c] + v * kLanes<V>, rounded_to<T>(sums[c][v]));
    for (int64_t i = 0; i < smaller<int64_t>(kPanelChannels, a.columns - p); ++i)
      for (int c = 0; c < kPanel<V>; ++c)
        out[(p + i) * kPanel<V> + c] = c < kOutputs ? pixels[c < kOutputs ? c : 0][i] : W(0);
  }
}

template <class T, class R>
void multiply_planar_row(const NormConv2d& a, const Ring<T, R>& ring, int64_t o,
                         const Wide<T>* weights, const Wide<T>* bias, Wide<T>* out) {
  if constexpr (std::is_same_v<R, Wide<T>>) {
    if (a.cout == 1) return multiply_planar_row<1>(a, ring, o, weights, bias, out);
    if (a.cout == 2) return multiply_planar_row<2>(a, ring, o, weights, bias, out);
    multiply_planar_row<3>(a, ring, o, weights, bias, out);
  }
}

// Computes a band without transforms, from a ring of numbers R.
template <class T, class R>
void run_band_directly(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input, int64_t n,
                       int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kPanelChannels = kPanel<V>;
  W* values = memory + (g.span + 1) * g.row_elements;
  Ring<T, R> ring{a, input, g, n, reinterpret_cast<R*>(memory)};
  if (!g.is(Method::planar) && g.pitch != a.cin)  // a channel that a pair lacks stays zero
    std::memset(ring.memory, 0, (g.span + 1) * g.row_elements * sizeof(R));
  const W* weights = static_cast<const W*>(a.packed);
  BandStatistics statistics(a, n, band);
  const int64_t end = smaller((band + 1) * a.band, a.rows);
  for (int64_t o = band * a.band; o < end; ++o) {
    ring.advance(o);
    for (int64_t parity = 0; parity < a.parities * a.parities; ++parity) {
      const int64_t row_parity = parity / a.parities, column_parity = parity % a.parities;
      for (int64_t first = 0; first < a.cout; first += kPanelChannels) {
        const int64_t channels = smaller(kPanelChannels, a.cout - first);
        W bias[kPanelChannels];
        read_bias(a, first, bias);
        const W* panel =
            weights + g.panel_begin(a, row_parity, column_parity, first / kPanelChannels);
        if (g.is(Method::planar))
          multiply_planar_row(a, ring, o, panel, bias, values);
        else if (channels <= kLanes<V>)
          multiply_row<1>(a, ring, o, row_parity, column_parity, panel, bias, values);
        else
          multiply_row<2>(a, ring, o, row_parity, column_parity, panel, bias, values);
        write_row<T>(a, n, a.parities * o + row_parity, column_parity, a.columns, first, values);
        if (a.wants_statistics()) statistics.add(values, a.columns, first);
      }
      statistics.counted += double(a.columns);
    }
  }
}

template <class T>
void run_band(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input, int64_t n,
              int64_t band, Wide<T>* memory) {
  if constexpr (sizeof(Wide<T>) == 4) {
    if (g.method == Method::winograd && g.side == 6)
      return run_band_by_winograd<6, T>(a, g, input, n, band, memory);
    if (g.method == Method::winograd)
      return run_band_by_winograd<5, T>(a, g, input, n, band, memory);
    if (g.method == Method::few_outputs)
      return run_band_of_few_outputs<T>(a, g, input, n, band, memory);
    if (g.method == Method::few_inputs)
      return run_band_of_few_inputs<T>(a, g, input, n, band, memory);
  }
  if constexpr (HAS_PAIRS && std::is_same_v<T, BFloat16>) {
    if (g.method == Method::pairs) return run_band_directly<T, T>(a, g, input, n, band, memory);
  }
  run_band_directly<T, Wide<T>>(a, g, input, n, band, memory);
}

// Computes bands [first, last) of image n.
template <class T>
void run_bands(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input, int64_t n,
               int64_t first, int64_t last, Wide<T>* memory) {
  for (int64_t band = first; band < last; ++band) run_band(a, g, input, n, band, memory);
}

// -- the op ----------------------------------------------------------------------------------

// Geometry of an element type, which chooses between overloads of run_bands and pack_panels.
template <class T>
struct GeometryOf {
  using Type = Geometry<T>;
};
#if HAS_TILES
template <>
struct GeometryOf<BFloat16> {
  using Type = TileGeometry;
};
#endif

// Writes the input of the convolution, run by run: a plane or a pixel of x.
template <class T>
void write_input(const NormConv2d& a, const Input<T>& input) {
  const bool contiguous = a.layout == Layout::contiguous;
  const int64_t run = contiguous ? a.h * a.w : a.cin;
  const int64_t runs = run == 0 ? 0 : a.n * a.cin * a.h * a.w / run;
  for_activation(input.activation, [&](auto activation) {
    parallel_small_tasks(runs, run, [&](int64_t i) {
      const int64_t channel = contiguous ? i : i / (a.h * a.w) * a.cin;
      read_run<decltype(activation)::value>(input, i * run, run, channel, contiguous ? 0 : 1,
                                            static_cast<T*>(a.input) + i * run);
    });
  });
}

template <class T>
void run_of(const NormConv2d& a) {
  using W = Wide<T>;
  const typename GeometryOf<T>::Type g(a);
  Input<T> input{a.bytes_in ? nullptr : static_cast<const T*>(a.x),
                 a.bytes_in ? static_cast<const uint8_t*>(a.x) : nullptr,
                 static_cast<const T*>(a.residual),
                 nullptr,
                 nullptr,
                 a.activation,
                 coefficient<W>(a.negative_slope)};
  if (a.scale_shift != nullptr) {
    W *scale = static_cast<W*>(a.coefficients), *shift = scale + a.n * a.cin;
    for (int64_t i = 0; i < a.n * a.cin; ++i) {
      scale[i] = coefficient<W>(static_cast<const W*>(a.scale_shift)[2 * i]);
      shift[i] = coefficient<W>(static_cast<const W*>(a.scale_shift)[2 * i + 1]);
    }
    input.scale = scale, input.shift = shift;
  }
  const bool is_empty = a.cout * a.rows * a.columns == 0;
  if (a.input != nullptr && (is_empty || !g.writes_input(a))) {
    write_input(a, input);
    input = {};
    input.x = static_cast<const T*>(a.input);
  }

  if (is_empty) return;

  const int64_t cost =
      a.n * a.bands * a.band_cost / (a.tasks > 0 ? a.tasks : 1);  // time of a task, in elements
  parallel_tasks(a.tasks, cost, [&](int64_t task, int64_t worker) {
    const int64_t n = a.task_begins[task] / a.bands, first = n * a.bands;
    run_bands(a, g, input, n, a.task_begins[task] - first, a.task_begins[task + 1] - first,
              static_cast<W*>(a.rows_memory) + worker * g.worker_elements(a));
  });
  if (a.wants_statistics())
    parallel_tasks(a.n, a.bands * a.cout, [&](int64_t n) { finish_statistics<T>(a, n); });
}

template <class T>
void pack_panels(const NormConv2d& a, const Geometry<T>& g) {
  Wide<T>* packed = static_cast<Wide<T>*>(a.packed);
  const int64_t parities = a.parities * a.parities;
  parallel_tasks(parities * g.panels, g.panel_elements(a, 0, 0), [&](int64_t task) {
    const int64_t parity = task / g.panels, panel = task % g.panels;
    const int64_t row = parity / a.parities, column = parity % a.parities;
    pack_weights<T>(a, g, row, column, panel * g.kPanelChannels,
                    packed + g.panel_begin(a, row, column, panel));
  });
}

template <class F>
auto for_geometry(const NormConv2d& a, const F& f) {
  return for_dtype(
      a.dtype, [&](auto element) { return f(typename GeometryOf<decltype(element)>::Type(a)); });
}

int64_t packed_elements(const NormConv2d& a) {
  return for_geometry(a, [&](const auto& g) { return g.packed_elements(a); });
}

void pack(const NormConv2d& a) {
  for_geometry(a, [&](const auto& g) {
    if (g.packed_elements(a) > 0) pack_panels(a, g);  // else there is no memory: no output channels
  });
}

int64_t worker_elements(const NormConv2d& a) {
  return for_geometry(a, [&](const auto& g) { return g.worker_elements(a); });
}

void run(const NormConv2d& args) {
  for_dtype(args.dtype, [&](auto element) { run_of<decltype(element)>(args); });
}

}  // namespace

const NormConv2dKernels norm_conv2d_kernels = {packed_elements, pack, worker_elements, run};

}  // namespace stylekernels::CPU_CAPABILITY
