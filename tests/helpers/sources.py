"""A small source table with a reranker, the same in many tests."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import class_row

from pgrerank.worker.claim import Claim

ROWS = [
    ("Pools", "The connection pool is exhausted when no connection is given back."),
    ("Cats", "A cat sleeps most of the day."),
    ("Bread", "Flour, water, salt and time make bread."),
]


class Source:
    """Table `documents (id, title, body, …)` with three rows, and models registered by name."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        connection.execute(
            "CREATE TABLE documents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " title text, body text, tenant int NOT NULL DEFAULT 1, lang text, published date,"
            " extra jsonb)"
        )
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO documents (title, body) VALUES (%s, %s)", ROWS)

    @classmethod
    def of(cls, connection: psycopg.Connection[Any]) -> Source:
        """The source that is there already."""
        source = cls.__new__(cls)
        source.connection = connection
        return source

    def models(self, **folders: str) -> None:
        """Register models; without a folder the source does not exist and can't be loaded."""
        for name, kind, loader, dims in (
            ("embedding", "embedding", "sentence_transformer", 32),
            ("tokens", "late_interaction", "sentence_transformer", 32),
            ("reranker", "cross_encoder", "cross_encoder", None),
        ):
            self.connection.execute(
                "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)",
                (name, kind, folders.get(name, "/nowhere/" + name), dims, loader),
            )

    def create(self, name: str = "documents", **settings: Any) -> None:
        """Create a reranker over it; all stages unless told otherwise."""
        if not self.connection.execute("SELECT count(*) FROM pgrerank.models").fetchone()[0]:
            self.models()
        arguments = {
            "text_columns": ["title", "body"],
            "embedding_model": "embedding",
            "late_interaction_model": "tokens",
            "cross_encoder_model": "reranker",
        } | settings
        names = ", ".join(f"{key} => %({key})s" for key in arguments)
        self.connection.execute(
            f"SELECT pgrerank.create_reranker(%(name)s, 'documents', {names})",
            {"name": name, **arguments},
        )

    def encode_by_hand(self, name: str = "documents") -> None:
        """Store made-up vectors for all that is pending, as a worker would."""
        cursor = self.connection.cursor(row_factory=class_row(Claim))
        for claim in cursor.execute("SELECT * FROM pgrerank.claim(1000, %s)", (name,)).fetchall():
            for document in claim.documents:
                if document.is_encoded:
                    self.connection.execute(
                        "SELECT pgrerank.finish(%s, %s, %s, %s)",
                        (claim.reranker, claim.generation, [document.key], [document.ticket]),
                    )
                    continue
                vector = [0.0] * 32
                vector[int(document.content_hash[0]) % 32] = 1.0
                self.connection.execute(
                    "SELECT pgrerank.store(%s, %s, %s, %s, %s, NULL, %s, ARRAY[1],"
                    " ARRAY['h'::bytea], ARRAY[pgrerank._cut_hash(coalesce(%s, ''))], '{1}',"
                    " %s::float8[]::real[])",
                    (
                        *(claim.reranker, claim.generation),
                        *([document.key], [document.ticket], [document.content_hash]),
                        *([document.key], document.content, vector),
                    ),
                )
