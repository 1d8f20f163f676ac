"""What is declared beside a SQLAlchemy model: models and rerankers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    SQLColumnExpression,
    Table,
    event,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Mapper

from pgrerank.errors import InstallError
from pgrerank.models import Kind, Loader
from pgrerank.sqlalchemy.ddl import CreateReranker, DropReranker, RegisterModel

__all__ = ["Model", "Reranker", "rerankers"]

_INFO = "pgrerank"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that rerankers name: the arguments of pgrerank.register_model.

    `dims` are the dimensions of its vectors, if it makes any. `takes_instruction` says that it
    reads one with a query, which `pgrerank models add` would find out.
    """

    name: str
    kind: Kind
    source: str
    dims: int | None = None
    loader: Loader | None = None
    revision: str | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] | None = None
    takes_instruction: bool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that were given, by name."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given["options"] = None if self.options is None else dict(self.options)
        return {key: value for key, value in given.items() if value is not None}


class Reranker:
    """A reranker over a model's table, which is created after and dropped before that table.

    `source` is a mapped class or a Table with a primary key in the database; where it has none, or
    is a view, `key` is the column that tells its rows apart, or several (`key_columns`). `text` is
    what is searched: a column, several of them, or an expression over the table's columns. Models
    are given by name, or as `Model` to be registered as well. `language` is a column or expression
    that yields each document's own language (`language_expression`), `tenant` the column by which
    searches are filtered for tenants (`tenant_column`), `passage_prefix` what models read in front
    of each passage. The other arguments are those of
    pgrerank.create_reranker; what is left out is for the database to choose.

    Raises ArgumentError when a reranker of that name is declared already, or a column is not the
    table's own.
    """

    def __init__(
        self,
        name: str,
        source: type[Any] | Table,
        *,
        text: SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]],
        embedding_model: Model | str | None = None,
        late_interaction_model: Model | str | None = None,
        cross_encoder_model: Model | str | None = None,
        embedding_column: SQLColumnExpression[Any] | None = None,
        distance: str | None = None,
        candidates: int | None = None,
        maxsim_bit_top: int | None = None,
        maxsim_top: int | None = None,
        early_exit: float | None = None,
        signals: Mapping[str, Any] | None = None,
        group_by: str | None = None,
        per_group: int | None = None,
        diversity: float | None = None,
        duplicate_threshold: float | None = None,
        min_relevance: float | None = None,
        cross_encoder_passages: int | None = None,
        passages: int | None = None,
        highlights: bool | None = None,
        token_precision: str | None = None,
        token_dims: int | None = None,
        token_pool: int | None = None,
        timeout: timedelta | str | None = None,
        text_search_config: str | None = None,
        language: SQLColumnExpression[Any] | None = None,
        tenant: SQLColumnExpression[Any] | None = None,
        grace_period: timedelta | str | None = None,
        blend: Mapping[str, float] | None = None,
        log_sample: float | None = None,
        log_retention: timedelta | str | None = None,
        cross_encoder_fallback: Model | str | None = None,
        instruction: str | None = None,
        listwise_model: Model | str | None = None,
        listwise_top: int | None = None,
        key: SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]] | None = None,
        passage_size: int | None = None,
        passage_overlap: int | None = None,
        passage_structure: str | None = None,
        passage_prefix: SQLColumnExpression[Any] | None = None,
        partitioned: bool | None = None,
    ) -> None:
        self.name = name
        self.table = table_of(source)
        named = (
            *(embedding_model, late_interaction_model),
            *(cross_encoder_model, cross_encoder_fallback, listwise_model),
        )
        self.models = list({m.name: m for m in named if isinstance(m, Model)}.values())
        self.settings: dict[str, Any] = _given(
            **_text(self.table, text),
            embedding_model=_name(embedding_model),
            late_interaction_model=_name(late_interaction_model),
            cross_encoder_model=_name(cross_encoder_model),
            embedding_column=_column_name(self.table, embedding_column),
            distance=distance,
            candidates=candidates,
            maxsim_bit_top=maxsim_bit_top,
            maxsim_top=maxsim_top,
            early_exit=early_exit,
            signals=None if signals is None else dict(signals),
            group_by=group_by,
            per_group=per_group,
            diversity=diversity,
            duplicate_threshold=duplicate_threshold,
            min_relevance=min_relevance,
            cross_encoder_passages=cross_encoder_passages,
            passages=passages,
            highlights=highlights,
            token_precision=token_precision,
            token_dims=token_dims,
            token_pool=token_pool,
            timeout=_interval(timeout),
            text_search_config=text_search_config,
            language_expression=None if language is None else _rendered(language),
            tenant_column=_column_name(self.table, tenant),
            grace_period=_interval(grace_period),
            blend=None if blend is None else dict(blend),
            log_sample=log_sample,
            log_retention=_interval(log_retention),
            cross_encoder_fallback=_name(cross_encoder_fallback),
            instruction=instruction,
            listwise_model=_name(listwise_model),
            listwise_top=listwise_top,
            key_columns=None if key is None else _column_names(self.table, key),
            passage_size=passage_size,
            passage_overlap=passage_overlap,
            passage_structure=passage_structure,
            passage_prefix=None if passage_prefix is None else _rendered(passage_prefix),
            partitioned=partitioned,
        )
        self._attach()

    def __repr__(self) -> str:
        return f"Reranker({self.name!r}, {self.table.fullname})"

    @property
    def key(self) -> list[Column[Any]]:
        """The columns of its key; raises ArgumentError where there is none."""
        named = {column.name: column for column in self.table.columns}
        if "key_columns" in self.settings:
            return [named[name] for name in self.settings["key_columns"]]
        if not self.table.primary_key.columns:
            raise ArgumentError(
                f"table {self.table.fullname} has no primary key: declare one, or a key that is"
                " unique and not null, Reranker(…, key=…)"
            )
        return list(self.table.primary_key.columns)

    def create(self, connection: Connection) -> None:
        """Create it over a table that is there, and register its models.

        Raises InstallError in a database without pgrerank.
        """
        if not _has_pgrerank(connection):
            raise InstallError(
                f"reranker {self.name!r} can't be created: the database has no pgrerank; run "
                "pgrerank install, or op.install_pgrerank in a migration"
            )
        for model in self.models:
            connection.execute(RegisterModel(**model.arguments))
        connection.execute(CreateReranker(self.name, self.table, self.settings))

    def drop(self, connection: Connection) -> None:
        """Drop it, if it is there; models stay registered."""
        if _has_pgrerank(connection):
            connection.execute(DropReranker(self.name, if_exists=True))

    def _attach(self) -> None:
        declared = self.table.metadata.info.setdefault(_INFO, {})
        if self.name in declared:
            raise ArgumentError(f"{declared[self.name]} is declared already: choose another name")
        declared[self.name] = self

        @event.listens_for(self.table, "after_create")
        def create(_: Table, connection: Connection, **__: Any) -> None:
            self.create(connection)

        @event.listens_for(self.table, "before_drop")
        def drop(_: Table, connection: Connection, **__: Any) -> None:
            self.drop(connection)


