"""``python -m benchmarks report``: docs/benchmarks.md has every committed row, as it is."""

import json
from pathlib import Path

import pytest

from benchmarks import cli, kept_results, page
from benchmarks.suite import RESULTS

FILES = sorted(RESULTS.glob("*.json"))
plots = pytest.importorskip("benchmarks.plots")


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    found = kept_results.machines(FILES)
    drawn = {m.name: sorted(page.IMAGES.glob(f"{m.name}-*.png"), reverse=True) for m in found}
    assert all(drawn.values())
    assert page.PAGE.read_text() == page.text(found, drawn), "run python -m benchmarks report"


def test_every_loss_is_listed() -> None:
    text = page.PAGE.read_text()
    rows = [row for machine in kept_results.machines(FILES) for row in machine.rows.values()]
    losses = [row for row in rows if row.verdict in ("loss", "wrong")]
    assert losses
    for row in losses:
        assert f"| `{row.id}` | {'; '.join(row.misses)} |" in text


@pytest.fixture
def results(tmp_path):
    """Two runs of a machine and one of another, of one op each."""

    def write(name: str, date: str, verdict: str, seconds: float, **machine: str) -> None:
        def summary(value: float) -> dict:
            return {"median": value, "q1": value, "q3": value, "rounds": 3}

        row = {
            "id": "gram_matrix/fwd/1x8x8x8/float32/contiguous",
            "op": "gram_matrix",
            "direction": "fwd",
            "dtype": "float32",
            "seconds": {"ours": summary(seconds), "eager": summary(2e-3), "other": summary(3e-3)},
            "speedups": {"eager": summary(2e-3 / seconds), "other": summary(3e-3 / seconds)},
            "floor_seconds": 5e-4,
            "bytes": 4096,
            "flops": 8192,
            "verdict": verdict,
            "misses": [] if verdict == "win" else ["eager is 1.5 times faster"],
        }
        about = {"date": date, "torch": "2.13", "cpu": "A (R) B", "capability": "avx2"} | machine
        ceilings = {"copy_bytes_per_s": 2e10, "flops_per_s": {"float32": 2e11}, "notes": ""}
        document = {"machine": about | {"threads": 2}, "ceilings": ceilings, "rows": [row]}
        (tmp_path / name).write_text(json.dumps(document))

    write("ops-cpu-zen3-2.json", "2026-02-02T00:00", "win", 1e-3)
    write("ops-cpu-zen3-1.json", "2026-01-01T00:00", "loss", 3e-3)
    write("ops-cuda-h-1.json", "2026-01-03T00:00", "loss", 3e-3, gpu="NVIDIA H")
    (tmp_path / "live-cpu-zen3-1.json").write_text(
        (tmp_path / "ops-cpu-zen3-1.json").read_text()
    )  # another kind of row, which has no rivals
    return tmp_path


def test_the_later_file_of_a_machine_is_valid(results) -> None:
    zen, gpu = kept_results.machines(sorted(results.glob("*.json")))
    assert (zen.title, zen.name) == ("2 cores: Zen 3, AVX2", "2-cores-zen-3-avx2")
    assert (gpu.title, gpu.name) == ("NVIDIA H", "nvidia-h")
    (row,) = zen.rows.values()
    assert (row.seconds, row.rival, row.rival_seconds, row.verdict) == (1e-3, "eager", 2e-3, "win")
    assert (row.speedup["median"], row.share) == (pytest.approx(2), pytest.approx(0.5))
    assert zen.about == "torch 2.13; measured on 2026-01-01 and 2026-02-02"


def test_the_command_writes_the_page_and_its_plots(results, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(page, "IMAGES", tmp_path / "docs" / "images")
    assert cli.main(["report", "--results", str(results)]) == 0
    text = page.PAGE.read_text()
    for plot in ("2-cores-zen-3-avx2-speedups", "2-cores-zen-3-avx2-roofline", "nvidia-h-speedups"):
        assert f"](images/{plot}.png)" in text
        assert (page.IMAGES / f"{plot}.png").stat().st_size > 5000
    assert text.count("eager is 1.5 times faster") == 1  # the earlier file of zen3 is replaced


def test_a_later_wrong_answer_or_failure_replaces_a_win(results) -> None:
    path = results / "ops-cpu-zen3-2.json"
    document = json.loads(path.read_text())
    (row,) = document["rows"]
    document["machine"]["date"] = "2026-03-03T00:00"
    row |= {"seconds": {}, "speedups": {}, "verdict": "wrong", "misses": ["ours: wrong"]}
    path.with_name("ops-cpu-zen3-3.json").write_text(json.dumps(document))
    files = sorted(results.glob("*zen3*.json"))
    (machine,) = kept_results.machines(files)
    assert [row.verdict for row in machine.rows.values()] == ["wrong"]
    assert "| ours: wrong |" in page.text([machine], {machine.name: []})
    document |= {"rows": [], "failed": {row["id"]: "RuntimeError"}}
    path.with_name("ops-cpu-zen3-3.json").write_text(json.dumps(document))
    assert not kept_results.machines(files)


def test_a_name_that_ends_in_zen_is_no_generation() -> None:
    about = {"threads": 8, "cpu": "AMD Ryzen 7 5800X", "capability": "avx2"}
    path = Path("ops-cpu-amd-ryzen-7-5800x-zen-3-2026-01-01.json")
    assert kept_results._title(path, about)[0] == "8 cores: Zen 3, AVX2"


def test_an_empty_folder_is_refused(tmp_path, capsys) -> None:
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    assert "--results: expected files" in capsys.readouterr().out


def test_ceilings_are_the_highest_of_a_machine() -> None:
    before = {"copy_bytes_per_s": 3.0, "flops_per_s": {"float32": 5.0, "bfloat16": None}}
    after = {"copy_bytes_per_s": 2.0, "flops_per_s": {"float32": 7.0, "bfloat16": 9.0}}
    merged = kept_results._highest(before, after)
    assert merged == {"copy_bytes_per_s": 3.0, "flops_per_s": {"float32": 7.0, "bfloat16": 9.0}}
