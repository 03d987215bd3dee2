"""An NVIDIA GPU as a device: CUDA graphs over rotating inputs, timed by CUDA events; limits."""

import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from benchmarks import race
from benchmarks.ceilings import Ceilings, best_seconds, measure_copy
from benchmarks.device import Device
from benchmarks.timing import Call, Clock

T = TypeVar("T")

_CACHES = 3  # rotating inputs fill the L2 cache so many times
_MOST_SETS = 64  # enough calls for a graph
_WARM_UPS = 3  # as in torch.cuda.graph's documentation


class CudaClock(Clock):
    """Times calls by CUDA events around them: the time of the GPU, not of Python."""

    def seconds(self, call: Call, repeats: int = 1) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats


class Cuda(Device):
    """The current CUDA GPU.

    Attributes:
        copy_bytes, matmul_size: sizes of the copy and the matrix products that measure its limits.
    """

    name = "cuda"
    torch_device = "cuda"
    budget_s = 1.0  # enough for hundreds of rounds of short calls
    quick_budget_s = 0.3
    cached = False
    copy_bytes = 1 << 30
    matmul_size = 8192

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch can use no NVIDIA GPU here")
        # No threads spin between samples, and an idle GPU lowers its clocks: there is no pause.
        self.clock = CudaClock(pause_s=0.0)
        self._properties = torch.cuda.get_device_properties(0)
        # cuDNN searches the best algorithm for each convolution, so that rivals are at their best.
        torch.backends.cudnn.benchmark = True

    def hardware(self) -> str:
        return self._properties.name

    def describe(self) -> dict[str, Any]:
        found = self._properties
        return {
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size,
            "memory_bytes": found.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _triton(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        }

    def heading(self, about: dict[str, Any]) -> str:
        return (
            f"{about['gpu']}, {about['multiprocessors']} multiprocessors, "
            f"{about['l2_bytes'] / 2**20:.0f} MiB of L2, driver {about['driver']}; "
            f"CUDA {about['cuda']}, cuDNN {about['cudnn']}, Triton {about['triton']}"
        )

    def notes(self) -> list[str]:
        tf32 = {True: "in TF32", False: "in float32"}
        return [
            "timed: CUDA graphs, captured after a warm-up, by CUDA events; each replay of an op "
            f"goes through copies of the inputs that fill the L2 cache {_CACHES} times",
            "rivals: cuDNN by its own benchmark (torch.backends.cudnn.benchmark); float32 "
            f"convolutions {tf32[torch.backends.cudnn.allow_tf32]}, matrix products "
            f"{tf32[torch.backends.cuda.matmul.allow_tf32]}, PyTorch's settings as they were; "
            "torch.compile gets the case's layout, and in the network channels_last",
        ]

    def ceilings(self) -> Ceilings:
        """Measure a copy far larger than the L2 cache, and matrix products, all of random data."""
        copy = measure_copy(self.copy_bytes, self.torch_device, self.clock)
        rates = {
            "bfloat16": self._product_rate(torch.bfloat16),
            "float16": self._product_rate(torch.float16),
            "tf32": self._product_rate(torch.float32, allow_tf32=True),
            "float32_fma": self._product_rate(torch.float32, allow_tf32=False),
        }
        # Three TF32 products of parts of the operands make one of float32.
        rates["float32"] = max(rates["float32_fma"], rates["tf32"] / 3)
        notes = (
            f"a copy of {self.copy_bytes >> 20} MiB, torch.mm of {self.matmul_size}^3; "
            "float32 is the faster of its own product and of three in TF32"
        )
        return Ceilings(copy, rates, notes)

    def _product_rate(self, dtype: torch.dtype, allow_tf32: bool = False) -> float:
        size = self.matmul_size
        a, b = (torch.randn(size, size, device=self.torch_device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        try:
            return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), self.clock)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def sets(self, input_bytes: int) -> int:
        wanted = math.ceil(_CACHES * self._properties.L2_cache_size / input_bytes)
        return min(wanted, _MOST_SETS)

    def ready(self, calls: Sequence[Callable[[], T]]) -> tuple[Callable[[], T], str]:
        """Return a replay of a CUDA graph; or, if it cannot be captured, plain launches and a
        note."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                # All results live until the end, so that each call writes to memory of its own.
                results = [call() for call in calls]
        except RuntimeError as error:
            torch.cuda.synchronize()
            return _one_by_one(calls), f"plain launches, for no graph: {race.failure(error)}"

        first = results[0]

        def replay() -> T:
            graph.replay()
            return first

        return replay, ""


def _one_by_one(calls: Sequence[Callable[[], T]]) -> Callable[[], T]:
    def launch() -> T:
        results = [call() for call in calls]
        return results[0]

    return launch


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
