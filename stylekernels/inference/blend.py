"""Mixing of a photo and its stylised picture: by a share, or by brightness only."""

import numpy as np
import torch
from torch import Tensor

from stylekernels.inference.stylizer import Frames, as_frames

_LUMA = (0.299, 0.587, 0.114)
_STRIP = 1 << 20  # pixels that are mixed at once: mixing makes several copies in float32


@torch.no_grad()
def blend(
    photo: Frames,
    stylized: Frames,
    *,
    strength: float = 1.0,
    preserve_colors: bool = False,
) -> Frames:
    """Mix a photo and its stylised picture.

    Args:
        photo: (H, W, 3) or (N, H, W, 3) uint8, RGB; a NumPy array or a tensor.
        stylized: the same shape, kind and device.
        strength: 0 gives the photo, 1 the stylised picture, values between a linear mix.
        preserve_colors: take only the brightness (luma) of the stylised picture, and keep the
            photo's chroma. A colour outside of the RGB cube gets a lower saturation; hue and
            brightness stay.

    Returns:
        Frames of the same kind, rounded to nearest.

    Raises:
        TypeError: if an image is not uint8.
        ValueError: if the shapes differ, or strength is outside [0, 1].

    This is the luminance transfer of Gatys et al., "Preserving color in neural artistic style
    transfer", 2016, section 3.2, without histogram matching.
    """
    before, after = as_frames("photo", photo), as_frames("stylized", stylized)
    if before.shape != after.shape:
        raise ValueError(
            f"stylized: expected the photo's shape {tuple(before.shape)}, got {tuple(after.shape)}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected a number from 0 to 1, got {strength}")
    if strength == 1 and not preserve_colors:
        return stylized.copy() if isinstance(stylized, np.ndarray) else stylized.clone()
    mixed = torch.empty(after.shape, dtype=torch.uint8, device=after.device)
    rows = max(1, _STRIP * after.shape[-3] * 3 // max(1, after.numel()))
    strips = (image.split(rows, dim=-3) for image in (before, after, mixed))
    for old, new, strip in zip(*strips, strict=True):
        strip.copy_(_mix(old.float(), new.float(), strength, preserve_colors))
    return mixed.numpy() if isinstance(photo, np.ndarray) else mixed


def _mix(photo: Tensor, stylized: Tensor, strength: float, preserve_colors: bool) -> Tensor:
    """Mix in float32: values of 0..255, rounded."""
    if preserve_colors:
        stylized = _with_luma_of(stylized, photo)
    if strength != 1:
        stylized = torch.lerp(photo, stylized, strength)
    return stylized.round().clamp_(0, 255)


def _with_luma_of(stylized: Tensor, photo: Tensor) -> Tensor:
    """Combine the photo's colours with the stylised picture's brightness, in 0..255."""
    weights = photo.new_tensor(_LUMA)
    chroma = photo - (photo @ weights).unsqueeze(-1)
    luma = (stylized @ weights).unsqueeze(-1)
    room = torch.where(chroma > 0, 255 - luma, luma)
    saturation = (room / chroma.abs().clamp_min_(1e-3)).amin(-1, keepdim=True).clamp_max_(1)
    return luma + saturation * chroma
