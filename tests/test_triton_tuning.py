"""Configurations are measured once, kept on disk, and change no result."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from stylekernels import norm_conv2d
from stylekernels.triton import tuning
from stylekernels.triton.tuning import Config, autotune, tune, tuned
from tests.conftest import random

CPU = torch.device("cpu")
SLOW, FAST = Config(128, 64, 64, 4, 3), Config(64, 64, 64, 4, 3)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file of this device, in an empty cache, and an empty table in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._table.cache_clear()
    yield tuning._path(tuning._name_of(CPU))
    tuning._table.cache_clear()


@pytest.fixture
def measured(monkeypatch) -> list:
    """Replace the GPU's clock: a call returns its own time. Lists what was measured."""
    found = []

    def seconds(call):
        found.append(call())
        return found[-1]

    monkeypatch.setattr(tuning, "seconds", seconds)
    return found


def pixels(config: Config) -> int:
    return config.block_m


def test_nothing_is_measured_unless_asked_for(file, measured) -> None:
    assert tune(("a", 1), CPU, [SLOW, FAST], pixels) is None
    assert tuned(("a", 1), CPU, [SLOW, FAST]) == SLOW
    assert not measured
    assert not file.exists()


def test_the_fastest_is_kept_and_measured_once(file, measured) -> None:
    with autotune():
        assert tune(("a", 1), CPU, [SLOW, FAST], pixels) == FAST
        assert tune(("a", 1), CPU, [SLOW, FAST], pixels) is None
    assert measured == [128, 64]
    assert tuned(("a", 1), CPU, [SLOW, FAST]) == FAST
    assert tuned(("a", 1), CPU, [SLOW]) == SLOW, "no candidate any more"
    assert tuned(("a", 2), CPU, [SLOW, FAST]) == SLOW
    tuning._table.cache_clear()  # as in another process
    assert tuned(("a", 1), CPU, [SLOW, FAST]) == FAST


def is_enabled(file, measured) -> bool:
    """Return whether a new problem is measured at this point."""
    tuning._table.cache_clear()
    file.unlink(missing_ok=True)
    return tune(("new",), CPU, [SLOW, FAST], pixels) is not None


def test_blocks_may_end_in_any_order(file, measured) -> None:
    first, second = autotune(), autotune()
    found = [is_enabled(file, measured)]
    for step in (
        first.__enter__,
        second.__enter__,
        lambda: first.__exit__(None, None, None),
        lambda: second.__exit__(None, None, None),
    ):
        step()
        found.append(is_enabled(file, measured))
    assert found == [False, True, True, True, False]


def test_a_block_is_its_threads_own(file, measured) -> None:
    """The other thread's begins inside of ours and ends after it."""
    with ThreadPoolExecutor(1) as other:

        def there(function):
            return other.submit(function).result()

        block = autotune()
        with autotune():
            assert not there(lambda: is_enabled(file, measured))
            there(block.__enter__)
            assert there(lambda: is_enabled(file, measured))
        assert not is_enabled(file, measured)
        assert there(lambda: is_enabled(file, measured))
        there(lambda: block.__exit__(None, None, None))
        assert not there(lambda: is_enabled(file, measured))


def test_the_environment_enables_it_in_every_thread(file, measured, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "_always", True)
    with autotune():
        pass
    assert is_enabled(file, measured)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(is_enabled, file, measured).result()


def test_a_configuration_that_does_not_fit_loses(file, measured) -> None:
    def run(config: Config) -> int:
        if config == FAST:
            raise tuning.triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        return pixels(config)

    with autotune():
        assert tune(("a", 1), CPU, [SLOW, FAST], run) == SLOW


@pytest.mark.parametrize("text", ["", "{", json.dumps({"a 1": [1, 2]})])
def test_a_broken_file_is_as_good_as_none(file, text) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert tuned(("a", 1), CPU, [SLOW, FAST]) == SLOW


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("implementation", ["triton"], indirect=True)
def test_every_candidate_of_norm_conv2d_gives_the_same(file, device, monkeypatch) -> None:
    x = random(1, 9, 13, 11, layout="channels_last", device=device)
    weight = random(20, 9, 3, 3, scale=0.1, seed=1, device=device)
    expected = norm_conv2d(x, weight, padding=1)
    results = []

    def seconds(call):
        results.append(call())  # the moments of its tiles
        return -len(results)  # the last one wins

    monkeypatch.setattr(tuning, "seconds", seconds)
    with autotune():
        found = norm_conv2d(x, weight, padding=1)
    assert len({moments.shape for moments in results}) == 3, "of tiles of three sizes"
    assert len(tuning._table(tuning._name_of(x.device))) == 1
    again = norm_conv2d(x, weight, padding=1)
    for y, mean, var, _ in (found, again):
        torch.testing.assert_close(y, expected.y)
        torch.testing.assert_close(mean, expected.mean)
        torch.testing.assert_close(var, expected.var)
