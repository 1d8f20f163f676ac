from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

ANYTHING_LEFT = """
    SELECT relname FROM pg_class WHERE relnamespace = 'pgrerank'::regnamespace AND relname ~ '^d2'
    UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '^d2'
    UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ 'd2'
    UNION ALL SELECT name FROM pgrerank.rerankers WHERE name = 'd2'
    UNION ALL SELECT relname FROM pg_class WHERE relname = 'pgrerank_probe'"""


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"name": "documents"}, "DuplicateObject", 'reranker "documents" already exists'),
        ({"name": "D 2"}, "InvalidParameterValue", "name is 'D 2', expected a lower-case letter"),
        ({"name": None}, "InvalidParameterValue", "name is NULL"),
        ({"name": ""}, "ReservedName", "pgrerank has a function _search"),
        ({"text_columns": ["nope"]}, "UndefinedColumn", 'table documents has no column "nope"'),
        ({"text_columns": []}, "InvalidParameterValue", "either text_columns or text_expression"),
        ({"text_columns": ["extra"]}, "DatatypeMismatch", "documents.extra is of type jsonb"),
        ({"text_columns": None}, "InvalidParameterValue", "either text_columns or text_expression"),
        ({"embedding_model": "x"}, "UndefinedObject", 'model "x" is not registered'),
        (
            {"embedding_model": "reranker"},
            "WrongObjectType",
            "of kind cross_encoder, not embedding",
        ),
        ({"late_interaction_model": "x"}, "UndefinedObject", 'model "x" is not registered'),
        ({"cross_encoder_model": "x"}, "UndefinedObject", 'model "x" is not registered'),
        ({"embedding_column": "body"}, "DatatypeMismatch", "documents.body is of type text"),
        ({"candidates": 0}, "InvalidParameterValue", "candidates is '0', expected 1 to 100000"),
        ({"candidates": None}, "InvalidParameterValue", "candidates is NULL"),
        ({"maxsim_top": 5000}, "InvalidParameterValue", "maxsim_top is '5000', expected 1 to 1000"),
        ({"timeout": "0 s"}, "InvalidParameterValue", "timeout is '00:00:00', expected 1 ms"),
        (
            {"distance": "hamming"},
            "InvalidParameterValue",
            "distance is 'hamming', expected",
        ),
        ({"token_precision": "int4"}, "InvalidParameterValue", "token_precision is 'int4'"),
    ],
)
def test_a_wrong_setting_is_named_and_leaves_nothing_behind(db, source, settings, error, message):
    source.create("documents")
    arguments = {"name": "d2"} | settings
    with pytest.raises(getattr(psycopg.errors, error), match=message):
        source.create(**arguments)
    assert db.execute(ANYTHING_LEFT).fetchall() == []


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("title || now()", "generation expression is not immutable"),
        ("(SELECT title)", "cannot use subquery"),
        ("count(*)", "aggregate functions are not allowed"),
        ("nope", 'column "nope" does not exist'),
        ("title ||", "syntax error"),
        ("title; DROP TABLE documents", "contains ';'|contains \";\""),
        ("title) STORED, ADD COLUMN x text DEFAULT (''", "syntax error"),
        ("title) STORED, ADD COLUMN x text GENERATED ALWAYS AS (body", "more than an expression"),
        ("generate_series(1, 2)::text", "set-returning functions are not allowed"),
    ],
)
def test_an_unsafe_text_expression_is_refused(db, source, expression, message):
    with pytest.raises(psycopg.Error, match=message):
        source.create("d2", text_columns=None, text_expression=expression)
    assert db.execute(ANYTHING_LEFT).fetchall() == []
    assert db.execute("SELECT count(*) FROM documents").fetchone() == (3,)


def test_a_text_expression_is_what_gets_encoded(db, source):
    source.create("d2", text_columns=None, text_expression="upper(title) || '!' || tenant")
    [contents] = db.execute("SELECT contents FROM pgrerank.claim()").fetchone()
    assert contents == ["POOLS!1", "CATS!1", "BREAD!1"]


