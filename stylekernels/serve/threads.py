"""Work in threads beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from stylekernels.hardware import memory_ran_out

Result = TypeVar("Result")


async def run_in(threads: Executor, work: Callable[[], Result], seconds: float) -> Result:
    """Run a function in a thread, after those that came before.

    Raises:
        TimeoutError: if it is not done in time. It does not begin then, unless it has begun.
        ValueError: if there is too little memory for it.
    """
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.wait_for(future, seconds)
    except asyncio.TimeoutError:  # another class than TimeoutError in Python 3.10
        raise TimeoutError(
            f"no picture within {seconds:g} s: the painter has too much to do"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise ValueError(
            "resolution: needs more memory than there is; lower the resolution"
        ) from error
