"""Reading restores the state of the process that it changes, however threads overlap."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from stylekernels.media import PhotoError, images, read_photo


def save(path, side):
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(path)


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Two pictures whose reading waits at `Image.open`. The first events are set on arrival;
    setting the others lets reading continue."""
    opened = {name: threading.Event() for name in ("first.png", "second.png")}
    go_on = {name: threading.Event() for name in opened}
    pillows = Image.open

    def held_open(path, **options):
        if path.name in opened:
            opened[path.name].set()
            assert go_on[path.name].wait(10)
        return pillows(path, **options)

    for name in opened:
        save(tmp_path / name, 64)
    monkeypatch.setattr(images.Image, "open", held_open)
    return opened, go_on


def test_threads_that_read_any_size_leave_the_limit_as_it_was(tmp_path, monkeypatch, held):
    save(tmp_path / "bomb.png", 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    opened, go_on = held
    with ThreadPoolExecutor(2) as pool:
        reads = []
        for name, event in opened.items():
            reads.append(pool.submit(read_photo, tmp_path / name, any_size=True))
            assert event.wait(10)
        refusals = []
        for name, read in zip(go_on, reads, strict=True):
            # While one or both have lifted it, the limit still holds for others.
            with pytest.raises(PhotoError) as refused:
                read_photo(tmp_path / "bomb.png")
            refusals.append(str(refused.value))
            go_on[name].set()
            assert read.result(10).rgb.shape == (64, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert all("bomb.png: more than 0 megapixels" in text for text in refusals)


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were(tmp_path, held):
    opened, go_on = held
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        reads = []
        for name, event in opened.items():
            reads.append(pool.submit(read_photo, tmp_path / name))
            assert event.wait(10)
        for name, read in zip(go_on, reads, strict=True):  # the first to enter leaves first
            go_on[name].set()
            assert read.result(10).rgb.shape == (64, 64, 3)
    assert warnings.filters == before
