"""The style generator and its files: safetensors and fast-neural-style checkpoints.

No code in a file ever runs: PyTorch files are opened with ``weights_only=True``.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stylekernels.models.generator import Generator, GeneratorConfig
from stylekernels.models.multi_style import MultiStyleGenerator
from stylekernels.models.styles import find_style
from stylekernels.models.tensor_files import (
    IMAGE_FORMAT,
    MULTI_STYLE_FORMAT,
    STYLE_FORMAT,
    check_shapes,
    looks_like_safetensors,
    read_safetensors,
    write_safetensors,
)

_WHAT_FOR = {IMAGE_FORMAT: "; it makes pictures from noise: stylekernels generate"}
_FAST_NEURAL_STYLE_BLOCKS = 5
_KINDS = ("weight", "bias")


class StyleGenerator(Generator):
    """Feed-forward style transfer: one photo in, the same picture painted out.

    Args:
        config: widths, depth, upsampling; the default is the 32-64-128 network with five
            residual blocks.

    ``torch.export`` takes dynamic sides that are multiples of four, ``4 * Dim("height", min=4)``:
    it can't prove that what is cut off an odd size leaves that size.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016, with instance norm (Ulyanov et al., "Improved texture networks",
    2017) and reflection padding.
    """

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> "StyleGenerator":
        """Open a bundled style by name, a file of weights, or a mixture of styles.

        A file may be this library's safetensors or a fast-neural-style checkpoint (a state dict,
        DataParallel's, or a training state with one in it); it is recognised by its content, and
        no code in it ever runs.

        Args:
            name_or_path: a name from :func:`stylekernels.models.bundled_styles`, a path, or styles
                of a file of several: see :func:`stylekernels.models.styles.find_style`.

        Returns:
            The generator in float32 on the CPU, in evaluation mode.

        Raises:
            ValueError: if there is no such style, or the file holds something else.
            OSError: if the file cannot be read.
        """
        source = find_style(name_or_path)
        network = open_network(source.path)
        if isinstance(network, MultiStyleGenerator):
            if not source.shares:
                raise ValueError(
                    f"{source.path}: holds the styles {', '.join(network.styles)}; name one after "
                    f"a colon, {source.path}:{network.styles[0]}, or several with their shares, "
                    "such as :wave:0.3,udnie:0.7"
                )
            return _mixture(network, source.shares)
        if source.shares:
            raise ValueError(f"{source.path}: holds one style; leave out what follows the colon")
        return network

    @classmethod
    def from_base(cls, path: str | os.PathLike[str]) -> "StyleGenerator":
        """Open what a new style starts from: the mean of a file's styles, or its only style.

        Args, Returns, Raises: as :meth:`from_pretrained`.
        """
        source = find_style(path)
        if source.shares:
            return cls.from_pretrained(path)
        network = open_network(source.path)
        return _mixture(network, None) if isinstance(network, MultiStyleGenerator) else network

    def save_pretrained(
        self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write weights and config to one safetensors file, whole or not at all.

        Args:
            path: file to write or replace.
            dtype: the dtype of the stored weights; float16 and bfloat16 halve the file.

        Raises:
            OSError: if the file cannot be written.
        """
        write_safetensors(path, self, STYLE_FORMAT, self.config.to_dict(), dtype)


