"""Training a style: perceptual losses, Adam, a cosine, from bilinear or trained weights."""

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stylekernels.models.features import load_features
from stylekernels.models.generator import GeneratorConfig, StyleGenerator
from stylekernels.models.pretrained import write_whole
from stylekernels.training.checkpoint import load_checkpoint, save_checkpoint
from stylekernels.training.color_transfer import ColorTransfer
from stylekernels.training.config import TrainConfig
from stylekernels.training.data import (
    RandomCrops,
    center_crop,
    crop_batches,
    find_photos,
    read_image,
    resized,
    split_photos,
    to_image,
    to_tensor,
)
from stylekernels.training.hardware import choose_precision, cpu_threads, find_device
from stylekernels.training.perceptual import Means, PerceptualLoss
from stylekernels.training.step import TrainingStep, autocast

_WARMUP_LEARNING_RATE = 2e-3
_LOWEST_RATE = 0.02
_RAMP_STEPS = 20
# A checkpoint belongs to a run whose values of these are the same.
_FIXED = ("style", "style_size", "crop", "batch_size", "seed", "features", "content_weight",
          "content_colors", "color_weight", "style_weight", "tv_weight")  # fmt: skip
# What runs did before there was such an option.
_BEFORE = {"content_colors": "photo", "color_weight": 0.0}

_Placed = TypeVar("_Placed", Tensor, nn.Module)


@dataclass
class TrainResult:
    """What a run produced.

    Attributes:
        output: the trained style's file.
        steps: steps of style training done, those before a resume included.
        seconds: time this call took.
        losses: means over the last steps: ``total``, ``style``, ``content``, ``tv``, ``color``,
            and one ``style/<layer>`` and ``content/<layer>`` each.
        held_out: the same on photos never trained on.
        interrupted: whether Ctrl-C ended it early.
    """

    output: Path
    steps: int
    seconds: float
    losses: dict[str, float]
    held_out: dict[str, float]
    interrupted: bool


def train(config: TrainConfig) -> TrainResult:
    """Train a style and write it to ``config.output``.

    New weights first learn to reproduce the photo, in the painting's colours where
    ``content_colors`` asks for them. Then content, style, colour and total variation are minimised
    together. Ctrl-C ends the run early and saves what it has; before the first of these steps
    there is no style to save.

    Args:
        config: see :class:`TrainConfig`.

    Returns:
        Losses, time and steps.

    Raises:
        ValueError: for a setting, image, checkpoint or style that does not fit.
        OSError: if a file cannot be read or written.
        RuntimeError: if the loss is no longer finite; nothing is written then.
        KeyboardInterrupt: if Ctrl-C comes before there is a style; nothing is written then.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016; Ulyanov et al., "Improved texture networks", 2017.
    """
    config.check()
    started = time.perf_counter()
    with cpu_threads(config.threads):
        run = _Run(config)
        with _interruptible(run):
            run.warm_up()
            losses = run.learn_style()
        if run.stopped and not run.step:
            raise KeyboardInterrupt
        generator = run.generator.eval()
        generator.save_pretrained(config.output)
        held_out = run.measure()
    return TrainResult(
        output=config.output,
        steps=run.step,
        seconds=time.perf_counter() - started,
        losses=losses,
        held_out=held_out,
        interrupted=run.stopped,
    )


