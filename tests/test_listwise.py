"""The language model that orders the best documents, at an endpoint that also lies and stalls."""

from __future__ import annotations

import itertools
import json
import time

import psycopg
import pytest
from psycopg.rows import dict_row

from pgrerank.catalog import register_model
from pgrerank.errors import ModelError, RequestError
from pgrerank.install import schema
from pgrerank.models import ModelSpec, load_judge
from pgrerank.models.http import endpoint
from tests.helpers import provider as providers
from tests.helpers.workers import asking, wait_for, worker

QUERY = "flour water salt"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def provider():
    with providers.provider() as server:
        yield server


@pytest.fixture(autouse=True)
def well(provider, monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.02)
    yield
    provider.always, provider.lies, provider.asked = None, [], []


def judge(provider, **options):
    url = provider.url("openai/chat/completions")
    options = {"model": "m"} | options
    return load_judge(ModelSpec("judge", "listwise", "http", url, options=options))


def documents(count):
    """The best one is the last, so that it has to come through all windows."""
    texts = [f"document {number}" for number in range(count - 1)]
    return [*texts, "flour water salt and time"]


@pytest.mark.parametrize(("count", "asked"), [(2, 1), (20, 1), (21, 2), (40, 3), (100, 9)])
def test_the_best_comes_through_all_windows(provider, count, asked):
    scores = judge(provider).order(QUERY, documents(count))
    assert scores == [*range(count - 2, -1, -1), count - 1]
    assert len(provider.asked) == asked


def test_what_the_model_is_asked(provider):
    model = judge(provider, max_characters=10)
    steps = model.steps("only bread")
    [[first, second]] = model.alone(lambda: steps.ask([(QUERY, "a long document", "flour")], 5))
    assert (first, second) == (0, 1)
    [(_, body, _)] = provider.asked
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert json.loads(body["messages"][1]["content"]) == {
        "query": QUERY,
        "instruction": "only bread",
        "documents": [{"number": 1, "text": "a long doc"}, {"number": 2, "text": "flour"}],
    }
    assert body["response_format"]["json_schema"]["strict"] is True


ORDERS = {
    "too few": [1, 2],
    "twice": [1, 2, 2],
    "not sent": [1, 2, 4],
    "from zero": [0, 1, 2],
    "texts": ["1", "2", "3"],
    "booleans": [True, 2, 3],
    "floats": [1.0, 2, 3],
    "no list": 3,
    "null": None,
}
LIES = {
    name: json.dumps(providers.chat(json.dumps({"order": order}))) for name, order in ORDERS.items()
}
LIES |= {
    "no object": json.dumps(providers.chat("[1, 2, 3]")),
    "words": json.dumps(providers.chat("I would say 1, 2, 3.")),
    "no choice": '{"choices": []}',
    "HTML": "<html>",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_becomes_an_order(provider, lie):
    provider.lies = [LIES[lie].encode()]
    assert judge(provider).order(QUERY, documents(3)) == [1, 0, 2]
    provider.always = LIES[lie].encode()
    with pytest.raises(RequestError, match="nothing that can be used"):
        judge(provider).order(QUERY, documents(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, 'option "model" is missing'),
        ({"dialect": "cohere"}, "expected openai"),
        ({"prices": {"read": 1}}, "option prices: expected an object"),
        ({"prices": {"read": -1, "written": 0}}, "option prices: expected an object"),
    ],
)
def test_options_that_are_wrong(provider, options, message):
    with pytest.raises(ModelError, match=message):
        judge(provider, **options)


