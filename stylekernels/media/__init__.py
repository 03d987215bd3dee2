"""Pictures from files and into files."""

from stylekernels.media.images import Photo, PhotoError, read_photo, write_photo

__all__ = ["Photo", "PhotoError", "read_photo", "write_photo"]
