"""Relevance: a probability of raw scores, by calibrations made by hand; without a worker."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgrerank.errors import EvaluationError
from pgrerank.evaluation.calibration import fit
from pgrerank.evaluation.evaluate import Searched
from pgrerank.evaluation.reliability import reliability
from pgrerank.evaluation.traces import Trace
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements
from pgrerank.stages import STAGES
from pgrerank.tokens import DType, pack

INTERCEPT = -0.5
SLOPES = {"dense": 1.5, "lexical": 2.0, "maxsim": 1.0, "cross_encoder": 0.5}
QUERY = {
    "query": "the connection pool is exhausted",
    "query_embedding": "[" + ",".join(["0.3"] * 32) + "]",
    "query_tokens": pack(np.eye(32, dtype=np.float32)[:4] + 0.1, DType.FLOAT16),
    "stages": ["dense", "lexical", "maxsim"],
}


def calibrate_by_hand(db, generation: int = 1, model: str | None = "reranker") -> None:
    """A calibration for each set of stages; larger sets say more."""
    for size in range(1, 5):
        for stages in itertools.combinations(SLOPES, size):
            db.execute(
                "INSERT INTO pgrerank.calibrations VALUES"
                " ('documents', %s, %s, %s, NULL, %s, %s, 'by hand', 20, 600, 30, 0.02, 0.05)",
                (
                    *(generation, list(stages)),
                    model if "cross_encoder" in stages else None,
                    *(INTERCEPT * size, Jsonb({stage: SLOPES[stage] for stage in stages})),
                ),
            )


def statement(function: str, arguments: dict[str, Any], select: str = "*") -> str:
    casts = {"query_embedding": "::vector", "min_relevance": "::float8", "filter": "::jsonb"}
    named = ", ".join(f"{name} => %({name})s{casts.get(name, '')}" for name in arguments)
    return f"SELECT {select} FROM pgrerank.{function}({named})"


def search(db, select: str = "id, relevance", **changed: Any) -> list[tuple]:
    arguments = {name: value for name, value in (QUERY | changed).items() if value is not None}
    return db.execute(
        statement("documents_search", arguments, select) + " ORDER BY rank", arguments
    ).fetchall()


def trace(db, **changed: Any) -> dict[str, Any]:
    arguments = {"reranker": "documents", **QUERY, **changed}
    return db.execute(statement("trace", arguments, "trace"), arguments).fetchone()[0]


@pytest.fixture
def calibrated(db, source):
    """Three documents with made-up vectors, and calibrations."""
    source.create(candidates=10)
    source.encode_by_hand()
    for key in (1, 2, 3):
        matrix = np.random.default_rng(key).normal(size=(5, 32)).astype(np.float32) / 3
        db.execute(
            "INSERT INTO pgrerank.documents_1_tokens VALUES (%s, 1, 0, %s)",
            (key, pack(matrix, DType.INT8)),
        )
    calibrate_by_hand(db)
    return db


def expected(traced: dict[str, Any], place: int, leave_out: str = "") -> float:
    """The relevance of a candidate by its raw scores."""
    known = {
        stage: traced["scores"][stage][place] / traced["units"].get(stage, 1)
        for stage in SLOPES
        if stage in traced["scores"] and traced["scores"][stage][place] is not None
        if stage != leave_out
    }
    odds = INTERCEPT * len(known) + sum(SLOPES[stage] * score for stage, score in known.items())
    return 1 / (1 + math.exp(-odds))


def test_relevance_is_made_of_the_scores_of_the_stages_that_ran(calibrated):
    for stages in (["dense"], ["lexical"], ["dense", "maxsim"], ["dense", "lexical", "maxsim"]):
        traced = trace(calibrated, stages=stages)
        assert set(traced["scores"]) == set(stages)
        wanted = [expected(traced, place) for place in range(len(traced["keys"]))]
        assert traced["relevance"] == pytest.approx(wanted, rel=1e-5)
        found = search(calibrated, stages=stages)
        assert [str(key) for key, _ in found] == traced["keys"]
        assert [relevance for _, relevance in found] == pytest.approx(wanted, rel=1e-5)


def test_maxsim_counts_by_token_of_the_query_and_bm25_by_its_words(calibrated):
    traced = trace(calibrated)
    assert traced["units"]["maxsim"] == 4
    twice = trace(calibrated, query_tokens=pack(np.eye(32)[:8].astype(np.float32), DType.FLOAT16))
    assert twice["units"]["maxsim"] == 8
    known = trace(calibrated, query="connection pool")["units"]["lexical"]
    unknown = trace(calibrated, query="connection pool zebra giraffe")["units"]["lexical"]
    assert unknown > 1.5 * known, "words that no document has count too"
    assert "lexical" not in trace(calibrated, query="the")["units"]
    assert all(r is not None for r in trace(calibrated, query="the")["relevance"])


def test_a_degraded_answer_has_the_relevance_of_the_stages_that_ran(calibrated):
    rows = search(calibrated, "id, relevance, degraded, reason, cross_encoder_score", stages=None)
    assert {row[2] for row in rows} == {True}
    assert "no worker" in rows[0][3]
    assert [row[:2] for row in rows] == search(calibrated)


def test_a_set_of_stages_that_is_not_calibrated_has_no_relevance(calibrated):
    calibrated.execute("DELETE FROM pgrerank.calibrations WHERE stages = '{dense,lexical}'")
    rows = search(calibrated, "relevance, maxsim_score", candidates=3, stages=["dense", "lexical"])
    assert rows == [(None, None)] * 3
    assert None not in {relevance for _, relevance in search(calibrated)}


def test_scores_of_the_callers_own_tell_nothing_of_relevance(calibrated):
    given = {"keys": ["2", "1"], "key_scores": [900.0, 3.0]}
    traced = trace(calibrated, **given)
    wanted = [expected(traced, place, "dense") for place in range(2)]
    assert traced["relevance"] == pytest.approx(wanted, rel=1e-5)


def test_without_a_calibration_that_holds_relevance_is_null(db, calibrated, source):
    def calibrated_at() -> object:
        return db.execute("SELECT calibrated_at FROM pgrerank.status").fetchone()[0]

    assert calibrated_at() is not None
    db.execute("SELECT pgrerank.register_model('other', 'cross_encoder', '/nowhere')")
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'other')")
    assert calibrated_at() is None
    assert {relevance for _, relevance in search(db)} == {None}
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'reranker')")
    assert calibrated_at() is not None
    db.execute("UPDATE pgrerank.models SET takes_instruction = true")
    assert {relevance for _, relevance in search(db, instruction="find cats")} == {None}
    with pytest.raises(psycopg.Error, match="is not calibrated for what has scored") as raised:
        search(db, instruction="find cats", min_relevance=0.5)
    assert "leave out instruction, or give" in (raised.value.diag.message_hint or "")
    assert None not in {relevance for _, relevance in search(db)}
    db.execute("SELECT pgrerank.alter_reranker('documents', text_columns => '{body}')")
    source.encode_by_hand()
    assert db.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (2,)
    assert calibrated_at() is None
    assert {relevance for _, relevance in search(db)} == {None}
    assert None not in {relevance for _, relevance in search(db, generation=1)}


def test_whoever_may_search_is_told_the_relevance(calibrated, dsn, make_role):
    role = make_role()
    calibrated.execute(f"GRANT SELECT ON documents TO {role}")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role)) as connection:
        assert search(connection) == search(calibrated)


def test_what_no_stage_has_scored_is_left_out(calibrated):
    calibrated.execute("INSERT INTO documents (title) VALUES ('not encoded yet')")
    given = {"keys": ["4", "1"], "stages": ["dense", "lexical"]}
    (first, unknown), (second, known) = search(calibrated, **given)
    assert (first, unknown, second) == (4, None, 1)
    assert search(calibrated, **given, min_relevance=0.001) == [(1, known)]


@pytest.mark.parametrize("by", ["call", "setting"])
def test_without_a_calibration_nothing_can_be_left_out_by_relevance(db, source, by):
    source.create()
    source.encode_by_hand()
    given = {"min_relevance": 0.3} if by == "call" else {}
    if by == "setting":
        db.execute("SELECT pgrerank.alter_reranker('documents', min_relevance => 0.3)")
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState,
        match=r"min_relevance is 0.3, and the relevance of 3 of 3 documents is not known",
    ) as raised:
        search(db, **given)
    assert "pgrerank calibrate documents" in raised.value.diag.message_hint
    assert len(search(db, min_relevance=0)) == 3
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"min_relevance is .1\.5."):
        search(db, min_relevance=1.5)


def test_an_answer_emptied_by_relevance_can_be_told_from_a_fault(calibrated):
    notices = []
    calibrated.add_notice_handler(lambda one: notices.append((one.severity, one.message_primary)))
    calibrated.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 1)")
    highest = max(relevance for _, relevance in search(calibrated))
    assert search(calibrated, min_relevance=0.99) == []
    [(severity, message)] = notices
    assert severity == "NOTICE"
    assert message.startswith("pgrerank: none of 3 documents has a relevance of 0.99, the highest")
    assert f"{highest:.3g}"[:4] in message
    traced = trace(calibrated, min_relevance=0.99)
    assert (traced["keys"], traced["left_out"], traced["reason"]) == ([], 3, None)
    assert search(calibrated, stages=None, min_relevance=0.99) == []
    severity, message = notices[-1]
    assert severity == "WARNING"
    assert "in a degraded search: no worker" in message


def test_the_log_tells_what_relevance_left_out(calibrated):
    calibrated.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 1)")
    words = {"query_embedding": None, "query_tokens": None, "stages": ["lexical"]}
    search(calibrated, **words)
    search(calibrated, **words, min_relevance=0.99)
    logged = calibrated.execute(
        "SELECT cardinality(keys), left_out, degraded, arguments FROM pgrerank.searches ORDER BY id"
    ).fetchall()
    assert [row[:3] for row in logged] == [(1, 0, False), (0, 1, False)]
    assert logged[1][3]["min_relevance"] == 0.99


@settings(max_examples=25)
@given(
    least=st.floats(0.01, 0.99),
    top_k=st.integers(1, 4),
    only=st.sampled_from([None, '{"id": [1, 3]}']),
    keys=st.sampled_from([None, ["3", "1"]]),
    stages=st.sampled_from([None, ["dense"], ["lexical"], ["dense", "lexical", "maxsim"]]),
)
def test_what_is_left_is_what_is_relevant_in_its_order(
    calibrated, least, top_k, only, keys, stages
):
    """With any filter, keys and stages, and without a worker."""
    given = {"filter": only, "keys": keys, "stages": stages}
    whole = search(calibrated, "id, relevance, score, stage", **given, top_k=10)
    left = search(
        calibrated, "id, relevance, score, stage", **given, top_k=top_k, min_relevance=least
    )
    assert left == [row for row in whole[:top_k] if row[1] >= least]


def searched(scores: dict[str, np.ndarray], relevant: np.ndarray) -> Searched:
    """Searches whose stages gave these scores: a row a query, a column a document."""
    queries, documents = relevant.shape
    keys = tuple(f"d{place:02}" for place in range(documents))
    nothing = np.full(documents, np.nan)
    traces = {
        f"q{number}": Trace(
            candidates=documents,
            keys=keys,
            scores=dict.fromkeys(STAGES, nothing) | {s: v[number] for s, v in scores.items()},
            ranks=dict.fromkeys(STAGES, nothing) | {s: v[number] for s, v in scores.items()},
            times={},
            relevance=nothing,
            units={"maxsim": 2.0},
        )
        for number in range(queries)
    }
    judged = Judgements(
        dict.fromkeys(traces, "?"),
        {
            q: {k: int(r) for k, r in zip(keys, row, strict=True)}
            for q, row in zip(traces, relevant, strict=True)
        },
    )
    sizes = {"candidates": 100, "maxsim_top": 30, "maxsim_bit_top": None, "blend": {}}
    return Searched(Variant("documents"), judged, sizes, traces, {})


def test_a_fit_finds_the_odds_that_scores_were_made_by():
    chance = np.random.default_rng(3)
    dense, maxsim = chance.normal(size=(2, 200, 20))
    odds = -2 + 1.5 * dense + 3 * maxsim / 2
    relevant = chance.random((200, 20)) < 1 / (1 + np.exp(-odds))
    useless = {"cross_encoder": -maxsim}
    found = {
        one.stages: one
        for one in fit(searched({"dense": dense, "maxsim": maxsim, **useless}, relevant))
    }
    assert len(found) == 7
    both = found["dense", "maxsim"]
    assert both.intercept == pytest.approx(-2, abs=0.2)
    assert dict(both.slopes) == pytest.approx({"dense": 1.5, "maxsim": 3}, abs=0.3)
    assert both.ece < 0.05
    assert 0 < both.brier < 0.25
    assert found["dense", "maxsim", "cross_encoder"].slopes["cross_encoder"] == 0, "never below"
    assert 0 < both.keeps < 1
    with pytest.raises(EvaluationError, match="fewer than 5 relevant documents"):
        fit(searched({"dense": dense}, np.zeros((200, 20), bool)))


def test_the_calibration_error_is_the_mean_distance_of_the_bins():
    measured = reliability([0.05, 0.05, 0.15, 1.0], [0, 1, 0, 1])
    assert [one["low"] for one in measured["bins"]] == [0.0, 0.1, 0.9]
    assert measured["ece"] == pytest.approx((2 * 0.45 + 0.15 + 0) / 4)
    assert measured["brier"] == pytest.approx((0.05**2 + 0.95**2 + 0.15**2) / 4)
    assert (measured["documents"], measured["relevant"]) == (4, 2)
