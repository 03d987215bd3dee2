"""``python -m benchmarks.resources``: registers and shared memory of GPU kernels, without a GPU.

Every launcher of ``stylekernels.triton`` runs on tensors without memory, in the shapes of style
networks, and Triton compiles its kernels for several GPUs. A spilled register is one that did not
fit and is kept in memory. The exit code says whether a default configuration spills.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

if os.environ.get("TRITON_INTERPRET") == "1":
    raise SystemExit("benchmarks.resources: kernels are compiled here; unset TRITON_INTERPRET")

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.ops.problems import style_layers
from stylekernels.triton import gram_matrix, instance_norm, norm_conv2d

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: Bytes of shared memory that a program may use, on the smallest GPU that a target stands for:
#: sm_80 stands for desktop GPUs, sm_86 and sm_89, too.
SHARED = {"sm_80": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
#: Targets where no default configuration may spill. On others a few spill 8 to 24 bytes a thread.
SPILL_FREE = ("sm_90",)
HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Resources:
    """Use of one kernel: registers and spilled bytes of a thread, shared memory of a program."""

    registers: int
    spilled: int
    shared: int
    warps: int


class _NoDevice:
    """A driver for Triton that has no device; it reports each target in turn."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.name)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]


def image(*shape: int, dtype: torch.dtype = HALF, channels_last: bool = True) -> Tensor:
    """Return an image without memory."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _numbers(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _instance_norms() -> Iterator[tuple[str, Callable[[], object]]]:
    shapes = ((1, 32, 1080, 1920), (1, 128, 128, 128), (8, 64, 64, 64), (4, 17, 9, 7))
    for dtype in (HALF, FLOAT, torch.float16, DOUBLE):
        wide = DOUBLE if dtype == DOUBLE else FLOAT
        for shape in shapes[: 4 if dtype in (HALF, FLOAT) else 1]:
            for channels_last in (False, True):
                x = image(*shape, dtype=dtype, channels_last=channels_last)
                gain, mean = _numbers(shape[1], dtype=wide), _numbers(2, *shape[:2], dtype=wide)
                rstd = mean[0]
                name = f"{'x'.join(map(str, shape))} {_label(dtype, channels_last)}"
                options = (
                    (None, "relu", 1),
                    (x, "none", 1),
                    (x, "tanh", 1),
                    (None, "silu", shape[1]),
                )
                for residual, activation, group in options:
                    extra = f" {activation}{' residual' if residual is not None else ''}"
                    extra += f" group {group}" if group > 1 else ""
                    yield (
                        name + extra,
                        lambda x=x, r=residual, a=activation, g=gain, n=group: (
                            instance_norm.instance_norm(
                                x, g, g, r, None, None, a, 0.01, True, 1e-5, False, n
                            )
                        ),
                    )
                    yield (
                        name + extra,
                        (
                            lambda x=x, r=residual, a=activation, g=gain, m=mean, s=rstd, n=group: (
                                instance_norm.instance_norm_backward(
                                    x, x, g, g, r, m, s, a, 0.01, True, r is not None, False, n
                                )
                            )
                        ),
                    )


def _grams() -> Iterator[tuple[str, Callable[[], object]]]:
    for c, size in ((64, 256), (128, 128), (512, 32)):
        for dtype in (HALF, FLOAT, torch.float16, DOUBLE):
            for channels_last in (False, True):
                x = image(4, c, size, size, dtype=dtype, channels_last=channels_last)
                wide = DOUBLE if dtype == DOUBLE else FLOAT
                square, mean = _numbers(4, c, c, dtype=wide), _numbers(2, 4, c, dtype=wide)
                name = f"4x{c}x{size}x{size} {_label(dtype, channels_last)}"
                yield name, lambda x=x: gram_matrix.gram_matrix(x, None, False)
                yield name, lambda x=x, t=square: gram_matrix.gram_loss(x, t, None, False)
                yield name, lambda x=x, g=square: gram_matrix.gram_matrix_backward(g, x, None, None)
                if c == 128:
                    yield f"{name} center", lambda x=x: gram_matrix.gram_matrix(x, None, True)
                    yield (
                        f"{name} center",
                        lambda x=x, g=square, m=mean: gram_matrix.gram_matrix_backward(
                            g, x, m, None
                        ),
                    )
    for dtype in (HALF, FLOAT, torch.float16, DOUBLE):
        wide = DOUBLE if dtype == DOUBLE else FLOAT
        for channels_last in (False, True):
            features = [
                image(*shape, dtype=dtype, channels_last=channels_last)
                for shape in style_layers((4, 64, 256, 256))
            ]
            squares = [_numbers(4, x.shape[1], x.shape[1], dtype=wide) for x in features]
            slope = _numbers(len(features), dtype=wide)
            name = f"{len(features)} layers {_label(dtype, channels_last)}"
            # In float64 the products of centred layers spill 8 bytes a thread (sm_90, NCHW).
            for center in (False,) if dtype == DOUBLE else (False, True):
                means = [_numbers(2, 4, x.shape[1], dtype=wide) for x in features if center]
                yield (
                    name + center * " center",
                    lambda x=features, t=squares, c=center: gram_matrix.gram_losses(x, t, None, c),
                )
                yield (
                    name + center * " center",
                    lambda x=features, g=squares, m=means, s=slope: (
                        gram_matrix.gram_losses_backward(x, g, m, s, None)
                    ),
                )


def _more_than_2_31_elements() -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls whose offsets take 64 bits."""
    for c, side, channels_last in ((1, 46345, False), (4, 23173, True)):
        x, mean = image(1, c, side, side, channels_last=channels_last), _numbers(2, 1, c)
        gain, square = _numbers(c), _numbers(1, c, c)
        name = f"{c}x{side}x{side} {_label(HALF, channels_last)}"
        forward = (None, None, None, "relu", 0.01, True, 1e-5, False, 1)
        backward = (mean, mean[0], "relu", 0.01, True, False, False, 1)
        yield (
            name,
            lambda x=x, g=gain, o=forward: instance_norm.instance_norm(x, g, g, *o),
        )
        yield (
            name,
            lambda x=x, g=gain, o=backward: instance_norm.instance_norm_backward(
                x, x, g, g, None, *o
            ),
        )
        for center in (False, True):
            yield name, lambda x=x, center=center: gram_matrix.gram_matrix(x, None, center)
            yield (
                name,
                lambda x=x, g=square, m=mean if center else None: gram_matrix.gram_matrix_backward(
                    g, x, m, None
                ),
            )


