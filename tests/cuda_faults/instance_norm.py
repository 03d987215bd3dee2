"""Faults of the kernels of instance and group norm.

A check is that of the tests of group norm: output and gradients by the accuracy rule.
"""

from collections.abc import Callable, Sequence

import torch

from tests.conftest import assert_accurate, random
from tests.cuda_faults.fault import Fault, Kernels, by_kind
from tests.emulated_cuda import LIMITS
from tests.instance_norms import exact, in_torch, ours
from tests.test_group_norm import check


def norm(shape: Sequence[int], groups: int, layout: str = "contiguous") -> Callable[[], None]:
    """A check of group_norm and its gradients."""

    def run() -> None:
        x = random(*shape, layout=layout, scale=2.0, shift=5.0)
        tensors = {"x": x, "weight": random(*shape[:2], seed=1), "bias": random(shape[1], seed=2)}
        check(tensors, groups=groups, activation="silu", grad_layout=layout)

    return run


def given_stats() -> None:
    x, mean = random(2, 40, 21, 23, scale=2.0, layout="channels_last"), random(40, seed=1)
    var = random(40, seed=2).abs() + 0.5
    expected = exact(x.double(), mean=mean.double(), var=var.double())
    assert_accurate(ours(x, mean=mean, var=var), in_torch(x, mean=mean, var=var), expected)


def large_values() -> None:
    """Two values with unequal counts; their squares exceed float32."""
    x = torch.where(random(1, 8, 21, 23) < -0.3, -1e30, 1e30)
    torch.testing.assert_close(ours(x).double(), exact(x.double()), rtol=1e-6, atol=0)


CHECKS = {
    "planes of 9": norm((2, 64, 3, 3), 4),
    "odd planes": norm((1, 3, 37, 41), 3),
    "large planes": norm((1, 3, 101, 103), 3),
    "large groups": norm((1, 12, 61, 67), 2),
    "whole planes": norm((1, 8, 32, 64), 1),
    "channels_last": norm((2, 48, 20, 31), 4, "channels_last"),
    "whole rounds": norm((2, 48, 20, 32), 4, "channels_last"),
    "pairs of channels": norm((2, 36, 17, 19), 18, "channels_last"),
    "large channels_last": norm((1, 40, 60, 70), 5, "channels_last"),
    "small planes": norm((2, 37, 7, 9), 37),
    "given stats": given_stats,
    "large values": large_values,
}


FORWARD, BACKWARD = "instance_norm_forward.cuh", "instance_norm_backward.cuh"
CLUSTERS, GRID, LITTLE = ("clusters",), ("grid",), ("little memory",)
READ_TWICE = ("grid", "little memory")  # in the large checks

BARRIERS = {
    "forward: table, sums of a block": Fault(
        FORWARD,
        "read_moments<T>(a, walk);\n      block_barrier();",
        "read_moments<T>(a, walk);",
        "odd planes",
    ),
    "forward: exchange in a cluster or grid": Fault(
        FORWARD,
        "      team.barrier();\n",
        "",
        "large groups",
    ),
    "forward: results, writing": Fault(
        FORWARD,
        "    block_barrier();\n    if (!given) team.done",
        "    if (!given) team.done",
        "odd planes",
    ),
    "forward: given statistics, writing": Fault(
        FORWARD,
        "    block_barrier();\n    if (!given) team.done",
        "    if (!given) block_barrier();\n    if (!given) team.done",
        "given stats",
    ),
    "forward: next round": Fault(
        FORWARD,
        "    block_barrier();  // before the next round\n",
        "",
        "large planes",
        GRID,
    ),
    "forward: leave": Fault(
        FORWARD,
        "  if (!given) team.leave();\n",
        "",
        "large groups",
        CLUSTERS,
        seen=0.5,
        message="which has exited",
    ),
    "backward: table, sums of a block": Fault(
        BACKWARD,
        "read_sums<T>(a, walk);\n    block_barrier();",
        "read_sums<T>(a, walk);",
        "odd planes",
    ),
    "backward: sums of planes, of a block": Fault(
        BACKWARD,
        "  if (!contiguous) return;\n  block_barrier();\n",
        "  if (!contiguous) return;\n",
        "planes of 9",
    ),
    "backward: exchange": Fault(
        BACKWARD,
        "    team.barrier();\n",
        "",
        "large groups",
    ),
    "backward: sums of channels, of groups": Fault(
        BACKWARD,
        "    }\n    block_barrier();\n    const int image",
        "    }\n    const int image",
        "channels_last",
    ),
    "backward: means, writing": Fault(
        BACKWARD,
        "    block_barrier();\n    team.done",
        "    team.done",
        "odd planes",
    ),
    "backward: next round": Fault(
        BACKWARD,
        "    block_barrier();  // before the next round\n",
        "",
        "large planes",
        GRID,
    ),
    "backward: leave": Fault(
        BACKWARD,
        "  team.leave();\n",
        "",
        "large groups",
        CLUSTERS,
        seen=0.5,
        message="which has exited",
    ),
    "team: wait of a cluster": Fault(
        "team.cuh",
        "cluster_arrive();\n      cluster_wait();",
        "cluster_arrive();",
        "large groups",
        CLUSTERS,
    ),
    "team: barrier of a grid": Fault(
        "team.cuh",
        "      grid_barrier();",
        "      block_barrier();",
        "large groups",
        READ_TWICE,
    ),
    "team: buffers alternate": Fault(
        "team.cuh",
        "int64_t(round % 2)",
        "int64_t(0)",
        "large planes",
        GRID,
        seen=0.5,
    ),
}

