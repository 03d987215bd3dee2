// Instance and group norm on a GPU: from tensors to kernel arguments, one launch a call.

#include <algorithm>
#include <cmath>

#include "../instance_norm_checks.h"
#include "exact_mean.h"
#include "instance_norm_backward.cuh"
#include "instance_norm_forward.cuh"
#include "launch.cuh"

namespace stylekernels {

namespace {

using namespace device;

// Bytes of a block's slice that let several blocks share a multiprocessor: while one waits for its
// team, others read and write.
constexpr int64_t kSliceBytes = 40 << 10;

// Shared memory that a GPU keeps for itself, for each block.
constexpr int64_t kReservedBytes = 1 << 10;

// The smallest slice worth a block of its own.
constexpr int64_t kSmallestSlice = 4 << 10;

// Bytes of a strip's row in channels_last: a line.
constexpr int kRowBytes = 128;

// Planes of a block at most, if contiguous: each has sums in shared memory.
constexpr int64_t kMostPlanes = 1024;

// Vectors that a lane takes of a span at most, and the entries that the spans of a block may have.
constexpr int64_t kSpanVectors = 8, kLargestTable = 1024;

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole(int64_t a, int64_t multiple) { return divided(a, multiple) * multiple; }

int64_t power_of_two(int64_t a) {
  int64_t power = 1;
  while (power < a) power *= 2;
  return power;
}

// The parts of a plan that depend on the op.
struct Needs {
  int kept;  // tensors whose slices a block keeps
  bool backward;
  bool exchanges;  // whether the blocks of a team exchange results
  int64_t vector_bytes;
  int lanes;     // elements of a vector
  int resident;  // blocks that registers let share a multiprocessor
  Layout layout;
  int largest_cluster;  // blocks
};

int64_t bytes_of_strip(const Strips& s, const Needs& needs) {
  const int64_t vectors = needs.layout == Layout::contiguous
                              ? divided(s.group * s.pixels, needs.lanes)
                              : s.pixels * s.width;
  return vectors * needs.vector_bytes * std::max(1, needs.kept);
}

// Columns of a strip in channels_last: whole groups, or all channels.
void divide_columns(Strips& s, const Needs& needs) {
  s.row = s.c / needs.lanes;
  int64_t channels = s.group;
  while (channels % needs.lanes != 0) channels += s.group;
  const int64_t vectors = channels / needs.lanes;
  const int64_t line = std::min<int64_t>(s.row, kRowBytes / needs.vector_bytes);
  s.width = int(std::min<int64_t>(s.row, whole(line, vectors)));
  s.lanes = int(std::min<int64_t>(kWarp, power_of_two(s.width)));
  s.columns = int(std::min<int64_t>(kNormWarps, power_of_two(divided(s.width, s.lanes))));
}

// Divides strips of a team's size into slices and spans. Returns the spans of a block at most
// (contiguous), which are at least one for each plane that it touches.
int64_t divide_slices(Strips& s, const Needs& needs) {
  if (needs.layout == Layout::channels_last) {
    s.slice = divided(s.pixels, s.team);
    return 0;
  }
  const int64_t round = kWarp * needs.lanes;
  s.slice = divided(s.group * s.pixels, s.team);
  s.unit = std::clamp(whole(divided(s.slice, kNormWarps), round), round, round * kSpanVectors);
  const int64_t planes = s.slice / s.pixels + 2;
  while (planes + s.slice / s.unit > kLargestTable && s.unit < s.pixels) s.unit *= 2;
  s.slice = whole(s.slice, s.group == 1 ? s.unit : round);
  return 2 * (s.slice / s.pixels + 2) + s.slice / s.unit;
}

// Lays out a block's shared memory. Returns its bytes, more than `limit` if it does not fit.
int64_t divide_memory(NormMemory& memory, TeamPlan& team, const Strips& s, const Needs& needs,
                      int64_t spans, int64_t limit) {
  const bool contiguous = needs.layout == Layout::contiguous;
  const int64_t width = int64_t(s.width) * needs.lanes;
  const int64_t planes = contiguous ? s.slice / s.pixels + 2 : width;
  int64_t table, own, results;
  memory.rows = contiguous ? kNormWarps : kNormWarps / s.columns;
  if (needs.backward) {
    memory.row = int(contiguous ? 0 : width);
    table = (contiguous ? spans : width * memory.rows) * sizeof(Sums);
    own = (1 + planes) * sizeof(Sums);
    results = (contiguous ? 1 : 2 * width) * sizeof(Sums);
  } else {
    const bool whole_vectors = s.group % needs.lanes == 0;
    memory.row = int(contiguous ? 1 : whole_vectors ? s.width : width);
    table = memory.row * memory.rows * int64_t(sizeof(Moments));
    own = (contiguous ? 1 : divided(width, s.group)) * sizeof(Moments);
    results = (contiguous && needs.exchanges ? 1 : planes) * sizeof(GroupStatistics<double>);
  }
  const int64_t others = table + own + results;
  if (others > limit) return others;
  const int64_t bytes = needs.vector_bytes * needs.kept;
  const int64_t wanted = contiguous ? s.slice / needs.lanes + 2 : s.slice * s.width;
  const int64_t room = (limit - others) / 16 * 16;
  memory.kept = bytes == 0 ? 0 : std::min(wanted, room / bytes);
  memory.table = int(whole(memory.kept * bytes, 16));
  memory.own = memory.table + int(table);
  memory.results = memory.own + int(own);
  team.exchange_bytes = int(own);
  return memory.table + others;
}

// Plans strips, teams and memory, and returns the launch. Its shared memory may be more than a
// block can have.
Launch plan(NormArguments& a, const Needs& needs) {
  const Properties gpu = properties();
  Strips& s = a.strips;
  if (needs.layout == Layout::channels_last) {
    divide_columns(s, needs);
    s.count = s.n * int(divided(s.row, s.width));
  } else {
    s.count = s.n * (s.c / s.group);
  }
  const int64_t bytes = bytes_of_strip(s, needs);
  const int64_t to_fill = std::min(divided(2 * gpu.multiprocessors, s.count),
                                   std::max<int64_t>(1, bytes / kSmallestSlice));
  const int64_t for_sums = needs.layout == Layout::contiguous ? divided(s.group, kMostPlanes) : 1;
  int64_t size = power_of_two(std::max({divided(bytes, kSliceBytes), to_fill, for_sums}));
  const bool fits = bytes <= int64_t(needs.largest_cluster) * (gpu.shared_bytes - kSliceBytes / 2);
  int64_t blocks = 0, shared_bytes = gpu.shared_bytes;  // grid: of all teams; of a block
  a.team.kind = size == 1 ? TeamKind::single : TeamKind::cluster;
  if (!needs.exchanges) {
    a.team.kind = TeamKind::single;  // blocks of a strip that need not meet
  } else if (size > needs.largest_cluster && fits && for_sums <= needs.largest_cluster) {
    size = needs.largest_cluster;
    if (size == 1) a.team.kind = TeamKind::single;
  } else if (size > needs.largest_cluster) {
    a.team.kind = TeamKind::grid;
    blocks = int64_t(gpu.multiprocessors) * needs.resident;
    shared_bytes = (gpu.shared_bytes + kReservedBytes) / needs.resident - kReservedBytes;
    const int64_t room = std::max(kSmallestSlice, shared_bytes - kSliceBytes / 2);
    size = std::min(blocks, std::max({divided(bytes, room),
                                      blocks / std::min<int64_t>(blocks, s.count), for_sums}));
    // All blocks take part in the fewest rounds.
    const int64_t rounds = divided(s.count, std::min<int64_t>(s.count, blocks / size));
    size = blocks / divided(s.count, rounds);
  }
  s.team = a.team.size = int(size);
  a.team.teams =
      a.team.kind == TeamKind::grid ? int(std::min<int64_t>(s.count, blocks / size)) : s.count;
  const int64_t spans = divide_slices(s, needs);
  Launch launch;
  const int64_t used = divide_memory(a.memory, a.team, s, needs, spans, shared_bytes);
  if (used > shared_bytes && a.team.kind == TeamKind::grid && needs.resident > 1) {
    Needs alone = needs;  // the results of many channels take a block's memory
    alone.resident = 1;
    return plan(a, alone);
  }
  launch.shared_bytes = int(std::min<int64_t>(used, gpu.shared_bytes + 1));
  launch.threads = kNormThreads;
  launch.blocks = a.team.teams * a.team.size;
  launch.cluster = a.team.kind == TeamKind::cluster ? a.team.size : 1;
  launch.cooperative = a.team.kind == TeamKind::grid;
  return launch;
}

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return uintptr_t(pointer) % 16 == 0; });
}

