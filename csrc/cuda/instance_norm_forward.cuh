// Forward kernel of instance and group norm, one launch.
//
// Bytes: x and the residual are read once and y is written once, if the slices of a strip fit into
// the shared memory of its team; what does not fit is read twice, the second time in reverse order,
// so that the newest part comes from the L2 cache. Operations: 3 additions and multiplications a
// value for the moments, 4 and the activation to write it. Values whose squares exceed float32 are
// read twice.
//
// Occupancy on an H200: up to 128 registers, so that 2 blocks of 256 threads share a multiprocessor
// with 40 KB of x each. 512 threads with 4 loads of 16 bytes in flight are 32 KB; 4.25 TB/s times a
// latency of 800 ns are 26 KB for each of 132.
//
// Instructions for a vector of 16 bytes and a warp, contiguous, ReLU: 52 to read it and some 100 to
// write it, 38 cycles of a multiprocessor, where 4.25 TB/s allow 56. Activations are chosen once a
// vector, and elements of spans of whole vectors have no bounds.
//
// Floor on an H200: twice the size of x at 4.25 TB/s. Predicted, not measured, in bfloat16:
//   8 x 32 x 256 x 256, 34 MB, clusters of 4: floor 16 us, with a launch and an exchange 20
//   128 x 270 x 480, 33 MB, clusters of 8: the same
//   32 x 1080 x 1920, 133 MB: floor 62 us. A plane exceeds a cluster; 6 teams of 44 blocks take 6
//   rounds, in which reading, a barrier and writing follow each other: 87 us
//   32 x 512 x 8 x 8, 2 MB: floor 1 us. 64 planes a block, of 4 lanes each: all 256 threads load 2
//   vectors, and the 256 blocks run at the same time. 1,100 instructions of each of 16 warps are
//   4,400 cycles of a multiprocessor, 2.4 us; with a launch and a load's latency 6. A block for
//   each plane has 8 of 256 threads at work: 62 times 264 blocks of 2 us, 120 us
#pragma once

#include "instance_norm.cuh"

