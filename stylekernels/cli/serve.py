"""``stylekernels serve``: a page in the browser that paints its camera, photos and videos."""

import dataclasses
import re
import secrets
import ssl
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style, style_name
from stylekernels.cli.terminal import DONE, Refused, complain, refusing, say
from stylekernels.models.styles import bundled_styles
from stylekernels.serve.addresses import LOOPBACK_NAMES, is_loopback, shown_host, url

_TOKEN = re.compile(r"[A-Za-z0-9._-]{8,}")  # stays as it is in an address and in a cookie


@dataclasses.dataclass(kw_only=True)
class Serve:
    """Paint the camera, photos and videos in a page of the browser."""

    style: Annotated[tuple[str, ...], option("STYLE...", "-s", hint="(default: wave)")] = ()
    """The style that the page begins with. More names, and files or mixtures as for `stylekernels
    stylize`, join the bundled styles as further choices."""

    host: Annotated[str, option("HOST")] = "127.0.0.1"
    """The address to listen on. Any other than this machine's own, such as 0.0.0.0 for phones in
    the same network, needs --token, and cameras there need --tls."""

    port: Annotated[int, option("PORT")] = 8000
    """The port to listen on; 0 chooses a free one."""

    token: Annotated[str | None, option("TEXT", hint="(default: none)")] = None
    """A secret that the page's address must have; `auto` draws one. The printed address has it."""

    tls: Annotated[bool, option(hint="")] = False
    """Encrypt the connection: with --certificate and --key, or else with a new certificate that
    the server signs itself, about which browsers warn."""

    certificate: Annotated[Path | None, option("FILE", hint="(with --tls)")] = None
    """A certificate of your own, in PEM."""

    key: Annotated[Path | None, option("FILE", hint="(with --tls)")] = None
    """The key of that certificate, in PEM, without a password."""

    clients: Annotated[int, option("N")] = 8
    """The most pages that send frames at the same time. They share the painter."""

    open: Annotated[bool, option(hint="")] = False
    """Open the page in this machine's browser."""

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the networks run on, `cpu` or `cuda`."""

    def run(self) -> int:
        self._check()
        token = secrets.token_urlsafe(12) if self.token == "auto" else self.token
        styles = self._styles()
        shown = shown_host(self.host)
        try:
            tls = self._tls(shown)
            from stylekernels.serve.access import Access
            from stylekernels.serve.app import make_app
            from stylekernels.serve.limits import Limits
            from stylekernels.serve.painter import Painter
            from stylekernels.serve.running import run_until_signal
        except ModuleNotFoundError as error:
            if error.name not in ("aiohttp", "simplejpeg", "cryptography"):
                raise
            raise Refused(
                f"serve: needs {error.name}, which is not installed; "
                "pip install stylekernels[serve]"
            ) from error

        first, *_ = styles
        # Refuses the device, and files that hold no style, before a page is shown.
        opened = [open_style(source, self.device) for source in self.style or (first,)]
        hosts = LOOPBACK_NAMES | {self.host.lower()} if is_loopback(self.host) else None
        app = make_app(
            Painter(styles, opened[0].device),
            first,
            Access(hosts, token),
            Limits(clients=self.clients),
        )

        def ready(port: int) -> None:
            page = url("https" if tls else "http", shown, port, token)
            say(f"{page}  (Ctrl-C ends)")
            sys.stdout.flush()
            if tls is None and not is_loopback(shown):
                complain("browsers on other machines give this page no camera; add --tls")
            if self.open:
                webbrowser.open(page)

        try:
            run_until_signal(app, self.host, self.port, tls, ready)
        except OSError as error:
            raise Refused(
                f"--host {self.host} --port {self.port}: cannot listen there: "
                f"{error.strerror or error}"
            ) from error
        return DONE

    def _check(self) -> None:
        """Refuse options that have no sense."""
        if not 0 <= self.port <= 65535:
            raise Refused(f"--port: expected a number from 0 to 65535, got {self.port}")
        if self.clients < 1:
            raise Refused(f"--clients: expected at least 1, got {self.clients}")
        if (self.certificate is None) != (self.key is None):
            raise Refused("--certificate, --key: expected both or neither, got one")
        if self.certificate is not None and not self.tls:
            raise Refused("--certificate: expected --tls with it")
        if self.token is None and not is_loopback(self.host):
            raise Refused(
                f"--host: {self.host} is open to the network; expected --token with it, such as "
                "--token auto"
            )
        if self.token not in (None, "auto") and not _TOKEN.fullmatch(self.token):
            raise Refused(
                "--token: expected at least 8 letters, digits, dots, hyphens and underscores, or "
                f"auto, got {self.token!r}"
            )

    def _styles(self) -> dict[str, str]:
        """Return the styles on offer: by name, what opens them. The first ones were asked for."""
        styles: dict[str, str] = {}
        for source in self.style:
            find_style(source)
            name = style_name(source)
            if name in styles:
                raise Refused(f"--style: expected different names, got {name} twice")
            styles[name] = source
        bundled = bundled_styles()
        if not styles and "wave" in bundled:
            styles["wave"] = "wave"
        styles |= {name: name for name in bundled if name not in styles}
        if not styles:
            raise Refused("--style: no style is bundled here; give a file of weights")
        return styles

    def _tls(self, shown: str) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        from stylekernels.serve.certificate import own_certificate, self_signed

        if self.certificate is not None:
            with refusing("--"):
                return own_certificate(self.certificate, self.key)
        context, fingerprint = self_signed({*LOOPBACK_NAMES, shown})
        say(f"self-signed certificate, SHA-256 {fingerprint}")
        return context
