"""ONNX Runtime Web, which runs the networks in a browser: fetched once, or taken from a folder."""

import base64
import hashlib
import http.client
import json
import os
import tarfile
import urllib.request
from pathlib import Path

from stylekernels.files import write_whole

VERSION = "1.30.0"
#: Only what a page loads: with WebGPU, and without it in half the size.
FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
#: SHA-512 of that file, as npm's registry gives it.
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_PATIENCE = 60  # seconds without a byte


def read_runtime(source: Path | None = None) -> dict[str, bytes]:
    """Return the contents of `FILES` by name.

    Args:
        source: the package's file, or the folder that npm or tar unpacked it into. By default the
            package is downloaded from npm's registry, and kept in the user's cache folder.

    Raises:
        ValueError: if ``source`` is not the package in this version, or the download is damaged.
        OSError: if it cannot be read, downloaded or kept.
    """
    if source is not None and source.is_dir():
        return _from_folder(source)
    if source is None:
        source = cached_package()
        if not source.is_file():
            _download(source)
    _check(source.read_bytes(), str(source))
    with tarfile.open(source) as package:
        return {name: _member(package, f"package/dist/{name}") for name in FILES}


def cached_package() -> Path:
    """Return the path at which the downloaded package is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "stylekernels", f"onnxruntime-web-{VERSION}.tgz")


def _download(path: Path) -> None:
    try:
        with urllib.request.urlopen(_URL, timeout=_PATIENCE) as answer:
            data = answer.read()
    except http.client.HTTPException as error:  # the connection ended in the middle
        raise OSError(f"{_URL}: {error!r}") from error
    _check(data, _URL)
    write_whole(path, lambda part: part.write_bytes(data))


def _check(data: bytes, name: str) -> None:
    if hashlib.sha512(data).digest() != base64.b64decode(_SHA512):
        raise ValueError(
            f"{name}: expected the package onnxruntime-web {VERSION} of npm, got another file or a "
            "damaged one"
        )


def _from_folder(folder: Path) -> dict[str, bytes]:
    try:
        version = json.loads((folder / "package.json").read_text())["version"]
        files = {name: (folder / "dist" / name).read_bytes() for name in FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: expected the unpacked package onnxruntime-web {VERSION} of npm, with "
            f"package.json and dist/: {error}"
        ) from error
    if version != VERSION:
        raise ValueError(f"{folder}: expected version {VERSION}, got {version}")
    return files


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    assert file is not None  # the checksum says what is inside
    return file.read()
