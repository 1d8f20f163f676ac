"""Models behind endpoints: every dialect, and providers that lie, stall, or break."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from pgrerank.errors import EndpointError, ModelError, RequestError
from pgrerank.models import ModelSpec, load_encoder, load_reranker
from pgrerank.models.http import breaker, endpoint
from pgrerank.models.http.dialects import DIALECTS
from pgrerank.passages import cut as cut_passages
from tests.helpers import provider as providers

KEY = "sk-a-key-for-tests"
QUERY = "bread of flour"
TEXTS = ["A cat sleeps.", "Bread is made of flour.", "naïve 漢字", "Flour, and time."]
LOGITS = [providers.logit(QUERY, text) for text in TEXTS]
RERANK = sorted(DIALECTS["cross_encoder"])
EMBED = sorted(DIALECTS["embedding"])


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setenv("PGRERANK_KEY_TESTS", KEY)
    monkeypatch.setattr(endpoint, "PAUSE", 0.02)
    with providers.provider() as server:
        yield server


def reranker(provider, dialect="cohere", path=None, **options):
    source = provider if isinstance(provider, str) else provider.url(path or f"{dialect}/rerank")
    spec = ModelSpec("m", "cross_encoder", "http", source, options={"dialect": dialect} | options)
    return load_reranker(spec)


def encoder(provider, kind, dialect, path="", **options):
    source = provider.url(f"{dialect}/{path or 'embed'}")
    return load_encoder(
        ModelSpec("m", kind, "http", source, options={"dialect": dialect} | options)
    )


def ask(model, texts=TEXTS, timeout=5.0):
    """Ask once, as a worker does: with a deadline, in an event loop."""

    async def once():
        try:
            return await model.ask([(QUERY, text) for text in texts], timeout)
        finally:
            await model.close()

    return asyncio.run(once())


@pytest.mark.parametrize("dialect", RERANK)
def test_scores_come_in_the_texts_order_as_logits(provider, dialect):
    options = {} if dialect == "tei" else {"model": "rerank-1"}
    scores = reranker(provider, dialect, key="TESTS", **options).score([(QUERY, t) for t in TEXTS])
    assert scores == pytest.approx(LOGITS, abs=1e-4)
    [(_, body, headers)] = provider.asked
    texts = body.pop("texts" if dialect == "tei" else "documents")
    assert texts == TEXTS
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (
        body
        == {
            "tei": {"query": QUERY, "raw_scores": True, "return_text": False, "truncate": True},
            "cohere": {"query": QUERY, "model": "rerank-1", "top_n": 4},
            "jina": {"query": QUERY, "model": "rerank-1", "top_n": 4, "return_documents": False},
            "voyage": {
                "query": QUERY,
                "model": "rerank-1",
                "top_k": 4,
                "return_documents": False,
                "truncation": True,
            },
            "vllm": {"query": QUERY, "model": "rerank-1", "top_n": 4, "truncate_prompt_tokens": -1},
        }[dialect]
    )


@pytest.mark.parametrize("dialect", EMBED)
@pytest.mark.parametrize("role", ["query", "document"])
def test_embeddings_come_in_the_texts_order(provider, dialect, role):
    model = encoder(provider, "embedding", dialect, batch=3, prompts={"query": "q: "})
    found = model.encode(TEXTS, role=role, embeddings=True, tokens=False).embeddings
    prompt = "q: " if role == "query" else ""
    wanted = np.array([providers.embedding(prompt + text) for text in TEXTS])
    assert found == pytest.approx(wanted / np.linalg.norm(wanted, axis=1)[:, None], abs=1e-6)
    assert (model.embedding_dims, model.token_dims, model.max_tokens) == (16, None, None)
    body = provider.asked[0][1]
    said = {
        "cohere": ("input_type", {"query": "search_query", "document": "search_document"}),
        "voyage": ("input_type", {"query": "query", "document": "document"}),
        "jina": ("task", {"query": "retrieval.query", "document": "retrieval.passage"}),
    }
    if dialect in said:
        name, values = said[dialect]
        assert body[name] == values[role]
    assert [len(next(v for v in b.values() if isinstance(v, list))) for _, b, _ in provider.asked][
        :2
    ] in ([3, 1], [1, 3])


@pytest.mark.parametrize("dialect", sorted(DIALECTS["late_interaction"]))
def test_token_vectors_of_endpoints(provider, dialect):
    model = encoder(provider, "late_interaction", dialect, "tokens")
    found = model.encode(TEXTS, role="document", embeddings=False, tokens=True).tokens
    for text, vectors in zip(TEXTS, found, strict=True):
        wanted = np.array(providers.token_vectors(text))
        assert vectors == pytest.approx(wanted / np.linalg.norm(wanted, axis=1)[:, None], abs=1e-6)
    assert (model.embedding_dims, model.token_dims) == (None, 16)
    with pytest.raises(ModelError, match="does not say what its token vectors stand for"):
        model.encode_readable(TEXTS, role="document")
    with pytest.raises(ModelError, match="makes no other vectors"):
        model.encode(TEXTS, role="document", embeddings=True, tokens=True)


def test_a_long_text_is_encoded_in_pieces(provider):
    model = encoder(provider, "embedding", "openai", max_characters=40)
    long = "flour and water " * 20
    [one, short] = model.encode([long, "bread"], role="document", embeddings=True, tokens=False)[0]
    pieces = [text for _, body, _ in provider.asked for text in body["input"]]
    assert max(map(len, pieces)) <= 40
    assert "".join(pieces) == long + "bread"
    wanted = np.array(providers.embedding(long)) - 1e-3
    assert one @ (wanted / np.linalg.norm(wanted)) == pytest.approx(1, abs=0.01)
    assert np.linalg.norm(one) == pytest.approx(1)
    assert short.argmax() == np.argmax(providers.embedding("bread"))


def test_passages_are_sent_whole(provider):
    model = encoder(provider, "embedding", "openai", max_characters=400)
    text = "Pools, of size 1000, are in use. " * 40 + "面包和水。" * 200
    passages = [one.text for one in cut_passages(text, model.offsets, size=model.room)]
    assert len(passages) > 10
    model.encode(passages, role="document", embeddings=True, tokens=False)
    assert {text for _, body, _ in provider.asked for text in body["input"]} == set(passages)


def test_instructions_are_written_into_queries(provider):
    template = "Instruct: {instruction}\nQuery: {query}"
    model = encoder(provider, "embedding", "openai", instruction_template=template)
    steps = model.steps("query", embeddings=True, tokens=False, instruction="find bread")
    model.alone(lambda: steps.ask(["flour"], 5))
    model = reranker(provider, instruction_template=template)
    model.alone(lambda: model.steps("find bread").ask([("flour", "x")], 5))
    written = "Instruct: find bread\nQuery: flour"
    assert [body.get("query") or body["input"] for _, body, _ in provider.asked] == [
        [written],
        written,
    ]
    assert model.takes_instruction
    assert not reranker(provider).takes_instruction
    with pytest.raises(ModelError, match="takes no instruction"):
        reranker(provider).steps("find bread")


def test_many_texts_go_in_requests_that_the_provider_takes(provider):
    texts = [f"flour {number}" for number in range(70)]
    assert len(reranker(provider, "tei").score([(QUERY, text) for text in texts])) == 70
    assert sorted(len(body["texts"]) for _, body, _ in provider.asked) == [6, 32, 32]


def results(*pairs):
    return json.dumps(
        {"results": [{"index": index, "relevance_score": score} for index, score in pairs]}
    ).encode()


GOOD = [(0, 0.1), (1, 0.9), (2, 0.1), (3, 0.5)]


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


def endless(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
    except OSError:
        handler.close_connection = True


def bomb(handler):
    handler.answer(gzip.compress(b" " * 10_000_000), Content_Encoding="gzip")


def cut(handler):
    handler.answer(results(*GOOD), Content_Length="9999")
    handler.close_connection = True


def hang_up(handler):
    handler.close_connection = True


def redirect(handler):
    handler.answer(b"", 302, Location="http://127.0.0.1:1/elsewhere")


LIES = {
    "too few": results(*GOOD[:3]),
    "too many": results(*GOOD, (4, 0.5)),
    "none": results(),
    "index twice": results(*GOOD[:3], (2, 0.5)),
    "index not sent": results(*GOOD[:3], (7, 0.5)),
    "negative index": results(*GOOD[:3], (-1, 0.5)),
    "NaN": results(*GOOD[:3], (3, 0.5)).replace(b"0.5", b"NaN"),
    "infinite": results(*GOOD[:3], (3, 0.5)).replace(b"0.5", b"1e999"),
    "no number": results(*GOOD[:3], (3, 0.5)).replace(b"0.5", b'"0.5"'),
    "null": results(*GOOD[:3], (3, 0.5)).replace(b"0.5", b"null"),
    "out of range": results(*GOOD[:3], (3, 1.5)),
    "HTML": b"<html><body>Bad gateway</body></html>",
    "another shape": b'{"data": []}',
    "no JSON": b"\xff\xfe\x00",
    "deep JSON": b"[" * 100_000,
    "empty": b"",
    "cut short": cut,
    "gzip bomb": bomb,
    "endless": endless,
    "slow drip": drip,
    "hangs up": hang_up,
    "redirect": redirect,
    "401": 401,
    "404": 404,
    "429": 429,
    "500": 500,
    "503": 503,
}


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_becomes_an_order(provider, lie):
    """Every lie ends in an error within the deadline, and the key is in none."""
    provider.always = LIES[lie]
    begun = time.monotonic()
    with pytest.raises(RequestError) as caught:
        ask(reranker(provider, key="TESTS"), timeout=0.6)
    assert time.monotonic() - begun < 0.6 + 0.3
    assert KEY not in str(caught.value)
    assert f"127.0.0.1:{provider.server_port}/cohere/rerank of model m" in str(caught.value)


@pytest.mark.parametrize("lie", ["HTML", "hangs up", "429", "500", "503", "cut short", "too few"])
def test_what_may_pass_is_tried_again(provider, lie):
    provider.lies = [LIES[lie]]
    assert ask(reranker(provider)) == pytest.approx(LOGITS, abs=1e-4)
    assert len(provider.asked) == 2


@pytest.mark.parametrize(("status", "error"), [(400, ModelError), (422, ModelError)])
def test_a_request_at_fault_is_not_tried_again(provider, status, error):
    provider.always = status
    with pytest.raises(error, match=r"answered 4.. \(no, Bearer \*\*\*\)"):
        ask(reranker(provider, key="TESTS"))
    assert len(provider.asked) == 1


@pytest.mark.parametrize("kind", ["embedding", "late_interaction"])
@pytest.mark.parametrize("lie", ["zeros", "ragged", "empty", "huge"])
def test_vectors_that_are_none_are_refused(provider, kind, lie):
    row = {"zeros": [0] * 16, "ragged": [1, 2], "empty": [], "huge": [1e200] * 16}[lie]
    rows = [[1.0] * 16, row]
    data = [{"index": place, "embedding": one} for place, one in enumerate(rows)]
    if kind == "late_interaction":
        data = [{"index": place, "embeddings": [rows[0], row]} for place in range(2)]
    provider.always = json.dumps({"data": data}).encode()
    dialect = "openai" if kind == "embedding" else "jina"
    model = encoder(provider, kind, dialect)
    is_embedding = kind == "embedding"
    with pytest.raises(EndpointError, match="answered"):
        model.encode(TEXTS[:2], role="query", embeddings=is_embedding, tokens=not is_embedding)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_provider_that_asks_to_wait_is_left_alone(provider, form):
    wait = "2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=3))
    provider.lies = [lambda handler: handler.answer(b"", 429, Retry_After=wait)]
    model = reranker(provider)
    with pytest.raises(EndpointError, match="answered 429"):
        ask(model, timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(EndpointError, match="asks to wait"):
        ask(model, timeout=0.5)
    assert time.monotonic() - begun < 0.2
    assert len(provider.asked) == 1
    assert ask(model) == pytest.approx(LOGITS, abs=1e-4)


def test_an_endpoint_that_fails_is_not_asked_until_it_may_be_well(provider, monkeypatch):
    monkeypatch.setattr(breaker, "SHORTEST", 0.3)
    provider.always = 500
    model = reranker(provider)
    for _ in range(2):
        with pytest.raises(EndpointError):
            ask(model)
    asked = len(provider.asked)
    assert asked == breaker.FAILURES
    begun = time.monotonic()
    with pytest.raises(EndpointError, match="failed 5 times in a row"):
        ask(model)
    assert time.monotonic() - begun < 0.1
    assert len(provider.asked) == asked
    time.sleep(0.35)
    with pytest.raises(EndpointError):  # the first that is let through fails too
        ask(model)
    provider.always = None
    time.sleep(0.65)
    assert ask(model) == pytest.approx(LOGITS, abs=1e-4)
    assert ask(model) == pytest.approx(LOGITS, abs=1e-4)


def test_a_second_request_is_sent_where_the_first_takes_long(provider):
    provider.lies = [lambda handler: time.sleep(1) or hang_up(handler)]
    begun = time.monotonic()
    assert ask(reranker(provider, hedge_ms=50)) == pytest.approx(LOGITS, abs=1e-4)
    assert time.monotonic() - begun < 0.8
    assert len(provider.asked) == 2


def test_requests_at_a_time_are_bounded(provider):
    lock, running, most = threading.Lock(), [0], [0]

    def slowly(handler):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        handler.answer(providers.answer(handler.path, handler.body))

    provider.always = slowly
    ask(reranker(provider, batch=1, concurrency=2), texts=TEXTS * 2)
    assert most == [2]


def test_a_key_in_a_header_of_its_own(provider):
    reranker(provider, key="TESTS", key_header="api-key").score([(QUERY, TEXTS[0])])
    [(_, _, headers)] = provider.asked
    assert headers["api-key"] == KEY
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("ftp://127.0.0.1/x", {}, "no URL of an endpoint"),
        ("organisation/model", {}, "no URL of an endpoint"),
        ("http://user:secret@127.0.0.1/x", {}, "has a user or password"),
        ("http://[::bad/x", {}, "no URL of an endpoint"),
        ("http://127.0.0.1:99999/x", {}, "no URL of an endpoint"),
        ("http://127.0.0.1/x\ny", {}, "no URL of an endpoint"),
        ("https://example.com/x?api_key=secret@", {}, "has a api_key, which all may read"),
        ("http://169.254.169.254/latest", {}, "where clouds keep the secrets"),
        ("http://[::ffff:169.254.169.254]/latest", {}, "where clouds keep the secrets"),
        ("http://metadata.google.internal/", {}, "where clouds keep the secrets"),
        ("http://example.com/rerank", {"key": "TESTS"}, "not sent over http to example.com"),
        ("https://example.com/rerank", {"key": "OTHER"}, "PGRERANK_KEY_OTHER has no key"),
        ("https://example.com/rerank", {"key": "PATH; "}, "expected the NAME of an environment"),
        ("https://example.com/rerank", {"key_header": "a: b"}, "is no name of a header"),
        ("https://example.com/rerank", {"dialect": "openai"}, "expected one of tei, cohere"),
        ("https://example.com/rerank", {"scores": "log"}, "expected probability or raw"),
        ("https://example.com/rerank", {"dims": 3}, "has no option 'dims'"),
    ],
)
def test_what_may_not_be_asked(provider, source, options, message):
    with pytest.raises(ModelError, match=message) as caught:
        reranker(source, **options)
    assert "secret@" not in str(caught.value)


def test_the_worker_may_be_kept_to_some_hosts(provider, monkeypatch):
    monkeypatch.setenv("PGRERANK_HTTP_HOSTS", "rerank.internal, 127.0.0.1")
    assert ask(reranker(provider)) == pytest.approx(LOGITS, abs=1e-4)
    with pytest.raises(ModelError, match=r"none of those in the worker's PGRERANK_HTTP_HOSTS"):
        reranker("https://example.com/rerank")
