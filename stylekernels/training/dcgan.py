"""Training an image generator: DCGAN, conditional, InfoGAN."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.hardware import fast_dtype, find_device
from stylekernels.losses.adversarial import (
    accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from stylekernels.media.sheet import make_grid
from stylekernels.models.dcgan import (
    SIDE,
    Codes,
    ImageDiscriminator,
    ImageGenerator,
    ImageGeneratorConfig,
    Judgement,
    to_pixels,
)
from stylekernels.training.augment import augment
from stylekernels.training.averages import Average
from stylekernels.training.dcgan_config import DcganConfig
from stylekernels.training.errors import SettingError
from stylekernels.training.log import Log
from stylekernels.training.loop import TrainResult, run_task
from stylekernels.training.pictures import load_pictures
from stylekernels.training.processes import Processes
from stylekernels.training.step import adam

_BETAS = (0.5, 0.999)
# A rarer penalty with a larger weight fills Adam's second moments and slows the other steps.
_PENALTY_EVERY = 4
_COLUMNS = 8


def train_dcgan(config: DcganConfig) -> TrainResult:
    """Train an image generator and write it to ``config.output``.

    Ctrl-C, SIGTERM and SIGHUP end the run early and save what it has; a second one ends it at once.

    Args:
        config: see :class:`DcganConfig`.

    Raises:
        SettingError: for a setting, folder or checkpoint that does not fit; before the first step.
        OSError: if the generator cannot be written.
        DivergedError: if the losses are no longer finite. The last weights with finite losses are
            written then, if there are any.
        KeyboardInterrupt: if a signal comes before the first step; nothing is written then.

    Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional
    generative adversarial networks", 2015.
    """
    return run_task(config, DcganTask, "generator")


class DcganTask:
    """Trains a generator and a discriminator in turn: the loop's task.

    Args:
        config: settings of the run.
        log: is told of files that cannot be read.
        processes: that train together, each on a share of every batch. Batch norms are each
            process's own.

    Attributes:
        inputs: digest of the photos.
        generator, discriminator: what is trained.
        average: the average of the generator's weights, which is what the run is for.

    Raises:
        SettingError: if the device is not here, or for photos that do not fit.
    """

    first = 0
    # Generator and discriminator chase each other round a pattern of 8 pixels, which is the same in
    # all pictures. The average of the weights cancels it, as long as it spans whole rounds. A
    # falling rate makes the rounds longer.
    last_rate = 1.0

    def __init__(self, config: DcganConfig, log: Log, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.pictures = pictures = load_pictures(
            config.photos, SIDE, config.seed, log.skip, labelled=config.conditional
        )
        self.inputs = {"photos": pictures.digest()}
        self.batch_size = config.share_of_batch(processes.count)
        try:
            self.device = find_device(config.device)
        except ValueError as error:
            raise SettingError(str(error)) from error
        auto = config.precision == "auto"
        self.precision = fast_dtype(self.device) if auto else getattr(torch, config.precision)
        shape = ImageGeneratorConfig(
            noise=config.noise,
            labels=pictures.names,
            categories=config.categories,
            continuous=config.continuous,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = self._placed(ImageGenerator(shape))
            self.discriminator = self._placed(ImageDiscriminator(shape))
            self._fixed = self._fixed_codes()
        self.average = Average(self.generator, config.ema)
        self._optimizers = {
            "generator": adam(self.generator.parameters(), betas=_BETAS),
            "discriminator": adam(self.discriminator.parameters(), betas=_BETAS),
        }
        self._rates = {
            "generator": config.learning_rate,
            "discriminator": config.discriminator_rate,
        }
        enabled = self.precision == torch.float16
        self._scalers = {
            name: torch.amp.GradScaler(self.device.type, enabled=enabled)
            for name in self._optimizers
        }

    def step(self, number: int, rate: float, progress: float) -> dict[str, Tensor]:
        """Take a step of the discriminator, then one of the generator."""
        accumulate = self.config.accumulate
        passes = range(number * accumulate, (number + 1) * accumulate)
        losses: dict[str, Tensor] = {}
        for name, network in (
            ("discriminator", self.discriminator), ("generator", self.generator)
        ):  # fmt: skip
            self.discriminator.requires_grad_(name == "discriminator")
            optimizer, scaler = self._optimizers[name], self._scalers[name]
            for group in optimizer.param_groups:
                group["lr"] = rate * self._rates[name]
            for index in passes:
                if network is self.discriminator:
                    parts, total = self._judging(index, number)
                else:
                    parts, total = self._drawing()
                scaler.scale(total / accumulate).backward()
                for part, value in parts.items():
                    losses[part] = losses.get(part, 0) + value.detach() / accumulate
            self.processes.average(
                [weight.grad for weight in network.parameters() if weight.grad is not None]
            )
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        self.average.update(self.generator, number)
        return losses

    def probe(self) -> float:
        """Return the generator's loss of fixed noise, by the averaged weights."""
        self.discriminator.eval()
        with torch.no_grad():
            judged = self._judge(self._draw(self.average.network, self._fixed), self._fixed.label)
        self.discriminator.train()
        return generator_loss([judged.logits], self.config.gan_loss).item()

    def measure(self) -> dict[str, float]:
        return {}

    def samples(self) -> np.ndarray:
        """Return 64 pictures of fixed noise. Rows take labels in turn. With InfoGAN's categories a
        row has one noise, and its columns take categories in turn."""
        with torch.no_grad():
            return make_grid(to_pixels(self._draw(self.average.network, self._fixed)), _COLUMNS)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            # Scalers have no state but with float16, and the precision may change.
            if state[name] or not name.startswith("scaler"):
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average.network,
        }
        for name in self._optimizers:
            parts[f"optimizer of the {name}"] = self._optimizers[name]
            parts[f"scaler of the {name}"] = self._scalers[name]
        return parts

    def _judging(self, index: int, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of telling a batch of photos from made pictures, and what is minimised."""
        config, kind = self.config, self.config.gan_loss
        photos, label = self.pictures.batch(
            index * self.processes.count + self.processes.rank, self.batch_size
        )
        photos = photos.to(self.device)
        label = label.to(self.device) if self.pictures.names else None
        codes = self.generator.draw(self.batch_size, device=self.device)
        with torch.no_grad():
            made = self._draw(self.generator, codes)
        both = None if label is None else torch.cat([label, codes.label])
        judged = self._judge(torch.cat([photos, made]), both)
        real, fake = judged.logits.chunk(2)
        total = discriminator_loss([real], [fake], kind)
        parts = {"discriminator": total, "accuracy": accuracy([real], [fake], kind)}
        if (info := self._info(judged, codes)) is not None:
            parts["info"] = info
            total = total + config.info_weight * info
        if config.r1 and step % _PENALTY_EVERY == 0:
            parts["r1"] = gradient_penalty(lambda x: [self._judge(x, label).logits], photos)
            total = total + config.r1 * _PENALTY_EVERY * parts["r1"]
        return parts, total

    def _drawing(self) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of misleading the discriminator, and what is minimised."""
        codes = self.generator.draw(self.batch_size, device=self.device)
        judged = self._judge(self._draw(self.generator, codes), codes.label)
        loss = total = generator_loss([judged.logits], self.config.gan_loss)
        if (info := self._info(judged, codes)) is not None:
            total = total + self.config.info_weight * info
        return {"generator": loss}, total

    def _draw(self, generator: ImageGenerator, codes: Codes) -> Tensor:
        with self._autocast():
            return generator(*codes).float()

    def _judge(self, pictures: Tensor, label: Tensor | None) -> Judgement:
        if self.discriminator.training:
            # Shifts smaller than the discriminator's stride of 8 pixels hide the generator's grid
            # of 8 pixels from it, so there are none.
            strength = self.config.augment
            pictures = augment(pictures, color=strength, translation=0.0, cutout=strength / 2)
        with self._autocast():
            return self.discriminator(pictures, label)

    def _info(self, judged: Judgement, codes: Codes) -> Tensor | None:
        """The negative log-likelihood of the codes of the made pictures, which come last; for
        continuous ones that of a normal distribution with a deviation of 1, up to a constant."""
        count = len(codes.noise)
        parts = []
        if codes.category is not None:
            parts.append(F.cross_entropy(judged.category[-count:].float(), codes.category))
        if codes.continuous is not None:
            error = judged.continuous[-count:].float() - codes.continuous
            parts.append(error.square().sum(1).mean() / 2)
        return sum(parts) if parts else None

    def _fixed_codes(self) -> Codes:
        """The inputs of the sheets of samples."""
        config = self.generator.config
        codes = self.generator.draw(_COLUMNS**2, device="cpu")
        index = torch.arange(_COLUMNS**2)
        row, column = index // _COLUMNS, index % _COLUMNS
        if config.labels:
            codes = codes._replace(label=row % len(config.labels))
        if config.categories:
            first = row * _COLUMNS
            codes = codes._replace(noise=codes.noise[first], category=column % config.categories)
            if config.continuous:
                codes = codes._replace(continuous=codes.continuous[first])
        return Codes(*(None if code is None else code.to(self.device) for code in codes))

    def _placed(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last).train()

    def _autocast(self) -> torch.autocast:
        """Both networks change in every step: rounding their weights each time, as autocast does,
        is no waste here."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled)
