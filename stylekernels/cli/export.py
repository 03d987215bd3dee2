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
from stylekernels.media.outputs import check_file, check_inputs_are_kept

if TYPE_CHECKING:
    from stylekernels.models import StyleGenerator

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a style for other programs."""

    style: Annotated[str, tyro.conf.Positional, option("STYLE", hint="(required)")]
    """As for `stylekernels stylize`: a bundled style, a mixture, or a file of weights."""

    format: Literal["onnx", "torch"] = "onnx"
    """`onnx`: a model for ONNX Runtime and others, bytes to bytes, frames of any size. `torch`: a
    package compiled for this machine's processor, for C++ programs with libtorch
    (examples/stylize.cpp); frames with sides that are multiples of four; takes a minute or two."""

    output: Annotated[Path | None, option("PATH", "-o", hint="(default: STYLE.onnx, .pt2)")] = None
    """The file to write. An existing one is replaced."""

    float16: Annotated[bool, option(hint="")] = False
    """Weights and arithmetic in float16 (onnx): half the file, for GPUs."""

    def run(self) -> int:
        if self.float16 and self.format != "onnx":
            raise Refused(f"--float16: expected --format onnx, got {self.format}")
        weights = find_style(self.style, "STYLE")
        output = self.output or Path(self._name() + _ENDINGS[self.format])
        with refusing("--output: "):
            if output.suffix != _ENDINGS[self.format]:
                raise ValueError(
                    f"expected a name that ends in {_ENDINGS[self.format]}, got {output}"
                )
            check_file(output)
            check_inputs_are_kept([output], [weights])
        started = time.perf_counter()
        generator = open_generator(self.style, "STYLE")
        try:
            self._writer(generator)(output)
        except ModuleNotFoundError as error:
            if error.name != "onnx":
                raise
            raise Refused(
                "export: needs onnx, which is not installed; pip install stylekernels[export]"
            ) from error
        except OSError as error:
            raise Refused(f"--output: {output}: cannot be written: {error.strerror}") from error
        size = output.stat().st_size / 1e6
        say(f"{output}: {size:.1f} MB  {time.perf_counter() - started:.1f} s")
        return DONE

    def _name(self) -> str:
        """A file name for the style: its own, or that of its file."""
        path = Path(self.style)
        name = path.stem if path.is_file() else self.style
        return name.replace("/", "-").replace(":", "-").replace(",", "-")

    def _writer(self, generator: "StyleGenerator") -> "Callable[[Path], None]":
        if self.format == "torch":
            from stylekernels.export.torch_package import write_package

            return lambda path: write_package(path, generator)
        import torch

        from stylekernels.export.onnx_model import to_onnx

        dtype: torch.dtype = torch.float16 if self.float16 else torch.float32
        data = to_onnx(generator, dtype).SerializeToString()
        return lambda path: write_whole(path, lambda part: part.write_bytes(data))
