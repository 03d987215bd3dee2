"""Fenced blocks in README.md, CONTRIBUTING.md and docs/."""

import re
from pathlib import Path

import stylekernels

ROOT = Path(stylekernels.__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))


def fenced(text: str, *languages: str) -> list[str]:
    """Return the blocks of a page in any of some languages."""
    start = rf"^```(?:{'|'.join(languages)})\n"
    return re.findall(rf"{start}(.*?)^```", text, re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> dict[tuple[str, int], str]:
    """Return the blocks of all pages by page and number."""
    return {
        (path.name, number): block
        for path in PAGES
        for number, block in enumerate(fenced(path.read_text(), *languages))
    }
