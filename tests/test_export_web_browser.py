"""The exported page in a real browser: it paints by itself, with nothing but the folder."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("aiohttp")
pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("playwright.sync_api")

from stylekernels.export.runtime import read_runtime
from stylekernels.export.web_page import write_page
from stylekernels.inference import Stylizer, blend
from tests.browsing import (
    NEEDS_CHROMIUM,
    SIZE,
    open_browser,
    shows,
    wait_for,
    watched_page,
)
from tests.clips import make_clip, pictures
from tests.pictures import picture, save
from tests.serving import make_styles, pixels

pytestmark = NEEDS_CHROMIUM
WHERE = "some/where"  # below the root of the host

# Paints a part of the frame on the page, as engine.js does, in a way to compute.
PAINT_BY = """async (way) => {
  const worker = new Worker('worker.js', { type: 'module', name: way });
  const frame = await createImageBitmap(document.getElementById('original'), 0, 0, 64, 48);
  const answered = new Promise((resolve) => { worker.onmessage = resolve; });
  const values = { frame, style: 'style_0', strength: 1, preserveColors: false };
  worker.postMessage({ number: 1, action: 'paint', values }, [frame]);
  const { result, error } = (await answered).data;
  worker.terminate();
  if (error) throw new Error(error);
  const context = new OffscreenCanvas(64, 48).getContext('2d');
  context.drawImage(result.picture, 0, 0);
  return Array.from(context.getImageData(0, 0, 64, 48).data);
}"""


# A worker that is told how fast each way is, and what goes wrong in it.
WORKER = """
const { msPerPixel, picture, problem } = WAYS[self.name];
onmessage = ({ data: { number, action, values } }) => {
  const paint = { picture: values?.frame, timings: {} };
  const result = { open: null, time: { msPerPixel, picture }, keep: null, paint }[action];
  postMessage(action === problem ? { number, error: 'no' } : { number, result });
};
"""
GPU = """Object.defineProperty(navigator, 'gpu', {
  value: { requestAdapter: async () => ({ info: { isFallbackAdapter: IS_IMITATED } }) },
});"""
FAST, SLOW = 1e-4, 1e-2  # ms a pixel


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Host:
    """A host of files, as `python -m http.server` is."""

    def __init__(self, folder):
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/{WHERE}/"

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """Generators of tiny styles by name. WebGPU's convolutions need channels by fours."""
    folder = tmp_path_factory.mktemp("styles")
    return {
        name: generator
        for name, (generator, _) in make_styles(folder, 2, channels=(4, 8, 8)).items()
    }


@pytest.fixture(scope="module")
def root(styles, tmp_path_factory):
    """A folder of web pages; the exported one is below it."""
    try:
        runtime = read_runtime()
    except OSError as error:
        pytest.skip(f"needs the npm package onnxruntime-web: {error}")
    root = tmp_path_factory.mktemp("root")
    write_page(root / WHERE, styles, runtime)
    write_page(root / "broken", styles, {})
    return root


@pytest.fixture(scope="module")
def browser(request, root, tmp_path_factory):
    """A Chromium whose WebGPU is imitated by the processor."""
    options = "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"
    with open_browser(request, tmp_path_factory.mktemp("camera"), *options) as browser:
        yield browser


@pytest.fixture
def host(root):
    host = Host(root)
    yield host
    host.stop()


@pytest.fixture
def page(browser, host):
    """The page, which has asked no other host for anything at the end."""
    with watched_page(browser) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(host.address)
        shows(page, "#speed", "painted in")
        yield page
        elsewhere = (host.address, f"blob:{host.address.removesuffix(f'/{WHERE}/')}", "data:")
        assert [url for url in asked if not url.startswith(elsewhere)] == []


def is_by(generator):
    """Return whether a painting is that of a generator, up to rounding."""
    paint = Stylizer(generator, torch.float32)

    def check(frame, painted):
        difference = np.abs(painted - paint(frame).astype(int))
        return difference.max() <= 2 and difference.mean() < 0.5

    return check


def test_a_photo_is_painted_and_saved(page, styles, tmp_path):
    first, second = map(is_by, styles.values())
    photo = picture(300, 900)
    page.set_input_files("#photo-file", save(tmp_path / "mine.png", photo))
    shows(page, "#status", "mine.png")
    page.get_by_role("combobox", name="Resolution").select_option("480")
    frame, painted = wait_for(page, lambda frame, painted: frame.shape == (160, 480, 3))
    assert first(frame, painted)
    assert np.abs(painted - frame.astype(int)).mean() > 20
    page.get_by_role("radio", name="Style 1").check()
    frame, painted = wait_for(page, second)
    assert not first(frame, painted)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save picture").click()
    assert saved.value.suggested_filename == "style_1.jpg"
    painted = pixels(Path(saved.value.path()).read_bytes()).astype(int)
    assert np.abs(painted - Stylizer(styles["style_1"])(photo)).mean() < 4


