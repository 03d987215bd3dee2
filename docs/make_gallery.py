"""Paints the pictures of docs/gallery.md.

    python docs/make_gallery.py DATA

``DATA`` has the paintings in ``styles/`` and ``artworks/``, and the photos in ``photos/eval/``.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from stylekernels.inference import Stylizer
from stylekernels.media.sheet import make_sheet
from stylekernels.models import StyleGenerator, bundled_styles
from stylekernels.training.data import center_crop, read_image, resized

_PHOTOS = ("kodak_04", "kodak_08", "kodak_15", "kodak_23")
_SIDE = 512
_OUTPUT = Path(__file__).resolve().parent / "gallery"


def main(data: Path) -> None:
    photos = [
        (name, np.asarray(resized(read_image(data / f"photos/eval/{name}.png"), _SIDE)))
        for name in _PHOTOS
    ]
    _OUTPUT.mkdir(exist_ok=True)
    _write("photos", [(name, _square(photo)) for name, photo in photos])
    paintings = []
    for style in bundled_styles():
        files = [*data.glob(f"styles/{style}.jpg"), *sorted(data.glob(f"artworks/{style}/*"))]
        painting = np.asarray(resized(read_image(files[0]), _SIDE))
        paintings.append((style.replace("_", " "), _square(painting)))
        paint = Stylizer(StyleGenerator.from_pretrained(style))
        _write(style, [(name, _square(paint(photo))) for name, photo in photos])
    _write("paintings", paintings)


def _square(picture: np.ndarray) -> np.ndarray:
    """Crop the middle square, as large as that of every photo."""
    return np.asarray(center_crop(Image.fromarray(picture), 340))


def _write(name: str, pictures: list[tuple[str, np.ndarray]]) -> None:
    sheet = Image.fromarray(make_sheet(pictures))
    sheet.save(_OUTPUT / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