class _Run:
    """One training run: networks, data, optimiser and how far it is."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = find_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        photos, self.held_out = split_photos(find_photos(config.photos), config.held_out)
        self.preview = None if config.preview is None else read_image(config.preview)
        resume = None if config.resume is None else _matching_checkpoint(config)
        self.generator = self.place(_start(config, resume)).train()
        features = self.place(load_features(config.features, config.backbones))
        painting = to_tensor(resized(read_image(config.style), config.style_size))
        painting = self.place(painting[None])
        with self.autocast():
            self.loss = PerceptualLoss(features, painting, config)
        self.optimise = TrainingStep(self.generator, self.loss, self.precision)
        self.step, self.warm, self.minutes = 0, config.init != "bilinear", 0.0
        if resume is not None:
            self.step, self.minutes, self.warm = resume["step"], resume["minutes"], True
            self.optimise.optimizer.load_state_dict(resume["optimizer"])
            self.optimise.scaler.load_state_dict(resume["scaler"])
        self.transfer = ColorTransfer(painting[0]) if config.content_colors == "painting" else None
        self.crops = RandomCrops(photos, config.crop, config.seed)
        self.stopped = False

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def place(self, tensors: _Placed) -> _Placed:
        """A network's weights, or images, as convolutions are fastest with them."""
        return tensors.to(self.device, memory_format=torch.channels_last)

    def target(self, photo: Tensor) -> Tensor:
        """What the picture's content and colours should be; (N, 3, H, W) like the photo."""
        return photo if self.transfer is None else self.place(self.transfer(photo))

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        config = self.config
        return crop_batches(self.crops, config.batch_size, start, stop, config.workers)

    def warm_up(self) -> None:
        """Learn to reproduce the target: from there, style training keeps the content."""
        count = self.config.warmup_steps
        if self.warm or not count:
            return
        optimise = TrainingStep(self.generator, _distance, self.precision)
        bar = tqdm(self.batches(0, count), "warm-up", count, disable=None)
        bar.write(
            f"{count} steps of warm-up on {self.device}, {str(self.precision).partition('.')[2]}",
            file=sys.stderr,
        )
        for step, photo in enumerate(bar):
            if self.stopped:
                return
            rate = _WARMUP_LEARNING_RATE * min(1.0, 2 * (count - step) / count)
            photo = self.place(photo)
            loss = optimise(photo, self.target(photo), rate)["total"].item()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if (step + 1) % self.config.log_every == 0:
                bar.write(f"warm-up {step + 1}: {loss:.3f}", file=sys.stderr)

    def learn_style(self) -> dict[str, float]:
        """Minimise the perceptual loss; returns the last means of all losses."""
        config, means, last = self.config, Means(), {}
        board = _board(config.log_dir)
        batches = self.batches(self.step, config.steps)
        bar = tqdm(batches, "style", config.steps, initial=self.step, disable=None)
        before, started = self.minutes, time.perf_counter()
        try:
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
                    self.report(last, bar, board)
                if config.checkpoint is not None and self.step % config.checkpoint_every == 0:
                    self.save_checkpoint(config.checkpoint)
        finally:
            bar.close()
            if board is not None:
                board.close()
        if means.count:
            last = means.take()
            self.check_finite(last)
        if config.checkpoint is not None:
            self.save_checkpoint(config.checkpoint)
        return last

    def rate(self) -> float:
        """The learning rate now, relative to its highest: a short ramp, then a cosine."""
        progress = self.step / self.config.steps
        if self.config.minutes is not None:
            progress = max(progress, self.minutes / self.config.minutes)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
        ramp = min(1.0, (self.step + 1) / _RAMP_STEPS)
        return ramp * (_LOWEST_RATE + (1 - _LOWEST_RATE) * cosine)

    def report(self, means: dict[str, float], bar: tqdm, board) -> None:
        """One line of losses on the terminal, curves and pictures for TensorBoard."""
        self.check_finite(means)
        line = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        bar.write(f"step {self.step}: {line}", file=sys.stderr)
        picture = None if self.preview is None else self.stylize(to_tensor(self.preview))
        if picture is not None:
            path = self.config.output.with_suffix(".preview.png")
            write_whole(path, lambda part: to_image(picture).save(part, "PNG"))
        if board is not None:
            for name, value in means.items():
                board.add_scalar(f"train/{name}", value, self.step)
            if picture is not None:
                board.add_image("preview", picture, self.step)

    def check_finite(self, means: dict[str, float]) -> None:
        if not math.isfinite(means["total"]):
            raise RuntimeError(
                f"the loss became {means['total']} before step {self.step}; "
                "lower learning_rate or style_weight"
            )

    @torch.no_grad()
    def stylize(self, photo: Tensor) -> Tensor:
        """(3, H, W) to (3, H, W), both in [0, 1]; on the CPU."""
        with self.autocast():
            picture = self.generator(self.place(photo[None]))[0]
        return picture.float().clamp(0, 1).cpu()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean losses over square crops of the photos held out."""
        means = Means()
        for path in self.held_out:
            photo = to_tensor(center_crop(read_image(path), self.config.crop))[None]
            photo = self.place(photo)
            with self.autocast():
                means.add(self.loss(self.target(photo), self.generator(photo)))
        return means.take()

    def save_checkpoint(self, path: Path) -> None:
        """Everything a resumed run needs; the crops follow from seed and step."""
        state = {
            "network": self.generator.config.to_dict(),
            "generator": self.generator.state_dict(),
            "optimizer": self.optimise.optimizer.state_dict(),
            "scaler": self.optimise.scaler.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "config": json.dumps(self.config.to_dict()),
        }
        save_checkpoint(path, state)


def _distance(target: Tensor, picture: Tensor) -> dict[str, Tensor]:
    """What the warm-up minimises."""
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


def _matching_checkpoint(config: TrainConfig) -> dict:
    state = load_checkpoint(config.resume)
    then, now = {**_BEFORE, **json.loads(state["config"])}, config.to_dict()
    for name in _FIXED:
        if then[name] != now[name]:
            raise ValueError(
                f"resume: {config.resume} was trained with {name}={then[name]}, "
                f"got {name}={now[name]}; use the same, or give a finished style to init"
            )
    return state


def _board(log_dir: Path | None):
    if log_dir is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(log_dir))


@contextlib.contextmanager
def _interruptible(run: _Run) -> Iterator[None]:
    """Ctrl-C asks the run to stop after the current step; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(_number, _frame) -> None:
        run.stopped = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