namespace stylekernels::device {

// Returns how many elements of a vector an entry of the table has in channels_last: all of them
// where a vector has one group, else one.
template <int kLanes>
__device__ int elements_of_entry(const NormArguments& a) {
  return a.strips.group % kLanes == 0 ? kLanes : 1;
}

// Adds a lane's vectors of a span to its moments, and keeps what fits.
template <class T, int kLanes, NormLayout kLayout>
__device__ void add_moments(const NormArguments& a, Span span,
                            LaneMoments<T, kLanes, kLayout>& moments) {
  constexpr int kCount = LaneMoments<T, kLanes, kLayout>::kCount;
  constexpr int kAtOnce = kHopper || kCount < 8 ? 4 : 2;
  const T* x = static_cast<const T*>(a.x);
  auto* kept = kept_vectors<T, kLanes, kLayout>(0, a);
  if (kLayout == NormLayout::channels_last || span.whole) {
    for (int done = 0; done < span.count; done += kAtOnce) {
      Vector<T, kLanes> vectors[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (done + i < span.count)
          vectors[i] = load_whole<T, kLanes>(x, span.vector + i * span.step);
      if (moments.empty()) moments.choose_shift(vectors[0], span.vector * kLanes, span.lo, span.hi);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (done + i >= span.count) continue;
        if (span.slot < a.memory.kept) kept[span.slot] = vectors[i];
        moments.add(vectors[i]);
        span.slot += span.slot_step;
      }
      span.vector += kAtOnce * span.step;
      moments.settle_if_many();
    }
  } else {
    for (; span.count > 0; --span.count) {
      const Vector<T, kLanes> vector = load_vector<T, kLanes>(x, span.vector, a.strips.elements);
      if (moments.empty()) moments.choose_shift(vector, span.vector * kLanes, span.lo, span.hi);
      if (span.slot < a.memory.kept) kept[span.slot] = vector;
      moments.add(vector, span.vector * kLanes, span.lo, span.hi);
      span.vector += span.step;
      span.slot += span.slot_step;
      moments.settle_if_many();
    }
  }
}

// Adds a lane's vectors of the warp's spans in [first, last), and keeps what fits.
template <class T, int kLanes, NormLayout kLayout>
__device__ void find_moments(const NormArguments& a, const Walk<kLanes, kLayout>& walk, int first,
                             int last, LaneMoments<T, kLanes, kLayout>& moments) {
  moments = {};
  for (int index = first; index < last; index += walk.span_step())
    add_moments(a, walk.span(index), moments);
  moments.finish();
  if (!moments.exceeds_float32()) return;
  const T* x = static_cast<const T*>(a.x);
  moments.restart();
  for (int index = first; index < last; index += walk.span_step()) {
    for (Span span = walk.span(index); span.count > 0; --span.count) {
      const auto vector = kLayout == NormLayout::channels_last
                              ? load_whole<T, kLanes>(x, span.vector)
                              : load_vector<T, kLanes>(x, span.vector, a.strips.elements);
      moments.add_in_double(vector, span.vector * kLanes, span.lo, span.hi);
      span.vector += span.step;
    }
  }
}

// Reads the block's slice, keeps what fits, and writes the moments of each warp into the table.
template <class T, int kLanes, NormLayout kLayout>
__device__ void read_moments(const NormArguments& a, const Walk<kLanes, kLayout>& walk) {
  Moments* table = reinterpret_cast<Moments*>(own_memory<kLayout>(a) + a.memory.table);
  const int warp = walk.warp(), lane = walk.lane();
  LaneMoments<T, kLanes, kLayout> moments;
  if constexpr (kLayout != NormLayout::channels_last) {
    find_moments(a, walk, walk.first_span(), walk.spans(), moments);
    const Moments sums = sum_over_lanes(moments.result(0), 1, walk.lanes());
    if (lane == 0) table[warp] = sums;
  } else {
    for (int index = walk.first_span(); index < walk.spans(); index += walk.span_step()) {
      find_moments(a, walk, index, index + 1, moments);
      const Span span = walk.span(index);
      const bool writes = lane < a.strips.lanes && span.local < walk.planes();
      Moments* entries =
          table + walk.warp_row() * a.memory.row + span.local / elements_of_entry<kLanes>(a);
      Moments all;
      for (int i = 0; i < LaneMoments<T, kLanes, kLayout>::kCount; ++i) {
        Moments sums = moments.result(i);
        if (elements_of_entry<kLanes>(a) == 1) {
          sums = sum_over_lanes(sums, a.strips.lanes, kWarp);
          if (writes) entries[i] = sums;
        } else {
          all.add(sums);
        }
      }
      if (elements_of_entry<kLanes>(a) > 1) {
        all = sum_over_lanes(all, a.strips.lanes, kWarp);
        if (writes) entries[0] = all;
      }
    }
  }
}

// Adds up the moments of each group over the warps of the block, and publishes them.
template <int kLanes, NormLayout kLayout>
__device__ void publish_moments(const NormArguments& a, const Walk<kLanes, kLayout>& walk,
                                Moments* own) {
  const int warp = walk.warp(), lane = walk.lane();
  const Moments* table = reinterpret_cast<const Moments*>(own_memory<kLayout>(a) + a.memory.table);
  const int entries =
      kLayout != NormLayout::channels_last ? 1 : a.strips.group / elements_of_entry<kLanes>(a);
  for (int group = warp; group < walk.groups(); group += walk.warps()) {
    Moments sums;
    for (int i = lane; i < entries * a.memory.rows; i += walk.lanes())
      sums.add(table[i / entries * a.memory.row + group * entries + i % entries]);
    sums = sum_over_lanes(sums, 1, walk.lanes());
    if (lane == 0) own[group] = sums;
  }
}

// Adds up the moments of each group over the team, and puts its statistics into the results and,
// for all its channels, to where they are wanted.
template <class W, int kLanes, NormLayout kLayout>
__device__ void find_statistics(const NormArguments& a, const Walk<kLanes, kLayout>& walk,
                                const Team& team, int round) {
  const int warp = walk.warp(), lane = walk.lane();
  GroupStatistics<W>* results =
      reinterpret_cast<GroupStatistics<W>*>(own_memory<kLayout>(a) + a.memory.results);
  W *mean = static_cast<W*>(a.mean), *rstd = static_cast<W*>(a.rstd), *var = static_cast<W*>(a.var);
  const int64_t planes = int64_t(a.strips.n) * a.strips.c;
  for (int group = warp; group < walk.groups(); group += walk.warps()) {
    Moments sums;
    for (int rank = lane; rank < team.size(); rank += walk.lanes())
      sums.add(reinterpret_cast<const Moments*>(team.of(rank, round))[group]);
    sums = sum_over_lanes(sums, 1, walk.lanes());
    const double exact = shuffle(sums.mean(), walk.first_lane());
    const double variance = shuffle(sums.variance(), walk.first_lane());
    const double deviation = inverse_deviation(variance, a.eps);
    const W rounded = W(exact), error = W(exact - double(rounded));
    if (lane == 0) results[group] = {rounded, error, deviation};
    if (team.rank() > 0) continue;
    for (int i = lane; i < a.strips.group; i += walk.lanes()) {
      const int64_t plane = walk.first_plane() + int64_t(group) * a.strips.group + i;
      mean[plane] = rounded;
      if (a.exact) mean[planes + plane] = error;
      if (rstd != nullptr) rstd[plane] = W(deviation);
      if (var != nullptr) var[plane] = W(variance);
    }
  }
}

// Takes the given statistics of the strip's planes. Groups are single channels then.
template <class W, int kLanes, NormLayout kLayout>
__device__ void take_statistics(const NormArguments& a, const Walk<kLanes, kLayout>& walk,
                                bool first) {
  GroupStatistics<W>* results =
      reinterpret_cast<GroupStatistics<W>*>(own_memory<kLayout>(a) + a.memory.results);
  const int64_t planes = int64_t(a.strips.n) * a.strips.c;
  for (int i = walk.thread(); i < walk.planes(); i += walk.threads()) {
    const int plane = walk.first_plane() + i, image = plane / a.strips.c;
    const int channel = plane % a.strips.c;
    const double variance = a.var_in.at(image, channel, 1.0);
    const double deviation = inverse_deviation(variance, a.eps);
    const W mean = a.mean_in.at(image, channel, W(0));
    results[i] = {mean, W(0), deviation};
    if (!first) continue;
    static_cast<W*>(a.mean)[plane] = mean;
    static_cast<W*>(a.mean)[planes + plane] = 0;
    static_cast<W*>(a.rstd)[plane] = W(deviation);
  }
}

// Writes y for a lane's vectors of a span, from the last one on.
template <bool kWhole, int kAtOnce, class T, int kLanes, NormLayout kLayout, int kCount>
__device__ void write_span(const NormArguments& a, Span span,
                           const Affine<Wide<T>> (&affine)[kCount], const T* x) {
  using W = Wide<T>;
  const T* residual = static_cast<const T*>(a.residual);
  const auto* kept = kept_vectors<T, kLanes, kLayout>(0, a);
  for (int left = span.count; left > 0; left -= kAtOnce) {
    Vector<T, kLanes> values[kAtOnce], added[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      const int64_t vector = span.vector - i * span.step;
      const int slot = span.slot - i * span.slot_step;
      values[i] = slot < a.memory.kept ? kept[slot]
                  : kWhole             ? load_whole<T, kLanes>(x, vector)
                                       : load_vector<T, kLanes>(x, vector, a.strips.elements);
      if (residual != nullptr)
        added[i] = kWhole ? load_whole<T, kLanes>(residual, vector)
                          : load_vector<T, kLanes>(residual, vector, a.strips.elements);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= left) continue;
      W z[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const Affine<W>& affine_of = affine[kCount == 1 ? 0 : lane];
        z[lane] = affine_of.statistics.normalized(values[i].get(lane)) * affine_of.weight +
                  affine_of.bias;
      }
      if (residual != nullptr && a.residual_first)
        for (int lane = 0; lane < kLanes; ++lane) z[lane] += widen(added[i].get(lane));
      activate_all(z, a.activation, W(a.negative_slope));
      if (residual != nullptr && !a.residual_first)
        for (int lane = 0; lane < kLanes; ++lane) z[lane] += widen(added[i].get(lane));
      for (int lane = 0; lane < kLanes; ++lane) {
        T rounded;
        round_to(z[lane], rounded);
        values[i].set(lane, rounded);
      }
      if (kWhole)
        store_whole(static_cast<T*>(a.y), span.vector, values[i]);
      else
        store_vector(static_cast<T*>(a.y), span.vector, values[i], span.lo, span.hi);
      span.vector -= span.step;
      span.slot -= span.slot_step;
    }
  }
}

