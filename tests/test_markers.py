"""Markers that tests get by their parameters."""

from types import SimpleNamespace

import pytest
import torch

from tests import conftest


class Item:
    """A collected test, as far as marking goes."""

    def __init__(self, *markers: str, **params: object) -> None:
        if params:
            self.callspec = SimpleNamespace(params=params)
        self.markers = {name: pytest.Mark(name, (), {}, _ispytest=True) for name in markers}

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.markers[marker.name] = marker.mark

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.markers.get(name)


def test_tests_on_cuda_are_marked_gpu_and_skipped_without_one(monkeypatch):
    def markers(available: bool) -> list[list[str]]:
        monkeypatch.setattr(conftest.torch.cuda, "is_available", lambda: available)
        items = [Item(device="cuda"), Item(device="cpu"), Item("gpu"), Item()]
        conftest.pytest_collection_modifyitems(items)
        return [sorted(item.markers) for item in items]

    assert markers(True) == [["gpu"], [], ["gpu"], []]
    assert markers(False) == [["gpu", "skip"], [], ["gpu", "skip"], []]


def test_tests_of_bfloat16_are_marked():
    dtypes = (torch.float32, torch.bfloat16)
    items = [Item(dtype=dtypes[1]), Item(case={"pair": dtypes}), Item(dtype=dtypes[0]), Item()]
    conftest.pytest_collection_modifyitems(items)
    assert ["bfloat16" in item.markers for item in items] == [True, True, False, False]
