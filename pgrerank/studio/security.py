"""Who may ask: only the browser that was given the token, of this machine, by pages of our own."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate", "Secrets", "check_write", "read_form"]

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine; another one that leads here is a page's that rebinds its own (DNS)."""
MOST_BYTES = 2**16
"""Of a form."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Secrets:
    """What a run makes up: the token of its address, the cookie it is changed for, the forms'."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies are shared between the ports of a host."""
        return f"pgrerank-studio-{self.port}"


class Gate:
    """Lets requests through that name this machine and show the token, or the cookie for it."""

    def __init__(self, app: ASGIApp, secrets: Secrets) -> None:
        self._app = app
        self._secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP is refused."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        answer = self._refusal(request) or self._welcome(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if _host_name(request.headers.get("host", "")) not in HOSTS:
            return _plain(
                421, "This address is not studio's: open it at 127.0.0.1, as the terminal names it."
            )
        if self._is_known(request) or self._shows_token(request):
            return None
        return _plain(
            403,
            "pgrerank studio wants the token of its address. Open the whole address that the"
            " terminal shows, with ?token=… at its end; if you just did, load this page again.",
        )

    def _welcome(self, request: Request) -> Response | None:
        """Change a token in the address for a cookie, so that it doesn't stay there."""
        if not self._shows_token(request):
            return None
        rest = request.url.remove_query_params("token")
        answer = RedirectResponse(
            rest.path + (f"?{rest.query}" if rest.query else ""), status_code=303
        )
        answer.set_cookie(
            self._secrets.cookie, self._secrets.session, httponly=True, samesite="strict", path="/"
        )
        return answer

    def _is_known(self, request: Request) -> bool:
        return _same(request.cookies.get(self._secrets.cookie, ""), self._secrets.session)

    def _shows_token(self, request: Request) -> bool:
        return request.method == "GET" and _same(
            request.query_params.get("token", ""), self._secrets.token
        )


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, by name; raises HTTPException for one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"A form has more than {MOST_BYTES} bytes.")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def check_write(request: Request, form: dict[str, str], wanted: str) -> None:
    """See that a write comes from a page of ours; raises HTTPException for any other."""
    given = request.headers.get("x-csrf-token", form.get("csrf", ""))
    origin = request.headers.get("origin")
    is_ours = origin is None or urlsplit(origin).netloc == request.headers["host"]
    if not (is_ours and _same(given, wanted)):
        raise HTTPException(
            403, "This form is of another page, or of an earlier run: load the page again."
        )


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _plain(status: int, text: str) -> Response:
    return Response(text + "\n", status, media_type="text/plain")
