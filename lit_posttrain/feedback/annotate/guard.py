"""Who may see the page: a link with a token, then a cookie. Everything else is refused, whatever is asked for."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ORGANISER = ""  # who sees the statistics; annotators have names
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_LIFETIME_S = 30 * 24 * 3600
_REFUSED = "This page opens with the link that the server printed when it started: ask for yours.\n"
# not a redirect: the browser would send no strict cookie after one that begins in a message or on another site
_WELCOME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Opening</title><link rel="icon" href="/page/icon.svg">
<meta http-equiv="refresh" content="0; url={path}">
<p><a href="{path}">Open the page</a></p></html>
"""


class Tokens:
    """A token for each annotator, and one for the organiser. The same secret makes the same tokens again."""

    def __init__(self, names: Sequence[str], secret: str | None = None) -> None:
        key = (secret or secrets.token_urlsafe(32)).encode()
        self._of = {name: hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:32] for name in (*names, ORGANISER)}

    def link(self, base: str, name: str) -> str:
        """The address that an annotator opens first, or the organiser."""
        return f"{base}{_home(name)}?token={self._of[name]}"

    def who(self, token: str) -> str | None:
        """Whose token it is; None if it is nobody's."""
        same = [name for name, own in self._of.items() if hmac.compare_digest(own.encode(), token.encode())]
        return same[0] if same else None


class Guard:
    """Refuses requests without a valid token or from other sites, and sets headers that keep the page to itself. In the
    scope of what it lets through, `annotator` is who asks."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, of which there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        answer = self._answer(Request(scope))
        await (answer or self.app)(scope, receive, with_headers)

    def _answer(self, request: Request) -> Response | None:
        """The answer to a request that the application does not see; None for one that it sees."""
        token = request.query_params.get("token")
        if token is not None:
            return self._welcome(request, token)
        who = self._who(request)
        if who is None:
            return PlainTextResponse(_REFUSED, 401)
        if request.method not in ("GET", "HEAD"):
            origin = urlsplit(request.headers.get("origin", "")).netloc
            if not origin or origin != request.headers.get("host"):
                return JSONResponse({"error": "the request came from another site"}, 403)
        request.scope["annotator"] = who
        return None

    def _who(self, request: Request) -> str | None:
        """Who asks, of those that may have what is asked for."""
        cookies = (request.cookies.get(_cookie(request, name), "") for name in ("annotator", ORGANISER))
        found = [who for who in map(self.tokens.who, cookies) if who is not None]
        path = str(request.scope["path"])  # what is served; `request.url` is made of the Host header too
        if not path.startswith("/page/"):  # styles and scripts are for both
            statistics = path.startswith(("/stats", "/api/stats"))
            found = [who for who in found if (who == ORGANISER) == statistics]
        return found[0] if found else None

    def _welcome(self, request: Request, token: str) -> Response:
        who = self.tokens.who(token)
        if who is None:
            return PlainTextResponse(_REFUSED, 401)
        answer = HTMLResponse(_WELCOME.format(path=_home(who)))
        answer.set_cookie(_cookie(request, who), token, max_age=_LIFETIME_S, httponly=True, samesite="strict")
        return answer


def _home(name: str) -> str:
    return "/stats" if name == ORGANISER else "/"


def _cookie(request: Request, name: str) -> str:
    """By port, as browsers send the cookies of one host to all of its ports."""
    return f"{'statistics' if name == ORGANISER else 'annotate'}-{_port(request)}"


def _port(request: Request) -> int:
    """Of the address that the browser has opened, which through a tunnel is not the server's."""
    port = request.headers.get("host", "").rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() else 80
