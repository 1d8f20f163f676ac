"""Sources as they are: keys of many types, declared keys, and what is no table."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

KEYS = {
    "smallint": ("smallint", ["1", "-2", "300"]),
    "numeric": ("numeric", ["1.5", "-20000000000000000000", "0"]),
    "numeric(10, 2)": ("numeric", ["1.50", "-2.00", "3.25"]),
    "char(5)": ("character", ["a", "b c", "it's"]),
    "date": ("date", ["2024-01-31", "0001-01-01", "2024-12-01"]),
    "timestamp": (
        "timestamp without time zone",
        ["2024-01-31 10:00:00.000001", "1999-12-31", "2000-01-01"],
    ),
    "timestamptz": (
        "timestamp with time zone",
        ["2024-01-31 10:00:00.5+02", "1999-12-31", "2024-10-27 02:30:00+02"],
    ),
    "citext": ("citext", ["Cat", "dog", "EEL"]),
    "uuid": ("uuid", [f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3)]),
    "short": ("text", ["one", "two", "a b"]),
    "even": ("integer", ["2", "4", "-6"]),
}
"""Types of keys: how the side table has it, and keys."""


def settle(db) -> None:
    """What a worker does with documents that need no model."""
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass


def state(db, name: str = "docs") -> tuple:
    """Encoded and pending documents, and the last error."""
    return db.execute(
        "SELECT encoded, pending, last_error FROM pgrerank.status WHERE reranker = %s", (name,)
    ).fetchone()


def found(db, query: str, key: str = "id") -> list:
    """The keys of the documents that a search finds, as text, in order."""
    rows = db.execute(f"SELECT {key}::text FROM pgrerank.docs_search(%s) ORDER BY 1", (query,))
    return [key for (key,) in rows.fetchall()]


@pytest.mark.parametrize("declared", KEYS)
def test_a_key_of_any_of_these_types_is_followed_and_searched(db, dsn, declared: str) -> None:
    stored, keys = KEYS[declared]
    db.execute("CREATE DOMAIN short AS text CHECK (length(value) < 9)")
    db.execute("CREATE DOMAIN even AS int CHECK (value % 2 = 0)")
    if declared == "citext":
        try:
            db.execute("CREATE EXTENSION citext")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("extension citext is not available on this server")
    db.execute(f"CREATE TABLE docs (id {declared} PRIMARY KEY, body text)")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
    with psycopg.connect(
        dsn, autocommit=True, options="-c datestyle=german -c timezone=Asia/Kolkata"
    ) as writer:
        writer.execute("SET datestyle = 'ISO'")
        for key in keys:
            writer.execute("INSERT INTO docs SELECT %s, 'common words'", (key,))
        writer.execute("RESET datestyle")
        writer.execute("UPDATE docs SET body = body || ' of all'")
        assert state(db)[1] == 3
        settle(db)
        assert state(db) == (3, 0, None)
        for session in (db, writer):
            assert session.execute(
                "SELECT count(*) FROM pgrerank.docs_search('words') s JOIN docs d USING (id)"
            ).fetchone() == (3,)
            assert session.execute(
                "SELECT count(*) FROM pgrerank.docs_search('words', keys => ARRAY("
                "SELECT id FROM docs ORDER BY id LIMIT 2))"
            ).fetchone() == (2,)
        writer.execute("DELETE FROM docs WHERE id = (SELECT id FROM docs ORDER BY id LIMIT 1)")
    assert state(db) == (2, 0, None)
    [of_type] = db.execute(
        "SELECT a.atttypid::regtype::text FROM pg_attribute a"
        " WHERE attrelid = 'pgrerank.docs_1'::regclass AND attname = 'key'"
    ).fetchone()
    assert of_type == stored


def test_a_declared_key_that_is_unique_and_not_null_serves_without_a_primary_key(db) -> None:
    db.execute(
        "CREATE TABLE docs (a int, code text NOT NULL UNIQUE, body text, PRIMARY KEY (a, code))"
    )
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => 'code')")
    db.execute("INSERT INTO docs VALUES (1, 'x', 'some words'), (1, 'y', 'other words')")
    settle(db)
    assert found(db, "words", "code") == ["x", "y"]
    db.execute("UPDATE docs SET code = 'z' WHERE code = 'x'")
    settle(db)
    assert found(db, "words", "code") == ["y", "z"]
    settings = "SELECT pgrerank.settings('docs') ->> 'key_column'"
    assert db.execute(settings).fetchone() == ("code",)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ("loose", "InvalidTableDefinition", "key_column docs.loose is not unique"),
        ("nullable", "InvalidTableDefinition", "key_column docs.nullable is not declared NOT NULL"),
        ("partial", "InvalidTableDefinition", "key_column docs.partial is not unique"),
        ("nowhere", "UndefinedColumn", 'table docs has no column "nowhere"'),
    ],
)
def test_a_column_that_is_no_key_is_refused(db, column: str, error: str, message: str) -> None:
    db.execute(
        "CREATE TABLE docs"
        " (loose int NOT NULL, nullable int UNIQUE, partial int NOT NULL, body text);"
        "CREATE UNIQUE INDEX ON docs (partial) WHERE partial > 0"
    )
    with pytest.raises(getattr(psycopg.errors, error), match=message):
        db.execute(
            "SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => %s)", (column,)
        )


def test_settings_do_not_name_a_key_that_is_the_primary_key_s(db) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => 'id')")
    assert db.execute("SELECT pgrerank.settings('docs') ->> 'key_column'").fetchone() == (None,)
    declared = '{"source": "docs", "text_columns": ["body"]}'
    changes = "SELECT count(*) FROM pgrerank.setting_changes('docs', %s)"
    assert db.execute(changes, (declared,)).fetchone() == (0,)


RELATIONS = {
    "view": ["CREATE VIEW docs AS SELECT id, body FROM base WHERE shown"],
    "materialized view": [
        "CREATE MATERIALIZED VIEW docs AS SELECT id, body FROM base WHERE shown",
        "CREATE UNIQUE INDEX ON docs (id)",
    ],
    "foreign table": [],
}


@pytest.fixture
def other_server(db, make_database):
    """A database with the table `base`, and a server `other` in ours that leads to it."""
    dsn = make_database()
    place = conninfo_to_dict(dsn)
    db.execute("CREATE EXTENSION postgres_fdw")
    with psycopg.connect(dsn, autocommit=True) as there:
        there.execute("CREATE TABLE base (id int PRIMARY KEY, body text, shown bool DEFAULT true)")
        host, port = there.execute(
            "SELECT split_part(current_setting('unix_socket_directories'), ',', 1),"
            " current_setting('port')"
        ).fetchone()
        options = f"host '{host}', port '{port}', dbname '{place['dbname']}'"
        db.execute(f"CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options})")
        login = f"user '{place['user']}', password '{place.get('password', '')}'"
        db.execute(f"CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS ({login})")
        yield there


@pytest.mark.parametrize("kind", RELATIONS)
def test_what_fires_no_triggers_is_kept_by_reconciliation(db, request, kind: str) -> None:
    base = db
    if kind == "foreign table":
        base = request.getfixturevalue("other_server")
        db.execute(
            "CREATE FOREIGN TABLE docs (id int, body text) SERVER other OPTIONS (table_name 'base')"
        )
    else:
        db.execute("CREATE TABLE base (id int PRIMARY KEY, body text, shown bool DEFAULT true)")
    for statement in RELATIONS[kind]:
        db.execute(statement)
    base.execute("INSERT INTO base SELECT i, 'word ' || i FROM generate_series(1, 20) i")
    if kind == "materialized view":
        db.execute("REFRESH MATERIALIZED VIEW docs")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => 'id')")
    settle(db)
    assert state(db) == (20, 0, None)
    assert len(found(db, "word")) == 10
    base.execute("DELETE FROM base WHERE id = 1")
    base.execute("UPDATE base SET body = 'quite another' WHERE id = 2")
    base.execute("INSERT INTO base VALUES (21, 'another one')")
    if kind == "materialized view":
        db.execute("REFRESH MATERIALIZED VIEW docs")
    settle(db)
    assert found(db, "another") == []
    db.execute("UPDATE pgrerank.reconciliations SET whole_at = now() - interval '2 minutes'")
    settle(db)
    settle(db)
    assert found(db, "another") == ["2", "21"]
    assert state(db) == (20, 0, None)
    db.execute("SELECT pgrerank.drop_reranker('docs')")


def test_what_a_view_hides_is_hidden_in_side_tables_and_searches(db, dsn, make_role) -> None:
    role = make_role()
    db.execute("CREATE TABLE base (id int PRIMARY KEY, body text, owner text)")
    db.execute("ALTER TABLE base ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY own ON base USING (owner = current_user)")
    db.execute("CREATE VIEW docs WITH (security_invoker) AS SELECT id, body FROM base")
    db.execute(f"GRANT SELECT ON base, docs TO {role}")
    db.execute(f"INSERT INTO base VALUES (1, 'a word', '{role}'), (2, 'a word', 'somebody')")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => 'id')")
    settle(db)
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as reader:
        for table in ("docs_1", "docs_1_words"):
            assert reader.execute(f"SELECT key FROM pgrerank.{table}").fetchall() == [(1,)]
        assert found(reader, "word") == ["1"]
    assert found(db, "word") == ["1", "2"]


def test_a_view_s_key_that_is_none_is_refused(db) -> None:
    db.execute("CREATE VIEW docs AS SELECT i / 2 AS id, 'x' AS body FROM generate_series(2, 5) i")
    with pytest.raises(
        psycopg.errors.UniqueViolation, match=r"key_column id of view docs is no key: '.' comes 2"
    ):
        db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_column => 'id')")


def test_inherited_rows_are_documents(db) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("CREATE TABLE letters (sender text, PRIMARY KEY (id)) INHERITS (docs)")
    db.execute("INSERT INTO letters VALUES (1, 'a word', 'she')")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
    db.execute("INSERT INTO docs VALUES (2, 'a word too')")
    settle(db)
    assert found(db, "word") == ["1", "2"]
    db.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    settle(db)
    assert found(db, "changed") == ["1"]
    db.execute("DELETE FROM docs WHERE id = 1")
    assert state(db) == (1, 0, None)
