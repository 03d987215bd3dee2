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
        log: one JSON object per line: step, losses, images per second.
        samples: folder of pictures, a sheet per report.
        board: folder of TensorBoard's files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.log = path / "log.jsonl"
        self.samples = path / "samples"
        self.board = path / "tensorboard"

    def begin(self, settings: dict[str, Any], *, resume_at: int | None) -> None:
        """Make the folder and write ``config.json`` and ``environment.json``.

        Args:
            settings: plain values.
            resume_at: the step that the run goes on from; None begins a new one, which replaces
                the one in the folder.

        Raises:
            SettingError: for a new run, if the folder has files and no run.
            OSError: if the folder cannot be written.
        """
        if resume_at is not None:
            self._cut_log(resume_at)
        else:
            there = self.path.is_dir() and any(self.path.iterdir())
            if there and not (self.path / "config.json").is_file():
                raise SettingError(f"run: {self.path} has files and no run; choose another folder")
            for path in (self.checkpoint, self.log):
                path.unlink(missing_ok=True)
            for path in (self.samples, self.board):
                shutil.rmtree(path, ignore_errors=True)
        _write_json(self.path / "config.json", settings)
        _write_json(self.path / "environment.json", environment())

    def refuse_run(self, other: str) -> None:
        """Refuse a folder with a checkpoint, which may be the result of hours, and say how its run
        can go on.

        Args:
            other: the setting of which another value gives a new run a folder of its own.

        Raises:
            SettingError: if there is a checkpoint.
        """
        if not self.checkpoint.is_file():
            return
        try:
            state = load_checkpoint(self.checkpoint)
        except SettingError as error:
            raise SettingError(f"run: {str(error).removeprefix('resume: ')}") from error
        if state["finished"]:
            found, on = "finished run of", "train it longer with more steps"
        else:
            found, on = "run that was stopped after", "go on"
        raise SettingError(
            f"run: {self.path} has a {found} {state['step']} steps; add resume to {on}, add "
            f"overwrite to replace it and its output, or choose another {other}"
        )

    def _cut_log(self, step: int) -> None:
        """Remove the lines of steps that are taken again."""
        if not self.log.is_file():
            return
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(self.log, lambda part: part.write_text("".join(kept), encoding="utf-8"))

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
