"""Convolutions for tests: modes, inputs, PyTorch's own results, and the check of norm_conv2d."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import norm_conv2d
from tests.conftest import assert_accurate, assert_layout_of, poisoned_memory, random
from tests.instance_norms import ACTIVATIONS

PADDING_MODES = ("zeros", "reflect", "replicate")
TORCH_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}
# Upsampling, kernel and stride go together; the padding of a mode that has no choice is given
# by `padding_of`.
MODES = (
    *(("none", kernel, stride) for kernel in (1, 2, 3, 4, 5, 7, 9) for stride in (1, 2)),
    *(("nearest", kernel, 1) for kernel in (3, 5, 7, 9)),
    *(("transpose", kernel, 1) for kernel in (3, 4)),
)
FEW_MODES = (("none", 3, 1), ("none", 9, 2), ("nearest", 3, 1), ("transpose", 4, 1))
# Strided modes that Winograd's method takes on the CPU.
STRIDED_MODES = (("none", 3, 2), ("none", 4, 2))


def convolution_in_torch(x, weight, bias, upsample, padding_mode) -> Tensor:
    kernel = weight.shape[-1]
    if upsample == "nearest":
        large = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(F.pad(large, [kernel // 2] * 4, TORCH_MODES[padding_mode]), weight, bias)
    border = 0 if padding_mode == "zeros" else 1
    if border:
        x = F.pad(x, [1] * 4, TORCH_MODES[padding_mode])
    padding = 1 + 2 * border
    options = {"stride": 2, "padding": padding, "output_padding": 4 - kernel}
    return F.conv_transpose2d(x, weight, bias, **options)


def padding_of(mode: tuple[str, int, int], border: str) -> int:
    upsample, kernel, _ = mode
    if upsample == "none":
        return {"none": 0, "half": kernel // 2, "most": kernel - 1}[border]
    return kernel // 2 if upsample == "nearest" else 0


def half_padded(mode: tuple[str, int, int]) -> dict:
    upsample, _, stride = mode
    return {"upsample": upsample, "stride": stride, "padding": padding_of(mode, "half")}


def is_possible(case: dict) -> bool:
    """Return whether the image is large enough to be convolved and to reflect."""
    upsample, kernel, _ = case["mode"]
    smallest = min(case["size"])
    padding = padding_of(case["mode"], case["border"])
    if upsample == "none" and smallest + 2 * padding < kernel:
        return False
    border = 1 if upsample == "transpose" else padding
    return case["padding_mode"] != "reflect" or border < smallest * (1 + (upsample == "nearest"))


def per_plane(scale_shift: Tensor, which: int, dtype: torch.dtype) -> Tensor:
    return scale_shift[:, :, which, None, None].to(dtype)


def in_torch(
    x,
    weight,
    bias=None,
    scale_shift=None,
    residual=None,
    *,
    activation="none",
    stride=1,
    padding=0,
    padding_mode="zeros",
    upsample="none",
) -> tuple[Tensor, Tensor]:
    """Output and input of the convolution by PyTorch's ops. In half precision the input is computed
    in float32 and rounded once, which is stricter than a chain of half-precision ops."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    z = x.to(wide)
    if scale_shift is not None:
        z = z * per_plane(scale_shift, 0, wide) + per_plane(scale_shift, 1, wide)
    z = ACTIVATIONS[activation](z)
    if residual is not None:
        z = z + residual.to(wide)
    z = given = z.to(x.dtype)
    if upsample == "none":
        if padding:
            z = F.pad(z, [padding] * 4, TORCH_MODES[padding_mode])
        y = F.conv2d(z, weight, stride=stride)
    else:
        y = convolution_in_torch(z, weight, None, upsample, padding_mode)
    if bias is not None:
        y = (y.to(wide) + bias.to(wide)[:, None, None]).to(x.dtype)
    return y, given


def inputs(
    mode: tuple[str, int, int],
    shape,
    out_channels,
    dtype,
    layout="contiguous",
    device="cpu",
    *,
    shift=0.0,
    scale_shift=False,
    bias=None,
    residual=None,
) -> dict[str, Tensor]:
    """Return images whose channel means are near ``shift``, weights, and optional arguments."""
    upsample, kernel, _ = mode
    n, channels = shape[:2]
    tensors = {"x": random(*shape, dtype=dtype, layout=layout, device=device, shift=shift)}
    sizes = (channels, out_channels) if upsample == "transpose" else (out_channels, channels)
    spread = (channels * kernel * kernel) ** -0.5
    tensors["weight"] = random(
        *sizes, kernel, kernel, dtype=dtype, device=device, scale=spread, seed=1
    )
    if scale_shift:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = random(n, channels, dtype=wide, device=device, seed=2, shift=1.0)
        offset = random(n, channels, dtype=wide, device=device, seed=3)
        tensors["scale_shift"] = torch.stack((scale, offset - scale * shift), 2)
    if bias is not None:
        bias_dtype = torch.float32 if bias == "float32" else dtype
        tensors["bias"] = random(out_channels, dtype=bias_dtype, device=device, seed=4, shift=1.0)
    if residual is not None:
        tensors["residual"] = random(
            *shape, dtype=dtype, layout=residual, device=device, seed=5, shift=0.5
        )
    return tensors


def assert_stats_of(y: Tensor, mean: Tensor, var: Tensor) -> None:
    """The statistics must be those of the stored, rounded ``y``."""
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    exact_var, exact_mean = torch.var_mean(y.double(), (2, 3), correction=0)
    torch_var, torch_mean = torch.var_mean(y.to(wide), (2, 3), correction=0)
    assert_accurate(mean, torch_mean, exact_mean, "mean")
    assert_accurate(var, torch_var, exact_var, "variance")


def check(
    tensors: dict[str, Tensor], *, return_input=True, return_stats=True, winograd=True, **options
) -> None:
    """Check output, input and statistics of a call by the accuracy rule.

    With ``winograd`` a kernel of 3 in float32 may have a larger error, since Winograd's method may
    compute it.
    """
    x, weight = tensors["x"], tensors["weight"]
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    with poisoned_memory():
        y, mean, var, given = norm_conv2d(
            **tensors,
            **options,
            negative_slope=0.2,
            return_input=return_input,
            return_stats=return_stats,
        )
    wide = {name: tensor.double().contiguous() for name, tensor in tensors.items()}
    exact, exact_given = in_torch(**wide, **options)
    torchs, torchs_given = in_torch(**tensors, **options)

    direct = x.dtype != torch.float32 or weight.shape[2] != 3 or options.get("stride", 1) != 1
    direct = direct or not winograd
    assert_accurate(y, torchs, exact, "output", at_least=0.0 if direct else 5e-6)
    assert_layout_of(y, x)
    assert (given is not None) == return_input
    if given is not None:
        assert_accurate(given, torchs_given, exact_given, "input")
        assert_layout_of(given, x)
    assert (mean is not None) == (var is not None) == return_stats
    if mean is not None:
        assert_stats_of(y, mean, var)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, copies[name]), f"{name} was modified"
