// Backward kernel of instance and group norm, one launch.
//
// With g the gradient before the activation and normalized = (x - mean) rstd, the sums over each
// plane are those of g and of g normalized. Then
//   grad_x = rstd (weight g - level - normalized slope),
// where level and slope are the means over a group of weight g and of weight g normalized.
//
// Bytes: grad, x and a residual before the activation are read once and grad_x is written once, if
// both slices fit into shared memory (the residual is read twice). Operations: some 20 a value, and
// the activation's derivative twice. Occupancy on an H200: up to 128 registers, 2 blocks of 256
// threads a multiprocessor. Floor there: three times the size of x at 4.25 TB/s, 24 us for 8 x 32 x
// 256 x 256 in bfloat16; predicted 30 us, not measured.
#pragma once

#include "instance_norm.cuh"

namespace stylekernels::device {

// Gradient before the activation, for an element of a vector. Both passes compute it.
template <class T, int kLanes, NormLayout kLayout>
class Gradient {
 public:
  using W = Wide<T>;
  static constexpr bool kContiguous = kLayout != NormLayout::channels_last;
  static constexpr int kCount = kContiguous ? 1 : kLanes;  // planes of a span

  __device__ Gradient(const NormArguments& a, const Span& span) : a_(a) {
    const int64_t planes = int64_t(a.strips.n) * a.strips.c;
    for (int i = 0; i < kCount; ++i) {
      const int plane = span.plane + i, image = plane / a.strips.c, channel = plane % a.strips.c;
      const W *mean = static_cast<const W*>(a.mean), *rstd = static_cast<const W*>(a.rstd);
      affine_[i] = {{mean[plane], mean[planes + plane], rstd[plane]},
                    a.weight.at(image, channel, W(1)),
                    a.bias.at(image, channel, W(0))};
    }
  }

  __device__ const Affine<W>& affine(int lane) const { return affine_[kContiguous ? 0 : lane]; }

  // Finds, for each element of a vector, x normalized and the gradient before the activation.
  __device__ void find(const Vector<T, kLanes>& x, const Vector<T, kLanes>& grad,
                       const Vector<T, kLanes>& residual, W (&normalized)[kLanes],
                       W (&before)[kLanes]) const {
    W z[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      normalized[j] = affine(j).statistics.normalized(x.get(j));
      z[j] = normalized[j] * affine(j).weight + affine(j).bias;
    }
    if (a_.residual != nullptr)
      for (int j = 0; j < kLanes; ++j) z[j] += widen(residual.get(j));
    for (int j = 0; j < kLanes; ++j) before[j] = widen(grad.get(j));
    activation_gradients(before, z, a_.activation, W(a_.negative_slope));
  }

