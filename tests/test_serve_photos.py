"""The server of pages: uploaded photos, and previews of the styles."""

import asyncio
import time

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp")


from stylekernels.inference import Stylizer, blend  # noqa: E402
from stylekernels.serve.painter import Painter  # noqa: E402
from tests.pictures import picture  # noqa: E402
from tests.serving import (  # noqa: E402
    assert_painted,
    encoded,
    make_styles,
    pixels,
    png,
    serving,
    upload,
)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    return make_styles(tmp_path_factory.mktemp("styles"), 4)


def test_an_uploaded_photo_is_painted_in_its_own_size(styles):
    async def check():
        async with serving(styles) as client:
            photo = picture(90, 130)
            answer = await upload(client, png(photo), '{"style": "style_2", "strength": 0.6}')
            assert (answer.status, answer.content_type) == (200, "image/jpeg")
            expected = blend(photo, Stylizer(styles["style_2"][0])(photo), strength=0.6)
            assert_painted(pixels(await answer.read()), expected)

    asyncio.run(check())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_photos_of_browsers_and_phones_are_painted(styles, form):
    async def check():
        async with serving(styles) as client:
            answer = await upload(client, encoded(picture(40, 60), form))
            assert pixels(await answer.read()).shape == (40, 60, 3)

    asyncio.run(check())


def test_a_photo_that_stalls_keeps_no_other_waiting(styles):
    async def check():
        async with serving(styles, seconds=20, uploads=2) as client:
            released = asyncio.Event()

            async def stalled():
                data = png(picture())
                yield data[:100]
                await released.wait()
                yield data[100:]

            tasks = [asyncio.create_task(upload(client, stalled()))]
            await asyncio.sleep(0.2)
            assert (await upload(client, png(picture()))).status == 200
            tasks.append(asyncio.create_task(upload(client, stalled())))
            await asyncio.sleep(0.2)
            answer = await upload(client, png(picture()))
            text = "photo: 2 others are on their way; try again later"
            assert (answer.status, await answer.text()) == (503, text)
            released.set()
            assert [(await task).status for task in tasks] == [200, 200]
            assert (await upload(client, png(picture()))).status == 200

    asyncio.run(check())


def test_a_large_photo_is_scaled_down(styles):
    async def check():
        async with serving(styles, upload_side=64) as client:
            answer = await upload(client, png(picture(60, 128)))
            assert pixels(await answer.read()).shape == (30, 64, 3)

    asyncio.run(check())


async def in_parts(data):
    """Yield data without telling its size before."""
    for start in range(0, len(data), 4096):
        yield data[start : start + 4096]


@pytest.mark.parametrize(
    ("data", "look", "status", "text"),
    [
        (bytes(3 << 20), None, 413, "photo: expected a file of at most 2 MiB, got more"),
        ("parts", None, 413, "photo: expected a file of at most 2 MiB, got more"),
        (b"", None, 400, "photo: not a picture"),
        (b"hello", None, 400, "photo: not a picture"),
        (encoded(picture(), "EPS"), None, 400, "photo: not a picture in a format that can be read"),
        (encoded(picture(), "PPM"), None, 400, "photo: not a picture in a format that can be read"),
        (png(picture())[:500], None, 400, "photo: cut short"),
        (png(picture(101, 100)), None, 400, "photo: expected at most 0.01 megapixels, got 100x101"),
        (png(picture(8, 8)), None, 400, "photo: expected at least 16 pixels on each side"),
        (png(picture()), "", 400, "look: expected JSON"),
        (png(picture()), '{"style": "x"}', 400, "style: expected a style on offer, got 'x'"),
    ],
)
def test_a_photo_that_is_not_allowed_is_refused_in_a_line(styles, data, look, status, text):
    async def check():
        limits = {"upload_bytes": 2 << 20, "upload_pixels": 10_000}
        async with serving(styles, **limits) as client:
            body = in_parts(bytes(3 << 20)) if data == "parts" else data
            answer = await upload(client, body, *([] if look is None else [look]))
            said = await answer.text()
            assert (answer.status, "\n" in said) == (status, False)
            assert said.startswith(text)
            assert (await upload(client, png(picture()))).status == 200

    asyncio.run(check())


def test_a_photo_that_arrives_too_slowly_is_refused(styles):
    async def drops():
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.1)

    async def check():
        async with serving(styles, seconds=0.5) as client:
            begun = time.monotonic()
            try:
                answer = await upload(client, drops())
                assert answer.status == 503
            except aiohttp.ClientConnectionError:
                pass  # the connection ended before the client had sent everything
            assert time.monotonic() - begun < 9
            assert (await upload(client, png(picture()))).status == 200

    asyncio.run(check())


def test_each_style_has_a_preview_painted_once(styles, monkeypatch):
    painted = []
    paint = Painter.paint

    def count(self, rgb, look):
        painted.append(look.style)
        return paint(self, rgb, look)

    monkeypatch.setattr(Painter, "paint", count)

    async def check():
        async with serving(styles) as client:
            answers = await asyncio.gather(
                *(client.get(f"/previews/{name}.jpg") for name in [*styles, *styles])
            )
            pictures = [pixels(await answer.read()) for answer in answers]
            assert sorted(painted) == sorted(styles)
            for first, second in zip(pictures[:4], pictures[4:], strict=True):
                np.testing.assert_array_equal(first, second)
            assert len({each.tobytes() for each in pictures}) == 4
            answer = await client.get("/previews/other.jpg")
            assert (answer.status, await answer.text()) == (
                404,
                "style: expected a style on offer, got 'other'",
            )

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("weights: damaged"), 503), (MemoryError(), 503), (KeyError("x"), 500)],
)
def test_a_preview_that_failed_is_painted_when_it_is_wanted_again(
    styles, monkeypatch, error, status
):
    def fail(self, rgb, look):
        raise error

    async def check():
        async with serving(styles) as client:
            with monkeypatch.context() as patch:
                patch.setattr(Painter, "paint", fail)
                calls = (client.get("/previews/style_0.jpg") for _ in range(2))
                answers = await asyncio.gather(*calls)
                assert [answer.status for answer in answers] == [status, status]
            assert (await client.get("/previews/style_0.jpg")).status == 200

    asyncio.run(check())
