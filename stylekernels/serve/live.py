"""Live frames over a WebSocket: while one is painted, the next is decoded and the last encoded."""

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from stylekernels.serve.jpeg import decode_jpeg, encode_jpeg
from stylekernels.serve.limits import Limits
from stylekernels.serve.messages import HEADER_BYTES, Header, Look
from stylekernels.serve.painter import Painter
from stylekernels.serve.threads import run_in

Result = TypeVar("Result")

_MOST_AT_WORK = 2  # frames of a client: one is painted, another one decoded or encoded
_CLOSING_S = 1.0  # time in which the other side can confirm that the connection ends


class LiveClients:
    """The clients that send live frames.

    A client has at most two frames at work, whatever it sends: its next message is read when the
    picture of the first one was taken. TCP makes a faster client wait.

    Args:
        painter: paints the frames.
        limits: on clients, frames and times.
        first: name of the style that a client begins with.
    """

    def __init__(self, painter: Painter, limits: Limits, first: str) -> None:
        self._painter, self._limits, self._first = painter, limits, first
        self._sockets: set[web.WebSocketResponse] = set()
        self._codec = ThreadPoolExecutor(1, "codec")

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
            frames = _Frames(socket, self._painter, self._codec, self._limits)
            await frames.answer_all(Look(self._first))
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
        self._codec.shutdown(cancel_futures=True)


class _Frames:
    """The frames of one client, answered in their order."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        painter: Painter,
        codec: ThreadPoolExecutor,
        limits: Limits,
    ) -> None:
        self._socket, self._painter, self._codec, self._limits = socket, painter, codec, limits
        self._answers: deque[asyncio.Task[bytes | str]] = deque()
        self._changed = asyncio.Event()  # set when an answer is added or removed
        self._ended = False
        self._heard_at = time.monotonic()

    async def answer_all(self, look: Look) -> None:
        """Answer frames until the client leaves, or sends none for a while.

        Args:
            look: of the frames before the client sends a look.

        Raises:
            asyncio.TimeoutError: if the client takes no picture.
            ConnectionError: if the client has left while a picture was sent.
        """
        tasks = [asyncio.create_task(self._receive(look)), asyncio.create_task(self._send_all())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            self._ended = True
            tasks += self._answers
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, look: Look) -> None:
        """Receive looks and frames."""
        # wait_for of Python 3.10 and 3.11 swallows a cancellation if there is a message.
        while not self._ended:
            try:
                # Not receive(timeout=...), which begins anew with each ping.
                message = await asyncio.wait_for(self._socket.receive(), max(0, self._time_left()))
            except asyncio.TimeoutError:
                if self._answers:
                    self._heard_at = time.monotonic()
                if self._time_left() > 0:
                    continue
                await self._socket.close(message=b"no frame for a while")
                return
            if message.type == WSMsgType.TEXT:
                try:
                    look = Look.of(message.data, self._painter.styles)
                except ValueError as error:
                    await self._send(json.dumps({"error": str(error)}))
            elif message.type == WSMsgType.BINARY:
                self._answers.append(asyncio.create_task(self._answer(message.data, look)))
                self._changed.set()
                await self._until(lambda: len(self._answers) < _MOST_AT_WORK)
            else:
                return

    def _time_left(self) -> float:
        """Return the seconds after which a silent client loses its place."""
        return self._heard_at + self._limits.idle_seconds - time.monotonic()

    async def _send_all(self) -> None:
        """Send answers."""
        while True:
            await self._until(lambda: len(self._answers) > 0)
            await self._send(await self._answers[0])
            self._heard_at = time.monotonic()
            self._answers.popleft()
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _answer(self, message: bytes, look: Look) -> bytes | str:
        """Return the picture of a frame, or the text of an error."""
        number = None
        received = time.perf_counter()
        try:
            header = Header.of(message)
            number = header.number
            jpeg = memoryview(message)[HEADER_BYTES:]
            frame = await self._in_codec(decode_jpeg, jpeg, self._limits.frame_pixels)
            decoded = time.perf_counter()
            began, picture, ended = await self._painter.run(
                lambda: (
                    time.perf_counter(),
                    self._painter.paint(frame, look),
                    time.perf_counter(),
                ),
                self._limits.seconds,
            )
            jpeg = await self._in_codec(encode_jpeg, picture)
        except (ValueError, TimeoutError) as error:
            return json.dumps({"error": str(error), "number": number})
        times = received, decoded, began, ended, time.perf_counter()
        decoding, waiting, painting, encoding = (
            1000 * (after - before) for before, after in itertools.pairwise(times)
        )
        header = replace(
            header, waited=waiting, decoded=decoding, painted=painting, encoded=encoding
        )
        return bytes(header) + jpeg

    async def _in_codec(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await run_in(self._codec, lambda: work(*arguments), self._limits.seconds)

    async def _send(self, answer: bytes | str) -> None:
        send = self._socket.send_bytes if isinstance(answer, bytes) else self._socket.send_str
        await asyncio.wait_for(send(answer), self._limits.seconds)
