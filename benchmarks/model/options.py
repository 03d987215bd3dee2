"""The options of ``python -m benchmarks model``, and the cases that they select."""

import argparse

from benchmarks import suite
from benchmarks.dtypes import DTYPES, leaves_bfloat16_out
from benchmarks.model.cases import CONFIGS, CUDA_SIZES, SIZES, Case, Size, grid
from stylekernels.models import bundled_styles
from stylekernels.models.generator import SMALLEST_SIDE


def parse_size(text: str) -> Size:
    """Parse ``WxH`` as two numbers."""
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WxH, as in 640x480, got {text!r}") from None
    if min(width, height) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(
            f"expected at least {SMALLEST_SIDE} pixels a side, got {text}"
        )
    return width, height


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this verb has."""
    parser.add_argument(
        "--size",
        action="append",
        type=parse_size,
        metavar="WxH",
        help="a size to measure instead of the listed ones (repeatable)",
    )
    parser.add_argument(
        "--style",
        choices=bundled_styles(),
        help="a bundled style, instead of random weights in the full and the lite network",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--memory",
        action="store_true",
        help="peak memory of one frame instead of its time, of ours and of eager PyTorch",
    )
    instead.add_argument(
        "--layers", action="store_true", help="the time of each layer of ours, without rivals"
    )


def select(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options select."""
    networks = (options.style,) if options.style else tuple(CONFIGS)
    sizes, dtypes = SIZES, tuple(DTYPES)
    if options.device == "cuda":
        sizes, dtypes = CUDA_SIZES, (options.dtype or "bfloat16",)
    sizes = options.size or sizes
    return [
        case
        for case in grid(networks, sizes[:1] if options.quick else sizes, dtypes, options.device)
        if suite.fits(options, case.id, case.dtype)
        and not (case.dtype == "bfloat16" and leaves_bfloat16_out(options))
    ]
