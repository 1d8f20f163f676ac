"""What a filter says, over columns of many types and paths into JSON, is what a search returns."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

ROWS = [
    (1, "en", ["a", "b"], 10, {"year": 2019, "tags": ["x", "y"], "a": {"b.c": True}}),
    (2, "de", ["b"], 20, {"year": 2020, "tags": ["y"], "who": "Ann"}),
    (3, None, [], 30, {"year": "2021", "tags": "x", "who": None}),
    (4, "en", None, None, {"year": None, "tags": [1, 2]}),
    (5, "fr", ["c"], 50, None),
    (6, "it's", ["a", "c"], 60, {"year": 2022, "tags": []}),
]


@pytest.fixture(scope="module")
def filtered_dsn(make_database, pgrerank_template):
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT 'note', lang text,"
            " tags text[], size numeric, meta jsonb, plain json,"
            ' period int4range, "odd.name" int)'
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO notes (id, lang, tags, size, meta, plain, period)"
                " VALUES (%s, %s, %s, %s, %s, %s, int4range(%s, %s))",
                [(*row[:4], *(row[4] and Jsonb(row[4]),) * 2, row[0], row[0] + 3) for row in ROWS],
            )
        connection.execute('UPDATE notes SET "odd.name" = id')
        connection.execute("SELECT pgrerank.create_reranker('notes', 'notes', '{body}')")
        while connection.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
            pass
    return dsn


@pytest.fixture(params=["without an index", "gin", "of an expression"])
def notes(request, filtered_dsn):
    """A connection there, which passes with and without indexes on the JSON."""
    index = {
        "gin": "CREATE INDEX ON notes USING gin (meta)",
        "of an expression": "CREATE INDEX ON notes ((meta #> '{year}'))",
    }.get(request.param)
    with psycopg.connect(filtered_dsn) as connection:
        if index is not None:
            connection.execute(index)
        yield connection
        connection.rollback()


def found(connection, filter_) -> list[int]:
    rows = connection.execute(
        "SELECT id FROM pgrerank.notes_search('note', filter => %s, strict => true)",
        (Jsonb(filter_),),
    )
    return sorted(key for (key,) in rows)


FILTERS = [
    ({"and": [{"lang": "en"}, {"size": 10}]}, [1]),
    ({"or": [{"lang": "de"}, {"size": {">=": 50}}]}, [2, 5, 6]),
    ({"or": []}, []),
    ({"and": []}, [1, 2, 3, 4, 5, 6]),
    ({"not": {"lang": "en"}}, [2, 3, 5, 6]),
    ({"not": {"or": [{"lang": "en"}, {"not": {"size": {"<": 40}}}]}}, [2, 3]),
    ({"lang": "en", "or": [{"id": 1}, {"id": 2}]}, [1]),
    ({"size": {"between": [20, 50]}}, [2, 3, 5]),
    ({"size": {"is null": True}}, [4]),
    ({"lang": {"is null": False}}, [1, 2, 4, 5, 6]),
    ({"lang": "it's"}, [6]),
    ({"tags": {"@>": ["a"]}}, [1, 6]),
    ({"tags": {"@>": "{a,c}"}}, [6]),
    ({"tags": {"<@": ["a", "b"]}}, [1, 2, 3]),
    ({"tags": {"&&": ["b", "c"]}}, [1, 2, 5, 6]),
    ({"tags": {"=": ["a", "b"]}}, [1]),
    ({"tags": {"@>": ["a', 'b"]}}, []),
    ({"period": {"@>": 4}}, [2, 3, 4]),
    ({"period": {"&&": "[1,3)"}}, [1, 2]),
    ({"period": {"@>": "[6,8)"}}, [5, 6]),
    ({"odd.name": 3}, [3]),
    ({"meta.year": 2020}, [2]),
    ({"meta.year": "2021"}, [3]),
    ({"meta.year": {">=": 2020}}, [2, 6]),
    ({"meta.year": {">": "2020"}}, [3]),
    ({"meta.year": {"between": [2019, 2020]}}, [1, 2]),
    ({"meta.year": [2019, "2021"]}, [1, 3]),
    ({"meta.year": [2019, None]}, [1, 4, 5]),
    ({"meta.year": []}, []),
    ({"meta.year": None}, [4, 5]),
    ({"meta.year": {"!=": 2020}}, [1, 3, 4, 5, 6]),
    ({"meta.year": {"not in": [2019, 2020]}}, [3, 4, 5, 6]),
    ({"meta.year": {"is null": False}}, [1, 2, 3, 6]),
    ({"meta.who": {"like": "A%"}}, [2]),
    ({"meta.tags": {"@>": ["y"]}}, [1, 2]),
    ({"meta.tags": {"@>": "x"}}, [1, 3]),
    ({"meta.tags": {"<@": ["y", "z"]}}, [2, 6]),
    ({"meta.tags": {"&&": ["x", 2]}}, [1, 4]),
    ({"meta.tags": {"=": [1, 2]}}, [4]),
    ({'meta.a."b.c"': True}, [1]),
    ({"meta": {"@>": {"year": 2022}}}, [6]),
    ({"meta": None}, [5]),
    ({"plain.year": 2020}, [2]),
    ({"plain.tags": {"@>": ["y"]}}, [1, 2]),
]


@pytest.mark.parametrize(("filter_", "expected"), FILTERS)
def test_a_filter_finds_what_it_says(notes, filter_, expected) -> None:
    assert found(notes, filter_) == expected
    everything = [row[0] for row in ROWS]
    rest = [key for key in everything if key not in expected]
    assert found(notes, {"not": filter_}) == rest, "and its opposite the rest"


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"lang": {"~": "x"}}, '"~" with "x" is not an operator and operand for "lang"'),
        ({"meta.year": {"$gt": 1}}, '"$gt" with 1 is not an operator and operand'),
        ({"meta.year": {">": [1]}}, "JSON is ordered by numbers or texts"),
        ({"meta.": 1}, "is no path into a column of type jsonb"),
        ({'meta."a': 1}, "is no path into a column of type jsonb"),
        ({"meta..a": 1}, "is no path into a column of type jsonb"),
        ({"lang.a": 1}, 'column "lang" is of type text'),
        ({"nope.a": 1}, 'has no column "nope"'),
        ({"size": {"between": [1]}}, '"between" with [1] is not an operator and operand'),
        ({"size": {"@>": 1}}, "@> is for arrays, ranges and JSON"),
        ({"size": {"is null": 1}}, '"is null" with 1 is not an operator and operand'),
        ({"size": ["a"]}, 'column "size" is of type numeric, which "a" is not'),
        ({"or": {"lang": "en"}}, '"or" with {"lang": "en"}: an array of filters is expected'),
        ({"and": [1]}, "filter is a JSON number"),
        ({"not": ["a"]}, "filter is a JSON array"),
    ],
)
def test_a_wrong_filter_says_what_is_wrong(notes, filter_, message) -> None:
    with pytest.raises(psycopg.Error) as error:
        found(notes, filter_)
    said = error.value.diag
    assert message in f"{said.message_primary} {said.message_hint}"


def test_a_filter_is_not_nested_without_end(notes) -> None:
    filter_ = {"lang": "en"}
    for _ in range(40):
        filter_ = {"not": filter_}
    with pytest.raises(psycopg.Error, match="more than 32 deep"):
        found(notes, filter_)


def test_indexes_on_json_serve_it(notes) -> None:
    """As the planner sees it, where reading the table is no choice."""
    indexes = notes.execute(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'notes' AND indexdef LIKE '%meta%'"
    ).fetchone()[0]
    notes.execute("SET enable_seqscan = off")
    predicate = notes.execute(
        """SELECT pgrerank._filter_sql('notes', '{"meta.year": 2020}')"""
    ).fetchone()[0]
    plan = "\n".join(
        line for (line,) in notes.execute(f"EXPLAIN SELECT FROM notes d WHERE {predicate}")
    )
    assert ("notes_meta_idx" in plan or "notes_expr_idx" in plan) == bool(indexes)


def test_types_whose_names_have_a_length_of_one_are_compared_whole(db):
    db.execute(
        "CREATE TABLE fixed (id int PRIMARY KEY, g char(5), b bit(3), s char(3)[], body text);"
        "INSERT INTO fixed SELECT i, 'c' || i % 4, (i % 4)::bit(3), ARRAY['s' || i % 2], 'bread'"
        " FROM generate_series(1, 12) i;"
        "SELECT pgrerank.create_reranker('fixed', 'fixed', '{body}')"
    )
    db.execute("SELECT pgrerank.finish('fixed', 1, c.keys, c.tickets) FROM pgrerank.claim(100) c")
    for given, count in (
        ('{"g": "c1"}', 3),
        ('{"g": {"!=": "c1"}}', 9),
        ('{"g": {"not in": ["c1", "c2"]}}', 6),
        ('{"b": "001"}', 3),
        ('{"s": {"@>": ["s1"]}}', 6),
    ):
        rows = db.execute(
            "SELECT id FROM pgrerank.fixed_search('bread', top_k => 100, filter => %s)", (given,)
        ).fetchall()
        assert len(rows) == count, given
