"""Writes what a worker may answer the native client, for its fuzzer to begin with.

python seeds.py FOLDER
"""

from __future__ import annotations

import base64
import itertools
import sys
from pathlib import Path

NONCE = base64.b64encode(bytes(18))
SALT = base64.b64encode(bytes(range(16)))
SIGNATURE = base64.b64encode(bytes(32))  # by the fuzzer's HMAC, which is all zeros


def message(kind: bytes, body: bytes = b"") -> bytes:
    """A message of the Postgres protocol."""
    return kind + (len(body) + 4).to_bytes(4) + body


def authentication(code: int, data: bytes = b"") -> bytes:
    """A message that asks for something, or says that it is done."""
    return message(b"R", code.to_bytes(4) + data)


def error(sqlstate: bytes, text: bytes) -> bytes:
    """An ErrorResponse."""
    return message(b"E", b"SERROR\0C" + sqlstate + b"\0M" + text + b"\0\0")


def row(*values: bytes) -> bytes:
    """A DataRow."""
    columns = b"".join(len(value).to_bytes(4) + value for value in values)
    return message(b"D", len(values).to_bytes(2) + columns)


READY = message(b"Z", b"I")
AT_WORK = message(b"A", b"\0\0\0\0at work\0\0")
COLUMN = message(b"T", b"\0\x01answer\0" + b"\0" * 9 + b"\x19\xff\xff\xff\xff\xff\xff\0\0")
DONE = message(b"C", b"SELECT 1\0") + READY
ANSWER = COLUMN + AT_WORK + row('{"id": 1, "scores": [0.5, "ü"]}'.encode()) + DONE
CHALLENGE = authentication(11, b"r=%sserver,s=%s,i=4096" % (NONCE, SALT))
ADMITTED = (
    authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
    + CHALLENGE
    + authentication(12, b"v=" + SIGNATURE)
    + authentication(0)
    + message(b"S", b"server_version\0" + b"15\0")
    + message(b"K", bytes(8))
    + READY
)
REFUSED = error(b"28P01", b"password authentication failed")
BUSY = error(b"53300", b"too many requests wait") + READY
ANSWERS = [
    4 * ANSWER,
    BUSY + ANSWER,
    error(b"PGR03", "no, für immer".encode()) + READY,
    error(b"57014", b"cancelled") + READY,
    COLUMN + row(b"\xff\xfe") + DONE,
    COLUMN + row(b"1", b"2") + DONE,
    COLUMN + row(b"[" * 2000) + DONE,
    message(b"I") + READY,
]
CONVERSATIONS = [
    (1, ADMITTED + 4 * ANSWER),
    (1, ADMITTED + BUSY + ANSWER),
    (1, REFUSED),
    (1, authentication(3)),
    (1, ADMITTED[:30] + authentication(11, b"r=%sx,s=AA==,i=2000000000" % NONCE)),
    *((0, answer) for answer in ANSWERS),
]


def main() -> None:
    """Write each conversation at each speed."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, ((start, said), chunk) in enumerate(itertools.product(CONVERSATIONS, range(4))):
        flags = start | (number % 2) << 1 | chunk << 2
        (folder / f"{number:03}").write_bytes(bytes([flags, 255]) + said)


if __name__ == "__main__":
    main()