// Plans and launches the forward kernel, or the backward one. Returns false if the sums of a group
// need more shared memory than a block can have: those of thousands of channels in channels_last.
template <bool kBackward, class T, int kLanes, Layout kLayout>
bool run(NormArguments& a, const Tensor& like) {
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
                    largest_cluster(kernel, kNormThreads)};
  const Launch config = plan(a, needs);
  if (config.shared_bytes > properties().shared_bytes) {
    STD_TORCH_CHECK(kLayout == Layout::channels_last, "group: expected fewer channels, got ",
                    a.strips.group, "; force the implementation \"triton\"");
    return false;
  }
  std::optional<Tensor> exchange;
  if (config.cooperative) {
    exchange = empty({2 * int64_t(config.blocks) * a.team.exchange_bytes}, like, ScalarType::Byte);
    a.team.exchange = static_cast<unsigned char*>(exchange->mutable_data_ptr());
  }
  launch(config, current.stream(), kernel, a);
  return true;
}

// Runs with vectors of kPixels elements of a plane, or of kChannels channels.
template <bool kBackward, class T, int kPixels, int kChannels>
bool run_in(NormArguments& a, const Tensor& like, Layout layout) {
  if (layout == Layout::contiguous) return run<kBackward, T, kPixels, Layout::contiguous>(a, like);
  return run<kBackward, T, kChannels, Layout::channels_last>(a, like);
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
