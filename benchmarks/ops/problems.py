"""The tensors and functions of a case, and the work that it takes.

Work is the least that the op needs: bytes of tensors that are read and written once per pass, and
multiplications with one triangle of a symmetric product, even if contenders do more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import stylekernels
from benchmarks.dtypes import GPU_DTYPES
from benchmarks.ops import cudnn_graph, peers
from benchmarks.ops.cases import (
    CONV_VARIANTS,
    UPSAMPLE_VARIANTS,
    Case,
    ConvVariant,
    Shape,
    half,
    laid_out,
)

#: Shared memory of a cluster of eight multiprocessors of a Hopper GPU. Planes that fit are read
#: from memory once, however often they are used.
ON_CHIP_BYTES = 8 * 227 * 1024

#: The error of a normalised value, by the precision that it is computed in. A ReLU may pass a value
#: nearer to 0 than this in one contender and not in another. Such values get a gradient of 0: a
#: handful of them in millions would change results by 1e-3, a thousand times the tolerance.
KINK = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 3e-2}


@dataclass
class Problem:
    """A case with its tensors, ready to run.

    Attributes:
        inputs: arguments of all functions below.
        wanted: indices of the ``inputs`` that get gradients.
        grad: gradient of the result; None if only the forward pass is timed.
        ours: our op.
        expressions: the same in torch, by name.
        precision: precision of products: the dtype, or tf32 if PyTorch multiplies float32 in it.
        bytes, flops: the work, see the top of this file.
        counted: the tensors whose bytes are counted.
        cudnn_graph: builds the same as cuDNN's graph: expressions by the name of its plan. None
            where there is no such graph.
    """

    inputs: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    grad: Tensor | None
    ours: peers.Expression
    expressions: dict[str, peers.Expression]
    precision: str
    bytes: float
    flops: float
    counted: str = "each tensor once a pass"
    cudnn_graph: Callable[[], dict[str, peers.Expression]] | None = None


def prepare(case: Case, torch_device: str = "cpu") -> Problem:
    """Make the tensors of a case on a torch device, the same ones in every call."""
    generator = torch.Generator(torch_device).manual_seed(0)
    dtype = GPU_DTYPES[case.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=torch_device)

    def image(*shape: int) -> Tensor:
        return laid_out(normal(*shape).to(dtype), case.layout)

    return _PROBLEMS[case.op](case, normal, image)


Maker = Callable[..., Tensor]


def _grad(case: Case, image: Maker, shape: Shape) -> Tensor | None:
    return image(*shape) if case.backward else None


def _avoid_kink(
    grad: Tensor, normalized: peers.Expression, inputs: tuple[Tensor, ...], precision: str
) -> None:
    """Set the gradient to 0 at values that are too close to the kink of a ReLU."""
    values = normalized(*(tensor.float() for tensor in inputs))
    assert isinstance(values, Tensor)
    grad[values.abs() < KINK[precision]] = 0


def _instance_norm(case: Case, normal: Maker, image: Maker) -> Problem:
    _, c, *spatial = case.shape
    dtype = GPU_DTYPES[case.dtype]
    means = normal(c, *(1 for _ in spatial)).to(dtype)  # channels have different ones
    x = image(*case.shape) + means
    weight, bias = (normal(c) + 1).to(dtype), normal(c).to(dtype)
    ours: peers.Expression
    grad = _grad(case, image, case.shape)
    if case.variant in peers.ACTIVATIONS:
        inputs, expressions = (x, weight, bias), peers.instance_norm(case.variant)
        if grad is not None:
            _avoid_kink(grad, next(iter(peers.NORMS.values())), inputs, case.dtype)
        ours = partial(stylekernels.instance_norm, activation=case.variant)
        images = 5 if case.backward else 2  # x, y; x, grad, grad_x
    else:
        inputs, expressions = (x, weight, bias, image(*case.shape)), peers.instance_norm_residual()
        ours = _norm_residual
        images = 6 if case.backward else 3
    again = _read_again(case, math.prod(spatial) * x.element_size())
    return Problem(
        inputs,
        tuple(range(len(inputs))),
        grad,
        ours,
        expressions,
        case.dtype,
        bytes=(images + again) * x.nbytes,
        flops=0,
        counted=f"{images} images" + (f", {again} of them twice" if again else ""),
    )


def _read_again(case: Case, plane_bytes: int) -> int:
    """Return the number of images that a GPU must read a second time after computing statistics,
    because their planes do not fit: x forward, and x and the gradient backward."""
    if case.device == "cpu":  # the copy that it is compared to uses the same caches
        return 0
    forward = 1 if plane_bytes > ON_CHIP_BYTES else 0
    backward = 2 if case.backward and 2 * plane_bytes > ON_CHIP_BYTES else 0
    return forward + backward


def _norm_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return stylekernels.instance_norm(x, weight, bias, residual=residual)


def _group_norm(case: Case, normal: Maker, image: Maker) -> Problem:
    c, dtype = case.shape[1], GPU_DTYPES[case.dtype]
    groups = math.gcd(32, c)
    x = image(*case.shape) + normal(c, 1, 1).to(dtype)  # channels have different means
    images = 5 if case.backward else 2  # x, y; x, grad, grad_x
    return Problem(
        (x, (normal(c) + 1).to(dtype), normal(c).to(dtype)),
        (0, 1, 2),
        _grad(case, image, case.shape),
        lambda x, weight, bias: stylekernels.group_norm(x, groups, weight, bias, activation="silu"),
        peers.group_norm_silu(groups),
        case.dtype,
        bytes=images * x.nbytes,
        flops=0,
        counted=f"{images} images",
    )


def _instance_norm_stats(case: Case, normal: Maker, image: Maker) -> Problem:
    x = image(*case.shape)
    return Problem(
        (x,),
        (0,),
        None,
        stylekernels.instance_norm_stats,
        peers.instance_norm_stats(),
        case.dtype,
        bytes=x.nbytes,
        flops=0,
    )


def _gram_matrix(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    x = image(*case.shape).relu_()  # like the features of a classifier
    expressions = peers.gram_matrix(x.dtype, 1 / (c * h * w))
    flops = n * c * (c + 1) * h * w
    return Problem(
        (x,),
        (0,),
        None,
        stylekernels.gram_matrix,
        expressions,
        case.dtype,
        bytes=x.nbytes + n * c * c * torch.float32.itemsize,
        flops=flops,
    )


def _gram_loss(case: Case, normal: Maker, image: Maker) -> Problem:
    style_loss, center = case.variant.startswith("style_loss"), case.variant.endswith("center")
    shapes = style_layers(case.shape) if style_loss else (case.shape,)
    features = tuple(image(*shape).relu_() for shape in shapes)
    targets = tuple(_other_gram(normal, shape) for shape in shapes)
    flops = sum(n * c * (c + 1) * h * w + 2 * n * c * c * h * w for n, c, h, w in shapes)
    scales = [1 / (c * h * w) for _, c, h, w in shapes]
    return Problem(
        (*features, *targets),
        tuple(range(len(shapes))),
        targets[0].new_ones(()),
        partial(_sum_of_gram_losses if style_loss else stylekernels.gram_loss, center=center),
        peers.gram_loss(features[0].dtype, scales, center),
        case.dtype,
        bytes=3 * sum(x.nbytes for x in features),
        flops=flops,
    )


def _sum_of_gram_losses(*tensors: Tensor, center: bool) -> Tensor:
    layers = len(tensors) // 2
    return stylekernels.gram_losses(tensors[:layers], tensors[layers:], center=center).sum()


def style_layers(first: Shape) -> tuple[Shape, ...]:
    """Return the shapes of VGG's relu1_1 to relu5_1, the layers of the style loss, from the
    first."""
    n, c, h, w = first
    factors = ((1, 1), (2, 2), (4, 4), (8, 8), (8, 16))
    return tuple(
        (n, c * more, max(1, h // smaller), max(1, w // smaller)) for more, smaller in factors
    )


def _other_gram(normal: Maker, shape: Shape) -> Tensor:
    """Return half the Gram matrix of other features. It differs so much from that of a case that
    the difference, the gradient, survives rounding to bfloat16."""
    n, c, h, w = shape
    style = normal(n, c, min(h * w, 4096)).relu_()
    return torch.bmm(style, style.mT) * (0.5 / (c * style.shape[2]))


def _convolution_precision(case: Case) -> str:
    in_tf32 = case.device == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if in_tf32 and case.dtype == "float32" else case.dtype


def _upsample_block(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    out = half(c)
    upsample, kernel, padding_mode = UPSAMPLE_VARIANTS[case.variant]
    dtype, x = GPU_DTYPES[case.dtype], image(*case.shape)
    sizes = (c, out) if upsample == "transpose" else (out, c)
    weight = (normal(*sizes, kernel, kernel) / (c * kernel * kernel / 4) ** 0.5).to(dtype)
    if case.layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    inputs = (x, weight, (normal(out) + 1).to(dtype), normal(out).to(dtype))
    precision = _convolution_precision(case)
    normalized = next(iter(peers.upsample_norm(upsample, padding_mode).values()))
    grad = _grad(case, image, (n, out, 2 * h, 2 * w))
    if grad is not None:
        _avoid_kink(grad, normalized, inputs, precision)
    ours = partial(
        stylekernels.upsample_block, upsample=upsample, padding_mode=padding_mode, activation="relu"
    )
    # An output pixel multiplies a quarter of a transposed kernel, or 2 x 2 sums of the taps of a 3
    # x 3 kernel over repeated pixels.
    taps = kernel * kernel / 4 if upsample == "transpose" else ((kernel + 1) / 2) ** 2
    flops = 2 * n * c * out * 4 * h * w * taps
    y_bytes = n * out * 4 * h * w * x.element_size()
    times = 3 if case.backward else 1  # and a product for each gradient, of x and the kernel
    return Problem(
        inputs,
        (0, 1, 2, 3),
        grad,
        ours,
        peers.upsample_block(upsample, padding_mode),
        precision,
        bytes=times * (x.nbytes + y_bytes),
        flops=times * flops,
    )


def _norm_conv2d(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    variant, dtype, x = CONV_VARIANTS[case.variant], GPU_DTYPES[case.dtype], image(*case.shape)
    out, kernel = variant.out_channels(c), variant.kernel
    transposed = variant.upsample == "transpose"
    sizes = (c, out) if transposed else (out, c)
    weight = (normal(*sizes, kernel, kernel) / (c * kernel * kernel) ** 0.5).to(dtype)
    if case.layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    inputs = (x, weight)
    if variant.norm:
        # The statistics of x are inputs, since the convolution before computes them.
        # norm_scale_shift is timed with the op.
        inputs += ((normal(c) + 1).to(dtype), normal(c).to(dtype))
        inputs += peers.instance_norm_stats()["var_mean"](x)
    if variant.skip:
        inputs += (image(*case.shape),)
    # Upsampling modes count their taps as in the upsampling block.
    scale = 2 if variant.upsample != "none" else 1 / variant.stride
    taps = {"none": kernel**2, "transpose": kernel**2 / 4, "nearest": ((kernel + 1) / 2) ** 2}
    pixels = n * math.ceil(h * scale) * math.ceil(w * scale)
    read_and_written = x.nbytes * (3 if variant.skip else 1) + pixels * out * x.element_size()
    return Problem(
        inputs,
        (0,),
        None,
        partial(_deferred_norm_conv2d, variant),
        peers.norm_conv2d(
            variant.stride, variant.padding_mode, variant.upsample, variant.norm, variant.skip
        ),
        _convolution_precision(case),
        bytes=read_and_written,
        flops=2 * pixels * c * out * taps[variant.upsample],
        cudnn_graph=_cudnn_graph_of(case, variant, x, weight),
    )


def _cudnn_graph_of(
    case: Case, variant: ConvVariant, x: Tensor, weight: Tensor
) -> Callable[[], dict[str, peers.Expression]] | None:
    """Return the builder of cuDNN's graph, if one computes the same. It has one scale and shift for
    all images, which is right for a single one."""
    same = variant.norm and not variant.skip and variant.stats
    same = same and (variant.padding_mode, variant.upsample) == ("zeros", "none")
    taken = case.device == "cuda" and case.layout == "channels_last" and x.dtype.itemsize == 2
    if not (same and taken and x.shape[0] == 1):
        return None
    return partial(cudnn_graph.norm_conv2d, x, weight, variant.stride)


def _deferred_norm_conv2d(
    variant: ConvVariant,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    scale_shift = None
    if mean is not None and var is not None:
        scale_shift = stylekernels.norm_scale_shift(mean, var, norm_weight, norm_bias)
    y, _mean, _var, given = stylekernels.norm_conv2d(
        x,
        weight,
        scale_shift=scale_shift,
        residual=residual,
        return_input=variant.skip,
        activation="relu" if variant.norm and not variant.skip else "none",
        stride=variant.stride,
        padding_mode=variant.padding_mode,
        upsample=variant.upsample,
        padding=0 if variant.upsample == "transpose" else variant.kernel // 2,
        return_stats=variant.stats,
    )
    return y if given is None else (y, given)


_PROBLEMS: dict[str, Callable[[Case, Maker, Maker], Problem]] = {
    "instance_norm": _instance_norm,
    "instance_norm_stats": _instance_norm_stats,
    "gram_matrix": _gram_matrix,
    "gram_loss": _gram_loss,
    "group_norm": _group_norm,
    "norm_conv2d": _norm_conv2d,
    "upsample_block": _upsample_block,
}
