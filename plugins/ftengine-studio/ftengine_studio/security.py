"""Checks of every request: the token, the server's address as `Host`, and no foreign `Origin`."""

from __future__ import annotations

import ipaddress
import secrets
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 256 * 1024
"""Bytes of a request's body."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses requests without the token, for another host or from another page; an ASGI middleware.

    Args:
        token: part of the address that the command prints, and then of a cookie that scripts cannot read.
        host, port: where the server listens. For an address of all interfaces any IP address is a host, but no name,
            so that no other site's name can be made to point here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str, host: str, port: int) -> None:
        self._app, self._token, self._host, self._port = app, token, host, port

    @property
    def cookie(self) -> str:
        """The cookie's name; browsers share cookies between ports."""
        return f"ftengine-studio-{self._port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not self._allowed(scope):
            await Response(status_code=403, headers=HEADERS)(scope, receive, send)
        elif int(Headers(scope=scope).get("content-length") or 0) > MOST_BYTES:
            await Response(status_code=413, headers=HEADERS)(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive), self._with_headers(scope, send))

    def _allowed(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_here(host) or (origin is not None and origin != f"http://{host}"):
            return False
        given = (self._from_address(scope), self._from_cookie(headers))
        return any(secrets.compare_digest(token.encode(), self._token.encode()) for token in given if token)

    def _is_here(self, host: str) -> bool:
        """Say whether a Host header names this server."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self._port:
            return False
        if name in ("127.0.0.1", "localhost", "::1", self._host):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._host in ("0.0.0.0", "::")

    def _from_address(self, scope: Scope) -> str:
        try:
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
        except ValueError:  # too many fields
            return ""
        return query.get("token", [""])[0]

    def _from_cookie(self, headers: Headers) -> str:
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")  # others may be malformed

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if self._from_address(scope):
                    settings = "HttpOnly; SameSite=Strict; Path=/"
                    headers.append("Set-Cookie", f"{self.cookie}={self._token}; {settings}")
            await send(message)

        return sending


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that ends a body without a length once it is too long."""
    left = MOST_BYTES

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return receiving
