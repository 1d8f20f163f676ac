"""Evaluation, sizes and blends of a reranker with a live worker and small models."""

from __future__ import annotations

import json

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.errors import EvaluationError, SettingsError
from pgrerank.evaluation import measure, measure_queries
from pgrerank.evaluation.blending import find_weights
from pgrerank.evaluation.calibration import calibrate
from pgrerank.evaluation.evaluate import evaluate, search_all
from pgrerank.evaluation.orders import warnings
from pgrerank.evaluation.pools import Pool, Sizes, pool_of, with_signals
from pgrerank.evaluation.reliability import reliability
from pgrerank.evaluation.result import Tuning
from pgrerank.evaluation.signals import find_signals
from pgrerank.evaluation.traces import SignalPart, ask
from pgrerank.evaluation.tune import apply, tune
from pgrerank.evaluation.variant import Variant, parse_variant
from pgrerank.judgements import Judgements, save_set
from pgrerank.stages import DEFAULT_BLEND, STAGES
from tests.helpers.evaluations import orders
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

WORDS = ["cat", "pool", "bread", "water", "salt", "flour", "connection", "day"]
BLENDS = [
    {},
    DEFAULT_BLEND,
    {"dense": 1},
    {"dense": 0.3, "maxsim": 0.7},
    {"maxsim": 1, "cross_encoder": 2},
]
DOCUMENTS = 40
PLANTED = {"9": 1, "17": 1, "25": 1, "33": 1}


def judged() -> Judgements:
    queries = {f"q{i}": f"the {WORDS[i % 8]} and {WORDS[i // 8 + 1]}" for i in range(12)}
    return Judgements(
        queries, {f"q{i}": {str(i + 1): 2, str(2 * i + 5): 1, "999": 0} for i in range(12)}
    )


