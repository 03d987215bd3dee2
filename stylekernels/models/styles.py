"""Lists bundled styles and finds their files, without PyTorch."""

import os
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def bundled_styles() -> list[str]:
    """Names of the styles that come with the library, for ``StyleGenerator.from_pretrained``."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def style_file(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a bundled style, or the path itself.

    Args:
        name_or_path: a name, or a path as text; what is a path already is never taken for a name.

    Raises:
        ValueError: if there is no such style and no such file.
    """
    bundled = bundled_styles()
    if isinstance(name_or_path, str) and name_or_path in bundled:
        return WEIGHTS / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"name_or_path: expected a bundled style ({', '.join(bundled)}) or the path of a "
            f"file, got {str(name_or_path)!r}"
        )
    return path
