"""Sources whose key is of several columns: all that one of a single column does, and the same."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import Text, create_engine, select, tuple_
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgrerank.retrieval import rerank, retrieve, run
from pgrerank.search import key_columns
from pgrerank.sqlalchemy import Reranker, search
from tests.helpers.searching import Searching, use_engine
from tests.helpers.sources import Source
from tests.helpers.urls import url
from tests.helpers.workers import settle, wait_for, worker

QUERY = "the connection pool is exhausted"
TENANTS = "(ARRAY['acme', 'it''s \"odd\", (really)', 'Ünï'])[i % 3 + 1]"
OPTIONS = {
    "whole": {},
    "overruling": {"blend": {}},
    "exact": {"recall": "exact", "candidates": 20},
    "legs": {"stages": ["dense", "lexical"]},
    "filter": {"filter": {"lang": "en", "number": {">": 1050}}},
    "groups": {"group_by": "lang", "per_group": 2, "candidates": 12},
    "diverse": {"diversity": 0.4, "duplicate_threshold": 0.99},
    "signals": {"signals": {"number": {"log": True, "weight": 0.3}}},
    "passages": {"passages": 3, "highlights": True},
    "early": {"early_exit": 5},
}


@pytest.fixture(scope="module", params=["kernel", "worker"])
def twins_dsn(request, make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """The same texts twice: in `documents` with a key of one column, in `lines` with one of two."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        use_engine(connection, request.param)
        source = Source(connection)
        connection.execute(
            "DELETE FROM documents; ALTER TABLE documents ADD number int, ADD customer text;"
            'CREATE TABLE lines (title text, customer varchar(40) COLLATE "C", body text,'
            " lang text, number int, PRIMARY KEY (number, customer))"
        )
        connection.execute(
            "INSERT INTO documents (id, title, body, lang, number, customer)"
            " OVERRIDING SYSTEM VALUE SELECT 1000 + i, 'number ' || i,"
            " repeat((ARRAY['one', 'two', 'three', 'four', 'five'])[i % 5 + 1] || ' cat in pool '"
            " || i || '. ', 1 + i % 7 * 9), (ARRAY['en', 'de', NULL])[i % 3 + 1], 1000 + i,"
            f" {TENANTS}"
            " FROM generate_series(1, 100) i"
        )
        connection.execute(
            "INSERT INTO lines SELECT title, customer, body, lang, number FROM documents"
        )
        source.models(**tiny_models)
        for table in ("documents", "lines"):
            connection.execute(
                f"SELECT pgrerank.create_reranker('{table}', '{table}', '{{title, body}}',"
                " passage_size => 32,"
                " embedding_model => 'embedding', late_interaction_model => 'tokens',"
                " cross_encoder_model => 'reranker', timeout => '20 s')"
            )
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            _check_that_both_are_stored_alike(connection)
            _copy_what_is_stored(connection)
            yield dsn


def _check_that_both_are_stored_alike(connection: psycopg.Connection) -> None:
    """The same passages and as many token vectors, which differ by their batches alone."""
    apart = (
        "SELECT count(*), count(*) FILTER (WHERE one.bounds IS DISTINCT FROM two.bounds"
        " OR p.number IS DISTINCT FROM q.number OR p.bytes IS DISTINCT FROM q.bytes)"
        " FROM documents d JOIN documents_1 one ON one.key = d.id"
        " JOIN lines_1 two ON two.key = ROW(d.number, d.customer)::lines_key,"
    )
    tokens = (
        "LATERAL (SELECT count(*) AS number, sum(octet_length(tokens)) AS bytes"
        " FROM {0}_1_tokens t WHERE t.key = {1}.key) {2}"
    )
    connection.execute("SET search_path = public, pgrerank")
    statement = apart + tokens.format("documents", "one", "p") + ", "
    row = connection.execute(statement + tokens.format("lines", "two", "q")).fetchone()
    assert row == (100, 0)


