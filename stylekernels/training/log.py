"""The log of a run: lines on the terminal, curves and pictures for TensorBoard."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from stylekernels.training.errors import SettingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """Lines on stderr, above a progress bar if there is one, and TensorBoard's files.

    Attributes:
        skipped: a message about each photo that could not be read.
    """

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self._board: SummaryWriter | None = None

    def open_board(self, folder: Path) -> None:
        """Write TensorBoard's files into a folder from here on.

        Raises:
            SettingError: if TensorBoard is not installed, or not whole.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(f"log_dir: cannot use TensorBoard: {error}") from error
        self._board = SummaryWriter(str(folder))

    def say(self, line: str) -> None:
        """Write a line; a terminal that was closed ends the log, not the training."""
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stderr)

    def skip(self, problem: str) -> None:
        """Say once that a photo could not be read, and count it."""
        if problem not in self.skipped:
            self.skipped.append(problem)
            self.say(f"photos: {problem}; skipped")

    def losses(self, step: int, means: dict[str, float]) -> None:
        """Write a line and a point of each curve."""
        self.say(f"step {step}: " + " ".join(f"{name} {x:.3f}" for name, x in means.items()))
        if self._board is not None:
            for name, value in means.items():
                self._board.add_scalar(f"train/{name}", value, step)

    def preview(self, step: int, picture: Tensor) -> None:
        """Keep a picture, (3, H, W) in [0, 1]."""
        if self._board is not None:
            self._board.add_image("preview", picture, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
