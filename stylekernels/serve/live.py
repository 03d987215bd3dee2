"""Live frames over a WebSocket: one frame in, one picture out, and only then the next one."""

import asyncio
import itertools
import json
import time
from dataclasses import replace

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from stylekernels.serve.jpeg import decode_jpeg, encode_jpeg
from stylekernels.serve.limits import Limits
from stylekernels.serve.messages import HEADER_BYTES, Header, Look
from stylekernels.serve.painter import Painter

_CLOSING_S = 1.0  # for the other side to confirm that the connection ends


class LiveClients:
    """The clients that send live frames.

    A client has one frame at work, whatever it sends: the next message is read when the picture
    of the last one was taken. TCP makes a faster client wait.

    Args:
        painter: paints the frames.
        limits: on clients, frames and times.
        first: name of the style that a client begins with.
    """

    def __init__(self, painter: Painter, limits: Limits, first: str) -> None:
        self._painter, self._limits, self._first = painter, limits, first
        self._sockets: set[web.WebSocketResponse] = set()

    def __len__(self) -> int:
        return len(self._sockets)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one client until it leaves."""
        socket = web.WebSocketResponse(
            max_msg_size=self._limits.frame_bytes + HEADER_BYTES,
            timeout=_CLOSING_S,
            compress=False,
        )
        await socket.prepare(request)
        if len(self) >= self._limits.clients:
            reason = f"no place is free, {self._limits.clients} at most; try again later"
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=reason.encode())
            return socket
        self._sockets.add(socket)
        try:
            await self._converse(socket)
        except asyncio.TimeoutError:  # the client takes no picture
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left
        finally:
            self._sockets.discard(socket)
        return socket

    async def close(self) -> None:
        """End all connections, because the server ends."""
        closing = (
            socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server has ended")
            for socket in [*self._sockets]
        )
        await asyncio.gather(*closing, return_exceptions=True)

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        look = Look(self._first)
        frame_until = time.monotonic() + self._limits.idle_seconds
        while True:
            try:
                # Not receive(timeout=...), which begins anew with each ping.
                message = await asyncio.wait_for(
                    socket.receive(), max(0, frame_until - time.monotonic())
                )
            except asyncio.TimeoutError:
                await socket.close(message=b"no frame for a while")
                return
            if message.type == WSMsgType.TEXT:
                try:
                    look = Look.of(message.data, self._painter.styles)
                except ValueError as error:
                    await self._send(socket, json.dumps({"error": str(error)}))
            elif message.type == WSMsgType.BINARY:
                await self._send(socket, await self._answer(message, look))
                frame_until = time.monotonic() + self._limits.idle_seconds
            else:
                return

    async def _answer(self, message: WSMessage, look: Look) -> bytes | str:
        """Return the picture of a frame, or the text of an error."""
        number = None
        try:
            header = Header.of(message.data)
            number = header.number
            asked = time.perf_counter()
            return await self._painter.run(
                lambda: self._picture(header, message.data, look, asked), self._limits.seconds
            )
        except (ValueError, TimeoutError) as error:
            return json.dumps({"error": str(error), "number": number})

    def _picture(self, header: Header, message: bytes, look: Look, asked: float) -> bytes:
        """Paint a frame, in the painter's thread."""
        times = [asked, time.perf_counter()]
        frame = decode_jpeg(memoryview(message)[HEADER_BYTES:], self._limits.frame_pixels)
        times.append(time.perf_counter())
        picture = self._painter.paint(frame, look)
        times.append(time.perf_counter())
        jpeg = encode_jpeg(picture)
        times.append(time.perf_counter())
        waited, decoded, painted, encoded = (
            1000 * (after - before) for before, after in itertools.pairwise(times)
        )
        header = replace(header, waited=waited, decoded=decoded, painted=painted, encoded=encoded)
        return bytes(header) + jpeg

    async def _send(self, socket: web.WebSocketResponse, answer: bytes | str) -> None:
        send = socket.send_bytes if isinstance(answer, bytes) else socket.send_str
        await asyncio.wait_for(send(answer), self._limits.seconds)
