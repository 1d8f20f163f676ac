"""What training reads of a reranker: its models, its recall, its documents' texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgrerank.errors import TrainingError
from pgrerank.models import Encoder, ModelSpec, load_encoder


@dataclass(frozen=True)
class Source:
    """A reranker's table, and the names of its models by kind."""

    name: str
    table: str
    key_column: str
    text_expression: str
    distance: str
    models: Mapping[str, str | None]

    def encoder(self, connection: psycopg.Connection[Any]) -> Encoder:
        """Its embedding model; raises TrainingError when it has none."""
        name = self.models["embedding"]
        if name is None:
            raise TrainingError(
                f"reranker {self.name} has no embedding model, so that nothing can be recalled here"
            )
        return load_encoder(registered(connection, name))


@dataclass
class Candidate:
    """A recalled document; `rank` from 1, `logit` the cross-encoder's score once it has one."""

    key: str
    score: float
    text: str
    rank: int
    logit: float | None = None


def read_source(connection: psycopg.Connection[Any], name: str) -> Source:
    """The reranker of that name; raises psycopg.errors.UndefinedObject when there is none."""
    cursor = connection.cursor(row_factory=dict_row)
    row = cursor.execute(
        "SELECT r.source::text AS source, r.key_column::text, r.distance, r.cross_encoder_model,"
        " g.text_expression, g.embedding_model, g.late_interaction_model"
        " FROM pgrerank._reranker(%s) r"
        " JOIN pgrerank.generations g ON (g.reranker, g.number) = (r.name, r.generation)",
        (name,),
    ).fetchone()
    assert row is not None
    kinds = ("embedding", "late_interaction", "cross_encoder")
    models = {kind: row[f"{kind}_model"] for kind in kinds}
    return Source(
        name, row["source"], row["key_column"], row["text_expression"], row["distance"], models
    )


def recall(
    connection: psycopg.Connection[Any], source: Source, vector: list[float], depth: int
) -> list[Candidate]:
    """The `depth` documents that recall finds first for a query's embedding, with their texts."""
    rows = connection.execute(
        sql.SQL(
            "SELECT s.{key}::text, s.score, ({text}), s.rank FROM (SELECT {key}, score, rank FROM"
            " {search}(NULL, top_k => %s, candidates => %s, stages => '{{recall}}',"
            " query_embedding => %s::vector)) s JOIN {table} d USING ({key}) ORDER BY s.rank"
        ).format(
            key=sql.Identifier(source.key_column),
            text=sql.SQL(source.text_expression),
            search=sql.Identifier("pgrerank", f"{source.name}_search"),
            table=sql.SQL(source.table),
        ),
        (depth, depth, str(vector)),
    ).fetchall()
    return [Candidate(key, score, text or "", rank) for key, score, text, rank in rows]


def registered(connection: psycopg.Connection[Any], name: str) -> ModelSpec:
    """The registered model of that name; raises TrainingError when there is none."""
    cursor = connection.cursor(row_factory=dict_row)
    row = cursor.execute(
        "SELECT name, kind, loader, source, revision, options FROM pgrerank.models WHERE name = %s",
        (name,),
    ).fetchone()
    if row is None:
        raise TrainingError(f"model {name} is not registered; see: pgrerank models list")
    return ModelSpec(**row)
