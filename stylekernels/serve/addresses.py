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
    return _outer_address(address.version) if address.is_unspecified else host


def url(scheme: str, host: str, port: int, token: str | None) -> str:
    """Return the address of the page."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}/" + (f"?token={token}" if token else "")


def _outer_address(version: int) -> str:
    """Return the address of this machine in its network, of IPv4 or IPv6; loopback if it has none.
    A server that listens on IPv6 does not answer to addresses of IPv4."""
    if version == 4:
        family, elsewhere, loopback = socket.AF_INET, "192.0.2.1", "127.0.0.1"
    else:
        family, elsewhere, loopback = socket.AF_INET6, "2001:db8::1", "::1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing: it only chooses a network card
            return probe.getsockname()[0]
    except OSError:
        return loopback
