"""A search as a FROM element of SQLAlchemy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Integer,
    Interval,
    LargeBinary,
    Select,
    SQLColumnExpression,
    Table,
    TableValuedAlias,
    Text,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, REAL, array
from sqlalchemy.exc import ArgumentError
from sqlalchemy.types import TypeEngine, UserDefinedType

from pgrerank.search import ARGUMENTS, COLUMNS, key_columns
from pgrerank.sqlalchemy.declaration import Reranker, rerankers, table_of

__all__ = ["Search", "search"]

_TYPES: dict[str, TypeEngine[Any]] = {
    "text": Text(),
    "integer": Integer(),
    "real": REAL(),
    "double precision": DOUBLE_PRECISION(),
    "boolean": Boolean(),
    "interval": Interval(),
    "jsonb": JSONB(),
    "bytea": LargeBinary(),
    "vector": Vector(),
    "text[]": ARRAY(Text()),
    "double precision[]": ARRAY(DOUBLE_PRECISION),
}


class Search(TableValuedAlias):
    """The rows of one search: join it to the source by `key`.

    `c` has all columns, the key's under the source's own names; the attributes are the same
    columns, typed.
    """

    inherit_cache = True

    @property
    def key(self) -> ColumnElement[Any]:
        """The document's key, of the source's own type; of several columns, their tuple."""
        columns = list(self.c)[: -len(COLUMNS)]
        return columns[0] if len(columns) == 1 else tuple_(*columns)

    @property
    def score(self) -> ColumnElement[float]:
        """The last stage's score; higher is better."""
        return self.c.score

    @property
    def rank(self) -> ColumnElement[int]:
        """The final rank, from 1."""
        return self.c.rank

    @property
    def relevance(self) -> ColumnElement[float | None]:
        """The probability that the document is relevant; NULL where that is not calibrated."""
        return self.c.relevance

    @property
    def passage(self) -> ColumnElement[str | None]:
        """The best passage, cut from the document's text; from `c.passage_start` to
        `c.passage_end`.
        """
        return self.c.passage

    @property
    def stage(self) -> ColumnElement[str]:
        """The last stage that scored the document."""
        return self.c.stage

    @property
    def degraded(self) -> ColumnElement[bool]:
        """Whether a stage was missed; `c.reason` says why."""
        return self.c.degraded


def search(
    source: type[Any] | Table | Reranker,
    query: str | SQLColumnExpression[str] | None = None,
    *,
    reranker: str | None = None,
    top_k: int | None = None,
    filter: Mapping[str, Any] | None = None,  # noqa: A002 - the SQL function's name for it
    candidates: int | None = None,
    maxsim_bit_top: int | None = None,
    maxsim_top: int | None = None,
    early_exit: float | None = None,
    instruction: str | None = None,
    listwise_top: int | None = None,
    signals: Mapping[str, Any] | None = None,
    group_by: str | None = None,
    per_group: int | None = None,
    diversity: float | None = None,
    duplicate_threshold: float | None = None,
    min_relevance: float | None = None,
    cross_encoder_passages: int | None = None,
    passages: int | None = None,
    highlights: bool | None = None,
    stages: Sequence[str] | None = None,
    keys: Sequence[Any] | Select[Any] | None = None,
    key_scores: Sequence[float | None] | None = None,
    query_embedding: Sequence[float] | SQLColumnExpression[Any] | None = None,
    query_tokens: bytes | None = None,
    recall: str | None = None,
    after: Sequence[Any] | None = None,
    timeout: timedelta | None = None,
    blend: Mapping[str, float] | None = None,
    generation: int | None = None,
    strict: bool | None = None,
) -> Search:
    """Search by the reranker over a mapped class or table, which must be named if there are more.

    The arguments are those of pgrerank.NAME_search; what is left out is the reranker's own. `keys`
    are the candidates in the order of an earlier stage, best first: a sequence, or a select of the
    key column; `key_scores` are their scores there, for a blend.
    `after` are the keys of all pages before this one. `query` and `query_embedding` may
    be columns of another FROM element (a lateral join). Values are bound, and the statement is
    cached.

    Raises ArgumentError when the table has no reranker, or several and none is named.
    """
    declared = source if isinstance(source, Reranker) else _find(table_of(source), reranker)
    given: dict[str, Any] = {
        "query": query,
        "top_k": top_k,
        "filter": None if filter is None else dict(filter),
        "candidates": candidates,
        "maxsim_bit_top": maxsim_bit_top,
        "maxsim_top": maxsim_top,
        "early_exit": early_exit,
        "instruction": instruction,
        "listwise_top": listwise_top,
        "signals": None if signals is None else dict(signals),
        "group_by": group_by,
        "per_group": per_group,
        "diversity": diversity,
        "duplicate_threshold": duplicate_threshold,
        "min_relevance": min_relevance,
        "cross_encoder_passages": cross_encoder_passages,
        "passages": passages,
        "highlights": highlights,
        "stages": None if stages is None else list(stages),
        "key_scores": None if key_scores is None else list(key_scores),
        "query_embedding": query_embedding,
        "query_tokens": query_tokens,
        "recall": recall,
        "timeout": timeout,
        "blend": None if blend is None else dict(blend),
        "generation": generation,
        "strict": strict,
    }
    arguments: dict[str, Any] = {"query": null()} | {
        name: value
        if isinstance(value, SQLColumnExpression)
        else literal(value, _TYPES[ARGUMENTS[name]])
        for name, value in given.items()
        if value is not None
    }
    if keys is not None:
        arguments["keys"] = _keys(declared, keys)
    if after is not None:
        arguments["after"] = _keys(declared, after)
    return _rows(declared, arguments)