@pytest.fixture(scope="module")
def ready(make_database, provider, tmp_path_factory):
    """Thirty documents that recall finds by their words, and a language model."""
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
        url = provider.url("openai/chat/completions")
        options = {"model": "m", "prices": {"read": 10, "written": 100}}
        register_model(connection, "judge", "listwise", url, options=options)
        connection.execute(
            "CREATE TABLE documents (id int PRIMARY KEY, body text, part int);"
            "INSERT INTO documents SELECT i, 'bread number ' || i || repeat(' flour', i % 3)"
            " || CASE WHEN i % 7 = 0 THEN ' with water and salt' ELSE '' END, i % 6"
            " FROM generate_series(1, 30) i;"
            "SELECT pgrerank.create_reranker('documents', 'documents', text_columns => '{body}',"
            " listwise_model => 'judge', listwise_top => 12, timeout => '2 s')"
        )
        with worker(dsn, tmp_path_factory.mktemp("listwise")):
            wait_for(connection, "pending = 0")
            yield dsn


@pytest.fixture
def search(ready):
    with psycopg.connect(ready, autocommit=True, row_factory=dict_row) as connection:

        def call(**arguments):
            arguments = {"query": f"bread flour salt {next(NUMBERS)}"} | arguments
            named = ", ".join(f"{name} => %({name})s" for name in arguments)
            statement = f"SELECT * FROM pgrerank.documents_search({named})"
            return connection.execute(statement, arguments).fetchall()

        call.connection = connection
        yield call


def test_the_best_by_words_are_put_in_the_models_order(search, provider):
    before = search(query="bread flour salt", top_k=30, stages=["lexical"])
    after = search(query="bread flour salt", top_k=30)
    body = provider.asked[-1][1]
    asked = json.loads(body["messages"][1]["content"])
    assert [row["listwise_rank"] for row in after] == [*range(1, 13), *[None] * 18]
    assert [row["listwise_score"] for row in after[:12]] == list(range(11, -1, -1))
    head = [row["id"] for row in before[:12]]
    assert [row["id"] for row in after[:12]] == [head[n - 1] for n in providers.order(asked)]
    assert [row["id"] for row in after[12:]] == [row["id"] for row in before[12:]]
    assert not any(row["degraded"] for row in after)
    assert {row["stage"] for row in after[:12]} == {"listwise"}


def test_it_reads_the_best_of_each_group_and_the_whole_only_once(search, provider):
    provider.asked = []
    rows = search(query="bread flour", group_by="part", top_k=5)
    assert len(rows) == 5
    [asked] = [json.loads(body["messages"][1]["content"]) for _, body, _ in provider.asked]
    parts = [int(one["text"].split()[2]) % 6 for one in asked["documents"]]
    assert len(set(parts)) == len(parts)


def test_a_search_and_its_repetition_ask_once(search, provider):
    provider.asked = []
    first = search(query="bread and salt")
    again = search(query="bread and salt", top_k=5)
    assert [row["id"] for row in again] == [row["id"] for row in first][:5]
    assert len(provider.asked) == 1


def stalling(handler):
    time.sleep(4)
    handler.close_connection = True


@pytest.mark.parametrize("fault", [500, b"<html>", stalling])
def test_where_it_fails_the_order_before_stands(search, provider, fault):
    provider.always = fault
    begun = time.monotonic()
    rows = search()
    assert time.monotonic() - begun < 2.1
    assert {(row["degraded"], row["stage"]) for row in rows} == {(True, "lexical")}
    assert "of model judge" in rows[0]["reason"] or "deadline" in rows[0]["reason"]
    provider.always = None
    deadline = time.monotonic() + 10
    while search()[0]["degraded"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_it_cost_is_told(search, ready):
    search()
    with psycopg.connect(ready, autocommit=True) as connection, asking(connection) as ask:
        [(model, requests, _, read, written, cost)] = ask("SHOW endpoints")
    assert model == "judge"
    assert int(read) == 20 * int(written) > 0
    assert float(cost) == pytest.approx((int(read) * 10 + int(written) * 100) / 1e6)
    assert int(requests) * 100 >= int(read)


def test_a_model_of_another_name_is_an_error(search):
    alter = "SELECT pgrerank.alter_reranker('documents', listwise_model => 'x')"
    with pytest.raises(psycopg.errors.UndefinedObject, match="not registered"):
        search.connection.execute(alter)
