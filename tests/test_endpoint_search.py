"""Searches and ingest by models behind endpoints, which fail, stall and come back."""

from __future__ import annotations

import itertools
import json
import time

import psycopg
import pytest
from psycopg.rows import dict_row
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.install import schema
from tests.helpers import provider as providers
from tests.helpers.workers import wait_for, worker

KEY = "sk-a-key-for-tests"
NUMBERS = itertools.count()
DOCUMENTS = 40


def add(dsn, name, kind, url, **options):
    """Register a model as people do, with the worker's environment."""
    arguments = ["models", "add", name, "--dsn", dsn, "--kind", kind, "--loader", "http"]
    arguments += ["--source", url, "--options", json.dumps(options)]
    result = CliRunner().invoke(app, arguments, env={"PGRERANK_KEY_TESTS": KEY})
    assert result.exit_code == 0, result.output
    assert KEY not in result.output


@pytest.fixture(scope="module")
def provider():
    with providers.provider() as server:
        yield server


@pytest.fixture(scope="module")
def dsn(make_database, provider, tmp_path_factory):
    """Forty documents, whose models are all elsewhere, and a worker that asks them."""
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
        add(dsn, "dense", "embedding", provider.url("openai/embed"), dialect="openai", model="e")
        add(dsn, "tokens", "late_interaction", provider.url("jina/tokens"), dialect="jina")
        add(dsn, "first", "cross_encoder", provider.url("voyage/rerank"),
            dialect="voyage", model="r", key="TESTS")  # fmt: skip
        add(dsn, "second", "cross_encoder", provider.url("tei/rerank"), dialect="tei")
        connection.execute(
            "CREATE TABLE documents (id bigint PRIMARY KEY, body text);"
            "INSERT INTO documents SELECT i, 'bread number ' || i || repeat(' flour', i % 7)"
            f" FROM generate_series(1, {DOCUMENTS}) i;"
            "SELECT pgrerank.create_reranker('documents', 'documents', text_columns => '{body}',"
            " embedding_model => 'dense', late_interaction_model => 'tokens',"
            " cross_encoder_model => 'first', cross_encoder_fallback => 'second',"
            " timeout => '3 s')"
        )
        folder = tmp_path_factory.mktemp("endpoints")
        with worker(dsn, folder, environment={"PGRERANK_KEY_TESTS": KEY}) as process:
            wait_for(connection, f"pending = 0 AND encoded = {DOCUMENTS}")
            yield dsn
            assert KEY not in process.log.read_text("utf-8")


@pytest.fixture
def search(dsn, provider):
    """Calls the search with a query of its own, as what was asked before is known."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:

        def call(query=None, function="documents_search", **arguments):
            query = query or f"bread {next(NUMBERS)} flour"
            named = "".join(f", {name} => %({name})s" for name in arguments)
            rows = connection.execute(
                f"SELECT * FROM pgrerank.{function}(%(query)s{named})",
                {"query": query} | arguments,
            ).fetchall()
            return query, rows

        call.connection = connection
        yield call
        provider.always, provider.lies = None, []
        deadline = time.monotonic() + 20
        while call()[1][0]["cross_encoder_model"] != "first":  # its breaker lets it be asked again
            assert time.monotonic() < deadline
            time.sleep(0.1)


def models_of(rows):
    return {row["cross_encoder_model"] for row in rows if row["cross_encoder_score"] is not None}


def check_scores(search, query, rows):
    execute = search.connection.execute
    texts = {row["id"]: row["body"] for row in execute("SELECT * FROM documents").fetchall()}
    for row in rows:
        wanted = providers.logit(query, texts[row["id"]])
        assert row["cross_encoder_score"] == pytest.approx(wanted, abs=1e-4)


def test_every_stage_is_asked_of_an_endpoint(search):
    query, rows = search(top_k=DOCUMENTS, maxsim_top=DOCUMENTS, early_exit=0, candidates=DOCUMENTS)
    assert len(rows) == DOCUMENTS
    assert not any(row["degraded"] or row["reason"] for row in rows)
    assert models_of(rows) == {"first"}
    check_scores(search, query, rows)
    assert all(row["maxsim_score"] is not None for row in rows)
    assert all(row["dense_score"] is not None for row in rows)


def failing(handler):
    """The first provider fails, the others are well."""
    if handler.path.startswith("/voyage"):
        handler.answer(b"gone", 503)
    else:
        handler.answer(providers.answer(handler.path, handler.body))


def stalling(handler):
    if handler.path.startswith("/voyage"):
        time.sleep(5)
        handler.close_connection = True
    else:
        failing(handler)


@pytest.mark.parametrize("fault", [failing, stalling])
def test_the_fallback_answers_for_an_endpoint_that_fails_or_stalls(search, provider, fault):
    provider.always = fault
    begun = time.monotonic()
    _, rows = search()
    assert time.monotonic() - begun < 3.1
    assert models_of(rows) == {"second"}
    assert not any(row["degraded"] for row in rows)
    assert {row["stage"] for row in rows} == {"cross_encoder"}
    assert rows[0]["reason"].startswith("cross-encoder first: ")


def test_scores_of_two_models_never_meet(search, provider):
    """The endpoint dies between two slices: the fallback reads those before again."""
    asked = len(provider.asked)
    dying = iter([True])

    def once_well(handler):
        if handler.path.startswith("/voyage") and next(dying, False):
            handler.answer({"data": [
                {"index": place, "relevance_score": 0.5 + place / 1000}
                for place in range(len(handler.body["documents"]))
            ]})  # fmt: skip
        else:
            failing(handler)

    provider.always = once_well
    query, rows = search(top_k=10, maxsim_top=DOCUMENTS, early_exit=0.001)
    paths = [path for path, _, _ in provider.asked[asked:]]
    assert paths.count("/voyage/rerank") >= 2
    assert models_of(rows) == {"second"}
    check_scores(search, query, rows)


def test_relevance_of_a_fallback_is_that_of_the_other_stages(search, provider):
    """What is calibrated is the first model's scores, and those of the stages before."""
    execute = search.connection.execute
    for stages, model in (
        ("{dense,lexical,maxsim}", None),
        ("{dense,lexical,maxsim,cross_encoder}", "first"),
    ):
        execute(
            "INSERT INTO pgrerank.calibrations SELECT 'documents', 1, %s::text[], %s, NULL, 0,"
            " jsonb_object_agg(s, 1), 'by hand', 20, 600, 30, 0, 0 FROM unnest(%s::text[]) s",
            (stages, model, stages),
        )
    try:
        _, known = search(min_relevance=0.01)
        provider.always = failing
        _, rows = search(min_relevance=0.01)
        assert models_of(rows) == {"second"}
        assert None not in {row["relevance"] for row in (*known, *rows)}
    finally:
        execute("DELETE FROM pgrerank.calibrations")


