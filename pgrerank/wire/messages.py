"""The messages of the Postgres protocol that the worker reads and writes.

Written ones come from the codec library `pygwire`. Read ones are parsed here: its decoder takes
messages of up to 1 GB before authentication, lengths below four, and can't tell bad UTF-8 apart.
Source: https://www.postgresql.org/docs/18/protocol-message-formats.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pygwire import messages as m

from pgrerank.wire.types import FatalError, Rows, Session

V3_0 = 0x00030000
V3_2 = 0x00030002
"""The newest protocol we speak; it differs from 3.0 by the length of the secret key only."""

EMPTY_ANSWER = m.EmptyQueryResponse().to_wire()
READY = m.ReadyForQuery().to_wire()
AT_WORK = m.NotificationResponse(process_id=0, channel="at work", payload="").to_wire()
"""What a client is told while its request runs, so that it can tell work from silence."""
_OID_TEXT = 25
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")


@dataclass(frozen=True, slots=True)
class Startup:
    """What a client asks for in its start-up packet; `version` is the one we will speak."""

    version: int
    user: str
    database: str
    application_name: str
    negotiate: bytes
    """What must be sent to a client that asked for more than we have; empty for others."""


def parse_startup(version: int, body: bytes) -> Startup:
    """Parse what follows the version number; raises FatalError."""
    if version >> 16 != 3:
        raise FatalError(
            f"unsupported frontend protocol {version >> 16}.{version & 0xFFFF}; use 3.0 to 3.2",
            sqlstate="0A000",
        )
    options = _pairs(body)
    user = options.get("user", "")
    if not user:
        raise FatalError("no user name in the start-up packet", sqlstate="28000")
    unknown = [name for name in options if name.startswith("_pq_.")]
    spoken = min(version, V3_2)
    answer = b""
    if unknown or spoken < version:
        answer = m.NegotiateProtocolVersion(newest_minor=spoken, unrecognized=unknown).to_wire()
    database = options.get("database") or user
    return Startup(spoken, user, database, options.get("application_name", ""), answer)


def _pairs(body: bytes) -> dict[str, str]:
    if body == b"\0":
        return {}
    if not body.endswith(b"\0\0"):
        raise FatalError("malformed start-up packet: no terminator as last byte")
    try:
        words = body[:-2].decode().split("\0")
    except UnicodeDecodeError:
        raise FatalError("malformed start-up packet: not UTF-8", sqlstate="22021") from None
    if len(words) % 2 or "" in words[::2]:
        raise FatalError("malformed start-up packet: options are not pairs of name and value")
    return dict(zip(words[::2], words[1::2], strict=True))


def parse_sasl_initial(body: bytes) -> tuple[str, bytes]:
    """Return mechanism and client-first-message of a SASLInitialResponse; raises FatalError."""
    mechanism, zero, rest = body.partition(b"\0")
    # A length of -1 would say that the message comes later, which no SCRAM client does.
    if not zero or len(rest) < 4 or int.from_bytes(rest[:4]) != len(rest) - 4:
        raise FatalError("malformed SASLInitialResponse")
    return mechanism.decode("ascii", "replace"), rest[4:]


def sasl(mechanism: str) -> bytes:
    """Ask for authentication by `mechanism`."""
    return m.AuthenticationSASL(mechanisms=[mechanism]).to_wire()


def sasl_continue(data: bytes) -> bytes:
    """Carry the server-first-message."""
    return m.AuthenticationSASLContinue(data=data).to_wire()


def sasl_final(data: bytes) -> bytes:
    """Carry the server-final-message."""
    return m.AuthenticationSASLFinal(data=data).to_wire()


def welcome(session: Session, key: bytes, server_version: str) -> bytes:
    """The messages between a client's authentication and its first query."""
    # With the two …read_only/…standby values libpq needs no query for target_session_attrs.
    status = {
        "application_name": session.application_name,
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "default_transaction_read_only": "off",
        "in_hot_standby": "off",
        "integer_datetimes": "on",
        "IntervalStyle": "postgres",
        "is_superuser": "off",
        "server_encoding": "UTF8",
        "server_version": server_version,
        "session_authorization": session.user,
        "standard_conforming_strings": "on",
        "TimeZone": "UTC",
    }
    parts = [m.AuthenticationOk().to_wire()]
    parts += [m.ParameterStatus(name=name, value=value).to_wire() for name, value in status.items()]
    parts.append(m.BackendKeyData(process_id=session.process_id, secret_key=key).to_wire())
    return b"".join([*parts, READY])


def error(message: str, sqlstate: str, severity: str = "ERROR") -> bytes:
    """An ErrorResponse; a `sqlstate` that is none becomes XX000."""
    # Neither a NUL nor a lone surrogate can stand in a field.
    text = message.encode("utf-8", "replace").decode().replace("\0", "�")
    code = sqlstate if _SQLSTATE.fullmatch(sqlstate) else "XX000"
    return m.ErrorResponse(fields={"S": severity, "V": severity, "C": code, "M": text}).to_wire()


def answer(rows: Rows) -> bytes:
    """RowDescription, DataRows and CommandComplete; raises ValueError for what can't be sent."""
    parts = [_description(rows.columns)] if rows.columns else []
    for row in rows.rows:
        if len(row) != len(rows.columns):
            raise ValueError(
                f"a row has {len(row)} values, but there are {len(rows.columns)} columns"
            )
        parts.append(m.DataRow(columns=[_value(value) for value in row]).to_wire())
    parts.append(_complete(rows.tag))
    return b"".join(parts)


@lru_cache
def _description(columns: tuple[str, ...]) -> bytes:
    fields = [
        m.FieldDescription(name=name, type_oid=_OID_TEXT, type_size=-1, type_modifier=-1)
        for name in columns
    ]
    return m.RowDescription(fields=fields).to_wire()


@lru_cache
def _complete(tag: str) -> bytes:
    return m.CommandComplete(tag=tag).to_wire()


def _value(value: str | None) -> bytes | None:
    if value is None:
        return None
    if "\0" in value:
        raise ValueError("a value has a NUL character, which no Postgres text can hold")
    return value.encode()
