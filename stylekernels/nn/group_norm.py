"""Group norm: a faster drop-in for torch's module."""

from torch import Tensor, nn

from stylekernels.nn.options import options_repr, set_options
from stylekernels.ops import group_norm


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with an activation and a residual in the same op.

    Arguments and state_dict are those of torch's class.

    Args:
        num_groups: groups of consecutive channels, a divisor of C.
        num_channels: C.
        eps: added to the variance.
        affine: learn a scale and a shift, (C,) each.
        activation, negative_slope, residual_first: as for `InstanceNorm2d`.

    Shape:
        x (N, C, ...), residual the same or None; to x's shape, dtype and layout.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if a dtype does not fit.

    Wu and He, "Group normalization", 2018.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
        residual_first: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **kwargs)
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
        activation, negative_slope = then or (self.activation, self.negative_slope)
        return group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            residual_first=self.residual_first,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + options_repr(self)
