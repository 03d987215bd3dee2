"""The emulation of CUDA that tests kernels without a GPU: right kernels give right results, and the
same kernels with one fault are caught. The kernels are in tests/cuda_emulation/checks."""

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulated_cuda import EMULATION, build

SEEDS = range(20)


@pytest.fixture(scope="module")
def checks() -> Path:
    """A program that runs them by name."""
    return build("checks", sorted((EMULATION / "checks").glob("*.cpp")))


def run(checks: Path, *arguments: object, **environment: object) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_EMULATION_")}
    return subprocess.run(
        [checks, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | {f"CUDA_EMULATION_{k.upper()}": str(v) for k, v in environment.items()},
    )


def outcomes(checks: Path, name: str, **environment: object) -> list[str]:
    """What a check says for each of `SEEDS`."""
    result = run(checks, name, *SEEDS, **environment)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(SEEDS)
    return lines


RIGHT = [
    "block_sums",
    "reverse",
    "order",
    "sum_rows",
    "copy_parts",
    "last_block_sums",
    "move16",
    "move_pair",
    "product",
    "load_tile",
    "product_tf32",
    "product_float64",
    "sums_are_truncated",
    "access",
    "first_contents",
    "alignment",
    "local_variables",
    "exception",
    "cluster_sums",
    "grid_sums",
    "halves",
    "launch/largest_block",
    "launch/64_kb_shared",
    "launch/cluster_of_16",
    "launch/cluster_of_16_large",
    "launch/cooperative_16",
    "launch/cooperative_8_large",
    "launch/cooperative_clusters",
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_give_right_results(checks, name) -> None:
    assert set(outcomes(checks, name)) == {"right"}


@pytest.mark.parametrize("name", ["many_waits", "launch/many_blocks", "host_threads"])
def test_large_launches_and_several_at_the_same_time(checks, name) -> None:
    assert run(checks, name).stdout == "right\n"


def test_after_an_exception_launches_go_on(checks) -> None:
    assert run(checks, "after_exception").stdout == "right\n"


# How many of the 20 orders must give a wrong result. A barrier's absence shows in those orders in
# which a thread runs ahead.
RACES = {
    "block_sums/no_first_barrier": 20,
    "block_sums/no_second_barrier": 12,
    "reverse/no_warp_barrier": 20,
    "sum_rows/no_commit": 20,
    "sum_rows/no_wait": 20,
    "sum_rows/late_wait": 20,
    "sum_rows/no_barrier_after_wait": 20,
    "sum_rows/no_barrier_before_refill": 20,
    "last_block_sums/no_barrier": 20,
    "product/no_barrier": 20,
    "product/no_barrier_transposed": 20,
    "load_tile/no_warp_barrier": 20,
    "cluster_sums/no_barrier": 20,
    "grid_sums/no_barrier": 20,
    "grid_sums/no_second_barrier": 20,
}


@pytest.mark.parametrize("name", RACES)
def test_missing_barriers_and_waits_give_wrong_results(checks, name) -> None:
    lines = outcomes(checks, name)
    assert set(lines) <= {"right", "wrong"}
    assert lines.count("wrong") >= RACES[name]


# What the exception's message says.
REFUSED = {
    "reverse/divergent_shuffle": "no thread can go on; in block 0 threads .*wait at a block barrier"
    ".*wait at a shuffle",
    "reverse/divergent_barrier": "exits while others wait for it|for threads that have exited",
    "reverse/two_operations": "meets its warp at another operation: .* wait at a warp barrier, .* "
    "wait at a shuffle",
    "reverse/early_exit": "exits while others wait for it|waits for lanes that have exited",
    "reverse/lane_32": "shuffles from lane 32 of 32",
    "sum_rows/misaligned_from": "begins to copy from an address that is not a multiple of 16",
    "sum_rows/misaligned_to": "begins to copy to an address that is not a multiple of 16",
    "sum_rows/to_global": "begins to copy to .*; expected its block's shared memory",
    "sum_rows/from_shared": "begins to copy from shared memory, byte 0 of 2048; expected global",
    "sum_rows/minus_1_byte": "begins to copy -1 bytes; expected 0 to 16",
    "sum_rows/17_bytes": "begins to copy 17 bytes; expected 0 to 16",
    "last_block_sums/misaligned": "counts at an address that is not a multiple of 4",
    "last_block_sums/shared_counter": "counts at shared memory, byte 0 of 4; expected global",
    "product/divergent": "exits while others wait for it|waits for lanes that have exited",
    "product/two_types": "meets its warp at another operation: .* wait at a multiply of BFloat16, "
    ".* wait at a multiply of Float16",
    "load_tile/divergent": "exits while others wait for it|waits for lanes that have exited",
    "load_tile/two_operations": "meets its warp at another operation: .* wait at a load_matrices, "
    ".* wait at a load_matrices_transposed",
    "load_tile/misaligned": "loads a row of a matrix from byte 24 of 1280; expected a multiple",
    "load_tile/outside": "loads a row of a matrix from byte 1280 of 1280; expected 16 bytes of its "
    "block's shared memory",
    "load_tile/partly_outside": "loads a row of a matrix from byte 1264 of 1272; expected 16 bytes",
    "load_tile/from_global": "loads a row of a matrix from byte .* of 1280; expected 16 bytes",
    "product_tf32/divergent": "exits while others wait for it|waits for lanes that have exited",
    "product_float64/divergent": "exits while others wait for it|waits for lanes that have exited",
    "move16/misaligned_load": "reads 16 bytes from an address that is not a multiple of 16",
    "move16/misaligned_store": "writes 16 bytes to an address that is not a multiple of 16",
    "move_pair/misaligned_load": "accesses an address that is not a multiple of 8",
    "move_pair/misaligned_store": "accesses an address that is not a multiple of 8",
    "move16/store_into_shared": "writes 16 bytes to shared memory, byte 0 of 256; expected global",
    "move16/load_out_of_shared": "reads 16 bytes from shared memory, byte 0 of 256; expected",
    "cluster_sums/no_wait": "arrives at the cluster barrier for the second time without a wait",
    "cluster_sums/no_arrival": "waits at the cluster barrier without having arrived",
    "cluster_sums/one_missing": "no thread can go on; in block 3 threads 0-39, 41-63 wait at the "
    "cluster barrier, threads 40 have exited",
    "cluster_sums/rank_16": "maps shared memory of rank 16 in a cluster of 16",
    "cluster_sums/outside": "maps byte .* of 12; expected its block's shared memory",
    "grid_sums/not_cooperative": "waits at a grid barrier; expected a cooperative launch",
    "grid_sums/one_missing": "no thread can go on; in block 3 threads 0-39, 41-63 wait at the grid "
    "barrier, threads 40 have exited; .*8 more blocks wait",
    "halves/two_barriers": "no thread can go on; in block 0 threads 0-31 wait at a block barrier, "
    "threads 32-63 wait at the grid barrier",
    "exception/thrown": "thrown by a kernel",
    "device_function_on_host": "expected a call in a kernel",
    "launch/no_block": "expected at least 1 block, got 0",
    "launch/1056_threads": "expected 1 to 1024 threads, got 1056",
    "launch/33_threads": "expected threads of whole warps, got 33",
    "launch/too_much_shared": "expected shared_bytes from 0 to 232448, got 232449",
    "launch/cluster_of_17": "expected a cluster of 1 to 16 blocks, got 17",
    "launch/part_of_a_cluster": "expected a multiple of the cluster's 4 blocks, got 6",
    "launch/cooperative_17": "expected at most 16 blocks at the same time, .*, got 17",
    "launch/cooperative_9_large": "expected at most 8 blocks at the same time, .*, got 9",
}


@pytest.mark.parametrize("name", REFUSED)
def test_faults_that_throw(checks, name) -> None:
    for seed, line in zip(SEEDS, outcomes(checks, name), strict=True):
        assert re.match(f"threw .*({REFUSED[name]})", line), line
        in_kernel = not name.startswith(("launch/", "exception/", "device_function"))
        assert not in_kernel or f"CUDA_EMULATION_SEED={seed} repeats this order" in line


# Even seeds place shared memory before an inaccessible page, odd ones after one. There an access
# outside ends the process. On the other side a value read is NaN, and a write is found at the end.
SIDES = {
    "access/read_before": ("wrong", "byte -4 of the 400 bytes of shared memory of block 0"),
    "access/read_after": ("wrong", "wrong"),  # up to a multiple of 128 bytes
    "access/read_far_after": ("byte 4096 of the 400 bytes", "byte 4096 of the 400 bytes"),
    "access/write_before": ("threw .*byte -4 of the block's 400 bytes", "byte -4 of the 400"),
    "access/write_after": ("threw .*byte 400 of the block's", "threw .*byte 400 of the block's"),
    "access/write_far_before": ("byte -4096 of the 400", "byte -4096 of the 400"),
    "local_variables/too_many": ("more than the 128 KB of local variables that fit",) * 2,
}


@pytest.mark.parametrize("name", SIDES)
def test_accesses_outside_of_memory(checks, name) -> None:
    for seed, expected in enumerate(SIDES[name]):
        result = run(checks, name, seed)
        if result.returncode == 0:
            assert re.match(expected, result.stdout), result.stdout
        else:
            assert result.returncode == -signal.SIGSEGV
            message = rf"thread \d+ of block 0 .*{expected}.*_SEED={seed} repeats this order"
            assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize("name", ["early_exit", "exit_without_wait"])
def test_shared_memory_of_a_block_that_has_exited(checks, name) -> None:
    results = [run(checks, f"cluster_sums/{name}", seed) for seed in SEEDS]
    message = r"thread 0 of block \d+ accessed the shared memory of block \d+, which has exited"
    for result in results:
        if result.returncode == 0:
            assert result.stdout == "right\n"
        else:
            assert result.returncode == -signal.SIGSEGV
            assert re.search(message, result.stderr), result.stderr
    assert sum(result.returncode != 0 for result in results) >= 15


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("launch/64_kb_shared", {"shared_bytes": 65535}, "expected shared_bytes from 0 to 65535"),
        ("launch/cluster_of_16", {"largest_cluster": 8}, "expected a cluster of 1 to 8 blocks"),
        (
            "launch/cluster_of_16_large",
            {"cluster_multiprocessors": 7},
            "expected a cluster of at most 7 blocks, which fit on 7 multiprocessors, got 16",
        ),
        ("launch/cooperative_16", {"multiprocessors": 7}, "expected at most 14 blocks"),
        ("block_sums", {"multiprocessors": "many"}, "expected a number, got many"),
    ],
)
def test_limits_from_the_environment(checks, name, environment, message) -> None:
    for line in outcomes(checks, name, **environment):
        assert re.match(f"threw .*{message}", line), line


