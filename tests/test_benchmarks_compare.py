"""``python -m benchmarks compare``: what counts as slower, and what cannot be compared."""

import copy
import json

import pytest

from benchmarks import cli
from benchmarks.compare import changes


def summary(median: float, spread: float = 0.02) -> dict:
    return {
        "median": median,
        "q1": median * (1 - spread / 2),
        "q3": median * (1 + spread / 2),
        "rounds": 9,
    }


def results(rows: dict[str, dict], cpu: str = "a CPU") -> dict:
    return {
        "machine": {"cpu": cpu, "capability": "avx2", "threads": 2},
        "rows": [{"id": name, "verdict": "win", **row} for name, row in rows.items()],
        "failed": {},
    }


def raced(seconds: float, spread: float = 0.02, **speedups: float) -> dict:
    return {
        "seconds": {"ours": summary(seconds, spread)},
        "speedups": {name: summary(value, spread) for name, value in speedups.items()},
    }


@pytest.mark.parametrize(
    ("before", "after", "spread", "verdict"),
    [
        (2.0, 1.98, 0.001, "same"),  # within 5 %
        (2.0, 1.8, 0.02, "slower"),
        (2.0, 1.8, 0.3, "same"),  # the quartiles overlap
        (2.0, 2.3, 0.02, "faster"),
    ],
)
def test_verdicts_compare_speedups_beyond_noise(before, after, spread, verdict) -> None:
    """A machine that is three times as slow changes times, not speedups."""
    old = results({"case": raced(1.0, spread, eager=before)}, "a CPU")
    new = results({"case": raced(3.0, spread, eager=after)}, "another CPU")
    ((change,), skipped) = changes(old, new)
    assert (change.verdict, change.measure, skipped) == (verdict, "/eager", [])
    assert change.speed == pytest.approx(after / before)


def test_the_common_rival_with_the_narrowest_quartiles_decides() -> None:
    old, new = raced(1.0, eager=2.0, compile=1.5), raced(1.0, eager=1.0, compile=1.5)
    old["speedups"]["eager"] = summary(2.0, 0.5)
    new["speedups"] |= {"onnxruntime": summary(9.0, 0.001)}
    ((change,), _) = changes(results({"case": old}), results({"case": new}))
    assert (change.measure, change.verdict) == ("/compile", "same")


def test_seconds_are_compared_on_one_machine_only() -> None:
    old, new = results({"case": raced(1.0)}), results({"case": raced(1.2)})
    ((change,), skipped) = changes(old, new)
    assert (change.measure, change.verdict, skipped) == ("ms", "slower", [])
    assert (change.before, change.after) == (1000.0, 1200.0)
    assert change.speed == pytest.approx(1 / 1.2)
    new["machine"]["cpu"] = "another CPU"
    found, skipped = changes(old, new)
    assert not found
    assert skipped == ["case: no rival is in both files, and their machines differ"]


def test_live_rows_are_compared_by_their_share() -> None:
    old, new = ({"share": summary(share), "bare_fps": 3.0} for share in (0.95, 0.8))
    ((change,), _) = changes(results({"case": old}), results({"case": new}))
    assert (change.measure, change.verdict) == ("share", "slower")


def test_rows_that_became_wrong_or_fail_are_broken() -> None:
    old = results({name: raced(1.0, eager=2.0) for name in ("wrong", "failed", "gone", "new")})
    new = copy.deepcopy(old)
    new["rows"] = [row for row in new["rows"] if row["id"] in ("wrong", "new")]
    new["rows"][0] |= {"verdict": "wrong", "seconds": {}, "speedups": {}}
    new["failed"] = {"failed": "RuntimeError: no memory"}
    old["rows"] = [row for row in old["rows"] if row["id"] != "new"]
    found, skipped = changes(old, new)
    assert {change.row: change.verdict for change in found} == dict.fromkeys(
        ("wrong", "failed"), "broken"
    )
    assert all(change.is_regression for change in found)
    assert skipped == ["gone: only in the first file"]


@pytest.mark.parametrize(("after", "code"), [(2.0, 0), (2.4, 0), (1.5, 1)])
def test_the_exit_status_tells_of_regressions(tmp_path, capsys, after, code) -> None:
    for name, speedup in (("a.json", 2.0), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(results({"case": raced(1.0, eager=speedup)})))
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == code
    printed = capsys.readouterr().out
    verdict = {2.0: "same", 2.4: "faster", 1.5: "slower"}[after]
    assert f"1 {verdict}" in printed


@pytest.mark.parametrize("content", ["", "[]", '{"rows": []}', None])
def test_other_files_are_refused(tmp_path, capsys, content) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["compare", str(path), str(path)]) == 2
    assert "expected two files that python -m benchmarks wrote" in capsys.readouterr().out


def test_files_without_a_common_row_are_refused(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(results({name: raced(1.0, eager=2.0)})))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "no row could be compared" in capsys.readouterr().out