@pytest.mark.parametrize(
    ("relation", "error", "message"),
    [
        (
            "CREATE VIEW d2 AS SELECT 'x' AS t",
            "InvalidTableDefinition",
            "view d2 has no primary key",
        ),
        (
            "CREATE MATERIALIZED VIEW d2 AS SELECT 'x' AS t",
            "InvalidTableDefinition",
            "materialized view d2 has no primary key",
        ),
        ("CREATE SEQUENCE d2", "WrongObjectType", "d2 is neither a table nor a view"),
        ("CREATE TABLE d2 (t text)", "InvalidTableDefinition", "table d2 has no primary key"),
        (
            "CREATE TABLE d2 (a bytea PRIMARY KEY, t text)",
            "DatatypeMismatch",
            "d2.a is of type bytea: pgrerank wants bigint",
        ),
    ],
)
def test_a_source_without_a_usable_key_is_refused(db, source, relation, error, message):
    source.models()
    db.execute(relation)
    with pytest.raises(getattr(psycopg.errors, error), match=message):
        db.execute(
            "SELECT pgrerank.create_reranker('d2', 'd2', '{t}', embedding_model => 'embedding')"
        )


def test_a_missing_source_is_refused(db, source):
    source.models()
    with pytest.raises(psycopg.errors.UndefinedTable, match='"nowhere" does not exist'):
        db.execute(
            "SELECT pgrerank.create_reranker('d2', 'nowhere', '{t}', embedding_model => 'x')"
        )


@pytest.mark.parametrize(
    ("key_type", "key"),
    [
        ("bigint", 2**40),
        ("integer", 7),
        ("uuid", "c0ffee00-0000-4000-8000-000000000001"),
        ("text", 'it\'s "quoted" → ü'),
        ("character varying", "x"),
    ],
)
def test_the_search_function_has_the_key_s_own_name_and_type(db, source, key_type, key):
    source.models()
    db.execute(f'CREATE TABLE d2 ("Doc Id" {key_type} PRIMARY KEY, "Text" text)')
    db.execute(
        "SELECT pgrerank.create_reranker('d2', 'd2', '{Text}', embedding_model => 'embedding')"
    )
    db.execute("INSERT INTO d2 VALUES (%s, %s)", (key, "some words"))
    source.encode_by_hand("d2")
    rows = db.execute(
        'SELECT "Text", pg_typeof("Doc Id")::text'
        " FROM d2 JOIN pgrerank.d2_search('words') USING (\"Doc Id\")"
    ).fetchall()
    assert rows == [("some words", key_type)]


def test_a_key_named_like_a_result_column_becomes_key(db, source):
    source.models()
    db.execute("CREATE TABLE d2 (rank int PRIMARY KEY, t text)")
    db.execute("SELECT pgrerank.create_reranker('d2', 'd2', '{t}', embedding_model => 'embedding')")
    cursor = db.execute("SELECT * FROM pgrerank.d2_search('x', strict => false)")
    assert [column.name for column in cursor.description][:3] == ["key", "score", "rank"]


def test_drop_leaves_nothing_behind(db, source):
    source.create("documents")
    source.create("d2")
    db.execute("SELECT pgrerank.drop_reranker('d2')")
    assert db.execute(ANYTHING_LEFT).fetchall() == []
    assert db.execute("SELECT reranker, pending FROM pgrerank.status").fetchall() == [
        ("documents", 3)
    ]
    with pytest.raises(psycopg.errors.UndefinedObject, match="There are: documents"):
        db.execute("SELECT pgrerank.drop_reranker('d2')")


def test_drop_works_after_the_source_is_gone(db, source):
    source.create("d2")
    db.execute("DROP TABLE documents")
    with pytest.raises(psycopg.errors.UndefinedTable, match="has been dropped"):
        db.execute("SELECT * FROM pgrerank.d2_search('x')")
    assert db.execute("SELECT source_rows FROM pgrerank.status").fetchone() == (None,)
    db.execute("SELECT pgrerank.drop_reranker('d2')")
    assert db.execute(ANYTHING_LEFT).fetchall() == []


def test_alter_changes_sizes_without_encoding_again(db, source):
    source.create()
    source.encode_by_hand()
    db.execute("SELECT pgrerank.alter_reranker('documents', candidates => 7, maxsim_top => 3)")
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => '')")
    assert db.execute(
        "SELECT candidates, maxsim_top, cross_encoder_model, generation FROM pgrerank.rerankers"
    ).fetchone() == (7, 3, None, 1)
    assert db.execute("SELECT pending FROM pgrerank.status").fetchone() == (0,)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="candidates is '-1'"):
        db.execute("SELECT pgrerank.alter_reranker('documents', candidates => -1)")


