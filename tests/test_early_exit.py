"""How far the cross-encoder reads: no further than a document may still come among the first."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgrerank.evaluation.evaluate import evaluate, search_all
from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.pools import Sizes, pool_of
from pgrerank.evaluation.traces import ask
from pgrerank.evaluation.tune import apply, tune
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements
from pgrerank.stages import DEFAULT_BLEND
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

QUERIES = {"q0": "the cat and the pool", "q1": "bread with salt", "q2": "a day of water"}
WORDS = ["cat", "pool", "bread", "water", "salt", "flour", "connection", "day"]
BLENDS = [
    {},
    DEFAULT_BLEND,
    {"dense": 1, "cross_encoder": 0.05},
    {"dense": 0.2, "lexical": 0.2, "cross_encoder": 1},
]
HEAD = 60


@pytest.fixture(scope="module")
def read_dsn(make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Sixty-four documents, two of them without a text, that a worker has encoded."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute(
            "INSERT INTO documents (title, body)"
            " SELECT a.word, b.word || ' with ' || a.word || ' ' || length(a.word || b.word)"
            " FROM unnest(%s::text[]) a (word), unnest(%s::text[]) b (word) LIMIT 61",
            (WORDS, WORDS),
        )
        connection.execute("UPDATE documents SET title = ' ', body = NULL WHERE id IN (9, 33)")
        source.models(**tiny_models)
        source.create(timeout="20 s", candidates=HEAD, maxsim_top=HEAD, log_sample=1)
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0")
            yield dsn


@pytest.fixture
def reader(read_dsn):
    with psycopg.connect(make_conninfo(read_dsn), autocommit=True) as connection:
        yield connection


def rows_of(connection, query, **arguments):
    """The rows of a strict search as explained: key, the cross-encoder's score, what was scored."""
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return connection.execute(
        "SELECT key, cross_encoder_score, scored, stage FROM pgrerank.explain_search('documents',"
        f" %(query)s, strict => true, alignments => false{named}) ORDER BY rank",
        {"query": query, **arguments},
    ).fetchall()


@pytest.mark.parametrize("blend", BLENDS)
def test_a_search_reads_what_the_rule_says_and_orders_by_it(reader, blend):
    variant = Variant("documents", blend=blend, timeout="20 s")
    wide = ask(reader, variant, QUERIES, stages=["dense", "lexical", "maxsim"])
    deep = ask(reader, variant, QUERIES)
    pools = {query: pool_of(wide[query], deep[query]) for query in QUERIES}
    read = set()
    for query, text in QUERIES.items():
        for top_k, early_exit in ((3, 0.01), (3, 0.5), (3, 5.0), (8, 0.5), (8, 20.0), (60, 0.5)):
            rows = rows_of(reader, text, top_k=top_k, early_exit=early_exit, blend=Jsonb(blend))
            sizes = Sizes(HEAD, HEAD, early_exit=early_exit, top_k=top_k)
            assert [row[0] for row in rows] == pools[query].order(sizes, blend)[:top_k]
            known = pools[query].share_read(sizes, blend) * HEAD
            assert 0 <= known - rows[0][2]["cross_encoder"] <= 2, "two have no text"
            read.add(round(known))
    assert len(read) > 2, "each stops elsewhere"


def test_the_whole_head_is_read_where_asked_or_where_all_of_it_is_returned(reader):
    rows = rows_of(reader, QUERIES["q0"], early_exit=0)
    assert rows[0][2]["cross_encoder"] in (HEAD - 2, HEAD - 1, HEAD)
    assert rows_of(reader, QUERIES["q0"], top_k=HEAD)[0][2] == rows[0][2]
    assert rows[0][2]["dense"] >= HEAD
    assert {row[3] for row in rows} == {"cross_encoder"}


def test_a_stage_that_could_hardly_turn_anything_round_reads_nothing(reader):
    decisive = Jsonb({"dense": 1, "cross_encoder": 1e-6})
    rows = rows_of(reader, QUERIES["q1"], blend=decisive, top_k=5)
    assert rows[0][2] == {"dense": HEAD, "cross_encoder": 0}
    assert {(row[1], row[3]) for row in rows} == {(None, "dense")}
    one = rows_of(reader, QUERIES["q1"], blend=decisive, keys=["1"], top_k=5)
    assert one[0][1] is not None, "the only document gets its score"
    asked = rows_of(reader, QUERIES["q1"], blend=Jsonb({"dense": 1}), stages=["cross_encoder"])
    assert asked[0][2]["cross_encoder"] > 50, "its scores are wanted for their own sake"


def test_a_role_is_told_and_the_log_remembers_how_much_was_read(reader):
    reader.execute("DELETE FROM pgrerank.searches")
    scored = reader.execute(
        "SELECT pgrerank.trace('documents', %s, top_k => 3, early_exit => 30) -> 'scored'",
        (QUERIES["q0"],),
    ).fetchone()[0]
    assert scored["cross_encoder"] <= 8
    reader.execute(
        "SELECT FROM pgrerank.documents_search(%s, 3, early_exit => 30)", (QUERIES["q0"],)
    )
    assert reader.execute("SELECT scored, arguments FROM pgrerank.searches").fetchone() == (
        scored,
        {"top_k": 3, "early_exit": 30},
    )


@pytest.mark.parametrize("value", ["-1", "'NaN'", "1001", "'Infinity'"])
def test_an_early_exit_that_is_none_is_refused(reader, value):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"early_exit is .* 0 to 1000"):
        reader.execute(f"SELECT FROM pgrerank.documents_search('cat', early_exit => {value})")


def test_a_head_in_which_nothing_has_a_text_is_left_as_it_stood(reader):
    rows = rows_of(reader, "cat", keys=["9", "33"], top_k=1)
    assert (rows[0][1], rows[0][2]["cross_encoder"]) == (None, 0)


def test_tuning_finds_how_early_it_may_stop_for_what_the_judgements_say(reader):
    pairs = [(one, other) for one in WORDS for other in WORDS if one != other]
    queries = {f"{one} {other}": f"the {one} and the {other}" for one, other in pairs}
    whole = ask(reader, Variant("documents", timeout="20 s"), queries)
    judged = Judgements(queries, {query: {trace.keys[9]: 1} for query, trace in whole.items()})
    reader.execute("SELECT pgrerank.alter_reranker('documents', early_exit => 30)")
    searched = search_all(reader, Variant("documents", timeout="20 s"), judged)
    tuning = tune(reader, searched, max_candidates=HEAD, max_maxsim_top=HEAD)
    [found] = [one for one in tuning["recommendations"] if one["setting"] == "early_exit"]
    assert 0 <= found["value"] < 30
    assert 0 < found["time_share"] <= 1
    assert found["gain_kept"] >= 0.99
    assert f"early_exit {found['value']:g} has the cross-encoder read" in found["text"]
    evaluation = evaluate(reader, searched, qrels="made up", tuning=tuning)
    assert apply(reader, evaluation)["early_exit"] == found["value"]
    means = []
    for early_exit in (0, found["value"]):
        rows = {
            query: rows_of(reader, text, early_exit=early_exit) for query, text in queries.items()
        }
        run = {query: [row[0] for row in some] for query, some in rows.items()}
        values = measure_queries(judged.qrels, run, ["nDCG@10"])["nDCG@10"].values()
        means.append(sum(values) / len(values))
    assert means[0] - means[1] <= 0.002 + 1e-6
