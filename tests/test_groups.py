"""The best of each group: as many groups as asked for, whenever as many match, in one order."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from tests.helpers.searching import Searching
from tests.helpers.sources import Source

PROPERTY = settings(max_examples=40)


@pytest.fixture(scope="module")
def grouped_dsn(make_database, pgrerank_template):
    """Sixty documents in a dozen groups, of which two have most of them; some in none."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute("DELETE FROM documents")
        connection.execute(
            "INSERT INTO documents (title, body, tenant, lang, published, extra)"
            " SELECT 'cat ' || i, repeat('pool ', i % 7) || 'number ' || i,"
            " CASE WHEN i % 11 = 0 THEN i WHEN i < 40 THEN 1 ELSE 2 END,"
            " CASE WHEN i % 11 = 0 THEN 'of ' || i WHEN i % 17 > 0 THEN 'large' END,"
            " date '2026-01-01' + i % 5,"
            " CASE WHEN i % 6 > 0 THEN jsonb_build_object('part', nullif(i % 6, 4)) END"
            " FROM generate_series(1, 60) i"
        )
        source.create(timeout="20 s")
        source.encode_by_hand()
    return dsn


@pytest.fixture
def grouped(grouped_dsn):
    """Searches there, with named arguments; rows as dicts, with the documents' columns."""
    with psycopg.connect(
        grouped_dsn, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:
        yield Searching(
            connection,
            {
                "query": "cat pool",
                "stages": ["dense", "lexical"],
                "query_embedding": str([1.0] * 16 + [0.5] * 16),
                "strict": True,
            },
            "SELECT s.*, d.tenant, d.lang, d.published, d.extra -> 'part' AS part"
            " FROM pgrerank.{function}({named}) s JOIN documents d USING (id) ORDER BY rank",
        )


def group_of(row, group_by: str):
    value = row[{"extra.part": "part"}.get(group_by, group_by)]
    return ("alone", row["id"]) if value is None else value


columns = st.sampled_from(["tenant", "lang", "published", "extra.part", "id"])
filters = st.sampled_from(
    [None, {"id": {">": 25}}, {"tenant": 1}, {"and": [{"lang": "large"}]}, {"id": []}]
)


@PROPERTY
@given(
    group_by=columns,
    per_group=st.integers(1, 3),
    top_k=st.integers(1, 30),
    candidates=st.integers(1, 30),
    filter_=filters,
    stages=st.sampled_from([["dense"], ["dense", "lexical"]]),
    blend=st.sampled_from([None, {}]),
    signals=st.sampled_from([{}, {"tenant": {"weight": 0.5}}]),
)
def test_there_are_top_k_groups_whenever_as_many_match(
    grouped, group_by, per_group, top_k, candidates, filter_, stages, blend, signals
):
    arguments = {"filter": filter_, "stages": stages, "blend": blend, "signals": signals}
    rows = grouped(
        group_by=group_by, per_group=per_group, top_k=top_k, candidates=candidates, **arguments
    )
    all_rows = grouped(top_k=60, **arguments)
    matching = {group_of(row, group_by) for row in all_rows}
    found = [group_of(row, group_by) for row in rows]
    assert len(set(found)) == min(top_k, len(matching))
    assert max(map(found.count, found), default=0) <= per_group
    assert found == sorted(found, key=found.index), "rows come by groups"
    assert [row["rank"] for row in rows] == [*range(1, len(rows) + 1)]
    assert len({row["id"] for row in rows}) == len(rows)


@PROPERTY
@given(
    group_by=columns,
    per_group=st.integers(1, 3),
    candidates=st.integers(12, 30),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stages=st.sampled_from([["dense"], ["lexical"], ["dense", "lexical"]]),
    signals=st.sampled_from([{}, {"tenant": {"weight": 0.5}}]),
)
def test_growing_top_k_extends_and_never_reorders(
    grouped, group_by, per_group, candidates, sizes, stages, signals
):
    less, more = (
        grouped(
            top_k=size,
            candidates=candidates,
            stages=stages,
            signals=signals,
            group_by=group_by,
            per_group=per_group,
        )
        for size in sorted(sizes)
    )
    assert more[: len(less)] == less


@PROPERTY
@given(group_by=columns, top_k=st.integers(1, 12), signals=st.booleans())
def test_where_one_wave_is_enough_groups_are_a_choice_among_the_rows_of_a_search(
    grouped, group_by, top_k, signals
):
    arguments = {"signals": {"tenant": {"weight": 0.5}} if signals else {}, "candidates": 60}
    best: dict = {}
    for row in grouped(top_k=60, **arguments):
        best.setdefault(group_of(row, group_by), row["id"])
    rows = grouped(group_by=group_by, top_k=top_k, **arguments)
    assert [row["id"] for row in rows] == [*best.values()][:top_k]


def test_own_candidates_are_all_there_are(grouped):
    own = {"keys": [60, 5, 6, 59, 7, 14], "group_by": "tenant", "stages": ["dense"]}
    assert [row["id"] for row in grouped(**own, per_group=2)] == [60, 59, 5, 6, 14]
    assert [row["id"] for row in grouped(**own, top_k=2)] == [60, 5]


def test_a_reranker_has_groups_that_one_call_can_do_without(db, source):
    db.execute("INSERT INTO documents (title, tenant) SELECT 'cat', 2 FROM generate_series(1, 9)")
    source.create(group_by="tenant")
    source.encode_by_hand()
    search = "SELECT count(*) FROM pgrerank.documents_search('cat', stages => '{lexical}'%s)"
    assert db.execute(search % "").fetchone() == (2,)
    assert db.execute(search % ", per_group => 3").fetchone() == (4,)
    assert db.execute(search % ", group_by => ''").fetchone() == (10,)
    for group_by, message in (("nope", 'has no column "nope"'), ("lang.x", "no path into a col")):
        for statement in (
            "SELECT pgrerank.alter_reranker('documents', group_by => %s)",
            "SELECT FROM pgrerank.documents_search('cat', group_by => %s)",
        ):
            with pytest.raises(psycopg.Error, match=message):
                db.execute(statement, [group_by])
    db.execute("SELECT pgrerank.alter_reranker('documents', group_by => '')")
    assert db.execute(search % "").fetchone() == (10,)


@pytest.mark.parametrize("name", ["and", "or", "not", "a.b"])
def test_columns_with_the_names_of_operators_and_with_dots_are_keys_and_groups(db, name):
    db.execute(
        f'CREATE TABLE docs ("{name}" int PRIMARY KEY, "{name}s" int, "x.y" jsonb, body text)'
    )
    db.execute(
        "INSERT INTO docs SELECT i, i / 4, jsonb_build_object('k.l', i / 4), 'a word'"
        " FROM generate_series(0, 39) i"
    )
    db.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass
    search = (
        "SELECT count(*) FROM pgrerank.docs_search('word', candidates => 2, group_by => %s,"
        " filter => %s)"
    )
    for group_by in (f"{name}s", '"x.y"."k.l"'):
        assert db.execute(search, [group_by, None]).fetchone() == (10,)
    db.execute(f'ALTER TABLE docs RENAME "{name}" TO id')
    db.execute(f'ALTER TABLE docs RENAME "{name}s" TO "{name}"')
    for group_by in (name, f'"{name}"'):
        assert db.execute(search, [group_by, None]).fetchone() == (10,)
        only = Jsonb({f'"{name}"': {"<": 3}})
        assert db.execute(search, [group_by, only]).fetchone() == (3,)


@pytest.mark.parametrize("of_type", ["point", "xml", "point[]"])
def test_values_that_are_never_equal_make_no_groups(db, source, of_type):
    db.execute(f"ALTER TABLE documents ADD place {of_type}")
    source.create()
    source.encode_by_hand()
    for statement in (
        "SELECT pgrerank.alter_reranker('documents', group_by => 'place')",
        "SELECT FROM pgrerank.documents_search('cat', group_by => 'place')",
        "SELECT FROM pgrerank.documents_search('zebra', group_by => 'place', strict => false)",
    ):
        with pytest.raises(
            psycopg.errors.DatatypeMismatch, match=r'column "place" is of type .*equality'
        ):
            db.execute(statement)


def test_what_the_caller_may_not_see_is_in_no_group_and_no_signal(dsn, db, source, make_role):
    db.execute(
        "INSERT INTO documents (title, tenant, lang)"
        " SELECT 'cat ' || i, i % 4, 'l' || i % 10 FROM generate_series(1, 40) i"
    )
    source.create()
    source.encode_by_hand()
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY third ON documents USING (tenant = 3)")
    reader = make_role()
    db.execute(f"GRANT SELECT (id, title, body) ON documents TO {reader}")
    search = (
        "SELECT s.id FROM pgrerank.documents_search('cat', stages => '{lexical}',"
        " candidates => 2, top_k => 10, %s) s"
    )
    arguments = """group_by => 'lang', signals => '{"tenant": {"weight": 1}}'"""
    with psycopg.connect(make_conninfo(dsn, user=reader, password=reader)) as connection:
        for refused in ("group_by => 'lang'", """signals => '{"tenant": {"weight": 1}}'"""):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(search % refused)
        db.execute(f"GRANT SELECT ON documents TO {reader}")
        seen = connection.execute(search % arguments).fetchall()
        visible = connection.execute("SELECT count(DISTINCT lang) FROM documents").fetchone()
    assert (len(seen),) == visible == (5,)
    assert len(db.execute(search % arguments).fetchall()) == 10