def _copy_what_is_stored(connection: psycopg.Connection) -> None:
    """Give the second table the vectors of the first, to the bit."""
    for kind in ("", "_passages", "_tokens", "_words"):
        [columns] = connection.execute(
            "SELECT string_agg(attname, ', s.') FROM pg_attribute WHERE attnum > 1 AND"
            f" NOT attisdropped AND attrelid = 'lines_1{kind}'::regclass"
        ).fetchone()
        connection.execute(
            f"TRUNCATE lines_1{kind};"
            f"INSERT INTO lines_1{kind} (key, {columns.replace('s.', '')})"
            f" SELECT ROW(d.number, d.customer)::lines_key, s.{columns}"
            f" FROM documents_1{kind} s JOIN documents d ON d.id = s.key"
        )
    connection.execute(
        "TRUNCATE lines_1_terms; INSERT INTO lines_1_terms SELECT * FROM documents_1_terms;"
        "UPDATE word_statistics t SET (documents, mean_length, shares, configs)"
        " = (f.documents, f.mean_length, f.shares, f.configs) FROM word_statistics f"
        " WHERE (t.reranker, f.reranker) = ('lines', 'documents')"
    )


@pytest.fixture
def twins(twins_dsn):
    with psycopg.connect(twins_dsn, autocommit=True) as connection:
        yield Searching(connection, {"query": QUERY, "top_k": 10})


