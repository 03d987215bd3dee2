"""``stylekernels serve`` in a process of its own, and a client that behaves as its page."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.live.part import Part, parts_of, resident
from stylekernels.models import StyleGenerator
from stylekernels.serve.jpeg import encode_jpeg
from stylekernels.serve.messages import Header

# As in serve/page/engine.js.
_MARGIN_MS = 3.0
_STEP_MS = 0.5
_PATIENCE_S = 40.0


@contextlib.contextmanager
def serving(generator: StyleGenerator, folder: Path, device: str) -> Iterator["Served"]:
    """Serve a generator on this machine, inside a ``with`` block."""
    style = folder / "style.safetensors"
    generator.save_pretrained(style)
    command = [sys.executable, "-m", "stylekernels", "serve", "--port", "0", "--device", device]
    with subprocess.Popen(
        [*command, "--style", str(style)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            first = process.stdout.readline().split()
            if not first:
                raise RuntimeError("stylekernels serve has ended")
            yield Served(first[0], process.pid)
        finally:
            process.terminate()


class Served:
    """A running server."""

    def __init__(self, address: str, process: int) -> None:
        self._address, self._process = address, process

    def run(self, size: tuple[int, int], rate: float, pictures: int) -> list[Part]:
        """Have frames of a camera painted, and return what was measured in each tenth of the run.

        Args:
            size: width and height.
            rate: frames a second of the camera. The newest one is sent.
            pictures: number of pictures, at least 20.
        """
        return asyncio.run(self._run(size, rate, pictures))

    async def _run(self, size: tuple[int, int], rate: float, pictures: int) -> list[Part]:
        noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        frame = encode_jpeg(np.asarray(Image.fromarray(noise).resize(size, Image.BICUBIC)))
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self._address}live", max_msg_size=0) as socket,
        ):
            return await _Page(socket, frame, rate, self._process).show(pictures)


class _Page:
    """Sends each frame a little before the server has painted the one before it."""

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, frame: bytes, rate: float, process: int
    ) -> None:
        self._socket, self._frame, self._rate, self._process = socket, frame, rate, process
        self._lead, self._pause = 0.0, _PATIENCE_S
        self._captured: list[float] = []
        self._answered = [asyncio.Event()]
        self._answered[0].set()

    async def show(self, pictures: int) -> list[Part]:
        sending = asyncio.create_task(self._send(pictures))
        times, late, memory = [], [], []
        for number in range(pictures):
            message = await self._socket.receive_bytes(timeout=_PATIENCE_S)
            header = Header.of(message)
            self._lead += _STEP_MS if header.waited < _MARGIN_MS else -_STEP_MS
            self._lead = min(max(self._lead, 0), header.painted)
            self._pause = (header.painted - self._lead) / 1000
            self._answered[number + 1].set()
            times.append(time.perf_counter())
            late.append(times[-1] - self._captured[number])
            memory.append(resident(self._process))
        await sending
        return parts_of(times, late, memory)

    async def _send(self, pictures: int) -> None:
        began = time.perf_counter()
        for number in range(pictures):
            now = time.perf_counter()
            self._captured.append(began + (now - began) // (1 / self._rate) / self._rate)
            self._answered.append(asyncio.Event())
            await self._socket.send_bytes(bytes(Header(number, 0.0)) + self._frame)
            await self._answered[-2].wait()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._answered[-1].wait(), self._pause)
