"""Photos: choosing them, random crops for training, fixed ones for measuring."""

import math
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stylekernels.media import PhotoError, read_photo
from stylekernels.media.paths import find_photos_below
from stylekernels.signals import ENDING
from stylekernels.training.errors import SettingError


def choose_photos(
    folder: Path, held_out: int, skip: Callable[[str], None]
) -> tuple[list[Path], list[Path]]:
    """The photos below a folder to train on, and those to measure on.

    A photo is held out only if it can be read. The others are searched for the first readable one;
    the rest are read when their turn comes, because reading a large collection takes long.

    Args:
        folder: see :func:`~stylekernels.media.paths.find_photos_below`.
        held_out: number of photos to measure on; at most half of them.
        skip: called with a message about each file that cannot be read.

    Raises:
        SettingError: if fewer than two photos can be read.
    """
    photos, problems = find_photos_below(folder)
    for problem in problems:
        skip(problem)
    train, held = split_photos(photos, held_out) if len(photos) > 1 else (photos, [])
    held = [path for path, _ in readable(held, skip)]
    rest = readable(list(train), skip)  # train may lose one meanwhile
    first = next(rest, None)
    if first is not None and not held:
        held = [first[0]]
        train.remove(first[0])
        first = next(rest, None)
    if first is None:
        raise SettingError(
            f"photos: expected at least two photos in {folder} that can be read, got {len(held)}"
        )
    return train, held


def split_photos(photos: Sequence[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """Photos to train on, and evenly spaced ones to measure on, at most half of them."""
    count = min(held_out, len(photos) // 2)
    held = {round((i + 0.5) * len(photos) / count - 0.5) for i in range(count)}
    train = [photo for i, photo in enumerate(photos) if i not in held]
    return train, [photos[i] for i in sorted(held)]


def read_image(path: Path) -> Image.Image:
    """A picture file as a network sees it: RGB, upright, converted to sRGB.

    Raises:
        PhotoError: if it cannot be read, or is too small; see :func:`read_photo`.
    """
    return Image.fromarray(read_photo(path).to_srgb())


def readable(
    paths: Iterable[Path], skip: Callable[[str], None]
) -> Iterator[tuple[Path, Image.Image]]:
    """The pictures among files, with their paths; ``skip`` is told of the others."""
    for path in paths:
        try:
            image = read_image(path)
        except PhotoError as error:
            skip(str(error))
        else:
            yield path, image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to (3, H, W), float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous().float().div_(255)


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an RGB image."""
    pixels = x.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def resized(image: Image.Image, longer_side: int) -> Image.Image:
    """The image scaled to the given longer side, in pixels; at least 32 the other way."""
    scale = longer_side / max(image.size)
    width, height = (max(32, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """The middle of an image, scaled so that a square of ``side`` pixels holds all its height
    or width."""
    shorter = min(image.size)
    left, top = ((length - shorter) / 2 for length in image.size)
    box = (left, top, left + shorter, top + shorter)
    return image.resize((side, side), Image.Resampling.BICUBIC, box)


class RandomCrops(Dataset[tuple[Tensor, list[str]]]):
    """Random square crops, mirrored half the time, scaled between full size and the whole photo.

    Crop ``i`` depends on the photos, the seed and ``i`` alone, so that a resumed run sees what an
    uninterrupted one would have seen, with any number of workers. Where its photo cannot be read,
    the next one of the round that can be takes its place.

    Each item is a crop, (3, side, side) in [0, 1], and a message about each photo that was found
    to be unreadable for it; every process finds them once.

    Args:
        photos: image files.
        side: of the crops, in pixels.
        seed: of all choices.
    """

    def __init__(self, photos: Sequence[Path], side: int, seed: int) -> None:
        self.photos, self.side, self.seed = list(photos), side, seed
        self._round, self._order = -1, list(range(len(self.photos)))
        self._unreadable: set[int] = set()

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        choose = random.Random(f"{self.seed} {index}")
        problems: list[str] = []
        image = self._photo(index, problems.append)
        shorter = min(image.size)
        smallest = min(self.side, shorter)
        # Even over the logarithm: as many crops between 1x and 1.4x as between 1.4x and 2x.
        side = smallest * math.exp(choose.random() * math.log(shorter / smallest))
        left, top = (choose.random() * (length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box)
        if choose.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image), problems

    def _photo(self, index: int, skip: Callable[[str], None]) -> Image.Image:
        round_, place = divmod(index, len(self.photos))
        order = self._order_of(round_)
        for step in range(len(order)):
            photo = order[(place + step) % len(order)]
            if photo in self._unreadable:
                continue
            for _, image in readable([self.photos[photo]], skip):
                return image
            self._unreadable.add(photo)
        raise SettingError("photos: none of them can be read any more")

    def _order_of(self, round_: int) -> list[int]:
        """Every photo once in each round, in an order of that round's own; kept for its length,
        because to shuffle a large collection takes longer than to read a photo."""
        if round_ != self._round:
            order = list(range(len(self.photos)))
            random.Random(f"{self.seed} round {round_}").shuffle(order)
            self._round, self._order = round_, order
        return self._order


def crop_batches(
    crops: RandomCrops,
    batch_size: int,
    start: int,
    stop: int,
    workers: int,
    skip: Callable[[str], None],
) -> Iterator[Tensor]:
    """Batches number ``start`` to ``stop - 1``, (batch_size, 3, side, side) each; ``skip`` is
    called with each message about a photo that cannot be read."""
    loader = DataLoader(
        crops,
        batch_size,
        sampler=range(start * batch_size, stop * batch_size),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for batch, problems in loader:
        for problem in problems:
            skip(problem)
        yield batch


def _collate(items: list[tuple[Tensor, list[str]]]) -> tuple[Tensor, list[str]]:
    problems = [problem for _, found in items for problem in found]
    return torch.stack([crop for crop, _ in items]), problems


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a closed terminal reach every process, and so may SIGTERM; the trainer still needs
    its workers for the last step. A second SIGTERM is PyTorch's, for a worker that does not end."""
    for number in ENDING:
        if number == signal.SIGTERM:
            signal.signal(number, lambda number, _: signal.signal(number, signal.SIG_DFL))
        else:
            signal.signal(number, signal.SIG_IGN)
