"""``stylekernels export``: a style for other programs."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_generator
from stylekernels.cli.terminal import DONE, Refused, refusing, say
from stylekernels.files import write_whole
from stylekernels.media.outputs import check_file, check_folder, check_inputs_are_kept

if TYPE_CHECKING:
    from stylekernels.models import StyleGenerator

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "web": "-web"}


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a style for other programs."""

    style: Annotated[tuple[str, ...], tyro.conf.Positional, option("STYLE...", hint="(required)")]
    """As for `stylekernels stylize`: a bundled style, a mixture, or a file of weights; several with
    --format web, which begins with the first."""

    format: Literal["onnx", "torch", "web"] = "onnx"
    """`onnx`: a model for ONNX Runtime and others, bytes to bytes, frames of any size. `torch`: a
    package compiled for this machine's processor, for C++ programs with libtorch
    (examples/stylize.cpp); frames with sides that are multiples of four; takes a minute or two.
    `web`: a folder with the page of `stylekernels serve`, for any web host; browsers paint."""

    output: Annotated[
        Path | None, option("PATH", "-o", hint="(default: STYLE.onnx, .pt2, STYLE-web)")
    ] = None
    """The file to write, or the folder of `web`. An existing one is replaced."""

    float16: Annotated[bool, option(hint="")] = False
    """Weights and arithmetic in float16 (onnx): half the file, for GPUs."""

    runtime: Annotated[Path | None, option("PATH", hint="(default: fetched once)")] = None
    """The npm package onnxruntime-web (web), for machines without a network: its .tgz file, or the
    folder it was unpacked into."""

    def run(self) -> int:
        self._check()
        styles = self._styles()
        output = self.output or Path(next(iter(styles)) + _ENDINGS[self.format])
        with refusing("--output: "):
            self._check_output(output)
        started = time.perf_counter()
        try:
            size = (self._write_page if self.format == "web" else self._write_model)(output, styles)
        except ModuleNotFoundError as error:
            if error.name != "onnx":
                raise
            raise Refused(
                "export: needs onnx, which is not installed; pip install stylekernels[export]"
            ) from error
        except OSError as error:
            raise Refused(f"--output: {output}: cannot be written: {error.strerror}") from error
        say(f"{output}: {size / 1e6:.1f} MB  {time.perf_counter() - started:.1f} s")
        return DONE

    def _check(self) -> None:
        """Refuse options that have no sense."""
        if self.float16 and self.format != "onnx":
            raise Refused(f"--float16: expected --format onnx, got {self.format}")
        if self.runtime is not None and self.format != "web":
            raise Refused(f"--runtime: expected --format web, got {self.format}")
        if not self.style:
            raise Refused("STYLE: expected a style, got none; `stylekernels info` lists them")
        if len(self.style) > 1 and self.format != "web":
            raise Refused(
                f"STYLE: expected one style for --format {self.format}, got {len(self.style)}"
            )

    def _styles(self) -> dict[str, str]:
        """Return the styles by the names of their files: a style's own, or that of its file."""
        styles: dict[str, str] = {}
        for style in self.style:
            find_style(style, "STYLE")
            path = Path(style)
            name = path.stem if path.is_file() else style
            name = name.replace("/", "-").replace(":", "-").replace(",", "-")
            if name in styles:
                raise Refused(f"STYLE: expected different names, got {name} twice")
            styles[name] = style
        return styles

    def _check_output(self, output: Path) -> None:
        if self.format == "web":
            from stylekernels.export.web_page import check_page_folder

            check_folder(output)
            check_page_folder(output)
            return
        ending = _ENDINGS[self.format]
        if output.suffix != ending:
            raise ValueError(f"expected a name that ends in {ending}, got {output}")
        check_file(output)
        check_inputs_are_kept([output], [find_style(style, "STYLE") for style in self.style])

    def _write_page(self, output: Path, styles: dict[str, str]) -> int:
        """Write the folder; return its size in bytes."""
        from stylekernels.export.runtime import VERSION, cached_package, read_runtime
        from stylekernels.export.web_page import write_page

        generators = {name: open_generator(style, "STYLE") for name, style in styles.items()}
        if self.runtime is None and not cached_package().is_file():
            say(f"fetching onnxruntime-web {VERSION}, once: 33 MB")
        try:
            runtime = read_runtime(self.runtime)
        except (ValueError, OSError) as error:
            raise Refused(
                f"--runtime: {error}; download the package on another machine with "
                f"`npm pack onnxruntime-web@{VERSION}`"
            ) from error
        return write_page(output, generators, runtime)

    def _write_model(self, output: Path, styles: dict[str, str]) -> int:
        """Write the file; return its size in bytes."""
        (style,) = styles.values()
        generator = open_generator(style, "STYLE")
        self._writer(generator)(output)
        return output.stat().st_size

    def _writer(self, generator: "StyleGenerator") -> "Callable[[Path], None]":
        if self.format == "torch":
            from stylekernels.export.torch_package import check_tools, write_package

            with refusing("--format torch: "):
                check_tools()
            return lambda path: write_package(path, generator)
        import torch

        from stylekernels.export.onnx_model import to_onnx

        dtype: torch.dtype = torch.float16 if self.float16 else torch.float32
        data = to_onnx(generator, dtype).SerializeToString()
        return lambda path: write_whole(path, lambda part: part.write_bytes(data))
