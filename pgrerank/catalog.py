"""What the database says of rerankers and models, and calls of its functions by named arguments."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row, tuple_row
from psycopg.types.json import Jsonb

from pgrerank.errors import CatalogError, ModelError
from pgrerank.install.schema import check_version
from pgrerank.models import (
    Encoder,
    Kind,
    ListwiseJudge,
    Loader,
    ModelSpec,
    load_encoder,
    load_judge,
    load_reranker,
)
from pgrerank.models import Reranker as ModelReranker
from pgrerank.models.spec import LOADERS

__all__ = [
    "Reranker",
    "call",
    "call_statement",
    "fetch_one",
    "model_spec",
    "read_model",
    "read_models",
    "read_passage_counts",
    "read_reranker",
    "read_texts",
    "register_model",
]

Connection = psycopg.Connection[Any]
Database = Connection | psycopg.AsyncConnection[Any]

Statement = tuple[sql.Composed | LiteralString, Mapping[str, Any]]
"""What a cursor executes, with the values of its named placeholders."""

T = TypeVar("T")
Steps = Generator[Statement, list[dict[str, Any]], T]
"""Yields statements, is sent the rows of each as dicts, and returns a result."""

_RERANKER: LiteralString = """
SELECT pgrerank.schema_version() AS version, current_database() AS database,
  r.name, r.source::text AS table, r.key_columns, r.key_type,
  coalesce(%(generation)s, r.generation) AS generation,
  pgrerank.settings(r.name, coalesce(%(generation)s, r.generation)) AS settings
FROM pgrerank.rerankers r WHERE r.name = %(name)s"""

MODELS: LiteralString = (
    "SELECT name, kind, loader, source, revision, options FROM pgrerank.models ORDER BY name"
)
"""All registered models; a row has the fields of a ModelSpec."""


@dataclass(frozen=True)
class Reranker:
    """A reranker, as of one of its generations.

    `settings` are named as the arguments of `pgrerank.create_reranker`; `table` is the source,
    quoted where it must be.
    """

    name: str
    table: str
    key_columns: Sequence[str]
    key_type: str
    generation: int
    settings: Mapping[str, Any]

    def model(self, kind: Kind) -> str | None:
        """The name of the reranker's model of this kind, None where it has none."""
        name: str | None = self.settings[f"{kind}_model"]
        return name

    @property
    def casts(self) -> dict[str, str]:
        """By argument of a search, the types by which texts become an array of its keys."""
        return dict.fromkeys(("keys", "after"), f"text[]::{self.key_type}[]")

    @property
    def keys(self) -> sql.Composed:
        """Names for the columns that a search returns a key as, whatever they are called."""
        return sql.SQL(", ").join(map(sql.Identifier, self._key_names))

    def key_of_source(self, row: str) -> sql.Composed:
        """The key of a row of the source, by the row's alias."""
        return self._key(row, self.key_columns)

    def key_of_result(self, row: str) -> sql.Composed:
        """The key of a search's row whose columns are named by `keys`."""
        return self._key(row, self._key_names)

    def is_document(self, source: str, result: str) -> sql.Composed:
        """The condition that a search's row, named by `keys`, is of a row of the source."""
        return sql.SQL("({}) = ({})").format(
            _columns(source, self.key_columns), _columns(result, self._key_names)
        )

    @property
    def _key_names(self) -> list[str]:
        return [f"key_{place}" for place, _ in enumerate(self.key_columns, 1)]

    def _key(self, row: str, columns: Sequence[str]) -> sql.Composed:
        made = sql.SQL("{}" if len(columns) == 1 else "ROW({})").format(_columns(row, columns))
        return sql.SQL("({}::{})").format(made, sql.SQL(self.key_type))

    @property
    def search(self) -> sql.Identifier:
        """The name of its search function."""
        return sql.Identifier("pgrerank", f"{self.name}_search")


def _columns(row: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(row, name) for name in names)


def call_statement(
    function: str,
    arguments: Mapping[str, Any],
    *,
    select: LiteralString = "*",
    casts: Mapping[str, str] | None = None,
) -> tuple[sql.Composed, dict[str, Any]]:
    """Make the statement and the values of a call of pgrerank.FUNCTION.

    Arguments that are None are left out, so that the function's defaults hold; dicts become jsonb.
    `casts` names types by argument.
    """
    values = {
        name: Jsonb(value) if isinstance(value, dict) else value
        for name, value in arguments.items()
        if value is not None
    }
    types = casts or {}
    named = [
        sql.SQL("{} => {}{}").format(
            sql.Identifier(name),
            sql.Placeholder(name),
            sql.SQL(f"::{types[name]}" if name in types else ""),
        )
        for name in values
    ]
    statement = sql.SQL("SELECT {} FROM {}({})").format(
        sql.SQL(select), sql.Identifier("pgrerank", function), sql.SQL(", ").join(named)
    )
    return statement, values


