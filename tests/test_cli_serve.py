"""The command line's verb for the page in the browser."""

import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from stylekernels.cli.main import main
from stylekernels.cli.serve import Serve
from stylekernels.cli.styles import style_title
from stylekernels.models import bundled_styles
from stylekernels.serve import addresses
from stylekernels.serve.offer import offer
from tests.pictures import complaints


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "--host: 0.0.0.0 is open to the network; expected --token with it"),
        (["--host", "example.org"], "--host: example.org is open to the network"),
        (["--token", "short"], "--token: expected at least 8 letters, digits"),
        (["--token", "with a space; or two"], "--token: expected at least 8 letters, digits"),
        (["--port", "65536"], "--port: expected a number from 0 to 65535, got 65536"),
        (["--clients", "0"], "--clients: expected at least 1, got 0"),
        (["--key", "k.pem"], "--certificate, --key: expected both or neither, got one"),
        (["--certificate", "c.pem", "--key", "k.pem"], "--certificate: expected --tls with it"),
        (
            ["--tls", "--certificate", "c.pem", "--key", "k.pem"],
            "--certificate: expected a certificate and its key in PEM",
        ),
        (["--style", "cubist"], "--style: expected a bundled style ("),
        (["--style", "note.safetensors"], "--style: note.safetensors: "),
        (["--device", "abacus"], "--device: expected cpu or cuda, got 'abacus'"),
    ],
)
def test_what_has_no_sense_is_refused_in_a_line(folder, capsys, arguments, text):
    Path("note.safetensors").write_text("hello")
    assert main(["serve", "--port", "0", *arguments]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(text)


def test_a_port_that_is_taken_is_refused(style, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--style", style, "--port", port]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(f"--host 127.0.0.1 --port {port}: cannot listen there: ")


@pytest.mark.parametrize("name", ["aiohttp", "simplejpeg", "cryptography"])
def test_a_missing_package_is_named(style, capsys, monkeypatch, name):
    for module in [*sys.modules]:
        if module.startswith("stylekernels.serve.") or module.partition(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve", "--style", style, "--port", "0", "--tls"]) == 2
    assert complaints(capsys) == [
        f"serve: needs {name}, which is not installed; pip install stylekernels[serve]"
    ]


def test_titles_of_styles():
    names = ["the_scream", "base_lite:starry_night", "base_lite-wave", "base_lite"]
    names += ["composition_vii", "shipwreck_of_the_minotaur", "IMG_0042"]
    titles = [style["title"] for style in offer("wave", names, 1)["styles"]]
    assert titles == [
        "The Scream",
        "Starry Night, lite",
        "Wave, lite",
        "Base Lite",
        "Composition VII",
        "Shipwreck of the Minotaur",
        "IMG 0042",
    ]


def test_styles_on_offer():
    bundled = bundled_styles()
    assert [*Serve()._styles()] == ["wave", *(name for name in bundled if name != "wave")]


def test_own_styles_come_first(folder, style):
    Path("a").mkdir()
    Path("a/ink.safetensors").write_bytes(Path(style).read_bytes())
    styles = Serve(style=("a/ink.safetensors", "udnie", "wave:0.3,udnie:0.7"))._styles()
    assert [*styles][:3] == ["ink", "udnie", "wave:0.3,udnie:0.7"]
    assert [*styles.values()][:3] == ["a/ink.safetensors", "udnie", "wave:0.3,udnie:0.7"]
    assert set(bundled_styles()) < set(styles)


def test_names_of_files_and_of_mixtures(folder, style):
    file = Path("my,own.pt/two.parts.safetensors")
    file.parent.mkdir()
    file.write_bytes(Path(style).read_bytes())
    for source, name in {
        f"{file}": "two.parts",
        f"{file}:wave": "two.parts:wave",
        f"{file}:wave:0.3,a/b:0.7": "two.parts:wave:0.3,a/b:0.7",
        "udnie": "udnie",
        "wave:0.3,udnie:0.7": "wave:0.3,udnie:0.7",
    }.items():
        assert next(iter(Serve(style=(source,))._styles())) == name
    assert style_title("wave:0.3,starry_night:0.7") == "wave:0.3,starry night:0.7"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_addresses(host, loopback):
    assert addresses.is_loopback(host) == loopback


def test_addresses_of_the_page():
    assert addresses.url("http", "::1", 80, None) == "http://[::1]:80/"
    assert addresses.url("https", "10.0.0.2", 1, "secret-1") == "https://10.0.0.2:1/?token=secret-1"
    assert addresses.shown_host("10.0.0.2") == "10.0.0.2"
    assert addresses.shown_host("0.0.0.0") != "0.0.0.0"
    for host, version in (("0.0.0.0", 4), ("::", 6), ("0::0", 6)):
        shown = ipaddress.ip_address(addresses.shown_host(host))
        assert (shown.version, shown.is_unspecified) == (version, False)


# ---- as a process ------------------------------------------------------------------------------


def test_it_prints_its_address_and_ends_cleanly(style):
    command = ["serve", "--style", style, "--port", "0", "--token", "auto"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "stylekernels", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+/\?token=[\w-]{16})  \(Ctrl-C ends\)\n", line
        )
        assert found, (line, process.stderr.read() if process.poll() is not None else "")
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(found[1], timeout=60) as page:
            assert page.status == 200
            assert b"stylekernels" in page.read()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "", "")
        assert time.monotonic() - begun < 20
    finally:
        process.kill()
        process.wait()
