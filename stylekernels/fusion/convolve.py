"""A convolution in the graph of a fused network."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from stylekernels.fusion.geometry import Geometry
from stylekernels.namespace import ops
from stylekernels.ops import norm_conv2d, norm_scale_shift
from stylekernels.ops.arguments import check_conv_geometry
from stylekernels.ops.dispatch import choose, use_reference
from stylekernels.ops.transforms import inside_transform
from stylekernels.reference.norm_conv2d import normalized_input
from stylekernels.tensors import conv_channels, conv_size, wide_dtype

_T = TypeVar("_T")


def naming_layer(forward: Callable[..., _T]) -> Callable[..., _T]:
    """Decorate the forward of a module of a fused graph: its errors begin with its attribute
    ``layer``, the name of the model's layer."""

    @functools.wraps(forward)
    def named(self, *args) -> _T:
        try:
            return forward(self, *args)
        except (TypeError, ValueError, RuntimeError) as error:
            if type(error) not in (TypeError, ValueError, RuntimeError):
                raise
            raise type(error)(f"{self.layer}: {error}") from error

    return named


class _Packed(NamedTuple):
    """Weights of a version, packed for the kernels of an implementation."""

    weight: Tensor
    version: int
    used: str
    contiguous: Tensor
    packed: Tensor

    def fits(self, weight: Tensor, used: str) -> bool:
        same = self.weight.is_set_to(weight) and self.version == weight._version
        return same and self.used == used


class Convolve(nn.Module):
    """`norm_conv2d` in channels_last, with weights that are packed once.

    It has no parameters: the network's own are arguments. A changed weight is noticed if it was
    changed by PyTorch's own operations, and not through ``.data``.

    Args:
        layer: the convolution's name in the network, for errors.
        geometry: which pixels are convolved.
        activation, negative_slope: applied to the normalised input.
        returns_input: whether the normalised input is returned.

    Attributes:
        next_eps: eps of the norm of the output, if its scale and shift are returned; None if not.
    """

    def __init__(
        self,
        layer: str,
        geometry: Geometry,
        activation: str,
        negative_slope: float,
        returns_input: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self._mode = (
            geometry.stride,
            geometry.padding,
            geometry.padding_mode,
            geometry.upsample,
        )
        self._activation = activation, negative_slope
        self._returns_input = returns_input
        self.next_eps: float | None = None
        self._known: _Packed | None = None

    @naming_layer
    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale_shift: Tensor | None,
        residual: Tensor | float | None,
        next_weight: Tensor | None = None,
        next_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Convolve.

        Args:
            x: (N, Cin, H, W).
            weight, bias: the convolution's.
            scale_shift: as for `norm_conv2d`.
            residual: any term that PyTorch can add.
            next_weight, next_bias: scale and shift of the norm of the output.

        Returns:
            The output; ``scale_shift`` for its reader; the normalised input. None for what is not
            asked for.
        """
        activation, negative_slope = self._activation
        if not can_be_residual(x, residual):
            x = normalized_input(x, scale_shift, activation, negative_slope, None) + residual
            scale_shift, activation, residual = None, "none", None
        if x.dim() == 4 and not inside_transform():
            x = x.contiguous(memory_format=torch.channels_last)
        residual = residual_like(x, residual)
        arguments = x, weight, bias, scale_shift, activation, negative_slope, residual
        if self._can_pack(x, weight):
            return self._run(*arguments, next_weight, next_bias)
        stride, padding, padding_mode, upsample = self._mode
        output = norm_conv2d(
            x,
            weight,
            bias=bias,
            scale_shift=scale_shift,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            return_input=self._returns_input,
            stride=stride,
            padding=padding,
            padding_mode=padding_mode,
            upsample=upsample,
            return_stats=self.next_eps is not None,
        )
        following = None
        if self.next_eps is not None:
            norm = (next_weight, next_bias, self.next_eps)
            following = norm_scale_shift(output.mean, output.var, *norm)
        return output.y, following, output.input

    def __getstate__(self) -> dict[str, object]:
        """Leave the packed weights out of files and copies: they are made anew."""
        return self.__dict__ | {"_known": None}

    def _can_pack(self, x: Tensor, weight: Tensor) -> bool:
        """Return whether `norm_conv2d_out` takes these tensors, now."""
        return (
            not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_grad_enabled()
            and not inside_transform()
            and x.dim() == 4
            and x.numel() > 0
            and x.shape[1] == conv_channels(weight, self._mode[3])[0]
            and (x.dtype, x.device) == (weight.dtype, weight.device)
            and not weight.is_inference()  # of which no changes can be noticed
            and not use_reference("norm_conv2d", x)
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale_shift: Tensor | None,
        activation: str,
        negative_slope: float,
        residual: Tensor | None,
        next_weight: Tensor | None,
        next_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        kernel, (n, _, h, w), wide = weight.shape[2], x.shape, wide_dtype(x)
        stride, padding, padding_mode, upsample = self._mode
        check_conv_geometry(x, kernel, stride, padding, padding_mode, upsample)
        weight, packed = self._pack(weight.detach(), choose("norm_conv2d", x.device.type))
        outputs = conv_channels(weight, upsample)[1]
        height, width = conv_size((h, w), kernel, stride, padding, upsample)
        y = x.new_empty((n, height, width, outputs)).permute(0, 3, 1, 2)
        given = torch.empty_like(x) if self._returns_input else None
        following = None
        if self.next_eps is not None:
            following = x.new_empty((n, outputs, 2), dtype=wide)
            next_weight, next_bias = (
                None if each is None else each.to(wide) for each in (next_weight, next_bias)
            )
        needed = ops.norm_conv2d_workspace(weight, n, h, w, *self._mode)
        ops.norm_conv2d_out(
            x,
            weight,
            packed,
            None if bias is None else bias.to(wide),
            scale_shift,
            activation,
            negative_slope,
            residual,
            *self._mode,
            next_weight,
            next_bias,
            self.next_eps or 0.0,
            y,
            given,
            following,
            torch.empty(needed, dtype=torch.float64, device=x.device),
        )
        return y, following, given

    def _pack(self, weight: Tensor, used: str) -> tuple[Tensor, Tensor]:
        """Return contiguous weights, and weights as the kernels of an implementation read them."""
        known = self._known
        if known is None or not known.fits(weight, used):
            contiguous = weight.contiguous()
            packed = ops.norm_conv2d_pack(contiguous, *self._mode)
            self._known = known = _Packed(weight, weight._version, used, contiguous, packed)
        return known.contiguous, known.packed


def can_be_residual(x: Tensor, residual: Tensor | float | None) -> bool:
    """Return whether a sum with x has x's shape and dtype."""
    if residual is None:
        return True
    if not isinstance(residual, Tensor) or (residual.dtype, residual.device) != (x.dtype, x.device):
        return False
    sizes = zip(residual.shape[::-1], x.shape[::-1], strict=False)
    return residual.dim() <= x.dim() and all(size in (1, of_x) for size, of_x in sizes)


def residual_like(x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Return a residual in x's shape and layout."""
    if residual is None or (residual.shape == x.shape and residual.stride() == x.stride()):
        return residual
    return torch.empty_like(x).copy_(residual)
