"""``stylekernels demo``: a before-and-after sheet of a well-known photo."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style, style_title
from stylekernels.cli.terminal import DONE, Refused, plural, refusing, say
from stylekernels.models.styles import bundled_styles

if TYPE_CHECKING:
    import numpy as np

_DEMO_SHEET = "stylekernels-demo.png"


@dataclasses.dataclass
class Demo:
    """Paint a well-known photo in the bundled styles, on one before-and-after sheet."""

    style: Annotated[str | None, option("STYLE", "-s", hint="(default: every bundled style)")] = (
        None
    )
    """A bundled style, a mixture, or a file of weights, as for `stylekernels stylize`."""

    output: Annotated[str, option("PATH", "-o")] = _DEMO_SHEET
    """The picture to write, or a folder for it."""

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the network runs on, `cpu` or `cuda`."""

    def run(self) -> int:
        styles = [self.style] if self.style else bundled_styles()
        if not styles:
            raise Refused("--style: no style is bundled here; give a file of weights")
        weights = [find_style(style) for style in styles]
        from stylekernels.media import Photo, write_photo
        from stylekernels.media.outputs import check_inputs_are_kept
        from stylekernels.media.paths import output_paths
        from stylekernels.media.sheet import make_sheet

        with refusing("--output: "):
            (output,) = output_paths([_DEMO_SHEET], self.output)
            check_inputs_are_kept([output], weights)
        photo = _demo_photo()
        pictures = [("photo", photo)]
        for style in styles:
            stylizer = open_style(style, self.device)
            pictures.append((style_title(style), stylizer(photo)))
        with refusing():
            write_photo(output, Photo(make_sheet(pictures)))
        say(f"{output}: the photo and {len(styles)} {plural('style', len(styles))}")
        return DONE


def _demo_photo() -> "np.ndarray":
    try:
        from skimage import data
    except ImportError as error:
        raise Refused(
            "demo: its photo comes with scikit-image; pip install scikit-image, "
            "or stylize a photo of your own"
        ) from error
    return data.astronaut()
