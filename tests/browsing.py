"""Chromium without a window, whose camera plays a file, and what the page shows in it."""

import base64
import contextlib
import shutil
import time

import av
import numpy as np
import playwright.sync_api as playwright
import pytest

from stylekernels.inference import Stylizer
from tests.clips import pictures
from tests.serving import pixels

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
NEEDS_CHROMIUM = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.slow,
]
PATIENCE_MS = 90_000
SIZE = 320, 240


def camera_frames(request):
    """Return frames of a real clip if there is one, else blotches that move."""
    try:
        folder = request.getfixturevalue("data_dir")
    except pytest.skip.Exception:
        return pictures(SIZE, 30)
    with av.open(str(folder / "clips" / "one-by-one-person-detection.mp4")) as clip:
        clip.seek(20_000_000)
        frames = (frame for frame, _ in zip(clip.decode(video=0), range(60), strict=False))
        return [frame.to_ndarray(format="rgb24", width=320, height=240) for frame in frames]


def write_y4m(path, frames):
    """Write frames as the uncompressed file that Chromium's camera plays, again and again."""
    height, width = frames[0].shape[:2]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F15:1 Ip A1:1 C420jpeg\n".encode())
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            file.write(b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes())
    return path


@contextlib.contextmanager
def open_browser(request, folder, *options):
    """Yield a Chromium with more command line options; its camera's file is made in a folder."""
    camera = write_y4m(folder / "camera.y4m", camera_frames(request))
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",  # which root has not
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-video-capture={camera}",
                *options,
            ],
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def watched_page(browser):
    """Yield a new page, on which no script has failed at the end."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield page
    page.close()
    assert not problems


def shows(page, selector, text):
    playwright.expect(page.locator(selector)).to_contain_text(text, timeout=PATIENCE_MS)


def shown(page):
    """Return the frame and the painting that the page shows."""
    urls = page.evaluate(
        "['original', 'painted'].map((id) => document.getElementById(id).toDataURL())"
    )
    return [pixels(base64.b64decode(url.partition(",")[2]))[..., :3].copy() for url in urls]


def wait_for(page, condition):
    """Wait until a function of the shown frame and painting is true; return these."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        frame, painted = shown(page)
        if condition(frame, painted):
            return frame, painted
        page.wait_for_timeout(50)
    raise AssertionError("the page never showed it")


def painted_by(generator):
    """Return whether a painting is that of a generator; JPEG lies between, twice."""
    paint = Stylizer(generator)

    def check(frame, painted):
        expected = paint(frame).astype(int)
        return np.abs(painted - expected).mean() < 6 < np.abs(painted - frame.astype(int)).mean()

    return check
