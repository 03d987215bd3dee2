"""Bounds on what clients may ask of the server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask of the server.

    Attributes:
        clients: connections for live frames at the same time.
        frame_bytes: size of a live frame's message.
        frame_pixels: pixels of a live frame.
        upload_bytes: size of an uploaded photo's file.
        upload_pixels: pixels of an uploaded photo.
        uploads: uploaded photos at the same time, those included that wait to be painted.
        upload_side: longer side to which uploaded photos are scaled down, in pixels.
        seconds: time for which a client may wait for a picture, or let the server wait while it
            sends or receives one.
        idle_seconds: time after which a client that sends no frame loses its connection.
    """

    clients: int = 8
    frame_bytes: int = 4 << 20
    frame_pixels: int = 1920 * 1080
    upload_bytes: int = 32 << 20
    upload_pixels: int = 50_000_000
    uploads: int = 16
    upload_side: int = 2048
    seconds: float = 30.0
    idle_seconds: float = 60.0
