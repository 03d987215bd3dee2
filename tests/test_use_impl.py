"""`use_impl` in several threads, tasks and orders."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stylekernels import explain, use_impl
from tests.conftest import random

pytestmark = pytest.mark.usefixtures("implementation")


def in_use() -> str:
    return explain("gram_matrix", random(1, 2, 3, 3)).split(": ")[1].split(" ")[0]


def test_overlapping_blocks_may_end_in_any_order() -> None:
    before = in_use()
    outer, inner = use_impl("native"), use_impl("reference")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    with ThreadPoolExecutor(1) as pool:  # a thread without a block
        assert [in_use(), pool.submit(in_use).result()] == ["reference"] * 2
    inner.__exit__(None, None, None)
    assert in_use() == before


def test_a_block_may_end_in_another_thread() -> None:
    before = in_use()
    block = use_impl("reference")
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join(60)
    assert in_use() == before


def test_threads_force_implementations_of_their_own() -> None:
    """A thread without a block follows the block that any thread entered last."""
    before, seen = in_use(), {}
    first, second, done = (threading.Event() for _ in range(3))

    def force(name: str, entered: threading.Event) -> None:
        with use_impl(name):
            entered.set()
            assert second.wait(60)
            seen[name] = in_use()
            assert done.wait(60)

    threads = []
    for name, entered in (("native", first), ("reference", second)):
        threads.append(threading.Thread(target=force, args=(name, entered)))
        threads[-1].start()
        assert entered.wait(60)
    without_block = in_use()
    done.set()
    for thread in threads:
        thread.join(60)
    assert seen == {"native": "native", "reference": "reference"}
    assert without_block == "reference"
    assert in_use() == before


def test_tasks_force_implementations_of_their_own() -> None:
    async def force(name: str) -> str:
        with use_impl(name):
            await asyncio.sleep(0)  # the other task enters its block
            return in_use()

    async def both() -> list[str]:
        return await asyncio.gather(force("reference"), force("native"))

    before = in_use()
    assert asyncio.run(both()) == ["reference", "native"]
    assert in_use() == before