def test_the_camera_and_a_video_are_painted_live(page, styles, tmp_path):
    check = is_by(styles["style_0"])
    page.get_by_role("button", name="Camera").click()
    shows(page, "#speed", "fps")
    shows(page, "#status", "Camera: pictures stay in this browser.")
    frame, _ = wait_for(page, check)
    assert frame.shape == (240, 320, 3)
    wait_for(page, lambda now, painted: not np.array_equal(now, frame))
    clip = make_clip(
        tmp_path / "clip.webm", size=SIZE, frames=pictures(SIZE, 30), codec="libvpx-vp9"
    )
    page.set_input_files("#video-file", clip)
    shows(page, "#status", "clip.webm")
    shows(page, "#speed", "fps")
    wait_for(page, check)


def test_it_says_where_it_paints_and_knows_no_server(page):
    shows(page, "#where", "in your browser, WebAssembly")  # WebGPU is only imitated
    assert "server" not in page.locator("html").evaluate("page => page.innerText").lower()
    assert page.get_by_role("img", name="Picture painted in the style Style 0").count() == 1
    loaded = "[...document.images].every((image) => image.complete && image.naturalWidth)"
    assert page.evaluate(loaded)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_needs_its_host_only_once(browser, host, styles):
    with watched_page(browser) as page:
        with page.expect_event(
            "requestfinished", lambda request: request.url.endswith("models/style_1.onnx")
        ):
            page.goto(host.address)
        shows(page, "#speed", "painted in")
        host.stop()
        page.get_by_role("radio", name="Style 1").check()
        wait_for(page, is_by(styles["style_1"]))


def test_the_mixing_is_that_of_blend(page):
    random = np.random.default_rng(0)
    photo, stylized = random.integers(0, 256, (2, 40, 50, 3), np.uint8)
    rgba = np.dstack([photo, np.full((40, 50), 255, np.uint8)])
    for strength in (0, 0.3, 0.77, 1):
        for preserve_colors in (False, True):
            mixed = page.evaluate(
                "async ([photo, stylized, ...look]) => Array.from("
                "(await import('./blend.js')).blend(photo, stylized, ...look))",
                [rgba.ravel().tolist(), stylized.ravel().tolist(), strength, preserve_colors],
            )
            mixed = np.array(mixed).reshape(rgba.shape)
            expected = blend(photo, stylized, strength=strength, preserve_colors=preserve_colors)
            difference = np.abs(mixed[..., :3] - expected.astype(int))
            assert difference.max() <= 1  # float64 against float32
            assert difference.mean() < 0.01
            assert (mixed[..., 3] == 255).all()


def test_settings_change_the_picture(page, styles):
    paint = Stylizer(styles["style_0"], torch.float32)
    page.get_by_role("slider", name="Strength").fill("40")
    page.get_by_role("switch", name="Original colours").check()

    def is_mixed(frame, painted):
        expected = blend(frame, paint(frame), strength=0.4, preserve_colors=True)
        return np.abs(painted - expected.astype(int)).max() <= 2

    wait_for(page, is_mixed)


@pytest.mark.parametrize(
    ("webgpu", "imitated", "chosen", "resolution"),
    [
        ({"msPerPixel": FAST}, False, "WebGPU", "640"),
        ({"msPerPixel": FAST}, True, "WebAssembly", "256"),
        ({"msPerPixel": 2 * SLOW}, False, "WebAssembly", "256"),
        ({"msPerPixel": FAST, "picture": [7, 9]}, False, "WebAssembly", "256"),
        ({"msPerPixel": FAST, "problem": "open"}, False, "WebAssembly", "256"),
        ({"msPerPixel": FAST, "problem": "time"}, False, "WebAssembly", "256"),
    ],
)
def test_the_fastest_way_that_works_is_chosen(browser, host, webgpu, imitated, chosen, resolution):
    ways = {
        "wasm": {"msPerPixel": SLOW, "picture": [7, 8]},
        "webgpu": {"picture": [7, 8], **webgpu},
    }
    with watched_page(browser) as page:
        page.route(
            "**/worker.js",
            lambda route: route.fulfill(
                body=WORKER.replace("WAYS", json.dumps(ways)), content_type="text/javascript"
            ),
        )
        page.add_init_script(GPU.replace("IS_IMITATED", json.dumps(imitated)))
        page.goto(host.address)
        shows(page, "#speed", "painted in")
        shows(page, "#where", f"in your browser, {chosen}")
        assert page.get_by_role("combobox", name="Resolution").input_value() == resolution


def test_webgpu_paints_the_same(page):
    by_webgpu, by_wasm = (np.array(page.evaluate(PAINT_BY, way)) for way in ("webgpu", "wasm"))
    assert by_wasm.std() > 10
    assert np.abs(by_webgpu - by_wasm).max() <= 2


def test_it_says_what_is_missing(browser, host, root):
    """The runtime is not there."""
    page = browser.new_page()
    page.goto(host.address.replace(WHERE, "broken"))
    shows(page, "#speed", "Not started")
    shows(page, "#status", "This browser cannot run the network")
    page.close()
