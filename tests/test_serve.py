"""The server of pages: frames, and clients that behave badly. No browser is needed."""

import asyncio
import socket
import struct
import threading

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp")

from aiohttp import WSCloseCode, WSMsgType  # noqa: E402

from stylekernels.inference import Stylizer, blend  # noqa: E402
from stylekernels.serve.painter import Painter  # noqa: E402
from tests.pictures import picture  # noqa: E402
from tests.serving import (  # noqa: E402
    assert_painted,
    error_of,
    frame_message,
    make_styles,
    no_clients,
    open_picture,
    paint,
    png,
    send_look,
    serving,
    upload,
    works,
)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    return make_styles(tmp_path_factory.mktemp("styles"), 4)


# ---- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        {},
        {"strength": 0.4},
        {"preserve_colors": True},
        {"strength": 0.7, "preserve_colors": True},
    ],
)
def test_a_frame_becomes_the_stylizers_picture(styles, look):
    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            await send_look(socket, "style_1", **look)
            frame, painted = await paint(socket)
            expected = blend(frame, Stylizer(styles["style_1"][0])(frame), **look)
            assert_painted(painted, expected)
            assert np.abs(painted.astype(int) - frame).mean() > 10

    asyncio.run(check())


def test_a_client_begins_with_the_first_style_and_a_header_tells_the_times(styles):
    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            message, frame = frame_message(picture(48, 64), number=4_000_000_000, time=1234.5)
            await socket.send_bytes(message)
            header, painted = open_picture((await socket.receive(timeout=30)).data)
            assert_painted(painted, Stylizer(styles["style_0"][0])(frame))
            assert header[:3] == (b"SKF1", 4_000_000_000, 1234.5)
            assert all(0 < duration < 30_000 for duration in header[3:])

    asyncio.run(check())


def test_eight_clients_at_once_keep_their_own_looks(styles):
    async def use(client, index):
        name, strength = f"style_{index % 4}", (1, 0.5)[index // 4]
        size = 48 + 16 * (index % 3), 64
        paint = Stylizer(styles[name][0])
        async with client.ws_connect("/live") as socket:
            await send_look(socket, name, strength=strength)
            for number in range(5):
                message, frame = frame_message(picture(*size, seed=10 * index + number), number)
                await socket.send_bytes(message)
                header, painted = open_picture((await socket.receive(timeout=60)).data)
                assert header[1] == number
                assert_painted(painted, blend(frame, paint(frame), strength=strength))

    async def check():
        async with serving(styles) as client:
            await asyncio.gather(*(use(client, index) for index in range(8)))

    asyncio.run(check())


def test_sizes_beyond_the_memory_for_prepared_ones_are_painted_too(styles, monkeypatch):
    from stylekernels.serve import painter as module

    monkeypatch.setattr(module, "_PREPARED_PIXELS", 5000)
    name, (generator, path) = next(iter(styles.items()))
    painter = Painter({name: path})
    look = module.Look(name)
    for width in (64, 80, 96, 64):
        frame = picture(48, width)
        np.testing.assert_array_equal(painter.paint(frame, look), Stylizer(generator)(frame))
        assert len(painter._stylizers) == 1
    painter.close()


# ---- frames and looks that are refused ---------------------------------------------------------


GOOD = frame_message(picture(48, 64))[0]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "frame: expected a header of 32 bytes"),
        (b"SKF1", "frame: expected a header of 32 bytes"),
        (b"SKF2" + GOOD[4:], "frame: expected a header of 32 bytes that begins with SKF1"),
        (GOOD[:32], "frame: expected a JPEG file, got 0 bytes"),
        (GOOD[:32] + bytes(1000), "frame: expected a JPEG file, got 1000 bytes"),
        (GOOD[:-200], "frame: expected a JPEG file"),
        (GOOD[:32] + png(picture()), "frame: expected a JPEG file"),
        (frame_message(picture(101, 100))[0], "frame: expected at most 10000 pixels, got 100x101"),
        (frame_message(picture(15, 64))[0], "frame: expected at least 16 pixels a side, got 64x15"),
    ],
)
def test_a_malformed_frame_is_refused_in_a_line_and_the_next_one_painted(styles, message, text):
    async def check():
        served = serving(styles, frame_pixels=10_000)
        async with served as client, client.ws_connect("/live") as socket:
            await socket.send_bytes(message)
            assert (await error_of(socket)).startswith(text)
            await paint(socket)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("look", "text"),
    [
        ("", "look: expected JSON"),
        ("[1]", "look: expected JSON"),
        ("[" * 100_000, "look: expected JSON"),
        ('{"style": "style_1", "speed": 1}', "look: expected JSON"),
        ('{"style": "../style_1"}', "style: expected a style on offer, got '../style_1'"),
        ('{"style": ["style_1"]}', "style: expected a style on offer"),
        ('{"style": "style_1", "strength": 1.5}', "strength: expected a number from 0 to 1"),
        ('{"style": "style_1", "strength": NaN}', "strength: expected a number from 0 to 1"),
        ('{"style": "style_1", "strength": true}', "strength: expected a number from 0 to 1"),
        ('{"style": "style_1", "strength": 1%s}' % ("0" * 400), "strength: expected a number"),
        ('{"style": "style_1", "preserve_colors": 1}', "preserve_colors: expected true or false"),
    ],
)
def test_a_look_that_is_not_allowed_changes_nothing(styles, look, text):
    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            await socket.send_str(look)
            assert (await error_of(socket)).startswith(text)
            frame, painted = await paint(socket)
            assert_painted(painted, Stylizer(styles["style_0"][0])(frame))

    asyncio.run(check())


