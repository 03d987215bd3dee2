"""Instance norm modules: a faster drop-in for torch's, and conditional and adaptive ones."""

import math
import warnings

import torch
from torch import Tensor, nn

from stylekernels.nn.options import options_repr, set_options
from stylekernels.ops import instance_norm, instance_norm_stats
from stylekernels.ops.arguments import (
    check_image_batch,
    check_per_channel,
    check_tensor,
    fits,
)


def normalize(
    module: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual_first: bool = False,
) -> Tensor:
    """The forward pass of an instance norm of torch's, by `instance_norm`. It updates the running
    statistics as torch's class does.

    Args:
        module: an instance norm of torch's, or of a subclass.
        x: images, batched or not.
        residual: as x, or None.
        activation, negative_slope, residual_first: as for `instance_norm`.
    """
    module._check_input_dim(x)
    unbatched = x.dim() == module._get_no_batch_dim()
    dim = 0 if unbatched else 1
    channels = x.shape[dim]
    if channels != module.num_features:
        if module.affine:
            raise ValueError(
                f"expected input's size at dim={dim} to match num_features "
                f"({module.num_features}), but got: {channels}."
            )
        warnings.warn(
            f"input's size at dim={dim} does not match num_features. "
            "You can silence this warning by not passing in num_features, "
            "which is not used because affine=False",
            stacklevel=3,
        )
        if module.running_mean is not None:
            raise RuntimeError(
                f"running_mean should contain {channels} elements not {module.num_features}"
            )
    if unbatched:
        x = x.unsqueeze(0)
        residual = None if residual is None else residual.unsqueeze(0)
    stats = None
    if module.training or not module.track_running_stats:
        if math.prod(x.shape[2:]) == 1:
            raise ValueError(
                f"Expected more than 1 spatial element when training, got input size {x.shape}"
            )
        if module.running_mean is not None and module.momentum:
            _update_running_stats(module, x)
    else:
        stats = (module.running_mean, module.running_var)
    y = instance_norm(
        x,
        module.weight,
        module.bias,
        residual=residual,
        activation=activation,
        negative_slope=negative_slope,
        residual_first=residual_first,
        eps=module.eps,
        stats=stats,
    )
    return y.squeeze(0) if unbatched else y


@torch.no_grad()
def _update_running_stats(module: nn.Module, x: Tensor) -> None:
    # This takes another pass over x. Passing these statistics to instance_norm would save it,
    # but cost three in the backward pass, which has a fused op only for own statistics.
    mean, var = instance_norm_stats(x)
    pixels = math.prod(x.shape[2:])
    for running, new in (
        (module.running_mean, mean.mean(0)),
        (module.running_var, var.mean(0) * (pixels / (pixels - 1))),
    ):
        # An alias, as in torch's own class: a function that torch.func differentiates cannot
        # write to a tensor from outside, but can write to an alias of it.
        update = torch.lerp(running.to(new.dtype), new, module.momentum)
        torch.ops.aten.alias(running).copy_(update)


class _InstanceNorm:
    """Mixin of the modules for 1, 2 and 3 spatial dimensions: the options, and ``forward``."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device=None,
        dtype=None,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
        residual_first: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs
        )
        set_options(self, activation, negative_slope, residual_first)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        then: tuple[str, float] | None = None,
    ) -> Tensor:
        """Normalise images.

        Args:
            input: see the class.
            residual: as input, or None.
            then: activation and negative slope for this call, instead of the module's own.
        """
        activation = then or (self.activation, self.negative_slope)
        return normalize(self, input, residual, *activation, self.residual_first)

    def extra_repr(self) -> str:
        return super().extra_repr() + options_repr(self)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with an activation and a residual in the same op: `InstanceNorm2d`
    for signals.

    Shape:
        x (N, C, L) or (C, L), residual the same or None; to x's shape, dtype and layout.
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with an activation and a residual in the same op.

    Arguments, state_dict, unbatched input and running statistics are those of torch's class.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a new image in the running statistics; None keeps them as they are.
        affine: learn a scale and a shift, (C,) each.
        track_running_stats: keep running statistics, and normalise by them in evaluation.
        activation: as for `instance_norm`.
        negative_slope: slope of ``leaky_relu`` below zero.
        residual_first: add the residual before the activation instead of after it.

    Shape:
        x (N, C, H, W) or (C, H, W), residual the same or None; to x's shape, dtype and layout.

    Raises:
        ValueError: if a shape does not fit, or in training if there is one pixel per channel.
        TypeError: if a dtype does not fit.
        RuntimeError: as torch's class, if the running statistics have another number of channels.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016.
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with an activation and a residual in the same op: `InstanceNorm2d`
    for volumes.

    Shape:
        x (N, C, D, H, W) or (C, D, H, W), residual the same or None; to x's shape, dtype and
        layout, contiguous or channels_last_3d.
    """


class _LazyInstanceNorm(_InstanceNorm):
    """Mixin of the lazy modules: the options, without ``num_features``."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
        residual_first: bool = False,
        **kwargs,
    ) -> None:
        super(_InstanceNorm, self).__init__(
            eps, momentum, affine, track_running_stats, device, dtype, **kwargs
        )
        set_options(self, activation, negative_slope, residual_first)

    def initialize_parameters(self, input: Tensor, *_others, **_options) -> None:
        """Make the parameters for the first input; the arguments are those of ``forward``."""
        super().initialize_parameters(input)


class LazyInstanceNorm1d(_LazyInstanceNorm, nn.LazyInstanceNorm1d):
    """`InstanceNorm1d` that learns ``num_features`` from the first input, as torch's class does."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyInstanceNorm, nn.LazyInstanceNorm2d):
    """`InstanceNorm2d` that learns ``num_features`` from the first input, as torch's class does."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyInstanceNorm, nn.LazyInstanceNorm3d):
    """`InstanceNorm3d` that learns ``num_features`` from the first input, as torch's class does."""

    cls_to_become = InstanceNorm3d


