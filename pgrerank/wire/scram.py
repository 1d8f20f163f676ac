"""SCRAM-SHA-256, the server's side, for one user (RFC 5802, RFC 7677), on the library `scramp`."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from scramp import ScramException, ScramMechanism  # type: ignore[import-untyped]

from pgrerank.errors import PgrerankError, ProtocolError

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 4096
_SALT_BYTES = 16


class PasswordUnusableError(PgrerankError):
    """A password can't be prepared for SCRAM."""


class ProofRejectedError(PgrerankError):
    """A client did not prove that it knows the password of the user it named."""


class ScramVerifier:
    """What a server keeps of one user's password; a stolen copy can't log in.

    `user` None accepts every name with this one password. The costly salted password (4096 rounds
    of PBKDF2) is computed once, here. Raises PasswordUnusableError when the password is empty or
    has characters that RFC 4013 (SASLprep) prohibits.
    """

    def __init__(self, user: str | None, password: str) -> None:
        self._user = user
        self._mechanism = ScramMechanism(MECHANISM)
        self._secret = secrets.token_bytes(32)
        if not password:
            raise PasswordUnusableError(
                "the worker's password is empty; give one, or None for trust"
            )
        try:
            salt = self._salt(user or "")
            self._keys = self._mechanism.make_auth_info(password, ITERATIONS, salt)
        except ScramException as error:
            raise PasswordUnusableError(
                f"the worker's password can't be used with {MECHANISM}: {error.args[0]}; "
                "use printable characters that Unicode 3.2 knows"
            ) from error

    def _salt(self, user: str) -> bytes:
        return hmac.digest(self._secret, user.encode(), hashlib.sha256)[:_SALT_BYTES]

    def knows(self, user: str) -> bool:
        """Whether `user` may log in here at all."""
        return self._user is None or hmac.compare_digest(self._user.encode(), user.encode())

    def exchange(self, user: str) -> ScramExchange:
        """Start a log-in of `user`; an unknown one sees what a wrong password would show it."""
        if self.knows(user):
            return ScramExchange(self._mechanism, self._keys)
        # The same salt at every try, as a known name has; else it would tell the name is unknown.
        mock = (self._salt(user), secrets.token_bytes(32), secrets.token_bytes(32), ITERATIONS)
        return ScramExchange(self._mechanism, mock)


class ScramExchange:
    """One log-in: `first`, then `final`."""

    def __init__(self, mechanism: ScramMechanism, keys: tuple[bytes, bytes, bytes, int]) -> None:
        # Postgres ignores the name in the SCRAM message: the start-up packet has named the user.
        self._server = mechanism.make_server(lambda _user: keys)

    def first(self, client_first: bytes) -> bytes:
        """Answer the client-first-message; raises ProtocolError when it is malformed.

        libpq leaves the user name empty, which RFC 5802 (and so `scramp`) forbids: a name is put in
        for the parser, and taken out again, as the signatures cover the client's words.
        """
        try:
            text = client_first.decode()
            *header, bare = text.split(",", 2)
            if bare.startswith("n=,"):
                self._server.set_client_first(",".join([*header, "n=libpq" + bare[2:]]))
                self._server.client_first_bare = bare
            else:
                self._server.set_client_first(text)
            return str(self._server.get_server_first()).encode()
        except (ScramException, UnicodeDecodeError) as error:
            raise ProtocolError(f"malformed SCRAM message: {error.args[0]}") from error

    def final(self, client_final: bytes) -> bytes:
        """Answer the client-final-message; raises ProofRejectedError unless its proof holds."""
        try:
            self._server.set_client_final(client_final.decode())
            return str(self._server.get_server_final()).encode()
        except (ScramException, UnicodeDecodeError) as error:
            raise ProofRejectedError("the proof of the password does not hold") from error
