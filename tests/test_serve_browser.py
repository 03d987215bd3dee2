"""The page in a real browser, Chromium without a window, with a camera that plays a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("av")
playwright = pytest.importorskip("playwright.sync_api")

from stylekernels.inference import Stylizer  # noqa: E402
from tests.browsing import (  # noqa: E402
    NEEDS_CHROMIUM,
    SIZE,
    open_browser,
    painted_by,
    shows,
    wait_for,
    watched_page,
)
from tests.clips import make_clip, pictures  # noqa: E402
from tests.pictures import picture, save  # noqa: E402
from tests.serving import make_styles, pixels  # noqa: E402

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    return make_styles(tmp_path_factory.mktemp("styles"), 2)


@pytest.fixture(scope="module")
def server(styles):
    """The address of a server in a process of its own, and the process."""
    paths = [path for _, path in styles.values()]
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "stylekernels"),
            *("serve", "--port", "0"),
            "--style",
            *paths,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    yield process.stdout.readline().split()[0], process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def browser(request, tmp_path_factory):
    with open_browser(request, tmp_path_factory.mktemp("camera")) as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    with watched_page(browser) as page:
        page.goto(server[0])
        shows(page, "#speed", "painted in")
        yield page


def test_the_camera_is_painted_live_and_a_style_switch_changes_it(page, styles):
    first, second = (painted_by(generator) for generator, _ in styles.values())
    page.get_by_role("button", name="Camera").click()
    shows(page, "#speed", "fps")
    shows(page, "#status", "Camera:")
    frame, _ = wait_for(page, first)
    assert frame.shape == (240, 320, 3)
    wait_for(page, lambda now, painted: not np.array_equal(now, frame))
    page.get_by_role("radio", name="Style 1").check()
    frame, painted = wait_for(page, second)
    assert not first(frame, painted)
    shows(page, "#speed", "fps")
    assert page.get_by_role("img", name="Picture painted in the style Style 1").count() == 1


def test_the_keyboard_reaches_the_settings(page, styles):
    split = page.get_by_role("slider", name="Part of the picture that shows the original")
    split.focus()
    before = int(split.input_value())
    page.keyboard.press("ArrowRight")
    assert split.get_attribute("aria-valuetext") == f"{before + 1} % original"
    strength = page.get_by_role("slider", name="Strength")
    strength.focus()
    page.keyboard.press("Home")
    shows(page, "#strength-value", "0 %")
    wait_for(page, lambda frame, painted: np.abs(painted - frame.astype(int)).mean() < 6)
    page.keyboard.press("End")
    wait_for(page, painted_by(styles["style_0"][0]))
    page.get_by_role("switch", name="Original colours").press("Space")
    wait_for(page, lambda *pair: not painted_by(styles["style_0"][0])(*pair))
    page.get_by_role("radio", name="Style 0").focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(page.get_by_role("radio", name="Style 1")).to_be_checked()
    page.get_by_role("combobox", name="Resolution").select_option("320")
    wait_for(page, lambda frame, painted: frame.shape == painted.shape == (240, 320, 3))


def test_a_photo_is_painted_and_saved_in_its_own_size(page, styles, tmp_path):
    photo = picture(300, 900)
    page.set_input_files("#photo-file", save(tmp_path / "mine.png", photo))
    shows(page, "#status", "mine.png")
    wait_for(page, lambda frame, painted: frame.shape == (213, 640, 3))
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save picture").click()
    assert saved.value.suggested_filename == "style_0.jpg"
    painted = pixels(Path(saved.value.path()).read_bytes())
    expected = Stylizer(styles["style_0"][0])(photo)
    assert np.abs(painted.astype(int) - expected).mean() < 4
    page.set_input_files("#photo-file", save(tmp_path / "small.png", picture(20, 20)))
    shows(page, "#status", "small.png")
    (tmp_path / "note.png").write_text("hello")
    page.set_input_files("#photo-file", tmp_path / "note.png")
    shows(page, "#status", "This browser cannot show note.png.")


def test_a_video_is_painted_while_it_plays(page, styles, tmp_path):
    clip = make_clip(
        tmp_path / "clip.webm", size=SIZE, frames=pictures(SIZE, 50), codec="libvpx-vp9"
    )
    page.set_input_files("#video-file", clip)
    shows(page, "#status", "clip.webm")
    shows(page, "#speed", "fps")
    frame, _ = wait_for(page, painted_by(styles["style_0"][0]))
    wait_for(page, lambda now, painted: not np.array_equal(now, frame))
    page.get_by_role("button", name="Pause").click()
    playwright.expect(page.get_by_role("button", name="Play")).to_be_visible()
    shows(page, "#clock", "/ 0:02")
    (tmp_path / "note.webm").write_text("hello")
    page.set_input_files("#video-file", tmp_path / "note.webm")
    shows(page, "#status", "This browser cannot play note.webm.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (320, 568), (768, 1024), (1440, 900)])
def test_the_page_fits_its_window(page, size, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.locator("#picture").bounding_box()["y"] + 200 < size[1]
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), select')].filter((each) =>"
        " !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).length"
    )
    assert unnamed == 0


def test_the_page_says_that_the_server_has_ended(browser, server):
    address, process = server  # the last test that needs it
    page = browser.new_page()
    page.goto(address)
    shows(page, "#speed", "painted in")
    process.terminate()
    assert process.wait(60) == 0
    page.get_by_role("switch", name="Original colours").check()
    shows(page, "#speed", "Not connected")
    shows(page, "#status", "The server")
    page.close()