def _rows(reranker: Reranker, arguments: Mapping[str, Any]) -> Search:
    function = getattr(func.pgrerank, f"{reranker.name}_search")(
        *(literal_column(name).op("=>")(value) for name, value in arguments.items())
    )
    rows = function.table_valued(
        *(
            column(name, part.type)
            for name, part in zip(
                key_columns([part.name for part in reranker.key]), reranker.key, strict=True
            )
        ),
        *(column(name, _TYPES[kind]) for name, kind in COLUMNS.items()),
    )
    rows.__class__ = Search  # table_valued has no say in the class it makes
    return cast("Search", rows)


class _Key(UserDefinedType[Any]):
    """The type of a key of several columns."""

    cache_ok = True

    def __init__(self, reranker: str) -> None:
        self.reranker = reranker

    def get_col_spec(self, **_: Any) -> str:
        return f'pgrerank."{self.reranker}_key"'


def _keys(reranker: Reranker, keys: Sequence[Any] | Select[Any]) -> Any:
    key = reranker.key
    if len(key) > 1:
        return _composite_keys(key, _Key(reranker.name), keys)
    if isinstance(keys, Select):
        return func.array(keys.scalar_subquery(), type_=ARRAY(key[0].type))
    return literal(list(keys), ARRAY(key[0].type))


def _composite_keys(
    key: Sequence[Column[Any]], of_type: _Key, keys: Sequence[Any] | Select[Any]
) -> Any:
    if isinstance(keys, Select):
        found = keys.subquery()
        made = select(func.row(*found.c).cast(of_type)).select_from(found)
        return func.array(made.scalar_subquery(), type_=ARRAY(of_type))
    rows = [
        [literal(value, part.type) for value, part in zip(one, key, strict=True)] for one in keys
    ]
    return array([func.row(*row).cast(of_type) for row in rows], type_=of_type)


def _find(table: Table, name: str | None) -> Reranker:
    declared = {reranker.name: reranker for reranker in rerankers(table)}
    if name is None and len(declared) == 1:
        return next(iter(declared.values()))
    if name in declared:
        return declared[name]
    what = "no reranker" if name is None and not declared else "several rerankers"
    raise ArgumentError(
        f"table {table.fullname} has {what if name is None else f'no reranker {name!r}'}"
        f": {', '.join(declared) or 'declare one by pgrerank.sqlalchemy.Reranker'}"
        + ("; name one: reranker=…" if declared else "")
    )
