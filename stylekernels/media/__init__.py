"""Pictures from files and into files."""

from stylekernels.media.images import Photo, PhotoError, check_format, read_photo, write_photo

__all__ = ["Photo", "PhotoError", "check_format", "read_photo", "write_photo"]
