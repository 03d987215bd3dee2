// Gram matrices, Gram losses and their gradients on a GPU: from tensors to kernel arguments, one
// launch a call, and one more for the means of each layer where features are centred.

#include <algorithm>

#include "../gram_matrix_checks.h"
#include "exact_mean.h"
#include "gram_matrix_backward.cuh"
#include "gram_matrix_forward.cuh"
#include "launch.cuh"

namespace stylekernels {

namespace {

using namespace device;

// The least cost of a part. A step costs up to two, and each part has to hold one: the parts of a
// tile are those from its first step's to its last step's.
constexpr int64_t kLeastCost = 2;
static_assert(kLeastCost >= 2);

int64_t bytes_of(DType dtype) {
  return for_dtype(dtype, [](auto element) { return int64_t(sizeof(element)); });
}

// Tells whether all lines of features are aligned to 16 bytes.
bool aligned(const GramFeatures& f, const void* data) {
  const int64_t length = f.layout == Layout::contiguous ? f.pixels : f.c;
  return uintptr_t(data) % 16 == 0 && length * bytes_of(dtype_of(f.x)) % 16 == 0;
}

// Calls f(element, centered) with a value of the features' type, and whether they are centred as a
// compile-time constant.
template <class F>
void for_features(const Tensor& x, bool centered, const F& f) {
  for_dtype(dtype_of(x), [&](auto element) {
    if (centered)
      f(element, std::true_type{});
    else
      f(element, std::false_type{});
  });
}

// Tells whether a layer has tiles of 128 channels: products of 16 bits, if there are so many.
template <class T, bool kCentered>
bool is_wide(const GramFeatures& f) {
  return sizeof(Operand<T, kCentered>) == 2 && f.c > 64;
}

// Checks that numbers of steps and tiles fit into 32 bits.
void check_steps(int64_t steps) {
  STD_TORCH_CHECK(steps < int64_t(1) << 31, "x: expected fewer elements, got ", steps,
                  " tiles of them; force the implementation \"triton\"");
}

// Sets the parts of all costs, and the shared memory of a launch and the stages of its pipeline.
template <class A>
Launch plan(A& a, int64_t exchange_bytes) {
  const Properties gpu = properties();
  const int64_t stages = (gpu.shared_bytes - exchange_bytes) / a.stage_bytes;
  STD_TORCH_CHECK(stages >= 2, "expected a GPU with ", 2 * a.stage_bytes + exchange_bytes,
                  " bytes of shared memory for a block, got ", gpu.shared_bytes,
                  "; force the implementation \"triton\"");
  a.stages = int(std::min<int64_t>(stages, kMostStages));
  a.parts = int(std::clamp<int64_t>(a.cost / kLeastCost, 1, gpu.multiprocessors));
  Launch launch;
  launch.blocks = gpu.multiprocessors;
  launch.threads = kGramThreads;
  launch.shared_bytes = int(a.stages * a.stage_bytes + exchange_bytes);
  launch.cooperative = true;
  return launch;
}

Scales one_scale(std::optional<double> scale) {
  if (!scale.has_value()) return std::nullopt;
  return std::vector<double>{*scale};
}

// Layers of a call.
struct Call {
  std::vector<GramFeatures> features;
  std::vector<std::optional<Tensor>> means;
  Scales scales;

  Call(const std::vector<Tensor>& tensors, const Scales& scales) : scales(scales) {
    for (const Tensor& x : tensors) features.emplace_back(x);
  }

  // Centres the features.
  void center() {
    for (const GramFeatures& f : features) means.push_back(exact_mean(f.images()));
  }

