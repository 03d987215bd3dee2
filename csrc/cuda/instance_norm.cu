// Instance and group norm on a GPU: from tensors to kernel arguments, one launch a call.

#include <algorithm>
#include <cmath>

#include "../instance_norm_checks.h"
#include "exact_mean.h"
#include "instance_norm_backward.cuh"
#include "instance_norm_forward.cuh"
#include "instance_norm_plan.cuh"
#include "launch.cuh"

namespace stylekernels {

namespace {

using namespace device;

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return uintptr_t(pointer) % 16 == 0; });
}

// Plans and launches the forward kernel, or the backward one. Returns false if strips are not small
// enough for NormLayout::small, and if the sums of a group need more shared memory than a block can
// have: those of thousands of channels in channels_last.
template <bool kBackward, class T, int kLanes, NormLayout kLayout>
bool run(NormArguments& a, const Tensor& like) {
  constexpr bool kSmall = kLayout == NormLayout::small;
  const auto kernel = [] {
    if constexpr (kBackward)
      return instance_norm_backward_kernel<T, kLanes, kLayout>;
    else
      return instance_norm_kernel<T, kLanes, kLayout>;
  }();
  const DeviceAndStream current(like.get_device_index());
  const bool given = !kBackward && a.mean_in.data != nullptr;
  const Needs needs{!kBackward ? (given || a.y == nullptr ? 0 : 1) : 2,
                    kBackward,
                    !given,
                    int64_t(sizeof(T)) * kLanes,
                    kLanes,
                    kNormBlocks<T>,
                    kLayout,
                    kSmall ? 1 : largest_cluster(kernel, kNormThreads)};
  const std::optional<Launch> config = kSmall ? plan_parts(a, needs) : plan(a, needs);
  if (!config.has_value()) return false;
  if (config->shared_bytes > properties().shared_bytes) {
    STD_TORCH_CHECK(kLayout == NormLayout::channels_last, "group: expected fewer channels, got ",
                    a.strips.group, "; force the implementation \"triton\"");
    return false;
  }
  std::optional<Tensor> exchange;
  if (config->cooperative) {
    exchange = empty({2 * int64_t(config->blocks) * a.team.exchange_bytes}, like, ScalarType::Byte);
    a.team.exchange = static_cast<unsigned char*>(exchange->mutable_data_ptr());
  }
  launch(*config, current.stream(), kernel, a);
  return true;
}

// Runs with vectors of kPixels elements of a plane, or of kChannels channels.
template <bool kBackward, class T, int kPixels, int kChannels>
bool run_in(NormArguments& a, const Tensor& like, Layout layout) {
  if (layout == Layout::channels_last)
    return run<kBackward, T, kChannels, NormLayout::channels_last>(a, like);
  if constexpr (kPixels > 1)
    if (run<kBackward, T, kPixels, NormLayout::small>(a, like)) return true;
  return run<kBackward, T, kPixels, NormLayout::contiguous>(a, like);
}

template <bool kBackward>
bool run(NormArguments& a, const Tensor& x, Layout layout) {
  return for_dtype(dtype_of(x), [&](auto element) {
    using T = decltype(element);
    // Sums and parameters of 8 channels would not fit into the registers of the backward kernel.
    constexpr int kMost = kVectorLanes<T>, kChannels = kBackward ? std::min(kMost, 4) : kMost;
    if (!aligned({a.x, a.residual, a.y, a.grad, a.grad_x, a.grad_residual}))
      return run_in<kBackward, T, 1, 1>(a, x, layout);
    if (layout == Layout::channels_last && a.strips.c % kChannels != 0)
      return run_in<kBackward, T, kMost, 1>(a, x, layout);
    return run_in<kBackward, T, kMost, kChannels>(a, x, layout);
  });
}

Parameter parameter_of(std::optional<Tensor>& parameter, const Tensor& x) {
  if (!parameter.has_value()) return {};
  parameter = torch::stable::contiguous(*parameter);
  return {parameter->const_data_ptr(), dtype_of(*parameter), parameter->dim() == 2 ? x.size(1) : 0};
}

Strips strips_of(const Tensor& x, int64_t group) {
  STD_TORCH_CHECK(x.size(0) * x.size(1) < int64_t(1) << 31,
                  "x: expected less than 2^31 planes, got ", text_of(shape_of(x)));
  Strips strips{};
  strips.elements = x.numel();
  strips.pixels = x.size(2) * x.size(3);
  strips.n = int(x.size(0));
  strips.c = int(x.size(1));
  strips.group = int(group);
  return strips;
}

// Fills results of planes without pixels.
void fill(std::initializer_list<Tensor> results, double value) {
  for (Tensor result : results) torch::stable::fill_(result, value);
}