@pytest.fixture(scope="module")
def asked_dsn(make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Forty documents that a worker has encoded and stays up for; a set of judgements."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute("ALTER TABLE documents ADD answers int, ADD chance int")
        connection.execute(
            "INSERT INTO documents (title, body) SELECT a.word, b.word || ' with ' || a.word"
            " FROM unnest(%s::text[]) a (word), unnest(%s::text[]) b (word) LIMIT %s",
            (WORDS, WORDS, DOCUMENTS - 3),
        )
        connection.execute(
            "UPDATE documents SET answers = (id::text = ANY (%s))::int, chance = id * id %% 7",
            (list(PLANTED),),
        )
        source.models(**tiny_models)
        source.create(timeout="20 s", candidates=20, maxsim_top=5)
        save_set(connection, "dev", judged())
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            yield dsn


@pytest.fixture
def asked(asked_dsn):
    """A connection there; the reranker has its first settings again afterwards."""
    with psycopg.connect(asked_dsn, autocommit=True) as connection:
        yield connection
        connection.execute(
            "SELECT pgrerank.alter_reranker('documents', candidates => 20, maxsim_top => 5,"
            " blend => %s, signals => '{}', group_by => '', diversity => 0)",
            (Jsonb(DEFAULT_BLEND),),
        )


def search(connection, query: str, **arguments) -> list[str]:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    rows = connection.execute(
        f"SELECT id FROM pgrerank.documents_search(%(query)s, strict => true{named})",
        {"query": query, **arguments},
    )
    return [str(key) for (key,) in rows]


def test_each_order_is_measured_as_searches_return_it(asked):
    found = evaluate(asked, search_all(asked, Variant("documents"), judged()), qrels="dev")
    ways = {
        "dense, exact": {"stages": ["dense"], "recall": "exact"},
        "dense": {"stages": ["dense"]},
        "+ BM25": {"stages": ["dense", "lexical"]},
        "+ MaxSim": {"stages": ["dense", "lexical", "maxsim"]},
        "+ cross-encoder": {},
    }
    assert [order["name"] for order in found["orders"]] == list(ways)
    before = None
    for order, way in zip(found["orders"], ways.values(), strict=True):
        run = {
            query: search(asked, text, top_k=20, **way) for query, text in judged().queries.items()
        }
        assert order["measures"] == pytest.approx(
            measure(judged().qrels, run, found["measures"]), abs=1e-6
        )
        assert 0 < order["stage_ms"]["p50"] <= order["stage_ms"]["p95"]
        assert order["stage_ms"]["p50"] <= order["total_ms"]["p50"]
        values = measure_queries(judged().qrels, run, ["nDCG@10"])["nDCG@10"]
        if before is not None:
            assert order["worse"] == sum(values[query] < before[query] - 1e-9 for query in values)
            assert order["better"] == sum(values[query] > before[query] + 1e-9 for query in values)
        before = values
    assert [point["ef_search"] for point in found["hnsw"]] == [40, 100, 200, 400]
    assert all(0.9 < point["recall"] <= 1 for point in found["hnsw"])
    first = found["per_query"][0]
    assert (first["id"], first["relevant"]) == ("q0", 2)
    assert {shown["relevance"] for shown in first["top"]["+ MaxSim"]} <= {None, 0, 1, 2}
    assert all(shown["text"] for shown in first["top"]["+ MaxSim"])


def test_what_groups_and_diversity_make_of_the_order_is_measured_after_the_stages(asked):
    plain = evaluate(asked, search_all(asked, Variant("documents"), judged()), qrels="dev")
    asked.execute(
        "SELECT pgrerank.alter_reranker('documents', group_by => 'title', diversity => 0.5)"
    )
    found = evaluate(asked, search_all(asked, Variant("documents"), judged()), qrels="dev")
    *stages, last = found["orders"]
    assert [(one["name"], one["measures"]) for one in stages] == [
        (one["name"], one["measures"]) for one in plain["orders"]
    ]
    assert (last["name"], last["against"]) == ("+ groups, diversity", "+ cross-encoder")
    run = {
        query: search(asked, text, top_k=10, early_exit=0)
        for query, text in judged().queries.items()
    }
    assert last["measures"]["nDCG@10"] == pytest.approx(
        measure(judged().qrels, run, ["nDCG@10"])["nDCG@10"], abs=1e-6
    )
    assert 0 < last["stage_ms"]["p50"] < last["total_ms"]["p50"]
    assert found["per_query"][0]["top"][last["name"]]
    assert found["settings"]["diversity"] == 0.5


@pytest.mark.parametrize("blend", BLENDS)
def test_what_other_sizes_and_blends_would_make_is_what_searches_then_make(asked, blend):
    variant, queries = Variant("documents", timeout="20 s"), judged().queries
    wide = ask(asked, variant, queries, candidates=40, stages=["dense", "lexical", "maxsim"])
    deep = ask(asked, variant, queries, candidates=40, maxsim_top=40)
    pools = {query: pool_of(wide[query], deep[query]) for query in queries}
    asked.execute("SELECT pgrerank.alter_reranker('documents', blend => %s)", (Jsonb(blend),))
    for candidates, maxsim_top in ((40, 40), (40, 7), (12, 5)):
        for query, text in queries.items():
            sizes = {"candidates": candidates, "maxsim_top": maxsim_top}
            found = search(asked, text, top_k=10, early_exit=0, **sizes)
            assert pools[query].order(Sizes(candidates, maxsim_top), blend)[:10] == found


def test_a_blended_search_is_ordered_by_its_score(asked):
    asked.execute(
        "SELECT pgrerank.alter_reranker('documents', blend => %s)",
        (Jsonb({"dense": 0.5, "maxsim": 0.2, "cross_encoder": 0.3}),),
    )
    rows = asked.execute(
        "SELECT score, stage, cross_encoder_rank FROM pgrerank.documents_search('the cat', 20)"
    ).fetchall()
    head = [score for score, stage, _ in rows if stage == "cross_encoder"]
    assert len(head) == 5
    assert head == sorted(head, reverse=True)
    assert [rank for *_, rank in rows[:5]] == [1, 2, 3, 4, 5]
    assert sum(head) == pytest.approx(0, abs=1e-4), "scores are centred within the query"


@pytest.mark.parametrize(
    "blend",
    [
        "[]",
        "3",
        '{"dense": -1}',
        '{"bits": 1}',
        '{"dense": "1"}',
        '{"maxsim": 0}',
        '{"dense": null}',
    ],
)
def test_a_blend_that_is_none_is_refused(asked, blend):
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match=r"blend is .* or weights by stage"
    ):
        asked.execute("SELECT pgrerank.alter_reranker('documents', blend => %s)", (blend,))