def test_alter_of_an_empty_source_switches_too(db, source):
    db.execute("DELETE FROM documents")
    source.create()
    db.execute("SELECT pgrerank.alter_reranker('documents', token_precision => 'bit')")
    db.execute("SELECT * FROM pgrerank.claim()")
    assert db.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (2,)


def test_a_used_model_can_be_neither_changed_nor_dropped(db, source):
    source.create()
    source.models()  # the same again is no change
    source.create("others", embedding_model=None, late_interaction_model=None)
    for model, users in (("embedding", "documents"), ("reranker", "documents, others")):
        message = f'model "{model}" is used by {users}(\n| and)'
        with pytest.raises(psycopg.errors.DependentObjectsStillExist, match=message):
            db.execute(
                "SELECT pgrerank.register_model(%s, kind, '/other', dims)"
                " FROM pgrerank.models WHERE name = %s",
                (model, model),
            )
        with pytest.raises(psycopg.errors.DependentObjectsStillExist, match=message):
            db.execute("SELECT pgrerank.drop_model(%s)", (model,))
    db.execute("SELECT pgrerank.drop_reranker('others')")
    db.execute("DELETE FROM documents")
    db.execute("SELECT pgrerank.alter_reranker('documents', embedding_model => '')")
    db.execute("SELECT pgrerank.claim()")
    with pytest.raises(psycopg.Error, match=r"is used by documents \(generation 1\)"):
        db.execute("SELECT pgrerank.drop_model('embedding')")
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    db.execute("SELECT pgrerank.drop_model('embedding')")
    with pytest.raises(psycopg.errors.UndefinedObject, match="is not registered"):
        db.execute("SELECT pgrerank.drop_model('embedding')")


def test_who_may_not_change_a_reranker_is_told_who_may(dsn, db, source, make_role):
    source.create()
    role = make_role()
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as other:
        for call, what in (
            ("alter_reranker('documents', candidates => 5)", "alter"),
            ("drop_reranker('documents')", "drop"),
            ("rollback_reranker('documents')", "roll back"),
            ("create_reranker('another', 'pg_class', '{relname}')", "create"),
        ):
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege,
                match=f'role "?{role}"? may not {what} reranker "(documents|another)"',
            ) as raised:
                other.execute(f"SELECT pgrerank.{call}")
            assert db.info.user in (raised.value.diag.message_hint or "")


def test_a_model_needs_dims_and_a_loader_of_its_kind(db):
    with pytest.raises(psycopg.errors.CheckViolation, match="vectors_have_dims"):
        db.execute("SELECT pgrerank.register_model('e', 'embedding', '/x')")
    with pytest.raises(psycopg.errors.CheckViolation, match="loader_fits_kind"):
        db.execute("SELECT pgrerank.register_model('e', 'embedding', '/x', 3, 'onnx')")


def test_the_user_s_embedding_column_serves_recall(db, source):
    db.execute("ALTER TABLE documents ADD COLUMN vec vector(32)")
    zeros = [0.0] * 32
    for i in (1, 2, 3):
        db.execute(
            "UPDATE documents SET vec = %s WHERE id = %s",
            (str([*zeros[:i], 1.0, *zeros[i + 1 :]]), i),
        )
    source.create(embedding_column="vec", embedding_model=None, cross_encoder_model=None)
    rows = db.execute(
        "SELECT id, score FROM pgrerank.documents_search(NULL, query_embedding => %s)",
        (str([*zeros[:2], 1.0, *zeros[3:]]),),
    ).fetchall()
    assert rows[0] == (2, 1.0)
    assert len(rows) == 3
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no embedding_model"):
        db.execute("SELECT * FROM pgrerank.documents_search('text')")


def test_the_user_s_embedding_column_must_fit_the_model(db, source):
    db.execute("ALTER TABLE documents ADD COLUMN vec vector(3), ADD COLUMN loose vector")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match=r"has 3 dimensions, model .* has 32"):
        source.create(embedding_column="vec")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="vector without dimensions"):
        source.create(embedding_column="loose")


def test_what_wants_a_source_that_has_been_dropped_says_so(db, source):
    source.create()
    db.execute("DROP TABLE documents CASCADE")
    for statement in (
        "SELECT pgrerank.alter_reranker('documents', candidates => 5)",
        "SELECT pgrerank.enqueue('documents')",
        "SELECT pgrerank.reconcile('documents')",
        "SELECT * FROM pgrerank.texts('documents')",
    ):
        with pytest.raises(psycopg.errors.UndefinedTable, match="source table of reranker"):
            db.execute(statement)
