// Deferred-norm convolution on the CPU: from tensors to kernel arguments.

#include "norm_conv2d.h"

#include <algorithm>
#include <vector>

#include "../tensors.h"
#include "capability.h"
#include "parallel.h"

namespace stylekernels {

namespace {

const NormConv2dKernels& kernels() {
  switch (capability()) {
#ifdef HAVE_AVX2
    case Capability::avx2:
      return avx2::norm_conv2d_kernels;
#endif
#ifdef HAVE_AVX512_BF16
    case Capability::avx512_bf16:
      return avx512_bf16::norm_conv2d_kernels;
#endif
#ifdef HAVE_AVX512
    case Capability::avx512:
      return avx512::norm_conv2d_kernels;
#endif
#ifdef HAVE_AMX
    case Capability::amx:
      return amx::norm_conv2d_kernels;
#endif
#ifdef HAVE_AMX_EMULATED
    case Capability::amx_emulated:
      return amx_emulated::norm_conv2d_kernels;
#endif
#ifdef HAVE_AMX_EMULATED_AVX512
    case Capability::amx_emulated_avx512:
      return amx_emulated_avx512::norm_conv2d_kernels;
#endif
    default:
      return baseline::norm_conv2d_kernels;
  }
}

// Rows of a band. Short bands share out an image; tall ones reread fewer input rows.
constexpr int64_t kFewestBands = 16;
constexpr int64_t kMostRows = 16;
constexpr int64_t kRowMultiple = 4;  // rows of a Winograd tile
// Large kernels: a nested Winograd tile has three rows, a register block on AMX two.
constexpr int64_t kMostRowsOfLarge = 48, kRowMultipleOfLarge = 6;

// Multiply-adds that take about the time of one element of a pass over memory.
constexpr int64_t kMultipliesPerElement = 16;

std::optional<Tensor> dense(const std::optional<Tensor>& x, ScalarType dtype) {
  if (!x.has_value()) return x;
  const Tensor packed = torch::stable::contiguous(*x);
  return packed.scalar_type() == dtype ? packed : torch::stable::to(packed, dtype);
}

// Builds the mode from the arguments of the op.
ConvMode mode_of(int64_t stride, int64_t padding, const std::string& padding_mode,
                 const std::string& upsample) {
  return {stride, padding, padding_mode_of(padding_mode), upsample_of(upsample)};
}

// Checks for a kernel that the mode takes, and for known strides and padding.
void check_mode(const Tensor& weight, const ConvMode& mode) {
  check_rank(weight, "weight", 4, 4);
  const int64_t k = weight.size(2);
  const bool transposed = mode.upsample == Upsample::transpose;
  const bool nearest = mode.upsample == Upsample::nearest;
  const bool known = transposed ? k == 3 || k == 4 : nearest ? k >= 3 && k % 2 == 1 : k >= 1;
  STD_TORCH_CHECK(k == weight.size(3) && known && k <= ConvAxis::kMaxKernel,
                  "weight: expected a square kernel that upsample takes, got ",
                  text_of(shape_of(weight)));
  STD_TORCH_CHECK(mode.stride == 1 || (mode.stride == 2 && mode.upsample == Upsample::none),
                  "stride: expected 1, or 2 without upsampling, got ", mode.stride);
  STD_TORCH_CHECK(transposed ? mode.padding == 0
                  : nearest  ? mode.padding == k / 2
                             : mode.padding >= 0,
                  "padding: expected 0 or more, k / 2 for nearest and 0 for transpose, got ",
                  mode.padding);
}

// Returns the arguments that the packed weights depend on.
NormConv2d weights_of(const Tensor& weight, const ConvMode& mode) {
  check_mode(weight, mode);
  const int cout_dim = mode.upsample == Upsample::transpose ? 1 : 0;
  NormConv2d args{};
  static_cast<ConvGeometry&>(args) = conv_geometry(weight.size(2), mode);
  args.dtype = dtype_of(weight);
  args.cout = weight.size(cout_dim), args.cin = weight.size(1 - cout_dim);
  args.weight = weight.const_data_ptr();
  args.weight_cout = weight.stride(cout_dim), args.weight_cin = weight.stride(1 - cout_dim);
  args.weight_row = weight.stride(2), args.weight_column = weight.stride(3);
  return args;
}

// Sets the sizes of image and output.
void set_image(NormConv2d& args, int64_t n, int64_t h, int64_t w, const ConvMode& mode) {
  STD_TORCH_CHECK(n >= 0 && std::min(h, w) >= smallest_side(args.kernel, mode),
                  "x: too small for this kernel and padding, got ", text_of({n, args.cin, h, w}));
  args.n = n, args.h = h, args.w = w;
  args.rows = output_side(h, args, mode.padding);
  args.columns = output_side(w, args, mode.padding);
}

// Sets the division into bands.
void set_bands(NormConv2d& args) {
  const int64_t per_band = (args.rows + kFewestBands - 1) / kFewestBands;
  const bool large = args.kernel >= kLargeKernel && args.stride == 1 && args.parities == 1;
  const int64_t multiple = large ? kRowMultipleOfLarge : kRowMultiple;
  const int64_t rows = std::min(large ? kMostRowsOfLarge : kMostRows, per_band);
  args.band = std::max(multiple, (rows + multiple - 1) / multiple * multiple);
  args.bands = (args.rows + args.band - 1) / args.band;
  args.band_cost =
      args.band * args.columns * args.cout *
      std::max<int64_t>(1, args.cin * args.kernel * args.kernel / kMultipliesPerElement);
}

// Scratch memory of a call: sizes of its parts, in doubles.
struct Workspace {
  int64_t partials, coefficients, rows;