def open_network(path: Path) -> "StyleGenerator | MultiStyleGenerator":
    """Open a file of one style or of several.

    Raises:
        ValueError: if the file holds something else.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if looks_like_safetensors(start):
        return _open_safetensors(path)
    return _from_fast_neural_style(_open_torch(path), path)


def open_multi_style(path: str | os.PathLike[str], styles: Sequence[str]) -> MultiStyleGenerator:
    """Open what a network of several styles starts from.

    Args:
        path: as for :meth:`StyleGenerator.from_pretrained`. Of a file of several styles, those
            among ``styles`` are kept, and new ones begin with the mean; with a file of one style,
            all begin with that.
        styles: names.

    Raises: as :meth:`StyleGenerator.from_pretrained`.
    """
    source = find_style(path)
    network = open_network(source.path)
    if isinstance(network, MultiStyleGenerator) and not source.shares:
        return network.with_styles(styles)
    one = StyleGenerator.from_pretrained(path)
    network = MultiStyleGenerator(one.config, styles)
    network.shared.load_state_dict(one.state_dict())
    return network


def _mixture(network: MultiStyleGenerator, shares: Mapping[str, float] | None) -> StyleGenerator:
    generator = StyleGenerator(network.config)
    generator.load_state_dict(network.mixed(shares))
    return generator.eval()


def _open_safetensors(path: Path) -> StyleGenerator | MultiStyleGenerator:
    metadata, tensors = read_safetensors(path)
    if "config" not in metadata:
        # The widely used layout is also passed on as safetensors, without a header.
        return _from_fast_neural_style(tensors, path)
    kind = metadata.get("format")
    if kind == MULTI_STYLE_FORMAT:
        return MultiStyleGenerator.from_tensors(metadata, tensors, path)
    try:
        if kind != STYLE_FORMAT:
            raise ValueError(
                f"expected the format {STYLE_FORMAT!r}, got {kind!r}" + _WHAT_FOR.get(kind, "")
            )
        config = GeneratorConfig.from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a style generator of this library: {error}") from error
    return _fill(config, tensors, path)


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        Image.open(path).close()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def _open_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        with path.open("rb") as file:  # given a path, torch.load goes by its extension
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are not checkpoints
        if _is_picture(path):
            raise ValueError(
                f"{path}: expected a trained style, got a picture; train one from it first: "
                f"stylekernels train --art {path.name} --photos FOLDER --output STYLE.safetensors"
            ) from error
        raise ValueError(
            f"{path}: expected a safetensors file or a PyTorch state dict of tensors alone; "
            f"refused or unreadable ({type(error).__name__}): it is truncated, of another kind, "
            "or carries code, which is never run"
        ) from error
    if isinstance(state, Mapping):
        inner = (state.get(name) for name in ("state_dict", "model_state_dict", "model"))
        state = next((found for found in inner if isinstance(found, Mapping)), state)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state dict of tensors, got {type(value).__name__} at {name!r}"
            )
    # DataParallel and DistributedDataParallel put this before every name.
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _from_fast_neural_style(state: Mapping[str, Tensor], path: Path) -> StyleGenerator:
    """Make a generator from the TransformerNet of pytorch/examples, any width, values 0..255.

    The biases of convolutions before an instance norm are left out (it cancels them), and so are
    the running statistics of old files, which were never used.
    """
    try:
        channels = tuple(len(state[f"conv{i}.conv2d.weight"]) for i in (1, 2, 3))
        config = GeneratorConfig(
            channels=channels,
            residual_blocks=_FAST_NEURAL_STYLE_BLOCKS,
            kernel_size=state["conv1.conv2d.weight"].shape[-1],
            upsample="nearest",
            value_range=255.0,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        some = ", ".join(sorted(map(str, state))[:4]) or "nothing"
        raise ValueError(
            f"{path}: expected a style generator of this library or a fast-neural-style "
            f"checkpoint (conv1.conv2d.weight, in1.weight, res1...), got {some}, ..."
        ) from error
    names = _fast_neural_style_names()
    ignored = re.compile(r"(?:res\d\.)?in\d\.(running_mean|running_var|num_batches_tracked)"
                         r"|(conv[123]|deconv[12]|res\d\.conv[12])\.conv2d\.bias")  # fmt: skip
    tensors = {
        names.get(key, key): tensor for key, tensor in state.items() if not ignored.fullmatch(key)
    }
    return _fill(config, tensors, path)


def _fast_neural_style_names() -> dict[str, str]:
    """Our names of tensors, by those of a fast-neural-style checkpoint."""
    layers = {
        **{f"conv{i + 1}.conv2d": f"down.{i}.conv" for i in range(3)},
        **{f"in{i + 1}": f"down.{i}.norm" for i in range(3)},
        **{f"deconv{i + 1}.conv2d": f"up.{i}" for i in range(2)},
        "deconv3.conv2d": "to_rgb",
    }
    for i in range(_FAST_NEURAL_STYLE_BLOCKS):
        for j, half in ((1, "first"), (2, "second")):
            layers[f"res{i + 1}.conv{j}.conv2d"] = f"residual.{i}.{half}.conv"
            layers[f"res{i + 1}.in{j}"] = f"residual.{i}.{half}.norm"
    names = {f"in{i + 4}.{kind}": f"up.{i}.norm_{kind}" for i in range(2) for kind in _KINDS}
    return names | {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in _KINDS
    }


def _fill(config: GeneratorConfig, tensors: Mapping[str, Tensor], path: Path) -> StyleGenerator:
    generator = StyleGenerator(config)
    check_shapes(
        generator,
        tensors,
        f"{path}: expected a generator with channels {config.channels} and "
        f"upsample={config.upsample!r}",
    )
    generator.load_state_dict({name: t.float() for name, t in tensors.items()})
    return generator.eval()
