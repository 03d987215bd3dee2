"""The loop of every training run: steps, learning rate, reports, checkpoints, ends of a run."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stylekernels.hardware import cpu_threads
from stylekernels.signals import handled
from stylekernels.training.averages import Average
from stylekernels.training.checkpoint import matching_checkpoint, save_checkpoint
from stylekernels.training.config import RunConfig, naming
from stylekernels.training.errors import DivergedError, SettingError
from stylekernels.training.log import Log
from stylekernels.training.means import Means
from stylekernels.training.processes import Processes
from stylekernels.training.run_folder import RunFolder

_RAMP_STEPS = 20


class Task(Protocol):
    """Networks, data and optimisers that a loop trains.

    Attributes:
        first: the number of the first step. Steps below 0 prepare the networks, and neither
            ``minutes`` nor the learning rate's curve counts them.
        last_rate: the learning rate at the end of the run, relative to its highest.
        device: of the networks.
        average: of the weights, which the run is for. Its network has ``save_pretrained``.
        inputs: digests of what is learnt from, by setting. A checkpoint belongs to them.
    """

    first: int
    last_rate: float
    device: torch.device
    average: Average
    inputs: dict[str, str]

    def step(self, number: int, rate: float, progress: float) -> dict[str, Tensor]:
        """Take a step and return its losses, scalars by name, the same ones in every process.

        Everything random in it must follow from the number, or from PyTorch's generators, which
        the loop seeds before each step: a resumed run then repeats the whole one.

        Args:
            number: of the step.
            rate: the learning rate, relative to its highest.
            progress: how far the run is, from 0 to 1; below 0 for preparing steps.
        """

    def probe(self) -> float:
        """Return the loss of fixed inputs, by which the loop knows that the weights are sound."""

    def samples(self) -> np.ndarray | None:
        """Return a sheet of pictures that shows what has been learnt, (H, W, 3) uint8; None if
        there is nothing to show it on."""

    def measure(self) -> dict[str, float]:
        """Return losses on data that was held out; empty if there is none."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes: weights, averages, optimisers; no data position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state of :meth:`state_dict`."""


@dataclass
class TrainResult:
    """The results of a run.

    Attributes:
        output: the file of the trained weights.
        run: the run's folder.
        steps: steps done, those before a resume included and preparing ones not.
        seconds: time this call took.
        losses: means over the last steps, by name.
        held_out: losses on photos never trained on, if the task has some.
        interrupted: whether a signal (Ctrl-C, SIGTERM, SIGHUP) ended it early.
        skipped: a message about each file among the photos that could not be read.
    """

    output: Path
    run: Path
    steps: int
    seconds: float
    losses: dict[str, float]
    held_out: dict[str, float]
    interrupted: bool
    skipped: list[str]


def run_task(
    config: RunConfig, start: Callable[[RunConfig, Log, Processes], Task], noun: str
) -> TrainResult:
    """Train a task and write its weights to ``config.output``.

    Args:
        config: the settings.
        start: makes the task.
        noun: what the task's weights are, for messages.

    Raises:
        SettingError: for a setting, file or checkpoint that does not fit; before the first step.
        OSError: if the weights or the run's folder cannot be written.
        DivergedError: if a loss is no longer finite; it names the step and the loss. The last
            weights with finite losses are written then, if there was a step before them.
        KeyboardInterrupt: if a signal comes before the first step that counts; a checkpoint is
            written then.
    """
    config.check()
    folder = RunFolder(config.run_path)
    if not (config.resume or config.overwrite):
        folder.refuse_run("output" if config.run is None else "run")
        if config.output.exists():
            raise SettingError(
                f"output: {config.output} exists; add overwrite to replace it, or choose another "
                "file"
            )
    started = time.perf_counter()
    with (
        cpu_threads(config.threads),
        Processes.joined(config.device) as processes,
        torch.random.fork_rng(devices=_gpus()),
    ):
        writes = processes.rank == 0
        log = Log(folder if writes else None, quiet=not writes)
        task = start(config, log, processes)
        state = None
        if config.resume:
            state = matching_checkpoint(folder.checkpoint, config, task.inputs)
        if writes:
            with naming("run"):
                folder.begin(config.to_dict(), resume_at=state and state["step"])
            log.open_board(purge_from=state and state["step"] + 1)
        loop = Loop(task, config, folder if writes else None, log, processes)
        if state is not None:
            loop.resume(state)
        try:
            with handled(loop.stop):
                losses = loop.run()
                if loop.stopped and loop.step <= 0:
                    kept = "nothing is written"
                    if loop.step > task.first:
                        kept = f"add --resume to go on from {folder.path}"
                    raise KeyboardInterrupt(f"before the first step; no {noun} yet, {kept}")
                if writes:
                    task.average.network.save_pretrained(config.output)
            held_out = task.measure()
        except DivergedError as error:
            step = loop.restore()
            if step is None:
                raise
            if writes:
                task.average.network.save_pretrained(config.output)
            raise DivergedError(
                f"{error}; {config.output} has the {noun} of step {step}"
            ) from error
        finally:
            log.close()
    return TrainResult(
        output=config.output,
        run=folder.path,
        steps=loop.step,
        seconds=time.perf_counter() - started,
        losses=losses,
        held_out=held_out,
        interrupted=loop.stopped,
        skipped=log.skipped,
    )