  Workspace(const NormConv2d& args, bool wants_statistics) {
    const int64_t workers = parallel_workers(args.n * args.bands, args.band_cost);
    const int64_t per_double = args.dtype == DType::float64 ? 1 : 2;
    const auto in_doubles = [&](int64_t elements) {
      return (elements / per_double + 1 + 7) / 8 * 8;  // whole cache lines
    };
    partials = wants_statistics ? args.n * args.bands * 2 * args.cout : 0;
    coefficients = in_doubles(2 * args.n * args.cin);
    rows = in_doubles(workers * kernels().worker_elements(args));
  }

  int64_t size() const { return partials + coefficients + rows; }

  void give(NormConv2d& args, const Tensor& memory) const {
    double* begin = static_cast<double*>(memory.mutable_data_ptr());
    args.coefficients = begin;
    args.rows_memory = begin + coefficients;
    args.partials = begin + coefficients + rows;
  }
};

// Divides the bands into tasks and runs them. On AMX the bands of a task share the ring buffer, so
// that input rows of two bands are read once. Tasks get shorter towards the end, so that all
// threads end together: each takes its share of half of the bands that are left (guided
// self-scheduling, Polychronopoulos and Kuck, 1987).
void run(NormConv2d& args) {
  const int64_t bands = args.n * args.bands;
  const int64_t workers = parallel_workers(bands, args.band_cost);
  std::vector<int64_t> begins;
  for (int64_t band = 0; band < bands;) {
    begins.push_back(band);
    const int64_t left = args.bands - band % args.bands;  // in this image
    band += std::clamp<int64_t>((bands - band) / (2 * workers), 1, left);
  }
  args.tasks = int64_t(begins.size());
  begins.push_back(bands);
  args.task_begins = begins.data();
  kernels().run(args);
}

Tensor norm_conv2d_pack(Tensor weight, int64_t stride, int64_t padding, Name padding_mode,
                        Name upsample) {
  NormConv2d args = weights_of(weight, mode_of(stride, padding, padding_mode, upsample));
  Tensor packed = empty({kernels().packed_elements(args)}, weight, wide_dtype(weight));
  args.packed = packed.mutable_data_ptr();
  kernels().pack(args);
  return packed;
}

int64_t norm_conv2d_workspace(Tensor weight, int64_t n, int64_t h, int64_t w, int64_t stride,
                              int64_t padding, Name padding_mode, Name upsample) {
  const ConvMode mode = mode_of(stride, padding, padding_mode, upsample);
  NormConv2d args = weights_of(weight, mode);
  set_image(args, n, h, w, mode);
  set_bands(args);
  return Workspace(args, true).size();
}

// x and residual in one layout; parameters dense and in the wide dtype.
struct Inputs {
  Layout layout;
  Tensor x;
  std::optional<Tensor> residual, bias, scale_shift;