class ConditionalInstanceNorm2d(nn.Module):
    """Instance norm with a scale and a shift for each of several styles.

    Args:
        num_features: C.
        num_styles: S, rows of the tables ``weight`` and ``bias``, (S, C) each.
        eps: added to the variance.
        activation, negative_slope, residual_first: as for `InstanceNorm2d`.

    Shape:
        x (N, C, H, W). style: an index, as an int or integers () or (N,); or a mixture, as
        floating-point weights of the styles (S,) or (N, S). residual as x, or None. The result has
        x's shape, dtype and layout.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if a dtype does not fit.
        IndexError: if the index of a style is not below S.

    Dumoulin, Shlens and Kudlur, "A learned representation for artistic style", 2017, sections 2.2
    and 3.4.
    """

    def __init__(
        self,
        num_features: int,
        num_styles: int,
        eps: float = 1e-5,
        device=None,
        dtype=None,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
        residual_first: bool = False,
    ) -> None:
        super().__init__()
        set_options(self, activation, negative_slope, residual_first)
        self.num_features = num_features
        self.num_styles = num_styles
        self.eps = eps
        shape = (num_styles, num_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def _rows(self, table: Tensor, style: Tensor | int) -> Tensor:
        if isinstance(style, Tensor) and style.is_floating_point():
            return (style.to(table.dtype).unsqueeze(-1) * table).sum(-2)
        return table[style.long() if isinstance(style, Tensor) else style]  # uint8 would be a mask

    def _check_style(self, x: Tensor, style: Tensor | int) -> None:
        if isinstance(style, int) and not isinstance(style, bool):
            s = self.num_styles
            if not -s <= style < s:
                raise IndexError(f"style: expected an index from 0 to {s - 1}, got {style}")
            return
        if not isinstance(style, Tensor) or style.dtype == torch.bool or style.is_complex():
            came = style.dtype if isinstance(style, Tensor) else type(style).__name__
            raise TypeError(
                f"style: expected an int, or a tensor of integers or floats, got {came}"
            )
        n, s = x.shape[0], self.num_styles
        if style.is_floating_point():
            if not fits(style, (s,), (n, s)):
                raise ValueError(
                    f"style: expected a mixture of shape (S,) = ({s},) or (N, S) = ({n}, {s}), "
                    f"got {tuple(style.shape)}"
                )
        elif not fits(style, (), (n,)):
            raise ValueError(
                f"style: expected indices of shape () or (N,) = ({n},), got {tuple(style.shape)}"
            )

    def forward(self, x: Tensor, style: Tensor | int, residual: Tensor | None = None) -> Tensor:
        check_image_batch(x)
        self._check_style(x, style)
        return instance_norm(
            x,
            self._rows(self.weight, style),
            self._rows(self.bias, style),
            residual=residual,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual_first=self.residual_first,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, {self.num_styles}, eps={self.eps}" + options_repr(self)


class AdaptiveInstanceNorm2d(nn.Module):
    """Gives content features the mean and deviation of style features (AdaIN).

    Args:
        eps: added to the variances.
        activation, negative_slope, residual_first: as for `InstanceNorm2d`.

    Shape:
        content (N, C, H, W). style: features (N, C, H', W') or (1, C, H', W'), or their (mean, std)
        as a pair of (N, C) or (C,). residual as content, or None. The result has content's shape,
        dtype and layout.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if a dtype does not fit.

    Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance
    normalization", 2017, equation 8; the deviation is defined in equation 3.
    """

    def __init__(
        self,
        eps: float = 1e-5,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
        residual_first: bool = False,
    ) -> None:
        super().__init__()
        set_options(self, activation, negative_slope, residual_first)
        self.eps = eps

    def _mean_and_std(self, content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        check_image_batch(style, "style")
        n, c = content.shape[0], content.shape[1]
        if style.shape[0] not in (1, n) or style.shape[1] != c:
            raise ValueError(
                f"style: expected shape (N, C, H, W) with N = {n} or 1 and C = {c} as content, "
                f"got {tuple(style.shape)}"
            )
        mean, var = instance_norm_stats(style)
        return mean.expand(n, c), torch.sqrt(var + self.eps).expand(n, c)

    def forward(
        self,
        content: Tensor,
        style: Tensor | tuple[Tensor, Tensor],
        residual: Tensor | None = None,
    ) -> Tensor:
        check_image_batch(content, "content")
        if isinstance(style, (tuple, list)):
            if len(style) != 2:
                raise ValueError(f"style: expected a pair (mean, std), got {len(style)} values")
            mean, std = style
            for index, tensor in enumerate(style):
                check_tensor(tensor, f"style[{index}]")
                check_per_channel(tensor, f"style[{index}]", content)
        else:
            mean, std = self._mean_and_std(content, style)
        return instance_norm(
            content,
            std,
            mean,
            residual=residual,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual_first=self.residual_first,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"eps={self.eps}" + options_repr(self)