def _said(rows: list[dict], *left_out: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_search_says_the_same_of_documents_with_either_key(twins, options: str) -> None:
    of_one = twins("documents_search", **OPTIONS[options])
    of_two = twins("lines_search", **OPTIONS[options])
    assert len(of_one) >= 6
    assert _said(of_one, "id") == _said(of_two, "number", "customer")
    numbers = twins.connection.execute(
        "SELECT number, customer FROM documents JOIN unnest(%s::bigint[]) WITH ORDINALITY u (id, n)"
        " USING (id) ORDER BY n",
        ([row["id"] for row in of_one],),
    ).fetchall()
    assert [(row["number"], row["customer"]) for row in of_two] == numbers


def test_keys_and_pages_are_given_as_rows(twins) -> None:
    execute = twins.connection.execute
    search = "SELECT number, customer FROM pgrerank.lines_search(%s, stages => '{lexical}'"
    keys = execute(search + ", top_k => 4)", (QUERY,)).fetchall()
    after = (
        f"{search}, top_k => 4, after => (SELECT array_agg(ROW(f.number, f.customer)"
        f"::pgrerank.lines_key) FROM ({search}, top_k => 4)) f))"
    )
    assert (
        keys + execute(after, (QUERY, QUERY)).fetchall()
        == execute(search + ", top_k => 8)", (QUERY,)).fetchall()
    )
    given = (
        "SELECT count(*) FROM lines l JOIN pgrerank.lines_search(%s, keys => (SELECT"
        " array_agg(ROW(number, customer)::pgrerank.lines_key) FROM lines WHERE number < 1008)) s"
        " USING (number, customer) WHERE l.number < 1008"
    )
    assert execute(given, (QUERY,)).fetchone() == (7,)
    many = search.replace("lines_search", "lines_search_many") + ", top_k => 4)"
    assert execute(many, ([QUERY, "a cat"],)).fetchall()[:4] == keys


def test_texts_and_retrieval_speak_of_keys_as_text(twins, twins_dsn) -> None:
    def connect() -> psycopg.Connection:
        return psycopg.connect(twins_dsn)

    arguments = {"query": QUERY, "top_k": 3}
    found = run(connect, retrieve("lines", arguments))
    assert [one.columns["number"] for one in found] == [
        row["number"] for row in twins("lines_search", **arguments)
    ]
    assert found[0].key == f"({found[0].columns['number']},{_quoted(found[0].columns['customer'])})"
    turned = rerank("lines", QUERY, [one.key for one in reversed(found)], {})
    assert {one.key for one in run(connect, turned)} == {one.key for one in found}
    texts = twins.connection.execute(
        "SELECT key, content FROM pgrerank.texts('lines', %s)", ([found[0].key],)
    ).fetchall()
    assert [key for key, _ in texts] == [found[0].key]
    assert found[0].text in texts[0][1]


def _quoted(text: str) -> str:
    """A field as a row's text has it."""
    return text if text in ("acme", "Ünï") else '"' + text.replace('"', '""') + '"'


class Base(DeclarativeBase):
    pass


class Line(Base):
    __tablename__ = "lines"

    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(Text, primary_key=True)
    body: Mapped[str]


DECLARED = Reranker("lines", Line, text=[Line.body])


def test_sqlalchemy_joins_rows_by_all_columns_of_the_key(twins, twins_dsn) -> None:
    expected = [(row["number"], row["customer"]) for row in twins("lines_search", top_k=5)]
    engine = create_engine(url(twins_dsn, "psycopg"))
    with Session(engine) as session:

        def lines(**arguments) -> list[tuple[int, str]]:
            rows = search(Line, QUERY, top_k=5, **arguments)
            joined = select(Line).join(rows, rows.key == tuple_(Line.number, Line.customer))
            return [
                (line.number, line.customer) for line in session.scalars(joined.order_by(rows.rank))
            ]

        assert lines() == expected
        assert sorted(lines(keys=expected)) == sorted(expected)
        assert set(lines(after=expected)).isdisjoint(expected)
        chosen = select(Line.number, Line.customer).where(Line.number < 1004)
        assert {number for number, _ in lines(keys=chosen)} == {1001, 1002, 1003}
    engine.dispose()


@pytest.fixture
def lines(db):
    """A table of two key columns that is searched by its words, with nothing to be encoded."""
    db.execute(
        "CREATE TABLE docs (b text, n int, body text, a date NOT NULL, PRIMARY KEY (a, n));"
        "SELECT pgrerank.create_reranker('docs', 'docs', '{body}');"
        "INSERT INTO docs SELECT 'x', i, 'words of ' || i, date '2026-01-01' + i % 4"
        " FROM generate_series(1, 20) i"
    )
    settle(db)
    return db


def stored(db) -> list[tuple]:
    return db.execute("SELECT (key).a::text, (key).n FROM pgrerank.docs_1 ORDER BY key").fetchall()


def shown(db) -> list[tuple]:
    return db.execute("SELECT a::text, n FROM docs ORDER BY a, n").fetchall()


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE docs SET n = -n WHERE n < 5",
        "UPDATE docs SET a = a + 1, body = 'other words'",
        "DELETE FROM docs WHERE a = '2026-01-02'",
        "INSERT INTO docs (n, a, body) VALUES (1, '2027-01-01', 'words')",
        "TRUNCATE docs",
        "SET session_replication_role = replica; DELETE FROM docs WHERE n > 7;"
        "UPDATE docs SET n = n + 100 WHERE n < 3; INSERT INTO docs (n, a, body)"
        " VALUES (500, '2020-01-01', 'words'); RESET session_replication_role;"
        "SELECT pgrerank.reconcile('docs', max_documents => 3) FROM generate_series(1, 12)",
    ],
)
def test_writes_are_followed(lines, write: str) -> None:
    assert len(stored(lines)) == 20
    lines.execute("SET datestyle = 'German'")
    lines.execute(write)
    lines.execute("RESET datestyle")
    settle(lines)
    assert stored(lines) == shown(lines)
    found = lines.execute("SELECT a::text, n FROM pgrerank.docs_search('words', top_k => 50)")
    assert sorted(found.fetchall()) == shown(lines)


def test_a_column_that_is_renamed_is_followed(lines) -> None:
    lines.execute("ALTER TABLE docs RENAME n TO line")
    lines.execute("INSERT INTO docs (line, a, body) VALUES (50, '2027-01-01', 'more words')")
    settle(lines)
    assert lines.execute("SELECT key_columns FROM pgrerank.rerankers").fetchone() == (
        ["a", "line"],
    )
    assert lines.execute("SELECT count(*) FROM pgrerank.docs_1").fetchone() == (21,)
    assert len(lines.execute("SELECT FROM pgrerank.docs_search('more words')").fetchall()) == 10


