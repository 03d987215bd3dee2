"""``stylekernels generate``: pictures from a trained image generator."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from stylekernels.cli.options import option
from stylekernels.cli.styles import check_kernels
from stylekernels.cli.terminal import DONE, Refused, plural, refusing, say

if TYPE_CHECKING:
    import numpy as np

    from stylekernels.models.dcgan import Codes, ImageGenerator, ImageGeneratorConfig

_DEFAULT_OUTPUT = "generated.png"
_VALUES = 8  # of a continuous code that is varied
_CHUNK = 64  # pictures at a time


@dataclasses.dataclass(kw_only=True)
class Generate:
    """Draw pictures with a trained image generator."""

    model: Annotated[str, tyro.conf.Positional, option("MODEL", hint="(required)")]
    """The file that `stylekernels train-dcgan` wrote."""

    output: Annotated[str | None, option("PATH", "-o", hint="(default: generated.png)")] = None
    """The picture to write: all pictures in one grid. Or a folder for it."""

    folder: Annotated[str | None, option("DIR", hint="(default: a grid)")] = None
    """Write every picture to a file of its own in this folder, by label in sub-folders: more
    pictures for a folder with too few. Other files there are kept."""

    count: Annotated[int | None, option("N", hint="(default: 16; with --folder 500)")] = None
    """The number of pictures, or of rows with --interpolate (default: 1) and --vary (default: 4).
    """

    seed: Annotated[int, option("N")] = 0
    """Another seed draws other pictures."""

    label: Annotated[str | None, option("NAME", hint="(default: all in turn)")] = None
    """Draw this label, if the generator was trained with --conditional."""

    code: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, option("NAME=VALUE", hint="(repeatable)")
    ] = ()
    """Hold an InfoGAN code: category=3, or continuous1=-0.5. Others are random."""

    interpolate: Annotated[int | None, option("N", hint="(default: none)")] = None
    """Draw a strip: N steps from one picture to another."""

    vary: Annotated[str | None, option("NAME", hint="(default: none)")] = None
    """Draw rows in which only this changes: category, continuous1 and so on, or label."""

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the network runs on, `cpu` or `cuda`."""

    def run(self) -> int:
        self.check()
        from stylekernels.media.outputs import check_folder, check_inputs_are_kept
        from stylekernels.media.paths import output_paths

        if self.folder is None:
            with refusing("--output: "):
                (output,) = output_paths([_DEFAULT_OUTPUT], self.output or _DEFAULT_OUTPUT)
                check_inputs_are_kept([output], [Path(self.model).expanduser()])
        else:
            with refusing("--folder: "):
                check_folder(Path(os.path.expanduser(self.folder)))
        generator = _open(self.model, self.device)
        held = self.held(generator.config)
        if self.folder is not None:
            return self.write_folder(generator, held)
        if self.interpolate is not None:
            codes, columns = self.strips(generator, held)
        elif self.vary is not None:
            codes, columns = self.varied(generator, held)
        else:
            codes, columns = self.grid(generator, held)
        self.write_grid(output, _draw(generator, codes), columns, generator.config)
        return DONE

    def check(self) -> None:
        """Refuse options that do not fit each other or their ranges."""
        for name, least in (("count", 1), ("interpolate", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refused(f"--{name}: expected at least {least}, got {value}")
        if not 0 <= self.seed < 1 << 63:
            raise Refused(f"--seed: expected 0 or more, below 2^63, got {self.seed}")
        given = [f"--{n}" for n in ("interpolate", "vary") if getattr(self, n) is not None]
        if self.folder is not None and self.output is not None:
            raise Refused("--output: it is for a grid, and --folder for single files; choose one")
        if len(given) == 2 or (given and self.folder is not None):
            other = given[1] if len(given) == 2 else "--folder"
            raise Refused(f"{given[0]}: it can't be combined with {other}; choose one")

    def held(self, config: "ImageGeneratorConfig") -> dict[str, float]:
        """Return the values that --label and --code hold, by name: label, category, continuousN."""
        held = {}
        if self.label is not None:
            if not config.labels:
                raise Refused(
                    "--label: this generator was trained without labels; leave it out, or train "
                    "with --conditional"
                )
            if self.label not in config.labels:
                names = ", ".join(config.labels)
                raise Refused(f"--label: expected one of {names}, got {self.label!r}")
            held["label"] = config.labels.index(self.label)
        for text in self.code:
            name, _, value = text.partition("=")
            held[name] = _code(config, name, value, text)
        if self.vary is not None:
            names = [*_code_names(config), *(["label"] if config.labels else [])]
            if self.vary not in names:
                has = (
                    f"expected one of {', '.join(names)}" if names else "it has no codes or labels"
                )
                raise Refused(f"--vary: {has}, got {self.vary!r}")
            if self.vary in held:
                raise Refused(f"--vary: {self.vary} is held by another option; leave one out")
        return held

    def grid(self, generator: "ImageGenerator", held: dict) -> tuple["Codes", int]:
        """Codes of pictures, rows taking labels in turn, and the number of columns."""
        count = self.count or 16
        columns = min(_VALUES, count, max(4, round(count**0.5)))
        codes = _held(_random(generator, count, self.seed), held)
        if generator.config.labels and "label" not in held:
            codes = codes._replace(label=_in_turn(count, columns, len(generator.config.labels)))
        return codes, columns

    def strips(self, generator: "ImageGenerator", held: dict) -> tuple["Codes", int]:
        """Codes of rows from one picture to another, and the number of columns. Label and codes
        are those of the first."""
        import torch

        from stylekernels.models.dcgan import interpolate_noise

        rows, steps = self.count or 1, self.interpolate
        ends = _held(_random(generator, 2 * rows, self.seed), held)
        noise = [interpolate_noise(*pair, steps) for pair in ends.noise.split(2)]
        codes = _repeated(ends, torch.arange(0, 2 * rows, 2), steps)
        if generator.config.labels and "label" not in held:
            codes = codes._replace(
                label=_in_turn(rows * steps, steps, len(generator.config.labels))
            )
        return codes._replace(noise=torch.cat(noise)), steps

    def varied(self, generator: "ImageGenerator", held: dict) -> tuple["Codes", int]:
        """Codes of rows in which one changes, and the number of columns."""
        import torch

        rows, config = self.count or 4, generator.config
        sizes = {"label": len(config.labels), "category": config.categories}
        values = torch.linspace(-1, 1, _VALUES)
        if self.vary in sizes:
            values = torch.arange(sizes[self.vary])
        columns = len(values)
        codes = _repeated(
            _held(_random(generator, rows, self.seed), held), torch.arange(rows), columns
        )
        return _held(codes, {self.vary: values.repeat(rows)}), columns

    def write_grid(
        self, output: Path, pictures: "np.ndarray", columns: int, config: "ImageGeneratorConfig"
    ) -> None:
        from stylekernels.media import Photo, write_photo
        from stylekernels.media.sheet import make_grid

        with refusing("--output: "):
            write_photo(output, Photo(make_grid(pictures, columns)))
        about = f"{len(pictures)} {plural('picture', len(pictures))}"
        if self.vary is not None:
            about += f"; columns: {self.vary} " + (
                ", ".join(config.labels)
                if self.vary == "label"
                else f"0 to {config.categories - 1}"
                if self.vary == "category"
                else "-1 to 1"
            )
        elif config.labels and self.label is None:
            about += f"; rows: {', '.join(config.labels)}, in turn"
        say(f"{output}: {about}")

    def write_folder(self, generator: "ImageGenerator", held: dict) -> int:
        """Write pictures to files, named by seed and number; labels take turns."""
        from stylekernels.media import Photo, write_photo
        from stylekernels.media.outputs import check_inputs_are_kept

        count, labels = self.count or 500, generator.config.labels
        codes = _held(_random(generator, count, self.seed), held)
        if labels and "label" not in held:
            codes = codes._replace(label=_in_turn(count, 1, len(labels)))
        root = Path(os.path.expanduser(self.folder))
        files = []
        for index in range(count):
            below = root / labels[codes.label[index]] if labels else root
            files.append(below / f"generated-{self.seed}-{index:05}.png")
        with refusing("--folder: "):
            check_inputs_are_kept(files, [Path(self.model).expanduser()])
            for start in range(0, count, _CHUNK):
                part = _sliced(codes, slice(start, start + _CHUNK))
                for path, picture in zip(files[start:], _draw(generator, part)):  # noqa: B905
                    write_photo(path, Photo(picture))
        say(f"{os.path.join(root, '')}: {count} {plural('picture', count)}")
        return DONE


def _open(model: str, device: str | None) -> "ImageGenerator":
    import torch

    from stylekernels.hardware import find_device
    from stylekernels.models.dcgan import ImageGenerator

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with refusing("--"):
        place = find_device(device)
        check_kernels(place.type)
    try:
        return ImageGenerator.from_pretrained(os.path.expanduser(model)).to(place)
    except (ValueError, OSError) as error:
        raise Refused("MODEL: " + str(error).removeprefix("path: ")) from error


def _code_names(config: "ImageGeneratorConfig") -> Iterator[str]:
    if config.categories:
        yield "category"
    for index in range(config.continuous):
        yield f"continuous{index + 1}"


def _code(config: "ImageGeneratorConfig", name: str, value: str, text: str) -> float:
    """The value of a code, or a refusal that says which there are."""
    names = list(_code_names(config))
    if not names:
        raise Refused(
            "--code: this generator was trained without codes; leave it out, or train with "
            "--categories or --continuous"
        )
    with_values = [
        f"{n}=0..{config.categories - 1}" if n == "category" else f"{n}=-1..1" for n in names
    ]
    refused = Refused(f"--code: expected {' or '.join(with_values)}, got {text!r}")
    if name not in names:
        raise refused
    try:
        number = int(value) if name == "category" else float(value)
    except ValueError:
        raise refused from None
    if not (0 <= number < config.categories if name == "category" else -1 <= number <= 1):
        raise refused
    return number


def _random(generator: "ImageGenerator", count: int, seed: int) -> "Codes":
    """Random codes. Those of a picture depend on the seed and its index alone."""
    import torch

    from stylekernels.models.dcgan import Codes

    numbers = torch.Generator().manual_seed(seed)
    chunks = [
        generator.draw(_CHUNK, device="cpu", generator=numbers) for _ in range(0, count, _CHUNK)
    ]
    parts = (None if part[0] is None else torch.cat(part)[:count] for part in zip(*chunks))  # noqa: B905
    return Codes(*parts)


def _held(codes: "Codes", held: dict) -> "Codes":
    """Codes with some of them replaced: numbers, or tensors (N,)."""
    for name, value in held.items():
        if name in ("label", "category"):
            replaced = getattr(codes, name).clone()
            replaced[:] = value
            codes = codes._replace(**{name: replaced})
        else:
            continuous = codes.continuous.clone()
            continuous[:, int(name.removeprefix("continuous")) - 1] = value
            codes = codes._replace(continuous=continuous)
    return codes


def _in_turn(count: int, run: int, values: int):
    """Indices in turn, each of them ``run`` times."""
    import torch

    return torch.arange(count) // run % values


def _repeated(codes: "Codes", rows, columns: int) -> "Codes":
    return _sliced(codes, rows.repeat_interleave(columns))


def _sliced(codes: "Codes", index) -> "Codes":
    return type(codes)(*(None if code is None else code[index] for code in codes))


def _draw(generator: "ImageGenerator", codes: "Codes") -> "np.ndarray":
    """Pictures, (N, 64, 64, 3) uint8."""
    import numpy as np
    import torch

    from stylekernels.models.dcgan import to_pixels

    device = next(generator.parameters()).device
    pictures = []
    with torch.inference_mode():
        for start in range(0, len(codes.noise), _CHUNK):
            part = _sliced(codes, slice(start, start + _CHUNK))
            pictures.append(to_pixels(generator(*(c if c is None else c.to(device) for c in part))))
    return np.concatenate(pictures)