TAILS = {
    "moments: before the plane": Fault(
        "moments.cuh",
        "if (first + i < lo || first + i >= hi) continue;\n      add(",
        "if (first + i >= hi) continue;\n      add(",
        "odd planes",
    ),
    "moments: behind the plane": Fault(
        "moments.cuh",
        "if (first + i < lo || first + i >= hi) continue;\n      add(",
        "if (first + i < lo) continue;\n      add(",
        "odd planes",
    ),
    "sums: before the plane": Fault(
        BACKWARD,
        "(element + j < span.lo || element + j >= span.hi)",
        "element + j >= span.hi",
        "odd planes",
    ),
    "sums: behind the plane": Fault(
        BACKWARD,
        "(element + j < span.lo || element + j >= span.hi)",
        "element + j < span.lo",
        "odd planes",
    ),
    "stores: before the plane": Fault(
        "vectors.cuh",
        "if (kLanes > 1 && first >= begin && first + kLanes <= end)",
        "if (kLanes > 1 && first + kLanes > begin && first + kLanes <= end)",
        "odd planes",
        seen=0.5,
    ),
    "stores: behind the plane": Fault(
        "vectors.cuh",
        "if (kLanes > 1 && first >= begin && first + kLanes <= end)",
        "if (kLanes > 1 && first >= begin && first < end)",
        "odd planes",
        seen=0.5,
    ),
    "loads: end of the tensor": Fault(
        "vectors.cuh",
        "if (first + lane < count) vector.set",
        "if (first + lane + 1 < count) vector.set",
        "odd planes",
    ),
    "channels_last: pixels of the last block": Fault(
        "strips.cuh",
        "end_ = min64(begin_ + strips.slice, strips.pixels);",
        "end_ = begin_ + strips.slice;",
        "large channels_last",
        CLUSTERS,
    ),
    "channels_last: narrower last strip": Fault(
        "strips.cuh",
        "width_ = column_ + strips.width <= strips.row ? strips.width : strips.row - column_;",
        "width_ = strips.width;",
        "channels_last",
    ),
    "spans that end within a vector": Fault(
        "strips.cuh",
        "span.whole = (span.lo | span.hi) % kLanes == 0;",
        "span.whole = span.lo % kLanes == 0;",
        "odd planes",
    ),
    "channels_last: lanes behind a strip": Fault(
        "strips.cuh",
        "span.count = column < width_ && left > 0 ?",
        "span.count = left > 0 ?",
        "channels_last",
    ),
    "contiguous: elements of the last block": Fault(
        "strips.cuh",
        "end_ = min64(start + length, begin_ + strips.slice);",
        "end_ = begin_ + strips.slice;",
        "large groups",
    ),
    "channels_last: vectors of a lane, in reverse order": Fault(
        FORWARD,
        "span.vector += (span.count - 1) * span.step;",
        "span.vector += span.count * span.step;",
        "whole rounds",
        CLUSTERS,
    ),
}

