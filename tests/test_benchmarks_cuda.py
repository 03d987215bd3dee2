"""The GPU benchmark on a machine without a GPU. Fakes replace CUDA graphs and events."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cli, cuda
from benchmarks.model import cases, rivals
from benchmarks.model.suite import ModelSuite
from benchmarks.ops import contenders, cuda_cases, cudnn_graph, problems
from benchmarks.ops.suite import OpsSuite
from tests.test_benchmarks_cuda_cases import LIMITS, TINY, case_of

REPLAY_S = 0.004


class FakeGpu:
    """A fake ``torch.cuda``. A capture runs its calls on the CPU at once. A replay takes
    ``REPLAY_S`` on the clock of the events and does not change the results."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.time = 0.0
        self.capture_error: str | None = None
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.time

            def synchronize(self) -> None:
                gpu.log.append("synchronize")

            def elapsed_time(self, end: "Event") -> float:
                return (end.at - self.at) * 1e3

        class Stream:
            def wait_stream(self, other: "Stream") -> None:
                gpu.log.append("wait")

        class CUDAGraph:
            def replay(self) -> None:
                gpu.log.append("replay")
                gpu.time += REPLAY_S

        self.Event, self.Stream, self.CUDAGraph = Event, Stream, CUDAGraph
        self.current_stream = Stream

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append("side stream")
        yield
        self.log.append("main stream")

    @contextlib.contextmanager
    def graph(self, graph):
        self.log.append("capture")
        yield
        self.log.append("captured")
        if self.capture_error is not None:
            raise RuntimeError(self.capture_error)

    def is_available(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(
            name="NVIDIA H200",
            major=9,
            minor=0,
            multi_processor_count=132,
            total_memory=1 << 37,
            L2_cache_size=10_000,
        )


@pytest.fixture
def gpu(monkeypatch) -> FakeGpu:
    """A GPU whose tensors are on the CPU."""
    fake = FakeGpu()
    replaced = "Event Stream CUDAGraph current_stream stream graph is_available synchronize"
    for name in (*replaced.split(), "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(cuda.Cuda, "torch_device", "cpu")
    monkeypatch.setattr(cuda.Cuda, "copy_bytes", 1 << 20)
    monkeypatch.setattr(cuda.Cuda, "matmul_size", 32)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)  # asks the GPU
    return fake


def test_a_call_is_a_replay_of_all_sets_after_a_warm_up(gpu):
    calls = [lambda name=name: gpu.log.append(name) or name for name in ("first", "second")]
    call, note = cuda.Cuda().ready(calls)
    assert note == ""
    warm_up = ["wait", "side stream", "first", "first", "first", "main stream", "wait"]
    assert gpu.log == [*warm_up, "capture", "first", "second", "captured"]
    assert call() == "first"
    assert gpu.log[-1] == "replay"
    assert gpu.log.count("first") == 4, "a replay runs no Python"


def test_what_cannot_be_captured_is_launched_and_says_so(gpu):
    gpu.capture_error = "operation not permitted when stream is capturing\nand more"
    calls = [lambda name=name: gpu.log.append(name) or name for name in ("first", "second")]
    call, note = cuda.Cuda().ready(calls)
    assert "plain launches" in note
    assert note.endswith("not permitted when stream is capturing")
    gpu.log.clear()
    assert call() == "first"
    assert gpu.log == ["first", "second"]


def test_events_time_the_replays_and_wait_for_them(gpu):
    call, _ = cuda.Cuda().ready([lambda: None])
    assert cuda.CudaClock().seconds(call, 5) == pytest.approx(REPLAY_S)
    assert gpu.log[-6:] == [*["replay"] * 5, "synchronize"]


def test_sets_of_inputs_fill_the_cache_three_times(gpu):
    device = cuda.Cuda()
    assert [device.sets(size) for size in (10**9, 30_000, 29_999, 10_000, 10)] == [1, 1, 2, 3, 64]


def test_rivals_get_their_layout_and_sets_memory_of_their_own(gpu):
    case = case_of("instance_norm_stats", shape=TINY, layout="channels_last")
    problem = problems.prepare(case)
    right, seen = problem.expressions["var_mean"], {}

    def spying(name):
        def expression(x):
            seen.setdefault(name, []).append((x.stride(), x.data_ptr()))
            return right(x)

        return expression

    problem.ours, problem.expressions = spying("ours"), {"var_mean": spying("eager")}
    entries = contenders.enter(problem, ("eager", "eager-nhwc"), "default", cuda.Cuda())
    assert [(entry.name, entry.error) for entry in entries] == [
        ("ours", None),
        ("eager", None),
        ("eager-nhwc", None),
    ]
    nchw, nhwc = (864, 108, 12, 1), (864, 1, 96, 8)
    assert {stride for stride, _ in seen["ours"]} == {nhwc}
    of_rivals = seen["eager"][1:]  # the first judges
    assert [stride for stride, _ in of_rivals] == [nchw] * (len(of_rivals) // 2) + [nhwc] * (
        len(of_rivals) // 2
    )
    sets = math.ceil(3 * 10_000 / problem.inputs[0].nbytes)
    captured = seen["ours"][3:]
    assert len({pointer for _, pointer in captured}) == len(captured) == sets > 1


def test_an_answer_that_a_replay_spoils_is_refused(gpu, monkeypatch):
    results = []

    def ours(x):
        results.append(torch.var_mean(x.float(), (2, 3), correction=0)[::-1])
        return results[-1]

    monkeypatch.setattr(gpu.CUDAGraph, "replay", lambda self: [r[0].zero_() for r in results])
    problem = problems.prepare(case_of("instance_norm_stats", shape=TINY))
    problem.ours = ours
    (entry,) = contenders.enter(problem, (), "default", cuda.Cuda())
    assert "wrong" in entry.error


def test_one_expression_is_compiled_on_a_gpu_unless_it_fails(monkeypatch, gpu):
    compiled = []

    def compile(function, **options):
        assert options["fullgraph"]
        return lambda *inputs: compiled.append(function) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile)

    def chosen(problem) -> tuple[str, int]:
        compiled.clear()
        _, entry = contenders.enter(problem, ("compile",), "default", cuda.Cuda())
        assert entry.error is None
        return entry.expression, len(set(compiled))

    for case in cuda_cases.grid(shape=TINY):
        problem = problems.prepare(case)
        expected = "bmm" if case.op.startswith("gram") else "var_mean"
        if case.variant == "k9-first":
            expected = "conv2d"
        assert chosen(problem) == (expected, 1), case.id
    problem.expressions["var_mean"] = lambda *inputs: 1 / 0
    assert chosen(problem) == ("F.instance_norm", 2)


