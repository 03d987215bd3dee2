"""Running the application until a signal ends it."""

import asyncio
import ssl
from collections.abc import Callable

from aiohttp import web

from stylekernels.signals import handled

_ENDING_S = 2.0  # for requests that are at work when the server ends


def run_until_signal(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    ready: Callable[[int], None],
) -> None:
    """Serve an application until Ctrl-C or another request to end.

    Args:
        host: address to listen on.
        port: port to listen on; 0 chooses a free one.
        tls: for an encrypted connection.
        ready: called with the port when the server listens.

    Raises:
        OSError: if the port is taken or the host is not this machine's.
    """
    asyncio.run(_run(app, host, port, tls, ready))


async def _run(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    ready: Callable[[int], None],
) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    # No log of requests: their addresses may have the token.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_ENDING_S)
    with handled(lambda number, frame: loop.call_soon_threadsafe(ended.set)):
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
            ready(runner.addresses[0][1])
            await ended.wait()
        finally:
            await runner.cleanup()
