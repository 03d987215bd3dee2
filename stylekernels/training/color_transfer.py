"""Colour transfer: photos in a painting's colours, for the losses to aim at."""

import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDS = 6
_LATTICE = 17
_QUANTILES = 48
_PAINTING_PIXELS, _PHOTO_PIXELS = 1 << 16, 1 << 13
# A tolerance far below one of 255 levels and far above the rounding of a turned colour.
_EQUAL = 1e-4


class ColorTransfer:
    """Gives photos the colours of a painting.

    Round by round, colour space is turned, and along each axis a piecewise linear map takes the
    quantiles of the photo's colours to those of the painting's. In the end their means agree, and
    their covariances and whole distributions nearly. A pixel's new colour depends on its old one
    alone, so that a photo keeps its forms. Where a colour fills several quantiles (clipped skies
    and shadows; a grey photo's, away from the grey axis) it becomes the mean of theirs.

    Args:
        painting: (3, H, W) in [0, 1].
        strength: 1 gives the painting's colours, 0 leaves the photo's; between, each pixel's two
            colours are mixed.

    Raises:
        ValueError: if the painting has another shape.

    Pitié, Kokaram and Dahyot, "Automated colour grading using colour distribution transfer", 2007,
    section 3, with the quantiles of samples in place of histograms. The first axes are light and
    dark and two of opponent colours, the others random, the same ones in every run.
    """

    def __init__(self, painting: Tensor, strength: float = 1.0) -> None:
        if painting.dim() != 3 or painting.shape[0] != 3:
            raise ValueError(f"painting: expected an image (3, H, W), got {tuple(painting.shape)}")
        colors = _sample(painting.detach().float().flatten(1), _PAINTING_PIXELS)
        self.strength, self.lattice = strength, _lattice(painting.device)
        self.rounds = [(axes, _quantiles(axes @ colors)) for axes in _turns(painting.device)]

    @torch.no_grad()
    def __call__(self, photos: Tensor) -> Tensor:
        """The photos in the painting's colours, each by its own map.

        Args:
            photos: (N, 3, H, W) in [0, 1], on the painting's device.

        Returns:
            The same shape, dtype and layout, in [0, 1]. It is computed in float32, under autocast
            as well, and has no gradient.

        Raises:
            ValueError: if the photos have another shape.
        """
        if photos.dim() != 4 or photos.shape[1] != 3:
            raise ValueError(f"photos: expected images (N, 3, H, W), got {tuple(photos.shape)}")
        with torch.autocast(photos.device.type, enabled=False):
            found = torch.stack([self._transfer(photo) for photo in photos]).to(photos.dtype)
        # Stacking single images loses their channels_last layout.
        last = photos.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return found.contiguous(memory_format=layout)

    def _transfer(self, photo: Tensor) -> Tensor:
        pixels = photo.float().flatten(1)
        # The rounds turn a sample, whose quantiles they take, and a lattice of colours. Pixels are
        # interpolated in the lattice: 65,536 of them through all rounds took 46 ms, and this 20.
        sample = _sample(pixels, _PHOTO_PIXELS)
        count = sample.shape[1]
        low, high = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
        colors = torch.cat([sample, low + (high - low) * self.lattice], 1)
        for axes, theirs in self.rounds:
            turned = axes @ colors
            ours = _quantiles(turned[:, :count])
            colors = axes.T @ _map(turned, ours, _shared(theirs, ours))
        table = colors[:, count:].clamp(0, 1).view(1, 3, _LATTICE, _LATTICE, _LATTICE)
        # Blue is the table's first dimension and the last coordinate.
        places = (pixels - low) / (high - low).clamp_min(_EQUAL)
        places = (2 * places - 1).T.view(1, 1, 1, -1, 3)
        found = F.grid_sample(table, places, align_corners=True).view(photo.shape)
        return torch.lerp(photo.float(), found, self.strength)


def _lattice(device: torch.device) -> Tensor:
    """Evenly spaced colours, red the fastest; (3, _LATTICE cubed)."""
    levels = torch.linspace(0, 1, _LATTICE, device=device)
    blue, green, red = torch.meshgrid(levels, levels, levels, indexing="ij")
    return torch.stack((red, green, blue)).flatten(1)


def _turns(device: torch.device) -> list[Tensor]:
    """The axes of each round, the rows of a (3, 3) orthogonal matrix."""
    opponents = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [1.0, 0.0, -1.0]])
    turns = [torch.linalg.qr(opponents)[0].T]
    random = torch.Generator().manual_seed(0)
    for _ in range(_ROUNDS - 1):
        turns.append(torch.linalg.qr(torch.randn(3, 3, generator=random))[0])
    return [axes.contiguous().to(device) for axes in turns]


def _sample(colors: Tensor, count: int) -> Tensor:
    """Evenly spaced ones of (3, pixels): fewer than twice ``count``, or all if there are fewer."""
    return colors[:, :: max(1, colors.shape[1] // count)]


def _quantiles(values: Tensor) -> Tensor:
    """Evenly spaced quantiles of each row, from the smallest to the largest; (3, quantiles)."""
    levels = torch.linspace(0, 1, _QUANTILES, device=values.device)
    return torch.quantile(values, levels, dim=1).T.contiguous()


def _shared(targets: Tensor, knots: Tensor) -> Tensor:
    """The targets, where knots are equal their mean; (3, quantiles) each."""
    first = torch.searchsorted(knots, knots - _EQUAL)
    end = torch.searchsorted(knots, knots + _EQUAL, right=True)
    sums = F.pad(targets.double().cumsum(1), (1, 0))
    return ((sums.gather(1, end) - sums.gather(1, first)) / (end - first)).to(targets.dtype)


def _map(values: Tensor, knots: Tensor, targets: Tensor) -> Tensor:
    """The piecewise linear map of each row that takes its knots to its targets, constant beyond."""
    right = torch.searchsorted(knots, values).clamp(1, knots.shape[1] - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    part = ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return torch.lerp(targets.gather(1, right - 1), targets.gather(1, right), part)
