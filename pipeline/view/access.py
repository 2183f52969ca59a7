"""Access to the page: a token in its first URL, then a cookie; and headers that keep the browser within the page.

As Jupyter does (https://jupyter-server.readthedocs.io/en/latest/operators/security.html): whoever can read the terminal
may open the page, no other user of the machine and no other web site. Requests under a foreign host name are refused,
so that a site cannot reach the server by DNS rebinding.
"""

import hmac
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Host names under which the page is reached on this machine, also through `ssh -L`."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer: the browser loads nothing from elsewhere, runs no script but the page's own file, and keeps
nothing, since the next run on this port has other rows under the same numbers."""


class Access:
    """Middleware that lets a request pass when it has the token, and asks for what may be asked for."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, posts: str, any_host: bool = False) -> None:
        """Wrap an application.

        Args:
            app: the application.
            token: what the first URL must have as `?token=`; see `new_token`.
            port: port of the server: a browser sends cookies to all ports of a host, so its name has the port.
            posts: start of the paths that take POST, for what is too long for a URL; all others are read alone.
            any_host: accept any host name; for a server that is bound to more than this machine.
        """
        self.app, self.token, self.posts, self.any_host = app, token, posts, any_host
        self.cookie = f"atrous-view-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: pass it on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._refusal(request) or self._admission(request)
        await (answer or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        if not self.any_host and _host_name(request) not in LOOPBACK:
            return PlainTextResponse("unknown host name; open the URL that `atrous view` printed", 403)
        if request.method not in ("GET", "HEAD") and not self._may_post(request):
            return PlainTextResponse("the page only reads", 405)
        given = request.query_params.get("token") or request.cookies.get(self.cookie, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return PlainTextResponse("no valid token; open the URL that `atrous view` printed", 403)
        return None

    def _may_post(self, request: Request) -> bool:
        """True for JSON to a path that takes it: a form of another site can send no JSON, and no cookie of ours."""
        is_json = request.headers.get("content-type") == "application/json"
        return request.method == "POST" and is_json and request.url.path.startswith(self.posts)

    def _admission(self, request: Request) -> Response | None:
        """Redirect that takes the token out of the address bar and leaves it in a cookie."""
        if "token" not in request.query_params:
            return None
        path = request.url.path.lstrip("/")  # of `//name/` the browser would make another host's address
        answer = RedirectResponse(f"/{path}", 303)
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
        return answer


def _host_name(request: Request) -> str | None:
    """Host name that a request was sent to; None where its header is none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def new_token() -> str:
    """Random token, 48 hex digits."""
    return secrets.token_hex(24)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
