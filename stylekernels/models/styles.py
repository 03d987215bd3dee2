"""Lists bundled styles and finds the files of styles, without PyTorch."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
#: Bundled files of several styles, which new styles start from: of the full network and the lite.
BASE, LITE_BASE = "base", "base_lite"


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
    return sorted(_bundled())


def bundled_file(name: str) -> Path:
    """The place of a bundled file, which need not exist."""
    return WEIGHTS / f"{name}.safetensors"


def find_style(name_or_path: str | os.PathLike[str]) -> StyleSource:
    """Find the file of a style.

    Args:
        name_or_path: a bundled style's name; a path; a mixture of styles of the bundled base, such
            as ``wave:0.3,udnie:0.7``; or styles of another file, ``FILE:wave`` and
            ``FILE:wave:0.3,udnie:0.7``. A path object is never taken for a name or a mixture.

    Raises:
        ValueError: if there is no such style and no such file, or if a share is no number.
    """
    bundled = _bundled()
    if not isinstance(name_or_path, str):
        found = StyleSource(Path(name_or_path))
    elif name_or_path in bundled:
        found = bundled[name_or_path]
    elif name_or_path in (BASE, LITE_BASE):
        found = StyleSource(bundled_file(name_or_path))
    else:
        found = _mixture(name_or_path)
    if not found.path.is_file():
        raise ValueError(
            f"name_or_path: expected a bundled style ({', '.join(sorted(bundled))}), a mixture "
            f"such as wave:0.3,udnie:0.7, or the path of a file, got {str(name_or_path)!r}"
        )
    return found


def style_file(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a style; see :func:`find_style`."""
    return find_style(name_or_path).path


def _bundled() -> dict[str, StyleSource]:
    """The styles with a file of their own, and those of the base."""
    base = bundled_file(BASE)
    names = _styles_of(base) if base.is_file() else []
    found = {name: StyleSource(base, {name: 1.0}) for name in names}
    files = {path.stem: StyleSource(path) for path in WEIGHTS.glob("*.safetensors")}
    return {name: s for name, s in (found | files).items() if name not in (BASE, LITE_BASE)}


def _styles_of(path: Path) -> list[str]:
    """Read the names in a safetensors file: eight bytes of length, and a JSON object."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["config"])["styles"]


def _mixture(text: str) -> StyleSource:
    """Read a path, a mixture of the bundled base's styles, or a path and a mixture."""
    path = Path(text)
    if path.is_file() or ":" not in text:
        return StyleSource(path)
    path, rest = bundled_file(BASE), text
    for index in (place for place, letter in enumerate(text) if letter == ":"):
        start = text[:index]
        if start in (BASE, LITE_BASE) or Path(start).is_file():
            path = Path(start) if Path(start).is_file() else bundled_file(start)
            rest = text[index + 1 :]
            break
    shares = {}
    for part in rest.split(","):
        name, _, share = (word.strip() for word in part.partition(":"))
        try:
            share = float(share or 1)
        except ValueError as error:
            raise ValueError(
                f"name_or_path: expected a number as the share of {name!r}, got {share!r}; "
                f"there is no file {name!r} either"
            ) from error
        if name in shares:
            raise ValueError(f"name_or_path: expected each style once, got {name!r} twice")
        shares[name] = share
    return StyleSource(path, shares)
