"""The command line of ``python -m benchmarks``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import compare, live, model, networks, ops, overhead, page, train
from benchmarks.dtypes import GPU_DTYPES
from benchmarks.environment import restart_with
from benchmarks.live.suite import LiveSuite
from benchmarks.model.suite import ModelSuite
from benchmarks.networks.suite import NetworksSuite
from benchmarks.ops.suite import OpsSuite
from benchmarks.suite import Suite, run
from benchmarks.train.suite import TrainSuite


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default the process's own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_verb(verbs, OpsSuite, ops.__doc__)
    _add_verb(verbs, ModelSuite, model.__doc__)
    _add_verb(verbs, NetworksSuite, networks.__doc__)
    _add_verb(verbs, TrainSuite, train.__doc__)
    _add_verb(verbs, LiveSuite, live.__doc__)
    for name, module in (("report", page), ("compare", compare), ("overhead", overhead)):
        about = module.__doc__.partition("\n")[0].partition(": ``")[0]
        verb = verbs.add_parser(name, help=about, description=module.__doc__)
        verb.set_defaults(suite=None, run=module.run)
        module.add_arguments(verb)
    return parser.parse_args(arguments)


def _add_verb(verbs, suite: type[Suite], about: str) -> None:
    """Add a verb, with the options that all verbs have and its own."""
    about = about.partition(": ")[2].strip()
    verb = verbs.add_parser(suite.name, help=about, description=about)
    verb.set_defaults(suite=suite)
    verb.add_argument("--device", choices=suite.devices, default="cpu")
    verb.add_argument("--quick", action="store_true", help=f"{suite.quick}, with less time each")
    verb.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="only cases whose id contains TEXT (repeatable: any of them); --list shows ids",
    )
    verb.add_argument("--dtype", choices=tuple(GPU_DTYPES), help="only cases of this dtype")
    suite.add_options(verb)
    verb.add_argument("--threads", type=int, help="default: as many as PyTorch chooses")
    verb.add_argument("--rivals", nargs="*", choices=suite.all_rivals, help="default: all")
    verb.add_argument(
        "--max-autotune", action="store_true", help="compile rivals in this mode (takes minutes)"
    )
    verb.add_argument(
        "--seconds", type=float, help="time for the rounds of a case; default: 3, on a GPU 1"
    )
    verb.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="leave out the cases that would start later than this",
    )
    verb.add_argument("--list", action="store_true", help="print the ids of the cases and stop")
    verb.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help=f"default for a complete run: benchmarks/results/{suite.name}-<device>-<name>-"
        "<date>.json; a partial run is written only with this option, a file or a folder",
    )


def main(arguments: Sequence[str] | None = None, restart: bool = False) -> int:
    """Run the cases.

    Args:
        arguments: a command line, by default the process's own.
        restart: start the process again if its environment lacks variables that the suite needs.

    Returns:
        1 if a case failed, an answer of ours was wrong or a comparison found a slower row, 2 if the
        options were refused, else 0.
    """
    options = parse(arguments)
    if options.suite is None:
        return options.run(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        suite = options.suite.of(options)
    except ValueError as error:
        print(f"python -m benchmarks {options.verb}: error: {error}", file=sys.stderr)
        return 2
    if options.list or not suite.cases:
        print("\n".join(case.id for case in suite.cases) or "no case fits; see --list")
        return 0 if suite.cases else 2
    if restart:
        restart_with(suite.environment())
    return run(suite, options.json, options.time_limit)
