"""Errors. Each names the object, the value found, the value expected and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PgrerankError(Exception):
    """Base of every error that pgrerank raises on purpose."""


class TokensError(PgrerankError):
    """A packed token matrix is malformed, or two of them do not fit each other."""


class ModelError(PgrerankError):
    """A model can't be loaded, or does not do what its kind promises."""


class EmbeddedServerError(PgrerankError):
    """The embedded Postgres server can't be started or did not stay up."""


class InstallError(PgrerankError):
    """The schema can't be installed into or removed from this database."""


class KernelError(PgrerankError):
    """The native kernel can't be built for a server, or not be put there."""


class ProtocolError(PgrerankError):
    """A peer broke the wire protocol; its connection ends."""


class RequestError(PgrerankError):
    """The worker can't answer a request; carries the SQLSTATE that the client sees."""

    def __init__(self, message: str, *, sqlstate: str = "XX000") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class EndpointError(RequestError):
    """A model's endpoint can't be had now; what it was asked is not to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sqlstate="58000")


class RefusedError(EndpointError):
    """A model's endpoint refuses, as for a wrong key; to ask again is of no use."""


class SettingsError(PgrerankError):
    """A command's arguments are invalid or contradict each other."""


class MissingExtraError(PgrerankError):
    """A feature needs packages that are not installed; the message says how to install them."""


class CatalogError(PgrerankError):
    """The database does not say what it always should of a reranker or model."""


class WorkerError(PgrerankError):
    """A worker process did not start."""


class FileError(PgrerankError):
    """A file has lines that can't be read; the message names each by its number."""


class TriplesError(PgrerankError):
    """Training data is not enough for what is asked."""


class TrainingError(PgrerankError):
    """A model can't be trained as asked."""


class EvaluationError(PgrerankError):
    """Judgements or runs are missing, or can't be used as asked."""


@contextmanager
def extra(name: str, feature: str) -> Iterator[None]:
    """Import what one of the package's extras brings, for a feature such as `a report`.

    Raises MissingExtraError where a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{feature} needs {error.name}, which is not installed: pip install 'pgrerank[{name}]'"
        ) from error