def test_a_message_that_is_too_large_ends_its_connection_only(styles):
    async def check():
        async with serving(styles, frame_bytes=100_000) as client:
            async with client.ws_connect("/live") as other:
                async with client.ws_connect("/live") as socket:
                    await socket.send_bytes(GOOD + bytes(200_000))
                    message = await socket.receive(timeout=30)
                    assert message.type == WSMsgType.CLOSE
                    assert message.data == WSCloseCode.MESSAGE_TOO_BIG
                await paint(other)
            await no_clients(client)

    asyncio.run(check())


# ---- places ------------------------------------------------------------------------------------


def test_more_clients_than_places_are_told_so(styles):
    async def check():
        async with serving(styles, clients=2) as client:
            async with client.ws_connect("/live") as first, client.ws_connect("/live") as second:
                async with client.ws_connect("/live") as third:
                    message = await third.receive(timeout=30)
                    assert message.data == WSCloseCode.TRY_AGAIN_LATER
                    assert message.extra == "no place is free, 2 at most; try again later"
                await paint(first)
                await paint(second)
            await no_clients(client)
            await works(client)

    asyncio.run(check())


def test_two_hundred_visits_leave_no_place_taken(styles):
    async def check():
        async with serving(styles, clients=2) as client:
            for index in range(200):
                socket = await client.ws_connect("/live")
                if index % 3 == 1:
                    await socket.send_bytes(GOOD)  # and leaves without its picture
                if index % 2:
                    socket._response.connection.transport.abort()
                await socket.close()
                while len(client.clients) > 1:
                    await asyncio.sleep(0.001)
            await no_clients(client)
            await works(client)

    asyncio.run(check())


def test_a_client_that_is_silent_loses_its_place(styles):
    async def check():
        async with serving(styles, idle_seconds=0.2) as client:
            async with client.ws_connect("/live", autoclose=False) as socket:
                message = await socket.receive(timeout=30)
                assert (message.type, message.extra) == (WSMsgType.CLOSE, "no frame for a while")
                await no_clients(client)
            await works(client)

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["ping", "look"])
def test_a_client_without_frames_loses_its_place_whatever_else_it_sends(styles, kind):
    async def check():
        served = serving(styles, idle_seconds=1)
        async with served as client, client.ws_connect("/live", autoclose=False) as socket:
            await paint(socket)
            for _ in range(200):
                if not len(client.clients):
                    break
                await (socket.ping() if kind == "ping" else send_look(socket, "style_1"))
                await asyncio.sleep(0.1)
            assert not len(client.clients)
            message = await socket.receive(timeout=30)
            assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.OK)
            assert message.extra == "no frame for a while"

    asyncio.run(check())


