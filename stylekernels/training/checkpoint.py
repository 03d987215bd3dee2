"""The state of a training run on disk, written whole or not at all."""

from pathlib import Path
from typing import Any

import torch

from stylekernels.models.pretrained import write_whole

_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them.

    Raises:
        OSError: if the file cannot be written; an older one is then still whole.
    """
    write_whole(path, lambda part: torch.save({"version": _VERSION, **state}, part))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote; no code in the file ever runs.

    Raises:
        ValueError: if the file is missing, truncated or no checkpoint of this trainer.
    """
    if not path.is_file():
        raise ValueError(f"resume: expected a checkpoint, there is no file {path}")
    try:
        with path.open("rb") as file:  # given a path, torch.load goes by its extension
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are not checkpoints
        raise ValueError(
            f"{path}: expected a checkpoint of this trainer, could not read it "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError(
            f"{path}: expected a checkpoint of this trainer (version {_VERSION}); a finished "
            "style is no checkpoint, give it to init instead"
        )
    return state