def test_without_any_the_stage_before_stands(search, provider):
    def no_reranker(handler):
        if "rerank" in handler.path:
            handler.answer(b"<html>", 502)
        else:
            failing(handler)

    provider.always = no_reranker
    begun = time.monotonic()
    _, rows = search()
    assert time.monotonic() - begun < 3.1
    assert {(row["degraded"], row["stage"], row["cross_encoder_model"]) for row in rows} == {
        (True, "maxsim", None)
    }
    reason = rows[0]["reason"]
    assert "cross-encoder first: " in reason
    assert "its fallback second: " in reason
    with pytest.raises(psycopg.Error, match="its fallback second") as caught:
        search(strict=True)
    assert KEY not in str(caught.value)


def test_a_dead_provider_of_embeddings_leaves_the_search_by_words(search, provider):
    provider.always = 503
    _, rows = search()
    assert {(row["degraded"], row["stage"]) for row in rows} == {(True, "lexical")}


def test_an_instruction_is_part_of_the_query_and_of_what_is_remembered(search, provider):
    query, plain = search()
    asked = len(provider.asked)
    _, told = search(query, instruction="Only sweet bread")
    texts = [body["query"] for path, body, _ in provider.asked[asked:] if "rerank" in path]
    assert set(texts) == {f"Only sweet bread\n{query}"}
    asked = len(provider.asked)
    search(query, instruction="Only sweet bread")
    search(query)
    assert len(provider.asked) == asked  # both are known
    assert plain[0]["cross_encoder_model"] == told[0]["cross_encoder_model"] == "first"
    trace = search.connection.execute(
        "SELECT pgrerank.trace('documents', %s, instruction => 'Only sweet bread') AS trace",
        (query,),
    ).fetchone()["trace"]
    assert trace["instruction"] == "Only sweet bread"
    assert (trace["cross_encoder_model"], trace["fallback"]) == ("first", None)


def test_an_instruction_that_no_model_reads_is_an_error(search):
    execute = search.connection.execute
    execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'second',"
            " cross_encoder_fallback => '')")  # fmt: skip
    try:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="takes an instruction"):
            search(instruction="Only sweet bread")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="takes an instruction"):
            execute("SELECT pgrerank.alter_reranker('documents', instruction => 'Sweet')")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match='"second" takes no'):
            execute("SELECT pgrerank.cross_encode('second', 'a', '{b}', instruction => 'Sweet')")
    finally:
        execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'first',"
                " cross_encoder_fallback => 'second')")  # fmt: skip


@pytest.fixture
def waiting(dsn):
    """Waits until a condition over the status holds."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield lambda condition: wait_for(connection, condition)


def test_documents_wait_for_an_endpoint_that_is_away(search, provider, waiting):
    execute = search.connection.execute

    def away(handler):
        if "embed" in handler.path or "tokens" in handler.path:
            handler.answer(b"", 503)
        else:
            failing(handler)

    provider.always = away
    execute("INSERT INTO documents SELECT i, 'late bread ' || i FROM generate_series(101, 130) i")
    try:
        waiting("last_error LIKE '%answered 503%'")
        assert execute("SELECT failed, pending FROM pgrerank.status").fetchone() == {
            "failed": 0,
            "pending": 30,
        }
        provider.always = None
        waiting("pending = 0 AND failed = 0")
    finally:
        execute("DELETE FROM documents WHERE id > 100")


def test_a_document_that_an_endpoint_refuses_fails_alone(search, provider, waiting):
    execute = search.connection.execute

    def picky(handler):
        if any("poison" in text for text in handler.body.get("input", [])):
            handler.answer({"error": {"message": "too strong"}}, 400)
        else:
            handler.answer(providers.answer(handler.path, handler.body))

    provider.always = picky
    execute("INSERT INTO documents VALUES (201, 'poison'), (202, 'sweet'), (203, 'sour')")
    try:
        waiting("pending = 0 AND failed = 1")
        [row] = execute("SELECT key, last_error FROM pgrerank.pending").fetchall()
        assert row["key"] == "201"
        assert "answered 400 (too strong)" in row["last_error"]
    finally:
        execute("DELETE FROM documents WHERE id > 200")
