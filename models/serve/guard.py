"""Who may ask. A browser sends whatever any page tells it to, also to this machine: two checks keep other pages out.

The name in `Host` must be an address, or a name that was allowed: a page elsewhere whose own name was made to point here (DNS
rebinding) is so told apart. What changes or computes something (POST) must come from the server's own page or from a program:
`Origin` and `Sec-Fetch-Site`, which no page can forge, say so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.serve.uploads import Refused
from utils.terminal import visible_name

HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
           "X-Frame-Options": "DENY"}


class Guard:
    """Lets requests through to `app`, or refuses them.

    Args:
        loopback: the server listens on this machine alone, so that only addresses of this machine are its own.
        names: that `Host` may have beside addresses and localhost.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool, names: Collection[str] = ()) -> None:
        self.app, self.loopback = app, loopback
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self.check(Headers(scope=scope), scope["method"])
        except Refused as refused:
            await JSONResponse({"detail": refused.why}, refused.status)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def check(self, headers: Headers, method: str) -> None:
        """Raises Refused."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            raise Refused(403, f"Host: got {visible_name(', '.join(hosts))[:80]!r}; allowed: an address of this server, localhost, or a "
                               "name that it was started with (--allow_host)")
        if method in ("GET", "HEAD"):
            return
        origins = headers.getlist("origin")
        own = all(_place_of(origin) == hosts[0].lower() for origin in origins)
        if not own or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refused(403, "a page of another origin may not send this; use the server's own page, or a program")

    def is_own(self, host: str) -> bool:
        """Whether the value of `Host`, with or without a port, is an address or a name of this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return address.is_loopback or not self.loopback


def _place_of(origin: str) -> str:
    """Name and port of an origin; empty where it is none."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return ""
    return parts.netloc if parts.scheme in ("http", "https") else ""
