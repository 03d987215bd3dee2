"""Lists bundled styles and finds the files of styles, without PyTorch."""

import os
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
#: Files of several styles, which a new style starts from; no styles themselves.
BASES = {"base": WEIGHTS / "base.safetensors", "base_lite": WEIGHTS / "base_lite.safetensors"}


@dataclass(frozen=True)
class StyleSource:
    """The file of a style, and what is wanted of it.

    Attributes:
        path: the file.
        shares: of the file's styles, by name; empty for a file of one style.
    """

    path: Path
    shares: dict[str, float] = field(default_factory=dict)


def bundled_styles() -> list[str]:
    """Names of the styles that come with the library, for ``StyleGenerator.from_pretrained``."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if path.stem not in BASES)


def find_style(name_or_path: str | os.PathLike[str]) -> StyleSource:
    """Find the file of a style.

    Args:
        name_or_path: a bundled style's name; a path; a mixture of styles of the bundled base, such
            as ``wave:0.3,starry_night:0.7``; or styles of another file, ``FILE:wave`` and
            ``FILE:wave:0.3,udnie:0.7``. A path object is never taken for a name or a mixture.

    Raises:
        ValueError: if there is no such style and no such file, or if a share is no number.
    """
    bundled = bundled_styles()
    if not isinstance(name_or_path, str):
        found = StyleSource(Path(name_or_path))
    elif name_or_path in bundled:
        found = StyleSource(WEIGHTS / f"{name_or_path}.safetensors")
    elif name_or_path in BASES:
        found = StyleSource(BASES[name_or_path])
    else:
        found = _mixture(name_or_path)
    if not found.path.is_file():
        raise ValueError(
            f"name_or_path: expected a bundled style ({', '.join(bundled)}), a mixture such as "
            f"wave:0.3,starry_night:0.7, or the path of a file, got {str(name_or_path)!r}"
        )
    return found


def style_file(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a style; see :func:`find_style`."""
    return find_style(name_or_path).path


def _mixture(text: str) -> StyleSource:
    """Read a path, a mixture of the bundled base's styles, or a path and a mixture."""
    path = Path(text)
    if path.is_file() or ":" not in text:
        return StyleSource(path)
    path, rest = BASES["base"], text
    for index in (place for place, letter in enumerate(text) if letter == ":"):
        start = text[:index]
        if start in BASES or Path(start).is_file():
            path, rest = BASES.get(start, Path(start)), text[index + 1 :]
            break
    shares = {}
    for part in rest.split(","):
        name, _, share = part.strip().partition(":")
        try:
            shares[name.strip()] = float(share or 1)
        except ValueError as error:
            raise ValueError(
                f"name_or_path: expected a number as the share of {name!r}, got {share!r}"
            ) from error
    return StyleSource(path, shares)
