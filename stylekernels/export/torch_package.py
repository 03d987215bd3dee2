"""A style generator as a compiled package for C++ programs."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from stylekernels import native
from stylekernels.files import write_whole
from stylekernels.inference.layers import can_plan, layers_of
from stylekernels.models.files import StyleGenerator
from stylekernels.ops.norm_conv2d import norm_conv2d
from stylekernels.ops.norm_scale_shift import norm_scale_shift

_LARGEST = 1 << 14  # pixels a side


class FusedGenerator(nn.Module):
    """A generator as a chain of `norm_conv2d`, which PyTorch can export.

    The sides of frames are multiples of four: PyTorch cannot prove that what is cut off another
    size leaves that size.

    Args:
        generator: an unmodified StyleGenerator.
        dtype: of the arithmetic.

    Raises:
        TypeError: for another network.
    """

    def __init__(self, generator: StyleGenerator, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if not can_plan(generator):
            raise TypeError(
                f"generator: expected an unmodified StyleGenerator, got {type(generator).__name__}"
            )
        self.dtype = dtype
        self._layers = layers_of(generator, dtype)
        for index, layer in enumerate(self._layers):
            scale, shift, _ = layer.norm or (None, None, None)
            tensors = {"weight": layer.weight, "bias": layer.bias, "scale": scale, "shift": shift}
            for name, tensor in tensors.items():
                if tensor is not None:
                    self.register_buffer(f"{name}{index}", tensor)

    def forward(self, frames: Tensor) -> Tensor:
        """Stylise frames, (N, H, W, 3) uint8, RGB; return pictures of the same shape and dtype."""
        x = frames.permute(0, 3, 1, 2).to(self.dtype)
        scale_shift = skip = None
        for index, layer in enumerate(self._layers):
            found = norm_conv2d(
                x,
                getattr(self, f"weight{index}"),
                bias=getattr(self, f"bias{index}", None),
                scale_shift=scale_shift,
                activation=layer.activation,
                negative_slope=layer.negative_slope,
                residual=skip if layer.adds_skip else None,
                return_input=layer.keeps_skip,
                stride=layer.stride,
                padding=layer.padding,
                padding_mode=layer.padding_mode,
                upsample=layer.upsample,
                return_stats=layer.norm is not None,
            )
            x, skip = found.y, found.input if layer.keeps_skip else skip
            if layer.norm is not None:
                scale, shift = (getattr(self, f"{name}{index}") for name in ("scale", "shift"))
                scale_shift = norm_scale_shift(found.mean, found.var, scale, shift, layer.norm[2])
        return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check_tools() -> None:
    """Refuse a machine on which no package can be compiled.

    Raises:
        OSError: if this library's ops for the CPU are missing, or a C++ compiler.
    """
    from torch._inductor import config, cpp_builder, exc

    if native.cpu_missing is not None:
        raise OSError(f"needs this library's kernels for the CPU, which are {native.cpu_missing}")
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise OSError(
            f"needs a C++ compiler, and {config.cpp.cxx[-1]} does not run; install one, or set the "
            "environment variable CXX to the name of another"
        ) from error


def write_package(
    path: str | os.PathLike[str], generator: StyleGenerator, dtype: torch.dtype = torch.float32
) -> None:
    """Compile a generator with AOTInductor, for the kind of machine that this runs on.

    The package maps frames, (1, H, W, 3) uint8 with sides that are multiples of four, to pictures.
    A program that loads it needs libtorch and the ops of ``libstylekernels_cpu.so``.

    Args:
        path: of the package, ending in ``.pt2``.
        generator: an unmodified StyleGenerator.
        dtype: of the arithmetic.

    Raises:
        TypeError: for another network.
        OSError: if the file cannot be written, or as `check_tools`.
    """
    check_tools()
    height, width = (4 * torch.export.Dim(name, min=4, max=_LARGEST // 4) for name in ("h", "w"))
    example = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            FusedGenerator(generator.eval(), dtype),
            (example,),
            dynamic_shapes=({1: height, 2: width},),
        )

        def write(part: Path) -> None:
            compiled = part.with_suffix(".pt2")  # the compiler insists on the ending
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(compiled))
                os.replace(compiled, part)
            finally:
                compiled.unlink(missing_ok=True)

        write_whole(path, write)
