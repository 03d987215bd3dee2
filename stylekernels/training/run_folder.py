"""The folder of a training run: settings, environment, log, samples and the checkpoint."""

import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import stylekernels
from stylekernels import native
from stylekernels.files import write_whole
from stylekernels.training.checkpoint import load_checkpoint
from stylekernels.training.errors import SettingError


class RunFolder:
    """Paths of a run's files.

    Args:
        path: the folder; it need not exist.

    Attributes:
        checkpoint: the state of training, from which ``--resume`` goes on.
        log: one JSON object per line: step, minutes, images per second, losses.
        samples: folder of pictures, a sheet per report.
        board: folder of TensorBoard's files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.log = path / "log.jsonl"
        self.samples = path / "samples"
        self.board = path / "tensorboard"

    def begin(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Make the folder and write ``config.json`` and ``environment.json``.

        A finished run is replaced. A run that was stopped is not: its checkpoint may be the result
        of hours.

        Args:
            settings: plain values.
            resume: whether the run goes on from the checkpoint.

        Raises:
            SettingError: without ``resume``, if the folder has a run that was stopped early.
            OSError: if the folder cannot be written.
        """
        if not resume:
            if self._unfinished():
                raise SettingError(
                    f"run: {self.path} has a run that was stopped early; add resume to go on, "
                    "choose another folder, or remove this one"
                )
            for path in (self.checkpoint, self.log):
                path.unlink(missing_ok=True)
            for path in (self.samples, self.board):
                shutil.rmtree(path, ignore_errors=True)
        _write_json(self.path / "config.json", settings)
        _write_json(self.path / "environment.json", environment())

    def _unfinished(self) -> bool:
        """Whether there is a checkpoint of a run that did not come to its end."""
        return self.checkpoint.is_file() and not load_checkpoint(self.checkpoint)["finished"]

    def sample(self, step: int) -> Path:
        """The file of the sheet of samples after a step."""
        return self.samples / f"{step:06d}.png"


def environment() -> dict[str, Any]:
    """Return what a run depends on besides its settings: versions, revision, hardware."""
    cpu = torch.cpu.get_capabilities()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "stylekernels": stylekernels.__version__,
        "revision": _revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu.get("cpu_name") or platform.processor() or platform.machine(),
        "cpu_kernels": native.cpu_missing or native.cpu_capability,
        "cpu_threads": torch.get_num_threads(),
        "gpus": gpus,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _revision() -> str | None:
    """The git revision of the checkout that the package runs from, "+" for changed files."""
    folder = Path(stylekernels.__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
