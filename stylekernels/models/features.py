"""Frozen ImageNet feature extractors: VGG16, VGG19, SqueezeNet 1.1 and small stand-ins.

Every network here takes RGB images with values in [0, 1] and returns a dictionary of named
activations. Nothing in it is trained: gradients flow to the image only.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.nn.frozen_conv2d import FrozenConv2d
from stylekernels.tensors import without_autocast

_TORCHVISION = "https://download.pytorch.org/models/"
# The last eight characters before .pth are the start of the file's sha256.
PUBLISHED_WEIGHTS = {
    "vgg16": _TORCHVISION + "vgg16-397923af.pth",
    "vgg19": _TORCHVISION + "vgg19-dcbb9e9d.pth",
    "squeezenet": _TORCHVISION + "squeezenet1_1-b8a52dc0.pth",
}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)

_VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_VGG_STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
_VGG_CONTENT = ("relu2_1", "relu3_1", "relu4_1")


class FeatureNetwork(nn.Module):
    """Base of the feature networks: RGB in [0, 1] to a dictionary of activations.

    Attributes:
        layers: names of all activations the network can give, from shallow to deep.
        style_layers, content_layers: those a perceptual loss uses by default.
    """

    layers: tuple[str, ...]
    style_layers: tuple[str, ...]
    content_layers: tuple[str, ...]

    def forward(self, x: Tensor, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Compute activations.

        Args:
            x: images, (N, 3, H, W), RGB in [0, 1], at least 16 pixels a side.
            layers: names from ``self.layers``; ``style_layers`` and ``content_layers`` by
                default. Nothing deeper than the deepest of them is computed.

        Returns:
            One entry per name, (N, C, h, w), in the dtype of the convolutions' weights; see
            :meth:`in_precision`. Autocast has no effect.

        Raises:
            ValueError: for a layer name the network does not have, or if x has another shape.
        """
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16:
            raise ValueError(
                "x: expected RGB images (N, 3, H, W) of at least 16 pixels a side, got "
                f"{tuple(x.shape)}"
            )
        if layers is None:
            layers = {*self.style_layers, *self.content_layers}
        unknown = set(layers) - set(self.layers)
        if unknown:
            raise ValueError(
                f"layers: expected names from {', '.join(self.layers)}, got {sorted(unknown)}"
            )
        found: dict[str, Tensor] = {}
        with without_autocast(x.device.type):
            self._collect(x, set(layers), found)
        return found

    def in_precision(self, dtype: torch.dtype) -> "FeatureNetwork":
        """Convert the convolutions to a dtype; returns self. Frozen weights are rounded once so,
        where autocast rounds them at every call. Images are normalised in their own dtype."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
        return self

    def _rounded(self, x: Tensor) -> Tensor:
        """Convert images to the dtype of the convolutions."""
        return x.to(next(self.parameters()).dtype)

    def _collect(self, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> None:
        """Put the wanted activations of ``x`` into ``found``."""
        raise NotImplementedError

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()


class VGG(FeatureNetwork):
    """VGG16 or VGG19 with ImageNet weights, torchvision's layer order and zero padding.

    Args:
        name: ``vgg16`` or ``vgg19``.
        weights: state dict with torchvision's names (``features.0.weight``, ...); the
            classifier's are ignored.

    Raises:
        ValueError: for an unknown name, or if weights lacks a tensor or one has another shape.

    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
    recognition", 2015.
    """

    style_layers = _VGG_STYLE
    content_layers = _VGG_CONTENT

    def __init__(self, name: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        if name not in _VGG_BLOCKS:
            raise ValueError(f"name: expected one of {', '.join(_VGG_BLOCKS)}, got {name!r}")
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_IMAGENET_STD)[:, None, None])
        self.convolutions = nn.ModuleDict()
        names, index, channels, width = [], 0, 3, 64
        for block, count in enumerate(_VGG_BLOCKS[name], 1):
            for i in range(1, count + 1):
                prefix = f"features.{index}"
                self.convolutions[f"{block}_{i}"] = _conv2d(
                    weights, prefix, (width, channels, 3, 3), padding=1
                )
                names.append(f"relu{block}_{i}")
                channels, index = width, index + 2
            index, width = index + 1, min(2 * width, 512)
        self.layers = tuple(names)
        self._freeze()

    def _collect(self, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> None:
        x = self._rounded((x - self.mean) / self.std)
        for name, convolution in self.convolutions.items():
            if wanted <= found.keys():
                return
            if name.endswith("_1") and name != "1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(convolution(x))
            if f"relu{name}" in wanted:
                found[f"relu{name}"] = x


class ReflectVGG19(FeatureNetwork):
    """A cut VGG19 with reflection padding, ceil-mode pooling and the colour step as ``conv0``.

    The layers are those present in ``weights``. Where a layer ``convK_1_wide`` is there, it
    restores the full width of a distilled (narrow) network, and ``reluK_1`` is its output.

    Args:
        weights: ``conv0.weight``, ``conv1_1.weight``, ... with their biases.

    Raises:
        ValueError: if ``conv0`` or ``conv1_1`` is missing or a shape is wrong.

    Wang et al., "Collaborative distillation for ultra-resolution universal style transfer", 2020.
    """

    style_layers = _VGG_STYLE
    content_layers = _VGG_CONTENT

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.conv0 = _conv2d(weights, "conv0", (3, 3, 1, 1))
        self.convolutions = nn.ModuleDict()
        self.wide = nn.ModuleDict()
        channels = 3
        for block, count in enumerate(_VGG_BLOCKS["vgg19"], 1):
            for i in range(1, count + 1):
                name = f"{block}_{i}"
                if name != "1_1" and f"conv{name}.weight" not in weights:
                    break
                self.convolutions[name] = _conv2d(
                    weights,
                    f"conv{name}",
                    (None, channels, 3, 3),
                    padding=1,
                    padding_mode="reflect",
                )
                channels = self.convolutions[name].out_channels
                if f"conv{name}_wide.weight" in weights:
                    shape = (None, channels, 1, 1)
                    self.wide[name] = _conv2d(weights, f"conv{name}_wide", shape)
        self.layers = tuple(f"relu{name}" for name in self.convolutions)
        self.style_layers = tuple(n for n in _VGG_STYLE if n in self.layers)
        self.content_layers = tuple(n for n in _VGG_CONTENT if n in self.layers)
        self._freeze()

    def _collect(self, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> None:
        x = self.conv0(self._rounded(x))
        for name, convolution in self.convolutions.items():
            if wanted <= found.keys():
                return
            if name.endswith("_1") and name != "1_1":
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = F.relu(convolution(x))
            if f"relu{name}" in wanted:
                found[f"relu{name}"] = F.relu(self.wide[name](x)) if name in self.wide else x


class MixedVGG19(FeatureNetwork):
    """The first three levels of VGG19 with the fourth and fifth of a distilled VGG19.

    A good loss network at a third of VGG19's cost: relu1_1, relu2_1 and relu3_1 are the real
    network's, relu4_1 and relu5_1 (which carry the large forms) the narrow network's.
    """

    layers = style_layers = _VGG_STYLE
    content_layers = _VGG_CONTENT

    def __init__(self, shallow: ReflectVGG19, deep: ReflectVGG19) -> None:
        super().__init__()
        self.shallow, self.deep = shallow, deep
        self._freeze()

    def _collect(self, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> None:
        shallow = wanted & set(self.shallow.layers)
        if shallow:
            found.update(self.shallow(x, shallow))
        if wanted - shallow:
            found.update(self.deep(x, wanted - shallow))


class SqueezeNet(FeatureNetwork):
    """SqueezeNet 1.1 up to its last fire module.

    Args:
        weights: state dict with torchvision's names (``features.0.weight``, ...).
        caffe_colours: the weights expect BGR in 0..255 minus (104, 117, 123), as those converted
            from Caffe and Keras do; otherwise torchvision's normalised RGB.

    Raises:
        ValueError: if weights lacks a tensor or one has another shape.

    Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016.
    """

    layers = ("relu1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9")
    style_layers = ("relu1", "fire3", "fire5", "fire7", "fire9")
    content_layers = ("fire3", "fire5")

    # Index in torchvision's Sequential, input channels, squeezed, expanded (each of two).
    _FIRES = (
        (3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128),
        (9, 256, 48, 192), (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256),
    )  # fmt: skip

    def __init__(self, weights: Mapping[str, Tensor], *, caffe_colours: bool = False) -> None:
        super().__init__()
        if caffe_colours:
            mean, std = torch.tensor(_CAFFE_MEAN_BGR) / 255, torch.full((3,), 1 / 255)
        else:
            mean, std = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
        self.flip_colours = caffe_colours
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.first = _conv2d(weights, "features.0", (64, 3, 3, 3), stride=2)
        self.fires = nn.ModuleDict()
        for index, channels, squeezed, expanded in self._FIRES:
            prefix = f"features.{index}"
            self.fires[str(index)] = nn.ModuleDict(
                {
                    "squeeze": _conv2d(weights, f"{prefix}.squeeze", (squeezed, channels, 1, 1)),
                    "expand1x1": _conv2d(
                        weights, f"{prefix}.expand1x1", (expanded, squeezed, 1, 1)
                    ),
                    "expand3x3": _conv2d(
                        weights, f"{prefix}.expand3x3", (expanded, squeezed, 3, 3), padding=1
                    ),
                }
            )
        self._freeze()

    def _collect(self, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> None:
        if self.flip_colours:
            x = x.flip(1)
        x = F.relu(self.first(self._rounded((x - self.mean) / self.std)))
        if "relu1" in wanted:
            found["relu1"] = x
        for name, (index, fire) in zip(self.layers[1:], self.fires.items(), strict=True):
            if wanted <= found.keys():
                return
            if index in ("3", "6", "9"):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = F.relu(fire["squeeze"](x))
            x = torch.cat((F.relu(fire["expand1x1"](x)), F.relu(fire["expand3x3"](x))), 1)
            if name in wanted:
                found[name] = x


def _conv2d(
    weights: Mapping[str, Tensor],
    prefix: str,
    shape: tuple[int | None, int, int, int],
    *,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
) -> FrozenConv2d:
    """A convolution that holds the weights stored under ``prefix``; None fits any width."""
    for name in (f"{prefix}.weight", f"{prefix}.bias"):
        if name not in weights:
            raise ValueError(f"weights: expected a tensor {name!r}, which is missing")
    weight, bias = weights[f"{prefix}.weight"].float(), weights[f"{prefix}.bias"].float()
    expected = (shape[0] or len(bias), *shape[1:])
    if tuple(weight.shape) != expected or tuple(bias.shape) != expected[:1]:
        raise ValueError(
            f"weights: expected {prefix}.weight of shape {expected} and a bias to match, "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    out_channels, in_channels, kernel_size, _ = expected
    convolution = FrozenConv2d(
        in_channels, out_channels, kernel_size, stride, padding, padding_mode=padding_mode
    )
    convolution.weight.data, convolution.bias.data = weight, bias
    return convolution


def data_folder() -> Path | None:
    """The folder that ``STYLEKERNELS_DATA`` names, or None."""
    value = os.environ.get("STYLEKERNELS_DATA")
    return Path(value) if value else None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors or PyTorch file; no code in it ever runs."""
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: expected a file of weights, got a folder; a folder is what the networks "
            "mixed and slim take"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected weights of a feature network")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError:
        pass
    try:
        with path.open("rb") as file:  # given a path, torch.load goes by its extension
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: expected a safetensors file or a PyTorch state dict, could not read it "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: expected a state dict, got {type(weights).__name__}")
    return weights, {}


