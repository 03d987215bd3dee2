"""The benchmark's table of layers."""

import pytest
import torch

from benchmarks import ceilings, cli
from benchmarks.model import cases, layers, operations
from stylekernels import native
from stylekernels.models import GeneratorConfig
from tests.convolve_into import convolve_into

CASE = cases.Case("full", (64, 64), "float32")
COUNTED = operations.layers(GeneratorConfig(), 64, 64)
LIMITS = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 4e11}, "made up")


def row_of(*layer_seconds: float, frame: float, bytes: int = 1000) -> layers.Row:
    """A row of three frames, around the given time."""
    frames = [
        (frame * factor, [layers.Call(seconds * factor, bytes) for seconds in layer_seconds])
        for factor in (1.0, 0.9, 1.1)
    ]
    return layers.make_row(CASE, COUNTED, frames, LIMITS)


def test_a_layer_is_the_median_over_frames_and_the_rest_is_what_is_left():
    row = row_of(*[0.002] * len(COUNTED), frame=0.040)
    assert [found.seconds.median for found in row.layers] == pytest.approx([0.002] * 16)
    assert row.frame.median == pytest.approx(0.040)
    assert row.rest.median == pytest.approx(0.040 - 16 * 0.002)


def test_floors_are_arithmetic_or_memory_whichever_is_more():
    first, *_, last = row_of(*[0.001] * 16, frame=0.02).layers
    assert first.floor == pytest.approx(2 * 64 * 64 * 3 * 32 * 81 / 1e11)
    assert first.share_of_peak == pytest.approx(first.floor / 0.001)
    assert first.winograd_floor is None
    residual = row_of(*[0.001] * 16, frame=0.02).layers[5]
    assert residual.winograd_floor == pytest.approx(residual.floor / 4)
    crowded = row_of(*[0.001] * 16, frame=0.02, bytes=10**9).layers[-1]
    assert crowded.floor == pytest.approx(0.1)
    assert crowded.share_of_peak == pytest.approx(last.share_of_peak)


@pytest.mark.parametrize("capability", ["avx2", "amx"])
def test_bfloat16_has_the_winograd_floor_of_float32_but_on_tiles(monkeypatch, capability):
    monkeypatch.setattr(native, "cpu_capability", capability)
    frames = [(0.02, [layers.Call(0.001, 1000)] * 16)]
    in_float32 = layers.make_row(CASE, COUNTED, frames, LIMITS).layers[5]
    case = cases.Case("full", (64, 64), "bfloat16")
    found = layers.make_row(case, COUNTED, frames, LIMITS).layers[5]
    assert found.floor == pytest.approx(in_float32.floor / 4)
    assert found.winograd_floor == (in_float32.winograd_floor if capability == "avx2" else None)


def test_the_table_names_every_layer_the_rest_and_the_frame():
    suite = layers.LayersSuite(cli.parse(["model", "--layers"]))
    lines = suite.line(row_of(*[0.002] * 16, frame=0.040)).splitlines()
    names = [line[28:40].strip() for line in lines]
    assert names == [*(layer.name for layer in COUNTED), "rest", "frame"]
    assert all(len(line) <= len(suite.table.header()) <= 120 for line in lines)
    expected = "full 64x64 f32 down 1 32-64 32x32 2.00 10% 5% 0.38 0.21 18.9 19% 0.00"
    assert lines[1].split() == expected.split()
    assert lines[-1].split() == ["full", "64x64", "f32", "frame", "40.0", "10%", "100%"]


def test_other_layers_than_those_counted_are_not_given_their_names():
    row = row_of(0.001, 0.001, frame=0.02)
    assert row.layers == []
    assert row.verdict == "wrong"
    assert row.misses == ["expected 16 layers of norm_conv2d in a frame, found 2"]


def test_the_stopwatch_sees_each_layer_and_what_it_is_handed():
    ops = torch.ops.stylekernels
    x, y = torch.randn(1, 8, 9, 12), torch.empty(1, 4, 9, 12)
    kept, weight = torch.empty_like(x), torch.randn(4, 8, 3, 3)
    mode = (1, 1, "reflect", "none")
    packed = ops.norm_conv2d_pack(weight, *mode)
    workspace = torch.empty(1 << 16, dtype=torch.float64)

    def frame() -> None:
        for kept_input in (None, kept):
            (x * 2).relu()  # not a layer
            convolve_into(y, workspace, x, weight, packed, mode, residual=x, input=kept_input)

    frames = layers.watch(frame, budget_s=0)
    assert len(frames) == 5
    for seconds, calls in frames:
        assert [call.bytes for call in calls] == [2 * x.nbytes + y.nbytes, 3 * x.nbytes + y.nbytes]
        assert 0 < sum(call.seconds for call in calls) < seconds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stylizer_runs_the_layers_that_are_counted(dtype):
    options = ("--only", f"lite/34x33/{dtype}")
    suite = layers.LayersSuite(
        cli.parse(["model", "--layers", *options, "--size", "34x33", "--seconds", "0"])
    )
    (case,) = suite.cases
    row = suite.measure(case, LIMITS)
    assert row.misses == []
    # An image of the last layer is 16 channels of 36 x 36 in, and bytes out.
    itemsize = 4 if dtype == "float32" else 2
    assert row.layers[-1].bytes == 16 * 36 * 36 * itemsize + 3 * 33 * 34
    assert row.layers[0].bytes == 3 * 33 * 34 + 16 * 33 * 34 * itemsize
