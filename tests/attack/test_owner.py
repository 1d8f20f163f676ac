"""A hostile owner of a source: its code runs in nobody else's name."""

from __future__ import annotations

import psycopg
import pytest

from tests.helpers.sources import Source

EVIL_TYPE = """
    CREATE TYPE lair.body AS (body text);
    CREATE FUNCTION lair.as_text(lair.body) RETURNS text LANGUAGE plpgsql IMMUTABLE
        AS 'BEGIN PERFORM lair.note(); RETURN $1.body; END';
    CREATE CAST (lair.body AS text) WITH FUNCTION lair.as_text(lair.body) AS IMPLICIT;
    ALTER TABLE documents ALTER COLUMN body TYPE lair.body USING row(body)::lair.body;
"""
OPERATOR = """
    CREATE FUNCTION lair.both(text, text) RETURNS text LANGUAGE plpgsql IMMUTABLE
        AS 'BEGIN PERFORM lair.note(); RETURN $1; END';
    CREATE OPERATOR lair.+ (LEFTARG = text, RIGHTARG = text, FUNCTION = lair.both);
    CREATE DOMAIN lair.checked AS text CHECK (lair.evil(VALUE) IS NOT NULL);
"""


@pytest.fixture
def owned(db, hostile, source) -> Source:
    """The table `documents`, which is the hostile role's."""
    db.execute(f"ALTER TABLE documents OWNER TO {hostile.info.user}")
    return source


@pytest.mark.parametrize("setting", ["text_expression", "passage_prefix", "language_expression"])
@pytest.mark.parametrize(
    "expression",
    [
        "lair.evil(body)",
        "lair.evil('constant')",
        "body OPERATOR(lair.+) title",
        "body::lair.checked",
    ],
)
def test_no_expression_has_code_that_others_may_replace(
    db, hostile, owned, victims, setting, expression
):
    hostile.execute(OPERATOR)
    texts = {"text_columns": None} if setting == "text_expression" else {}
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="could have it run anything"):
        owned.create(**{**texts, setting: expression})
    assert victims() == set()


def test_functions_of_the_schemas_owner_may_be_used(db, owned):
    db.execute(
        "CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)'"
    )
    owned.create(text_columns=None, text_expression="public.shout(body)")
    [claim] = db.execute("SELECT contents FROM pgrerank.claim()").fetchone()
    assert "A CAT SLEEPS MOST OF THE DAY." in claim


@pytest.mark.parametrize(
    "texts",
    [
        {"text_columns": ["body"]},
        {"text_columns": None, "text_expression": "lower(body)"},
    ],
)
def test_a_column_of_a_hostile_type_later_runs_no_cast(db, hostile, owned, victims, texts):
    owned.create(**texts)
    owned.encode_by_hand()
    hostile.execute(EVIL_TYPE)
    hostile.execute("INSERT INTO documents (title, body) VALUES ('new', row('new'))")
    hostile.execute("UPDATE documents SET body = row('other')")
    db.execute("SELECT count(*) FROM pgrerank.claim()")
    assert victims() == set()
    assert " lair." in db.execute("SELECT last_error FROM pgrerank.status").fetchone()[0]


def test_policies_and_generated_columns_and_defaults_run_in_the_writers_name(
    db, hostile, owned, victims
):
    hostile.execute(
        "ALTER TABLE documents ADD COLUMN g text GENERATED ALWAYS AS (lair.evil(body)) STORED;"
        "ALTER TABLE documents ADD COLUMN note text DEFAULT lair.note();"
        "ALTER TABLE documents ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY trap ON documents USING (lair.note() IS NOT NULL)"
    )
    owned.create(text_columns=["title", "g"])
    hostile.execute("INSERT INTO documents (title, body) VALUES ('new', 'new')")
    owned.encode_by_hand()
    assert db.execute("SELECT pending FROM pgrerank.status").fetchone() == (0,)
    assert victims() == set()


def test_a_table_that_takes_the_sources_name_is_not_read(db, hostile, owned, victims):
    owned.create()
    db.execute(f"GRANT CREATE ON SCHEMA public TO {hostile.info.user}")
    hostile.execute(
        "ALTER TABLE documents RENAME TO old;"
        "CREATE VIEW documents AS SELECT id, lair.evil('title') AS title, body FROM old"
    )
    owned.encode_by_hand()
    db.execute("SELECT * FROM pgrerank.documents_search('bread', stages => '{lexical}')")
    assert victims() == set()


@pytest.mark.parametrize("name", ['a"b', "it's", "100%s", "$$x$$", "Größe", "x" * 63, "a;b--"])
def test_names_are_names(db, source, name):
    table = psycopg.sql.Identifier(name)
    db.execute(
        psycopg.sql.SQL("CREATE TABLE {0} ({0} int PRIMARY KEY, {1} text)").format(
            table, psycopg.sql.Identifier(name[1:] + "_")
        )
    )
    columns = db.execute(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = quote_ident(%s)::regclass AND attnum > 0",
        (name,),
    ).fetchone()[0]
    db.execute(psycopg.sql.SQL("INSERT INTO {} VALUES (1, 'bread')").format(table))
    source.models()
    db.execute(
        "SELECT pgrerank.create_reranker('odd', quote_ident(%s)::regclass, %s)",
        (name, [columns[1]]),
    )
    db.execute("SELECT * FROM pgrerank.claim()")
    db.execute("SELECT pgrerank.enqueue('odd')")
    found = db.execute(
        "SELECT 1 FROM pgrerank.odd_search('bread', filter => jsonb_build_object(%s::text, 1))",
        (columns[0],),
    ).fetchall()
    assert found == [(1,)]
    db.execute("SELECT pgrerank.drop_reranker('odd')")


def test_a_cast_of_a_columns_type_that_comes_later_is_not_run(db, hostile, owned, victims):
    hostile.execute("CREATE TYPE lair.mood AS ENUM ('good')")
    db.execute("ALTER TABLE documents ADD COLUMN mood lair.mood")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"type lair\.mood of role"):
        owned.create(text_columns=None, text_expression="mood::text")


def test_triggers_of_others_can_not_call_ours(hostile, source):
    source.create()
    hostile.execute("CREATE TEMPORARY TABLE mine (id bigint, title text, body text)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="_sync"):
        hostile.execute(
            "CREATE TRIGGER t AFTER INSERT ON mine EXECUTE FUNCTION pgrerank._sync('documents')"
        )


def test_a_temporary_table_in_the_way_breaks_nothing(db, hostile, source):
    source.create()
    hostile.execute("CREATE TEMPORARY TABLE pgrerank_probe (id int)")
    db.execute(f"GRANT SELECT ON documents TO {hostile.info.user}")
    db.execute("ALTER TABLE documents RENAME body TO content")
    search = "SELECT count(*) FROM pgrerank.documents_search('bread', stages => '{lexical}')"
    hostile.execute(search)
    source.encode_by_hand()
    assert hostile.execute(search).fetchone() == (1,)