  const Tensor& first() const { return features[0].x; }
  bool centered() const { return !means.empty(); }
  const void* mean(size_t layer) const { return centered() ? data(means[layer]) : nullptr; }
  double scale(size_t layer) const { return features[layer].scale(scale_of(scales, layer)); }
};

// Divides a layer into tiles and steps.
template <class T, bool kCentered>
GramLayer layer_of(const Call& call, size_t number) {
  const GramFeatures& f = call.features[number];
  GramLayer layer{};
  layer.x = f.x.const_data_ptr();
  layer.mean = call.mean(number);
  layer.layout = f.layout;
  layer.aligned = aligned(f, layer.x);
  layer.wide = is_wide<T, kCentered>(f);
  layer.n = int(f.n);
  layer.c = int(f.c);
  const int size = layer.wide ? 128 : 64;
  layer.rows = int(divided(f.c, size));
  layer.side = int(std::min<int64_t>(size, divided(f.c, kBlockRows) * kBlockRows));
  layer.pixels = f.pixels;
  const int64_t steps = divided(f.pixels, kStepDepth<T> * gram_groups<T>(layer.wide));
  check_steps(2 * f.n * layer.rows * layer.rows * steps);
  layer.steps = int(steps);
  layer.scale = call.scale(number);
  return layer;
}

// Divides the sums of a layer's tiles among turns of blocks. More warps share an element if a tile
// has more parts.
void divide_sums(GramArguments& a, GramLayer& layer) {
  const int64_t tile_cost = 2 * int64_t(layer.steps);
  const int64_t parts =
      std::min<int64_t>(a.parts, tile_cost * a.parts / std::max<int64_t>(a.cost, 1) + 1);
  layer.ways = 1;
  while (layer.ways < kGramWarps && 2 * layer.ways <= parts) layer.ways *= 2;
  const int64_t units = int64_t(layer.side / kUnitRows) * (layer.side / kUnitColumns);
  layer.turns = int(divided(units * layer.ways, kGramWarps));
  layer.first_turn = a.turns;
  a.turns += int64_t(layer.turns) * layer.tiles();
}

// Computes the Gram matrices of some layers; or, with targets, the gradients of their losses, and
// losses[first], losses[first + 1] and so on.
template <class T, bool kCentered>
void run_layers(const Call& call, size_t first, size_t last, std::vector<Tensor>& grams,
                const std::vector<Tensor>& targets, std::optional<Tensor>& losses) {
  using W = Wide<T>;
  const Tensor& x = call.first();
  GramArguments a{};
  int64_t tiles = 0;
  for (size_t i = first; i < last; ++i) {
    GramLayer layer = layer_of<T, kCentered>(call, i);
    layer.gram = grams[i].mutable_data_ptr();
    if (losses.has_value()) {
      layer.target = targets[i].const_data_ptr();
      layer.target_stride = is_shared(targets[i]) ? 0 : int64_t(layer.c) * layer.c;
    }
    layer.slope = 2 / (double(layer.n) * layer.c * layer.c);
    layer.first_tile = int(tiles);
    layer.first_cost = a.cost;
    tiles += layer.tiles();
    a.cost += layer.cost();
    a.slot = std::max(a.slot, layer.side * layer.side);
    a.layers[a.count++] = layer;
  }
  check_steps(tiles);
  if (a.cost == 0 && !losses.has_value()) return;
  const DeviceAndStream current(x.get_device_index());
  a.stage_bytes = gram_stage_bytes<T>();
  const Launch config = plan(a, kGramExchangeBytes);
  for (int i = 0; i < a.count; ++i) divide_sums(a, a.layers[i]);
  Tensor partial = empty({(tiles + a.parts) * a.slot}, x, wide_dtype(x));
  a.partial = partial.mutable_data_ptr();
  std::optional<Tensor> squares, finished;
  if (losses.has_value()) {
    squares = workspace(int64_t(a.count) * config.blocks, x);
    finished = empty({1}, x, ScalarType::Int);
    a.squares = static_cast<double*>(squares->mutable_data_ptr());
    a.finished = static_cast<int*>(finished->mutable_data_ptr());
    a.losses = static_cast<W*>(losses->mutable_data_ptr()) + first;
  }
  launch(config, current.stream(), gram_matrix_kernel<T, kCentered>, a);
}

std::vector<Tensor> grams_of(const Call& call, const std::vector<Tensor>& targets,
                             std::optional<Tensor>& losses) {
  std::vector<Tensor> grams;
  for (const GramFeatures& f : call.features)
    grams.push_back(empty({f.n, f.c, f.c}, f.x, wide_dtype(f.x)));
  for_features(call.first(), call.centered(), [&](auto element, auto centered) {
    for (size_t first = 0; first < grams.size(); first += kMostLayers)
      run_layers<decltype(element), decltype(centered)::value>(
          call, first, std::min(grams.size(), first + kMostLayers), grams, targets, losses);
  });
  return grams;
}

std::tuple<Tensor, Tensor> gram_matrix(Tensor x, std::optional<double> scale, bool center) {
  Call call({x}, one_scale(scale));
  if (center) call.center();
  std::optional<Tensor> losses;
  const std::vector<Tensor> grams = grams_of(call, {}, losses);
  return {grams[0], or_empty(center ? call.means[0] : std::nullopt, x)};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> gram_losses(
    std::vector<Tensor> features, std::vector<Tensor> targets, Scales scales, bool center) {
  check_layers(features, targets, scales);
  Call call(features, scales);
  for (size_t i = 0; i < targets.size(); ++i)
    targets[i] = checked_target(targets[i], call.features[i]);
  if (center) call.center();
  std::optional<Tensor> losses =
      empty({int64_t(features.size())}, features[0], wide_dtype(features[0]));
  const std::vector<Tensor> grad_grams = grams_of(call, targets, losses);
  std::vector<Tensor> means;
  for (const std::optional<Tensor>& mean : call.means) means.push_back(*mean);
  return {*losses, grad_grams, means};
}

std::tuple<Tensor, Tensor, Tensor> gram_loss(Tensor x, Tensor target, std::optional<double> scale,
                                             bool center) {
  const auto [losses, grad_grams, means] = gram_losses({x}, {target}, one_scale(scale), center);
  return {torch::stable::view(losses, {}), grad_grams[0],
          or_empty(center ? std::optional(means[0]) : std::nullopt, x)};
}

// Bytes of a row of S: whole vectors of 16.
template <class O>
int64_t row_stride(int64_t c) {
  return divided(c, kVectorLanes<O>) * kVectorLanes<O>;
}

// Divides the gradient of a layer into tiles and steps.
template <class T, bool kCentered>
GradientLayer gradient_layer_of(const Call& call, size_t number) {
  using O = Operand<T, kCentered>;
  constexpr Layout kAny = Layout::contiguous;
  const GramFeatures& f = call.features[number];
  GradientLayer layer{};
  layer.x = f.x.const_data_ptr();
  layer.mean = call.mean(number);
  layer.layout = f.layout;
  layer.wide = is_wide<T, kCentered>(f);
  layer.n = int(f.n);
  layer.c = int(f.c);
  layer.stride = int(row_stride<O>(f.c));
  layer.steps = int(divided(f.c, kStepDepth<O>));
  layer.rows = int(divided(f.c, layer.wide ? 128 : 64));
  const int64_t columns =
      divided(f.pixels, layer.wide ? GradientShape<T, kCentered, kAny, sizeof(O) == 2>::kPixels
                                   : GradientShape<T, kCentered, kAny, false>::kPixels);
  check_steps(f.n * layer.rows * columns * (layer.steps + 1));
  layer.columns = int(columns);
  layer.pixels = f.pixels;
  layer.scale = call.scale(number);
  return layer;
}

template <class T, bool kCentered>
void run_gradients(const Call& call, size_t first, size_t last, const std::vector<Tensor>& grads,
                   const void* grad_losses, std::vector<Tensor>& grad_features) {
  using O = Operand<T, kCentered>;
  constexpr bool kPowers = std::is_same_v<O, Float16>;
  const Tensor& x = call.first();
  GradientArguments a{};
  int64_t elements = 0, rows = 0;
  for (size_t i = first; i < last; ++i) {
    GradientLayer layer = gradient_layer_of<T, kCentered>(call, i);
    layer.grad = grads[i].const_data_ptr();
    layer.grad_x = grad_features[i].mutable_data_ptr();
    layer.aligned = aligned(call.features[i], layer.x) && aligned(call.features[i], layer.grad_x);
    layer.first_cost = a.cost;
    a.cost += layer.cost();
    rows += int64_t(layer.n) * layer.c;
    elements += int64_t(layer.n) * layer.c * layer.stride;
    a.layers[a.count++] = layer;
  }
  if (a.cost == 0) return;
  const DeviceAndStream current(x.get_device_index());
  if (grad_losses != nullptr) a.grad_losses = static_cast<const Wide<O>*>(grad_losses) + first;
  a.stage_bytes = gradient_stage_bytes<T, kCentered>();
  const Launch config = plan(a, kResultBytes<T>);
  Tensor products = empty({elements * int64_t(sizeof(O))}, x, ScalarType::Byte);
  std::optional<Tensor> powers;
  if (kPowers) powers = empty({rows}, x, ScalarType::Float);
  O* product = static_cast<O*>(products.mutable_data_ptr());
  float* power = kPowers ? static_cast<float*>(powers->mutable_data_ptr()) : nullptr;
  for (int i = 0; i < a.count; ++i) {
    GradientLayer& layer = a.layers[i];
    layer.product = product;
    layer.powers = power;
    product += int64_t(layer.n) * layer.c * layer.stride;
    if (kPowers) power += int64_t(layer.n) * layer.c;
  }
  launch(config, current.stream(), gram_matrix_backward_kernel<T, kCentered>, a);
}

std::vector<Tensor> gradients_of(const Call& call, const std::vector<Tensor>& grads,
                                 const void* grad_losses) {
  std::vector<Tensor> grad_features;
  for (const GramFeatures& f : call.features) grad_features.push_back(empty_like(f.x, f.layout));
  for_features(call.first(), call.centered(), [&](auto element, auto centered) {
    for (size_t first = 0; first < grads.size(); first += kMostLayers)
      run_gradients<decltype(element), decltype(centered)::value>(
          call, first, std::min(grads.size(), first + kMostLayers), grads, grad_losses,
          grad_features);
  });
  return grad_features;
}

Tensor gram_matrix_backward(Tensor grad, Tensor x, std::optional<Tensor> mean,
                            std::optional<double> scale) {
  Call call({x}, one_scale(scale));
  if (mean.has_value()) call.means.push_back(checked_mean(mean, call.features[0]));
  return gradients_of(call, {checked_gradient(grad, call.features[0])}, nullptr)[0];
}

std::vector<Tensor> gram_losses_backward(std::vector<Tensor> features,
                                         std::vector<Tensor> grad_grams, std::vector<Tensor> means,
                                         Tensor grad, Scales scales) {
  check_gradients_of_layers(features, grad_grams, means, grad, scales);
  Call call(features, scales);
  for (size_t i = 0; i < grad_grams.size(); ++i)
    grad_grams[i] = checked_gradient(grad_grams[i], call.features[i]);
  for (size_t i = 0; i < means.size(); ++i)
    call.means.push_back(checked_mean(means[i], call.features[i]));
  grad = torch::stable::contiguous(grad);
  return gradients_of(call, grad_grams, grad.const_data_ptr());
}

}  // namespace

STYLEKERNELS_CUDA_OPS(m) {
  m.impl("gram_matrix", TORCH_BOX(&gram_matrix));
  m.impl("gram_matrix_backward", TORCH_BOX(&gram_matrix_backward));
  m.impl("gram_loss", TORCH_BOX(&gram_loss));
  m.impl("gram_losses", TORCH_BOX(&gram_losses));
  m.impl("gram_losses_backward", TORCH_BOX(&gram_losses_backward));
}

}  // namespace stylekernels
