// Deferred-norm convolution on the CPU: from tensors to kernel arguments.

#include "norm_conv2d.h"

#include <algorithm>

#include "../registration.h"
#include "capability.h"
#include "parallel.h"

namespace stylekernels {

Activation activation_of(const std::string& name);  // instance_norm.cpp

namespace {

const NormConv2dKernels& kernels() {
  switch (capability()) {
#ifdef HAVE_AVX512
    case Capability::amx:
    case Capability::avx512:
      return avx512::norm_conv2d_kernels;
#endif
#ifdef HAVE_AVX2
    case Capability::amx_emulated:
    case Capability::avx2:
      return avx2::norm_conv2d_kernels;
#endif
    default:
      return baseline::norm_conv2d_kernels;
  }
}

// Output rows of a task: few enough to share an image out, many enough that the rows which two
// tasks both need are few beside them.
constexpr int64_t kFewestTasks = 16;
constexpr int64_t kMostRows = 16;

// Multiply-adds in about the time of one element of a pass over memory.
constexpr int64_t kMultipliesPerElement = 16;

PaddingMode padding_mode_of(const std::string& name) {
  if (name == "reflect") return PaddingMode::reflect;
  if (name == "replicate") return PaddingMode::replicate;
  STD_TORCH_CHECK(name == "zeros", "padding_mode: unknown name ", name);
  return PaddingMode::zeros;
}

int64_t floor_half(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

// The axis whose element k meets the input pixel offset(k) away, if used(k).
template <class Used, class Offset>
ConvAxis axis_of(int64_t kernel, const Used& used, const Offset& offset) {
  int64_t first = ConvAxis::kMaxKernel, last = -ConvAxis::kMaxKernel;
  for (int64_t k = 0; k < kernel; ++k) {
    if (!used(k)) continue;
    first = std::min(first, offset(k));
    last = std::max(last, offset(k));
  }
  ConvAxis axis{int(last - first + 1), int(first), {}};
  for (int64_t k = 0; k < kernel; ++k) axis.tap_of[k] = used(k) ? int(offset(k) - first) : -1;
  return axis;
}

// Fills in how the output is found from the input, once the sizes of x and the kernel are there.
void set_geometry(NormConv2d& args, const std::string& upsample, int64_t padding,
                  const std::string& padding_mode) {
  const int64_t k = args.kernel;
  const auto all = [](int64_t) { return true; };
  args.padding_mode = padding_mode_of(padding_mode);
  args.step = args.repeats = 1;
  if (upsample == "transpose") {
    args.step = 2;
    for (int64_t parity : {0, 1})
      args.axes[parity] = axis_of(
          k, [&](int64_t i) { return (parity + 1 - i) % 2 == 0; },
          [&](int64_t i) { return (parity + 1 - i) / 2; });
  } else if (upsample == "nearest" && (k <= 3 || args.padding_mode != PaddingMode::reflect)) {
    args.step = 2;
    for (int64_t parity : {0, 1})
      args.axes[parity] =
          axis_of(k, all, [&](int64_t i) { return floor_half(parity + i - k / 2); });
    // Half a pixel beyond the border of the large image is the border of the small one.
    if (args.padding_mode == PaddingMode::reflect) args.padding_mode = PaddingMode::replicate;
  } else {
    // A larger kernel reflects more than half a pixel: the large image is convolved as it is.
    if (upsample == "nearest") args.repeats = 2;
    args.axes[0] = axis_of(k, all, [&](int64_t i) { return i - padding; });
  }
  if (args.step == 2) {
    args.rows = args.h, args.columns = args.w;
  } else {
    args.rows = (args.repeats * args.h + 2 * padding - k) / args.stride + 1;
    args.columns = (args.repeats * args.w + 2 * padding - k) / args.stride + 1;
  }
  const int64_t per_task = (args.rows + kFewestTasks - 1) / kFewestTasks;
  args.band = std::max<int64_t>(1, std::min(kMostRows, per_task));
  args.bands = (args.rows + args.band - 1) / args.band;
  args.band_cost = args.band * args.columns * args.cout *
                   std::max<int64_t>(1, args.cin * k * k / kMultipliesPerElement);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_conv2d(
    Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> scale_shift,
    std::string activation, double negative_slope, std::optional<Tensor> residual,
    bool return_input, int64_t stride, int64_t padding, std::string padding_mode,
    std::string upsample, bool return_stats) {
  const Layout layout = layout_of(x);
  const ScalarType wide = wide_dtype(x);
  x = with_layout(x, layout);
  if (residual.has_value()) residual = with_layout(*residual, layout);
  const auto dense = [&](std::optional<Tensor>& tensor) {
    if (!tensor.has_value()) return;
    tensor = torch::stable::contiguous(*tensor);
    if (tensor->scalar_type() != wide) tensor = torch::stable::to(*tensor, wide);
  };
  dense(bias);
  dense(scale_shift);
  const bool transposed = upsample == "transpose";
  const int cout_dim = transposed ? 1 : 0;

  NormConv2d args{};
  args.dtype = dtype_of(x);
  args.layout = layout;
  args.n = x.size(0), args.cin = x.size(1), args.h = x.size(2), args.w = x.size(3);
  args.cout = weight.size(cout_dim);
  args.x = x.const_data_ptr();
  args.scale_shift = data(scale_shift);
  args.activation = activation_of(activation);
  args.negative_slope = negative_slope;
  args.residual = data(residual);
  args.weight = weight.const_data_ptr();
  args.weight_cout = weight.stride(cout_dim), args.weight_cin = weight.stride(1 - cout_dim);
  args.weight_row = weight.stride(2), args.weight_column = weight.stride(3);
  args.kernel = weight.size(2);
  args.bias = data(bias);
  args.stride = stride;
  set_geometry(args, upsample, padding, padding_mode);

  Tensor y = empty({args.n, args.cout, args.step * args.rows, args.step * args.columns}, x,
                   x.scalar_type(), layout);
  Tensor input = return_input ? empty_like(x, layout) : empty({0}, x, x.scalar_type());
  const std::vector<int64_t> planes =
      return_stats ? std::vector<int64_t>{args.n, args.cout} : std::vector<int64_t>{0};
  Tensor mean = empty(planes, x, wide), var = empty(planes, x, wide);
  Tensor partials = workspace(return_stats ? args.n * args.bands * 2 * args.cout : 0, x);
  Tensor panels = empty({kernels().panel_elements(args)}, x, wide);
  const int64_t workers = parallel_workers(args.n * args.bands, args.band_cost);
  Tensor rows = empty({workers * kernels().worker_elements(args)}, x, wide);
  args.input = return_input ? input.mutable_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.mean = return_stats ? mean.mutable_data_ptr() : nullptr;
  args.var = return_stats ? var.mutable_data_ptr() : nullptr;
  args.partials = static_cast<double*>(partials.mutable_data_ptr());
  args.panels = panels.mutable_data_ptr();
  args.rows_memory = rows.mutable_data_ptr();
  kernels().run(args);
  return {y, mean, var, input};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stylekernels, m) {
  m.def(
      "norm_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale_shift, str activation, "
      "float negative_slope, Tensor? residual, bool return_input, int stride, int padding, "
      "str padding_mode, str upsample, bool return_stats) "
      "-> (Tensor y, Tensor mean, Tensor var, Tensor input)");
}

STABLE_TORCH_LIBRARY_IMPL(stylekernels, CPU, m) { m.impl("norm_conv2d", TORCH_BOX(&norm_conv2d)); }

}  // namespace stylekernels
