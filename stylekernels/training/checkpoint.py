"""The state of a training run on disk, written whole or not at all."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from stylekernels.files import write_whole
from stylekernels.training.errors import SettingError

if TYPE_CHECKING:
    from stylekernels.training.config import RunConfig

_VERSION = 3
_CONTENTS = {"step", "minutes", "finished", "config", "inputs", "task"}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them.

    Raises:
        OSError: if the file cannot be written; an older one is then still whole.
    """

    # PyTorch's writer of files raises RuntimeError for a full disk, in many words.
    content = io.BytesIO()
    torch.save({"version": _VERSION, **state}, content)
    write_whole(path, lambda part: part.write_bytes(content.getbuffer()))


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
            f"({type(error).__name__}); remove it to start again"
        ) from error
    if (
        not isinstance(state, dict)
        or state.get("version") != _VERSION
        or not state.keys() >= _CONTENTS
    ):
        raise SettingError(
            f"resume: {path}: expected a checkpoint of this trainer (version {_VERSION}); remove "
            "it to start again"
        )
    return state


def _is_style(path: Path) -> bool:
    """Tells a finished style by its content, whatever it is called."""
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def matching_checkpoint(path: Path, config: "RunConfig", inputs: dict[str, str]) -> dict[str, Any]:
    """The checkpoint that a run resumes from.

    Args:
        path: the checkpoint.
        config: settings of the run now.
        inputs: digests of what the run learns from, by setting.

    Raises:
        SettingError: as :func:`load_checkpoint`, and if it is of a run with other settings that
            shape the weights, or of other inputs.
    """
    state = load_checkpoint(path)
    instead = ", or give a finished style to init" if hasattr(config, "init") else ""
    then, now = state["config"], config.to_dict()
    for name in sorted((then.keys() ^ now.keys()) - config.FREE):
        raise SettingError(
            f"resume: {path} is of another kind of training or of another version, as it "
            f"{'has' if name in then else 'lacks'} the setting {name}; remove it to start again"
        )
    for name in config.fixed():
        if then[name] != now[name]:
            raise SettingError(
                f"resume: {path} was trained with {name}={then[name]}, got {name}={now[name]}; "
                f"use the same{instead}"
            )
    for name, digest in inputs.items():
        if state["inputs"].get(name) != digest:
            raise SettingError(
                f"resume: {path} was trained on other files than those of {name}; use the same"
                + instead
            )
    return state


def digest(paths: Iterable[Path]) -> str:
    """The SHA-256 of files, by which a run knows its paintings, whatever they are called."""
    each = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256("".join(each).encode()).hexdigest()
