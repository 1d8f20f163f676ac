"""Metadata of registered models for mteb, and a worker that runs them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from mteb.models import ModelMeta

from pgrerank import __version__
from pgrerank.catalog import read_model
from pgrerank.install.schema import connect
from pgrerank.models import Kind
from pgrerank.worker.child import worker_process

_TYPES: Mapping[str, str] = {
    "embedding": "dense",
    "late_interaction": "late-interaction",
    "cross_encoder": "cross-encoder",
}


def model_meta(
    dsn: str, models: Mapping[Kind, str | None], settings: Mapping[str, Any] | None = None
) -> ModelMeta:
    """Name, revision and settings, by which mteb keeps results apart.

    The name is made of the models'; the revision is pgrerank's version and a digest of what is
    registered under these names. Raises ModelError for a model that is not registered.
    """
    wanted = {kind: name for kind, name in models.items() if name is not None}
    with connect(dsn) as connection:
        registered = [asdict(read_model(connection, name, kind)) for kind, name in wanted.items()]
    digest = hashlib.sha256(json.dumps(registered, sort_keys=True).encode()).hexdigest()
    return ModelMeta.create_empty(
        overwrites={
            "name": f"pgrerank/{'+'.join(wanted.values())}",
            "revision": f"{__version__}-{digest[:8]}",
            "model_type": [_TYPES[kind] for kind in wanted],
            "experiment_kwargs": dict(settings) if settings else None,
        }
    )


@contextlib.contextmanager
def answering(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Open an autocommit connection whose calls a worker answers.

    That is the worker which the database knows, whoever runs it. Where it knows none, one runs as a
    child of this process until the end of the block, and the database forgets it then. Raises
    WorkerError when that one does not get ready.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(dsn))
        if not connection.execute(
            "SELECT 1 FROM pg_foreign_server WHERE srvname LIKE 'pgrerank\\_worker%'"
        ).fetchone():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(worker_process(dsn, Path(folder) / "worker.log"))
        yield connection
