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
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

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


class PhotoCache:
    """Photos that were decoded once, as many as fit.

    A round shows every photo once, so that the first ones to come are kept: any other choice would
    decode more.

    Args:
        megabytes: of pixels that are kept.
    """

    def __init__(self, megabytes: int = 2048) -> None:
        self._left = megabytes << 20
        self._images: dict[Path, Image.Image] = {}

    def read(self, path: Path) -> Image.Image:
        """The picture of a file; see :func:`read_image`."""
        if path in self._images:
            return self._images[path]
        image = read_image(path)
        size = 3 * image.width * image.height
        if size <= self._left:
            self._left -= size
            self._images[path] = image
        return image


def flat_picture(choose: random.Random, side: int) -> Tensor:
    """A picture without things: one colour, a gradient or smooth noise, with a little grain.

    Args:
        choose: the source of all choices.
        side: in pixels.

    Returns:
        (3, side, side) in [0, 1]. The grain is at least one of 255 levels: instance norm divides
        by the deviation of a picture, which must not be 0.
    """
    source = torch.Generator().manual_seed(choose.getrandbits(62))
    first, second = torch.rand(2, 3, 1, 1, generator=source)
    kind = choose.choice(("color", "gradient", "noise"))
    if kind == "color":
        x = first.expand(3, side, side)
    elif kind == "gradient":
        angle = choose.uniform(0, 2 * math.pi)
        axis = torch.linspace(-0.5, 0.5, side)
        along = axis[:, None] * math.sin(angle) + axis * math.cos(angle)
        x = torch.lerp(first, second, (along + 0.5).clamp(0, 1))
    else:
        cells = torch.rand(1, 3, 8, 8, generator=source)
        x = F.interpolate(cells, (side, side), mode="bicubic")[0]
    grain = choose.choice((1, 2.5, 8)) / 255
    return (x + grain * torch.randn(3, side, side, generator=source)).clamp(0, 1)


class RandomCrops(Dataset[tuple[Tensor, bool, list[str]]]):
    """Random square crops, mirrored half the time, scaled between full size and the whole photo.

    Crop ``i`` depends on the photos, the seed and ``i`` alone, so that a resumed run sees what an
    uninterrupted one would have seen, with any number of workers. Where its photo cannot be read,
    the next one of the round that can be takes its place.

    Each item is a crop, (3, side, side) in [0, 1], whether it is a flat picture, and a message
    about each photo that was found to be unreadable for it; every process finds them once.

    Args:
        photos: image files.
        side: of the crops, in pixels.
        seed: of all choices.
        flat: share of crops that are flat pictures instead of photos.
    """

    def __init__(self, photos: Sequence[Path], side: int, seed: int, flat: float = 0.0) -> None:
        self.photos, self.side, self.seed, self.flat = list(photos), side, seed, flat
        self._cache = PhotoCache()
        self._round, self._order = -1, list(range(len(self.photos)))
        self._unreadable: set[int] = set()

    def __getitem__(self, index: int) -> tuple[Tensor, bool, list[str]]:
        choose = random.Random(f"{self.seed} {index} flat")
        if choose.random() < self.flat:
            return flat_picture(choose, self.side), True, []
        choose = random.Random(f"{self.seed} {index}")
        problems: list[str] = []
        image = self._photo(index, problems.append)
        shorter = min(image.size)
        smallest = min(self.side, shorter)
        # Scales are uniform in the logarithm: as many crops from 1x to 1.4x as from 1.4x to 2x.
        side = smallest * math.exp(choose.random() * math.log(shorter / smallest))
        left, top = (choose.random() * (length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box)
        if choose.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image), False, problems

    def _photo(self, index: int, skip: Callable[[str], None]) -> Image.Image:
        round_, place = divmod(index, len(self.photos))
        order = self._order_of(round_)
        for step in range(len(order)):
            photo = order[(place + step) % len(order)]
            if photo in self._unreadable:
                continue
            try:
                return self._cache.read(self.photos[photo])
            except PhotoError as error:
                skip(str(error))
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
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read batches in order, decoding ahead where there are workers.

    Args:
        crops: the crops of all batches.
        batch_size: crops per batch; a multiple of the number of shares.
        start, stop: numbers of the first batch and of the one behind the last.
        workers: processes that decode; 0 decodes here.
        skip: called with each message about a photo that cannot be read.
        share: which part of each batch, and of how many equal parts.

    Returns:
        Crops, (N, 3, side, side), and whether each is flat, (N,).
    """
    part, parts = share
    size = batch_size // parts
    loader = DataLoader(
        crops,
        size,
        sampler=_Share(start, stop, batch_size, part * size, size),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_trainer,
        # A separate generator: the loader draws from it whenever it starts.
        generator=torch.Generator(),
    )
    for batch, flat, problems in loader:
        for problem in problems:
            skip(problem)
        yield batch, flat


class _Share(Sampler[int]):
    """Numbers of the crops of a share of each batch."""

    def __init__(self, start: int, stop: int, batch_size: int, offset: int, size: int) -> None:
        self.batches, self.batch_size = range(start, stop), batch_size
        self.places = range(offset, offset + size)

    def __iter__(self) -> Iterator[int]:
        return (n * self.batch_size + place for n in self.batches for place in self.places)

    def __len__(self) -> int:
        return len(self.batches) * len(self.places)


def _collate(items: list[tuple[Tensor, bool, list[str]]]) -> tuple[Tensor, Tensor, list[str]]:
    crops, flat, problems = zip(*items, strict=True)
    return torch.stack(crops), torch.tensor(flat), [each for found in problems for each in found]


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a closed terminal reach every process, and so may SIGTERM; the trainer still needs
    its workers for the last step. A second SIGTERM is PyTorch's, for a worker that does not end."""
    for number in ENDING:
        if number == signal.SIGTERM:
            signal.signal(number, lambda number, _: signal.signal(number, signal.SIG_DFL))
        else:
            signal.signal(number, signal.SIG_IGN)
