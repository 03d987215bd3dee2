"""Peak memory of one frame, in a process that does nothing else.

Run as ``python -m benchmarks.model.one_frame <contender> <network> <width>x<height> <dtype>
<threads>``; prints JSON.
"""

import contextlib
import json
import re
import sys
from pathlib import Path

import torch

from benchmarks.model.cases import Case, Problem
from benchmarks.model.rivals import make


def resident_bytes(field: str) -> int:
    """Return memory of this process: ``"VmRSS"``, resident now, or ``"VmHWM"``, the peak.

    ``getrusage`` would include the parent process.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def forget_peak() -> None:
    """Reset VmHWM, since building the network may have taken more than the frame will."""
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/clear_refs").write_text("5")


def main(contender: str, network: str, size: str, dtype: str, threads: str) -> None:
    """Stylise one frame, and print the resident memory before it and the peak."""
    torch.set_num_threads(int(threads))
    width, height = map(int, size.split("x"))
    _, call = make(contender, Problem(Case(network, (width, height), dtype), Path()))
    forget_peak()
    before = resident_bytes("VmRSS")
    call()
    print(json.dumps({"before": before, "peak": resident_bytes("VmHWM")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
