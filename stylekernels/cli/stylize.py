"""``stylekernels stylize``: paint photos in a style."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style
from stylekernels.cli.terminal import (
    DONE,
    REFUSED,
    Refused,
    advance,
    complain,
    plural,
    progress,
    refusing,
    say,
)

if TYPE_CHECKING:
    import numpy as np

    from stylekernels.inference import Stylizer
    from stylekernels.media import Photo


@dataclasses.dataclass(kw_only=True)
class Stylize:
    """Paint photos in a style."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional, option("PHOTO...", hint="")]
    """Files, folders (the photos in them) and patterns such as 'trip/**/*.jpg'."""

    style: Annotated[str, option("STYLE", "-s", hint="(required)")]
    """A bundled style (`stylekernels info` lists them), a file of weights, or a mixture of styles
    of the bundled base, such as wave:0.3,starry_night:0.7. FILE:NAME and FILE:NAME:0.3,OTHER:0.7
    are styles of a file that `stylekernels train --multi-style` made."""

    output: Annotated[str, option("PATH", "-o")] = "stylized"
    """A file for one photo, in the format of its extension; a folder for many, under their names.
    Colour profile, EXIF and transparency are kept, with 8 bits for each channel.
    Existing files are replaced, but never a photo that is read."""

    size: Annotated[int | None, option("PIXELS", hint="(default: the photo's own)")] = None
    """Scale photos down to this length of the longer side. They are never enlarged."""

    strength: Annotated[float, option("0..1")] = 1.0
    """The share of the style in the picture, from 0 (the photo) to 1 (the stylised picture)."""

    preserve_colors: Annotated[bool, option(hint="")] = False
    """Keep the photo's colours, and take only the brightness of the stylised picture."""

    tile: Annotated[int | None, option("PIXELS", hint="(default: all at once)")] = None
    """Paint larger photos in tiles of this size, for example 1024, in bounded memory.
    Files of more than 178 megapixels are read only with this option."""

    tile_mode: Annotated[Literal["exact", "thumbnail"], option()] = "exact"
    """`exact` makes the same picture as without tiles, up to rounding; small tiles take longer.
    `thumbnail` is faster, with the contrasts of a small copy of the photo.
    """

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the network runs on, `cpu` or `cuda`."""

    def run(self) -> int:
        if not self.photos:
            raise Refused("PHOTO: expected at least one file, folder or pattern, got none")
        if self.size is not None and self.size < 16:
            raise Refused(f"--size: expected at least 16 pixels, got {self.size}")
        if not 0 <= self.strength <= 1:
            raise Refused(f"--strength: expected a number from 0 to 1, got {self.strength}")
        if self.tile is not None and self.tile < 64:
            raise Refused(f"--tile: expected at least 64 pixels, got {self.tile}; try 1024")
        if self.tile is None and self.tile_mode != "exact":
            raise Refused(f"--tile-mode {self.tile_mode}: expected --tile with it; try --tile 1024")
        weights = find_style(self.style)
        from stylekernels.media import (
            PhotoError,
            TooManyPixels,
            check_format,
            read_photo,
            write_photo,
        )
        from stylekernels.media.outputs import check_inputs_are_kept
        from stylekernels.media.paths import find_photos, plan_outputs

        photos, problems = find_photos(self.photos)
        for problem in problems:
            complain(problem)
        if not photos:
            return REFUSED
        with refusing("--output: "):
            outputs = plan_outputs(photos, self.output)
            check_inputs_are_kept(outputs, [weights])
        stylizer = open_style(self.style, self.device, tile=self.tile, tile_mode=self.tile_mode)

        started = time.perf_counter()
        written = []
        with progress(len(photos), shown=len(photos) > 1 or self.tile is not None) as bar:
            for index, (path, output) in enumerate(zip(photos, outputs, strict=True)):
                done = functools.partial(advance, bar, index)
                try:
                    photo = read_photo(path, self.size, any_size=self.tile is not None)
                    check_format(output, photo)  # before painting, which takes longer
                    rgb = self.paint(stylizer, photo, path, done)
                    write_photo(output, dataclasses.replace(photo, rgb=rgb))
                    written.append(output)
                except PhotoError as error:
                    tiles = ", or paint it in tiles with --tile 1024"
                    problems.append(f"{error}{tiles if isinstance(error, TooManyPixels) else ''}")
                    complain(problems[-1])
                done()
        if written:
            target = written[0] if len(photos) == 1 else os.path.join(written[0].parent, "")
            count = (
                "" if len(photos) == 1 else f"{len(written)} {plural('photo', len(written))} in "
            )
            refused = f", {len(problems)} refused" if problems else ""
            say(f"{count}{target}{refused}  {time.perf_counter() - started:.1f} s")
        return REFUSED if problems else DONE

    def paint(
        self,
        stylizer: "Stylizer",
        photo: "Photo",
        path: Path,
        progress: Callable[[int, int], None],
    ) -> "np.ndarray":
        """Return the stylised pixels of a photo, in its colour space, with the wanted strength."""
        from stylekernels.hardware import memory_ran_out
        from stylekernels.inference import blend
        from stylekernels.media import PhotoError

        try:
            stylized = photo.from_srgb(stylizer(photo.to_srgb(), progress=progress))
            return blend(
                photo.rgb,
                stylized,
                strength=self.strength,
                preserve_colors=self.preserve_colors,
            )
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            height, width = photo.rgb.shape[:2]
            tiles = "paint in tiles with --tile 1024, or " if self.tile is None else ""
            raise PhotoError(
                f"{path}: {width}x{height} pixels need more memory than there is; "
                f"{tiles}scale down with --size"
            ) from error