def test_tuning_finds_sizes_and_a_blend_and_writes_them(asked):
    searched = search_all(asked, Variant("documents"), judged())
    tuning = tune(asked, searched, max_candidates=40, max_maxsim_top=20)
    evaluation = evaluate(asked, searched, qrels="dev", tuning=tuning)
    depth = tuning["depth"]
    assert [point["size"] for point in depth["candidates"]] == [10, 20, 30, 40]
    assert [point["size"] for point in depth["maxsim_top"]] == [0, 5, 10, 20]
    quality = {order["name"]: order["measures"]["nDCG@10"] for order in evaluation["orders"]}
    by_size = {point["size"]: point["quality"] for point in depth["maxsim_top"]}
    assert by_size[0] == pytest.approx(quality["+ MaxSim"])
    assert by_size[5] == pytest.approx(quality["+ cross-encoder"])
    assert all(point["ms"] > 0 for points in depth.values() for point in points)
    blend = tuning["blend"]
    assert blend["present"] == pytest.approx(quality["+ cross-encoder"])
    assert 0 <= blend["quality"] <= 1
    recommended = {"gain_kept": 1, "time_share": 0.5, "text": ""}
    better = Tuning(
        depth=depth,
        recommendations=[
            {"setting": "maxsim_top", "value": 10, "gain": 0.1, "p": 0.04, **recommended},
            {"setting": "candidates", "value": 40, "gain": 0.1, "p": 0.06, **recommended},
        ],
        blend={**blend, "p": 0.01, "quality": blend["present"] + 0.1},
        signals=None,
        warnings=[],
    )
    chosen = apply(asked, {**evaluation, "tuning": better})
    assert chosen == {"maxsim_top": 10, "blend": blend["weights"]}
    assert asked.execute(
        "SELECT candidates, maxsim_top, blend FROM pgrerank.rerankers"
    ).fetchone() == (20, 10, blend["weights"])


SIGNALS = {
    "answers": [{"weight": 0}, {"equals": 99, "boost": 0.1}],
    "chance": {"weight": 0},
    "boosts": {"when": {"title": "cat"}, "boost": 0},
}


@pytest.mark.parametrize("blend", [{}, {"cross_encoder": 1}, DEFAULT_BLEND])
def test_what_other_weights_of_signals_would_make_is_what_searches_then_make(asked, blend):
    variant, queries = Variant("documents", timeout="20 s"), judged().queries
    asked.execute("SELECT pgrerank.alter_reranker('documents', blend => %s)", (Jsonb(blend),))
    wide = ask(asked, variant, queries, candidates=40, stages=["dense", "lexical", "maxsim"])
    deep = ask(asked, variant, queries, candidates=40, maxsim_top=40)
    said = ask(asked, variant, queries, stages=["dense", "lexical"], signals=SIGNALS)
    weights = (0.4, 1.5, -0.2, 0.7)
    signals = {
        "answers": [{"weight": 0.4}, {"equals": 99, "boost": 1.5}],
        "boosts": {"when": {"title": "cat"}, "boost": -0.2},
        "chance": {"weight": 0.7},
    }
    for query, text in queries.items():
        parts = said[query].signals
        assert [(part.name, part.number, part.weight) for part in parts] == [
            *(("boosts", 1, 0), ("chance", 1, 0), ("answers", 1, 0), ("answers", 2, 0.1)),
        ]
        by_name = (weights[2], weights[3], weights[0], weights[1])
        pool = with_signals(pool_of(wide[query], deep[query]), (said[query].keys, parts), by_name)
        found = search(asked, text, top_k=20, early_exit=0, signals=Jsonb(signals))
        assert pool.order(Sizes(20, 5), blend)[:20] == found


