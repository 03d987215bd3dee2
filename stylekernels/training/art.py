"""The paintings that a style is learnt from: strokes at one scale, without paper grain."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stylekernels.media.paths import find_photos_below
from stylekernels.training.checkpoint import digest
from stylekernels.training.data import read_image, readable, resized, to_tensor
from stylekernels.training.errors import SettingError

_STROKE_PIXELS = 512
# Standard deviations of the finest detail in the flattest parts. Clean scans have less; brushwork
# has more and covers the whole painting.
_LEAST_GRAIN, _MOST_GRAIN = 2.5 / 255, 7 / 255
_FLATTEST = 0.1
_BLOCK = 16


class Art:
    """One artist's paintings.

    Args:
        paintings: (3, H, W) each, in [0, 1], at the scale of their strokes.
        files: where they were read.

    Attributes:
        smoothed: number of paintings whose grain was removed.
    """

    def __init__(self, paintings: Sequence[Tensor], files: Sequence[Path] = ()) -> None:
        self.paintings, self.files = [*paintings], [*files]
        self.smoothed = 0

    @classmethod
    def read(cls, path: Path, stroke: float, *, smooth: bool, skip: Callable[[str], None]) -> "Art":
        """Read a painting, or all paintings below a folder.

        Args:
            path: an image file, or a folder.
            stroke: size of the strokes relative to those at a longer side of 512 pixels.
            smooth: whether to smooth grain where it is found.
            skip: called with a message about each file of a folder that cannot be read.

        Raises:
            SettingError: if the file, or every file of the folder, cannot be read.
        """
        if path.is_dir():
            files, problems = find_photos_below(path)
            for problem in problems:
                skip(problem)
            found = [*readable(files, skip)]
            if not found:
                raise SettingError(
                    f"art: expected paintings in {path}, found none that can be read"
                )
        else:
            found = [(path, read_image(path))]
        side = round(_STROKE_PIXELS * stroke)
        art = cls([_scaled(image, side) for _, image in found], [file for file, _ in found])
        if smooth:
            for index, painting in enumerate(art.paintings):
                if _LEAST_GRAIN < (level := grain(painting)) < _MOST_GRAIN:
                    art.paintings[index] = without_grain(painting, level)
                    art.smoothed += 1
        return art

    @property
    def digest(self) -> str:
        """Identifies the paintings by their files' content."""
        return digest(self.files)

    def to(self, device: torch.device) -> "Art":
        """The same paintings on a device, channels_last."""
        placed = [p[None].to(device, memory_format=torch.channels_last)[0] for p in self.paintings]
        art = Art(placed, self.files)
        art.smoothed = self.smoothed
        return art

    def colors(self) -> Tensor:
        """The colours of all paintings, (3, 1, pixels)."""
        return torch.cat([painting.flatten(1) for painting in self.paintings], 1)[:, None]

    def crops(self, count: int, side: int, seed: str) -> Tensor:
        """Random square crops: zoomed by up to a quarter, turned by up to ten degrees, mirrored.

        Args:
            count: number of crops.
            side: in pixels.
            seed: of all choices.

        Returns:
            (count, 3, side, side) in [0, 1], channels_last.
        """
        choose = random.Random(seed)
        crops = [self._crop(choose, side) for _ in range(count)]
        return torch.cat(crops).contiguous(memory_format=torch.channels_last)

    def _crop(self, choose: random.Random, side: int) -> Tensor:
        painting = choose.choice(self.paintings)
        angle = math.radians(choose.uniform(-10, 10))
        zoom = math.exp(choose.uniform(-math.log(1.25), math.log(1.25)))
        flip = choose.choice((-1.0, 1.0))
        height, width = painting.shape[1:]
        # Half the sides of the box around the turned crop, in pixels of the painting.
        reach = 0.5 * side * zoom * (math.cos(angle) + abs(math.sin(angle)))
        reach_x, reach_y = min(reach, width / 2), min(reach, height / 2)
        x = choose.uniform(reach_x, width - reach_x) * 2 / width - 1
        y = choose.uniform(reach_y, height - reach_y) * 2 / height - 1
        # A painting narrower than the crop is shown whole; its border is reflected.
        c, s = (side * zoom * f(angle) for f in (math.cos, math.sin))
        turn = [[flip * c / width, -s / width, x], [flip * s / height, c / height, y]]
        grid = F.affine_grid(
            torch.tensor([turn], device=painting.device), [1, 3, side, side], align_corners=False
        )
        return F.grid_sample(painting[None], grid, padding_mode="reflection", align_corners=False)


def read_styles(
    path: Path, stroke: float, *, each: bool, smooth: bool, skip: Callable[[str], None]
) -> dict[str, Art]:
    """Read the paintings of one style or of several.

    Args:
        path: an image file or a folder.
        each: whether each image file and each subfolder of the folder is a style of its own.
        stroke, smooth, skip: as for :meth:`Art.read`.

    Returns:
        The paintings of each style, by its name: that of its file or folder.

    Raises:
        SettingError: if a file, or every file of a folder, cannot be read, or if two styles have
            the same name.
    """
    places = [path]
    if each:
        files, problems = find_photos_below(path)
        for problem in problems:
            skip(problem)
        places = sorted({path / file.relative_to(path).parts[0] for file in files})
        if not places:
            raise SettingError(f"art: expected paintings in {path}, found none")
    styles: dict[str, Art] = {}
    for place in places:
        # These two letters separate styles and shares on the command line.
        name = place.stem.replace(":", "_").replace(",", "_")
        if name in styles:
            raise SettingError(f"art: expected different names of styles, got {name!r} twice")
        styles[name] = Art.read(place, stroke, smooth=smooth, skip=skip)
    return styles


def grain(painting: Tensor) -> float:
    """Return the standard deviation of the finest detail in the flattest tenth of a painting.

    Args:
        painting: (3, H, W) in [0, 1].
    """
    gray = painting.mean(0)[None, None]
    coarse = _blurred(gray)
    # Blocks differ in brightness by what is larger than the grain.
    form = F.avg_pool2d(coarse.square(), _BLOCK) - F.avg_pool2d(coarse, _BLOCK).square()
    fine = F.avg_pool2d((gray - coarse).square(), _BLOCK).flatten()
    flattest = form.flatten().argsort()[: max(1, math.ceil(_FLATTEST * form.numel()))]
    return fine[flattest].median().sqrt().item()


def without_grain(painting: Tensor, level: float) -> Tensor:
    """Smooth a painting where its detail is no stronger than the grain.

    Args:
        painting: (3, H, W) in [0, 1].
        level: standard deviation of the grain.

    Returns:
        The same shape. Edges much stronger than the grain stay.

    He, Sun and Tang, "Guided image filtering", 2010, with the painting as its own guide.
    """
    x, radius = painting[None], 3
    eps = (2 * level) ** 2
    mean = _box(x, radius)
    variance = (_box(x.square(), radius) - mean.square()).clamp_min(0)
    slope = variance / (variance + eps)
    offset = mean * (1 - slope)
    return (_box(slope, radius) * x + _box(offset, radius))[0].clamp(0, 1)


def _scaled(image: Image.Image, longer_side: int) -> Tensor:
    return to_tensor(resized(image, longer_side))


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over squares of 2 * radius + 1 pixels."""
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _blurred(x: Tensor) -> Tensor:
    """A 5x5 binomial blur of gray images."""
    k = torch.tensor([1.0, 4, 6, 4, 1], device=x.device) / 16
    return F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), (k[:, None] * k)[None, None])