INDICES = {
    "forward: a vector is kept over the table": Fault(
        FORWARD,
        "if (span.slot < a.memory.kept) kept[span.slot] = vector;",
        "if (span.slot <= a.memory.kept) kept[span.slot] = vector;",
        "large groups",
        LITTLE,
        seen=0.5,
    ),
    "backward: a vector is kept over the next tensor's": Fault(
        BACKWARD,
        "      if (span.slot < a.memory.kept) {",
        "      if (span.slot <= a.memory.kept) {",
        "large groups",
        READ_TWICE,
    ),
    "plan: kept vectors overlap the table": Fault(
        "instance_norm_plan.cuh",
        "memory.table = int(whole(memory.kept * bytes, 16));",
        "memory.table = int(whole(memory.kept * bytes, 16)) - 16;",
        "large groups",
        READ_TWICE,
    ),
    "forward: takes what was not kept": Fault(
        FORWARD,
        "values[i] = slot < a.memory.kept",
        "values[i] = slot <= a.memory.kept",
        "large groups",
        LITTLE,
    ),
    "backward: takes what was not kept": Fault(
        BACKWARD,
        "const bool kept = slot < a.memory.kept;",
        "const bool kept = slot <= a.memory.kept;",
        "large groups",
        READ_TWICE,
    ),
    "forward: reverse order from another warp's span": Fault(
        FORWARD,
        "int index = first + (spans - 1 - first) / step * step;",
        "int index = spans - 1;",
        "large groups",
    ),
    "forward: row of the table": Fault(
        FORWARD,
        "table[i / entries * a.memory.row + group * entries + i % entries]",
        "table[i % a.memory.rows * a.memory.row + group * entries + i % entries]",
        "large channels_last",
    ),
    "forward: entries of a group": Fault(
        FORWARD,
        "table[i / entries * a.memory.row + group * entries + i % entries]",
        "table[i / entries * a.memory.row + group + i % entries]",
        "channels_last",
    ),
    "forward: lanes that share a column": Fault(
        FORWARD,
        "sums = sum_over_lanes(sums, a.strips.lanes, kWarp);",
        "sums = sum_over_lanes(sums, 2 * a.strips.lanes, kWarp);",
        "pairs of channels",
    ),
    "moments: added about another shift": Fault(
        "moments.cuh",
        "    other.move_to(shift);\n",
        "",
        "odd planes",
    ),
    "moments: the shift moves alone": Fault(
        "moments.cuh",
        "      moments.move_to(double(shift));\n",
        "",
        "large planes",
    ),
    "moments: squares that exceed float32": Fault(
        "moments.cuh",
        "    return !finite;\n",
        "    return false;\n",
        "large values",
    ),
    "backward: part of a plane in the next block": Fault(
        BACKWARD,
        "      for (int rank = team.rank() + 1 + lane; rank * slice < end; rank += walk.lanes())\n"
        "        sums.add(sums_of(rank)[1]);\n",
        "",
        "large groups",
    ),
    "backward: a plane that ends with its block": Fault(
        BACKWARD,
        "rank * slice < end; rank += walk.lanes()",
        "rank * slice <= end && rank < team.size(); rank += walk.lanes()",
        "whole planes",
        CLUSTERS,
    ),
    "backward: a plane that begins with its block": Fault(
        "strips.cuh",
        "strips_.pixels >= begin_;",
        "strips_.pixels > begin_;",
        "whole planes",
    ),
    "backward: first span of a block": Fault(
        "strips.cuh",
        "return index == 0 ? 0 : int((first_plane() + index) * pieces_ - first_);",
        "return int((first_plane() + index) * pieces_ - first_);",
        "large groups",
        CLUSTERS,
    ),
    "parameters: image": Fault(
        "instance_norm.cuh",
        "index = image * stride + channel;",
        "index = channel;",
        "planes of 9",
    ),
}

PARTS = {
    "behind the last strip": Fault(
        "team.cuh",
        "return strip < count ? strip : count - 1;",
        "return strip;",
        "small planes",
    ),
    "memory of another part": Fault(
        "instance_norm.cuh",
        "(thread_index() >> a.team.shift) * a.memory.bytes",
        "(thread_index() >> a.team.shift) / 2 * a.memory.bytes",
        "small planes",
    ),
    "sums over the lanes of other parts": Fault(
        FORWARD,
        "sum_over_lanes(moments.result(0), 1, walk.lanes())",
        "sum_over_lanes(moments.result(0), 1, kWarp)",
        "small planes",
    ),
    "statistics of another part": Fault(
        FORWARD,
        "shuffle(sums.mean(), walk.first_lane())",
        "shuffle(sums.mean(), 0)",
        "small planes",
    ),
    "backward: sums over the lanes of other parts": Fault(
        BACKWARD,
        "sum_over_lanes(sums[i], kContiguous ? 1 : a.strips.lanes, walk.lanes())",
        "sum_over_lanes(sums[i], kContiguous ? 1 : a.strips.lanes, kWarp)",
        "small planes",
    ),
}

ALL_DTYPES = "  return for_dtype(dtype_of(x), [&](auto element) {"
FLOAT32 = """  const auto for_float32 = [](DType, const auto& f) { return f(float{}); };
  return for_float32(dtype_of(x), [&](auto element) {"""

KERNELS = Kernels(
    source="instance_norm.cu",
    limits=LIMITS,
    checks=CHECKS,
    fewer_types=((ALL_DTYPES, FLOAT32),),
    faults=by_kind({"barrier": BARRIERS, "tail": TAILS, "index": INDICES, "part": PARTS}),
)
