"""Several frames of a client with the server: how many, in which order, with which look."""

import asyncio
import io
import itertools
import threading

import pytest
from PIL import Image

pytest.importorskip("aiohttp")

from stylekernels.inference import Stylizer
from stylekernels.serve import live
from stylekernels.serve.painter import Painter
from tests.pictures import picture
from tests.serving import (
    assert_painted,
    error_of,
    frame_message,
    make_styles,
    open_picture,
    send_look,
    serving,
)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    return make_styles(tmp_path_factory.mktemp("styles"), 2)


@pytest.fixture
def held(monkeypatch):
    """Hold the painter until the event is set."""
    event, paint = threading.Event(), Painter.paint

    def wait(self, rgb, look):
        event.wait(30)
        return paint(self, rgb, look)

    monkeypatch.setattr(Painter, "paint", wait)
    return event


async def until(condition):
    for _ in range(300):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not happen within 30 s")


def test_two_frames_are_decoded_and_no_more_until_one_is_painted(styles, held, monkeypatch):
    decoded = []

    def decode(data, most_pixels):
        decoded.append(len(data))
        return picture(48, 64)

    monkeypatch.setattr(live, "decode_jpeg", decode)

    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            for number in range(5):
                await socket.send_bytes(frame_message(picture(48, 64), number)[0])
            await until(lambda: len(decoded) == 2)
            await asyncio.sleep(0.3)
            assert len(decoded) == 2
            held.set()
            for number in range(5):
                header, _ = open_picture((await socket.receive(timeout=30)).data)
                assert header[1] == number
            assert len(decoded) == 5

    asyncio.run(check())


def test_frames_keep_their_order_and_the_looks_before_them(styles, held):
    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            sent = []
            for number, name in zip(range(6), itertools.cycle(styles), strict=False):
                message, frame = frame_message(picture(48, 64, seed=number), number)
                await send_look(socket, name)
                await socket.send_bytes(message)
                sent.append((name, frame))
            held.set()
            for number, (name, frame) in enumerate(sent):
                header, painted = open_picture((await socket.receive(timeout=30)).data)
                assert header[1] == number
                assert_painted(painted, Stylizer(styles[name][0])(frame))

    asyncio.run(check())


def test_an_error_has_the_place_of_its_frame(styles, held, monkeypatch):
    decoded, decode = [], live.decode_jpeg

    def note(data, most_pixels):
        decoded.append(len(data))
        return decode(data, most_pixels)

    monkeypatch.setattr(live, "decode_jpeg", note)

    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            good = frame_message(picture(48, 64), 7)[0]
            await socket.send_bytes(good)
            await socket.send_bytes(good[:32] + bytes(100))
            await until(lambda: len(decoded) == 2)  # the second one is refused by now
            held.set()
            header, _ = open_picture((await socket.receive(timeout=30)).data)
            assert header[1] == 7
            assert (await error_of(socket)).startswith("frame: expected a JPEG file")

    asyncio.run(check())


def test_a_wait_longer_than_the_time_without_frames_keeps_the_place(styles, held):
    async def check():
        served = serving(styles, idle_seconds=1)
        async with served as client, client.ws_connect("/live") as socket:
            await socket.send_bytes(frame_message(picture(48, 64), 3)[0])
            await asyncio.sleep(3)
            held.set()
            header, _ = open_picture((await socket.receive(timeout=30)).data)
            assert header[1] == 3

    asyncio.run(check())


def test_the_time_without_frames_begins_anew_with_each_picture(styles):
    async def check():
        served = serving(styles, idle_seconds=2)
        async with served as client, client.ws_connect("/live") as socket:
            for number in range(3):
                await asyncio.sleep(1.2)
                await socket.send_bytes(frame_message(picture(48, 64), number)[0])
                header, _ = open_picture((await socket.receive(timeout=30)).data)
                assert header[1] == number

    asyncio.run(check())


def test_too_little_memory_for_a_jpeg_file_is_an_error_of_that_frame(styles, monkeypatch):
    def fail(rgb):
        raise MemoryError

    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            with monkeypatch.context() as patch:
                patch.setattr(live, "encode_jpeg", fail)
                await socket.send_bytes(frame_message(picture(48, 64), 1)[0])
                assert (await error_of(socket)).startswith("resolution: needs more memory")
            await socket.send_bytes(frame_message(picture(48, 64), 2)[0])
            header, _ = open_picture((await socket.receive(timeout=30)).data)
            assert header[1] == 2

    asyncio.run(check())


def test_colours_of_print_are_refused(styles):
    file = io.BytesIO()
    Image.fromarray(picture(48, 64)).convert("CMYK").save(file, "JPEG")
    header = frame_message(picture(48, 64))[0][:32]

    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            await socket.send_bytes(header + file.getvalue())
            text = "frame: expected the colours of a screen, got CMYK; send RGB"
            assert await error_of(socket) == text

    asyncio.run(check())