 private:
  const NormArguments& a_;
  Affine<W> affine_[kCount];
};

// Vectors that a lane reads at once, as many as registers hold.
template <class T, int kLanes, NormLayout kLayout>
constexpr int kGradientVectors =
    sizeof(T) == 8
        ? 1
        : (sizeof(T) * kLanes == 16 ? 2 : 4) / (kHopper && kLayout != NormLayout::small ? 1 : 2);

// Keeps a lane's vectors of a span and adds them up.
template <bool kWhole, class T, int kLanes, NormLayout kLayout, int kCount>
__device__ void add_span(const NormArguments& a, Span span,
                         const Gradient<T, kLanes, kLayout>& of_span, Sums (&sums)[kCount]) {
  using W = Wide<T>;
  constexpr int kSummed = 16, kAtOnce = kWhole ? kGradientVectors<T, kLanes, kLayout> : 1;
  const T *x = static_cast<const T*>(a.x), *grad = static_cast<const T*>(a.grad);
  const T* residual = static_cast<const T*>(a.residual);
  auto *kept_x = kept_vectors<T, kLanes, kLayout>(0, a),
       *kept_grad = kept_vectors<T, kLanes, kLayout>(1, a);
  const auto load = [&](const T* tensor, int64_t vector) {
    return kWhole ? load_whole<T, kLanes>(tensor, vector)
                  : load_vector<T, kLanes>(tensor, vector, a.strips.elements);
  };
  W first[kLanes]{}, second[kLanes]{};
  for (int left = span.count; left > 0; left -= kAtOnce) {
    Vector<T, kLanes> xs[kAtOnce], grads[kAtOnce], residuals[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      const int64_t vector = span.vector + i * span.step;
      xs[i] = load(x, vector);
      grads[i] = load(grad, vector);
      if (residual != nullptr) residuals[i] = load(residual, vector);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      if (span.slot < a.memory.kept) {
        kept_x[span.slot] = xs[i];
        kept_grad[span.slot] = grads[i];
      }
      W normalized[kLanes], g[kLanes];
      of_span.find(xs[i], grads[i], residuals[i], normalized, g);
      const int64_t element = span.vector * kLanes;
      for (int j = 0; j < kLanes; ++j) {
        if (!kWhole && (element + j < span.lo || element + j >= span.hi)) continue;
        first[j] += g[j];
        second[j] += g[j] * normalized[j];
      }
      span.vector += span.step;
      span.slot += span.slot_step;
    }
    if ((span.count - left + kAtOnce) % kSummed != 0 && left > kAtOnce) continue;
    for (int j = 0; j < kLanes; ++j) {
      sums[kCount == 1 ? 0 : j].add({double(first[j]), double(second[j])});
      first[j] = second[j] = 0;
    }
  }
}

// Reads the block's slice, keeps what fits, and writes sums into the table: contiguous, one entry a
// span; channels_last, one entry a warp and channel.
template <class T, int kLanes, NormLayout kLayout>
__device__ void read_sums(const NormArguments& a, const Walk<kLanes, kLayout>& walk) {
  using W = Wide<T>;
  constexpr bool kContiguous = kLayout != NormLayout::channels_last;
  constexpr int kCount = Gradient<T, kLanes, kLayout>::kCount;
  Sums* table = reinterpret_cast<Sums*>(own_memory<kLayout>(a) + a.memory.table);
  const int warp = walk.warp(), lane = walk.lane();
  for (int index = walk.first_span(); index < walk.spans(); index += walk.span_step()) {
    Span span = walk.span(index);
    Sums sums[kCount];
    if (span.count > 0) {
      const Gradient<T, kLanes, kLayout> of_span(a, span);
      if (!kContiguous || span.whole)
        add_span<true>(a, span, of_span, sums);
      else
        add_span<false>(a, span, of_span, sums);
    }
    for (int i = 0; i < kCount; ++i) {
      const Sums all = sum_over_lanes(sums[i], kContiguous ? 1 : a.strips.lanes, walk.lanes());
      if (kContiguous) {
        if (lane == 0) table[span.local] = all;
      } else if (lane < a.strips.lanes && span.local + i < walk.planes()) {
        table[walk.warp_row() * a.memory.row + span.local + i] = all;
      }
    }
  }
}

// Adds up the sums of each plane of the block, and publishes them. The weighted sums of all its
// planes come first.
template <class W, int kLanes, NormLayout kLayout>
__device__ void publish_sums(const NormArguments& a, const Walk<kLanes, kLayout>& walk, Sums* own) {
  const bool contiguous = kLayout != NormLayout::channels_last;
  const int warp = walk.warp(), lane = walk.lane();
  const Sums* table = reinterpret_cast<const Sums*>(own_memory<kLayout>(a) + a.memory.table);
  for (int plane = warp; plane < walk.planes(); plane += walk.warps()) {
    Sums sums;
    const int first = contiguous ? walk.first_span_of(plane) : 0;
    const int last = contiguous ? walk.last_span_of(plane) : a.memory.rows;
    for (int i = first + lane; i < last; i += walk.lanes())
      sums.add(table[contiguous ? i : i * a.memory.row + plane]);
    sums = sum_over_lanes(sums, 1, walk.lanes());
    if (lane == 0) own[1 + plane] = sums;
  }
  if (!contiguous) return;
  block_barrier();
  if (warp > 0) return;
  Sums weighted;
  for (int i = lane; i < walk.planes(); i += walk.lanes()) {
    const int plane = walk.first_plane() + i;
    const double weight = a.weight.at(plane / a.strips.c, plane % a.strips.c, W(1));
    weighted.add({weight * own[1 + i].first, weight * own[1 + i].second});
  }
  weighted = sum_over_lanes(weighted, 1, walk.lanes());
  if (lane == 0) own[0] = weighted;
}

template <class W>
__device__ void write_sums(const NormArguments& a, int64_t plane, const Sums& sums) {
  static_cast<W*>(a.sum_grad)[plane] = W(sums.first);
  static_cast<W*>(a.sum_grad_normalized)[plane] = W(sums.second);
}

// Adds up over the team: level and slope of each group go into the results, the sums of each plane
// to where they are wanted.
template <class W, int kLanes, NormLayout kLayout>
__device__ void find_means(const NormArguments& a, const Walk<kLanes, kLayout>& walk,
                           const Team& team, int round) {
  const int warp = walk.warp(), lane = walk.lane();
  Sums* results = reinterpret_cast<Sums*>(own_memory<kLayout>(a) + a.memory.results);
  const double count = double(a.strips.group) * double(a.strips.pixels);
  const auto sums_of = [&](int rank) {
    return reinterpret_cast<const Sums*>(team.of(rank, round));
  };
  if constexpr (kLayout != NormLayout::channels_last) {
    if (warp == 0) {
      Sums weighted;
      for (int rank = lane; rank < team.size(); rank += walk.lanes())
        weighted.add(sums_of(rank)[0]);
      weighted = sum_over_lanes(weighted, 1, walk.lanes());
      if (lane == 0) results[0] = {weighted.first / count, weighted.second / count};
    }
    // The block that has the first element of a plane adds up the parts of those after it. Only its
    // last plane may have such parts.
    const int64_t length = a.strips.group * a.strips.pixels, slice = a.strips.slice;
    const int last = walk.planes() - 1;
    for (int i = walk.thread(); i < last; i += walk.threads())
      if (walk.begins(i)) write_sums<W>(a, walk.first_plane() + i, sums_of(team.rank())[1 + i]);
    if (warp == 1 % walk.warps() && last >= 0 && walk.begins(last)) {
      const int64_t plane = walk.first_plane() + last, start = plane / a.strips.group * length;
      const int64_t end = (plane + 1) * a.strips.pixels - start;
      Sums sums;
      if (lane == 0) sums = sums_of(team.rank())[1 + last];
      for (int rank = team.rank() + 1 + lane; rank * slice < end; rank += walk.lanes())
        sums.add(sums_of(rank)[1]);
      sums = sum_over_lanes(sums, 1, walk.lanes());
      if (lane == 0) write_sums<W>(a, plane, sums);
    }
  } else {
    Sums* of_channels = results + walk.groups();
    for (int i = warp; i < walk.planes(); i += walk.warps()) {
      Sums sums;
      for (int rank = lane; rank < team.size(); rank += walk.lanes())
        sums.add(sums_of(rank)[1 + i]);
      sums = sum_over_lanes(sums, 1, walk.lanes());
      if (lane > 0) continue;
      of_channels[i] = sums;
      if (team.rank() == 0) write_sums<W>(a, walk.first_plane() + i, sums);
    }
    block_barrier();
    const int image = walk.first_plane() / a.strips.c, channel = walk.first_plane() % a.strips.c;
    for (int group = warp; group < walk.groups(); group += walk.warps()) {
      Sums weighted;
      for (int i = group * a.strips.group + lane; i < (group + 1) * a.strips.group;
           i += walk.lanes()) {
        const double weight = a.weight.at(image, channel + i, W(1));
        weighted.add({weight * of_channels[i].first, weight * of_channels[i].second});
      }
      weighted = sum_over_lanes(weighted, 1, walk.lanes());
      if (lane == 0) results[group] = {weighted.first / count, weighted.second / count};
    }
  }
}

// Writes the gradients for a lane's vectors of a span, from the last one on.
template <bool kWhole, class T, int kLanes, NormLayout kLayout, int kCount>
__device__ void write_span(const NormArguments& a, Span span,
                           const Gradient<T, kLanes, kLayout>& of_span,
                           const Wide<T> (&level)[kCount], const Wide<T> (&slope)[kCount]) {
  using W = Wide<T>;
  constexpr int kMost = kGradientVectors<T, kLanes, kLayout>,
                kAtOnce = kWhole && kMost > 1 ? kMost / 2 : 1;
  const T *x = static_cast<const T*>(a.x), *grad = static_cast<const T*>(a.grad);
  const T* residual = static_cast<const T*>(a.residual);
  const auto *kept_x = kept_vectors<T, kLanes, kLayout>(0, a),
             *kept_grad = kept_vectors<T, kLanes, kLayout>(1, a);
  const auto load = [&](const T* tensor, int64_t vector) {
    return kWhole ? load_whole<T, kLanes>(tensor, vector)
                  : load_vector<T, kLanes>(tensor, vector, a.strips.elements);
  };
  const auto store = [&](void* tensor, const Vector<T, kLanes>& vector) {
    if (kWhole)
      store_whole(static_cast<T*>(tensor), span.vector, vector);
    else
      store_vector(static_cast<T*>(tensor), span.vector, vector, span.lo, span.hi);
  };
  for (int left = span.count; left > 0; left -= kAtOnce) {
    Vector<T, kLanes> xs[kAtOnce], grads[kAtOnce], residuals[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      const int64_t vector = span.vector - i * span.step;
      const int slot = span.slot - i * span.slot_step;
      const bool kept = slot < a.memory.kept;
      xs[i] = kept ? kept_x[slot] : load(x, vector);
      grads[i] = kept ? kept_grad[slot] : load(grad, vector);
      if (residual != nullptr) residuals[i] = load(residual, vector);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      W normalized[kLanes], g[kLanes];
      of_span.find(xs[i], grads[i], residuals[i], normalized, g);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int of = kCount == 1 ? 0 : lane;
        W projected = g[lane] * of_span.affine(lane).weight;
        if (a.own_stats) projected -= level[of] + normalized[lane] * slope[of];
        T rounded;
        round_to(projected * of_span.affine(lane).statistics.rstd(), rounded);
        xs[i].set(lane, rounded);
        round_to(g[lane], rounded);
        grads[i].set(lane, rounded);
      }
      store(a.grad_x, xs[i]);
      if (a.grad_residual != nullptr) store(a.grad_residual, grads[i]);
      span.vector -= span.step;
      span.slot -= span.slot_step;
    }
  }
}

