"""A rival of `norm_conv2d` on a GPU: cuDNN's graph API, by the package nvidia-cudnn-frontend.

One graph multiplies x by a scale, adds a shift, applies ReLU, convolves, and sums the outputs of
each channel and their squares. It pads with zeros only. Its scale and shift are of channels, not of
images and channels. cuDNN 9.28 has engines for it in float16, not in bfloat16, on sm_80 to sm_90,
and only for scale and shift in float16.
"""

import importlib.util
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stylekernels
from benchmarks.ops.peers import Expression

#: The package on PyPI; it is imported as ``cudnn``.
PACKAGE = "nvidia-cudnn-frontend"


def is_installed() -> bool:
    """Return whether the package is installed."""
    return importlib.util.find_spec("cudnn") is not None


def installed_version() -> str:
    """Return the version of the installed package."""
    return version(PACKAGE)


class ConvGraph(NamedTuple):
    """A graph and its tensors."""

    graph: Any
    x: Any
    weight: Any
    scale: Any
    shift: Any
    y: Any
    sums: Any
    squares: Any


def describe(x: Tensor, weight: Tensor, stride: int, **options: object) -> ConvGraph:
    """Return the graph for tensors like these. Intermediate values are float32.

    Args:
        x: (N, Cin, H, W), float16 or bfloat16, channels_last.
        weight: (Cout, Cin, K, K), as x. The border has half the kernel's width.
        stride: the convolution's.
        options: more arguments of ``cudnn.pygraph``, for example ``handle``.
    """
    import cudnn

    types = cudnn.data_type
    dtype = {torch.float16: types.HALF, torch.bfloat16: types.BFLOAT16}[x.dtype]
    graph = cudnn.pygraph(
        io_data_type=dtype,
        intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT,
        **options,
    )

    def tensor(name: str, size: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        return graph.tensor(name=name, dim=list(size), stride=list(strides), data_type=dtype)

    channels = x.shape[1]
    of_channels = (1, channels, 1, 1), (channels, 1, channels, channels)
    x_in = tensor("x", x.shape, x.stride())
    weight_in = tensor("weight", weight.shape, weight.stride())
    scale, shift = (tensor(name, *of_channels) for name in ("scale", "shift"))
    scaled = graph.scale(name="multiply", input=x_in, scale=scale)
    shifted = graph.bias(name="add", input=scaled, bias=shift)
    border = [weight.shape[2] // 2] * 2
    y = graph.conv_fprop(
        name="convolve",
        image=graph.relu(name="relu", input=shifted),
        weight=weight_in,
        padding=border,
        stride=[stride] * 2,
        dilation=[1, 1],
    )
    sums, squares = graph.genstats(name="sums", input=y)
    y.set_output(True).set_data_type(dtype)
    for result in (sums, squares):
        result.set_output(True).set_data_type(types.FLOAT)
    return ConvGraph(graph, x_in, weight_in, scale, shift, y, sums, squares)


def norm_conv2d(x: Tensor, weight: Tensor, stride: int) -> dict[str, Expression]:
    """Return expressions of (x, weight, norm_weight, norm_bias, mean, var), one for each plan that
    cuDNN proposes for tensors like these on a GPU, by the plan's name. Each also computes the sums.

    Raises:
        Exception: of cuDNN's own types, if it has no plan.
    """
    import cudnn

    handle = cudnn.create_handle()
    described = describe(x, weight, stride, handle=handle)
    graph = described.graph
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans(cudnn.build_plan_policy.ALL)
    n, _, height, width = x.shape
    outputs = weight.shape[0]
    size = n, -(-height // stride), -(-width // stride), outputs

    def of_plan(index: int) -> Expression:
        def run(
            x: Tensor,
            weight: Tensor,
            norm_weight: Tensor,
            norm_bias: Tensor,
            mean: Tensor,
            var: Tensor,
        ) -> Tensor:
            scale_shift = stylekernels.norm_scale_shift(mean, var, norm_weight, norm_bias)[0]
            scale, shift = x.new_empty(2, x.shape[1]).copy_(scale_shift.T)
            y = x.new_empty(size).permute(0, 3, 1, 2)
            sums, squares = x.new_empty((2, outputs), dtype=torch.float32)
            needed = graph.get_workspace_size_plan_at_index(index)
            workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device=x.device)
            given = {
                described.x: x,
                described.weight: weight,
                described.scale: scale,
                described.shift: shift,
                described.y: y,
                described.sums: sums,
                described.squares: squares,
            }
            pointers = {tensor: values.data_ptr() for tensor, values in given.items()}
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
            graph.execute_plan_at_index(pointers, workspace.data_ptr(), index, handle)
            return y

        return run

    plans = range(graph.get_execution_plan_count())
    return {graph.get_plan_name_at_index(index): of_plan(index) for index in plans}