def test_a_client_that_reads_no_picture_loses_its_place(styles, monkeypatch):
    """It sends frames and never reads: the server waits for a while, and holds one picture."""
    monkeypatch.setattr(Painter, "paint", lambda self, rgb, look: rgb)

    async def check():
        async with serving(styles, seconds=1, clients=1) as client:
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
            message, _ = frame_message(noise)
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((client.host, client.port))
            reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
            writer.write(
                f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            assert len(client.clients) == 1
            head = b"\x82\xff" + struct.pack(">Q", len(message)) + bytes(4)  # masked with zeros
            for _ in range(100):
                if not len(client.clients):
                    break
                writer.write(head + message)
                try:
                    await asyncio.wait_for(writer.drain(), 0.1)
                except asyncio.TimeoutError:
                    pass
                except ConnectionError:
                    break
            await no_clients(client)  # though this one has not left
            writer.transport.abort()
            await works(client)

    asyncio.run(check())


def test_a_frame_that_waits_too_long_is_refused(styles, monkeypatch):
    released = threading.Event()

    def wait(self, rgb, look):
        released.wait(30)
        return rgb

    async def check():
        async with serving(styles, seconds=0.3) as client, client.ws_connect("/live") as socket:
            await socket.send_bytes(GOOD)
            assert (await error_of(socket)).startswith("no picture within 0.3 s")
            released.set()
            await paint(socket)

    monkeypatch.setattr(Painter, "paint", wait)
    asyncio.run(check())


def test_too_little_memory_is_an_error_of_that_frame(styles, monkeypatch):
    def fail(self, rgb, look):
        raise MemoryError

    async def check():
        async with serving(styles) as client, client.ws_connect("/live") as socket:
            with monkeypatch.context() as patch:
                patch.setattr(Painter, "paint", fail)
                await socket.send_bytes(GOOD)
                text = "resolution: needs more memory than there is; lower the resolution"
                assert await error_of(socket) == text
                answer = await upload(client, png(picture()))
                assert (answer.status, await answer.text()) == (400, f"photo: {text}")
            await paint(socket)

    asyncio.run(check())


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_and_what_it_loads(styles):
    async def check():
        async with serving(styles) as client:
            answer = await client.get("/")
            text = await answer.text()
            assert answer.content_type == "text/html"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "http://" not in text.replace("http://www.w3.org/", "")
            for name, kind in [
                ("style.css", "text/css"),
                ("app.js", "javascript"),
                ("engine.js", "javascript"),
                ("photo.jpg", "image/jpeg"),
                ("icon.svg", "image/svg"),
            ]:
                answer = await client.get(f"/{name}")
                assert answer.status == 200
                assert kind in answer.headers["Content-Type"]
            offer = await (await client.get("/styles.json")).json()
            assert offer["first"] == "style_0"
            assert [style["title"] for style in offer["styles"]] == [
                "Style 0",
                "Style 1",
                "Style 2",
                "Style 3",
            ]

    asyncio.run(check())


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/..%2fapp.py",
        "/%2e%2e/app.py",
        "/%2e%2e%2fapp.py",
        "/..\\app.py",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/page/../../app.py",
        "/style.css/../../app.py",
        "/previews/..%2f..%2fapp.py.jpg",
        "/previews/%2e%2e.jpg",
        "/app.py%00.js",
        "/__init__.py",
    ],
)
def test_a_path_never_leaves_its_folder(styles, path):
    async def check():
        async with serving(styles) as client:
            reader, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            status, body = int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
            assert status in (400, 403, 404)
            assert b"import" not in body
            assert b"root:" not in body
            await works(client)

    asyncio.run(check())


def test_what_is_no_http_is_refused(styles):
    async def check():
        async with serving(styles) as client:
            for junk in (b"\x16\x03\x01\x02\x00" * 50, b"GET\r\n\r\n", b"\0" * 100_000):
                reader, writer = await asyncio.open_connection(client.host, client.port)
                writer.write(junk + b"\r\n\r\n")
                answer = await asyncio.wait_for(reader.read(), 30)
                assert answer.split()[1] == b"400"
                writer.close()
            await works(client)

    asyncio.run(check())
