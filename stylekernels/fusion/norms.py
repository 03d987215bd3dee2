"""The norms in the graph of a fused network. They are modules because a graph that is read from a
file traces functions again."""

from torch import Tensor, nn

from stylekernels.fusion.convolve import can_be_residual, naming_layer, residual_like
from stylekernels.ops import group_norm, instance_norm, instance_norm_stats, norm_scale_shift
from stylekernels.ops.arguments import check_image_batch
from stylekernels.reference.instance_norm import activate
from stylekernels.tensors import wide_dtype


class ScaleShift(nn.Module):
    """Scale and shift of a norm for the convolution that reads its input.

    Args:
        layer: the norm's name in the network, for errors.
        norm: an instance norm, group norm or batch norm.
    """

    def __init__(self, layer: str, norm: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._groups, self._eps = getattr(norm, "num_groups", None), norm.eps

    @naming_layer
    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
    ) -> Tensor:
        """Compute them.

        Args:
            x: (N, C, H, W).
            weight, bias: the norm's, (C,).
            mean, var: running statistics, (C,); None for those of x's planes or groups.

        Returns:
            (N, C, 2).

        Raises:
            ValueError: if x is an image without a batch.
        """
        check_image_batch(x)
        if mean is not None:
            mean, var = (each.to(wide_dtype(x)).expand(x.shape[:2]) for each in (mean, var))
        else:
            mean, var = instance_norm_stats(x)
            if self._groups is not None:
                mean, var = _of_groups(mean, var, self._groups)
        return norm_scale_shift(mean, var, weight, bias, self._eps)


def _of_groups(mean: Tensor, var: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Merge statistics of planes to those of groups: each plane gets its group's."""
    n, c = mean.shape
    means, within = (each.double().view(n, groups, c // groups) for each in (mean, var))
    merged = means.mean(2, keepdim=True)
    spread = (means - merged).square().mean(2, keepdim=True)
    merged_var = within.mean(2, keepdim=True) + spread
    return tuple(
        each.expand(means.shape).reshape(n, c).to(mean.dtype) for each in (merged, merged_var)
    )


class Normalize(nn.Module):
    """A norm with the activation and the addition after it.

    Args:
        layer, norm: as for `ScaleShift`.
        activation, negative_slope, residual_first: as for `instance_norm`.
    """

    def __init__(
        self,
        layer: str,
        norm: nn.Module,
        activation: str,
        negative_slope: float,
        residual_first: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self._groups, self._eps = getattr(norm, "num_groups", None), norm.eps
        self._activation = activation, negative_slope
        self._residual_first = residual_first

    @naming_layer
    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        residual: Tensor | float | None,
    ) -> Tensor:
        """Run `instance_norm` or `group_norm`: arguments as for `ScaleShift`, and any term that
        PyTorch can add. An instance norm also takes an image without a batch, (C, H, W)."""
        without_batch = x.dim() == 3 and self._groups is None
        if without_batch:
            x = x[None]
            if isinstance(residual, Tensor) and residual.dim() == 3:
                residual = residual[None]
        activation, negative_slope = self._activation
        options = {"negative_slope": negative_slope, "eps": self._eps}
        if can_be_residual(x, residual):
            options |= {
                "activation": activation,
                "residual": residual_like(x, residual),
                "residual_first": self._residual_first,
            }
            y = self._norm(x, weight, bias, mean, var, options)
        elif self._residual_first:
            y = self._norm(x, weight, bias, mean, var, options) + residual
            y = activate(y, activation, negative_slope)
        else:
            options["activation"] = activation
            y = self._norm(x, weight, bias, mean, var, options) + residual
        return y[0] if without_batch else y

    def _norm(self, x, weight, bias, mean, var, options) -> Tensor:
        if self._groups is not None:
            return group_norm(x, self._groups, weight, bias, **options)
        stats = None if mean is None else (mean, var)
        return instance_norm(x, weight, bias, stats=stats, **options)


class LikeInput(nn.Module):
    """The output of a network, in the layout of its input."""

    def forward(self, y: object, x: object) -> object:
        """Return an image, contiguous if the image x is; other values as they are."""
        images = all(isinstance(each, Tensor) and each.dim() == 4 for each in (y, x))
        if images and x.is_contiguous():
            return y.contiguous()
        return y
