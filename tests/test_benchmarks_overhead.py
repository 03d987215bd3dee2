"""The benchmark of what calls and imports cost."""

import pytest
import torch

from benchmarks import cli, overhead
from stylekernels import native

pytestmark = pytest.mark.skipif(native.cpu_missing is not None, reason="not built")


@pytest.mark.parametrize("training", [True, False])
def test_contenders_compute_the_same(training) -> None:
    for case in overhead._cases(training):
        ours, kernel, pytorch = case.ours(), case.kernel(), case.pytorch()
        kernel = kernel[0] if isinstance(kernel, tuple) else kernel
        torch.testing.assert_close(ours, pytorch, msg=case.op)
        torch.testing.assert_close(ours, kernel.reshape(ours.shape), rtol=0, atol=0, msg=case.op)
        assert ours.requires_grad == pytorch.requires_grad == training


def test_the_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(overhead, "_CALLS", 2)
    monkeypatch.setattr(overhead, "_SECONDS", 0.01)
    monkeypatch.setattr(overhead, "_IMPORTS", 1)
    threads = torch.get_num_threads()
    try:
        assert cli.main(["overhead"]) == 0
    finally:
        torch.set_num_threads(threads)
    unit, header, *rows, empty, last = capsys.readouterr().out.splitlines()
    assert unit.startswith("microseconds")
    assert header.split() == ["op", "mode", "ours", "kernel", "overhead", "PyTorch"]
    assert len(rows) == 8
    assert not empty
    assert last.startswith("import torch: ")
    for row in rows:
        ours, kernel, more, _pytorch = map(float, row.split()[-4:])
        assert more == pytest.approx(ours - kernel, abs=1.0)
        assert ours > 0
