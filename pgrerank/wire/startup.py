"""The start of a connection: TLS and authentication."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from pgrerank.errors import ProtocolError
from pgrerank.wire import messages
from pgrerank.wire.scram import MECHANISM, ProofRejectedError, ScramVerifier
from pgrerank.wire.stream import Stream
from pgrerank.wire.types import FatalError

log = logging.getLogger("pgrerank.wire.server")

MAX_STARTUP_BYTES = 10_000
"""The longest message before authentication, as in Postgres (MAX_STARTUP_PACKET_LENGTH)."""

_CANCEL_REQUEST = 80877102
_SSL_REQUEST = 80877103
_GSSENC_REQUEST = 80877104
_CANCEL_KEY_BYTES = range(4, 257)


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may enter: `verifier` None is trust, `user` None is any name."""

    user: str | None
    verifier: ScramVerifier | None
    context: ssl.SSLContext | None
    require_ssl: bool
    seconds: float


async def admit(
    stream: Stream, gate: Gate, cancel: Callable[[int, bytes], None]
) -> tuple[messages.Startup, bytes] | None:
    """Negotiate and authenticate; None after a CancelRequest, which was passed to `cancel`.

    The bytes are the authentication's last message, still to be sent, ahead of the welcome. Raises
    FatalError for whoever may not enter and ConnectionLostError.
    """
    startup = await _startup(stream, gate, cancel)
    if startup is None:
        return None
    if gate.require_ssl and not stream.tls:
        raise FatalError(
            "this worker talks TLS only: connect with sslmode=require", sqlstate="28000"
        )
    if startup.negotiate:
        stream.write(startup.negotiate)
    if gate.verifier is not None:
        return startup, await _authenticate(stream, gate.verifier, startup.user)
    if gate.user not in (None, startup.user):
        raise FatalError(f'the worker has no user "{startup.user}"', sqlstate="28000")
    return startup, b""


async def _startup(
    stream: Stream, gate: Gate, cancel: Callable[[int, bytes], None]
) -> messages.Startup | None:
    refused: set[int] = set()
    while True:
        length = int.from_bytes(await stream.read(4))
        if not 8 <= length <= MAX_STARTUP_BYTES:
            raise FatalError(f"a start-up packet has 8 to {MAX_STARTUP_BYTES} bytes, not {length}")
        packet = bytes(await stream.read(length - 4))
        code, body = int.from_bytes(packet[:4]), packet[4:]
        if code == _CANCEL_REQUEST:
            _cancel(body, cancel)
            return None
        if code not in (_SSL_REQUEST, _GSSENC_REQUEST):
            return messages.parse_startup(code, body)
        if body or code in refused or stream.tls:
            raise FatalError("malformed or repeated request for encryption")
        if code == _SSL_REQUEST and gate.context is not None:
            await stream.start_tls(gate.context, gate.seconds)
        else:
            refused.add(code)
            stream.write(b"N")


def _cancel(body: bytes, cancel: Callable[[int, bytes], None]) -> None:
    if len(body) - 4 not in _CANCEL_KEY_BYTES:
        raise FatalError("malformed cancel request")
    cancel(int.from_bytes(body[:4]), body[4:])


async def _authenticate(stream: Stream, verifier: ScramVerifier, user: str) -> bytes:
    stream.write(messages.sasl(MECHANISM))
    mechanism, client_first = messages.parse_sasl_initial(await _sasl_response(stream))
    if mechanism != MECHANISM:
        raise FatalError(f"the client chose {mechanism!r}, but only {MECHANISM} was offered")
    exchange = verifier.exchange(user)
    try:
        stream.write(messages.sasl_continue(exchange.first(client_first)))
        return messages.sasl_final(exchange.final(await _sasl_response(stream)))
    except ProofRejectedError:
        log.warning("password authentication failed for user %r from %s", user, stream.peer)
        raise FatalError(
            f'password authentication failed for user "{user}"', sqlstate="28P01"
        ) from None
    except FatalError:
        raise
    except ProtocolError as error:
        raise FatalError(str(error)) from None


async def _sasl_response(stream: Stream) -> bytes:
    header = await stream.read(5)
    if header[:1] != b"p":
        raise FatalError(f"expected a SASL response, got message type {bytes(header[:1])!r}")
    length = int.from_bytes(header[1:])
    if not 4 <= length <= MAX_STARTUP_BYTES:
        raise FatalError(f"a SASL response has 4 to {MAX_STARTUP_BYTES} bytes, not {length}")
    return bytes(await stream.read(length - 4))
