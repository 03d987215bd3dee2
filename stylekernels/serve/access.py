"""Who may use the server: names of the host, the token, and origins of pages."""

import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

#: The page loads nothing from elsewhere, and no other page may show it inside of itself.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Access:
    """Rules that every request must follow.

    Attributes:
        hosts: names in lower case by which browsers may call this machine; None allows all. On
            the loopback address this is what stops pages whose domain name was pointed at it (DNS
            rebinding).
        token: a secret that the address or a cookie must have; None wants none.
    """

    hosts: frozenset[str] | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if self.hosts is None and self.token is None:
            raise ValueError("token: expected one where hosts is None, got None")

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what is not allowed, with a line of text; pass on everything else."""
        self._check_host(request)
        self._check_origin(request)
        if self.token is None:
            return await handler(request)
        if self._is_token(request.query.get("token")):
            if request.path != "/":
                return await handler(request)
            # The cookie takes the token's place, so that it does not stay in the address.
            answer = web.HTTPFound("/")
            answer.set_cookie(
                _cookie(request),
                self.token,
                httponly=True,
                secure=request.secure,
                samesite="Lax",
                path="/",
            )
            raise answer
        if not self._is_token(request.cookies.get(_cookie(request))):
            raise web.HTTPForbidden(
                text="token: expected the server's own; open the address that it printed"
            )
        return await handler(request)

    def _check_host(self, request: web.Request) -> None:
        if not request.host.isascii():
            raise web.HTTPForbidden(text=f"Host: expected ASCII, got {request.host[:80]!r}")
        try:
            name = urlsplit(f"//{request.host}").hostname
        except ValueError:  # such as an unclosed bracket
            name = request.host
        if self.hosts is not None and name not in self.hosts:
            raise web.HTTPForbidden(
                text=f"Host: expected {' or '.join(sorted(self.hosts))}, got {name!r}"
            )

    def _check_origin(self, request: web.Request) -> None:
        """Refuse other pages. Programs that are no browsers send no origin."""
        origin = request.headers.get("Origin")
        changes = request.method not in ("GET", "HEAD") or "Upgrade" in request.headers
        if changes and origin is not None and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(
                text=f"Origin: expected {request.scheme}://{request.host}, got {origin[:80]!r}"
            )

    def _is_token(self, text: str | None) -> bool:
        # Bytes of a header that are not UTF-8 have become surrogates.
        return text is not None and hmac.compare_digest(
            text.encode(errors="surrogatepass"), self.token.encode()
        )


def _cookie(request: web.Request) -> str:
    """Return the cookie's name. It has the port, because browsers send a cookie to all servers of a
    host, on whichever port."""
    port = re.search(r":(\d+)$", request.host)
    return "stylekernels-token" + (f"-{port[1]}" if port else "")


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Tell browsers what the page may do."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-cache")