// Writes y for the block's slice.
template <class T, int kLanes, NormLayout kLayout>
__device__ void write_normalized(const NormArguments& a, const Walk<kLanes, kLayout>& walk) {
  using W = Wide<T>;
  constexpr bool kContiguous = kLayout != NormLayout::channels_last;
  constexpr int kCount = LaneMoments<T, kLanes, kLayout>::kCount, kAtOnce = kContiguous   ? 4
                                                                            : kCount == 8 ? 1
                                                                                          : 2;
  const T* x = static_cast<const T*>(a.x);
  const auto* results =
      reinterpret_cast<const GroupStatistics<W>*>(own_memory<kLayout>(a) + a.memory.results);
  const int spans = walk.spans(), step = walk.span_step(), first = walk.first_span();
  // The last spans come first: if they were not kept, they are the newest in the L2 cache.
  for (int index = first + (spans - 1 - first) / step * step; index >= first && spans > first;
       index -= step) {
    Span span = walk.span(index);
    if (span.count == 0) continue;
    Affine<W> affine[kCount];
    for (int i = 0; i < kCount; ++i) {
      const int plane = span.plane + i, image = plane / a.strips.c, channel = plane % a.strips.c;
      const auto& group = results[kContiguous ? 0 : (span.local + i) / a.strips.group];
      affine[i] = {group, a.weight.at(image, channel, W(1)), a.bias.at(image, channel, W(0))};
    }
    span.vector += (span.count - 1) * span.step;
    span.slot += (span.count - 1) * span.slot_step;
    if (!kContiguous || span.whole)
      write_span<true, kAtOnce, T, kLanes, kLayout>(a, span, affine, x);
    else
      write_span<false, 1, T, kLanes, kLayout>(a, span, affine, x);
  }
}

