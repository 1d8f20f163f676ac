"""pgrerank.sqlalchemy on a real database: sync and async, psycopg and asyncpg."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    column,
    create_engine,
    func,
    insert,
    select,
    text,
    values,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)

from pgrerank.errors import InstallError
from pgrerank.search import ARGUMENTS, COLUMNS
from pgrerank.sqlalchemy import (
    AlterReranker,
    CreateReranker,
    DropModel,
    DropReranker,
    Model,
    RegisterModel,
    Reranker,
    rerankers,
    search,
)
from tests.helpers.urls import url
from tests.helpers.workers import wait_for, worker


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    documents: Mapped[list[Document]] = relationship(back_populates="author")


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    content: Mapped[str] = mapped_column("body")
    tenant: Mapped[int] = mapped_column(default=1)
    vec: Mapped[Any] = mapped_column(Vector(3))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author | None] = relationship(back_populates="documents")


ODD = Model("it's 50% :x \\ ü", "embedding", "/no/where", dims=3, options={"q": "'%s' \"é\" :y"})
DOCUMENTS = Reranker(
    "documents",
    Document,
    text=[Document.title, Document.content],
    embedding_model=ODD,
    embedding_column=Document.vec,
    timeout=timedelta(milliseconds=1500),
    candidates=50,
)
ROWS = [
    {"id": i, "title": f"title {i}", "body": "cat" if i % 2 else "dog", "tenant": i % 3}
    | {"vec": [float(i), 1.0, 0.0], "author_id": 1 + i % 2}
    for i in range(1, 7)
]
TOWARDS_FIRST = [1.0, 1.0, 0.0]


class Letters(DeclarativeBase):
    pass


class Letter(Letters):
    __tablename__ = "letters"
    year: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column("letter_code", unique=True)
    body: Mapped[str]


LETTERS = Reranker("letters", Letter, text=Letter.body, key=Letter.code)
SHOWN = Table("shown", MetaData(), Column("letter_code", Text), Column("body", Text))
SHOWN_LETTERS = Reranker("shown", SHOWN, text=SHOWN.c.body, key=SHOWN.c.letter_code)


def hits(**arguments: Any) -> Any:
    return search(DOCUMENTS, **{"query_embedding": TOWARDS_FIRST, "stages": ["dense"]} | arguments)


@pytest.fixture(params=["psycopg", "psycopg async", "asyncpg"])
def run(request, dsn) -> Callable[..., Any]:
    """Runs a function of a connection in a transaction, on each kind of engine."""
    driver = request.param.removesuffix(" async")

    def run_sync(work: Callable[[Connection], Any]) -> Any:
        engine = create_engine(url(dsn, driver))
        try:
            with engine.begin() as connection:
                return work(connection)
        finally:
            engine.dispose()

    async def run_async(work: Callable[[Connection], Any]) -> Any:
        engine = create_async_engine(url(dsn, driver))
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    if request.param == "psycopg":
        return run_sync
    return lambda work: asyncio.run(run_async(work))


@pytest.fixture
def filled(run) -> Callable[..., Any]:
    def fill(connection: Connection) -> None:
        Base.metadata.create_all(connection)
        connection.execute(
            insert(Author.__table__), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        )
        connection.execute(insert(Document.__table__), ROWS)

    run(fill)
    return run


def rendered(statement: Any, dialect: Any = postgresql.psycopg) -> str:
    return " ".join(str(statement.compile(dialect=dialect.dialect())).split())


def test_tables_bring_and_take_their_rerankers(filled):
    settings = filled(lambda c: c.scalar(text("SELECT pgrerank.settings('documents')")))
    assert settings["text_columns"] == ["title", "body"]
    assert (settings["embedding_column"], settings["candidates"]) == ("vec", 50)
    assert (settings["timeout"], settings["embedding_model"]) == ("00:00:01.5", ODD.name)
    assert filled(lambda c: c.scalar(text("SELECT options FROM pgrerank.models"))) == ODD.options
    filled(Base.metadata.drop_all)
    assert filled(lambda c: c.scalar(text("SELECT count(*) FROM pgrerank.rerankers"))) == 0


def test_hits_join_to_the_entity_without_a_cast(filled):
    found = hits(top_k=3)
    statement = (
        select(Document, found.c.score)
        .join(found, found.key == Document.id)
        .order_by(found.rank)
        .options(joinedload(Document.author))
    )
    assert rendered(select(Document.id, found.score).join(found, found.key == Document.id)) == (
        "SELECT documents.id, anon_1.score FROM documents JOIN pgrerank.documents_search("
        "query => NULL, top_k => %(param_1)s::INTEGER, stages => %(param_2)s::TEXT[],"
        " query_embedding => %(param_3)s) AS anon_1 ON anon_1.id = documents.id"
    )

    def work(connection: Connection) -> list[tuple[int, str, float]]:
        rows = Session(connection).execute(statement).unique()
        return [(row.Document.id, row.Document.author.name, row.score) for row in rows]

    rows = filled(work)
    assert [row[:2] for row in rows] == [(1, "b"), (2, "a"), (3, "b")]
    assert rows[0][2] == pytest.approx(1.0, abs=1e-3)


def test_hits_go_into_subqueries_ctes_and_relationships(filled):
    found = hits(top_k=4, filter={"tenant": [1, 2]})
    cte = select(found.key, found.rank).where(found.score > 0).cte("found")
    assert rendered(select(cte.c.id)) == (
        "WITH found AS (SELECT anon_1.id AS id, anon_1.rank AS rank FROM pgrerank.documents_search("
        "query => NULL, top_k => %(param_1)s::INTEGER, filter => %(param_2)s::JSONB,"
        " stages => %(param_3)s::TEXT[], query_embedding => %(param_4)s) AS anon_1"
        " WHERE anon_1.score > %(score_1)s::INTEGER) SELECT found.id FROM found"
    )
    by_cte = select(Document.id).join(cte, cte.c.id == Document.id).order_by(cte.c.rank)
    assert filled(lambda c: c.scalars(by_cte).all()) == [1, 2, 4, 5]
    within = select(Document.id).where(Document.id.in_(select(found.key))).order_by(Document.id)
    assert filled(lambda c: c.scalars(within).all()) == [1, 2, 4, 5]

    def authors(connection: Connection) -> list[tuple[str, list[int]]]:
        statement = (
            select(Author)
            .where(Author.documents.any(Document.id.in_(select(found.key))))
            .order_by(Author.id)
            .options(selectinload(Author.documents))
        )
        rows = Session(connection).scalars(statement)
        return [(author.name, sorted(d.id for d in author.documents)) for author in rows]

    assert filled(authors) == [("a", [2, 4, 6]), ("b", [1, 3, 5])]


def test_candidates_come_from_any_select(filled):
    newest = select(Document.id).where(Document.content == "cat").order_by(Document.id.desc())
    found = search(Document, keys=newest.limit(2), query_embedding=TOWARDS_FIRST, stages=["dense"])
    assert rendered(select(found.key), postgresql.asyncpg) == (
        "SELECT anon_1.id FROM pgrerank.documents_search(query => NULL, stages => $1::TEXT[],"
        " query_embedding => $2, keys => array((SELECT documents.id FROM documents WHERE"
        " documents.body = $3::VARCHAR ORDER BY documents.id DESC LIMIT $4::INTEGER))) AS anon_1"
    )
    statement = select(found.key).order_by(found.rank)
    assert filled(lambda c: c.scalars(statement).all()) == [5, 3]
    given = search(Document, keys=[4, 2], query_embedding=TOWARDS_FIRST)
    assert filled(lambda c: c.scalars(select(given.key).order_by(given.rank)).all()) == [4, 2]


def test_a_hybrid_by_reciprocal_rank_fusion(filled):
    vectors = hits(top_k=6)
    words = (
        select(Document.id, func.row_number().over(order_by=Document.id.desc()).label("rank"))
        .where(
            func.to_tsvector("simple", Document.content).op("@@")(func.to_tsquery("simple", "dog"))
        )
        .subquery()
    )
    fused = (
        select(vectors.key)
        .outerjoin_from(vectors, words, words.c.id == vectors.key)
        .order_by((1.0 / (60 + vectors.rank) + func.coalesce(1.0 / (60 + words.c.rank), 0)).desc())
    )
    found = search(Document, keys=fused, query_embedding=TOWARDS_FIRST, stages=["dense"], top_k=2)
    assert filled(lambda c: c.scalars(select(found.key).order_by(found.rank)).all()) == [2, 4]


def test_a_search_for_each_row_of_another_relation(filled):
    asked = values(column("n"), column("vec", Vector(3)), name="asked").data(
        [(1, [1.0, 1.0, 0.0]), (2, [6.0, 1.0, 0.0])]
    )
    vec = asked.c.vec.op("::")(text("vector"))
    found = search(Document, query_embedding=vec, top_k=1, stages=["dense"])
    statement = select(asked.c.n, found.key).select_from(asked).join(found, text("true"))
    assert [tuple(row) for row in filled(lambda c: c.execute(statement).all())] == [(1, 1), (2, 6)]


def test_two_searches_in_one_statement(filled):
    first, second = hits(top_k=1), hits(top_k=2)
    statement = select(first.key, second.key).select_from(first).join(second, text("true"))
    assert len(filled(lambda c: c.execute(statement).all())) == 2


def test_values_are_bound_and_the_statement_is_cached(filled):
    def work(connection: Connection) -> int:
        cache: dict[Any, Any] = {}
        cached = connection.execution_options(compiled_cache=cache)
        for top_k in (1, 2, 3):
            found = hits(top_k=top_k, filter={"tenant": top_k})
            cached.execute(select(found.key).where(found.rank <= top_k)).all()
        return len(cache)

    assert filled(work) == 1


def test_a_search_with_models_end_to_end(filled, dsn, db, tiny_models, tmp_path):
    minilm = Model("embedding", "embedding", tiny_models["embedding"], dims=32)
    own = MetaData()
    documents = filled(lambda c: Table("documents", own, autoload_with=c))
    whole = Reranker("whole", documents, text=documents.c.title + ": " + documents.c.body,
                     embedding_model=minilm)  # fmt: skip
    filled(whole.create)
    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0 OR s.reranker <> 'whole'")
        query = bindparam("query", type_=Text)
        found = search(whole, query, strict=True, timeout=timedelta(seconds=5), top_k=2)
        statement = select(found.key, found.stage, found.degraded).order_by(found.rank)
        rows = filled(lambda c: c.execute(statement, {"query": "title"}).all())
        assert [tuple(row[1:]) for row in rows] == [("lexical", False)] * 2
    filled(lambda c: c.execute(AlterReranker("whole", {"candidates": 7})))
    assert (
        filled(lambda c: c.scalar(text("SELECT pgrerank.settings('whole') -> 'candidates'"))) == 7
    )
    filled(whole.drop)
    filled(whole.drop)
    filled(lambda c: c.execute(DropModel("embedding")))
    with pytest.raises(DBAPIError, match='reranker "whole" does not exist'):
        filled(lambda c: c.execute(DropReranker("whole")))


def test_ddl_is_rendered_with_literals():
    plain = postgresql.dialect(paramstyle="named")
    create = CreateReranker("x", DOCUMENTS.table, {"text_columns": ["it's"], "candidates": 5})
    assert str(create.compile(dialect=plain)) == (
        "SELECT pgrerank.create_reranker(reranker => 'x', source => 'documents',"
        " text_columns => '{it''s}', candidates => 5)"
    )
    register = RegisterModel(**ODD.arguments)
    assert r"name => E'it''s 50% :x \\ ü', kind" in str(register.compile(dialect=plain))
    quoted = Table("Odd name", MetaData(), schema="My")
    assert """source => '"My"."Odd name"'""" in str(
        CreateReranker("x", quoted, {}).compile(dialect=plain)
    )


def test_the_functions_arguments_and_columns_are_those_of_the_database(db, source):
    source.create()
    [(names, modes, types)] = db.execute(
        "SELECT proargnames, proargmodes::text[], proallargtypes::regtype[]::text[] FROM pg_proc"
        " WHERE proname = 'documents_search'"
    ).fetchall()
    declared = list(zip(names, types, modes, strict=True))
    taken = {name: kind for name, kind, mode in declared if mode == "i"}
    assert taken == ARGUMENTS | {"keys": "bigint[]", "after": "bigint[]"}
    returned = [(name, kind) for name, kind, mode in declared if mode == "t"]
    assert returned == [("id", "bigint"), *COLUMNS.items()]


def test_a_timedelta_is_kept_to_its_last_microsecond():
    notes = Table("notes", MetaData(), Column("id", Integer, primary_key=True))
    for given, wanted in (
        (timedelta(days=30, microseconds=1), "2592000.000001 s"),
        (timedelta(seconds=20), "20 s"),
        (timedelta(0), "0 s"),
    ):
        reranker = Reranker(wanted, notes, text=notes.c.id, grace_period=given)
        assert reranker.settings["grace_period"] == wanted


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match=r"Reranker\('documents', documents\) is declared"):
        Reranker("documents", Document, text=Document.title)
    with pytest.raises(ArgumentError, match=r"Author\.name is no column of table documents"):
        Reranker("other", Document, text=[Author.name])
    with pytest.raises(ArgumentError, match=r"Author\.id is no column of table documents"):
        Reranker("other", Document, text=[Author.id])  # documents has one of that name
    with pytest.raises(ArgumentError, match="'title' is neither a column nor an expression"):
        Reranker("other", Document, text="title")
    with pytest.raises(ArgumentError, match="table authors has no reranker: declare one"):
        search(Author, "x")
    with pytest.raises(ArgumentError, match="no reranker 'typo': documents; name one"):
        search(Document, "x", reranker="typo")
    with pytest.raises(ArgumentError, match="neither a mapped class"):
        search(str, "x")
    assert rerankers(Base.metadata) == rerankers(DOCUMENTS.table) == [DOCUMENTS]


def test_without_pgrerank_it_says_what_to_run(empty_dsn):
    engine = create_engine(url(empty_dsn, "psycopg"))
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
    with engine.connect() as connection, pytest.raises(InstallError, match="run pgrerank install"):
        Base.metadata.create_all(connection)
    Base.metadata.drop_all(engine)
    engine.dispose()


TYPED = """
from typing import assert_type

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgrerank.sqlalchemy import Reranker, Search, search


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