def test_a_larger_device_takes_larger_launches(checks) -> None:
    assert run(checks, "launch/cooperative_17", multiprocessors=9).stdout == "right\n"
    assert run(checks, "launch/cluster_of_17", largest_cluster=17).stdout == "right\n"
    assert run(checks, "launch/too_much_shared", shared_bytes=1 << 20).stdout == "right\n"


def converted(checks: Path, x: np.ndarray) -> np.ndarray:
    result = subprocess.run([checks, "convert"], input=x.tobytes(), capture_output=True, check=True)
    fields = [("bf16", "u2"), ("f16", "u2"), ("from_bf16", "f4"), ("from_f16", "f4")]
    ours = np.frombuffer(result.stdout, dtype=[*fields, ("tf32", "u4")])
    assert len(ours) == len(x)
    return ours


def test_conversions_are_torchs(checks) -> None:
    """All values of 16 bits, numbers halfway between two of them and next to these, and others."""
    every = np.arange(1 << 16, dtype=np.uint16)
    generator = np.random.default_rng(0)
    values = [generator.integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)]
    for widened in (every.astype(np.uint32) << 16, every.view(np.float16).astype(np.float32)):
        bits = widened.view(np.uint32)
        half = 0x8000 if widened.dtype == np.uint32 else 0x1000
        values += [(bits + offset).view(np.float32) for offset in (0, half - 1, half, half + 1)]
    x = np.concatenate(values)
    ours = converted(checks, x)
    nan = np.isnan(x)
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
        expected = torch.from_numpy(x).to(dtype)
        bits = expected.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(ours[name][~nan], bits[~nan])
        assert (ours[name][nan] == 0x7FFF).all()
        np.testing.assert_array_equal(ours[f"from_{name}"], expected.float().numpy())


