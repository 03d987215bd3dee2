"""cuDNN's graph as a rival of norm_conv2d: a module that computes such graphs on the CPU stands for
cuDNN, and where the package is, cuDNN itself names its plans for a GPU that is only described."""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from benchmarks import cli, cuda, race
from benchmarks.ops import contenders, cuda_cases, cudnn_graph, problems
from benchmarks.ops.suite import OpsSuite
from tests.test_benchmarks_cuda import FakeGpu, gpu  # noqa: F401, a fixture
from tests.test_benchmarks_cuda_cases import case_of

SHAPE = (1, 8, 9, 12)
STREAM = 42


class Value:
    """A tensor of a graph: given, or computed by a function of others."""

    def __init__(self, dim=None, stride=None, data_type=None, of=None) -> None:
        self.dim, self.stride, self.data_type, self.of = dim, stride, data_type, of
        self.output = False

    def set_output(self, output: bool) -> "Value":
        self.output = output
        return self

    def set_data_type(self, data_type: torch.dtype) -> "Value":
        self.data_type = data_type
        return self


def at(pointer: int, like: Value, result: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor in memory that a graph's tensor describes; an output is as the result."""
    size, dtype = (like.dim if result is None else result.shape), like.data_type
    count = torch.Size(size).numel()
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(pointer)
    flat = torch.frombuffer(memory, dtype=dtype)
    if result is None:
        return flat.as_strided(size, like.stride)
    return flat.view(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2)


class PyGraph:
    """``cudnn.pygraph``, which computes in float32 on the CPU."""

    def __init__(self, cudnn: "FakeCudnn", **options) -> None:
        self.cudnn, self.outputs, self.stages = cudnn, [], []
        self.io = options["io_data_type"]
        assert options["compute_data_type"] == options["intermediate_data_type"] == torch.float32
        assert options["handle"] == "handle"

    def tensor(self, name, dim, stride, data_type) -> Value:
        assert data_type == self.io
        return Value(dim, stride, data_type)

    def _computed(self, of) -> Value:
        self.outputs.append(Value(of=of))
        return self.outputs[-1]

    def scale(self, name, input, scale) -> Value:
        return self._computed(lambda get: get(input) * get(scale))

    def bias(self, name, input, bias) -> Value:
        return self._computed(lambda get: get(input) + get(bias))

    def relu(self, name, input) -> Value:
        return self._computed(lambda get: get(input).relu())

    def conv_fprop(self, name, image, weight, padding, stride, dilation) -> Value:
        return self._computed(
            lambda get: F.conv2d(get(image), get(weight), None, stride, padding, dilation)
        )

    def genstats(self, name, input) -> tuple[Value, Value]:
        def total(power: int) -> Value:
            return self._computed(lambda get: (get(input) ** power).sum((0, 2, 3), keepdim=True))

        return total(1), total(2)

    def __getattr__(self, stage: str):
        def note(*arguments) -> None:
            self.stages.append(stage)
            if stage == self.cudnn.fails_at:
                raise RuntimeError("no engine proposed a plan\nand a log")

        return note

    def get_execution_plan_count(self) -> int:
        assert self.stages == [
            "validate",
            "build_operation_graph",
            "create_execution_plans",
            "check_support",
            "build_plans",
        ]
        return len(self.cudnn.plans)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.cudnn.plans[index]

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return 16 * index

    def execute_plan_at_index(self, pointers, workspace, index, handle) -> None:
        assert workspace
        assert (handle, self.cudnn.stream) == ("handle", STREAM)
        if self.cudnn.plans[index] == "broken":
            raise RuntimeError("this plan was not built")

        def get(value: Value) -> torch.Tensor:
            if value.of is not None:
                return value.of(get)
            return at(pointers[value], value).float()

        assert {value for value in self.outputs if value.output} < set(pointers)
        for value in self.outputs:
            if value.output:
                result = get(value)
                at(pointers[value], value, result).copy_(result)
                self.cudnn.results[value] = result
        self.cudnn.executed.append(index)


class FakeCudnn(SimpleNamespace):
    """A fake module ``cudnn``.

    Attributes:
        plans: names of plans; that called broken fails when it runs.
        fails_at: the method of a graph that fails.
    """

    def __init__(self) -> None:
        super().__init__(plans=["broken", "first", "second"], fails_at=None, executed=[])
        self.results: dict[Value, torch.Tensor] = {}
        self.stream = None
        self.data_type = SimpleNamespace(
            HALF=torch.float16, BFLOAT16=torch.bfloat16, FLOAT=torch.float32
        )
        self.heur_mode = SimpleNamespace(A="a", FALLBACK="fallback")
        self.build_plan_policy = SimpleNamespace(ALL="all")

    def create_handle(self) -> str:
        return "handle"

    def set_stream(self, handle: str, stream: int) -> None:
        self.stream = stream

    def pygraph(self, **options) -> PyGraph:
        return PyGraph(self, **options)


@pytest.fixture
def cudnn(gpu: FakeGpu, monkeypatch) -> FakeCudnn:  # noqa: F811
    gpu.Stream.cuda_stream = STREAM
    fake = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", fake)
    return fake


@pytest.mark.parametrize("variant", ["k3-zeros", "stride2-zeros"])
def test_the_fastest_plan_that_is_right_is_a_rival(cudnn, variant):
    problem = problems.prepare(case_of("norm_conv2d", variant, shape=SHAPE))
    ours, rival = contenders.enter(problem, ("cudnn-graph",), "default", cuda.Cuda())
    assert (ours.error, rival.error) == (None, None)
    assert rival.expression in ("first", "second")
    assert set(cudnn.executed) == {1, 2}
    y, sums, squares = list(cudnn.results.values())[-3:]
    assert torch.equal(sums, y.sum((0, 2, 3), keepdim=True))
    assert torch.equal(squares, y.square().sum((0, 2, 3), keepdim=True))


@pytest.mark.parametrize("stage", ["validate", "create_execution_plans", "check_support"])
def test_a_graph_without_a_plan_leaves_the_rival_out_and_says_why(cudnn, stage):
    cudnn.fails_at = stage
    problem = problems.prepare(case_of("norm_conv2d", "k3-zeros", shape=SHAPE))
    rivals = ("cudnn-graph", "eager")
    entries = contenders.enter(problem, rivals, "default", cuda.Cuda())
    assert [entry.name for entry in entries] == ["ours", "cudnn-graph", "eager"]
    assert [entry.error for entry in entries] == [
        None,
        "RuntimeError: no engine proposed a plan",
        None,
    ]
    found = race.Race.of(entries, {"ours": [1.0], "eager": [2.0]})
    assert found.judge() == ("win", ["cudnn-graph: RuntimeError: no engine proposed a plan"])


def test_only_rows_that_the_graph_computes_have_it():
    found = {
        (case.variant, case.dtype)
        for case in cuda_cases.grid(shape=SHAPE)
        if problems.prepare(case).cudnn_graph is not None
    }
    assert found == {("k3-zeros", "float16"), ("stride2-zeros", "float16")}
    case = case_of("norm_conv2d", "k3-zeros", shape=SHAPE)
    for changed in (
        {"shape": (2, *SHAPE[1:])},  # its scale and shift are for all images
        {"layout": "contiguous"},
        {"dtype": "float32"},
        {"device": "cpu"},
    ):
        assert problems.prepare(replace(case, **changed)).cudnn_graph is None, changed
    assert problems.prepare(replace(case, dtype="bfloat16")).cudnn_graph is not None


def test_a_row_that_has_no_graph_has_no_such_rival(cudnn):
    problem = problems.prepare(case_of("norm_conv2d", "k3", shape=SHAPE))
    entries = contenders.enter(problem, ("cudnn-graph", "eager"), "default", cuda.Cuda())
    assert [entry.name for entry in entries] == ["ours", "eager"]


def test_without_the_package_a_line_says_so(gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cudnn_graph.importlib.util, "find_spec", lambda name: None)
    suite = OpsSuite(cli.parse(["ops", "--device", "cuda"]))
    assert suite.rivals == ["eager", "eager-nhwc", "compile"]
    assert suite.complete  # its results are kept, without this rival
    assert suite.versions() == {}
    assert suite.notes() == [
        "cudnn-graph: skipped, not installed; pip install nvidia-cudnn-frontend"
    ]
    assert OpsSuite(cli.parse(["ops", "--device", "cuda", "--rivals", "eager"])).notes() == []


def test_the_version_of_the_package_is_recorded(gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cudnn_graph.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cudnn_graph, "version", {"nvidia-cudnn-frontend": "1.32.0"}.__getitem__)
    suite = OpsSuite(cli.parse(["ops", "--device", "cuda"]))
    assert suite.complete
    assert suite.versions() == {"cudnn-graph": "1.32.0"}
    assert suite.notes() == []


#: An H200 in cuDNN's words, the JSON of its device properties.
H200 = {
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "multiProcessorCount": 132,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0,
    "maxRegistersPerSM": 65536,
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "totalGlobalMem": 150 * 10**9,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144,
    "l2CacheSize": 62914560,
    "cudaDeviceId": 0,
    "deviceVer": 900,
    "driverVer": 13000,
    "deviceName": "NVIDIA H200",
}
#: Functions of the CUDA driver that cuDNN links to. Each says that there is no device.
DRIVER = (
    "cuInit cuGetErrorString cuModuleGetFunction cuModuleLoadData cuModuleUnload "
    "cuTensorMapEncodeIm2col cuTensorMapEncodeTiled"
)
#: Prints the number of plans and the size of the output, or the reason why there is no plan.
COUNT_PLANS = """
import sys
import cudnn, torch
from benchmarks.ops import cudnn_graph
device = cudnn.create_device_properties(sys.argv[1])
x, weight = (
    torch.randn(size, dtype=getattr(torch, sys.argv[2])).contiguous(
        memory_format=torch.channels_last
    )
    for size in ((1, 128, 270, 480), (128, 128, 3, 3))
)
described = cudnn_graph.describe(x, weight, int(sys.argv[3]), device_property=device)
described.graph.validate()
described.graph.build_operation_graph()
print(*described.y.get_dim())
try:
    described.graph.create_execution_plans([cudnn.heur_mode.A])
    print(described.graph.get_execution_plan_count())
except cudnn.cudnnGraphNotSupportedError as error:
    print(str(error).partition("(")[0])
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> str:
    """The folder of a CUDA driver without devices, which cuDNN needs to be loaded."""
    compiler = shutil.which("cc")
    if importlib.util.find_spec("cudnn") is None or compiler is None:
        pytest.skip("needs nvidia-cudnn-frontend, cuDNN and a C compiler")
    if torch.cuda.is_available():
        pytest.skip("a GPU runs the graph itself, in another test")
    folder = tmp_path_factory.mktemp("driver")
    functions = "".join(f"int {name}(void) {{ return 100; }}\n" for name in DRIVER.split())
    (folder / "cuda.c").write_text(functions)
    library = folder / "libcuda.so.1"
    link = [f"-Wl,-soname,{library.name}", "-o", library, folder / "cuda.c"]
    subprocess.run([compiler, "-shared", "-fPIC", *link], check=True)
    return str(folder)


@pytest.mark.parametrize(
    ("dtype", "stride", "size", "has_plans"),
    [
        ("float16", 1, "1 128 270 480", True),
        ("float16", 2, "1 128 135 240", True),
        ("bfloat16", 1, "1 128 270 480", False),
    ],
)
def test_cudnn_accepts_the_graph_and_has_plans_for_float16(driver, dtype, stride, size, has_plans):
    arguments = [json.dumps(H200), dtype, str(stride)]
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PLANS, *arguments],
        env=os.environ | {"LD_LIBRARY_PATH": driver, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found_size, plans = done.stdout.splitlines()[-2:]
    assert found_size == size
    assert plans.isdigit() == has_plans
    if has_plans:
        assert int(plans) > 0


@pytest.mark.gpu
def test_the_graph_on_the_gpu_gives_the_answer():
    pytest.importorskip("cudnn")
    problem = problems.prepare(case_of("norm_conv2d", "k3-zeros"), "cuda")
    _, rival = contenders.enter(problem, ("cudnn-graph",), "default", cuda.Cuda())
    if rival.call is None and "no engine" in rival.error:
        pytest.skip(rival.error)
    assert rival.error is None