def test_limits_are_measured_with_and_without_tf32_and_settings_stay(gpu, monkeypatch):
    seen = []
    matmul = torch.backends.cuda.matmul

    def mm(a, b, out):
        seen.append((a.dtype, matmul.allow_tf32))
        assert a.std() > 0.5, "zeros run faster than data"
        gpu.time += 1e-3 / (2 if matmul.allow_tf32 else 1) / (4 if a.dtype.itemsize == 2 else 1)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, source: setattr(gpu, "time", gpu.time + 1e-3)
    )
    found = cuda.Cuda().ceilings()
    halves = {(torch.bfloat16, False), (torch.float16, False)}
    assert set(seen) == halves | {(torch.float32, True), (torch.float32, False)}
    assert matmul.allow_tf32 is False
    assert found.copy_bytes_per_s == pytest.approx(2 * (1 << 20) / 1e-3)
    fma = 2 * 32**3 / 1e-3
    assert found.flops_per_s == pytest.approx(
        {
            "bfloat16": 4 * fma,
            "float16": 4 * fma,
            "tf32": 2 * fma,
            "float32_fma": fma,
            "float32": fma,
        }
    )


def test_command_line_writes_a_complete_record(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda.Cuda, "ceilings", lambda self: LIMITS)
    arguments = "ops --device cuda --shape 2x8x9x12 --rivals eager eager-nhwc --seconds 0.1"
    only = ["--only", "instance_norm/relu/fwd+bwd", "--only", "style_loss", "--only", "k4-rep"]
    assert cli.main([*arguments.split(), *only, "--json", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "NVIDIA H200, 132 multiprocessors" in printed
    assert "torch.backends.cudnn.benchmark" in printed
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("ops-cuda-nvidia-h200-20")
    document = json.loads(path.read_text())
    machine = document["machine"]
    assert machine["cudnn_benchmark"] is True
    for key in ("matmul_allow_tf32", "cudnn_allow_tf32", "cuda", "cudnn", "triton", "driver"):
        assert key in machine
    assert document["left_out"] == []
    assert {row["op"] for row in document["rows"]} == {
        "instance_norm",
        "gram_loss",
        "upsample_block",
    }
    for row in document["rows"]:
        assert row["refused"] == row["notes"] == {}, row["id"]
        assert set(row["seconds"]) == {"ours", "eager", "eager-nhwc"}
        inputs = problems.prepare(
            next(case for case in cuda_cases.grid(shape=TINY) if case.id == row["id"])
        ).inputs
        sets = math.ceil(3 * 10_000 / sum(tensor.nbytes for tensor in inputs))
        assert row["seconds"]["ours"]["median"] == pytest.approx(REPLAY_S / sets)
        assert row["share_of_floor"] == pytest.approx(
            row["floor_seconds"] / row["seconds"]["ours"]["median"]
        )
        assert row["bytes_counted"]


def test_a_note_is_shown_below_the_table(gpu, monkeypatch, capsys):
    gpu.capture_error = "no"
    monkeypatch.setattr(cuda.Cuda, "ceilings", lambda self: LIMITS)
    monkeypatch.setattr(cuda.CudaClock, "seconds", lambda self, call, repeats=1: call() and 0.01)
    arguments = "ops --device cuda --shape 2x8x9x12 --rivals --only stats --seconds 0"
    assert cli.main(arguments.split()) == 0
    assert "contiguous: ours: plain launches, for no graph: RuntimeError: no" in (
        capsys.readouterr().out
    )


def test_no_case_starts_after_the_time_limit(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda.Cuda, "ceilings", lambda self: LIMITS)
    path = tmp_path / "result.json"
    arguments = "ops --device cuda --shape 2x8x9x12 --rivals --time-limit -1 --only gram_matrix"
    assert cli.main([*arguments.split(), "--json", str(path)]) == 0
    assert "3 of 3 cases left out: the time limit" in capsys.readouterr().out


def test_a_case_that_fails_hides_no_other(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda.Cuda, "ceilings", lambda self: LIMITS)
    measure = OpsSuite.measure

    def failing(self, case, ceilings):
        if case.dtype == "float32":
            raise RuntimeError("no engine\nand a trace")
        return measure(self, case, ceilings)

    monkeypatch.setattr(OpsSuite, "measure", failing)
    arguments = "ops --device cuda --shape 2x8x9x12 --rivals --only gram_matrix --seconds 0"
    assert cli.main([*arguments.split(), "--json", str(tmp_path / "result.json")]) == 1
    document = json.loads((tmp_path / "result.json").read_text())
    name = "gram_matrix/fwd/2x8x9x12/float32/contiguous"
    assert document["failed"] == {name: "RuntimeError: no engine"}
    assert len(document["rows"]) == 2
    assert f"1 of 3 cases failed: {name}" in capsys.readouterr().out


def test_without_a_gpu_the_command_says_so_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["ops", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == (
        "python -m benchmarks ops: error: --device cuda: PyTorch can use no NVIDIA GPU here\n"
    )


def test_rivals_of_another_device_are_refused(capsys):
    assert cli.main(["ops", "--rivals", "eager-nhwc"]) == 2
    assert "--rivals: ops has eager, compile, got eager-nhwc" in capsys.readouterr().err


def test_a_complete_run_has_all_rivals_of_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(cudnn_graph, "is_installed", lambda: True)
    suite = OpsSuite(cli.parse(["ops", "--device", "cuda"]))
    assert suite.complete
    assert suite.budget_s == 1.0
    assert suite.rivals == ["eager", "eager-nhwc", "compile", "cudnn-graph"]
    assert not OpsSuite(cli.parse(["ops", "--device", "cuda", "--rivals", "eager"])).complete


def test_the_model_has_the_rivals_that_run_on_the_gpu(gpu, capsys):
    arguments = ["model", "--device", "cuda"]
    suite = ModelSuite.of(cli.parse(arguments))
    assert suite.complete
    assert suite.budget_s == 1.0
    assert suite.rivals == ["eager", "eager-nhwc", "compile"]
    assert suite.versions() == {}
    assert "share" in suite.table.header()
    assert cli.main([*arguments, "--quick", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["full/512x512/bfloat16", "lite/512x512/bfloat16"]
    assert cli.main([*arguments, "--rivals", "openvino"]) == 2
    assert "model has eager, eager-nhwc, compile, got openvino" in capsys.readouterr().err


def test_networks_are_captured_once_and_the_stylizer_is_called_as_it_is(gpu, monkeypatch):
    case = cases.Case("lite", (24, 16), "bfloat16", "cuda")
    problem = cases.Problem(case, None, cuda.Cuda.torch_device)
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    seen, plain = [], problem.plain
    problem.plain = lambda x: seen.append([flag.allow_tf32 for flag in flags]) or plain(x)
    before = [flag.allow_tf32 for flag in flags]
    entries = rivals.enter(problem, ("eager", "eager-nhwc"), "default", cuda.Cuda())
    assert [(entry.name, entry.error) for entry in entries] == [
        ("ours", None),
        ("eager", None),
        ("eager-nhwc", None),
    ]
    assert seen == [[False, False]], "the truth is computed once, without TF32"
    assert [flag.allow_tf32 for flag in flags] == before
    assert torch.backends.cudnn.benchmark
    assert gpu.log.count("capture") == 2
    for entry, replays in zip(entries, (0, 1, 1), strict=True):
        gpu.log.clear()
        entry.call()
        assert gpu.log.count("replay") == replays


def test_the_model_writes_a_complete_record(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda.Cuda, "ceilings", lambda self: LIMITS)
    monkeypatch.setattr(cuda.CudaClock, "seconds", lambda self, call, repeats=1: (call(), 0.01)[1])
    gpu.capture_error = "no"
    arguments = "model --device cuda --size 24x16 --only lite --rivals eager --seconds 0"
    assert cli.main([*arguments.split(), "--dtype", "float32", "--json", str(tmp_path)]) == 0
    assert "float32: eager: plain launches, for no graph: RuntimeError: no" in (
        capsys.readouterr().out
    )
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("model-cuda-nvidia-h200-20")
    (row,) = json.loads(path.read_text())["rows"]
    in_tf32 = torch.backends.cudnn.allow_tf32
    assert row["precision"] == ("tf32" if in_tf32 else "float32")
    assert row["seconds"]["ours"]["median"] == 0.01
    assert row["share_of_floor"] == row["floor_seconds"] / 0.01
    assert row["verdict"] == "even"


@pytest.mark.gpu
def test_the_model_runs_on_the_gpu(tmp_path):
    arguments = "model --device cuda --quick --rivals eager-nhwc --seconds 0.05 --size 64x64"
    assert cli.main([*arguments.split(), "--json", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    assert document["failed"] == {}
    for row in document["rows"]:
        assert row["refused"] == row["notes"] == {}
        assert set(row["seconds"]) == {"ours", "eager-nhwc"}


@pytest.mark.gpu
def test_a_graph_on_the_gpu_gives_the_answer_of_its_calls():
    device = cuda.Cuda()
    tensors = [torch.randn(64, 64, device="cuda") for _ in range(3)]
    call, note = device.ready([lambda x=x: (x @ x).relu_() for x in tensors])
    assert note == ""
    torch.testing.assert_close(call(), (tensors[0] @ tensors[0]).relu_())
    assert 0 < device.clock.seconds(call, 10) < 0.01
