"""Photos: finding them, random crops for training, fixed ones for measuring."""

import math
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def find_photos(folder: Path) -> list[Path]:
    """All photos in a folder and its subfolders, sorted.

    Raises:
        ValueError: if it is no folder or holds fewer than two.
    """
    if not folder.is_dir():
        raise ValueError(f"photos: expected a folder, got {folder}")
    photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if len(photos) < 2:
        raise ValueError(f"photos: expected at least two photos in {folder}, got {len(photos)}")
    return photos


def split_photos(photos: Sequence[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """Photos to train on, and evenly spaced ones to measure on, at most half of them."""
    count = min(held_out, len(photos) // 2)
    held = {round((i + 0.5) * len(photos) / count - 0.5) for i in range(count)}
    train = [photo for i, photo in enumerate(photos) if i not in held]
    return train, [photos[i] for i in sorted(held)]


def read_image(path: Path) -> Image.Image:
    """An image file in RGB.

    Raises:
        ValueError: if it is no image that Pillow can read, or is damaged.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            return Image.open(file).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{path}: expected an image, got what can't be read as one: it is damaged, or of "
                "another kind"
            ) from error


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


class RandomCrops(Dataset[Tensor]):
    """Random square crops, mirrored half the time, scaled between full size and the whole photo.

    Crop ``i`` depends on the seed and ``i`` alone, so that a resumed run sees what an
    uninterrupted one would have seen, with any number of workers.

    Args:
        photos: image files.
        side: of the crops, in pixels.
        seed: of all choices.
    """

    def __init__(self, photos: Sequence[Path], side: int, seed: int) -> None:
        self.photos, self.side, self.seed = list(photos), side, seed

    def __getitem__(self, index: int) -> Tensor:
        choose = random.Random(f"{self.seed} {index}")
        # Every photo once in each round, in an order of that round's own.
        round_, place = divmod(index, len(self.photos))
        order = list(range(len(self.photos)))
        random.Random(f"{self.seed} round {round_}").shuffle(order)
        image = read_image(self.photos[order[place]])
        shorter = min(image.size)
        smallest = min(self.side, shorter)
        # Even over the logarithm: as many crops between 1x and 1.4x as between 1.4x and 2x.
        side = smallest * math.exp(choose.random() * math.log(shorter / smallest))
        left, top = (choose.random() * (length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((self.side, self.side), Image.Resampling.BICUBIC, box)
        if choose.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image)


def crop_batches(
    crops: RandomCrops, batch_size: int, start: int, stop: int, workers: int
) -> Iterator[Tensor]:
    """Batches number ``start`` to ``stop - 1``, (batch_size, 3, side, side) each."""
    loader = DataLoader(
        crops,
        batch_size,
        sampler=range(start * batch_size, stop * batch_size),
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_trainer,
    )
    return iter(loader)


def _leave_interrupts_to_the_trainer(_worker: int) -> None:
    """Ctrl-C reaches every process; the trainer still needs its workers for the last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
