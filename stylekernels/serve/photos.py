"""Single pictures: uploaded photos in full quality, and previews of the styles."""

import asyncio
import dataclasses
import tempfile
from pathlib import Path

from aiohttp import web
from PIL import Image

from stylekernels.media.images import Photo, PhotoError, read_photo, write_photo
from stylekernels.serve.jpeg import encode_jpeg
from stylekernels.serve.limits import Limits
from stylekernels.serve.messages import Look
from stylekernels.serve.offer import preview_photo
from stylekernels.serve.painter import Painter


class Photos:
    """Paints uploaded photos, one at a time, and previews of the styles.

    Args:
        painter: paints them.
        limits: on files, pictures and times.
    """

    def __init__(self, painter: Painter, limits: Limits) -> None:
        self._painter, self._limits = painter, limits
        self._one_upload = asyncio.Semaphore(1)
        self._previews: dict[str, asyncio.Task[bytes]] = {}

    async def preview(self, request: web.Request) -> web.Response:
        """Answer with a small picture in a style, made when it is first wanted."""
        style = request.match_info["style"]
        if style not in self._painter.styles:
            raise web.HTTPNotFound(text=f"style: expected a style on offer, got {style[:80]!r}")
        if style not in self._previews:
            self._previews[style] = asyncio.create_task(
                self._painter.run(lambda: self._paint_preview(style), self._limits.seconds)
            )
        try:
            # Shielded: another client may wait for it when this one leaves.
            picture = await asyncio.shield(self._previews[style])
        except TimeoutError as error:
            self._previews.pop(style, None)
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        return web.Response(
            body=picture, content_type="image/jpeg", headers={"Cache-Control": "max-age=600"}
        )

    def _paint_preview(self, style: str) -> bytes:
        return encode_jpeg(self._painter.paint(preview_photo(), Look(style)))

    async def paint(self, request: web.Request) -> web.Response:
        """Answer an uploaded photo with its painting, a JPEG file."""
        try:
            look = Look.of(request.query.get("look", ""), self._painter.styles)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if (request.content_length or 0) > self._limits.upload_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._paint_upload(request, look), self._limits.seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise web.HTTPServiceUnavailable(
                text=f"photo: no picture within {self._limits.seconds:g} s; try again later"
            ) from error

    async def _paint_upload(self, request: web.Request, look: Look) -> web.Response:
        async with self._one_upload:
            try:
                data = await request.read()
            except web.HTTPRequestEntityTooLarge:
                raise self._too_large() from None
            with tempfile.TemporaryDirectory(prefix="stylekernels-") as folder:
                upload, picture = Path(folder, "photo"), Path(folder, "picture.jpg")
                try:
                    photo = await asyncio.to_thread(self._read, upload, data)
                    painted = await self._painter.run(
                        lambda: self._paint_photo(photo, look), self._limits.seconds
                    )
                    await asyncio.to_thread(write_photo, picture, painted)
                except ValueError as error:  # PhotoError is one
                    reason = str(error).removeprefix(f"{upload}: ").removeprefix(f"{picture}: ")
                    raise web.HTTPBadRequest(text=f"photo: {reason}") from error
                return web.Response(body=picture.read_bytes(), content_type="image/jpeg")

    def _read(self, path: Path, data: bytes) -> Photo:
        path.write_bytes(data)
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            width = height = 0  # read_photo says what is wrong
        if width * height > self._limits.upload_pixels:
            raise PhotoError(
                f"{path}: expected at most {self._limits.upload_pixels / 1e6:g} megapixels, got "
                f"{width}x{height}; scale it down first"
            )
        return read_photo(path, self._limits.upload_side)

    def _paint_photo(self, photo: Photo, look: Look) -> Photo:
        """Paint in sRGB, which networks and screens expect."""
        return dataclasses.replace(
            photo, rgb=self._painter.paint(photo.to_srgb(), look), alpha=None, profile=None
        )

    def _too_large(self) -> web.HTTPException:
        most = self._limits.upload_bytes
        return web.HTTPRequestEntityTooLarge(
            most, most + 1, text=f"photo: expected a file of at most {most >> 20} MiB, got more"
        )
