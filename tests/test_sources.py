"""Sources as they are: keys of many types, declared keys, and what is no table."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.helpers.workers import settle

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
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{code}')")
    db.execute("INSERT INTO docs VALUES (1, 'x', 'some words'), (1, 'y', 'other words')")
    settle(db)
    assert found(db, "words", "code") == ["x", "y"]
    db.execute("UPDATE docs SET code = 'z' WHERE code = 'x'")
    settle(db)
    assert found(db, "words", "code") == ["y", "z"]
    settings = "SELECT pgrerank.settings('docs') -> 'key_columns'"
    assert db.execute(settings).fetchone() == (["code"],)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ("loose", "InvalidTableDefinition", r"\(loose\) of table docs are not unique"),
        ("nullable", "InvalidTableDefinition", r"\(nullable\) of table docs are not declared"),
        ("partial", "InvalidTableDefinition", r"\(partial\) of table docs are not unique"),
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
            "SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => ARRAY[%s])",
            (column,),
        )


def test_settings_do_not_name_a_key_that_is_the_primary_key_s(db) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{id}')")
    assert db.execute("SELECT pgrerank.settings('docs') -> 'key_columns'").fetchone() == (None,)
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
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{id}')")
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
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{id}')")
    settle(db)
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as reader:
        for table in ("docs_1", "docs_1_words"):
            assert reader.execute(f"SELECT key FROM pgrerank.{table}").fetchall() == [(1,)]
        assert found(reader, "word") == ["1"]
    assert found(db, "word") == ["1", "2"]


def test_a_view_s_key_that_is_none_is_refused(db) -> None:
    db.execute("CREATE VIEW docs AS SELECT i / 2 AS id, 'x' AS body FROM generate_series(2, 5) i")
    with pytest.raises(
        psycopg.errors.UniqueViolation, match=r"\(id\) of view docs is no key: '.' comes 2"
    ):
        db.execute(
            "SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{id}')"
        )


def test_a_view_whose_keys_come_twice_later_is_named_by_whatever_reads_it(db) -> None:
    db.execute("CREATE TABLE base (id int, body text)")
    db.execute("INSERT INTO base VALUES (1, 'a word'), (2, 'a word too')")
    db.execute("CREATE VIEW docs AS SELECT * FROM base")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}', key_columns => '{id}')")
    settle(db)
    assert found(db, "word") == ["1", "2"]
    db.execute("INSERT INTO base VALUES (2, 'another word'), (2, 'a third')")
    for statement in (
        "SELECT FROM pgrerank.docs_search('word')",
        "SELECT FROM pgrerank.docs_search('word', keys => '{1,2}')",
        "SELECT pgrerank.enqueue('docs')",
        "SELECT pgrerank.reconcile('docs')",
    ):
        with pytest.raises(
            psycopg.errors.UniqueViolation, match=r"\(id\) of view docs is no key: '2' comes "
        ):
            db.execute(statement)
    db.execute("DELETE FROM base WHERE body IN ('another word', 'a third')")
    assert found(db, "word") == ["1", "2"]
    db.execute("SELECT pgrerank.enqueue('docs')")


def test_a_temporary_table_is_refused(db) -> None:
    db.execute("CREATE TEMPORARY TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("CREATE TEMPORARY VIEW seen AS SELECT * FROM docs")
    for name, arguments in (("table docs", ""), ("view seen", ", key_columns => '{id}'")):
        with pytest.raises(psycopg.errors.WrongObjectType, match=f"{name} is temporary: no worker"):
            db.execute(
                f"SELECT pgrerank.create_reranker('docs', '{name.split()[1]}', '{{body}}'"
                f"{arguments})"
            )


def test_a_key_column_that_is_dropped_is_named(db) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO docs VALUES (1, 'a word')")
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
    settle(db)
    db.execute("ALTER TABLE docs DROP COLUMN id")
    for statement in (
        "SELECT FROM pgrerank.docs_search('word')",
        "SELECT FROM pgrerank.docs_search('word', keys => '{1}')",
        "SELECT pgrerank.enqueue('docs')",
        "SELECT pgrerank.alter_reranker('docs', candidates => 5)",
        "SELECT pgrerank.texts('docs')",
    ):
        with pytest.raises(
            psycopg.errors.UndefinedColumn,
            match='the key column id of reranker "docs" has been dropped from table docs',
        ):
            db.execute(statement)
    db.execute("SELECT pgrerank.drop_reranker('docs')")


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


@pytest.fixture
def docs(db):
    """The table `docs` of two documents, and a reranker by words alone, with nothing pending."""
    db.execute(
        "CREATE TABLE docs (gone int, id int PRIMARY KEY, title text, body text);"
        "ALTER TABLE docs DROP COLUMN gone;"
        "INSERT INTO docs VALUES (1, 'one', 'a word'), (2, 'two', 'a word');"
        "GRANT SELECT ON docs TO PUBLIC"
    )
    db.execute(
        "SELECT pgrerank.create_reranker('docs', 'docs', text_expression =>"
        " 'upper(title) || '' '' || body || '' title''')"
    )
    settle(db)
    return db


@pytest.fixture
def reader(db, dsn, make_role):
    """A role with no other rights than all have."""
    role = make_role()
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as reader:
        yield reader


def test_documents_are_taken_apart_as_a_view_is(reader, docs) -> None:
    docs.execute(
        "INSERT INTO docs SELECT i, 't', 'b' FROM generate_series(3, 3000) i; ANALYZE docs"
    )
    docs.execute("SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0")
    docs.execute("SET parallel_tuple_cost = 0")
    plan = docs.execute("EXPLAIN SELECT count(content) FROM pgrerank.docs_1_source()").fetchall()
    assert "Gather" in str(plan)
    docs.execute("RESET ALL")
    docs.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    docs.execute("CREATE POLICY most ON docs USING (id <> 2)")
    settle(docs)
    plan = "\n".join(
        line
        for (line,) in reader.execute("EXPLAIN SELECT FROM pgrerank.docs_1 WHERE key IN (1, 2)")
    )
    assert "Function Scan" not in plan
    assert "Index Scan using docs_pkey" in plan or "Index Only Scan using docs_pkey" in plan
    assert reader.execute("SELECT key FROM pgrerank.docs_1 WHERE key IN (1, 2)").fetchall() == [
        (1,)
    ]


def test_signals_and_groups_follow_renamed_columns(db) -> None:
    db.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text, votes int, meta jsonb, pinned boolean)"
    )
    db.execute(
        "INSERT INTO docs SELECT i, 'a word', i, jsonb_build_object('part', i % 2), i = 3"
        " FROM generate_series(1, 4) i"
    )
    db.execute(
        "SELECT pgrerank.create_reranker('docs', 'docs', '{body}', group_by => 'meta.part',"
        ' signals => \'{"votes": [{"weight": 1}, {">": 9, "boost": 1}], "meta.at": {"weight": 0},'
        ' "boosts": {"when": {"or": [{"pinned": true}, {"not": {"votes": {">": 0}}}]},'
        ' "boost": 9}}\')'
    )
    settle(db)
    search = "SELECT id FROM pgrerank.docs_search('word') ORDER BY rank"
    assert db.execute(search).fetchall() == [(3,), (4,)]
    db.execute('ALTER TABLE docs RENAME votes TO "and"')
    db.execute('ALTER TABLE docs RENAME meta TO "a.b"')
    db.execute("ALTER TABLE docs RENAME pinned TO votes")
    assert db.execute(search).fetchall() == [(3,), (4,)]
    stored = db.execute("SELECT group_by, signals FROM pgrerank.rerankers").fetchone()
    assert stored == (
        '"a.b".part',
        {
            '"and"': [{"weight": 1}, {">": 9, "boost": 1}],
            '"a.b".at': {"weight": 0},
            "boosts": [
                {
                    "when": {"or": [{"votes": True}, {"not": {'"and"': {">": 0}}}]},
                    "boost": 9,
                }
            ],
        },
    )


RENAMINGS = {
    "a text column": "ALTER TABLE docs RENAME body TO content",
    "two columns, each as the other": """
        ALTER TABLE docs RENAME title TO x; ALTER TABLE docs RENAME body TO title;
        ALTER TABLE docs RENAME x TO body""",
    "the key": 'ALTER TABLE docs RENAME id TO "the Key"',
    "the table": "ALTER TABLE docs RENAME TO papers",
    "the schema": """
        CREATE SCHEMA elsewhere; GRANT USAGE ON SCHEMA elsewhere TO PUBLIC;
        ALTER TABLE docs SET SCHEMA elsewhere""",
    "the table, and another has its name": """
        ALTER TABLE docs RENAME TO papers;
        CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
        INSERT INTO docs VALUES (1, 'wrong', 'other'), (7, 'wrong', 'word')""",
    "all of it": """
        ALTER TABLE docs RENAME TO papers; ALTER TABLE papers RENAME id TO body_id;
        ALTER TABLE papers RENAME body TO id; ALTER TABLE papers RENAME title TO body""",
}


@pytest.mark.parametrize("first", ["a search", "a write", "a worker"])
@pytest.mark.parametrize("renaming", RENAMINGS)
def test_what_is_renamed_is_followed(docs, reader, renaming: str, first: str) -> None:
    [source] = docs.execute("SELECT source::oid FROM pgrerank.rerankers").fetchone()
    docs.execute(RENAMINGS[renaming])
    [table] = docs.execute("SELECT %s::regclass::text", (source,)).fetchone()
    if first == "a search":
        assert found(reader, "one") == ["1"]
    elif first == "a worker":
        settle(docs)
        assert state(docs) == (2, 0, None)
    docs.execute(f"INSERT INTO {table} VALUES (3, 'three', 'a word')")
    [last] = docs.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s ORDER BY attnum DESC LIMIT 1",
        (source,),
    ).fetchone()
    docs.execute(f"UPDATE {table} SET {last} = 'changed' WHERE {last} <> '' AND ctid = '(0,2)'")
    assert state(docs)[1:] == (2, None)
    settle(docs)
    assert state(docs) == (3, 0, None)
    assert found(reader, "changed") == ["2"]
    assert found(reader, "title") == ["1", "2", "3"]
    texts = docs.execute("SELECT content FROM pgrerank.texts('docs')").fetchall()
    assert texts == [("ONE a word title",), ("TWO changed title",), ("THREE a word title",)]


def test_who_follows_first_has_others_wait_until_they_commit(docs, reader, dsn) -> None:
    docs.execute("ALTER TABLE docs RENAME TO papers")
    with psycopg.connect(dsn) as first:
        first.execute("INSERT INTO papers VALUES (3, 'three', 'a word')")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            found(reader, "word")
        first.commit()
    assert found(reader, "word") == ["1", "2"]


def test_settings_follow_and_what_was_declared_anew_is_no_change(docs) -> None:
    docs.execute("ALTER TABLE docs RENAME body TO content")
    declared = (
        '{"source": "docs", "text_expression": "upper(title) || \' \' || content || \' title\'"}'
    )
    changes = "SELECT * FROM pgrerank.setting_changes('docs', %s)"
    assert docs.execute(changes, (declared,)).fetchall() == []
    [settings] = docs.execute("SELECT pgrerank.settings('docs')").fetchone()
    assert "content" in settings["text_expression"]


TYPES = ["varchar(99)", "char(20)", 'text COLLATE "C"', "citext"]


@pytest.mark.parametrize("of_type", TYPES)
def test_a_text_column_s_type_is_changed_as_without_pgrerank(docs, reader, of_type: str) -> None:
    if of_type == "citext":
        try:
            docs.execute("CREATE EXTENSION citext")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("extension citext is not available on this server")
    docs.execute(f"ALTER TABLE docs ALTER COLUMN body TYPE {of_type}")
    docs.execute("INSERT INTO docs VALUES (3, 'three', 'a word')")
    docs.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    settle(docs)
    assert state(docs) == (3, 0, None)
    assert found(reader, "changed") == ["1"]
    assert found(reader, "word") == ["2", "3"]


def test_a_tenant_s_type_is_changed_as_without_pgrerank(db, source) -> None:
    source.create(tenant_column="tenant")
    db.execute("ALTER TABLE documents ALTER COLUMN tenant TYPE bigint")
    db.execute("ALTER TABLE documents RENAME tenant TO customer")
    db.execute("UPDATE documents SET customer = 5 WHERE id = 1")
    source.encode_by_hand()
    assert state(db, "documents") == (3, 0, None)
    tenants = "SELECT tenant FROM pgrerank.documents_1 ORDER BY key"
    assert db.execute(tenants).fetchall() == [(5,), (1,), (1,)]
    assert db.execute("SELECT tenant_column FROM pgrerank.generations").fetchone() == ("customer",)


ENDS = {
    "its type can't serve": "ALTER TABLE docs ALTER COLUMN title TYPE int USING 1",
    "it is gone": "ALTER TABLE docs DROP COLUMN title",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_text_column_that_can_t_be_read_is_told_and_altered(docs, reader, end: str) -> None:
    docs.execute(ENDS[end])
    docs.execute("INSERT INTO docs (id, body) VALUES (3, 'a word')")
    docs.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    settle(docs)
    assert "upper(integer)" in state(docs)[2] or 'column "title"' in state(docs)[2]
    with pytest.raises((psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction)):
        docs.execute("SELECT * FROM pgrerank.texts('docs')")
    docs.execute("REVOKE SELECT ON docs FROM PUBLIC")
    with pytest.raises(psycopg.Error, match=r"permission denied|upper\(integer\)"):
        reader.execute("SELECT * FROM pgrerank.docs_1")
    docs.execute("GRANT SELECT ON docs TO PUBLIC")
    docs.execute("SELECT pgrerank.alter_reranker('docs', text_columns => '{body}')")
    settle(docs)
    assert docs.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (2,)
    assert found(reader, "changed") == ["1"]
    assert found(reader, "word") == ["2", "3"]
    docs.execute("UPDATE docs SET body = 'last' WHERE id = 2")
    settle(docs)
    assert found(reader, "last") == ["2"]


def test_a_key_of_another_type_is_told(docs) -> None:
    docs.execute("ALTER TABLE docs ALTER COLUMN id TYPE bigint")
    docs.execute("UPDATE docs SET body = 'changed'")
    settle(docs)
    assert state(docs)[:2] == (2, 2)
    assert "key id is of type bigint, and was of integer" in state(docs)[2]
    docs.execute("ALTER TABLE docs ALTER COLUMN id TYPE int")
    docs.execute("UPDATE pgrerank.setbacks SET until = now()")
    settle(docs)
    settle(docs)
    assert state(docs) == (2, 0, None)
    assert found(docs, "changed") == ["1", "2"]


def test_a_table_is_dropped_as_without_pgrerank_and_what_was_stored_shows_to_nobody(
    docs, reader
) -> None:
    assert reader.execute("SELECT count(*) FROM pgrerank.docs_1").fetchone() == (2,)
    docs.execute("DROP TABLE docs")
    settle(docs)
    assert "has been dropped: call pgrerank.drop_reranker('docs')" in state(docs)[2]
    with pytest.raises(psycopg.errors.UndefinedTable, match="has been dropped"):
        found(docs, "word")
    docs.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    docs.execute("INSERT INTO docs VALUES (1, 'another', 'table')")
    docs.execute("GRANT SELECT ON docs TO PUBLIC")
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState, match="renamed, altered or dro"
    ):
        reader.execute("SELECT * FROM pgrerank.docs_1")
    docs.execute("SELECT pgrerank.drop_reranker('docs')")
    docs.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
    settle(docs)
    assert found(reader, "table") == ["1"]
