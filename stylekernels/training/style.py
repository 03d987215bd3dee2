"""Training a style: a generator, perceptual losses, and a discriminator of the art."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.hardware import fast_dtype, find_device
from stylekernels.media.outputs import check_inputs_are_kept
from stylekernels.media.sheet import make_sheet
from stylekernels.models.files import StyleGenerator, open_multi_style
from stylekernels.models.generator import Generator, GeneratorConfig
from stylekernels.models.multi_style import MultiStyleGenerator
from stylekernels.training.adversary import Adversary
from stylekernels.training.art import read_styles
from stylekernels.training.averages import Average
from stylekernels.training.config import TrainConfig, naming
from stylekernels.training.data import (
    RandomCrops,
    center_crop,
    choose_photos,
    crop_batches,
    read_image,
    readable,
    resized,
    to_image,
    to_tensor,
)
from stylekernels.training.errors import SettingError
from stylekernels.training.log import Log
from stylekernels.training.loop import TrainResult, run_task
from stylekernels.training.means import Means
from stylekernels.training.objective import Objective, load_loss_network
from stylekernels.training.processes import Processes
from stylekernels.training.step import MixedPrecision, TrainingStep

_WARMUP_LEARNING_RATE = 2e-3
_NOISE = 0.02
_STYLE_NORM_EVERY = 16
# The share of a run over which the discriminator's weight rises.
_GAN_RAMP = 0.1
_SAMPLES, _SAMPLE_SIDE = 4, 384

_Placed = TypeVar("_Placed", Tensor, nn.Module)


def train(config: TrainConfig) -> TrainResult:
    """Train a style, or several in one network, and write it to ``config.output``.

    New weights first learn to reproduce the photo, in the painting's colours as far as
    ``art_colors`` asks for them. Then content, style, colour and total variation are minimised
    together; from ``gan_start`` on a discriminator adds its share. Ctrl-C, SIGTERM and SIGHUP end
    the run early and save what it has. A second one ends it at once. Photos that cannot be read are
    skipped.

    Args:
        config: see :class:`TrainConfig`.

    Returns:
        Losses, time, steps, and which photos were skipped.

    Raises:
        SettingError: for a setting, image, checkpoint or style that does not fit; before the first
            step.
        OSError: if the style or the run's folder cannot be written.
        DivergedError: if a loss is no longer finite; it names the step and the loss. The last
            weights with finite losses are written then, if there was a step of style training
            before them.
        KeyboardInterrupt: if a signal comes before there is a style; a checkpoint of the warm-up is
            written then.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016; Ulyanov et al., "Improved texture networks", 2017; Isola et al.,
    "Image-to-image translation with conditional adversarial networks", 2017.
    """
    return run_task(config, StyleTask, "style")


@dataclass
class _Style:
    """A style in training.

    Attributes:
        name: of the style.
        objective: of its pictures.
        adversary: its discriminator, or None.
        chosen: what the network is told besides the photo: nothing, or the style's index.
        norm: of the style loss's gradient at a picture, as last measured.
    """

    name: str
    objective: Objective
    adversary: Adversary | None
    chosen: tuple[int, ...]
    norm: Tensor | None = None


class StyleTask:
    """A style in training: the loop's task.

    Several styles take turns, one in each pass of the network.

    Args:
        config: the settings, checked.
        log: is told of files that cannot be read.
        processes: that train it together.

    Attributes:
        inputs: digest of the paintings.

    Raises:
        SettingError: for an image, style or loss network that does not fit.
    """

    last_rate = 0.02

    def __init__(self, config: TrainConfig, log: Log, processes: Processes) -> None:
        self.config, self.log, self.processes = config, log, processes
        config.share_of_batch(processes.count)  # refuses a batch that cannot be shared out
        try:
            self.device = find_device(config.device)
        except ValueError as error:
            raise SettingError(str(error)) from error
        auto = config.precision == "auto"
        self.precision = fast_dtype(self.device) if auto else getattr(torch, config.precision)
        with naming("art"):
            arts = read_styles(
                config.art,
                config.stroke,
                each=config.multi_style,
                smooth=config.grain == "auto",
                skip=log.skip,
            )
        self.inputs = {"art": " ".join(art.digest for art in arts.values())}
        with naming("preview"):
            preview = None if config.preview is None else read_image(config.preview)
        with naming("init"):
            self.generator = self.place(_start(config, [*arts])).train()
        self.optimise = TrainingStep(MixedPrecision(self.generator, self.precision))
        self.average = Average(self.generator, config.ema)
        self.first = -config.warmup_steps if config.start == "bilinear" else 0
        photos, self.held_out = choose_photos(config.photos, config.held_out, log.skip)
        files = [file for art in arts.values() for file in art.files]
        with naming("output"):
            check_inputs_are_kept([config.output], [*photos, *self.held_out, *files])
        features = self.place(load_loss_network(config)).in_precision(self.precision)
        self.styles = []
        for index, (name, art) in enumerate(arts.items()):
            placed, adversary = art.to(self.device), None
            if config.gan_weight:
                adversary = Adversary(
                    placed, config.gan_loss, config.gan_rate, self.precision, config.seed, processes
                )
            objective = Objective(placed, features, config)
            chosen = (index,) if config.multi_style else ()
            self.styles.append(_Style(name, objective, adversary, chosen))
        self.crops = RandomCrops(photos, config.crop, config.seed, config.flat)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self.probed = self.place(self._first_photo()[None])
        self.preview = [] if preview is None else [preview]

    def _first_photo(self) -> Tensor:
        photos = RandomCrops(self.crops.photos, self.config.crop, self.config.seed)
        photo, _, problems = photos[0]
        for problem in problems:
            self.log.skip(problem)
        return photo

    def place(self, tensors: _Placed) -> _Placed:
        """A network's weights, or images, as convolutions are fastest with them."""
        return tensors.to(self.device, memory_format=torch.channels_last)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch number ``index`` from the start of the run: crops, and whether each is flat.
        Batches are asked for in order."""
        if self._batches is None:
            config = self.config
            stop = (config.steps - self.first) * config.accumulate
            self._batches = crop_batches(
                self.crops,
                config.batch_size,
                index,
                stop,
                config.workers,
                self.log.skip,
                (self.processes.rank, self.processes.count),
            )
        photo, flat = next(self._batches)
        return self.place(photo), flat

    def step(self, number: int, rate: float, progress: float) -> dict[str, Tensor]:
        config = self.config
        if number == 0:
            self.optimise.restart()
        if number < 0:
            self.optimise.begin(_WARMUP_LEARNING_RATE * min(1.0, 2 * number / self.first))
        else:
            self.optimise.begin(config.learning_rate * rate)
        losses: dict[str, Tensor] = {}
        for part in range(config.accumulate):
            index = (number - self.first) * config.accumulate + part
            photo, flat = self.batch(index)
            style = self.styles[index % len(self.styles)]
            if number < 0:
                found = self.pass_warmup(style, photo)
            else:
                index = number * config.accumulate + part
                found = self.pass_style(style, photo, flat, index, rate, progress)
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach() / config.accumulate
        self.optimise.finish(self.processes)
        self.average.update(self.generator, number - self.first)
        return losses

    def pass_warmup(self, style: _Style, photo: Tensor) -> dict[str, Tensor]:
        """Learn to reproduce the target: from there, style training keeps the content."""
        picture = self.optimise.network(photo, *style.chosen).float()
        loss = F.l1_loss(picture, style.objective.target(photo))
        self.optimise.backward(loss / self.config.accumulate)
        return {"warm-up": loss}

    def pass_style(
        self,
        style: _Style,
        photo: Tensor,
        flat: Tensor,
        number: int,
        rate: float,
        progress: float,
    ) -> dict[str, Tensor]:
        """Add the gradients of the perceptual losses, the noise loss and the discriminator.

        Args:
            style: of the pictures.
            photo: (N, 3, H, W) in [0, 1].
            flat: (N,), whether each is a flat crop.
            number: of the pass, from which the discriminator's crops follow.
            rate, progress: as in :meth:`step`.
        """
        target, count = style.objective.target(photo), len(photo)
        flat = flat.nonzero()[:, 0] if self.config.noise_weight else flat.nonzero()[:0, 0]
        if len(flat):
            noisy = (photo[flat] + _NOISE * torch.randn_like(photo[flat])).clamp(0, 1)
            photo = torch.cat([photo, noisy]).contiguous(memory_format=torch.channels_last)
        made = self.optimise.network(photo, *style.chosen)
        # All losses meet at the pictures and go through the generator as one gradient.
        pictures = made.detach().float().requires_grad_()
        picture = pictures[:count]
        losses = style.objective.loss(target, picture)
        change = pictures[count:] - picture[flat]
        losses["noise"] = change.square().sum() / (picture.numel() * style.objective.variance)
        losses["total"] = losses["total"] + self.config.noise_weight * losses["noise"]
        scale, strength = self.optimise.scaler.scale, self.gan_strength(progress)
        if strength and (style.norm is None or number % _STYLE_NORM_EVERY == 0):
            (gradient,) = torch.autograd.grad(scale(losses["style"]), pictures, retain_graph=True)
            norm = self.config.style_weight * gradient.norm() / self.optimise.scaler.get_scale()
            if norm.isfinite() or style.norm is None:  # float16 overflows at times
                style.norm = norm.nan_to_num(0.0, 0.0, 0.0)
        (gradient,) = torch.autograd.grad(scale(losses["total"]), pictures)
        if strength:
            detached = pictures.detach()[:count]
            losses |= style.adversary.learn(detached, number, rate)
            norm = strength * style.norm
            toward_art, losses["generator"] = style.adversary.gradient(detached, norm, number)
            gradient[:count] += scale(toward_art)
        self.optimise.backward(made, gradient / self.config.accumulate)
        return losses

    def gan_strength(self, progress: float) -> float:
        """The norm of the discriminator's gradient as a share of the style loss's."""
        since = (progress - self.config.gan_start) / _GAN_RAMP
        return self.config.gan_weight * min(1.0, max(0.0, since))

    @torch.no_grad()
    def probe(self) -> float:
        return self.losses(self.probed)["total"].item()

    @torch.no_grad()
    def losses(self, photo: Tensor) -> dict[str, Tensor]:
        """All perceptual losses of the picture of a photo, (1, 3, H, W), by the averaged weights;
        means over the styles."""
        found = [
            style.objective(photo, self.average.network(photo, *style.chosen))
            for style in self.styles
        ]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    def samples(self) -> np.ndarray | None:
        count = _SAMPLES if len(self.styles) == 1 else 1
        photos = [resized(image, _SAMPLE_SIDE) for image in self.preview] or [
            center_crop(image, _SAMPLE_SIDE)
            for _, image in readable(self.held_out[:count], self.log.skip)
        ]
        if not photos:
            return None
        pictures = []
        for photo in photos:
            pictures.append(("photo", photo))
            for style in self.styles:
                name = style.name.replace("_", " ") if style.chosen else "picture"
                pictures.append((name, to_image(self.stylize(to_tensor(photo), style))))
        return make_sheet([(name, np.asarray(picture)) for name, picture in pictures])

    @torch.no_grad()
    def stylize(self, photo: Tensor, style: _Style) -> Tensor:
        """(3, H, W) to (3, H, W), both in [0, 1]; on the CPU."""
        picture = self.average.network(self.place(photo[None]), *style.chosen)
        return picture[0].clamp(0, 1).cpu()

    def measure(self) -> dict[str, float]:
        """Mean perceptual losses over square crops of the photos held out."""
        means = Means()
        for number, (_, image) in enumerate(readable(self.held_out, self.log.skip)):
            photo = to_tensor(center_crop(image, self.config.crop))[None]
            means.add(self.losses(self.place(photo)), number)
        return means.take()

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimise.optimizer.state_dict(),
            "scaler": self.optimise.scaler.state_dict(),
            "adversaries": [s.adversary and s.adversary.state_dict() for s in self.styles],
            "norms": [style.norm for style in self.styles],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.average.network.load_state_dict(state["average"])
        self.optimise.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty for runs without float16, which scale no gradients
            self.optimise.scaler.load_state_dict(state["scaler"])
        adversaries, norms = state["adversaries"], state["norms"]
        for style, adversary, norm in zip(self.styles, adversaries, norms, strict=True):
            if style.adversary is not None:
                style.adversary.load_state_dict(adversary)
            style.norm = None if norm is None else norm.to(self.device)


def _start(config: TrainConfig, styles: Sequence[str]) -> StyleGenerator | MultiStyleGenerator:
    """The network that training begins with."""
    if config.start != "bilinear":
        if config.multi_style:
            return open_multi_style(config.start, styles)
        return StyleGenerator.from_base(config.start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        preset = GeneratorConfig.lite if config.lite else GeneratorConfig
        shape = preset(upsample=config.upsample)
        several = config.multi_style
        network = MultiStyleGenerator(shape, styles) if several else StyleGenerator(shape)
    generator: Generator = network.shared if config.multi_style else network
    # Residual blocks begin as the identity (Goyal et al., "Accurate, large minibatch SGD", 2017,
    # section 5.1): 300 steps of warm-up then do what 550 do without.
    for block in generator.residual:
        torch.nn.init.zeros_(block.second.norm.weight)
    return network
