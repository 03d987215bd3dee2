"""The benchmark of published networks: the cases, right answers only, the table."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks import ceilings, cli
from benchmarks.networks import cases, contenders, models, packages, suite

LIMITS = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 4e11}, "made up")


@pytest.fixture
def tiny(monkeypatch):
    """One small network; no ceilings are measured."""
    network = cases.Network(lambda: models.Transformer(4, 1), (3, 32, 36))
    monkeypatch.setattr(suite, "NETWORKS", {"tiny": network})
    monkeypatch.setattr("benchmarks.cpu.Cpu.ceilings", lambda self: LIMITS)
    return ["networks", "--dtype", "float32", "--seconds", "0.05", "--rivals", "eager-nhwc"]


def ids(*arguments: str) -> list[str]:
    return [case.id for case in suite.NetworksSuite.of(cli.parse(["networks", *arguments])).cases]


def test_options_choose_the_cases(monkeypatch):
    monkeypatch.setattr(suite, "leaves_bfloat16_out", lambda _: False)
    monkeypatch.setattr(cases.Network, "missing", None)
    assert len(ids()) == len(set(ids())) == 40
    assert ids("--only", "pix2pix", "--dtype", "float32") == [
        "pix2pix/forward/float32",
        "pix2pix/step/float32",
        "pix2pix-batch/forward/float32",
        "pix2pix-batch/step/float32",
    ]
    assert ids("--quick") == ["cyclegan/forward/float32", "cyclegan/step/float32"]
    monkeypatch.setattr(suite, "leaves_bfloat16_out", lambda _: True)
    assert all("float32" in case for case in ids())


def test_a_missing_package_is_named(monkeypatch):
    network = cases.Network(packages.dynunet, (1, 48, 48, 48), ("no_such_module", "its-package"))
    monkeypatch.setitem(suite.NETWORKS, "dynunet", network)
    found = suite.NetworksSuite.of(cli.parse(["networks"]))
    assert not any(case.network == "dynunet" for case in found.cases)
    assert found.notes()[-1].endswith("its package is missing; pip install its-package")
    assert not found.complete
    found = suite.NetworksSuite.of(cli.parse(["networks", "--only", "animegan"]))
    assert not any("dynunet" in note for note in found.notes())


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (models.cyclegan_resnet, 11.378),
        (lambda: models.pix2pix_unet(norm=nn.BatchNorm2d), 54.414),
        (models.patchgan, 2.765),
    ],
)
def test_networks_have_as_many_parameters_as_their_authors_print(make, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in make().parameters())
    assert round(count / 1e6, 3) == millions


def test_networks_have_the_shapes_of_their_papers():
    with torch.device("meta"), torch.no_grad():
        shapes = {
            name: tuple(network.make().eval()(torch.empty(1, *network.size)).shape)
            for name, network in suite.NETWORKS.items()
            if not network.missing
        }
    expected = {name: (1, *suite.NETWORKS[name].size) for name in suite.NETWORKS} | {
        "adain": (1, 3, 512, 512),
        "patchgan": (1, 1, 30, 30),
        "dynunet": (1, 3, 48, 48, 48),
        "plainconvunet": (1, 3, 48, 48, 48),
        "vae-decoder": (1, 3, 128, 128),
    }
    assert shapes == {name: expected[name] for name in shapes}


@pytest.mark.parametrize(("work", "counts"), [("forward", (8, 0, 0)), ("step", (1, 6, 0))])
def test_a_case_is_measured_and_written(tiny, tmp_path, capsys, work, counts):
    path = tmp_path / "found.json"
    assert cli.main([*tiny, "--only", work, "--json", str(path)]) == 0
    assert "tiny" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["fused"], row["alone"], row["left"]) == counts
    assert set(row["seconds"]) == {"ours", "eager-nhwc"}
    assert 0 < row["share_of_floor"] < 10
    assert 0 < row["norms_share_of_eager"] < 1


def test_volumes_are_converted():
    torch.manual_seed(0)
    norms = [nn.InstanceNorm3d(4), nn.ReLU(), nn.Dropout(0.5), nn.InstanceNorm3d(4)]
    model, x = nn.Sequential(nn.Conv3d(1, 4, 3), *norms).eval(), torch.randn(1, 1, 6, 7, 8)
    for problem in (
        contenders.Problem(model, x),
        contenders.Problem(model, x, torch.randn_like(model(x))),
    ):
        (ours, *_), counts = contenders.enter(problem, (), "default")
        assert counts == (1, 1, 0)
        expected = problem.call()()
        torch.testing.assert_close(ours.call(), expected, rtol=1e-4, atol=1e-4)
        assert len(expected) == (1 if problem.cotangent is None else 3)


@pytest.mark.parametrize("work", ["forward", "step"])
def test_a_wrong_answer_is_refused(tiny, monkeypatch, capsys, work):
    name = "fuse_convolutions" if work == "forward" else "convert"
    right = getattr(contenders, name)

    def wrong(model, *example):
        ours, report = right(model, *example)
        return lambda x: 1.1 * ours(x), report

    monkeypatch.setattr(contenders, name, wrong)
    assert cli.main([*tiny, "--only", work]) == 1
    assert "wrong: relative error 0.1" in capsys.readouterr().out


def test_gradients_of_zero_are_refused(tiny, monkeypatch, capsys):
    right = contenders.convert

    def wrong(model):
        ours, report = right(model)
        return lambda x: ours(x).detach() + 0 * ours(x), report

    monkeypatch.setattr(contenders, "convert", wrong)
    assert cli.main([*tiny, "--only", "step"]) == 1
    assert "wrong: relative error 0.02, allowed 0.001" in capsys.readouterr().out


def test_gradients_may_have_twice_eagers_error():
    exact = [torch.ones(2), torch.ones(4), torch.ones(4)]
    found = [torch.ones(2), torch.full((4,), 1.1), torch.full((4,), 9.0)]
    assert suite._error(found, exact, [1e-3, 0.2, math.inf]) == pytest.approx(5e-4)
    found[2][0] = math.nan
    assert math.isnan(suite._error(found, exact, [1e-3, 0.2, math.inf]))
