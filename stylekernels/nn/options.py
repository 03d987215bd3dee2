"""Activation and residual: the options that all norm modules have."""

from torch import nn

from stylekernels.ops.arguments import check_choice, check_number
from stylekernels.tensors import ACTIVATIONS


def set_options(
    module: nn.Module, activation: str, negative_slope: float, residual_first: bool
) -> None:
    """Check the options, and store them as attributes of a module."""
    check_choice(activation, "activation", ACTIVATIONS)
    check_number(negative_slope, "negative_slope")
    module.activation = activation
    module.negative_slope = negative_slope
    module.residual_first = residual_first


def options_repr(module: nn.Module) -> str:
    """Return the text of the options that differ from their defaults, for the module's repr."""
    text = "" if module.activation == "none" else f", activation={module.activation}"
    if module.activation == "leaky_relu":
        text += f", negative_slope={module.negative_slope}"
    if module.residual_first:
        text += ", residual_first=True"
    return text