def search_with_texts(
    connection: Connection,
    reranker: Reranker,
    arguments: Mapping[str, Any],
    *,
    casts: Mapping[str, str],
) -> list[tuple[str, float, str, int]]:
    """Search by a reranker: key, score, text and rank of the rows, best first."""
    search, values = call_statement(f"{reranker.name}_search", arguments, casts=casts)
    statement = sql.SQL(
        "WITH recalled (key, score, rank) AS ({})"
        " SELECT r.key::text, r.score, t.content, r.rank FROM recalled r JOIN pgrerank.texts("
        "%(reranker)s, (SELECT array_agg(key::text) FROM recalled)) t ON t.key = r.key::text"
        " ORDER BY r.rank"
    ).format(search)
    return connection.execute(statement, values | {"reranker": reranker.name}).fetchall()


def call(
    connection: Connection, function: str, arguments: Mapping[str, Any]
) -> psycopg.Cursor[Any]:
    """Call pgrerank.FUNCTION with the named arguments that are not None."""
    return connection.execute(*call_statement(function, arguments))


def fetch_one(cursor: psycopg.Cursor[Any]) -> Any:
    """The next row of a statement that always has one; raises CatalogError where there is none."""
    row = cursor.fetchone()
    if row is None:
        raise CatalogError("the database returned no row where there is always one")
    return row


def reranker_steps(name: str, generation: int | None = None) -> Steps[Reranker]:
    """Yield the statements of `read_reranker`, for a connection of either kind."""
    rows = yield _RERANKER, {"name": name, "generation": generation}
    if not rows:
        yield "SELECT pgrerank.settings(%(name)s)", {"name": name}  # says which there are
    [row] = rows
    check_version(row.pop("version"), row.pop("database"))
    return Reranker(**row)


def read_reranker(connection: Connection, name: str, generation: int | None = None) -> Reranker:
    """The reranker of that name, as of the generation in use or the one given.

    Raises psycopg.errors.UndefinedObject where there is no such reranker or generation, and
    InstallError where the schema is of another version than this package.
    """
    return take(connection, reranker_steps(name, generation))


def take(connection: Connection, steps: Steps[T]) -> T:
    """Execute the statements that steps yield, send them the rows as dicts, return their result."""
    cursor = connection.cursor(row_factory=dict_row)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(cursor.execute(*statement).fetchall())
    except StopIteration as done:
        result: T = done.value
        return result


def read_texts(
    connection: Connection,
    reranker: str,
    keys: Sequence[str] | None = None,
    generation: int | None = None,
) -> dict[str, str]:
    """Read the texts that a generation encodes, by key, as far as the role may.

    Those of `keys`, or of all documents; a generation of None is the one in use.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(
        "SELECT key, content FROM pgrerank.texts(%s, %s, %s)",
        (reranker, None if keys is None else list(keys), generation),
    )
    return dict(cursor.fetchall())


def read_passage_counts(
    connection: Connection, reranker: str, keys: Sequence[str], generation: int | None = None
) -> dict[str, int]:
    """By key, how many passages these documents have, of those that are encoded.

    A generation of None is the one in use.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(
        "SELECT key, count(*) FROM pgrerank.passages(%s, %s, %s) GROUP BY key",
        (reranker, list(keys), generation),
    )
    return dict(cursor.fetchall())


def read_models(connection: Connection) -> list[ModelSpec]:
    """All registered models, in order of their names."""
    return connection.cursor(row_factory=class_row(ModelSpec)).execute(MODELS).fetchall()


def read_model(connection: Connection, name: str, kind: Kind | None = None) -> ModelSpec:
    """The registered model of that name, and of that kind if one is given.

    Raises ModelError, saying which there are.
    """
    models = [spec for spec in read_models(connection) if kind in (None, spec.kind)]
    for spec in models:
        if spec.name == name:
            return spec
    of_kind = "" if kind is None else f" of kind {kind}"
    raise ModelError(
        f"no model {name!r}{of_kind} is registered, there is"
        f" {', '.join(spec.name for spec in models) or 'none'}: pgrerank models add"
    )


def model_spec(
    name: str,
    kind: str,
    source: str,
    *,
    loader: Loader | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """A model as it would be registered; raises ModelError for an unknown kind."""
    if kind not in LOADERS:
        raise ModelError(f"model {name}: kind is {kind!r}, expected one of {', '.join(LOADERS)}")
    known: Kind = kind  # type: ignore[assignment]
    return ModelSpec(name, known, loader or LOADERS[known][0], source, revision, options or {})


def register_model(
    connection: Connection,
    name: str,
    kind: Kind,
    source: str,
    *,
    loader: Loader | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    measures: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Load a model once, to see that it can be and to learn its dimensions, and register it.

    Raises ModelError when it can't be loaded, psycopg.Error when it can't be registered.
    """
    spec = model_spec(name, kind, source, loader=loader, revision=revision, options=options)
    dims = None
    model: ModelReranker | Encoder | ListwiseJudge
    if kind == "listwise":
        model = load_judge(spec)
        model.order("probe", ["probe", "another probe"])
    elif kind == "cross_encoder":
        model = load_reranker(spec)
        model.score([("probe", "probe")])
    else:
        model = load_encoder(spec)
        dims = model.embedding_dims if kind == "embedding" else model.token_dims
    call(
        connection,
        "register_model",
        {
            "name": name,
            "kind": kind,
            "source": source,
            "dims": dims,
            "loader": spec.loader,
            "revision": revision,
            "max_tokens": getattr(model, "max_tokens", None),
            "options": dict(spec.options),
            "measures": dict(measures or {}),
            "takes_instruction": model.takes_instruction,
        },
    )
    return spec