def _published(name: str) -> dict[str, Tensor]:
    url = PUBLISHED_WEIGHTS[name]
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        raise OSError(
            f"could not download {url} ({error}); without internet access give the path of a "
            "copy (backbones), or take the network mixed, whose files are in the folder of "
            "backbones"
        ) from error


NETWORKS = ("vgg19", "vgg16", "squeezenet", "mixed", "slim")
_SHALLOW_FILE = "vgg19_to_relu3_1.safetensors"
_DEEP_FILE = "vgg19_slim_to_relu5_1.safetensors"


def _backbone_folder(name: str, path: Path | None) -> Path:
    """Return the folder of backbone files: ``path``, or ``backbones`` in ``STYLEKERNELS_DATA``.

    Raises:
        FileNotFoundError: if a file of the network is not there.
    """
    got = path
    if path is None and (root := data_folder()) is not None:
        got = path = root / "backbones"
    files = (_DEEP_FILE,) if name == "slim" else (_SHALLOW_FILE, _DEEP_FILE)
    if path is None or not all((path / file).is_file() for file in files):
        raise FileNotFoundError(
            f"path: expected a folder with {' and '.join(files)}, which {name!r} is read from, got "
            f"{got or 'none'}; they are not downloaded: docs/training.md, section Loss networks, "
            "says what they are made from; without them use vgg19, which is downloaded"
        )
    return path


