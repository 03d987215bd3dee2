"""The model's benchmark: no wrong pictures, skipped rivals, a reliable table and record."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ceilings, cli, cpu, dtypes
from benchmarks.model import cases, engines, operations, options, report, rivals
from benchmarks.model.suite import ModelSuite
from benchmarks.race import Entry
from benchmarks.report import summary
from stylekernels import native
from stylekernels.models import StyleGenerator

LIMITS = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 4e11}, "made up")


def problem_of(case: cases.Case) -> cases.Problem:
    return cases.Problem(case, Path("nowhere"))


def test_case_ids_are_unique_and_stable():
    ids = [case.id for case in cases.grid()]
    assert len(ids) == len(set(ids)) == 20
    assert "full/1280x720/bfloat16" in ids
    assert "lite/1920x1080/float32" in ids


def test_random_weights_and_frames_are_the_same_every_time():
    case = cases.Case("lite", (16, 20), "float32")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = problem_of(case), problem_of(case)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.truth, second.truth)
    assert first.frame.shape == (20, 16, 3)
    assert first.x.shape == (1, 3, 20, 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_and_eager_give_the_right_picture(dtype):
    problem = problem_of(cases.Case("lite", (24, 16), dtype))
    entries = rivals.enter(problem, ("eager", "eager-nhwc"))
    assert [(entry.name, entry.error) for entry in entries] == [
        ("ours", None),
        ("eager", None),
        ("eager-nhwc", None),
    ]
    ours, eager, nhwc = (entry.call() for entry in entries)
    assert ours.dtype == np.uint8
    assert eager.dtype == nhwc.dtype == problem.dtype
    assert nhwc.is_contiguous(memory_format=torch.channels_last)


def test_a_bundled_style_is_measured_with_its_own_weights():
    problem = problem_of(cases.Case("wave", (32, 32), "float32"))
    trained = StyleGenerator.from_pretrained("wave")
    with torch.no_grad():
        torch.testing.assert_close(problem.truth, trained(problem.x), rtol=0, atol=1e-5)


def test_wrong_pictures_and_failing_rivals_are_refused(monkeypatch):
    problem = problem_of(cases.Case("lite", (16, 16), "float32"))
    make = rivals.make

    def tampered(name, problem, mode):
        expression, call = make("eager", problem, mode)
        if name == "eager-nhwc":
            raise RuntimeError("no such layout\nand a long trace")
        return expression, call if name == "eager" else lambda: call() * 1.01

    monkeypatch.setattr(rivals, "make", tampered)
    ours, eager, nhwc = rivals.enter(problem, ("eager", "eager-nhwc"))
    assert "wrong: relative error" in ours.error
    assert eager.error is None
    assert nhwc.error == "RuntimeError: no such layout"


def test_rounding_to_bytes_is_no_error_but_a_shift_is():
    truth = torch.linspace(0.1, 0.9, 3 * 64 * 64).reshape(1, 3, 64, 64)
    frame = truth[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    assert rivals.picture_error(frame, truth) < rivals.TOLERANCE[torch.float32]
    assert rivals.picture_error(frame + np.uint8(2), truth) > rivals.TOLERANCE[torch.float32]
    assert rivals.picture_error(frame[:, 1:], truth) == float("inf")
    assert not rivals.picture_error(truth * float("nan"), truth) <= 1


def test_a_frame_may_be_a_tensor_as_a_gpu_gives_it():
    truth = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    frame = truth[0].permute(1, 2, 0).mul(255).round().to(torch.uint8)
    for wrong_by in (0, 2):
        answer = frame ^ wrong_by
        error = rivals.picture_error(answer, truth)
        assert error == rivals.picture_error(answer.numpy(), truth)
        assert (error < rivals.TOLERANCE[torch.float32]) == (wrong_by == 0)


@pytest.mark.parametrize("allowed", rivals.TOLERANCE.values())
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_bytes_and_floating_point_are_judged_alike(allowed, factor):
    random = torch.Generator().manual_seed(0)
    # A fifth of the pixels are black or white, and lose nothing by rounding.
    truth = torch.rand(1, 3, 256, 256, generator=random).mul_(1.2).sub_(0.1).clamp_(0, 1)
    noise = torch.randn(truth.shape, generator=random) * factor * allowed * truth.std()
    answer = torch.where((truth > 0) & (truth < 1), truth + noise, truth).clamp_(0, 1)
    frame = answer[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    of_answer, of_frame = (rivals.picture_error(one, truth) for one in (answer, frame))
    assert of_frame == pytest.approx(of_answer, rel=0.1)
    assert (of_frame > allowed) == (of_answer > allowed) == (factor > 1)


def test_a_rival_that_has_no_bfloat16_is_left_out():
    assert rivals.can_run("onnxruntime", torch.float32)
    assert not rivals.can_run("onnxruntime", torch.bfloat16)
    assert rivals.can_run("openvino", torch.bfloat16)


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")],
)
def test_engines_run_the_network(tmp_path, engine, dtype):
    if missing := engines.missing_packages(engine):
        pytest.skip(f"not installed: {missing}")
    problem = cases.Problem(cases.Case("lite", (30, 22), dtype), tmp_path)
    _, entry = rivals.enter(problem, (engine,))
    assert entry.error is None
    assert entry.expression in ("float32", "f32", "bf16")


def without_engines(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)


def test_engines_that_are_not_installed_are_skipped_with_a_line(monkeypatch):
    without_engines(monkeypatch)
    chosen = ModelSuite(cli.parse(["model"]))
    assert chosen.rivals == ["eager", "eager-nhwc", "compile"]
    assert not chosen.complete
    assert [note for note in chosen.notes() if "bfloat16" not in note] == [
        f"{engine}: skipped, not installed; pip install {engine} onnx onnxscript"
        for engine in ("onnxruntime", "openvino")
    ]


def row_of(case: cases.Case, moved_bytes: int = 0, **milliseconds: float) -> report.Row:
    samples = {name.replace("_", "-"): [value * 1e-3] * 5 for name, value in milliseconds.items()}
    entries = [Entry(name, name, None) for name in samples]
    layers = operations.layers(cases.CONFIGS["full"], case.size[1], case.size[0])
    return report.make_row(case, layers, entries, samples, LIMITS, moved_bytes=moved_bytes)


def cells_of(row: report.Row) -> dict[str, str]:
    view = report.VIEWS[row.case.device]
    titles = [title for title, _ in view.table.columns]
    return dict(zip(titles, view.line(row).split(), strict=True))


def test_the_table_says_what_was_measured():
    case = cases.Case("full", (512, 512), "float32")
    cells = cells_of(row_of(case, ours=500, eager=2000, eager_nhwc=1500, openvino=1000))
    # 69.9 GFLOP at 100 GFLOP/s; with Winograd 12.1 of 48.3 in the residual blocks, 3.4 of
    # 8.6 in the upsampling and 2.7 of 4.8 in the strided layers.
    assert cells == {
        "network": "full",
        "size": "512x512",
        "type": "f32",
        "ours": "500",
        "±": "0%",
        "eager": "2000",
        "NHWC": "1500",
        "comp.": "-",
        "ORT": "-",
        "OV": "1000",
        "floor": "699",
        "wino.": "263",
        "rate": "140",
        "peak": "140%",
        "fps": "2.00",
        "/eager": "4.00",
        "/best": "2.00",
        "verdict": "win",
    }


def test_the_table_of_a_gpu_has_its_floor_and_its_target():
    case = cases.Case("full", (1920, 1080), "bfloat16", "cuda")
    # 553 GFLOP at 400 GFLOP/s are 1.38 s, and so many bytes at 10 GB/s 2 s.
    row = row_of(case, int(2e10), ours=4000, eager=9000, eager_nhwc=8000, compile=6000)
    assert cells_of(row) == {
        "network": "full",
        "size": "1920x1080",
        "type": "bf16",
        "ours": "4000",
        "±": "0%",
        "eager": "9000",
        "NHWC": "8000",
        "comp.": "6000",
        "floor": "2000",
        "share": "50%",
        "fps": "0.25",
        "/comp": "1.50",
        "/best": "1.50",
        "verdict": "short",
    }
    assert row.misses == ["1.50 times compile, target 2.0"]
    assert row.share_of_peak == pytest.approx(1.38 / 4, rel=1e-2)
    assert row.winograd_flops is row.winograd_floor is None
    document = report.as_json(row)
    assert (document["bytes"], document["precision"]) == (2e10, "bfloat16")
    assert (document["share_of_floor"], document["min_over_compile"]) == (0.5, 2.0)
    assert "share_of_floor" not in report.as_json(row_of(replace(case, device="cpu"), ours=1))
    for verdict, theirs in (("win", 8000), ("loss", 3000)):
        assert row_of(case, ours=4000, compile=theirs).verdict == verdict
    elsewhere = replace(case, size=(512, 512))
    assert row_of(elsewhere, ours=4000, compile=6000).verdict == "win"


def test_bytes_between_layers_are_counted_from_the_config():
    config = cases.CONFIGS["full"]  # 32, 64, 128 channels; a sum of 5 blocks
    full, half, quarter = 32 * 64 * 48, 64 * 32 * 24, 128 * 16 * 12
    values = 2 * (2 * full + 2 * half + 11 * quarter) + 5 * quarter
    assert operations.image_bytes(config, 48, 64, 2) == 2 * values + 2 * 3 * 64 * 48


@pytest.mark.parametrize("capability", ["avx2", "amx", None])
def test_bfloat16_has_a_peak_of_its_own_and_winograd_in_float32(monkeypatch, capability):
    monkeypatch.setattr(native, "cpu_capability", capability)
    case = cases.Case("full", (512, 512), "bfloat16")
    row = row_of(case, ours=349, eager=349)
    assert row.share_of_peak == pytest.approx(0.5, rel=1e-2)
    assert row.verdict == "even"
    in_float32 = row_of(replace(case, dtype="float32"), ours=349)
    assert row.floor == in_float32.floor / 4
    if capability == "avx2":
        assert row.winograd_flops == in_float32.winograd_flops
        assert row.winograd_floor == in_float32.winograd_floor
        assert cells_of(row)["wino."] == "263"
    else:  # in tiles, or in plain PyTorch
        assert row.winograd_flops is row.winograd_floor is None
        assert cells_of(row)["wino."] == "-"


def test_losses_are_told_beside_wins():
    row = row_of(cases.Case("lite", (256, 256), "float32"), ours=30, eager=40, compile=20)
    assert (row.verdict, row.race.best_rival) == ("loss", "compile")
    assert row.misses == ["compile is 1.50 times faster"]


def test_without_a_rival_there_is_nothing_to_win():
    case = cases.Case("lite", (256, 256), "float32")
    row = row_of(case, ours=30)
    assert (row.verdict, row.misses) == ("alone", [])
    assert summary([row]) == "1 alone"
    entries = [Entry("ours", "", None), Entry("openvino", "", None, "failed to load")]
    row = report.make_row(case, [], entries, {"ours": [0.03] * 5}, LIMITS)
    assert (row.verdict, row.misses) == ("alone", ["openvino: failed to load"])


def test_the_table_fits_a_terminal():
    row = row_of(cases.Case("full", (256, 256), "float32"), ours=1234, eager=12345, openvino=9876)
    for device, view in report.VIEWS.items():
        style = cases.Case("starry_night", (3840, 2160), "bfloat16", device)
        for case in (*cases.grid(device=device), style):
            line = view.line(replace(row, case=case))
            assert len(line) == len(view.table.header()) <= 120


def test_a_refused_stylizer_is_a_row_without_times():
    case = cases.Case("full", (256, 256), "float32")
    entries = [
        Entry("ours", "Stylizer", None, "wrong: relative error 1"),
        Entry("openvino", "", None, "failed to load"),
    ]
    layers = operations.layers(cases.CONFIGS["full"], 256, 256)
    row = report.make_row(case, layers, entries, {}, replace(LIMITS, flops_per_s=None))
    assert row.verdict == "wrong"
    assert row.misses == ["ours (Stylizer): wrong: relative error 1", "openvino: failed to load"]
    assert cells_of(row)["ours"] == cells_of(row)["floor"] == "-"
    assert report.as_json(row)["frames_per_s"] is None


def test_options_choose_the_cases(monkeypatch):
    monkeypatch.setattr(options, "leaves_bfloat16_out", lambda _: False)

    def ids(*arguments: str) -> list[str]:
        return [case.id for case in ModelSuite.of(cli.parse(["model", *arguments])).cases]

    assert len(ids()) == 20
    assert ids("--quick", "--dtype", "float32") == ["full/256x256/float32", "lite/256x256/float32"]
    assert ids("--style", "wave", "--size", "64x48") == [
        "wave/64x48/float32",
        "wave/64x48/bfloat16",
    ]
    assert ids("--only", "lite/512", "--memory") == [
        "lite/512x512/float32",
        "lite/512x512/bfloat16",
    ]


def test_a_gpu_has_cases_of_its_own():
    def ids(*arguments: str) -> list[str]:
        chosen = cli.parse(["model", "--device", "cuda", *arguments])
        assert dtypes.notes(chosen) == []
        return [case.id for case in options.select(chosen)]

    sizes = ("512x512", "1920x1080", "3840x2160")
    assert ids() == [f"{net}/{size}/bfloat16" for net in ("full", "lite") for size in sizes]
    assert ids("--quick", "--dtype", "float32") == ["full/512x512/float32", "lite/512x512/float32"]
    assert ids("--only", "full/1920", "--dtype", "bfloat16") == ["full/1920x1080/bfloat16"]
    assert ids("--style", "wave", "--size", "64x48") == ["wave/64x48/bfloat16"]


@pytest.mark.parametrize("option", ["--memory", "--layers"])
def test_memory_and_layers_are_not_measured_on_a_gpu(capsys, option):
    assert cli.main(["model", "--device", "cuda", option]) == 2
    assert f"error: {option}: measured on a CPU only, not on cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "message"),
    [("64", "expected WxH, as in 640x480, got '64'"), ("64x8", "at least 16 pixels a side")],
)
def test_a_size_that_cannot_be_is_refused(capsys, size, message):
    with pytest.raises(SystemExit):
        cli.parse(["model", "--size", size])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("instructions", [None, "avx512_bf16", "amx_bf16"])
def test_bfloat16_is_asked_for_where_the_cpu_has_none(monkeypatch, instructions):
    capabilities = {name: name == instructions for name in ("amx_bf16", "avx512_bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    def chosen(*arguments: str) -> set[str]:
        return {case.dtype for case in options.select(cli.parse(["model", *arguments]))}

    both = {"float32", "bfloat16"}
    assert chosen() == (both if instructions else {"float32"})
    assert chosen("--only", "full/") == both
    assert chosen("--dtype", "bfloat16") == {"bfloat16"}
    said = dtypes.notes(cli.parse(["model"]))
    assert (said == []) == (instructions is not None)


def test_partial_runs_do_not_replace_the_committed_results(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: "found")
    assert ModelSuite(cli.parse(["model"])).complete
    for argument in (
        "--quick",
        "--only=full",
        "--dtype=float32",
        "--size=64x64",
        "--style=wave",
        "--rivals",
    ):
        assert not ModelSuite(cli.parse(["model", argument])).complete, argument


def test_command_line_writes_a_complete_record(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cpu, "measure_ceilings", lambda threads: LIMITS)
    without_engines(monkeypatch)
    path = tmp_path / "result.json"
    arguments = "model --size 48x32 --only lite/48x32/float32 --rivals eager openvino --seconds 0"
    assert cli.main([*arguments.split(), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "openvino: skipped" in printed
    assert report.VIEWS["cpu"].table.header() in printed
    document = json.loads(path.read_text())
    assert document["machine"]["rivals"] == {}
    assert document["ceilings"]["flops_per_s"]["float32"] == 1e11
    (row,) = document["rows"]
    assert (row["id"], row["width"], row["height"]) == ("lite/48x32/float32", 48, 32)
    assert set(row["seconds"]) == {"ours", "eager"}
    assert row["best_rival"] == "eager"
    assert row["speedup_over_best"] == row["speedups"]["eager"]
    seconds = row["seconds"]["ours"]["median"]
    assert row["frames_per_s"] == pytest.approx(1 / seconds)
    assert row["share_of_peak"] == pytest.approx(row["flops"] / 1e11 / seconds)
    assert row["winograd_floor_seconds"] < row["floor_seconds"]
