"""Small square pictures, all in memory, for networks that make pictures of one size."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylekernels.media.paths import find_photos_below
from stylekernels.training.data import center_crop, readable
from stylekernels.training.errors import SettingError


class Pictures:
    """Square pictures with labels.

    Which pictures a batch has follows from the seed and the batch's number alone, so that a resumed
    run sees what an uninterrupted one would have seen. Every picture comes once in a round.

    Args:
        pixels: (P, side, side, 3) uint8.
        labels: (P,) indices of names.
        names: of the labels; empty if there are none.
        seed: of the order.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, names: tuple[str, ...], seed: int) -> None:
        self.pixels, self.labels, self.names, self.seed = pixels, labels, names, seed
        self._round, self._order = -1, list(range(len(pixels)))

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Return a batch: (size, 3, side, side) in [0, 1], channels_last, and labels, (size,).

        PyTorch's generator decides which pictures are mirrored.
        """
        chosen = [self._picture(i) for i in range(number * size, (number + 1) * size)]
        x = self.pixels[chosen]
        x = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x, x.flip(2))
        return x.permute(0, 3, 1, 2).float().div_(255), self.labels[chosen]

    def digest(self) -> str:
        """The SHA-256 of pictures, labels and names, by which a run knows them."""
        found = hashlib.sha256(self.pixels.numpy())
        found.update(self.labels.numpy())
        found.update("/".join(self.names).encode())  # a folder's name has no slash
        return found.hexdigest()

    def _picture(self, index: int) -> int:
        round_, place = divmod(index, len(self.pixels))
        if round_ != self._round:
            order = list(range(len(self.pixels)))
            random.Random(f"{self.seed} round {round_}").shuffle(order)
            self._round, self._order = round_, order
        return self._order[place]


def load_pictures(
    folder: Path, side: int, seed: int, skip: Callable[[str], None], *, labelled: bool = False
) -> Pictures:
    """Read all photos below a folder, each scaled and cropped to the square in its middle.

    Args:
        folder: see :func:`~stylekernels.media.paths.find_photos_below`.
        side: of the squares, in pixels.
        seed: of the order of batches.
        skip: called with a message about each file that is left out.
        labelled: whether a photo's label is the folder in ``folder`` that it is in; photos in no
            such folder are left out.

    Raises:
        SettingError: if fewer than two photos can be read, or with ``labelled`` if these are in
            fewer than two folders.
    """
    paths, problems = find_photos_below(folder)
    for problem in problems:
        skip(problem)
    squares, labels = [], []
    for path, image in readable(paths, skip):
        inside = path.relative_to(folder).parts[:-1]
        if labelled and not inside:
            skip(f"{path}: in no sub-folder, whose name would be its label")
            continue
        squares.append(np.asarray(center_crop(image, side)))
        labels.append(inside[0] if labelled else "")
    if len(squares) < 2:
        raise SettingError(
            f"photos: expected at least two photos in {folder} that can be read, got {len(squares)}"
        )
    names = sorted(set(labels))
    if labelled and len(names) < 2:
        raise SettingError(
            f"conditional: expected photos in at least two folders in {folder}, whose names are "
            f"the labels, got one, {names[0]}"
        )
    indices = torch.tensor([names.index(label) for label in labels])
    pixels = torch.from_numpy(np.stack(squares))
    return Pictures(pixels, indices, tuple(names) if labelled else (), seed)