std::tuple<Tensor, Tensor, Tensor> instance_norm(Tensor x, std::optional<Tensor> weight,
                                                 std::optional<Tensor> bias,
                                                 std::optional<Tensor> residual,
                                                 std::optional<Tensor> mean,
                                                 std::optional<Tensor> var, Name activation,
                                                 double negative_slope, bool residual_first,
                                                 double eps, bool own_stats, int64_t group) {
  check_instance_norm(x, weight, bias, residual, mean, var, group);
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  if (residual.has_value()) residual = with_layout(*residual, layout);
  Tensor y = empty_like(x, layout);
  Tensor used_mean = empty({2, x.size(0), x.size(1)}, x, wide_dtype(x));
  Tensor rstd = empty({x.size(0), x.size(1)}, x, wide_dtype(x));
  if (x.numel() == 0) {
    fill({used_mean, rstd}, std::nan(""));
    return {y, used_mean, rstd};
  }
  NormArguments a{};
  a.strips = strips_of(x, mean.has_value() ? 1 : group);
  a.x = x.const_data_ptr();
  a.residual = data(residual);
  a.y = y.mutable_data_ptr();
  a.weight = parameter_of(weight, x);
  a.bias = parameter_of(bias, x);
  a.mean_in = parameter_of(mean, x);
  a.var_in = parameter_of(var, x);
  a.activation = activation_of(activation);
  a.negative_slope = negative_slope;
  a.residual_first = residual_first;
  a.eps = eps;
  a.mean = used_mean.mutable_data_ptr();
  a.exact = true;
  a.rstd = rstd.mutable_data_ptr();
  if (!run<false>(a, x, layout)) {
    const auto [dense, exact_mean, deviation] =
        instance_norm(with_layout(x, Layout::contiguous), weight, bias, residual, mean, var,
                      activation, negative_slope, residual_first, eps, own_stats, group);
    return {with_layout(dense, layout), exact_mean, deviation};
  }
  return {y, used_mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> instance_norm_backward(
    Tensor grad, Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias,
    std::optional<Tensor> residual, Tensor mean, Tensor rstd, Name activation,
    double negative_slope, bool own_stats, bool want_residual, bool sum_images, int64_t group) {
  check_instance_norm_backward(grad, x, weight, bias, residual, mean, rstd, group);
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  grad = with_layout(grad, layout);
  if (residual.has_value()) residual = with_layout(*residual, layout);
  mean = torch::stable::contiguous(mean);
  rstd = torch::stable::contiguous(rstd);
  Tensor grad_x = empty_like(x, layout);
  Tensor grad_residual = want_residual ? empty_like(x, layout) : empty({0}, x, x.scalar_type());
  const Shape rows = sums_shape(x, sum_images);
  Tensor sum_grad = empty(rows, x, wide_dtype(x));
  Tensor sum_grad_normalized = empty(rows, x, wide_dtype(x));
  const auto results = [&] {
    if (sum_images && rows.size() == 2)
      for (Tensor* sums : {&sum_grad, &sum_grad_normalized})
        *sums = torch::stable::sum(*sums, std::vector<int64_t>{0});
    return std::tuple(grad_x, grad_residual, sum_grad, sum_grad_normalized);
  };
  if (x.numel() == 0) {
    fill({sum_grad, sum_grad_normalized}, 0);
    return results();
  }
  NormArguments a{};
  a.strips = strips_of(x, group);
  a.grad = grad.const_data_ptr();
  a.x = x.const_data_ptr();
  a.residual = data(residual);
  a.weight = parameter_of(weight, x);
  a.bias = parameter_of(bias, x);
  a.mean = const_cast<void*>(mean.const_data_ptr());
  a.rstd = const_cast<void*>(rstd.const_data_ptr());
  a.activation = activation_of(activation);
  a.negative_slope = negative_slope;
  a.own_stats = own_stats;
  a.grad_x = grad_x.mutable_data_ptr();
  a.grad_residual = want_residual ? grad_residual.mutable_data_ptr() : nullptr;
  a.sum_grad = sum_grad.mutable_data_ptr();
  a.sum_grad_normalized = sum_grad_normalized.mutable_data_ptr();
  if (!run<true>(a, x, layout)) {
    const auto [dense, dense_residual, first, second] = instance_norm_backward(
        grad, with_layout(x, Layout::contiguous), weight, bias, residual, mean, rstd, activation,
        negative_slope, own_stats, want_residual, sum_images, group);
    return {with_layout(dense, layout),
            want_residual ? with_layout(dense_residual, layout) : dense_residual, first, second};
  }
  return results();
}

std::tuple<Tensor, Tensor> instance_norm_stats(Tensor x) {
  check_rank(x, "x", 4, 4);
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  Tensor mean = empty({x.size(0), x.size(1)}, x, wide_dtype(x));
  Tensor var = empty({x.size(0), x.size(1)}, x, wide_dtype(x));
  if (x.numel() == 0) {
    fill({mean, var}, std::nan(""));
    return {mean, var};
  }
  NormArguments a{};
  a.strips = strips_of(x, 1);
  a.x = x.const_data_ptr();
  a.mean = mean.mutable_data_ptr();
  a.var = var.mutable_data_ptr();
  run<false>(a, x, layout);  // groups of one channel always fit
  return {mean, var};
}

}  // namespace

Tensor device::exact_mean(Tensor x) {
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  Tensor mean = empty({2, x.size(0), x.size(1)}, x, wide_dtype(x));
  if (x.numel() == 0) return mean;  // no images: features have channels and pixels
  NormArguments a{};
  a.strips = strips_of(x, 1);
  a.x = x.const_data_ptr();
  a.mean = mean.mutable_data_ptr();
  a.exact = true;
  run<false>(a, x, layout);
  return mean;
}

STYLEKERNELS_CUDA_OPS(m) {
  m.impl("instance_norm_stats", TORCH_BOX(&instance_norm_stats));
  m.impl("instance_norm", TORCH_BOX(&instance_norm));
  m.impl("instance_norm_backward", TORCH_BOX(&instance_norm_backward));
}

}  // namespace stylekernels
