"""Atomic writing of files: whole or not at all."""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file under another name beside ``path``, then rename it: no reader sees a part.

    Args:
        path: file to write or replace; its folder is made if missing.
        write: a function that writes the whole content to its argument, the path of an empty file.

    Raises:
        OSError: if the file cannot be written. An old file is kept then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".stylekernels-{secrets.token_hex(6)}.part"
    # A new file gets the usual permissions, and is not private like files of tempfile and
    # safetensors. The umask itself can only be read by changing it, for all threads.
    part.touch(exist_ok=False)
    try:
        usual = stat.S_IMODE(part.stat().st_mode)
        write(part)
        part.chmod(usual)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # so that the content is complete after a power cut
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