// Writes the gradients for the block's slice.
template <class T, int kLanes, NormLayout kLayout>
__device__ void write_gradients(const NormArguments& a, const Walk<kLanes, kLayout>& walk) {
  using W = Wide<T>;
  constexpr bool kContiguous = kLayout != NormLayout::channels_last;
  constexpr int kCount = Gradient<T, kLanes, kLayout>::kCount;
  const Sums* results = reinterpret_cast<const Sums*>(own_memory<kLayout>(a) + a.memory.results);
  const int spans = walk.spans(), step = walk.span_step(), first = walk.first_span();
  // The last spans come first, as in the forward kernel.
  for (int index = first + (spans - 1 - first) / step * step; index >= first && spans > first;
       index -= step) {
    Span span = walk.span(index);
    if (span.count == 0) continue;
    const Gradient<T, kLanes, kLayout> of_span(a, span);
    W level[kCount]{}, slope[kCount]{};
    for (int i = 0; i < kCount; ++i) {
      const Sums& means = results[kContiguous ? 0 : (span.local + i) / a.strips.group];
      level[i] = W(means.first);
      slope[i] = W(means.second);
    }
    span.vector += (span.count - 1) * span.step;
    span.slot += (span.count - 1) * span.slot_step;
    if (!kContiguous || span.whole)
      write_span<true>(a, span, of_span, level, slope);
    else
      write_span<false>(a, span, of_span, level, slope);
  }
}

template <class T, int kLanes, NormLayout kLayout>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<T>)
    instance_norm_backward_kernel(const NormArguments a) {
  using W = Wide<T>;
  const Team team(a.team, own_memory<kLayout>(a) + a.memory.own);
  for (int round = 0; has_strips<kLayout>(a, round); ++round) {
    const int64_t strip =
        kLayout == NormLayout::small ? team.strip_of_part(a.strips.count) : team.strip(round);
    const bool present =
        kLayout == NormLayout::small || strip < a.strips.count;  // else there are barriers only
    const Walk<kLanes, kLayout> walk(a.strips, present ? int(strip) : 0,
                                     present ? team.rank() : a.strips.team);
    if (present) read_sums<T>(a, walk);
    block_barrier();
    if (present) publish_sums<W>(a, walk, reinterpret_cast<Sums*>(team.own(round)));
    team.barrier();
    if (present) find_means<W>(a, walk, team, round);
    block_barrier();
    team.done_reading();
    if (present) write_gradients<T>(a, walk);
    block_barrier();  // before the next round
  }
  team.leave();
}

}  // namespace stylekernels::device