template <class T, int kLanes, NormLayout kLayout>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<T>)
    instance_norm_kernel(const NormArguments a) {
  using W = Wide<T>;
  const Team team(a.team, own_memory<kLayout>(a) + a.memory.own);
  const bool given = a.mean_in.data != nullptr;
  for (int round = 0; has_strips<kLayout>(a, round); ++round) {
    const int64_t strip =
        kLayout == NormLayout::small ? team.strip_of_part(a.strips.count) : team.strip(round);
    const bool present =
        kLayout == NormLayout::small || strip < a.strips.count;  // else there are barriers only
    const Walk<kLanes, kLayout> walk(a.strips, present ? int(strip) : 0,
                                     present ? team.rank() : a.strips.team);
    if (given) {
      if (present) take_statistics<W>(a, walk, team.rank() == 0);
    } else {
      if (present) read_moments<T>(a, walk);
      block_barrier();
      if (present) publish_moments(a, walk, reinterpret_cast<Moments*>(team.own(round)));
      team.barrier();
      if (present) find_statistics<W>(a, walk, team, round);
    }
    block_barrier();
    if (!given) team.done_reading();
    if (present && a.y != nullptr) write_normalized<T>(a, walk);
    block_barrier();  // before the next round
  }
  if (!given) team.leave();
}

}  // namespace stylekernels::device
