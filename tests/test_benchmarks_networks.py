"""The benchmark of published networks: the cases, right answers only, the table."""

import json

import pytest
import torch

from benchmarks import ceilings, cli
from benchmarks.networks import models, suite

LIMITS = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 4e11}, "made up")


@pytest.fixture
def tiny(monkeypatch):
    """One small network; no ceilings are measured."""
    network = suite._Network(lambda: models.Transformer(4, 1), (3, 32, 36))
    monkeypatch.setattr(suite, "NETWORKS", {"tiny": network})
    monkeypatch.setattr("benchmarks.cpu.Cpu.ceilings", lambda self: LIMITS)
    return ["networks", "--dtype", "float32", "--seconds", "0.05", "--rivals", "eager-nhwc"]


def ids(*arguments: str) -> list[str]:
    return [case.id for case in suite.NetworksSuite.of(cli.parse(["networks", *arguments])).cases]


def test_options_choose_the_cases(monkeypatch):
    monkeypatch.setattr(suite, "leaves_bfloat16_out", lambda _: False)
    assert len(ids()) == len(set(ids())) == 14
    assert ids("--only", "pix2pix", "--dtype", "float32") == [
        "pix2pix/float32",
        "pix2pix-batch/float32",
    ]
    assert ids("--quick") == ["cyclegan/float32"]
    monkeypatch.setattr(suite, "leaves_bfloat16_out", lambda _: True)
    assert all("float32" in case for case in ids())


def test_networks_have_the_shapes_of_their_papers():
    with torch.device("meta"), torch.no_grad():
        shapes = {
            name: tuple(network.make().eval()(torch.empty(1, *network.size)).shape)
            for name, network in suite.NETWORKS.items()
        }
    pictures = {name: (1, *suite.NETWORKS[name].size) for name in shapes}
    assert shapes == pictures | {"adain": (1, 3, 512, 512), "patchgan": (1, 1, 30, 30)}


def test_a_case_is_measured_and_written(tiny, tmp_path, capsys):
    path = tmp_path / "found.json"
    assert cli.main([*tiny, "--json", str(path)]) == 0
    assert "tiny" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["fused"], row["alone"], row["left"]) == (8, 0, 0)
    assert set(row["seconds"]) == {"ours", "eager-nhwc"}
    assert 0 < row["share_of_floor"] < 10


def test_a_wrong_answer_is_refused(tiny, monkeypatch, capsys):
    fuse = suite.fuse_convolutions

    def wrong(model):
        fused, report = fuse(model)
        return lambda x: 1.01 * fused(x), report

    monkeypatch.setattr(suite, "fuse_convolutions", wrong)
    assert cli.main(tiny) == 1
    assert "wrong: relative error 0.01" in capsys.readouterr().out