def test_a_column_that_is_of_another_type_or_gone_is_named(lines) -> None:
    lines.execute("ALTER TABLE docs ALTER n TYPE bigint")
    lines.execute("INSERT INTO docs (n, a, body) VALUES (50, '2027-01-01', 'more words')")
    settle(lines)
    [error] = lines.execute("SELECT last_error FROM pgrerank.status").fetchone()
    assert "key n is of type bigint, and was of integer: drop the reranker" in error
    lines.execute("ALTER TABLE docs DROP n")
    with pytest.raises(psycopg.errors.UndefinedColumn, match="key column n of reranker"):
        lines.execute("SELECT FROM pgrerank.docs_search('words')")


def test_a_reranker_that_is_dropped_leaves_no_type(lines) -> None:
    lines.execute("SELECT pgrerank.drop_reranker('docs')")
    assert lines.execute("SELECT to_regtype('pgrerank.docs_key')").fetchone() == (None,)
    lines.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")


def test_documents_are_looked_up_by_the_source_s_index(lines) -> None:
    lines.execute(
        "INSERT INTO docs (n, a, body) SELECT i, '2026-02-01', 'cats and ' || i"
        " FROM generate_series(1, 5000) i"
    )
    settle(lines)
    lines.execute("ANALYZE docs; ANALYZE pgrerank.docs_1")
    before = _read_from_end_to_end(lines)
    [key] = lines.execute("SELECT key::text FROM pgrerank.docs_1 WHERE (key).n = 77").fetchone()
    lines.execute("SELECT FROM pgrerank.docs_search('cats 77 words', candidates => 20)")
    lines.execute("SELECT FROM pgrerank.texts('docs', %s)", ([key],))
    lines.execute("UPDATE docs SET body = 'dogs' WHERE (a, n) = ('2026-02-01', 77)")
    settle(lines)
    lines.execute("SELECT pgrerank.reconcile('docs', max_documents => 10)")
    lines.execute("SELECT pgrerank.feedback('docs', 'cats', %s)", (key,))
    assert _read_from_end_to_end(lines) == before


def _read_from_end_to_end(db) -> tuple:
    """How many rows of the source were read by scans of all of it."""
    db.execute("SELECT pg_stat_force_next_flush()")
    return db.execute(
        "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'docs'"
    ).fetchone()


def test_rows_that_are_hidden_are_not_found(lines, dsn, make_role) -> None:
    role = make_role()
    lines.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    lines.execute("CREATE POLICY few ON docs USING (n < 4)")
    lines.execute(f"GRANT SELECT ON docs TO {role}")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role)) as reader:
        found = reader.execute("SELECT n FROM pgrerank.docs_search('words')").fetchall()
        assert sorted(found) == [(1,), (2,), (3,)]
        assert len(stored(reader)) == 3


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["a", "b"], "InvalidTableDefinition", r"\(a, b\) of table docs are not declared NOT NULL"),
        (["n", "n"], "InvalidParameterValue", "expected 1 to 32 columns, each once"),
        ([], "InvalidParameterValue", "expected 1 to 32 columns, each once"),
        (["n", "other"], "UndefinedColumn", 'has no column "other"'),
    ],
)
def test_columns_that_are_no_key_are_refused(lines, columns, error: str, message: str) -> None:
    with pytest.raises(getattr(psycopg.errors, error), match=message):
        lines.execute(
            "SELECT pgrerank.create_reranker('d2', 'docs', '{body}', key_columns => %s)",
            (columns,),
        )


def test_a_declared_key_of_a_view_is_compared_as_a_whole(lines) -> None:
    lines.execute("CREATE VIEW seen AS SELECT a, n % 10 AS n, body FROM docs")
    with pytest.raises(psycopg.errors.UniqueViolation, match=r"\(a, n\) of view seen is no key"):
        lines.execute(
            "INSERT INTO docs (n, a, body) VALUES (12, '2026-01-03', 'twice');"
            "SELECT pgrerank.create_reranker('seen', 'seen', '{body}', key_columns => '{a, n}')"
        )


