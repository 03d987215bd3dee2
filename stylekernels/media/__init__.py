"""Reading and writing of picture files."""

from typing import TYPE_CHECKING

from stylekernels.lazy import lazy

if TYPE_CHECKING:
    from stylekernels.media.images import (
        Photo,
        PhotoError,
        TooManyPixels,
        check_format,
        read_photo,
        write_photo,
    )

__all__ = ["Photo", "PhotoError", "TooManyPixels", "check_format", "read_photo", "write_photo"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "images"))