def test_tf32_is_the_nearest_of_11_bits_with_ties_away_from_zero(checks) -> None:
    """Numbers halfway between two values and next to these, with every exponent, and others."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 50_000, dtype=np.uint32)
    on_values = bits & ~np.uint32(0x1FFF)
    every = [bits, *(on_values + np.uint32(offset) for offset in (0, 0xFFF, 0x1000, 0x1001))]
    ends = [0, 1, 0xFFF, 0x1000, 0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]
    x = np.concatenate([*every, np.array(ends, np.uint32), np.array(ends, np.uint32) | 1 << 31])
    x = x.astype(np.uint32).view(np.float32)
    finite, nan = np.isfinite(x), np.isnan(x)
    wide = np.abs(x[finite].astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(np.frexp(wide)[1] - 11, -136))  # in the last place
    with np.errstate(over="ignore"):
        expected = np.copysign(np.floor(wide / unit + 0.5) * unit, x[finite]).astype(np.float32)
    assert np.isinf(expected).any()
    ours = converted(checks, x)["tf32"]
    np.testing.assert_array_equal(ours[finite], expected.view(np.uint32))
    assert (ours[nan] == 0x7FFFFFFF).all()
    np.testing.assert_array_equal(ours[np.isinf(x)], x[np.isinf(x)].view(np.uint32))
