"""The search function with a live worker, over one database that these tests only read."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgrerank.tokens import unpack
from tests.helpers.searching import NamedSearch, use_engine
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

QUERY = "the connection pool is exhausted"


@pytest.fixture(scope="module", params=["kernel", "worker"])
def searchable_dsn(request, make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Two hundred documents, encoded by a worker that stays up; MaxSim by either engine."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        use_engine(connection, request.param)
        source = Source(connection)
        connection.execute(
            "INSERT INTO documents (title, body, tenant, lang, published, extra)"
            " SELECT 'number ' || i,"
            " (ARRAY['one', 'two', 'three', 'four', 'five'])[i % 5 + 1] || ' cat in pool ' || i,"
            " i % 3, (ARRAY['en', 'de', NULL])[i % 3 + 1], date '2026-01-01' + i,"
            " jsonb_build_object('i', i)"
            " FROM generate_series(1, 197) i"
        )
        source.models(**tiny_models)
        source.create(timeout="20 s")
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            yield dsn


@pytest.fixture
def search(searchable_dsn):
    """Calls the search function with named arguments; rows as dicts."""
    with psycopg.connect(
        searchable_dsn, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:
        yield NamedSearch(connection, QUERY)


def test_all_stages_rank_and_score(search):
    rows = search(top_k=20, candidates=50, maxsim_top=10, blend=Jsonb({}))
    assert [row["rank"] for row in rows] == list(range(1, 21))
    assert [row["stage"] for row in rows] == ["cross_encoder"] * 10 + ["maxsim"] * 10
    assert {row["degraded"] for row in rows} == {False}
    head, rest = rows[:10], rows[10:]
    assert [row["cross_encoder_rank"] for row in head] == list(range(1, 11))
    assert {row["maxsim_rank"] for row in head} == set(range(1, 11))
    assert [row["maxsim_rank"] for row in rest] == list(range(11, 21))
    assert all(row["cross_encoder_rank"] is None for row in rest)
    assert all(1 <= row["dense_rank"] <= 100 for row in rows)
    for part, score in ((head, "cross_encoder_score"), (rest, "maxsim_score")):
        scores = [row[score] for row in part]
        assert scores == sorted(scores, reverse=True)
        assert [row["score"] for row in part] == scores


def test_maxsim_scores_are_those_of_the_reference(search):
    rows = search(stages=["dense", "maxsim"], candidates=30, top_k=30)
    execute = search.connection.execute
    query = execute(
        "SELECT c.query_tokens FROM pgrerank.generations g, unnest(pgrerank._with_vectors(g, ARRAY["
        "jsonb_populate_record(NULL::pgrerank.search_call, jsonb_build_object('query', %s::text))],"
        " false, true, NULL, clock_timestamp() + '10 s')) c",
        (QUERY,),
    ).fetchone()["query_tokens"]
    for row in rows:
        document = execute(
            "SELECT string_agg(tokens, '' ORDER BY part) AS tokens"
            " FROM pgrerank.documents_1_tokens WHERE key = %s",
            (row["id"],),
        ).fetchone()["tokens"]
        products = unpack(query).astype(np.float64) @ unpack(document).astype(np.float64).T
        assert row["maxsim_score"] == pytest.approx(products.max(axis=1).sum(), rel=2e-3)


def test_recall_is_the_cosine_and_hnsw_finds_what_exact_finds(search):
    exact = search(stages=["dense"], recall="exact", candidates=20, top_k=20)
    hnsw = search(stages=["dense"], candidates=20, top_k=20)
    assert [row["score"] for row in exact] == sorted((row["score"] for row in exact), reverse=True)
    assert len({row["id"] for row in exact} & {row["id"] for row in hnsw}) >= 19
    assert all(-1 <= row["score"] <= 1.001 for row in exact)


@pytest.mark.parametrize(
    ("filter_", "where"),
    [
        ({"tenant": 1}, "tenant = 1"),
        ({"lang": ["en", "de"]}, "lang IN ('en', 'de')"),
        ({"lang": None}, "lang IS NULL"),
        ({"lang": ["en", None]}, "lang = 'en' OR lang IS NULL"),
        ({"lang": {"!=": "en"}}, "lang IS DISTINCT FROM 'en'"),
        ({"lang": {"not in": ["en"]}}, "(lang = 'en') IS NOT TRUE"),
        (
            {"published": {">=": "2026-02-01", "<": "2026-03-01"}},
            "published >= '2026-02-01' AND published < '2026-03-01'",
        ),
        ({"title": {"like": "number 1%"}, "tenant": 2}, "title LIKE 'number 1%' AND tenant = 2"),
        ({"title": {"ilike": "NUMBER 1_"}}, "title ILIKE 'NUMBER 1_'"),
        ({"extra": {"=": {"i": 5}}}, "extra = '{\"i\": 5}'"),
        ({"title": "x' OR true --"}, "false"),
        ({"lang": []}, "false"),
        ({}, "true"),
    ],
)
def test_filter_is_the_predicate_it_says(search, filter_, where):
    rows = search(filter=Jsonb(filter_), stages=["dense"], candidates=300, top_k=300)
    wanted = search.connection.execute(f"SELECT id FROM documents WHERE {where}").fetchall()
    assert {row["id"] for row in rows} == {row["id"] for row in wanted}


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"nope": 1}, 'table documents has no column "nope"'),
        ({"tenant": "abc"}, 'column "tenant" is of type integer, which "abc" is not'),
        ({"tenant": {"~": 1}}, '"~" with 1 is not an operator'),
        ({"published": {">": None}}, '">" with null is not an operator'),
        ({"published": {"in": "2026-01-01"}}, "is not an operator and operand"),
        (
            {"extra": {"i": 5}},
            '"i" with 5 is not an operator and operand for "extra" of type jsonb',
        ),
        ([1], "filter is a JSON array: an object"),
        ({"tenant) OR (true": 1}, "has no column"),
    ],
)
def test_a_wrong_filter_is_named(search, filter_, message):
    with pytest.raises(psycopg.Error) as error:
        search(filter=Jsonb(filter_))
    assert message in str(error.value)


def test_the_caller_s_keys_are_the_candidates(search):
    rows = search(keys=[5, 190, 5, 10**12, 7], stages=["dense"])
    assert [(row["id"], row["dense_rank"]) for row in rows] == [(5, 1), (190, 2), (7, 3)]
    rows = search(keys=[5, 190, 7])
    assert {row["id"] for row in rows} == {5, 190, 7}
    assert {row["stage"] for row in rows} == {"cross_encoder"}
    assert search(keys=[]) == []
    filtered = search(keys=[1, 2, 3, 4, 5, 6], filter=Jsonb({"title": {"like": "number%"}}))
    assert {row["id"] for row in filtered} == {4, 5, 6}


def test_the_caller_s_query_vector_recalls_and_its_dimensions_are_checked(search):
    vector = str([1.0] + [0.0] * 31)
    rows = search(None, query_embedding=vector, top_k=5)
    assert {row["stage"] for row in rows} == {"dense"}
    with pytest.raises(psycopg.errors.DataException, match="expected 32 dimensions, not 2"):
        search(None, query_embedding="[1, 2]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": None}, "nothing to search for"),
        ({"query": "   "}, "nothing to search for"),
        ({"query": "\t\n"}, "nothing to search for"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": None}, "top_k is NULL"),
        ({"top_k": 1_000_000}, "top_k is 1000000, expected 1 to 100000"),
        ({"keys": list(range(100_001))}, "keys has 100001 elements, expected up to 100000"),
        ({"candidates": 1_000_000}, "candidates is '1000000', expected 1 to 100000"),
        ({"maxsim_top": 0}, "maxsim_top is '0'"),
        ({"recall": "magic"}, "recall is 'magic', expected auto, hnsw or exact"),
        ({"stages": ["dense", "magic"]}, "can't all run"),
        ({"timeout": "-1 s"}, "timeout is"),
    ],
)
def test_a_wrong_call_is_named(search, arguments, message):
    with pytest.raises(psycopg.Error) as error:
        search(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "query",
    ["连接池耗尽了", "🐈‍⬛ naïve ﷽", "x" * 5000, "one " * 3000, "a\"b'c\\d\n\t{}", "%s %(x)s"],
)
def test_any_text_is_a_query(search, query):
    rows = search(query, strict=True, top_k=3)
    assert len(rows) == 3


def test_top_k_beyond_the_pool_widens_recall(search):
    assert len(search(top_k=150, stages=["dense"])) == 150
    assert len(search(top_k=5000, stages=["dense"])) == 200


def test_ten_thousand_candidates_go_through_all_stages(search):
    search.connection.execute("SET statement_timeout = '60s'")
    rows = search(keys=list(range(1, 10_001)), top_k=100)
    assert len(rows) == 100
    assert search(candidates=10_000, stages=["dense", "maxsim"], top_k=1)[0]["maxsim_rank"] == 1


def test_nothing_is_written_so_a_read_only_transaction_will_do(search):
    with search.connection.transaction():
        search.connection.execute("SET TRANSACTION READ ONLY")
        assert {row["stage"] for row in search(top_k=5)} == {"cross_encoder"}


def test_settings_of_the_session_are_left_alone(search):
    settings = "SELECT current_setting('hnsw.ef_search') || current_setting('hnsw.iterative_scan')"
    with search.connection.transaction():
        search.connection.execute("SELECT '[1]'::vector")
        before = search.connection.execute(settings).fetchall()
        search(stages=["dense"], candidates=500)
        assert search.connection.execute(settings).fetchall() == before


def test_it_joins_to_the_source_without_casts(search):
    rows = search.connection.execute(
        "SELECT title, score FROM documents JOIN pgrerank.documents_search(%s) USING (id)",
        (QUERY,),
    ).fetchall()
    assert len(rows) == 10


def test_row_level_security_of_the_source_holds_in_every_stage(searchable_dsn, make_role):
    reader, stranger = make_role(), make_role()
    with psycopg.connect(searchable_dsn, autocommit=True) as admin:
        admin.execute(f"GRANT SELECT ON documents TO {reader}")
        admin.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
        admin.execute(f"CREATE POLICY own ON documents FOR SELECT TO {reader} USING (tenant = 2)")
        visible = admin.execute("SELECT count(*) FROM documents WHERE tenant = 2").fetchone()
    with psycopg.connect(
        make_conninfo(searchable_dsn, user=reader, password=reader), autocommit=True
    ) as connection:
        rows = connection.execute(
            "SELECT d.tenant, s.stage FROM pgrerank.documents_search(%s, 300, candidates => 300) s"
            " JOIN documents d USING (id)",
            (QUERY,),
        ).fetchall()
        assert {tenant for tenant, _ in rows} == {2}
        assert len(rows) == visible[0]
        side = connection.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone()
        assert side == visible
        by_key = connection.execute(
            "SELECT count(*) FROM pgrerank.documents_search(%s, keys => ARRAY[1, 2, 3, 4, 5, 6])",
            (QUERY,),
        ).fetchone()
        assert by_key == (1,)
    with (
        psycopg.connect(
            make_conninfo(searchable_dsn, user=stranger, password=stranger), autocommit=True
        ) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="documents"),
    ):
        connection.execute("SELECT * FROM pgrerank.documents_search('x')")
