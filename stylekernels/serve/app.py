"""The web application: its addresses, and what stands behind them."""

from aiohttp import web

from stylekernels.serve.access import Access, add_headers
from stylekernels.serve.limits import Limits
from stylekernels.serve.live import LiveClients
from stylekernels.serve.offer import PAGE, offer
from stylekernels.serve.painter import Painter
from stylekernels.serve.photos import Photos

CLIENTS = web.AppKey("clients", LiveClients)


def make_app(
    painter: Painter, first: str, access: Access, limits: Limits | None = None
) -> web.Application:
    """Return the application.

    Args:
        painter: paints everything; it is closed with the application.
        first: name of the style that a client begins with.
        access: who may use it.
        limits: on what clients may ask for; the usual ones by default.
    """
    limits = limits or Limits()
    clients = LiveClients(painter, limits, first)
    photos = Photos(painter, limits)
    offered = offer(first, painter.styles, limits.frame_pixels)

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    async def styles(request: web.Request) -> web.Response:
        return web.json_response(offered)

    async def end_connections(app: web.Application) -> None:
        await clients.close()

    async def end_painter(app: web.Application) -> None:
        painter.close()

    app = web.Application(client_max_size=limits.upload_bytes, middlewares=[access.check])
    app[CLIENTS] = clients
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(end_connections)
    app.on_cleanup.append(end_painter)
    app.router.add_get("/", index)
    app.router.add_get("/styles.json", styles)
    app.router.add_get("/previews/{style}.jpg", photos.preview)
    app.router.add_get("/live", clients.serve)
    app.router.add_post("/paint", photos.paint)
    app.router.add_static("/", PAGE)
    return app
