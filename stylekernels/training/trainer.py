"""Training a style: perceptual losses, Adam, a cosine, from bilinear or trained weights."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stylekernels.files import write_whole
from stylekernels.hardware import cpu_threads, fast_dtype, find_device
from stylekernels.losses import PerceptualLoss
from stylekernels.media.outputs import check_inputs_are_kept
from stylekernels.models.features import FeatureNetwork, load_features
from stylekernels.models.files import StyleGenerator
from stylekernels.models.generator import GeneratorConfig
from stylekernels.signals import handled
from stylekernels.training.checkpoint import (
    matching_checkpoint,
    painting_digest,
    save_checkpoint,
)
from stylekernels.training.color_transfer import ColorTransfer
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
from stylekernels.training.errors import DivergedError, SettingError
from stylekernels.training.log import Log
from stylekernels.training.means import Means
from stylekernels.training.step import MixedPrecision, TrainingStep

_WARMUP_LEARNING_RATE = 2e-3
_LOWEST_RATE = 0.02
_RAMP_STEPS = 20

_Placed = TypeVar("_Placed", Tensor, nn.Module)


@dataclass
class TrainResult:
    """The results of a run.

    Attributes:
        output: the trained style's file.
        steps: steps of style training done, those before a resume included.
        seconds: time this call took.
        losses: means over the last steps: ``total``, ``style``, ``content``, ``tv``, ``color``,
            and one ``style/<layer>`` and ``content/<layer>`` each.
        held_out: the same on photos never trained on.
        interrupted: whether a signal (Ctrl-C, SIGTERM, SIGHUP) ended it early.
        skipped: a message about each file among the photos that could not be read.
    """

    output: Path
    steps: int
    seconds: float
    losses: dict[str, float]
    held_out: dict[str, float]
    interrupted: bool
    skipped: list[str]


def train(config: TrainConfig) -> TrainResult:
    """Train a style and write it to ``config.output``.

    New weights first learn to reproduce the photo, in the painting's colours where
    ``content_colors`` asks for them. Then content, style, colour and total variation are minimised
    together. Ctrl-C, SIGTERM and SIGHUP end the run early and save what it has; before the first
    of these steps there is no style to save. A second one ends it at once. Photos that cannot be
    read are skipped.

    Args:
        config: see :class:`TrainConfig`.

    Returns:
        Losses, time, steps, and which photos were skipped.

    Raises:
        SettingError: for a setting, image, checkpoint or style that does not fit; before the first
            step.
        OSError: if the style cannot be written.
        DivergedError: if the losses are no longer finite. The last weights with finite losses are
            written then, if there was a step of style training before them.
        KeyboardInterrupt: if a signal comes before there is a style; nothing is written then.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016; Ulyanov et al., "Improved texture networks", 2017.
    """
    config.check()
    started = time.perf_counter()
    with cpu_threads(config.threads):
        run = _Run(config)
        try:
            with handled(run.stop):
                run.warm_up()
                losses = run.learn_style()
                if run.stopped and not run.step:
                    raise KeyboardInterrupt("during the warm-up; no style yet, nothing is written")
                run.generator.eval().save_pretrained(config.output)
            held_out = run.measure()
        except DivergedError as error:
            if run.good is None:
                raise
            step, weights = run.good
            run.generator.load_state_dict(weights)
            run.generator.save_pretrained(config.output)
            raise DivergedError(f"{error}; {config.output} has the style of step {step}") from error
        finally:
            run.log.close()
    return TrainResult(
        output=config.output,
        steps=run.step,
        seconds=time.perf_counter() - started,
        losses=losses,
        held_out=held_out,
        interrupted=run.stopped,
        skipped=run.log.skipped,
    )


class _Run:
    """One training run: networks, data, optimiser and how far it is."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        try:
            self.device = find_device(config.device)
        except ValueError as error:
            raise SettingError(str(error)) from error
        auto = config.precision == "auto"
        self.precision = fast_dtype(self.device) if auto else getattr(torch, config.precision)
        with naming("style"):
            painting = to_tensor(resized(read_image(config.style), config.style_size))
            self.painting_digest = painting_digest(config.style)
        with naming("preview"):
            self.preview = None if config.preview is None else read_image(config.preview)
        resume = None if config.resume is None else matching_checkpoint(config)
        with naming("init" if resume is None else "resume"):
            self.generator = self.place(_start(config, resume)).train()
        self.network = MixedPrecision(self.generator, self.precision)
        self.log = Log()
        photos, self.held_out = choose_photos(config.photos, config.held_out, self.log.skip)
        for name, path in config.outputs().items():
            with naming(name):
                check_inputs_are_kept([path], [*photos, *self.held_out])
        features = self.place(_features(config)).in_precision(self.precision)
        painting = self.place(painting[None])
        self.loss = PerceptualLoss(features, painting, **config.loss_weights())
        self.optimise = TrainingStep(self.network, self.loss)
        self.step, self.warm, self.minutes = 0, config.init != "bilinear", 0.0
        if resume is not None:
            self.step, self.minutes, self.warm = resume["step"], resume["minutes"], True
            self.optimise.optimizer.load_state_dict(resume["optimizer"])
            if resume["scaler"]:  # empty for runs without float16, which scale no gradients
                self.optimise.scaler.load_state_dict(resume["scaler"])
        self.transfer = ColorTransfer(painting[0]) if config.content_colors == "painting" else None
        self.crops = RandomCrops(photos, config.crop, config.seed)
        probe, problems = self.crops[0]
        for problem in problems:
            self.log.skip(problem)
        self.probe = self.place(probe[None])
        self.good: tuple[int, dict[str, Tensor]] | None = None
        self.stopped = False
        if config.log_dir is not None:
            self.log.open_board(config.log_dir)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: stop after the current step, or at once if it is the second."""
        if self.stopped:
            signal.default_int_handler(number, frame)
        self.stopped = True

    def place(self, tensors: _Placed) -> _Placed:
        """A network's weights, or images, as convolutions are fastest with them."""
        return tensors.to(self.device, memory_format=torch.channels_last)

    def target(self, photo: Tensor) -> Tensor:
        """The image that gives content and colours, (N, 3, H, W) like the photo."""
        return photo if self.transfer is None else self.place(self.transfer(photo))

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        config = self.config
        return crop_batches(
            self.crops, config.batch_size, start, stop, config.workers, self.log.skip
        )

    def warm_up(self) -> None:
        """Learn to reproduce the target: from there, style training keeps the content."""
        count = self.config.warmup_steps
        if self.warm or not count:
            return
        optimise = TrainingStep(self.network, _distance)
        bar = tqdm(self.batches(0, count), "warm-up", count, disable=None)
        precision = str(self.precision).removeprefix("torch.")
        self.log.say(f"{count} steps of warm-up on {self.device}, {precision}")
        for step, photo in enumerate(bar):
            if self.stopped:
                return
            rate = _WARMUP_LEARNING_RATE * min(1.0, 2 * (count - step) / count)
            photo = self.place(photo)
            loss = optimise(photo, self.target(photo), rate)["total"].item()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if (step + 1) % self.config.log_every == 0:
                self.log.say(f"warm-up {step + 1}: {loss:.3f}")

    def learn_style(self) -> dict[str, float]:
        """Minimise the perceptual loss; returns the last means of all losses."""
        config, means, last = self.config, Means(), {}
        if self.step >= config.steps:
            self.log.say(f"step {self.step} of {config.steps} is done already: nothing to train")
        batches = self.batches(self.step, config.steps)
        before, started = self.minutes, time.perf_counter()
        with tqdm(batches, "style", config.steps, initial=self.step, disable=None) as bar:
            for photo in bar:
                self.minutes = before + (time.perf_counter() - started) / 60
                if self.stopped or self.minutes >= (config.minutes or math.inf):
                    break
                photo = self.place(photo)
                rate = config.learning_rate * self.rate()
                means.add(self.optimise(photo, self.target(photo), rate))
                self.step += 1
                if self.step % config.log_every == 0 or self.step == config.steps:
                    last = means.take()
                    self.keep(last["total"])
                    self.report(last)
                if self.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
        if means.count:
            last = means.take()
            self.keep(last["total"])
        self.save_checkpoint()
        return last

    def rate(self) -> float:
        """The learning rate now, relative to its highest: a short ramp, then a cosine."""
        progress = self.step / self.config.steps
        if self.config.minutes is not None:
            progress = max(progress, self.minutes / self.config.minutes)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
        ramp = min(1.0, (self.step + 1) / _RAMP_STEPS)
        return ramp * (_LOWEST_RATE + (1 - _LOWEST_RATE) * cosine)

    def report(self, means: dict[str, float]) -> None:
        """Log the losses, and the preview's picture."""
        self.log.losses(self.step, means)
        if self.preview is not None:
            picture = self.stylize(to_tensor(self.preview))
            self.log.preview(self.step, picture)
            image = to_image(picture)
            self.write(
                lambda path: write_whole(path, lambda part: image.save(part, "PNG")),
                self.config.preview_file,
            )

    def write(self, write: Callable[[Path], None], path: Path) -> None:
        """Write a file that the run can do without, or say that it could not be written."""
        try:
            write(path)
        except OSError as error:
            self.log.say(f"{path}: cannot be written: {error.strerror or error}")

    def keep(self, total: float = 0.0) -> None:
        """Remember these weights as the last good ones.

        Args:
            total: the loss of the steps that led to them.

        Raises:
            DivergedError: if that loss or the weights' own, on a crop, is not finite.
        """
        if math.isfinite(total):
            total = self.losses(self.probe)["total"].item()
        if not math.isfinite(total):
            raise DivergedError(
                f"learning_rate: the loss became {total} at step {self.step}; lower learning_rate "
                "or style_weight"
            )
        weights = self.generator.state_dict()
        self.good = self.step, {name: tensor.clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def losses(self, photo: Tensor) -> dict[str, Tensor]:
        """All losses of the generator's picture of a photo, (1, 3, H, W)."""
        return self.loss(self.target(photo), self.network(photo))

    @torch.no_grad()
    def stylize(self, photo: Tensor) -> Tensor:
        """(3, H, W) to (3, H, W), both in [0, 1]; on the CPU."""
        return self.network(self.place(photo[None]))[0].float().clamp(0, 1).cpu()

    def measure(self) -> dict[str, float]:
        """Mean losses over square crops of the photos held out."""
        means = Means()
        for _, image in readable(self.held_out, self.log.skip):
            photo = to_tensor(center_crop(image, self.config.crop))[None]
            means.add(self.losses(self.place(photo)))
        return means.take()

    def save_checkpoint(self) -> None:
        """Write everything a resumed run needs; the crops follow from seed and step. Before the
        first step there is nothing to resume: the warm-up may not be done.

        Raises:
            DivergedError: if the losses are not finite; an older checkpoint is kept then.
        """
        if self.config.checkpoint is None or not self.step:
            return
        self.keep()
        state = {
            "network": self.generator.config.to_dict(),
            "generator": self.generator.state_dict(),
            "optimizer": self.optimise.optimizer.state_dict(),
            "scaler": self.optimise.scaler.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "config": json.dumps(self.config.to_dict()),
            "painting": self.painting_digest,
        }
        self.write(lambda path: save_checkpoint(path, state), self.config.checkpoint)


def _distance(target: Tensor, picture: Tensor) -> dict[str, Tensor]:
    """The loss of the warm-up."""
    return {"total": F.l1_loss(picture.float(), target)}


def _start(config: TrainConfig, resume: dict | None) -> StyleGenerator:
    """The generator training begins with."""
    if resume is not None:
        generator = StyleGenerator(GeneratorConfig.from_dict(resume["network"]))
        generator.load_state_dict(resume["generator"])
        return generator
    if config.init != "bilinear":
        return StyleGenerator.from_pretrained(config.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        preset = GeneratorConfig.lite if config.lite else GeneratorConfig
        return StyleGenerator(preset(upsample=config.upsample))


def _features(config: TrainConfig) -> FeatureNetwork:
    """The loss network."""
    try:
        return load_features(config.features, config.backbones)
    except (ValueError, OSError) as error:
        name = "features" if config.backbones is None else "backbones"
        raise SettingError(f"{name}: {str(error).removeprefix('path: ')}") from error