documents = Reranker("documents", Document, text=Document.body, embedding_model="minilm")
hits = search(Document, "query", top_k=10, filter={"id": 7})
assert_type(hits, Search)
assert_type(hits.score, ColumnElement[float])
assert_type(hits.rank, ColumnElement[int])
statement = select(Document, hits.score).join(hits, hits.key == Document.id).order_by(hits.rank)
reveal_type(statement)
search(Document, 7)  # wrong
Reranker("typo", Document, txt=Document.body)  # wrong
"""


def test_it_is_typed(tmp_path):
    (tmp_path / "typed.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "typed.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [n for n, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# wrong")]
    assert re.search(r"Select\[(tuple\[)?\S*Document, .*float\]", done.stdout), done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert {int(line.split(":")[1]) for line in errors} == set(wrong), done.stdout


def test_a_declared_key_serves_a_table_with_a_key_of_several_columns_and_a_view(filled):
    def work(connection: Connection) -> None:
        Letters.metadata.create_all(connection)
        connection.execute(insert(Letter).values(year=1, number=2, code="a/2", body="some words"))
        connection.execute(
            text("CREATE VIEW shown AS SELECT letter_code, body FROM letters WHERE year > 0")
        )
        SHOWN_LETTERS.create(connection)
        while connection.execute(text("SELECT reranker FROM pgrerank.claim()")).all():
            pass
        for reranker, code in ((LETTERS, Letter.code), (SHOWN_LETTERS, SHOWN.c.letter_code)):
            rows = search(reranker, "words", keys=["a/2", "b/1"])
            found = select(code, rows.rank).join(rows, rows.key == code)
            assert connection.execute(found).all() == [("a/2", 1)]

    filled(work)
