"""The command line of ``python -m benchmarks``."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import stylekernels
from benchmarks import machine, report
from benchmarks.cases import DTYPES, Case, Shape, grid, prepare
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.contenders import enter, plain_copy
from benchmarks.timing import measure

RESULTS = Path(__file__).with_name("results")
RIVALS = ("eager", "compile")


def _shape(text: str) -> Shape:
    try:
        n, c, h, w = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NxCxHxW, got {text!r}") from None
    return n, c, h, w


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, the process's own by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    ops = verbs.add_parser("ops", help="every op against PyTorch and against the machine")
    ops.add_argument("--device", choices=("cpu",), default="cpu")
    ops.add_argument("--quick", action="store_true", help="one shape per op, half a second each")
    ops.add_argument(
        "--only", action="append", metavar="TEXT",
        help="cases whose id contains TEXT, as in gram_matrix or relu/fwd/ (repeatable: any)",
    )  # fmt: skip
    ops.add_argument("--dtype", choices=tuple(DTYPES), help="cases of this dtype only")
    ops.add_argument("--shape", type=_shape, metavar="NxCxHxW", help="instead of the listed shapes")
    ops.add_argument("--threads", type=int, help="PyTorch's own choice by default")
    ops.add_argument(
        "--rivals", nargs="*", choices=RIVALS, default=list(RIVALS), help="both by default"
    )
    ops.add_argument(
        "--max-autotune", action="store_true", help="torch.compile's, slow to compile (minutes)"
    )
    ops.add_argument("--seconds", type=float, help="time for the rounds of a case, default 3")
    ops.add_argument("--list", action="store_true", help="print the ids of the cases and stop")
    ops.add_argument(
        "--json", type=Path, metavar="PATH",
        help="default for a complete run: benchmarks/results/ops-cpu-<cpu>-<date>.json; a partial "
        "run is written only where this says",
    )  # fmt: skip
    return parser.parse_args(arguments)


def select(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    return [
        case
        for case in grid(options.quick, options.shape)
        if (options.dtype is None or case.dtype == options.dtype)
        and (not options.only or any(text in case.id for text in options.only))
    ]


def run_case(
    case: Case, ceilings: Ceilings, rivals: Sequence[str], budget_s: float, compile_mode: str
) -> report.Row:
    """Prepare, check and time one case."""
    problem = prepare(case)
    entries = enter(problem, rivals, compile_mode)
    calls = {entry.name: entry.call for entry in entries if entry.error is None}
    if case.limited_by == "memory":
        calls["copy"] = plain_copy(problem)
        calls["copy"]()
    samples = measure(calls, budget_s=budget_s) if calls else {}
    implementation = stylekernels.explain(case.op, problem.inputs[0]).partition(": ")[2]
    return report.make_row(case, problem, implementation, entries, samples, ceilings)


def _is_complete(options: argparse.Namespace) -> bool:
    narrowed = options.quick or options.only or options.dtype or options.shape
    return not narrowed and set(options.rivals) == set(RIVALS)


def _print_machine(about: dict[str, Any], ceilings: Ceilings) -> None:
    print(
        f"{about['cpu']}, {about['threads']} of {about['cores']} cores, {about['capability']}; "
        f"torch {about['torch']}; load {about['load_average']:.1f}"
    )
    if about["load_average"] > 0.5 * about["cores"]:
        print("warning: other programs are running; these numbers are not for publishing")
    peaks = "".join(
        f", {dtype} {flops / 1e9:.0f} GFLOP/s"
        for dtype, flops in (ceilings.flops_per_s or {}).items()
    )
    print(f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s{peaks} ({ceilings.notes})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 1 if an answer of ours was wrong, else 0."""
    options = parse(arguments)
    cases = select(options)
    if options.list or not cases:
        print("\n".join(case.id for case in cases) or "no case fits; see --list")
        return 0 if cases else 2
    if options.threads:
        torch.set_num_threads(options.threads)
    budget = options.seconds
    if budget is None:
        budget = 0.5 if options.quick else 3.0
    mode = "max-autotune-no-cudagraphs" if options.max_autotune else "default"

    about = machine.describe()
    ceilings = measure_ceilings(torch.get_num_threads())
    _print_machine(about, ceilings)
    print(report.LEGEND, report.header(), sep="\n\n")
    path = options.json
    if path is None and _is_complete(options):
        date = str(about["date"])[:10]
        path = RESULTS / f"ops-cpu-{machine.slug(machine.cpu_name())}-{date}.json"
    rows: list[report.Row] = []
    start = time.monotonic()
    for case in cases:
        rows.append(run_case(case, ceilings, options.rivals, budget, mode))
        print(report.line(rows[-1]), flush=True)
        if path is not None:  # after every case: a run takes long, and may be stopped
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report.document(about, ceilings, rows), indent=1) + "\n")
    print(f"\n{time.monotonic() - start:.0f} s: {report.summary(rows)}")
    if path is not None:
        print(f"written: {path}")
    return int(any(row.verdict == "wrong" for row in rows))
