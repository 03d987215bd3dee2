"""The page for hosts of files: what is written, and what is refused."""

import io
import json
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from stylekernels.cli.main import main
from stylekernels.export import runtime
from stylekernels.inference import Stylizer
from stylekernels.serve.offer import PAGE, preview_photo
from tests.pictures import complaints, load, written


@pytest.fixture
def package(tmp_path_factory, monkeypatch):
    """A folder like the unpacked package, with small files; there is no network and no cache."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "dist").mkdir()
    (folder / "package.json").write_text(json.dumps({"version": runtime.VERSION}))
    for name in runtime.FILES:
        (folder / "dist" / name).write_text(f"this is {name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return folder


def export(*arguments):
    return main(["export", "--format", "web", *map(str, arguments)])


def packed(folder):
    """Return the package's file as npm makes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as package:
        package.add(folder / "package.json", "package/package.json")
        package.add(folder / "dist", "package/dist")
    return file.getvalue()


def sign(monkeypatch, data):
    """Have a package's file taken as the true one."""
    digest = runtime.base64.b64encode(runtime.hashlib.sha512(data).digest()).decode()
    monkeypatch.setattr(runtime, "_SHA512", digest)


def test_it_writes_the_page_with_all_it_loads(folder, package, style, generator, capsys):
    pytest.importorskip("onnx")
    assert export(style, "wave:0.5,udnie:0.5", "--runtime", package) == 0
    assert "brush-web: " in capsys.readouterr().out
    names = ["brush", "wave-0.5-udnie-0.5"]
    page = {path.name for path in PAGE.iterdir()}
    assert written(folder / "brush-web") == {
        *page,
        *("worker.js", "blend.js", "styles.json", "onnxruntime-LICENSE.txt"),
        *(f"models/{name}.onnx" for name in names),
        *(f"previews/{name}.jpg" for name in names),
        *(f"runtime/{name}" for name in runtime.FILES),
    }
    for name in page - {"engine.js"}:
        assert (folder / "brush-web" / name).read_bytes() == (PAGE / name).read_bytes()
    assert "WebSocket" not in (folder / "brush-web" / "engine.js").read_text()
    offer = json.loads((folder / "brush-web" / "styles.json").read_text())
    assert offer["first"] == "brush"
    assert [style["name"] for style in offer["styles"]] == names
    preview = load(folder / "brush-web" / "previews" / "brush.jpg").astype(int)
    assert np.abs(preview - Stylizer(generator)(preview_photo())).mean() < 4


def test_an_earlier_page_is_replaced_and_other_files_stay(folder, package, style):
    pytest.importorskip("onnx")
    assert export(style, "wave", "-o", "page", "--runtime", package) == 0
    (folder / "page" / "CNAME").write_text("example.org")
    (folder / "page" / "app.js").write_text("old")
    assert export(style, "-o", "page", "--runtime", package) == 0
    assert {path.name for path in (folder / "page" / "models").iterdir()} == {"brush.onnx"}
    assert {path.name for path in (folder / "page" / "previews").iterdir()} == {"brush.jpg"}
    assert (folder / "page" / "CNAME").is_file()
    assert (folder / "page" / "app.js").read_bytes() == (PAGE / "app.js").read_bytes()


def test_the_runtime_is_downloaded_once(package, monkeypatch):
    data = packed(package)
    sign(monkeypatch, data)
    asked = []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(data)
    )
    for _ in range(2):
        files = runtime.read_runtime()
        assert files == {name: f"this is {name}".encode() for name in runtime.FILES}
    assert asked == [
        f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{runtime.VERSION}.tgz"
    ]
    (package / "my.tgz").write_bytes(data)
    assert runtime.read_runtime(package / "my.tgz") == files
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(data[:-1]))
    runtime.cached_package().unlink()
    with pytest.raises(ValueError, match="got another file or a damaged one"):
        runtime.read_runtime()
    assert not runtime.cached_package().exists()


def test_without_a_network_it_says_what_to_do(folder, package, style, capsys):
    assert export(style) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--runtime: ")
    assert "no network" in line
    assert f"`npm pack onnxruntime-web@{runtime.VERSION}`" in line
    assert written(folder) == set()


def test_a_wrong_runtime_is_refused(folder, package, style, capsys):
    (package / "package.json").write_text('{"version": "1.0.0"}')
    (package / "other.tgz").write_bytes(packed(package))
    for path, reason in [
        (package, f"expected version {runtime.VERSION}, got 1.0.0"),
        (package / "dist", "expected the unpacked package"),
        (package / "other.tgz", "got another file or a damaged one"),
        (package / "none.tgz", "No such file"),
    ]:
        assert export(style, "--runtime", path) == 2
        (line,) = complaints(capsys)
        assert line.startswith("--runtime: ")
        assert reason in line
    assert written(folder) == set()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "web"], "STYLE: expected a style, got none"),
        (["{style}", "wave"], "STYLE: expected one style for --format onnx, got 2"),
        (["wave", "wave", "--format", "web"], "STYLE: expected different names, got wave twice"),
        (["{style}", "none", "--format", "web"], "STYLE: expected a bundled style ("),
        (
            ["{style}", "--format", "web", "--float16"],
            "--float16: expected --format onnx, got web",
        ),
        (["{style}", "--runtime", "x"], "--runtime: expected --format web, got onnx"),
        (["{style}", "--format", "web", "-o", "{style}"], "--output: "),
        (
            ["{style}", "--format", "web", "-o", "photos"],
            "--output: photos: expected a new or empty folder, or an earlier page, found me.png",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder, package, style, capsys, arguments, line):
    (folder / "photos").mkdir()
    Image.new("RGB", (20, 20)).save("photos/me.png")
    assert main(["export", *(argument.format(style=style) for argument in arguments)]) == 2
    assert complaints(capsys)[-1].startswith(line)
    assert written(folder) == {"photos/me.png"}
