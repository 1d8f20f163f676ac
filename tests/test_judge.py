"""Judgements by a language model: a small endpoint of our own, which also lies and stalls."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.errors import EvaluationError
from pgrerank.evaluation import chat as chats
from pgrerank.evaluation.chat import Chat
from pgrerank.evaluation.judging import agreement
from tests.helpers.sources import Source

KEY = "sk-test-key"
ANSWER = {"usage": {"prompt_tokens": 100, "completion_tokens": 5}}


def content(text: str) -> bytes:
    return json.dumps({**ANSWER, "choices": [{"message": {"content": text}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append(body)
        server.keys.add(self.headers["Authorization"])
        asked = json.loads(body["messages"][1]["content"])
        lie = server.lies.pop(0) if server.lies else None
        if lie is None and server.stubborn in asked["document"]:
            lie = content('{"relevance": 7}')
        if callable(lie):
            lie(self)
        elif isinstance(lie, int):
            self.answer(b"nothing", lie)
        else:
            grade = 3 if "bread" in asked["document"] else 0
            self.answer(content(json.dumps({"relevance": grade})) if lie is None else lie)

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments) -> None:
        pass


@pytest.fixture
def endpoint():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.keys, server.lies, server.stubborn = [], set(), [], "\0"
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ready(db, dsn, monkeypatch):
    """A reranker that needs no worker: it searches by words."""
    Source(db).create(embedding_model=None, late_interaction_model=None, cross_encoder_model=None)
    db.execute("UPDATE documents SET body = body || ' most people'")  # a word that all have
    db.execute(
        "INSERT INTO pgrerank.queries VALUES ('people', 'q1', 'people and bread'),"
        " ('people', 'q2', 'people')"
    )
    db.execute(
        "INSERT INTO pgrerank.qrels VALUES ('people', 'q1', '3', 2), ('people', 'q1', '1', 0),"
        " ('people', 'q2', '2', 1)"
    )
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(chats, "TRIES", 2)
    return dsn


def judge(dsn, endpoint, *options):
    arguments = ["qrels", "judge", "model", "--dsn", dsn, "--reranker", "documents"]
    arguments += ["--model", "m", "--url", endpoint.url, "--key-env", "JUDGE_KEY", *options]
    result = CliRunner().invoke(app, arguments)
    assert KEY not in result.output
    return result


def stored(db):
    return db.execute(
        "SELECT query_id, key, relevance FROM pgrerank.qrels WHERE qrels_set = 'model'"
        " ORDER BY 1, 2"
    ).fetchall()


def wait_encoded(db, dsn, tmp_path):
    from tests.helpers.workers import wait_for, worker

    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0")


def test_a_set_is_judged_goes_on_where_it_ended_and_agrees_with_people_or_not(
    db, ready, endpoint, tmp_path
):
    wait_encoded(db, ready, tmp_path)
    endpoint.stubborn = "cat sleeps"
    first = judge(ready, endpoint, "--queries", "people", "--price", "10", "100", "--json")
    assert first.exit_code == 0, first.output
    [figures] = json.loads(first.stdout)
    assert (figures["new"], figures["known"], figures["invalid"]) == (4, 0, 2)
    assert stored(db) == [("q1", "1", 0), ("q1", "3", 3), ("q2", "1", 0), ("q2", "3", 3)]
    assert figures["tokens_read"] == 100 * len(endpoint.asked)
    assert figures["cost"] == pytest.approx(len(endpoint.asked) * (100 * 10 + 5 * 100) / 1e6)
    assert (figures["compared"], figures["same_grade"], figures["kappa"]) == (2, 1, 1)
    assert figures["confusion"] == [[0, 0, 1], [2, 3, 1]]
    body = endpoint.asked[0]
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["relevance"]
    assert endpoint.keys == {f"Bearer {KEY}"}

    endpoint.stubborn, before = "\0", len(endpoint.asked)
    second = judge(ready, endpoint, "--queries", "people")
    assert "2" in second.stdout
    assert len(endpoint.asked) == before + 2
    assert len(stored(db)) == 6


def test_logged_queries_are_judged(db, ready, endpoint, tmp_path):
    wait_encoded(db, ready, tmp_path)
    missing = judge(ready, endpoint)
    assert missing.exit_code == 1
    assert "no search is logged" in missing.output
    db.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 1)")
    for query in ("bread people", "Bread people ", "people"):
        db.execute("SELECT FROM pgrerank.documents_search(%s)", (query,))
    assert judge(ready, endpoint, "--most", "1").exit_code == 0
    assert [row[1:] for row in stored(db)] == [("1", 0), ("2", 0), ("3", 3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--queries", "model"), "no judgements named"),
        (("--queries", "people", "--key-env", "NOT_SET"), "NOT_SET, which is not set"),
        (("--queries", "people", "--url", "ftp://x"), "expected one such as https"),
    ],
)
def test_what_is_wrong_is_named(ready, endpoint, options, words):
    result = judge(ready, endpoint, *options)
    assert result.exit_code == 1
    assert words in result.output


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(60):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def huge(handler: Handler) -> None:
    with contextlib.suppress(OSError):
        handler.answer(b" " * (4 * chats.MOST_BYTES))


def busy(handler: Handler) -> None:
    handler.answer(b"", 503, **{"Retry-After": "0"})


LIES = [
    *(b"<html>", b"", b"null", b"[]", b"{}", b'{"choices": []}', b"[" * 100_000, b"\xff", huge),
    *(429, 500, 503, busy, drip, content(""), content("3"), content("[3]"), content("{}")),
    *(content(json.dumps({"relevance": wrong})) for wrong in ("3", 3.0, True, -1, 4, None, [3])),
    content('{"relevance": NaN}'),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: getattr(lie, "__name__", repr(lie)[:40]))
def test_an_answer_that_is_none_is_asked_again_and_never_taken(endpoint, lie, monkeypatch):
    from pgrerank.evaluation.judging import SCHEMA, SYSTEM, _relevance

    monkeypatch.setattr(chats, "SECONDS", 1.0)
    chat = Chat(endpoint.url, "m", None, pause=0.01)
    prompt = json.dumps({"query": "x", "document": "bread"})
    begun = time.monotonic()
    endpoint.lies = [lie]
    assert chat.ask(SYSTEM, prompt, SCHEMA, _relevance) == 3
    endpoint.lies = [lie] * chats.TRIES
    assert chat.ask(SYSTEM, prompt, SCHEMA, _relevance) is None
    assert len(endpoint.asked) == 2 + chats.TRIES
    assert time.monotonic() - begun < 20
    chat.close()


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404])
def test_a_refusal_ends_it_at_once(endpoint, status):
    chat = Chat(endpoint.url, "m", KEY)
    endpoint.lies = [status]
    with pytest.raises(EvaluationError, match=f"answered {status}") as error:
        chat.ask("", json.dumps({"query": "x", "document": "y"}), {}, int)
    assert KEY not in str(error.value)
    assert len(endpoint.asked) == 1
    chat.close()


def test_agreement_is_cohens_kappa():
    people = {"q": {str(n): int(n < 25) for n in range(50)}}
    model = {"q": {str(n): int(n < 20 or 25 <= n < 35) for n in range(50)}}
    found = agreement(people, model)
    assert found.kappa == pytest.approx(0.4)  # 20 + 15 of 50 agree, 25 by chance
    assert found.confusion == Counter({(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15})
    assert agreement({"q": {"1": 1}}, {"q": {"1": 2}}).kappa is None
    assert agreement({}, model).pairs == 0
