"""The page of ``stylekernels serve`` as a folder for any host of files: browsers paint."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from stylekernels.export.onnx_model import to_onnx
from stylekernels.files import write_whole
from stylekernels.inference import Stylizer
from stylekernels.models.files import StyleGenerator
from stylekernels.serve.offer import PAGE, offer, preview_photo

#: Has the engine, a file of the page that replaces the server's, and what only that engine needs.
_ENGINE = Path(__file__).resolve().parent / "page"
_MOST_PIXELS = 1 << 20  # of a frame: some 600 MB of memory in a browser
_STYLES = "styles.json"


def check_page_folder(folder: Path) -> None:
    """Refuse a folder that holds something other than a page. Hidden files are not counted.

    Raises:
        ValueError: naming the folder.
    """
    if not folder.is_dir():
        return
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if visible and not (folder / _STYLES).is_file():
        raise ValueError(
            f"{folder}: expected a new or empty folder, or an earlier page, found {visible[0].name}"
        )


def write_page(
    folder: Path, styles: Mapping[str, StyleGenerator], runtime: Mapping[str, bytes]
) -> int:
    """Write a page; return its size in bytes. A page that is there is replaced, other files stay.

    Args:
        folder: to write into; it is made if missing.
        styles: generators by name, which is also that of their files; the page begins with the
            first.
        runtime: files of ONNX Runtime Web by name, see `read_runtime`.

    Raises:
        ImportError: if onnx is not installed.
        OSError: if a file cannot be written.
    """
    photo = preview_photo()
    files = {f"runtime/{name}": data for name, data in runtime.items()}
    for name, generator in styles.items():
        files[f"models/{name}.onnx"] = to_onnx(generator).SerializeToString()
        files[f"previews/{name}.jpg"] = _jpeg(Stylizer(generator)(photo))
    page = {path.name: path for source in (PAGE, _ENGINE) for path in source.iterdir()}
    files |= {name: path.read_bytes() for name, path in page.items()}
    files[_STYLES] = json.dumps(offer(next(iter(styles)), styles, _MOST_PIXELS)).encode()
    for name, data in files.items():
        write_whole(folder / name, lambda part, data=data: part.write_bytes(data))
    for path in [*folder.glob("models/*.onnx"), *folder.glob("previews/*.jpg")]:
        if path.stem not in styles:
            path.unlink()  # of an earlier page
    return sum(map(len, files.values()))


def _jpeg(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=90, subsampling="4:4:4")
    return file.getvalue()
