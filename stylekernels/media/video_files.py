"""Files of moving pictures that are opened, or refused in a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stylekernels.media.video_formats import VideoError

if TYPE_CHECKING:
    import av


def open_video(path: Path) -> av.container.InputContainer:
    """Open a file of moving pictures.

    Raises:
        VideoError: if it is missing, no video, a still picture or damaged.
    """
    import av

    if path.is_dir():
        raise VideoError(f"{path}: expected a video, got a folder")
    if not path.exists():
        # Path makes one slash of two.
        address = re.match(r"[a-z]{2,}:[/\\]", str(path)) is not None
        hint = "; addresses are not read: download it first" if address else ""
        raise VideoError(f"{path}: no such file{hint}")
    if not path.is_file():  # reading a pipe could block forever
        raise VideoError(f"{path}: expected a video, got a device or a pipe")
    try:
        # Without the protocol a name such as a:b.mp4 is taken for a URL.
        container = av.open(f"file:{path}")
    except PermissionError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: not a video in a format that can be read, damaged, or cut short before "
            "its index"
        ) from error
    name = container.format.name
    if name.endswith("_pipe") or name in ("image2", "tty"):  # tty: FFmpeg paints plain text
        container.close()
        hint = "" if name == "tty" else "; paint still pictures with stylekernels stylize"
        kind = "text" if name == "tty" else "a still picture"
        raise VideoError(f"{path}: expected a video, got {kind}{hint}")
    return container


def moving_pictures(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """Return the stream that players show: that of the default and, among equals, the largest.

    Raises:
        VideoError: if there is none.
    """
    from av.stream import Disposition

    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({s.type for s in container.streams})
        raise VideoError(
            f"{path}: expected a stream of moving pictures, got {' and '.join(kinds) or 'none'}"
        )
    return max(moving, key=lambda s: (bool(s.disposition & Disposition.default), s.width))
