"""The kernel's aggregate over a document's parts, in one process and in parallel ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from pgrerank.tokens import maxsim, pack, pack_parts

DOCUMENTS = 600
SCORES = "SELECT key, pgrerank.maxsim_agg(%b, tokens) FROM parts GROUP BY key ORDER BY key"


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """Of 1 to 40 token vectors of 96 dimensions."""
    generator = np.random.default_rng(3)
    return [
        generator.standard_normal((generator.integers(1, 41), 96)).astype(np.float32)
        for _ in range(DOCUMENTS)
    ]


@pytest.fixture(scope="module")
def query() -> bytes:
    return pack(np.random.default_rng(4).standard_normal((9, 96)), "float16")


@pytest.fixture(scope="module")
def packed(documents) -> list[list[bytes]]:
    return [pack_parts(document, "int8", most_bytes=1200) for document in documents]


@pytest.fixture(scope="module")
def db(make_database, pgrerank_template, packed) -> Iterator[psycopg.Connection]:
    """A table of parts: documents in random order, parts apart from one another."""
    with psycopg.connect(make_database(pgrerank_template), autocommit=True) as connection:
        if not connection.execute("SELECT pgrerank.has_native_kernel()").fetchone()[0]:
            pytest.skip("the server has no native kernel")
        connection.execute("CREATE TABLE parts (key int, tokens bytea)")
        rows = [(key, part) for key, parts in enumerate(packed) for part in parts]
        np.random.default_rng(5).shuffle(rows)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO parts VALUES (%s, %b)", rows)
        connection.execute("ANALYZE parts")
        yield connection


@pytest.fixture
def one_process(db, query) -> dict[int, float]:
    db.execute("SET max_parallel_workers_per_gather = 0")
    return dict(db.execute(SCORES, (query,)).fetchall())


def test_it_scores_the_whole_document(one_process, query, packed):
    wanted = maxsim(query, [b"".join(parts) for parts in packed])
    found = np.array([one_process[key] for key in range(DOCUMENTS)])
    # The kernel rounds the query to 8 bits for each vector.
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_parallel_workers_find_the_same(db, one_process, query):
    db.execute(
        "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0;"
        " SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0"
    )
    plan = db.execute("EXPLAIN (COSTS off) " + SCORES, (query,)).fetchall()
    assert any("Partial" in line for (line,) in plan)
    assert any("Gather" in line for (line,) in plan)
    assert dict(db.execute(SCORES, (query,)).fetchall()) == one_process


def test_what_is_null_counts_for_nothing(db, query, packed):
    calls = (
        "SELECT pgrerank.maxsim_agg(%b::bytea, d) FROM unnest(%b::bytea[]) d",
        "SELECT max(pgrerank.maxsim(%b::bytea, d)) FROM unnest(%b::bytea[]) d",
    )
    [part, *_] = packed[0]
    scores = [
        [
            db.execute(call, (q, parts)).fetchone()[0]
            for q, parts in ((query, [part, None]), (query, [None]), (query, []), (None, [part]))
        ]
        for call in calls
    ]
    assert scores[0] == scores[1]
    assert scores[0][1:] == [None, None, None]


def test_one_document_has_one_query(db, packed):
    queries = [pack(np.ones((count, 96))) for count in (1, 2)]
    with pytest.raises(psycopg.errors.DataException, match="one query for a document, of 1"):
        db.execute(
            "SELECT pgrerank.maxsim_agg(q, %b) FROM unnest(%b::bytea[]) q", (packed[0][0], queries)
        )


@pytest.mark.parametrize(
    "call",
    [
        "add(NULL, '\\x00', '\\x00')",
        "sum(NULL)",
        "deserialize('\\x00', NULL)",
        "add_each(NULL, '{}', '{}', '\\x00')",
        "sum_each(NULL)",
    ],
)
def test_its_functions_take_no_state_from_sql(db, call):
    with pytest.raises(psycopg.errors.UndefinedFunction):
        db.execute(f"SELECT pgrerank._maxsim_{call}")


EACH = "SELECT pgrerank._maxsim_each(%b::bytea[], %b::int[], d) FROM unnest(%b::bytea[]) d"


def test_several_queries_have_the_scores_of_each_alone(db, query, packed):
    queries = [query, pack(np.eye(96)[:20]), pack(np.ones((1, 96)), "float16")]
    for parts in packed[:20]:
        [each] = db.execute(EACH, (queries, [3, 1, 2, 1], parts)).fetchone()
        alone = [
            db.execute(
                "SELECT pgrerank.maxsim_agg(%b, d) FROM unnest(%b::bytea[]) d", (one, parts)
            ).fetchone()[0]
            for one in queries
        ]
        assert each == [alone[2], alone[0], alone[1], alone[0]]
    assert db.execute(EACH, (queries, [], packed[0])).fetchone() == ([],)
    assert db.execute(EACH, (queries, [1], [None])).fetchone() == (None,)
    assert db.execute(EACH, (None, [1], packed[0])).fetchone() == (None,)


@pytest.mark.parametrize(
    ("queries", "numbers", "wrong"),
    [
        (1, [2], "number from 1 to 1, not 2"),
        (1, [0], "number from 1 to 1, not 0"),
        (1, [None], "a plain list of numbers"),
        (1, [[1], [1]], "a plain list of numbers"),
        (None, [1], "a query is NULL"),
        (0, [1], "number from 1 to 0, not 1"),
    ],
)
def test_queries_that_are_not_there_are_refused(db, query, packed, queries, numbers, wrong):
    given = [None] if queries is None else [query] * queries
    with pytest.raises(psycopg.errors.DataException, match=wrong):
        db.execute(EACH, (given, numbers, packed[0]))


def test_all_parts_of_a_document_go_with_the_same_queries(db, query, packed):
    queries = [query, pack(np.ones((1, 96)))]
    for numbers in ([[1], [1, 2]], [[1], [2]]):
        with pytest.raises(psycopg.errors.DataException, match="the same numbers for all parts"):
            db.execute(
                "SELECT pgrerank._maxsim_each(%b::bytea[], n::text::int[], %b)"
                " FROM unnest(%s::text[]) n",
                (queries, packed[0][0], [str(set(one)) for one in numbers]),
            )