def load_features(name: str, path: str | os.PathLike[str] | None = None) -> FeatureNetwork:
    """Open a frozen feature network.

    Args:
        name: ``vgg19``, ``vgg16`` or ``squeezenet`` (ImageNet weights), ``mixed`` (relu1_1 to
            relu3_1 of VGG19 and relu4_1, relu5_1 of a distilled one) or ``slim`` (the distilled
            one alone).
        path: for the first three, a file of weights with torchvision's names (a header that says
            ``input: BGR...`` selects Caffe's colours); without it torchvision's published file is
            downloaded once and its sha256 checked. For ``mixed`` and ``slim``, the folder with
            their files; without it, ``backbones`` in the folder that the environment variable
            ``STYLEKERNELS_DATA`` names.

    Returns:
        The network in float32 on the CPU, without gradients for its parameters.

    Raises:
        ValueError: for an unknown name, or a file that holds something else.
        OSError: if a file is missing or cannot be downloaded.
    """
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NETWORKS)}, got {name!r}")
    path = None if path is None else Path(path)
    if name in ("mixed", "slim"):
        folder = _backbone_folder(name, path)
        deep = ReflectVGG19(_read(folder / _DEEP_FILE)[0])
        if name == "slim":
            return deep
        return MixedVGG19(ReflectVGG19(_read(folder / _SHALLOW_FILE)[0]), deep)
    weights, header = (_published(name), {}) if path is None else _read(path)
    try:
        if name == "squeezenet":
            return SqueezeNet(weights, caffe_colours=header.get("input", "").startswith("BGR"))
        return VGG(name, weights)
    except ValueError as error:
        raise ValueError(f"{path or name}: not torchvision's {name}: {error}") from error
