"""DCGAN and its kin: noise to images of 64 x 64, conditional on a label, InfoGAN's codes.

``ImageGenerator`` is what a run is for, and has files. ``ImageDiscriminator`` trains it.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.models.batch_norm import BatchNorm
from stylekernels.models.network_config import NetworkConfig
from stylekernels.models.tensor_files import (
    IMAGE_FORMAT,
    check_shapes,
    read_safetensors,
    write_safetensors,
)
from stylekernels.nn import UpsampleBlock

#: Side of the images, in pixels.
SIDE = 64

_START = 8  # side of the dense layer's image
_SLOPE = 0.2
_DROPOUT = 0.3
_RECOGNITION = 128


@dataclass(frozen=True)
class ImageGeneratorConfig(NetworkConfig):
    """Inputs of an :class:`ImageGenerator`, by their sizes and names.

    Attributes:
        noise: number of random inputs.
        labels: names of the labels of a conditional generator; without any it is unconditional.
        categories: values of InfoGAN's categorical code, at least 2; 0 for none.
        continuous: number of InfoGAN's continuous codes, each in [-1, 1].

    Raises:
        ValueError: for a value that is not allowed.
    """

    noise: int = 100
    labels: tuple[str, ...] = ()
    categories: int = 0
    continuous: int = 0

    def __post_init__(self) -> None:
        # JSON has lists only; equality and hashing want a tuple.
        object.__setattr__(self, "labels", tuple(self.labels))
        for name, least in (("noise", 1), ("categories", 0), ("continuous", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
        if self.categories == 1:
            raise ValueError("categories: expected 0 or at least 2, got 1, which can't vary")
        if not all(isinstance(label, str) and label for label in self.labels):
            raise ValueError(f"labels: expected names, got {self.labels}")
        # Pictures are written into folders of these names.
        if any(label in (".", "..") or set(label) & set("/\\") for label in self.labels):
            raise ValueError(f"labels: expected names of folders, got {self.labels}")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels: expected none or at least two different, got {self.labels}")


class Codes(NamedTuple):
    """Inputs of a generator for N images; None if its config has no such input.

    Attributes:
        noise: (N, noise), normally distributed.
        label: (N,), indices of labels.
        category: (N,), values of the categorical code.
        continuous: (N, continuous), in [-1, 1].
    """

    noise: Tensor
    label: Tensor | None = None
    category: Tensor | None = None
    continuous: Tensor | None = None


class Judgement(NamedTuple):
    """Outputs of a discriminator for N images; None if its config has no such code.

    Attributes:
        logits: (N, 1), high where an image looks real.
        category: (N, categories), logits of the categorical code.
        continuous: (N, continuous), estimates of the continuous codes.
    """

    logits: Tensor
    category: Tensor | None = None
    continuous: Tensor | None = None


class ImageGenerator(nn.Module):
    """Makes images of 64 x 64 pixels from noise.

    A dense layer makes 8 x 8 x 256 units; three transposed 4x4 convolutions of stride 2 double
    their side, with 128, 64 and 3 channels. Batch norm and leaky ReLU follow all but the last one,
    which tanh follows. Label and codes enter the dense layer beside the noise.

    Args:
        config: the inputs; noise alone by default.

    Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional
    generative adversarial networks", 2015; Mirza and Osindero, "Conditional generative adversarial
    nets", 2014; Chen et al., "InfoGAN", 2016.
    """

    def __init__(self, config: ImageGeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = ImageGeneratorConfig() if config is None else config
        inputs = config.noise + len(config.labels) + config.categories + config.continuous
        channels = (256, 128, 64)
        self.dense = nn.Linear(inputs, channels[0] * _START**2)
        self.norm = nn.ModuleList(BatchNorm(count, _SLOPE) for count in channels)
        self.up = nn.ModuleList(
            [_upsampling(256, 128), _upsampling(128, 64), _upsampling(64, 3, activation="tanh")]
        )
        _initialise(self)

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        category: Tensor | None = None,
        continuous: Tensor | None = None,
    ) -> Tensor:
        """Return RGB images, (N, 3, 64, 64) in [0, 1], channels_last.

        Args:
            noise, label, category, continuous: as in :class:`Codes`.

        Raises:
            ValueError: if one of them is missing, or there is one that the config has not, or its
                shape does not fit.
        """
        x = self.dense(self._inputs(Codes(noise, label, category, continuous)))
        x = x.unflatten(1, (_START, _START, -1)).permute(0, 3, 1, 2)
        for norm, up in zip(self.norm, self.up, strict=True):
            x = up(norm(x))
        return (1 + x) / 2

    def draw(
        self, count: int, *, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Codes:
        """Return random inputs for ``count`` images.

        Args:
            count: N.
            device: of the inputs.
            generator: of random numbers, on that device; PyTorch's global one by default.
        """
        config, options = self.config, {"device": device, "generator": generator}
        choice = {
            name: torch.randint(values, (count,), **options) if values else None
            for name, values in (("label", len(config.labels)), ("category", config.categories))
        }
        continuous = None
        if config.continuous:
            continuous = torch.rand(count, config.continuous, **options) * 2 - 1
        return Codes(torch.randn(count, config.noise, **options), **choice, continuous=continuous)

    def _inputs(self, codes: Codes) -> Tensor:
        """The dense layer's inputs, (N, inputs): label and category as one-hot vectors.

        Label and codes are scaled so that each begins with a quarter of all the noise's variance.
        Unscaled, they have a hundredth, and change the pictures little.
        """
        config, count = self.config, len(codes.noise)
        _check_code("noise", codes.noise, (count, config.noise), True)
        _check_code("label", codes.label, (count,), bool(config.labels))
        _check_code("category", codes.category, (count,), bool(config.categories))
        _check_code(
            "continuous", codes.continuous, (count, config.continuous), bool(config.continuous)
        )
        scale = math.sqrt(config.noise) / 2
        parts = [codes.noise]
        for index, values in (
            (codes.label, len(config.labels)),
            (codes.category, config.categories),
        ):
            if index is not None:
                parts.append(scale * F.one_hot(index, values).to(codes.noise.dtype))
        if codes.continuous is not None:
            parts.append(scale * codes.continuous)
        return torch.cat(parts, 1)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "ImageGenerator":
        """Open a file of :meth:`save_pretrained`.

        Args:
            path: a safetensors file.

        Returns:
            The generator in float32 on the CPU, in evaluation mode.

        Raises:
            ValueError: if there is no such file, or it holds something else.
            OSError: if the file cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"path: expected the file of an image generator, got {str(path)!r}, which is "
                f"{'a folder' if path.is_dir() else 'not there'}; "
                "stylekernels train-dcgan FOLDER trains one"
            )
        metadata, tensors = read_safetensors(path)
        try:
            if metadata.get("format") != IMAGE_FORMAT:
                raise ValueError(
                    f"expected the format {IMAGE_FORMAT!r}, got {metadata.get('format')!r}; "
                    "stylekernels train-dcgan FOLDER trains one, and styles are for "
                    "stylekernels stylize"
                )
            config = ImageGeneratorConfig.from_dict(json.loads(metadata.get("config", "null")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not an image generator of this library: {error}") from error
        generator = cls(config)
        check_shapes(generator, tensors, f"{path}: expected an image generator with {config}")
        generator.load_state_dict(tensors)
        return generator.eval()

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write weights, norm statistics and config to one safetensors file, whole or not at all.

        Args:
            path: file to write or replace.

        Raises:
            OSError: if the file cannot be written.
        """
        write_safetensors(path, self, IMAGE_FORMAT, self.config.to_dict())


class ImageDiscriminator(nn.Module):
    """Tells real images of 64 x 64 pixels from made ones.

    Three 4x4 convolutions of stride 2 with 64, 128 and 128 channels, leaky ReLU after each, dropout
    of 0.3, and a dense layer to one logit. With labels, the product of the features and a vector of
    the label's own is added to the logit. With InfoGAN's codes, a recognition head of two dense
    layers estimates them from the same features.

    Args:
        config: that of the generator.

    Miyato and Koyama, "cGANs with projection discriminator", 2018; Chen et al., "InfoGAN", 2016.
    """

    def __init__(self, config: ImageGeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = ImageGeneratorConfig() if config is None else config
        self.trunk = nn.Sequential()
        for channels in ((3, 64), (64, 128), (128, 128)):
            self.trunk.append(nn.Conv2d(*channels, 4, 2, padding=1))
            self.trunk.append(nn.LeakyReLU(_SLOPE))
        self.dropout = nn.Dropout(_DROPOUT)
        features = 128 * (SIDE // 8) ** 2
        self.head = nn.Linear(features, 1)
        self.label = nn.Embedding(len(config.labels), features) if config.labels else None
        codes = config.categories + config.continuous
        self.recognition = None
        if codes:
            self.recognition = nn.Sequential(
                nn.Linear(features, _RECOGNITION),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(_RECOGNITION, codes),
            )
        _initialise(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Judgement:
        """Judge images.

        Args:
            x: RGB images, (N, 3, 64, 64) in [0, 1].
            label: (N,), indices of labels, for a conditional discriminator.

        Raises:
            ValueError: if a shape does not fit, or labels are missing or not expected.
        """
        if x.dim() != 4 or x.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"x: expected RGB images (N, 3, {SIDE}, {SIDE}), got {tuple(x.shape)}")
        _check_code("label", label, (len(x),), bool(self.config.labels))
        features = self.dropout(self.trunk(2 * x - 1).flatten(1))
        logits = self.head(features)
        if label is not None:
            logits = logits + (self.label(label) * features).sum(1, keepdim=True)
        if self.recognition is None:
            return Judgement(logits)
        categories, count = self.config.categories, self.config.continuous
        category, continuous = self.recognition(features).split((categories, count), 1)
        return Judgement(logits, category if categories else None, continuous if count else None)


def interpolate_noise(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Return ``steps`` noise vectors from one to another, both included: (steps, noise).

    They lie on an arc. On the straight line the middle would be shorter than any noise that the
    generator was trained with.

    Args:
        first, last: (noise,).
        steps: at least 2.

    White, "Sampling generative networks", 2016.
    """
    share = torch.linspace(0, 1, steps, device=first.device)[:, None]
    cosine = F.cosine_similarity(first, last, dim=0)
    angle = torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / angle.sin()


def to_pixels(x: Tensor) -> np.ndarray:
    """Round images (N, 3, H, W) in [0, 1] to (N, H, W, 3) uint8."""
    pixels = x.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def _upsampling(cin: int, cout: int, activation: str = "none") -> UpsampleBlock:
    """A transposed convolution; batch norm cancels the bias of those that it follows."""
    return UpsampleBlock(
        cin,
        cout,
        norm="none",
        activation=activation,
        bias=activation != "none",
        padding_mode="zeros",
    )


def _initialise(network: nn.Module) -> None:
    """Draw weights, and set biases to zero. Dense layers have a deviation of 0.02, as in DCGAN.

    Upsampling begins with interpolation, without the pattern of independent random taps. The
    discriminator has no norm that would bring small values to scale, so its convolutions keep the
    scale of their input (He et al., "Delving deep into rectifiers", 2015).
    """
    for module in network.modules():
        if isinstance(module, UpsampleBlock):
            module.init_bilinear_()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, _SLOPE)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def _check_code(name: str, code: Tensor | None, shape: tuple[int, ...], expected: bool) -> None:
    if not expected:
        if code is not None:
            raise ValueError(f"{name}: expected None, as the config has no {name}, got a tensor")
    elif code is None or code.shape != shape:
        found = "None" if code is None else tuple(code.shape)
        raise ValueError(f"{name}: expected a tensor of shape {shape}, got {found}")
