"""A server for tests, and clients that talk to it as the page does."""

import asyncio
import contextlib
import io
import json
import struct

import numpy as np
import torch
from aiohttp import WSMsgType
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.serve.access import Access
from stylekernels.serve.addresses import LOOPBACK_NAMES
from stylekernels.serve.app import CLIENTS, make_app
from stylekernels.serve.jpeg import encode_jpeg
from stylekernels.serve.limits import Limits
from stylekernels.serve.painter import Painter
from tests.pictures import picture

LOOPBACK = Access(LOOPBACK_NAMES)
HEADER = struct.Struct("<4sIdffff")


def make_styles(folder, count, channels=(4, 6, 8)):
    """Write tiny styles whose pictures differ much; return their generators by name and path."""
    styles = {}
    for seed in range(count):
        torch.manual_seed(seed)
        config = GeneratorConfig(channels=channels, residual_blocks=1, kernel_size=5)
        generator = StyleGenerator(config).eval()
        with torch.no_grad():  # a tint of its own, and most values inside [0, 1]
            generator.to_rgb.weight.mul_(0.2)
            generator.to_rgb.bias.copy_((0.2 + 0.6 * torch.rand(3)) * config.value_range)
        path = folder / f"style_{seed}.safetensors"
        generator.save_pretrained(path)
        styles[path.stem] = (generator, str(path))
    return styles


@contextlib.asynccontextmanager
async def serving(styles, access=LOOPBACK, painter=None, **limits):
    """Serve styles; yield a client whose ``clients`` are those that send live frames."""
    painter = painter or Painter({name: path for name, (_, path) in styles.items()})
    app = make_app(painter, next(iter(styles)), access, Limits(**limits))
    async with TestClient(TestServer(app)) as client:
        client.clients = app[CLIENTS]
        yield client


def pixels(file):
    """Return the pixels of a picture's file."""
    return np.asarray(Image.open(io.BytesIO(file)))


def frame_message(rgb, number=1, time=0.0):
    """Return a frame as the page sends it, and its pixels as the server decodes them."""
    jpeg = encode_jpeg(rgb)
    return HEADER.pack(b"SKF1", number, time, 0, 0, 0, 0) + jpeg, pixels(jpeg)


def open_picture(message):
    """Return the header of a picture and its pixels."""
    return HEADER.unpack_from(message), pixels(message[HEADER.size :])


async def send_look(socket, style, **values):
    await socket.send_str(json.dumps({"style": style, **values}))


async def error_of(socket):
    """Receive an error, one line, and return its text."""
    message = await socket.receive(timeout=30)
    assert message.type == WSMsgType.TEXT, message
    text = json.loads(message.data)["error"]
    assert "\n" not in text
    return text


def assert_painted(picture, expected):
    """Compare a picture that was compressed with what was painted."""
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 2


async def paint(socket, number=1):
    """Have a frame painted; return its pixels and the picture's."""
    message, frame = frame_message(picture(48, 64, seed=number), number)
    await socket.send_bytes(message)
    answer = await socket.receive(timeout=30)
    assert answer.type == WSMsgType.BINARY, answer
    return frame, open_picture(answer.data)[1]


async def works(client):
    """Check that a new client gets a picture."""
    async with client.ws_connect("/live") as socket:
        await paint(socket)


async def no_clients(client):
    """Wait until no client has a place."""
    for _ in range(400):
        if not len(client.clients):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(client.clients)} places are taken")


def encoded(rgb, form):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, form)
    return file.getvalue()


def png(rgb):
    return encoded(rgb, "PNG")


def upload(client, data, look='{"style": "style_2"}', **options):
    return client.post("/paint", params={"look": look}, data=data, **options)
