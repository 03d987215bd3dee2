"""Settings of a training run."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from stylekernels.media.outputs import check_file, check_folder, check_inputs_are_kept
from stylekernels.models.styles import style_file
from stylekernels.training.errors import SettingError


@dataclass
class TrainConfig:
    """Settings of one training run; ``stylekernels train`` takes each as an option."""

    style: Path
    """The painting: an image file."""

    photos: Path
    """Folder of photos to learn on, searched in subfolders too; at least two. Those that cannot
    be read are skipped."""

    output: Path = Path("style.safetensors")
    """The file that the trained style is written to."""

    init: str = "bilinear"
    """The start of training: a bundled style's name, a path, or ``bilinear`` for new weights whose
    upsampling interpolates."""

    lite: bool = False
    """Train the half-width generator (a quarter of the work); with ``init=bilinear`` only."""

    upsample: Literal["nearest", "transpose", "transpose3"] = "nearest"
    """The upsampling of new weights, with ``init=bilinear`` only. ``nearest`` takes a little more
    arithmetic than ``transpose`` and draws no checkerboard in a run of a few hundred steps."""

    steps: int = 2000
    """Optimiser steps of style training."""

    minutes: float | None = None
    """Stop after this many minutes of style training. Warm-up, and measuring at the end, come on
    top. The learning rate follows whichever of time and steps is further on."""

    warmup_steps: int = 150
    """Steps of learning to reproduce the photo before style training; with ``init=bilinear``
    only."""

    batch_size: int = 1
    """Photos per step."""

    crop: int = 256
    """Side of the square crops, in pixels."""

    style_size: int = 512
    """Longer side to which the painting is scaled, in pixels. It sets the size of the strokes."""

    features: Literal["vgg19", "vgg16", "squeezenet", "mixed", "slim"] = "vgg19"
    """The loss network. ``mixed`` and ``slim`` are read from the folder of backbones."""

    backbones: Path | None = None
    """The loss network's file (vgg19, vgg16, squeezenet) or folder (mixed, slim); else ImageNet
    weights are downloaded, or the folder is found through STYLEKERNELS_DATA."""

    content_weight: float = 1.0
    """Weight of the content loss, a mean over layers of relative errors."""

    content_colors: Literal["painting", "photo"] = "painting"
    """The colours that content loss, colour loss and warm-up aim at. ``painting`` is the photo
    after a colour transfer from the painting: content and style then want the same colours. With
    the ``photo``'s own colours they settle between the two, on dull ones."""

    color_weight: float = 2.0
    """Weight of the colour loss: squared errors of the mean colours of 16 pixel cells, relative to
    the painting's variance. It keeps light light and dark dark, and leaves the strokes free."""

    style_weight: float = 5.0
    """Weight of the style loss, a mean over layers of relative Gram errors."""

    tv_weight: float = 5.0
    """Weight of the total variation."""

    learning_rate: float = 1e-3
    """Adam's, at its highest; a cosine takes it down to 2 % of that."""

    seed: int = 0
    """Seed of new weights and of the crops."""

    held_out: int = 8
    """Number of photos, at most half of them, that are never trained on and measured at the
    end."""

    device: str = "cpu"
    """``cpu`` or ``cuda``."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the networks. ``auto`` is bfloat16 where the hardware has it, else float32;
    weights and losses stay float32."""

    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""

    workers: int = 0
    """Processes that decode photos; 0 decodes between the steps."""

    log_dir: Path | None = None
    """Folder for TensorBoard's curves and pictures."""

    log_every: int = 50
    """Steps between lines of the log and pictures."""

    preview: Path | None = None
    """A photo that is stylised at every log line, into TensorBoard and beside the output."""

    checkpoint: Path | None = None
    """The file that the state of training is kept in, so that it can be resumed."""

    checkpoint_every: int = 250
    """Steps between two checkpoints."""

    resume: Path | None = None
    """A checkpoint to go on from; what shapes the losses and the crops must be as it was."""

    def check(self) -> None:
        """Refuse what cannot be trained, and paths that cannot be read or written.

        Raises:
            SettingError: naming the field, what was expected and what came.
        """
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "held_out"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("warmup_steps", "workers"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("crop", "style_size"):
            _require(getattr(self, name) >= 32, name, "at least 32 pixels", getattr(self, name))
        for name, value in self.loss_weights().items():
            _require(0 <= value < math.inf, name, "0 or more", value)
        rate = self.learning_rate
        # Adam's arithmetic is in float32, which holds no larger ones.
        _require(0 < rate <= 1e38, "learning_rate", "above 0 and at most 1e38", rate)
        _require(
            self.content_colors in ("painting", "photo"),
            "content_colors",
            "painting or photo",
            self.content_colors,
        )
        for name in ("minutes", "threads"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0", value)
        for name in ("lite", "upsample"):
            if self.init != "bilinear" and getattr(self, name) != getattr(TrainConfig, name):
                raise SettingError(
                    f"{name}: the network's shape comes from init={self.init!r}; leave {name} out"
                )
        for name, kind in (
            ("style", "an image file"), ("preview", "an image file"), ("resume", "a checkpoint"),
        ):  # fmt: skip
            path = getattr(self, name)
            _require(path is None or path.is_file(), name, f"{kind} that exists", path)
        _require(self.photos.is_dir(), "photos", "a folder that exists", self.photos)
        inputs = [self.style, self.preview, self.backbones, self.resume]
        if self.init != "bilinear":
            try:
                inputs.append(style_file(self.init))
            except ValueError as error:
                raise SettingError(str(error).replace("name_or_path", "init", 1)) from error
        self._check_outputs([path for path in inputs if path is not None])

    def outputs(self) -> dict[str, Path]:
        """The files that a run writes, by the names of the settings that ask for them."""
        files = {"output": self.output, "preview": self.preview_file, "checkpoint": self.checkpoint}
        return {name: path for name, path in files.items() if path is not None}

    @property
    def preview_file(self) -> Path | None:
        """The file of the stylised preview, if there is one."""
        return None if self.preview is None else self.output.with_suffix(".preview.png")

    def _check_outputs(self, inputs: list[Path]) -> None:
        with naming("output"):
            check_file(self.output)  # the preview's name comes from it
        outputs = self.outputs()
        for name, path in outputs.items():
            with naming(name):
                check_file(path)
                # A run may write its checkpoint over the one that it resumes from.
                kept = inputs if name != "checkpoint" else [i for i in inputs if i != self.resume]
                check_inputs_are_kept([path], kept)
        names = {path.resolve(): name for name, path in outputs.items()}
        for name, path in outputs.items():
            other = names[path.resolve()]
            _require(other == name, name, f"another file than {other} writes", path)
        if self.log_dir is None:
            return
        with naming("log_dir"):
            check_folder(self.log_dir)
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise SettingError(
                "log_dir: expected TensorBoard, which is not installed; pip install tensorboard, "
                "or leave it out"
            ) from error

    def loss_weights(self) -> dict[str, float]:
        """The weights of the losses, as arguments of `PerceptualLoss`."""
        names = ("content_weight", "style_weight", "tv_weight", "color_weight")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Plain values, ready for JSON; paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Inside, a setting or what it names is used: a ValueError or OSError is about that."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SettingError(f"{name}: {error}") from error


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise SettingError(f"{name}: expected {expected}, got {value}")
