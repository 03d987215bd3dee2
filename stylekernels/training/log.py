"""The log of a run: terminal, file of losses, TensorBoard's curves, samples."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from stylekernels.files import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from stylekernels.training.run_folder import RunFolder


class Log:
    """Lines on stderr, above a progress bar if there is one, and the files of a run's folder.

    A closed terminal or a full disk ends the log, not the training.

    Args:
        folder: where losses and samples are kept; None keeps neither. TensorBoard's files are
            written if it is installed.
        quiet: whether another process writes the lines on the terminal.

    Attributes:
        skipped: a message about each photo that could not be read.
    """

    def __init__(self, folder: "RunFolder | None" = None, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.skipped: list[str] = []
        self._board: SummaryWriter | None = None
        self._failed: set[Path] = set()

    def open_board(self, purge_from: int | None) -> None:
        """Write TensorBoard's files from here on, if it is installed.

        Args:
            purge_from: first step of earlier files that is taken again; None if there are none.
        """
        with contextlib.suppress(ImportError, OSError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder.board), purge_step=purge_from)

    def say(self, line: str) -> None:
        """Write a line on the terminal."""
        if self.quiet:
            return
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stderr)

    def skip(self, problem: str) -> None:
        """Say once that a photo could not be read, and count it."""
        if problem not in self.skipped:
            self.skipped.append(problem)
            self.say(f"photos: {problem}; skipped")

    def losses(self, step: int, values: dict[str, float]) -> None:
        """Write a line, a line of the file, and a point of each curve. The terminal's line leaves
        out the losses of single layers, whose names have a slash."""
        short = {name: value for name, value in values.items() if "/" not in name}
        self.say(f"step {step}: " + " ".join(f"{name} {x:.3g}" for name, x in short.items()))
        if self.folder is None:
            return
        line = json.dumps({"step": step, **values})
        try:
            with self.folder.log.open("a", encoding="utf-8") as file:
                print(line, file=file)
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(f"train/{name}", value, step)
        except OSError as error:
            self.failed(self.folder.log, error)

    def sample(self, step: int, sheet: np.ndarray) -> None:
        """Keep a sheet of pictures, (H, W, 3) uint8."""
        if self.folder is None:
            return
        path, image = self.folder.sample(step), Image.fromarray(sheet)
        try:
            write_whole(path, lambda part: image.save(part, "PNG"))
            if self._board is not None:
                self._board.add_image("samples", sheet, step, dataformats="HWC")
        except OSError as error:
            self.failed(path, error)

    def failed(self, path: Path, error: OSError) -> None:
        """Say once per folder that a file which the run can do without was not written."""
        if path.parent not in self._failed:
            self._failed.add(path.parent)
            self.say(f"{path}: cannot be written: {error.strerror or error}")

    def close(self) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