def test_a_view_s_key_with_a_null_in_part_is_refused(lines) -> None:
    lines.execute("CREATE VIEW seen AS SELECT nullif(n, 3) AS n, a, body FROM docs")
    with pytest.raises(psycopg.errors.UniqueViolation, match=r"is no key: '\(,2026-.*\)' has NULL"):
        lines.execute(
            "SELECT pgrerank.create_reranker('seen', 'seen', '{body}', key_columns => '{n, a}')"
        )


HOSTILE = "$body$; CREATE TABLE owned (); --"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["key_2", "rank"], ["key_1", "key_2"]),
        (["rank", "key_1"], ["key_1", "key_2"]),
        (["key", HOSTILE], ["key_1", HOSTILE]),
        (['a"b', "100%s $1"], ['a"b', "100%s $1"]),
    ],
)
def test_columns_have_any_names(db, names: list[str], found: list[str]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    db.execute(
        sql.SQL(
            "CREATE TABLE docs (body text, {} int, {} text, PRIMARY KEY ({}));"
            "SELECT pgrerank.create_reranker('docs', 'docs', '{{body}}');"
            "INSERT INTO docs VALUES ('words', 1, 'x')"
        ).format(*map(sql.Identifier, names), columns)
    )
    settle(db)
    rows = db.execute("SELECT * FROM pgrerank.docs_search('words')")
    assert [column.name for column in rows.description][:2] == found == key_columns(names)
    assert rows.fetchone()[:2] == (1, "x")
    many = db.execute("SELECT * FROM pgrerank.docs_search_many('{words}')")
    assert [column.name for column in many.description][1:3] == found
    assert db.execute("SELECT to_regclass('owned')").fetchone() == (None,)


def test_all_types_are_told_from_others_when_a_table_changes(db) -> None:
    db.execute(
        "CREATE EXTENSION citext; CREATE DOMAIN shop AS char(5) NOT NULL;"
        "CREATE TABLE docs (a citext, b char(5), c shop, d numeric(9, 2), e varchar(9), body text,"
        " PRIMARY KEY (a, b, c, d, e));"
        "SELECT pgrerank.create_reranker('docs', 'docs', '{body}', group_by => 'c')"
    )
    db.execute("ALTER TABLE docs RENAME a TO name")
    db.execute("INSERT INTO docs VALUES ('Ab', 'b', 'c', 1.5, '', 'words')")
    settle(db)
    assert db.execute("SELECT last_error FROM pgrerank.status").fetchone() == (None,)
    assert db.execute("SELECT key::text FROM pgrerank.docs_1").fetchall() == [
        ('(Ab,"b    ","c    ",1.50,"")',)
    ]
    assert len(db.execute("SELECT FROM pgrerank.docs_search('words')").fetchall()) == 1


def test_feedback_is_kept_by_the_document_s_key_whatever_the_date_style(lines) -> None:
    lines.execute("SET datestyle = 'German'")
    lines.execute("SELECT pgrerank.feedback('docs', 'cats', '( 01.01.2026,004)')")
    lines.execute("RESET datestyle")
    judged = "SELECT key, content FROM pgrerank.judged('docs')"
    assert lines.execute(judged).fetchall() == [("(2026-01-01,4)", "words of 4")]


def test_claims_of_a_table_that_was_never_analyzed_look_documents_up(lines) -> None:
    lines.execute(
        "ALTER TABLE docs SET (autovacuum_enabled = off);"
        "INSERT INTO docs (n, a, body) SELECT i, date '2026-02-01' + i % 9,"
        " repeat('cats ', 200) FROM generate_series(1, 20000) i"
    )
    before = _read_from_end_to_end(lines)
    lines.execute("SELECT pgrerank.claim(reranker => 'docs')")
    assert len(stored(lines)) > 20
    assert _read_from_end_to_end(lines) == before
