"""Messages between the page and the server.

A binary message is a frame (from the page) or a picture (from the server): a header of 32 bytes,
little-endian, and then a JPEG file.

    bytes  type     content
    0-3    4 bytes  "SKF1"
    4-7    uint32   number of the frame; a picture repeats it
    8-15   float64  time of the frame by the page's clock, in ms; a picture repeats it
    16-31  float32  of a picture, in ms: wait for the painter, decoding, painting, encoding

A text message is JSON. The page sends its look; the server sends errors.
"""

import json
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct("<4sIdffff")
_MAGIC = b"SKF1"
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Header:
    """The header of a frame or a picture; durations are in ms."""

    number: int
    time: float
    waited: float = 0.0
    decoded: float = 0.0
    painted: float = 0.0
    encoded: float = 0.0

    def __bytes__(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            self.number,
            self.time,
            self.waited,
            self.decoded,
            self.painted,
            self.encoded,
        )

    @classmethod
    def of(cls, message: bytes) -> "Header":
        """Read the header of a message.

        Raises:
            ValueError: if the message does not begin with one.
        """
        if len(message) < HEADER_BYTES or not message.startswith(_MAGIC):
            raise ValueError(
                f"frame: expected a header of {HEADER_BYTES} bytes that begins with "
                f"{_MAGIC.decode()}, got {len(message)} bytes that begin with {message[:4]!r}"
            )
        return cls(*_HEADER.unpack_from(message)[1:])


@dataclass(frozen=True)
class Look:
    """How a client wants its frames painted.

    Attributes:
        style: name of a style on offer.
        strength: share of the style, from 0 to 1.
        preserve_colors: whether to keep the frame's colours.
    """

    style: str
    strength: float = 1.0
    preserve_colors: bool = False

    @classmethod
    def of(cls, text: str, styles: Container[str]) -> "Look":
        """Read a look from JSON.

        Args:
            text: an object with the names of the attributes.
            styles: names of the styles on offer.

        Raises:
            ValueError: if it is no such object, or has a value that is not allowed.
        """
        try:
            values: Any = json.loads(text)
            look = cls(**values)
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                "look: expected JSON such as "
                '{"style": "wave", "strength": 0.8, "preserve_colors": false}, '
                f"got {text[:80]!r}"
            ) from None
        if not isinstance(look.style, str) or look.style not in styles:
            raise ValueError(f"style: expected a style on offer, got {str(look.style)[:80]!r}")
        strength = look.strength
        number = isinstance(strength, int | float) and not isinstance(strength, bool)
        if not number or not 0 <= strength <= 1:
            raise ValueError(f"strength: expected a number from 0 to 1, got {str(strength)[:80]}")
        if not isinstance(look.preserve_colors, bool):
            raise ValueError(
                f"preserve_colors: expected true or false, got {str(look.preserve_colors)[:80]}"
            )
        return look
