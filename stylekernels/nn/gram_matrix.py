"""Gram matrix and style loss as modules."""

import torch
from torch import Tensor, nn

from stylekernels.ops import gram_loss, gram_matrix
from stylekernels.ops.arguments import check_tensor
from stylekernels.tensors import wide_dtype


class GramMatrix(nn.Module):
    """Gram matrix of feature maps, `stylekernels.gram_matrix` as a module.

    Args:
        scale: factor; ``1 / (C * H * W)`` by default.
        center: remove each channel's mean first, which gives the covariance (times the scale).

    Shape:
        (N, C, ...) of 3 dimensions or more to (N, C, C), float32 (float64 for float64 input).

    Raises:
        TypeError: if the input is not a floating-point tensor.
        ValueError: if it has fewer dimensions, no channel or no pixel.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    section 2.2.
    """

    def __init__(self, scale: float | None = None, center: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.center = center

    def forward(self, x: Tensor) -> Tensor:
        return gram_matrix(x, scale=self.scale, center=self.center)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, center={self.center}"


class StyleLoss(nn.Module):
    """Style loss of one layer: mean squared error between the features' Gram matrix and a target.

    Args:
        target: Gram matrices to reach, as `stylekernels.gram_matrix` returns them: (N, C, C), or
            (1, C, C) or (C, C) for one target for all images. It is a buffer, so that it moves
            with the module and is in its state_dict. It stays in float32 (or float64) even if the
            module is cast, because Gram matrices exceed the range of float16.
        scale: factor of the Gram matrix of the features, equal to that of the target;
            ``1 / (C * H * W)`` by default.
        center: remove each channel's mean of the features first. The target must be that of
            centred features too.

    Shape:
        (N, C, ...) of 3 dimensions or more to a scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: if target or the input is not a floating-point tensor.
        ValueError: if target does not have the shape of the input's Gram matrix.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    equations 4 to 6.
    """

    target: Tensor

    def __init__(self, target: Tensor, scale: float | None = None, center: bool = False) -> None:
        super().__init__()
        check_tensor(target, "target")
        if not target.is_floating_point():
            raise TypeError(
                f"target: expected a floating-point tensor, got {target.dtype}; "
                "make targets with gram_matrix"
            )
        if target.dim() not in (2, 3) or target.shape[-1] != target.shape[-2]:
            raise ValueError(
                f"target: expected shape (N, C, C) or (C, C), got {tuple(target.shape)}; "
                "for features use StyleLoss.from_features"
            )
        self.register_buffer("target", target.detach().to(wide_dtype(target)))
        self.scale = scale
        self.center = center

    @classmethod
    def from_features(
        cls, features: Tensor, scale: float | None = None, center: bool = False
    ) -> "StyleLoss":
        """Return the loss whose target is the Gram matrix of a style image's features.

        Args:
            features: (N, C, H, W) or (N, C, L).
            scale, center: as for the class.
        """
        return cls(gram_matrix(features.detach(), scale=scale, center=center), scale, center)

    def _apply(self, fn, recurse: bool = True) -> "StyleLoss":
        """Apply Module.to, half, cuda and so on. The target is never cast to half precision."""
        target = self.target
        super()._apply(fn, recurse)
        if self.target.dtype.itemsize < torch.float32.itemsize:
            self.target = target.to(self.target.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        target = self.target.to(wide_dtype(x))
        return gram_loss(x, target, scale=self.scale, center=self.center)

    def extra_repr(self) -> str:
        return f"target={tuple(self.target.shape)}, scale={self.scale}, center={self.center}"