def rerankers(source: MetaData | Table) -> list[Reranker]:
    """The rerankers declared over a table, or over all tables of a MetaData."""
    metadata = source.metadata if isinstance(source, Table) else source
    declared: Iterable[Reranker] = metadata.info.get(_INFO, {}).values()
    return [reranker for reranker in declared if source in (metadata, reranker.table)]


def table_of(source: type[Any] | Table) -> Table:
    """The table of a mapped class, or the table itself. Raises ArgumentError for anything else."""
    if isinstance(source, Table):
        return source
    mapper = inspect(source, raiseerr=False)
    if not isinstance(mapper, Mapper) or not isinstance(mapper.local_table, Table):
        raise ArgumentError(f"{source!r} is neither a mapped class with a table nor a Table")
    return mapper.local_table


def _has_pgrerank(connection: Connection) -> bool:
    if not isinstance(connection, Connection):
        return True  # a mock of SQLAlchemy's own that prints what it is given
    found = connection.scalar(text("SELECT to_regclass('pgrerank.rerankers') IS NOT NULL"))
    return bool(found)


def _given(**settings: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _interval(given: timedelta | str | None) -> str | None:
    """A timedelta in seconds, to its last microsecond."""
    if not isinstance(given, timedelta):
        return given
    return f"{given.total_seconds():.6f}".rstrip("0").rstrip(".") + " s"


def _name(model: Model | str | None) -> str | None:
    return model.name if isinstance(model, Model) else model


def _text(
    table: Table, text: SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]]
) -> dict[str, Any]:
    """Turn the declared text into text_columns or text_expression."""
    listed = _listed(text)
    if len(listed) == 1 and not isinstance(_element(listed[0]), Column):
        return {"text_expression": _rendered(listed[0])}
    return {"text_columns": _column_names(table, listed)}


def _rendered(expression: SQLColumnExpression[Any]) -> str:
    """An expression over the table's columns as SQL that doesn't name the table."""
    plain = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    rendered = _element(expression).compile(
        dialect=plain, compile_kwargs={"literal_binds": True, "include_table": False}
    )
    return str(rendered)


def _column_name(table: Table, given: SQLColumnExpression[Any] | None) -> str | None:
    return None if given is None else _column(table, given).name


def _column_names(
    table: Table, given: SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]]
) -> list[str]:
    return [_column(table, column).name for column in _listed(given)]


def _listed(
    given: SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]],
) -> Sequence[SQLColumnExpression[Any]]:
    return given if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _column(table: Table, given: SQLColumnExpression[Any]) -> Column[Any]:
    element = _element(given)
    if not isinstance(element, Column) or not table.columns.contains_column(element):
        raise ArgumentError(f"{given} is no column of table {table.fullname}")
    return element


def _element(given: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """The expression behind a mapped attribute, or the expression itself."""
    element = given.__clause_element__() if hasattr(given, "__clause_element__") else given
    if not isinstance(element, ColumnElement):
        raise ArgumentError(f"{given!r} is neither a column nor an expression over columns")
    return element
