"""Who reaches the server: programs and pages of this machine alone, or others too. aiohttp and ComfyUI are not imported here.

A server that listens on the loopback is reached by others all the same through a tunnel or a reverse proxy on this machine, and by a
web page whose own name was made to point at 127.0.0.1 (DNS rebinding). Both show in the Host header.
"""

import ipaddress
import logging
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

logger = logging.getLogger("lora_loom")

LOOPBACK_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost"}
FORWARDING = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "Via",
)  # fmt: skip
"""Headers that proxies and tunnels add."""


def name_of(host: str | None) -> str:
    """The name in a Host header, in lower case, without port and brackets; "" for none that can be read."""
    try:
        return (urlsplit(f"//{(host or '').strip()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine, wherever it is looked up."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name in LOOPBACK_NAMES or name.endswith(".localhost")


def is_address(name: str) -> bool:
    """Whether it is an IP address: no web page can make its own name one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def why_foreign(host: str | None, allowed: Collection[str]) -> str:
    """Why a request with this Host header is refused by a server that listens on the loopback; "" if it is not."""
    name = name_of(host)
    if host is None or is_loopback(name) or is_address(name) or name in {one.lower() for one in allowed}:
        return ""
    return f"this server listens on this machine only, but was asked for as {name!r}"


class Reach:
    """Whether this process has seen a request that did not come from this machine. Once seen, it stays so."""

    def __init__(self) -> None:
        self.seen = ""
        """The first sign of it, for messages; "" for none so far."""

    def note(self, host: str | None, headers: Mapping[str, str]) -> None:
        """Look at a request."""
        if self.seen:
            return
        name = name_of(host)
        by = next((header for header in FORWARDING if headers.get(header)), "")
        if by or (host is not None and not is_loopback(name)):
            self.seen = f"a request with the header {by}" if by else f"a request for the host {name!r}"
            logger.warning(
                "LoRA Loom: %s has come: others can reach this server, so workflows may name folders of ComfyUI and of its settings file only",
                self.seen,
            )


REACH = Reach()
