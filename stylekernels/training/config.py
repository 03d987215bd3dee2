"""Settings of a training run."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from stylekernels.media.outputs import check_file, check_folder, check_inputs_are_kept
from stylekernels.models.styles import BASE, LITE_BASE, bundled_file, style_file
from stylekernels.training.errors import SettingError


@dataclass(kw_only=True)
class RunConfig:
    """Settings of any training run."""

    photos: Path
    """Folder of photos to learn on, searched in subfolders too; at least two. Those that cannot
    be read are skipped."""

    output: Path
    """The file that the trained weights are written to."""

    steps: int = 3000
    """Optimiser steps."""

    minutes: float | None = None
    """Stop after this many minutes of steps. Preparing steps, and measuring at the end, come on
    top. A learning rate that falls follows whichever of time and steps is further on."""

    batch_size: int = 1
    """Photos per pass of the networks, those of all processes together."""

    accumulate: int = 1
    """Passes per optimiser step; the generator's gradients are averaged."""

    learning_rate: float = 1e-3
    """Adam's, at its highest; a cosine takes it down to 2 % of that."""

    ema: float = 0.999
    """Decay per step of the average of the weights, which is what is saved; 0 saves the weights
    themselves. At first the average is shorter."""

    seed: int = 0
    """Seed of new weights and of all random choices."""

    device: str = "cpu"
    """``cpu`` or ``cuda``."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the networks. ``auto`` is bfloat16 where the hardware has it, else float32;
    weights and losses stay float32."""

    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""

    workers: int = 0
    """Processes that decode photos; 0 decodes between the steps."""

    run: Path | None = None
    """Folder of the run: settings, log, samples, curves for TensorBoard, and the checkpoint.
    The output's name with the ending ``.run`` by default."""

    resume: bool = False
    """Go on from the checkpoint in the run's folder. What shapes the weights must be as it was;
    length, device, precision and paths may change."""

    overwrite: bool = False
    """Replace the run in the run's folder, and the output. Without it a folder that has a run is
    refused, and an output that exists."""

    log_every: int = 50
    """Steps between reports: losses, and a sheet of samples."""

    checkpoint_every: int = 250
    """Steps between two checkpoints."""

    #: Settings that may change when a run goes on.
    FREE: ClassVar[frozenset[str]] = frozenset(
        {"photos", "output", "run", "resume", "overwrite", "steps", "minutes"}
        | {"log_every", "checkpoint_every"}
        | {"device", "precision", "threads", "workers"}
    )

    def check(self) -> None:
        """Refuse what cannot be trained, and paths that cannot be read or written.

        Raises:
            SettingError: naming the field, what was expected and what came.
        """
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.workers >= 0, "workers", "0 or more", self.workers)
        require(0 <= self.ema < 1, "ema", "at least 0 and below 1", self.ema)
        precisions = ("auto", "float32", "bfloat16", "float16")
        allowed = ", ".join(precisions)
        require(self.precision in precisions, "precision", f"one of {allowed}", self.precision)
        rate = self.learning_rate
        # Adam's arithmetic is in float32, which holds no larger ones.
        require(0 < rate <= 1e38, "learning_rate", "above 0 and at most 1e38", rate)
        for name in ("minutes", "threads"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "above 0", value)
        require(self.photos.is_dir(), "photos", "a folder that exists", self.photos)
        with naming("output"):
            check_file(self.output)  # the run's folder is named after it
            check_inputs_are_kept([self.output], self.inputs())
        require(not (self.resume and self.overwrite), "overwrite", "none with resume", "both")
        run = self.run_path.resolve()
        for name, path in (("output", self.output), *(("run", path) for path in self.inputs())):
            require(not path.resolve().is_relative_to(run), name, f"files outside of {run}", path)
        # The next run would learn from this one's samples.
        outside = not run.is_relative_to(self.photos.resolve())
        require(outside, "run", f"a folder outside of the photos' {self.photos}", self.run_path)
        with naming("run"):
            check_folder(self.run_path)
            check_folder(self.run_path / "samples")

    def inputs(self) -> list[Path]:
        """The files that a run reads, besides the photos."""
        return []

    @property
    def weights(self) -> str:
        """Name of the trained weights for other verbs."""
        return str(self.output)

    @property
    def run_path(self) -> Path:
        """The run's folder."""
        if self.run is not None:
            return self.run
        return self.output.with_name(self.output.name.removesuffix(".safetensors") + ".run")

    def share_of_batch(self, processes: int) -> int:
        """The photos per pass of each of several processes.

        Raises:
            SettingError: if the batch cannot be shared out.
        """
        count = self.batch_size
        require(
            count % processes == 0, "batch_size", f"a multiple of the {processes} processes", count
        )
        return count // processes

    def fixed(self) -> list[str]:
        """The settings that shape the weights, which a run that goes on must share."""
        return [field.name for field in fields(self) if field.name not in self.FREE]

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Plain values, ready for JSON; paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """Settings of the training of a style; ``stylekernels train`` takes each as an option."""

    art: Path
    """The painting: an image file, or a folder of one artist's paintings."""

    output: Path = Path("style.safetensors")
    """The file that the trained style is written to."""

    stroke: float = 1.0
    """Size of the strokes. At 1 they are those of the painting at a longer side of 512 pixels,
    whatever its resolution; at 2 they are twice as large."""

    grain: Literal["auto", "keep"] = "auto"
    """``auto`` smooths the grain of paper and canvas in flat parts of the painting where it is
    found, so that it is not learnt; ``keep`` leaves the painting as it is."""

    multi_style: bool = False
    """Train one network for several styles, one for each painting and each subfolder of the folder
    ``art``. They share their convolutions, and can be mixed."""

    init: str = "auto"
    """The start of training: ``base``, the mean of the bundled styles; a bundled style's name; a
    path; or ``bilinear`` for new weights whose upsampling interpolates. ``auto`` is ``base`` if
    that has the shape that is wanted, else ``bilinear``. With ``multi_style``, styles of a file of
    several keep what they are, and others begin with the mean."""

    lite: bool = False
    """Train the half-width generator (a quarter of the work); with ``init=base`` or
    ``init=bilinear`` only."""

    upsample: Literal["nearest", "transpose", "transpose3"] = "nearest"
    """The upsampling of new weights, with ``init=bilinear`` only. ``nearest`` takes a little more
    arithmetic than ``transpose`` and draws no checkerboard in a run of a few hundred steps."""

    warmup_steps: int = 150
    """Steps of learning to reproduce the photo before style training; with ``init=bilinear``
    only."""

    crop: int = 256
    """Side of the square crops, in pixels."""

    flat: float = 0.1
    """Share of crops that are no photos but flat colours, gradients and smooth noise. They teach
    the style what to do with skies and walls."""

    features: Literal["vgg19", "vgg16", "squeezenet", "mixed", "slim"] = "vgg19"
    """The loss network. ``vgg19``, ``vgg16`` and ``squeezenet`` are downloaded if ``backbones``
    names no file. ``mixed`` and ``slim`` are read from two files that you make: docs/training.md,
    section Loss networks, says from what."""

    backbones: Path | None = None
    """The loss network's file (vgg19, vgg16, squeezenet), or the folder of its files (mixed, slim).
    That folder may also be called backbones and be in the one that the environment variable
    STYLEKERNELS_DATA names."""

    content_weight: float = 1.0
    """Weight of the content loss, a mean over layers of relative errors."""

    art_colors: float = 0.7
    """The colours that content loss, colour loss and warm-up aim at: 0 is the photo's, 1 the
    photo after a full colour transfer from the painting. Content and style then want nearly the
    same colours; a full transfer costs contours where the painting has few colours."""

    color_weight: float = 4.0
    """Weight of the colour loss: squared errors of the mean colours of 16 pixel cells, relative to
    the painting's variance. It keeps light light and dark dark, and leaves the strokes free."""

    style_weight: float = 2.5
    """Weight of the style loss, a mean over layers of relative Gram errors."""

    tv_weight: float = 1.0
    """Weight of the total variation."""

    noise_weight: float = 1.0
    """Weight of the noise loss: squared change of the picture of a flat crop when noise is added
    to it, relative to the painting's variance. It keeps grain out of flat parts."""

    gan_weight: float = 0.15
    """Weight of the discriminator: norm of its gradient at the picture, as a share of the style
    loss's. 0 trains without a discriminator."""

    gan_loss: Literal["hinge", "lsgan", "log"] = "hinge"
    """The losses of discriminator and generator: hinge, least squares or cross-entropy."""

    gan_start: float = 0.2
    """Share of the run after which the discriminator comes in; its weight rises over a tenth of
    the run."""

    gan_rate: float = 4e-4
    """The discriminator's learning rate, at its highest."""

    held_out: int = 8
    """Number of photos, at most half of them, that are never trained on and measured at the
    end."""

    preview: Path | None = None
    """A photo for the sheets of samples, instead of those held out."""

    FREE: ClassVar[frozenset[str]] = RunConfig.FREE | {"art", "backbones", "preview"}

    def check(self) -> None:
        """Refuse what cannot be trained, and paths that cannot be read or written.

        Raises:
            SettingError: naming the field, what was expected and what came.
        """
        require(self.held_out >= 1, "held_out", "at least 1", self.held_out)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        smallest = 64 if self.gan_weight else 32
        require(self.crop >= smallest, "crop", f"at least {smallest} pixels", self.crop)
        self.check_losses()
        require(0 <= self.flat < 1, "flat", "at least 0 and below 1", self.flat)
        require(0 <= self.gan_start <= 1, "gan_start", "from 0 to 1", self.gan_start)
        require(0 < self.gan_rate <= 1e38, "gan_rate", "above 0 and at most 1e38", self.gan_rate)
        for name in ("noise_weight", "gan_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, "0 or more", value)
        for name, allowed in (
            ("gan_loss", ("hinge", "lsgan", "log")),
            ("upsample", ("nearest", "transpose", "transpose3")),
        ):
            value = getattr(self, name)
            require(value in allowed, name, f"one of {', '.join(allowed)}", value)
        for name in ("lite", "upsample"):
            given = getattr(self, name) != getattr(TrainConfig, name)
            shaped = self.start == "bilinear" or (name == "lite" and self.start == LITE_BASE)
            if given and not shaped:
                raise SettingError(
                    f"{name}: the network's shape comes from init={self.init!r}; leave {name} out"
                )
        require(self.art.exists(), "art", "an image file or a folder that exists", self.art)
        if self.multi_style:
            require(self.art.is_dir(), "art", "a folder, for multi_style", self.art)
        kind = self.art.is_file() or self.art.is_dir()
        require(kind, "art", "an image file or a folder", "a device or a pipe")
        preview = self.preview
        require(
            preview is None or preview.is_file(), "preview", "an image file that exists", preview
        )
        super().check()

    @property
    def weights(self) -> str:
        return f"{self.output}:NAME" if self.multi_style else str(self.output)

    @property
    def start(self) -> str:
        """The start that ``init`` stands for: ``bilinear``, the name of a style or of a bundled
        base, or a path."""
        base = LITE_BASE if self.lite else BASE
        if self.init == BASE:
            return base
        if self.init != "auto":
            return self.init
        fits = bundled_file(base).is_file() and self.upsample == "nearest"
        return base if fits else "bilinear"

    def inputs(self) -> list[Path]:
        paths = [self.art, self.preview, self.backbones]
        if self.start != "bilinear":
            try:
                paths.append(style_file(self.start))
            except ValueError as error:
                raise SettingError(str(error).replace("name_or_path", "init", 1)) from error
        return [path for path in paths if path is not None]

    def check_losses(self) -> None:
        """Refuse what no losses of pictures can be made from.

        Raises:
            SettingError: naming the field, what was expected and what came.
        """
        require(0.05 <= self.stroke <= 8, "stroke", "from 0.05 to 8", self.stroke)
        require(0 <= self.art_colors <= 1, "art_colors", "from 0 to 1", self.art_colors)
        require(self.grain in ("auto", "keep"), "grain", "one of auto, keep", self.grain)
        for name, value in self.loss_weights().items():
            require(0 <= value < math.inf, name, "0 or more", value)

    def loss_weights(self) -> dict[str, float]:
        """The weights of the perceptual losses, as arguments of `PerceptualLoss`."""
        names = ("content_weight", "style_weight", "tv_weight", "color_weight")
        return {name: getattr(self, name) for name in names}


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Inside, a setting or what it names is used: a ValueError or OSError is about that."""
    try:
        yield
    except SettingError:
        raise
    except (ValueError, OSError) as error:
        raise SettingError(f"{name}: {error}") from error


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raise SettingError about a setting unless the condition holds."""
    if not condition:
        raise SettingError(f"{name}: expected {expected}, got {value}")