  Inputs(const Tensor& x, Layout layout, const std::optional<Tensor>& residual,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& scale_shift,
         ScalarType wide)
      : layout(layout),
        x(with_layout(x, layout)),
        bias(dense(bias, wide)),
        scale_shift(dense(scale_shift, wide)) {
    if (residual.has_value()) this->residual = with_layout(*residual, layout);
  }

  void give(NormConv2d& args, const ConvMode& mode) const {
    STD_TORCH_CHECK(x.size(1) == args.cin, "x: expected weight's Cin = ", args.cin,
                    " channels, got ", text_of(shape_of(x)));
    if (residual.has_value()) check_shape(*residual, "residual", shape_of(x));
    if (bias.has_value()) check_shape(*bias, "bias", {args.cout});
    if (scale_shift.has_value()) check_shape(*scale_shift, "scale_shift", {x.size(0), args.cin, 2});
    set_image(args, x.size(0), x.size(2), x.size(3), mode);
    args.layout = layout;
    args.x = x.const_data_ptr();
    args.bytes_in = x.scalar_type() == ScalarType::Byte;
    args.residual = data(residual);
    args.bias = data(bias);
    args.scale_shift = data(scale_shift);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_conv2d(
    Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> scale_shift,
    Name activation, double negative_slope, std::optional<Tensor> residual, bool return_input,
    int64_t stride, int64_t padding, Name padding_mode, Name upsample, bool return_stats) {
  check_rank(x, "x", 4, 4);
  check_dtype(weight, "weight", x.scalar_type());
  check_like(residual, "residual", x);
  const ScalarType wide = wide_dtype(x);
  const Inputs inputs(x, layout_of(x), residual, bias, scale_shift, wide);
  const ConvMode mode = mode_of(stride, padding, padding_mode, upsample);
  NormConv2d args = weights_of(weight, mode);
  inputs.give(args, mode);
  set_bands(args);
  args.activation = activation_of(activation);
  args.negative_slope = negative_slope;

  Tensor y = empty({args.n, args.cout, args.parities * args.rows, args.parities * args.columns}, x,
                   x.scalar_type(), args.layout);
  Tensor input = return_input ? empty_like(inputs.x, args.layout) : empty({0}, x, x.scalar_type());
  const std::vector<int64_t> planes =
      return_stats ? std::vector<int64_t>{args.n, args.cout} : std::vector<int64_t>{0};
  Tensor mean = empty(planes, x, wide), var = empty(planes, x, wide);
  args.y = y.mutable_data_ptr();
  args.input = return_input ? input.mutable_data_ptr() : nullptr;
  args.mean = return_stats ? mean.mutable_data_ptr() : nullptr;
  args.var = return_stats ? var.mutable_data_ptr() : nullptr;

  Tensor packed = empty({kernels().packed_elements(args)}, x, wide);
  args.packed = packed.mutable_data_ptr();
  kernels().pack(args);
  const Workspace parts(args, args.wants_statistics());
  const Tensor memory = workspace(parts.size(), x);
  parts.give(args, memory);
  run(args);
  return {y, mean, var, input};
}

void norm_conv2d_out(Tensor x, Tensor weight, Tensor packed, std::optional<Tensor> bias,
                     std::optional<Tensor> scale_shift, Name activation, double negative_slope,
                     std::optional<Tensor> residual, int64_t stride, int64_t padding,
                     Name padding_mode, Name upsample, std::optional<Tensor> norm_weight,
                     std::optional<Tensor> norm_bias, double eps, Tensor y,
                     std::optional<Tensor> input, std::optional<Tensor> next_scale_shift,
                     Tensor memory) {
  check_rank(x, "x", 4, 4);
  check_rank(y, "y", 4, 4);
  const ScalarType wide = wide_dtype(weight);
  const bool both = y.is_contiguous() && is_channels_last(y);  // then x decides
  const Inputs inputs(x, layout_of(both ? x : y), residual, bias, scale_shift, wide);
  const ConvMode mode = mode_of(stride, padding, padding_mode, upsample);
  NormConv2d args = weights_of(weight, mode);
  inputs.give(args, mode);
  const ScalarType dtype = weight.scalar_type();
  const auto check = [&](const char* name, const Tensor& tensor, bool bytes, bool written) {
    STD_TORCH_CHECK(
        tensor.scalar_type() == dtype || (bytes && tensor.scalar_type() == ScalarType::Byte), name,
        ": expected weight's dtype ", name_of(dtype), bytes ? " or uint8" : "", ", got ",
        name_of(tensor.scalar_type()));
    if (!written) return;
    const void* memory = with_layout(tensor, args.layout).const_data_ptr();
    STD_TORCH_CHECK(memory == tensor.const_data_ptr(), name,
                    ": expected dense memory in y's layout, got other strides");
  };
  check("x", x, true, false);
  check("y", y, true, true);
  if (residual.has_value()) check("residual", *residual, false, false);
  if (input.has_value()) check("input", *input, false, true);
  if (input.has_value()) check_shape(*input, "input", shape_of(x));
  if (next_scale_shift.has_value()) {
    check_shape(*next_scale_shift, "next_scale_shift", {args.n, args.cout, 2});
    check_dtype(*next_scale_shift, "next_scale_shift", wide);
    STD_TORCH_CHECK(next_scale_shift->is_contiguous(),
                    "next_scale_shift: expected contiguous memory, got a tensor with gaps");
  }
  for (const auto& [parameter, name] :
       {std::pair(norm_weight, "norm_weight"), std::pair(norm_bias, "norm_bias")})
    if (parameter.has_value()) check_shape(*parameter, name, {args.cout});
  STD_TORCH_CHECK(packed.scalar_type() == wide && packed.is_contiguous() &&
                      packed.numel() == kernels().packed_elements(args),
                  "packed: expected the ", kernels().packed_elements(args), " numbers of ",
                  name_of(wide), " that norm_conv2d_pack makes of this weight for this mode, got ",
                  packed.numel(), " of ", name_of(packed.scalar_type()),
                  packed.is_contiguous() ? "" : ", with gaps");
  set_bands(args);  // of the whole output: a crop divided anew could need more tasks
  const int64_t height = args.parities * args.rows, width = args.parities * args.columns;
  const bool whole = y.size(2) == height && y.size(3) == width;
  const bool crops = mode.upsample == Upsample::none && !next_scale_shift.has_value() &&
                     y.size(2) <= height && y.size(3) <= width;
  STD_TORCH_CHECK(y.size(0) == args.n && y.size(1) == args.cout && (whole || crops),
                  "y: expected the whole output ", text_of({args.n, args.cout, height, width}),
                  ", or, without upsampling and statistics, fewer rows and columns, got ",
                  text_of(shape_of(y)));
  if (!whole) args.rows = y.size(2), args.columns = y.size(3);
  args.bands = (args.rows + args.band - 1) / args.band;
  args.activation = activation_of(activation);
  args.negative_slope = negative_slope;
  norm_weight = dense(norm_weight, wide), norm_bias = dense(norm_bias, wide);
  args.norm_weight = data(norm_weight), args.norm_bias = data(norm_bias);
  args.eps = eps;
  args.y = y.mutable_data_ptr();
  args.bytes_out = y.scalar_type() == ScalarType::Byte;
  if (input.has_value()) args.input = input->mutable_data_ptr();
  if (next_scale_shift.has_value()) args.next_scale_shift = next_scale_shift->mutable_data_ptr();
  args.packed = packed.mutable_data_ptr();
  const Workspace parts(args, args.wants_statistics());
  STD_TORCH_CHECK(memory.scalar_type() == ScalarType::Double && memory.is_contiguous(),
                  "workspace: expected contiguous float64, got ", name_of(memory.scalar_type()),
                  memory.is_contiguous() ? "" : " with gaps");
  STD_TORCH_CHECK(memory.numel() >= parts.size(), "workspace: expected ", parts.size(),
                  " numbers, got ", memory.numel(),
                  "; it is too small if torch has more threads now than when "
                  "norm_conv2d_workspace gave its size");
  parts.give(args, memory);
  run(args);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stylekernels, CPU, m) {
  m.impl("norm_conv2d", TORCH_BOX(&norm_conv2d));
  m.impl("norm_conv2d_pack", TORCH_BOX(&norm_conv2d_pack));
  m.impl("norm_conv2d_workspace", TORCH_BOX(&norm_conv2d_workspace));
  m.impl("norm_conv2d_out", TORCH_BOX(&norm_conv2d_out));
}

}  // namespace stylekernels