#: Layers of the generator: input and output channels, kernel, stride, padding, padding mode,
#: upsampling, and the size of the input for a frame of 1920 x 1080.
LAYERS = (
    (3, 32, 9, 1, 4, "reflect", "none", 1),
    (32, 64, 3, 2, 1, "reflect", "none", 1),
    (64, 128, 3, 2, 1, "reflect", "none", 2),
    (128, 128, 3, 1, 1, "reflect", "none", 4),
    (128, 64, 4, 1, 0, "replicate", "transpose", 4),
    (128, 64, 3, 1, 1, "reflect", "nearest", 4),
    (64, 32, 3, 1, 0, "zeros", "transpose", 2),
    (32, 3, 9, 1, 4, "reflect", "none", 1),
)


def _convolutions() -> Iterator[tuple[str, Callable[[], object]]]:
    for cin, cout, k, stride, padding, mode, upsample, divisor in LAYERS:
        for dtype in (HALF, FLOAT, torch.float16, DOUBLE):
            for channels_last in (True, False) if dtype == HALF else (True,):
                wide = DOUBLE if dtype == DOUBLE else FLOAT
                shape = (1, cin, 1080 // divisor, 1920 // divisor)
                x = image(*shape, dtype=dtype, channels_last=channels_last)
                sizes = (cin, cout) if upsample == "transpose" else (cout, cin)
                weight = _numbers(*sizes, k, k, dtype=dtype)
                pairs = _numbers(1, cin, 2, dtype=wide)
                name = f"{cin}-{cout} k{k}s{stride} {upsample} {_label(dtype, channels_last)}"
                geometry = (stride, padding, mode, upsample)
                for residual in (None, x):
                    yield (
                        name,
                        lambda x=x, w=weight, p=pairs, r=residual, g=geometry: (
                            norm_conv2d.norm_conv2d(
                                x, w, None, p, "relu", 0.01, r, r is not None, *g, True
                            )
                        ),
                    )


def _label(dtype: torch.dtype, channels_last: bool) -> str:
    name = {HALF: "bf16", FLOAT: "f32", torch.float16: "f16", DOUBLE: "f64"}[dtype]
    return f"{name} {'NHWC' if channels_last else 'NCHW'}"


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield calls of every launcher, with their names."""
    yield from _instance_norms()
    yield from _grams()
    yield from _more_than_2_31_elements()
    yield from _convolutions()


def _used(kernel, target: str) -> Resources:
    metadata = kernel.metadata
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{key}:\s+(\d+)", text)[1])
            for key in ("vgpr_count", "vgpr_spill_count")
        )
        return Resources(registers, 4 * spilled, metadata.shared, metadata.num_warps)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK"))
    return Resources(registers, stack, metadata.shared, metadata.num_warps)


def compile_all(
    target: str, calls: Iterator[tuple[str, Callable[[], object]]]
) -> dict[tuple[str, str], Resources]:
    """Return the resources of every distinct kernel that the calls launch, by the kernel's name and
    that of its first call."""
    found: dict[tuple[str, str], Resources] = {}
    seen: set[str] = set()
    run, label = JITFunction.run, ""

    def compile_only(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            key = (self.__name__, label)
            while key in found:
                key = (key[0], key[1] + " (again)")
            found[key] = _used(kernel, target)

    triton.runtime.driver.set_active(_NoDevice(target))
    JITFunction.run = compile_only
    try:
        for name, call in calls:
            label = name
            call()
    finally:
        JITFunction.run = run
    return found


def main() -> int:
    """Print a table for each target. Return 1 if anything spills or takes too much shared
    memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="default: all")
    parser.add_argument("--only", metavar="TEXT", help="only kernels and calls whose name has TEXT")
    options = parser.parse_args()
    faults = []
    for target in options.target or ("sm_90", "sm_80", "sm_100", "gfx942"):
        found = compile_all(target, launches())
        print(
            f"\n{target}: {len(found)} kernels\n{'kernel':24}{'first launched for':44}"
            f"{'warps':>6}{'registers':>10}{'spilled':>8}{'shared':>8}"
        )
        for (kernel, call), used in found.items():
            if options.only and options.only not in f"{kernel} {call}":
                continue
            print(
                f"{kernel:24}{call:44}{used.warps:6}{used.registers:10}{used.spilled:8}"
                f"{used.shared:8}"
            )
            if used.spilled and target in SPILL_FREE:
                faults.append(f"{target}: {kernel}, {call} spills {used.spilled} bytes a thread")
            if used.shared > SHARED[target]:
                faults.append(
                    f"{target}: {kernel}, {call} takes {used.shared} bytes of shared "
                    f"memory, there are {SHARED[target]}"
                )
    print("\n" + ("\n".join(faults) or "no kernel spills or takes too much shared memory"))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
