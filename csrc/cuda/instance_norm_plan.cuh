// Plans of instance and group norm: how strips are divided among blocks, and blocks' shared memory.
#pragma once

#include <algorithm>
#include <optional>

#include "instance_norm.cuh"
#include "launch.cuh"

namespace stylekernels::device {

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

// Vectors of a lane and planes of a strip at most, and lanes at least, of a team that is a part of
// a block.
constexpr int64_t kPartVectors = 4, kPartPlanes = 8, kPartLanes = 4;

inline int64_t whole(int64_t a, int64_t multiple) { return divided(a, multiple) * multiple; }

inline int64_t power_of_two(int64_t a) {
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
  NormLayout layout;
  int largest_cluster;  // blocks
};

inline int64_t bytes_of_strip(const Strips& s, const Needs& needs) {
  const int64_t vectors = needs.layout != NormLayout::channels_last
                              ? divided(s.group * s.pixels, needs.lanes)
                              : s.pixels * s.width;
  return vectors * needs.vector_bytes * std::max(1, needs.kept);
}

// Columns of a strip in channels_last: whole groups, or all channels.
inline void divide_columns(Strips& s, const Needs& needs) {
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
inline int64_t divide_slices(Strips& s, const Needs& needs) {
  if (needs.layout == NormLayout::channels_last) {
    s.slice = divided(s.pixels, s.team);
    return 0;
  }
  const bool small = needs.layout == NormLayout::small;
  const int64_t round = (small ? s.lanes : kWarp) * needs.lanes;
  s.slice = divided(s.group * s.pixels, s.team);
  s.unit = std::clamp(whole(divided(s.slice, small ? 1 : kNormWarps), round), round,
                      round * kSpanVectors);
  const int64_t planes = s.slice / s.pixels + 2;
  while (planes + s.slice / s.unit > kLargestTable && s.unit < s.pixels) s.unit *= 2;
  s.slice = whole(s.slice, s.group == 1 ? s.unit : round);
  return 2 * (s.slice / s.pixels + 2) + s.slice / s.unit;
}

// Lays out a block's shared memory. Returns its bytes, more than `limit` if it does not fit.
inline int64_t divide_memory(NormMemory& memory, TeamPlan& team, const Strips& s,
                             const Needs& needs, int64_t spans, int64_t limit) {
  const bool contiguous = needs.layout != NormLayout::channels_last;
  const int64_t width = int64_t(s.width) * needs.lanes;
  const int64_t planes = contiguous ? s.slice / s.pixels + 2 : width;
  int64_t table, own, results;
  memory.rows = needs.layout == NormLayout::small ? 1
                : contiguous                      ? kNormWarps
                                                  : kNormWarps / s.columns;
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
  memory.bytes = int(whole(memory.table + others, 16));
  return memory.bytes;
}

// Plans teams that are parts of a block, and returns the launch; none if the strips are too large.
// A lane loads some vectors at once, and blocks have fewer threads where there are few strips.
inline std::optional<Launch> plan_parts(NormArguments& a, const Needs& needs) {
  const Properties gpu = properties();
  Strips& s = a.strips;
  s.count = s.n * (s.c / s.group);
  const int64_t vectors = divided(s.group * s.pixels, needs.lanes);
  if (s.group > kPartPlanes || vectors > kWarp * kPartVectors) return std::nullopt;
  s.lanes = int(std::max(kPartLanes, power_of_two(divided(vectors, kPartVectors))));
  Launch launch;
  launch.threads = kNormThreads;
  while (launch.threads > kWarp &&
         int64_t(s.count) * s.lanes < int64_t(launch.threads) * 2 * gpu.multiprocessors)
    launch.threads /= 2;
  a.team.kind = TeamKind::single;
  s.team = a.team.size = 1;
  a.team.parts = launch.threads / s.lanes;
  for (a.team.shift = 0; 1 << a.team.shift < s.lanes;) ++a.team.shift;
  launch.blocks = int(divided(s.count, a.team.parts));
  a.team.teams = launch.blocks * a.team.parts;
  const int64_t limit = gpu.shared_bytes / a.team.parts / 16 * 16;
  if (divide_memory(a.memory, a.team, s, needs, divide_slices(s, needs), limit) > limit)
    return std::nullopt;
  launch.shared_bytes = a.team.parts * a.memory.bytes;
  return launch;
}

// Plans strips, teams and memory, and returns the launch. Its shared memory may be more than a
// block can have.
inline Launch plan(NormArguments& a, const Needs& needs) {
  const Properties gpu = properties();
  Strips& s = a.strips;
  if (needs.layout == NormLayout::channels_last) {
    divide_columns(s, needs);
    s.count = s.n * int(divided(s.row, s.width));
  } else {
    s.count = s.n * (s.c / s.group);
  }
  const int64_t bytes = bytes_of_strip(s, needs);
  const int64_t to_fill = std::min(divided(2 * gpu.multiprocessors, s.count),
                                   std::max<int64_t>(1, bytes / kSmallestSlice));
  const int64_t for_sums =
      needs.layout != NormLayout::channels_last ? divided(s.group, kMostPlanes) : 1;
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

}  // namespace stylekernels::device
