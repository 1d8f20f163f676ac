"""What signals add to a search: by decay, logarithms and conditions, normalised over its pool."""

from __future__ import annotations

import math

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.helpers.searching import Searching
from tests.helpers.sources import Source

NUMBER = 40
PROPERTY = settings(max_examples=25)


@pytest.fixture(scope="module")
def news_dsn(make_database, pgrerank_template):
    """Forty documents that differ in what their columns say; without a worker."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute("DELETE FROM documents")
        connection.execute(
            "ALTER TABLE documents ADD seen timestamptz, ADD votes int, ADD price numeric,"
            " ADD pinned boolean"
        )
        connection.execute(
            "INSERT INTO documents"
            " (title, body, published, seen, votes, price, pinned, lang, extra)"
            " SELECT 'cat ' || i, repeat('pool cat ', i %% 5) || repeat('bread ', 7 * i %% 11),"
            " date '2026-01-01' - 3 * i, timestamptz '2026-01-01 00:00+00' - i * interval '1 hour',"
            " nullif(i * i %% 37, 5), i * 1.5, i %% 9 = 0, (ARRAY['en', 'de', NULL])[i %% 3 + 1],"
            " CASE WHEN i %% 4 > 0 THEN jsonb_build_object('year', 2000 + i %% 7, 'at',"
            " to_char(date '2026-01-01' - i, 'YYYY-MM-DD\"T\"HH24:MI:SS.5Z'))"
            ' ELSE \'{"year": "old", "at": "some day"}\' END'
            " FROM generate_series(1, %s) i",
            (NUMBER,),
        )
        source.create(timeout="20 s")
        source.encode_by_hand()
    return dsn


@pytest.fixture
def news(news_dsn):
    """Searches there, with named arguments; rows as dicts."""
    with psycopg.connect(
        news_dsn, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:
        yield Searching(
            connection,
            {
                "query": "cat pool",
                "top_k": NUMBER,
                "stages": ["dense", "lexical"],
                "query_embedding": str([1.0] * 16 + [0.5] * 16),
                "strict": True,
            },
            "SELECT * FROM pgrerank.{function}({named}) ORDER BY rank",
        )


def told(news, sql: str) -> dict[int, float | None]:
    rows = news.connection.execute(f"SELECT id, ({sql})::float8 AS told FROM documents").fetchall()
    return {row["id"]: row["told"] for row in rows}


def z_scores(values: dict[int, float | None]) -> dict[int, float]:
    known = [value for value in values.values() if value is not None]
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
    return {
        key: 0.0 if value is None or deviation == 0 else (value - mean) / deviation
        for key, value in values.items()
    }


@pytest.mark.parametrize(
    ("signals", "sql"),
    [
        (
            {"published": {"decay": "90 days", "weight": 1}},
            "0.5 ^ (extract(epoch FROM now() - published) / 86400 / 90)",
        ),
        (
            {"seen": {"decay": "12 hours", "origin": "2026-01-01 00:00+00", "weight": 1}},
            "0.5 ^ (extract(epoch FROM timestamptz '2026-01-01 00:00+00' - seen) / 43200)",
        ),
        (
            {
                "published": {
                    "decay": "30 days", "origin": "2025-12-01", "shape": "gauss",
                    "offset": "5 days", "weight": 1,
                }
            },
            "0.5 ^ ((greatest(abs(published - date '2025-12-01') - 5, 0) / 30.0) ^ 2)",
        ),
        (
            {"price": {"decay": 8, "origin": 20, "shape": "linear", "offset": 2, "weight": 1}},
            "greatest(1 - greatest(abs(price - 20) - 2, 0) / 16, 0)",
        ),
        ({"price": {"decay": 8, "origin": 20, "weight": 1}}, "0.5 ^ (abs(price - 20) / 8)"),
        ({"votes": {"log": True, "weight": 1}}, "ln(1 + votes)"),
        ({"votes": {"sqrt": True, "weight": 1}}, "sqrt(votes)"),
        ({"price": {"weight": 1}}, "price"),
        ({"extra.year": {"weight": 1}}, "CASE WHEN extra -> 'year' <> '\"old\"' THEN"
         " (extra ->> 'year')::int END"),
        (
            {"extra.at": {"decay": "9 days", "origin": "2026-01-01Z", "weight": 1}},
            "CASE WHEN id % 4 > 0 THEN 0.5 ^ (id / 9.0) END",
        ),
    ],
)  # fmt: skip
def test_a_signal_is_the_z_score_of_what_its_column_says(news, signals, sql):
    if "extra.at" in signals:
        first = news.connection.execute("SELECT min(id) - 1 AS first FROM documents").fetchone()
        sql = sql.replace("id", f"(id - {first['first']})")
    wanted = z_scores(told(news, sql))
    rows = news(signals=signals)
    assert {row["id"]: row["signals_score"] for row in rows} == pytest.approx(wanted, abs=2e-4)
    halved = news(signals={name: one | {"weight": -0.5} for name, one in signals.items()})
    assert {row["id"]: row["signals_score"] for row in halved} == pytest.approx(
        {key: -value / 2 for key, value in wanted.items()}, abs=2e-4
    )


@pytest.mark.parametrize(
    ("signals", "sql"),
    [
        ({"pinned": {"equals": True, "boost": 0.7}}, "CASE WHEN pinned THEN 0.7 ELSE 0 END"),
        ({"votes": {">=": 20, "boost": -2}}, "CASE WHEN votes >= 20 THEN -2 ELSE 0 END"),
        (
            {"lang": [{"equals": "en", "boost": 1}, {"in": ["de", None], "boost": 0.5}]},
            "CASE WHEN lang = 'en' THEN 1 ELSE 0.5 END",
        ),
        (
            {"boosts": [{"when": {"or": [{"pinned": True}, {"price": {"<": 9}}]}, "boost": 3}]},
            "CASE WHEN pinned OR price < 9 THEN 3 ELSE 0 END",
        ),
    ],
)
def test_a_boost_is_added_where_its_condition_holds(news, signals, sql):
    rows = news(signals=signals)
    assert {row["id"]: row["signals_score"] for row in rows} == pytest.approx(told(news, sql))


def test_signals_are_a_part_of_the_score_which_orders(news):
    signals = {"votes": {"log": True, "weight": 0.4}, "pinned": {"equals": True, "boost": 1}}
    plain = {row["id"]: row for row in news()}
    rows = news(signals=signals)
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    # Beside signals the weights of the stages, 0.28 and 0.14, add up to 1.
    assert {row["id"]: row["score"] - row["signals_score"] for row in rows} == pytest.approx(
        {key: row["score"] / 0.42 for key, row in plain.items()}, abs=1e-4
    )
    assert {row["stage"] for row in rows} == {"lexical"}
    assert [row["id"] for row in rows] != list(plain)
    assert {row["signals_score"] for row in plain.values()} == {None}


def test_without_a_blend_signals_count_beside_the_last_stage_or_the_ranks(news):
    signals = {"votes": {"log": True, "weight": 1e-9}}
    for stages in (["dense"], ["lexical"], ["dense", "lexical"]):
        for blend in ({}, {"maxsim": 1}):
            plain = news(stages=stages, blend=blend)
            rows = news(stages=stages, blend=blend, signals=signals)
            assert [row["id"] for row in rows] == [row["id"] for row in plain], stages
    strong = news(blend={}, signals={"votes": {"weight": 500}})
    votes = told(news, "coalesce(votes, 17.4)")
    assert votes[strong[0]["id"]] == max(votes.values())


def test_signals_order_the_callers_candidates(news):
    ids = [row["id"] for row in news(top_k=9)][::-1]
    plain = [row["id"] for row in news(keys=ids, query_embedding=None, stages=["dense"])]
    assert plain == ids
    small, large = (
        news(keys=ids, query_embedding=None, stages=["dense"], signals={"price": {"weight": w}})
        for w in (1e-9, 100)
    )
    assert [row["id"] for row in small] == ids
    prices = told(news, "price")
    assert [row["id"] for row in large] == sorted(ids, key=lambda key: -prices[key])


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"nope": {"weight": 1}}, 'table documents has no column "nope"'),
        ({"votes": 1}, 'signals: "votes" is 1, expected an object'),
        ({"votes": {"log": True}}, '"weight" of "votes" is missing, expected a number from -1000'),
        ({"votes": {"weight": "x"}}, '"weight" of "votes" is "x", expected a number'),
        ({"votes": {"weight": 2000}}, '"weight" of "votes" is 2000, expected a number from -1000'),
        ({"votes": {"wait": 1}}, '"votes" has "wait", which is not among its words: weight'),
        (
            {"votes": {"decay": "90 days", "weight": 1}},
            'column "votes" is of type integer, expecte',
        ),
        ({"published": {"decay": 9, "weight": 1}}, 'column "published" is of type date, expected'),
        ({"published": {"log": True, "weight": 1}}, 'column "published" is of type date, expected'),
        ({"lang": {"weight": 1}}, 'column "lang" is of type text, expected a number'),
        ({"pinned": {"weight": 1}}, 'column "pinned" is of type boolean, expected a number'),
        ({"published": {"decay": "soon", "weight": 1}}, '"decay" of "published" is "soon", exp'),
        ({"published": {"decay": "-1 day", "weight": 1}}, 'interval such as "90 days" above 0'),
        ({"price": {"decay": 0, "origin": 1, "weight": 1}}, "is 0, expected a number above 0"),
        ({"price": {"decay": 1, "weight": 1}}, '"origin" of "price" is missing, expected a number'),
        (
            {"published": {"decay": "1 day", "origin": "then", "weight": 1}},
            '"origin" of "published" is "then", expected a time',
        ),
        (
            {"published": {"decay": "1 day", "offset": "-1 day", "weight": 1}},
            '"offset" of "published" is "-1 day", expected an interval such as "90 days" of 0 or m',
        ),
        (
            {"published": {"decay": "1 day", "shape": "round", "weight": 1}},
            '"shape" of "published" is "round", expected exponential, linear or gauss',
        ),
        ({"votes": {"log": False, "weight": 1}}, '"log" of "votes" is false, expected true'),
        ({"votes": {"log": True, "sqrt": True, "weight": 1}}, '"votes" has "log", which is not'),
        ({"pinned": {"boost": 1}}, 'the boost of "pinned" has no condition'),
        (
            {"pinned": {"equals": "so", "boost": 1}},
            'column "pinned" is of type boolean, which "so"',
        ),
        ({"pinned": {"~": 1, "boost": 1}}, '"~" with 1 is not an operator'),
        ({"pinned": {"equals": True, "boost": None}}, '"boost" of "pinned" is null, expected'),
        ({"boosts": {"boost": 1}}, '"when" of "boosts" is missing, expected a filter such as'),
        ({"boosts": {}}, '"when" of "boosts" is missing, expected a filter such as'),
        ({"boosts": {"when": {}, "weight": 1}}, '"boosts" has "weight", which is not among'),
    ],
)
def test_a_wrong_signal_is_named_by_a_search_and_by_a_reranker(news, signals, message):
    for statement in (
        "SELECT FROM pgrerank.documents_search('cat', stages => '{lexical}', signals => %s)",
        "SELECT FROM pgrerank.documents_search('zebra', stages => '{lexical}', signals => %s)",
        "SELECT pgrerank.alter_reranker('documents', signals => %s)",
    ):
        with pytest.raises(psycopg.Error) as error:
            news.connection.execute(statement, [Jsonb(signals)])
        assert message in str(error.value)


def test_values_that_are_none_or_out_of_range_add_nothing(db, source):
    db.execute("ALTER TABLE documents ADD n float8, ADD m float8, ADD at timestamptz")
    db.execute(
        "INSERT INTO documents (title, n, m, at) VALUES ('cat', 'NaN', 1, 'infinity'),"
        " ('cat', 'Infinity', 1, '-infinity'), ('cat', 1e300, 1, now()), ('cat', 1e-300, 1, NULL),"
        " ('cat', 2, 1, '4000-01-01')"
    )
    source.create(log_sample=0)
    source.encode_by_hand()
    search = (
        "SELECT signals_score::float8 FROM pgrerank.documents_search('cat', stages => '{lexical}',"
        " signals => %s) ORDER BY id"
    )
    rows = db.execute(search, [Jsonb({"n": {"weight": 1}})]).fetchall()
    assert [score for (score,) in rows] == [0, 0, 0, 0, -1, 1]
    rows = db.execute(search, [Jsonb({"m": {"weight": 1}})]).fetchall()
    assert [score for (score,) in rows] == [0] * 6
    rows = db.execute(search, [Jsonb({"at": {"decay": "1 day", "weight": 1}})]).fetchall()
    far = -1 / math.sqrt(3)
    assert [score for (score,) in rows] == pytest.approx([0, far, far, -3 * far, 0, far], abs=1e-3)


columns = st.sampled_from(["votes", "price", "extra.year"])
weights = st.floats(-3, 3, allow_nan=False).map(lambda value: round(value, 3))


@PROPERTY
@given(
    names=st.lists(columns, unique=True, max_size=3),
    stages=st.sampled_from([["dense"], ["lexical"], ["dense", "lexical"]]),
    blend=st.sampled_from([None, {}, {"dense": 1}, {"maxsim": 2}]),
    candidates=st.integers(1, 50),
    top_k=st.integers(1, 50),
)
def test_with_all_weights_0_the_order_is_todays_to_the_bit(
    news, names, stages, blend, candidates, top_k
):
    arguments = {"stages": stages, "candidates": candidates, "top_k": top_k, "blend": blend}
    signals = {name: {"weight": 0} for name in names}
    signals["pinned"] = {"equals": True, "boost": 0}
    assert news(**arguments, signals=signals) == news(**arguments)


@PROPERTY
@given(
    signals=st.dictionaries(columns, weights.map(lambda weight: {"weight": weight})),
    stages=st.sampled_from([["dense"], ["lexical"], ["dense", "lexical"]]),
    blend=st.sampled_from([None, {}, {"dense": 1}]),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_growing_top_k_extends_and_never_reorders(news, signals, stages, blend, sizes):
    less, more = (
        news(top_k=size, candidates=30, stages=stages, blend=blend, signals=signals)
        for size in sorted(sizes)
    )
    assert more[: len(less)] == less
