"""Single pictures: uploaded photos in full quality, and previews of the styles."""

import asyncio
import dataclasses
import tempfile
from pathlib import Path

from aiohttp import web
from PIL import Image

from stylekernels.media.images import Photo, PhotoError, open_image, read_photo, write_photo
from stylekernels.serve.jpeg import encode_jpeg
from stylekernels.serve.limits import Limits
from stylekernels.serve.messages import Look
from stylekernels.serve.offer import preview_photo
from stylekernels.serve.painter import Painter

#: Pillow's names of the formats that browsers and phones send. Its others are rarely used, and
#: decoders of files from strangers should be few.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")


class Photos:
    """Paints uploaded photos, one at a time, and previews of the styles.

    Uploads go into files, side by side: a slow client does not keep the others waiting.

    Args:
        painter: paints them.
        limits: on files, pictures and times.
    """

    def __init__(self, painter: Painter, limits: Limits) -> None:
        self._painter, self._limits = painter, limits
        self._uploads = 0
        self._one_photo = asyncio.Semaphore(1)
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
            self._previews[style].add_done_callback(lambda task: self._forget_failure(style, task))
        try:
            # Shielded: another client may wait for it when this one leaves.
            picture = await asyncio.shield(self._previews[style])
        except (TimeoutError, ValueError) as error:
            text = " ".join(str(error).split())
            raise web.HTTPServiceUnavailable(text=text) from error
        return web.Response(
            body=picture, content_type="image/jpeg", headers={"Cache-Control": "max-age=600"}
        )

    def _forget_failure(self, style: str, task: "asyncio.Task[bytes]") -> None:
        """Let the next client have a preview painted anew."""
        if task.cancelled() or task.exception() is not None:
            del self._previews[style]

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
        if self._uploads >= self._limits.uploads:
            raise web.HTTPServiceUnavailable(
                text=f"photo: {self._uploads} others are on their way; try again later"
            )
        self._uploads += 1
        try:
            return await asyncio.wait_for(self._paint_upload(request, look), self._limits.seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise web.HTTPServiceUnavailable(
                text=f"photo: no picture within {self._limits.seconds:g} s; try again later"
            ) from error
        finally:
            self._uploads -= 1

    async def _paint_upload(self, request: web.Request, look: Look) -> web.Response:
        with tempfile.TemporaryDirectory(prefix="stylekernels-") as folder:
            upload, picture = Path(folder, "photo"), Path(folder, "picture.jpg")
            await self._receive(request, upload)
            try:
                async with self._one_photo:
                    photo = await asyncio.to_thread(self._read, upload)
                    painted = await self._painter.run(
                        lambda: self._paint_photo(photo, look), self._limits.seconds
                    )
                    await asyncio.to_thread(write_photo, picture, painted)
            except ValueError as error:  # PhotoError is one
                reason = str(error).removeprefix(f"{upload}: ").removeprefix(f"{picture}: ")
                raise web.HTTPBadRequest(text=f"photo: {reason}") from error
            return web.Response(body=picture.read_bytes(), content_type="image/jpeg")

    async def _receive(self, request: web.Request, path: Path) -> None:
        """Write the body of a request into a file."""
        size = 0
        with path.open("wb") as file:
            async for part in request.content.iter_any():
                size += len(part)
                if size > self._limits.upload_bytes:
                    raise self._too_large()
                file.write(part)

    def _read(self, path: Path) -> Photo:
        try:
            with open_image(path, _FORMATS) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            width = height = 0  # read_photo says what is wrong
        if width * height > self._limits.upload_pixels:
            raise PhotoError(
                f"{path}: expected at most {self._limits.upload_pixels / 1e6:g} megapixels, got "
                f"{width}x{height}; scale it down first"
            )
        return read_photo(path, self._limits.upload_side, formats=_FORMATS)

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
