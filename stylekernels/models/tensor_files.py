"""Files of networks in safetensors format, and whether tensors fit a network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stylekernels.files import write_whole

#: What a file holds, by the network's class.
STYLE_FORMAT = "stylekernels.StyleGenerator"
MULTI_STYLE_FORMAT = "stylekernels.MultiStyleGenerator"
IMAGE_FORMAT = "stylekernels.ImageGenerator"


def looks_like_safetensors(start: bytes) -> bool:
    """Return whether a file starts with eight bytes of header length and a JSON object."""
    return start[8:9] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a file.

    Raises:
        ValueError: if it is no whole safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, could not read it ({error}); "
            "it may be truncated: copy it again"
        ) from error
    return metadata, tensors


def write_safetensors(
    path: str | os.PathLike[str],
    network: nn.Module,
    kind: str,
    config: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network to one file, whole or not at all.

    Args:
        path: file to write or replace.
        network: its state is written.
        kind: one of the formats above.
        config: plain values that the network can be made again from.
        dtype: of the stored tensors.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {"format": kind, "config": json.dumps(config)}
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def check_shapes(network: nn.Module, tensors: Mapping[str, Tensor], expectation: str) -> None:
    """Raise ValueError, which begins with ``expectation``, unless names and shapes of tensors are
    those of a network's."""
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{expectation}: tensor {name!r} should be {expected.get(name, 'absent')}, got "
                f"{found.get(name, 'nothing')}"
            )