def test_tuning_finds_the_weight_of_a_signal_that_tells_and_gives_none_to_chance(asked, asked_dsn):
    asked.execute(
        "SELECT pgrerank.alter_reranker('documents', candidates => 40, signals => %s)",
        (Jsonb(SIGNALS),),
    )
    queries = judged().queries
    save_set(asked, "planted", Judgements(queries, dict.fromkeys(queries, PLANTED)))
    arguments = ["documents", "--dsn", asked_dsn, "--qrels", "planted", "--apply", "--json"]
    done = CliRunner().invoke(app, ["tune", *arguments, "--max-maxsim-top", "5"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["tuning"]["signals"]
    assert found["weights"]["answers"] > 0.1
    assert {found["weights"][name] for name in ("answers 2", "chance", "boosts")} == {0}
    assert found["quality"] > found["present"] + 0.1
    assert found["p"] < 0.05
    [(stored,)] = asked.execute("SELECT signals FROM pgrerank.rerankers").fetchall()
    assert stored["answers"] == [
        {"weight": found["weights"]["answers"]},
        {"equals": 99, "boost": 0},
    ]
    assert stored["chance"] == {"weight": 0}
    assert stored["boosts"] == {"when": {"title": "cat"}, "boost": 0}


def test_signals_that_are_chance_are_given_no_weight():
    chance = np.random.default_rng(2)
    values = chance.normal(size=(3, 60))
    parts = [SignalPart(name, 1, 0.5, np.zeros(0)) for name in ("a", "b", "c")]
    setting = {part.name: {"weight": part.weight} for part in parts}
    found = find_signals(parts, setting, lambda weights: 0.5 + 0.1 * np.tanh(weights @ values))
    assert found["weights"] == {"a": 0, "b": 0, "c": 0}
    assert found["signals"] == {name: {"weight": 0} for name in "abc"}


@pytest.fixture
def asked_with_bits(asked):
    asked.execute("SELECT pgrerank.alter_reranker('documents', maxsim_bit_top => 6)")
    wait_for(asked, "pending = 0 AND next_generation IS NULL")
    yield asked
    asked.execute("SELECT pgrerank.alter_reranker('documents', maxsim_bit_top => 0)")
    wait_for(asked, "pending = 0 AND next_generation IS NULL")


def test_tuning_measures_the_stages_that_the_reranker_runs(asked_with_bits):
    """Bits choose what MaxSim scores, in the curves as in the search itself."""
    asked = asked_with_bits
    searched = search_all(asked, Variant("documents"), judged())
    assert searched.traces["q0"].stages == [stage for stage in STAGES if stage != "listwise"]
    tuning = tune(asked, searched, max_candidates=40, max_maxsim_top=20)
    evaluation = evaluate(asked, searched, qrels="dev", tuning=tuning)
    quality = {order["name"]: order["measures"]["nDCG@10"] for order in evaluation["orders"]}
    by_size = {point["size"]: point["quality"] for point in tuning["depth"]["maxsim_top"]}
    assert by_size[0] == pytest.approx(quality["+ MaxSim"])
    assert by_size[5] == pytest.approx(quality["+ cross-encoder"])
    wide = search_all(asked, Variant("documents", candidates=40), judged())
    run = {query: trace.order("cross_encoder") for query, trace in wide.traces.items()}
    values = measure_queries(judged().qrels, run, ["nDCG@10"])["nDCG@10"].values()
    by_candidates = {point["size"]: point["quality"] for point in tuning["depth"]["candidates"]}
    assert by_candidates[40] == pytest.approx(sum(values) / len(values))


def test_a_blend_that_chance_may_have_made_is_not_written(asked):
    searched = search_all(asked, Variant("documents"), judged())
    evaluation = evaluate(asked, searched, qrels="dev")
    blend = {
        "weights": {"dense": 1},
        "name": "the blend found",
        "quality": 0.9,
        "present": 0.8,
        "p": 0.3,
    }
    tuning = Tuning(depth={}, recommendations=[], blend=blend, signals=None, warnings=[])
    assert apply(asked, {**evaluation, "tuning": tuning}) == {}
    assert apply(asked, evaluation) == {}


@pytest.mark.parametrize(("queries", "said"), [(49, False), (50, True)])
def test_a_gain_that_may_be_chance_is_told_where_queries_are_many(queries, said):
    first, second = orders()[:2]
    second |= {"gain": 0.01, "p": 0.4}
    found = warnings([first | {"stage": "dense"}, second | {"stage": "maxsim"}], "nDCG@10", queries)
    assert ["may gain nothing" in warning for warning in found] == [True] * said


def test_a_stage_that_hurts_is_named(asked):
    found = evaluate(asked, search_all(asked, Variant("documents"), judged()), qrels="dev")
    falling = [order for order in found["orders"][2:] if order["gain"] < 0]
    *stages, missing = found["warnings"]
    hurting = [warning for warning in stages if "hurts" in warning]
    assert len(stages) == len(falling)
    assert missing.startswith("1 of ")
    assert "not in the source, such as 999" in missing
    for order, warning in zip(falling, hurting, strict=True):
        assert warning.startswith(f"{order['name']} hurts: nDCG@10")
        assert f"worse on {order['worse']} of 12 queries" in warning


def test_variants_are_written_short():
    assert parse_variant("a") == Variant("a")
    assert parse_variant("a@3") == Variant("a", 3)
    assert parse_variant('a:candidates=5,stages=dense+maxsim,blend={"dense":1,"maxsim":2}') == (
        Variant("a", candidates=5, stages=["dense", "maxsim"], blend={"dense": 1, "maxsim": 2})
    )
    for wrong, message in (("a@x", "names no"), ("a:top=3", "'top'"), ("a:candidates=x", "'x'")):
        with pytest.raises(SettingsError, match=message):
            parse_variant(wrong)


@pytest.fixture
def not_calibrated(asked):
    yield asked
    asked.execute("DELETE FROM pgrerank.calibrations")


def test_relevance_is_calibrated_on_judgements_and_its_errors_are_told(
    not_calibrated, asked_dsn, tmp_path
):
    asked, run = not_calibrated, CliRunner()
    before = evaluate(asked, search_all(asked, Variant("documents"), judged()), qrels="dev")
    assert before["reliability"] is None
    done = run.invoke(
        app, ["calibrate", "documents", "--dsn", asked_dsn, "--qrels", "dev", "--json"]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert rows[0]["stages"] == ["dense", "lexical", "maxsim", "cross_encoder"]
    assert all(0 <= row["ece"] <= 1 and row["queries"] == 12 for row in rows)
    assert "min_relevance => " in done.stderr
    stored = asked.execute("SELECT stages, slopes, ece FROM pgrerank.calibrations").fetchall()
    assert sorted(stored) == sorted((row["stages"], row["slopes"], row["ece"]) for row in rows)
    searched = search_all(asked, Variant("documents"), judged())
    returned = {
        query: asked.execute(
            "SELECT id::text, relevance FROM pgrerank.documents_search(%s, early_exit => 0)",
            (text,),
        ).fetchall()
        for query, text in judged().queries.items()
    }
    pairs = [
        (relevance, judged().qrels[query].get(key, 0) > 0)
        for query, rows in returned.items()
        for key, relevance in rows
    ]
    wanted = reliability(*zip(*pairs, strict=True))
    found = evaluate(asked, searched, qrels="dev")["reliability"]
    assert found["documents"] == wanted["documents"] == 120
    assert found["ece"] == pytest.approx(wanted["ece"], abs=1e-6)
    arguments = ["--dsn", asked_dsn, "--qrels", "dev"]
    done = run.invoke(app, ["evaluate", "documents", *arguments, "--report", str(tmp_path)])
    assert f"ECE {found['ece']:.4f}" in done.stderr
    assert "Reliability diagram" in (tmp_path / "report.html").read_text("utf-8")
    done = run.invoke(app, ["evaluate", "documents:min_relevance=0.999", *arguments])
    assert done.exit_code == 1
    assert "no search found a document" in done.stderr


def test_few_queries_calibrate_nothing(asked):
    few = Judgements(
        dict(list(judged().queries.items())[:9]), dict(list(judged().qrels.items())[:9])
    )
    with pytest.raises(EvaluationError, match="9 judged queries are too few to calibrate by"):
        calibrate(asked, Variant("documents"), few)


def test_an_unknown_generation_is_named(asked):
    with pytest.raises(psycopg.errors.UndefinedObject, match=r"no generation 99") as raised:
        search_all(asked, Variant("documents", 99), judged())
    numbers = asked.execute("SELECT number FROM pgrerank.generations ORDER BY 1").fetchall()
    known = ", ".join(str(number) for (number,) in numbers)
    assert raised.value.diag.message_hint == f"There are: {known}."


def test_without_a_worker_nothing_is_measured(db, source):
    source.create(timeout="50 ms")
    source.encode_by_hand()
    with pytest.raises(
        EvaluationError, match=r"searches are degraded: no worker .*pgrerank worker"
    ):
        search_all(db, Variant("documents"), judged())


def test_the_command_prints_reports_and_compares(asked, asked_dsn, tmp_path):
    run = CliRunner()
    arguments = ["evaluate", "documents", "--dsn", asked_dsn, "--qrels", "dev"]
    done = run.invoke(app, [*arguments, "--queries", "6", "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert "+ cross-encoder" in done.stdout
    assert "6 queries" in done.output
    assert sorted(path.stem for path in (tmp_path / "runs").iterdir()) == [
        *("bm25", "cross-encoder", "dense", "dense-exact", "maxsim"),
    ]
    done = run.invoke(
        app,
        [
            *arguments,
            "--json",
            "--report",
            str(tmp_path / "a"),
            "--compare",
            "documents:maxsim_top=2",
        ],
    )
    assert done.exit_code == 0, done.output
    one, other = json.loads(done.stdout)
    assert (one["settings"]["maxsim_top"], other["settings"]["maxsim_top"]) == (5, 2)
    assert asked_dsn not in (tmp_path / "a" / "report.html").read_text("utf-8")
    assert {"report.html", "evaluation.json", "stages.csv"} <= {
        path.name for path in (tmp_path / "a").iterdir()
    }
    done = run.invoke(app, [*arguments, "--compare", str(tmp_path / "a" / "evaluation.json")])
    assert done.exit_code == 0, done.output
    done = run.invoke(app, ["evaluate", "documents", "--dsn", asked_dsn, "--qrels", "nothing"])
    assert done.exit_code == 1
    assert "nothing" in done.output
    assert "dev" in done.output


def test_the_tune_command_writes_what_it_recommends(asked, asked_dsn):
    done = CliRunner().invoke(
        app,
        [
            *("tune", "documents", "--dsn", asked_dsn, "--qrels", "dev", "--apply"),
            *("--max-candidates", "30", "--max-maxsim-top", "10"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "reranker documents: " in done.output
    assert "best: the " in done.output


def test_judgements_are_the_owners(asked, asked_dsn, make_role):
    role = make_role()
    with (
        psycopg.connect(make_conninfo(asked_dsn, user=role, password=role)) as other,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        other.execute("SELECT * FROM pgrerank.qrels")


def test_ef_search_is_a_setting(asked):
    with asked.transaction():
        asked.execute("SET LOCAL pgrerank.ef_search = 7")
        asked.execute("SELECT pgrerank._widen_hnsw(100, 1000)")
        assert asked.execute("SHOW hnsw.ef_search").fetchone() == ("7",)


def test_texts_are_cross_encoded_in_their_order(asked):
    texts = ["a cat", "", "bread and salt"]
    [(scores,)] = asked.execute(
        "SELECT pgrerank.cross_encode('reranker', 'the cat', %s)", (texts,)
    ).fetchall()
    again = [
        asked.execute("SELECT (pgrerank.cross_encode('reranker', 'the cat', %s))[1]", ([text],))
        for text in texts
    ]
    assert scores == pytest.approx([cursor.fetchone()[0] for cursor in again], abs=1e-4)
    assert asked.execute("SELECT pgrerank.cross_encode('reranker', 'x', '{}')").fetchone() == ([],)
    with pytest.raises(psycopg.errors.UndefinedObject, match='model "none" is not registered'):
        asked.execute("SELECT pgrerank.cross_encode('none', 'x', '{a}')")
    for arguments in (
        *("'reranker', 'x', '{a,NULL}'", "'reranker', 'x', '{{a},{NULL}}'", "NULL, 'x', '{a}'"),
        "'reranker', 'x', '{a}', NULL",
    ):
        with pytest.raises(psycopg.errors.NullValueNotAllowed, match="cross_encode: the model, th"):
            asked.execute(f"SELECT pgrerank.cross_encode({arguments})")
    two = asked.execute("SELECT pgrerank.cross_encode('reranker', 'the cat', '{{a cat},{\"\"}}')")
    assert two.fetchone()[0] == pytest.approx(scores[:2], abs=1e-4)


def test_weights_are_found_where_a_blend_is_better():
    """Recall knows half of the answers, MaxSim the other half: only both together know all."""
    chance = np.random.default_rng(5)
    pools, qrels = {}, {}
    for number in range(40):
        recall, maxsim = chance.normal(size=(2, 30))
        answers = [3, 4]
        recall[3] += 3 * (number % 2)
        maxsim[3] += 3 * (1 - number % 2)
        recall[4] += 1.5
        maxsim[4] += 1.5
        keys = [f"d{place}" for place in range(30)]
        unknown = dict.fromkeys(STAGES, np.full(30, np.nan))
        pools[f"q{number}"] = Pool(keys, unknown | {"dense": recall, "maxsim": maxsim})
        qrels[f"q{number}"] = {keys[place]: 1 for place in answers}
    found = find_weights(pools, qrels, ["dense", "maxsim"], Sizes(30, 0), "nDCG@10", {})
    assert 0.3 <= found["weights"]["dense"] <= 0.7
    assert found["quality"] > found["present"] + 0.1
    assert found["p"] < 0.01
    few = {query: qrels[query] for query in list(qrels)[:9]}
    with pytest.raises(EvaluationError, match="9 judged queries are too few"):
        find_weights(pools, few, ["dense", "maxsim"], Sizes(30, 0), "nDCG@10", {})
