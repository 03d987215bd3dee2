"""The state of a training run on disk, written whole or not at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stylekernels.files import write_whole
from stylekernels.training.config import TrainConfig
from stylekernels.training.errors import SettingError

_VERSION = 1
_CONTENTS = {"network", "generator", "optimizer", "scaler", "step", "minutes", "config"}
# A checkpoint belongs to a run whose values of these are the same.
_FIXED = ("style_size", "crop", "batch_size", "seed", "features", "content_weight",
          "content_colors", "color_weight", "style_weight", "tv_weight")  # fmt: skip
# Values of options that older checkpoints lack.
_BEFORE = {"content_colors": "photo", "color_weight": 0.0}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them.

    Raises:
        OSError: if the file cannot be written; an older one is then still whole.
    """
    write_whole(path, lambda part: torch.save({"version": _VERSION, **state}, part))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of :func:`save_checkpoint`; no code in it ever runs.

    Raises:
        SettingError: if the file is missing, truncated or no checkpoint of this trainer.
    """
    if not path.is_file():
        raise SettingError(f"resume: expected a checkpoint, there is no file {path}")
    if _is_style(path):
        raise SettingError(
            f"resume: {path}: expected a checkpoint, got a finished style; give it to init instead"
        )
    try:
        with path.open("rb") as file:  # given a path, torch.load goes by its extension
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are not checkpoints
        raise SettingError(
            f"resume: {path}: expected a checkpoint of this trainer, could not read it "
            f"({type(error).__name__})"
        ) from error
    if (
        not isinstance(state, dict)
        or state.get("version") != _VERSION
        or not state.keys() >= _CONTENTS
    ):
        raise SettingError(
            f"resume: {path}: expected a checkpoint of this trainer (version {_VERSION}); a "
            "finished style is no checkpoint, give it to init instead"
        )
    return state


def _is_style(path: Path) -> bool:
    """Tells a finished style by its content, whatever it is called."""
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def matching_checkpoint(config: TrainConfig) -> dict[str, Any]:
    """The checkpoint that a run resumes from.

    Raises:
        SettingError: as :func:`load_checkpoint`, and if it is of a run with another painting or
            with other settings that shape the losses or the crops.
    """
    state = load_checkpoint(config.resume)
    then, now = {**_BEFORE, **json.loads(state["config"])}, config.to_dict()
    for name in _FIXED:
        if then[name] != now[name]:
            raise SettingError(
                f"resume: {config.resume} was trained with {name}={then[name]}, "
                f"got {name}={now[name]}; use the same, or give a finished style to init"
            )
    # Checkpoints written before the digest was kept know the painting by its path alone.
    if "painting" in state:
        same = state["painting"] == painting_digest(config.style)
    else:
        same = then["style"] == now["style"]
    if not same:
        raise SettingError(
            f"resume: {config.resume} was trained on another painting, {then['style']}, "
            f"got {config.style}; use the same, or give a finished style to init"
        )
    return state


def painting_digest(path: Path) -> str:
    """The SHA-256 of a file, by which a run knows its painting, whatever it is called."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
