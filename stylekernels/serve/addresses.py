"""Addresses of this machine."""

import ipaddress
import socket

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def shown_host(host: str) -> str:
    """Return the name under which browsers reach a server that listens on a host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return _outer_address() if address.is_unspecified else host


def url(scheme: str, host: str, port: int, token: str | None) -> str:
    """Return the address of the page."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}/" + (f"?token={token}" if token else "")


def _outer_address() -> str:
    """Return the address of this machine in its network; loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses a network card
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
