"""Output of the command line: results, refusals, error messages, progress and exit codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

#: Exit codes.
DONE, FAILED, REFUSED, INTERRUPTED, READER_LEFT = 0, 1, 2, 130, 141


class Refused(Exception):
    """Something in the command cannot be done. The message says what, and what to do instead."""


@contextmanager
def refusing(prefix: str = "") -> Iterator[None]:
    """Refuse a command whose ``with`` block raises ValueError or OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(f"{prefix}{error}") from error


def progress(count: int, *, shown: bool) -> "tqdm":
    """Return a progress bar over photos and the tiles of each."""
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} photos [{elapsed}<{remaining}]"
    return tqdm(total=count, bar_format=form, disable=None if shown else True, leave=False)


def frame_progress(count: int | None) -> "tqdm":
    """Return a progress bar over frames of a video, of an unknown number if ``count`` is None."""
    from tqdm import tqdm

    form = "{n}/{total}, {rate_noinv_fmt} [{elapsed}<{remaining}]"
    if count is not None:
        form = "{percentage:3.0f}%|{bar}| " + form
    return tqdm(total=count, bar_format=form, unit=" frames", disable=None, leave=False)


def status_line() -> "tqdm":
    """Return a line below all others, with a text that `set_description_str` replaces. There is
    none if stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(bar_format="{desc}", disable=None, leave=False)


def advance(bar: "tqdm", index: int, done: int = 1, total: int = 1) -> None:
    """Move the bar: ``done`` of ``total`` parts of the photo with this index are done."""
    bar.update(index + done / total - bar.n)


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"


def say(text: str) -> None:
    """Print on stdout. Characters that its encoding lacks, for example in paths, are escaped."""
    try:
        print(text)
    except UnicodeEncodeError as error:
        print(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def complain(message: str) -> None:
    """Write one line on stderr, above a progress bar. A closed terminal is ignored."""
    from tqdm import tqdm

    with suppress(OSError):
        tqdm.write(f"stylekernels: {' '.join(message.split())}", file=sys.stderr)