class Loop:
    """Runs the steps of a task.

    Args:
        task: what is trained.
        config: the run's settings.
        folder: of the run; None keeps no checkpoint.
        log: for reports.
        processes: that train together.

    Attributes:
        step: number of steps done since the preparation, negative during it.
        minutes: time of these steps, earlier parts of the run included.
        stopped: whether a signal ended the run.
    """

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        folder: RunFolder | None,
        log: Log,
        processes: Processes,
    ) -> None:
        self.task, self.config, self.folder, self.log = task, config, folder, log
        self.processes = processes
        self.step, self.minutes, self.stopped = task.first, 0.0, False
        self._asked = False
        self._good: tuple[int, dict[str, Tensor]] | None = None

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self.minutes = state["step"], state["minutes"]
        self.task.load_state_dict(state["task"])
        self._keep_weights()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: stop after the current step, or at once if it is the second."""
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True

    def run(self) -> dict[str, float]:
        """Take the steps that are left; returns the last means of all losses.

        Raises:
            DivergedError: if a loss is no longer finite; see :meth:`restore`.
        """
        config, means, last = self.config, Means(), {}
        if self.step >= config.steps:
            self.log.say(f"step {self.step} of {config.steps} is done already: nothing to train")
        before, started = self.minutes, time.perf_counter()
        reported, since = self.step, started
        first = self.task.first
        with tqdm(
            total=config.steps - first,
            initial=self.step - first,
            disable=None if self.processes.rank == 0 else True,
            unit="step",
        ) as bar:
            while self.step < config.steps:
                if self.step == 0:
                    before, started = 0.0, time.perf_counter()
                if self.step >= 0:
                    self.minutes = before + (time.perf_counter() - started) / 60
                self.agree()
                if self.stopped or self.minutes >= (config.minutes or math.inf):
                    break
                torch.manual_seed(_seed(config.seed, self.step, self.processes))
                losses = self.task.step(self.step, self.rate(), self.progress())
                means.add(self.averaged(losses), self.step)
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step in (0, config.steps):
                    self.check(means)
                    images = (self.step - reported) * config.batch_size * config.accumulate
                    speed = images / (time.perf_counter() - since)
                    last = means.take()
                    self.report(last, speed, bar)
                    reported, since = self.step, time.perf_counter()
                if self.step % config.checkpoint_every == 0:
                    self.check(means)
                    self.save_checkpoint()
        if means:
            self.check(means)
            last = means.take()
        if self.step > first:
            self.save_checkpoint(finished=not self.stopped)
        return last

    def agree(self) -> None:
        """Let all processes have the same time, and stop together."""
        values = [self.minutes, float(self._asked)]
        self.minutes, asked = self.processes.largest(values, self.task.device)
        self.stopped = bool(asked)

    def averaged(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means of losses over the processes."""
        if self.processes.count == 1:
            return losses
        means = {name: value.detach().double().clone() for name, value in losses.items()}
        self.processes.average([*means.values()])
        return means

    def rate(self) -> float:
        """The learning rate now, relative to its highest: a short ramp, then a cosine down to the
        task's last one."""
        if self.step < 0:
            return 1.0
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.progress())
        ramp, last = min(1.0, (self.step + 1) / _RAMP_STEPS), self.task.last_rate
        return ramp * (last + (1 - last) * cosine)

    def progress(self) -> float:
        """The share of the run that is done, of ``steps`` or of ``minutes``: whichever is more."""
        progress = self.step / self.config.steps
        if self.config.minutes is not None:
            progress = max(progress, self.minutes / self.config.minutes)
        return min(1.0, progress)

    def report(self, means: dict[str, float], speed: float, bar: tqdm) -> None:
        """Log the losses, the speed and a sheet of samples."""
        shown = {name: f"{value:.3g}" for name, value in means.items() if "/" not in name}
        bar.set_postfix({**shown, "images/s": f"{speed:.3g}"}, refresh=False)
        self.log.losses(self.step, {**means, "images/s": speed})
        if self.step >= 0 and self.folder is not None:
            sheet = self.task.samples()
            if sheet is not None:
                self.log.sample(self.step, sheet)

    def check(self, means: Means) -> None:
        """Remember the weights as the last good ones, if all losses since were finite.

        Raises:
            DivergedError: naming the step and the losses, if one was not finite, or if the loss of
                the weights as they are now is not.
        """
        if (bad := means.first_bad()) is not None:
            step, losses = bad
            found = ", ".join(f"{name} became {value}" for name, value in losses.items())
        else:
            total = self.task.probe()
            step, found = self.step, f"the loss became {total}"
            if math.isfinite(total):
                self._keep_weights()
                return
        instead = "lower learning_rate"
        if self.folder is not None and self.folder.checkpoint.is_file():
            instead += f" and remove {self.folder.path} to start again"
        raise DivergedError(f"learning_rate: at step {step} {found}; {instead}")

    def _keep_weights(self) -> None:
        weights = self.task.average.network.state_dict()
        self._good = self.step, {name: tensor.clone() for name, tensor in weights.items()}

    def restore(self) -> int | None:
        """Give the task its last good weights; returns their step, or None if there are none."""
        if self._good is None or self._good[0] <= 0:
            return None
        step, weights = self._good
        self.task.average.network.load_state_dict(weights)
        return step

    def save_checkpoint(self, *, finished: bool = False) -> None:
        """Write everything that a resumed run needs, or say that it cannot be written."""
        if self.folder is None:
            return
        state = {
            "step": self.step,
            "minutes": self.minutes,
            "finished": finished,
            "config": self.config.to_dict(),
            "inputs": self.task.inputs,
            "task": self.task.state_dict(),
        }
        try:
            save_checkpoint(self.folder.checkpoint, state)
        except OSError as error:
            self.log.failed(self.folder.checkpoint, error)


def _gpus() -> list[int]:
    """The GPU whose generator a run seeds, if PyTorch has one."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _seed(seed: int, step: int, processes: Processes) -> int:
    """The seed of PyTorch's generators in a step, another one in each process."""
    number = step * processes.count + processes.rank  # negative for preparing steps
    return (seed * 0x9E3779B1 + number) % (1 << 63)
