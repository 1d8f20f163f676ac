"""The endpoint for HTTP clients: official clients, errors, and clients that mean no good."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import time
from pathlib import Path

import cohere
import httpx
import numpy as np
import openai
import psycopg
import pytest

from pgrerank.errors import EndpointError, SettingsError
from pgrerank.models import ModelSpec, load_reranker
from pgrerank.models.http import endpoint as remote
from pgrerank.worker.http import gatekeeper, serving, shapes
from pgrerank.worker.settings import worker_settings
from tests.helpers.certificates import certificate
from tests.helpers.sources import Source
from tests.helpers.workers import WorkerProcess, asking, worker

KEY = "a key for tests"
DOCUMENTS = [
    "A cat sleeps most of the day.",
    "Flour, water, salt and time make bread.",
    "naïve 漢字",
]
QUERY = "bread of flour"


class Endpoint:
    """A running worker's endpoint."""

    def __init__(self, process: WorkerProcess, dsn: str) -> None:
        self.process, self.dsn = process, dsn
        found = re.search(r"HTTP on 127\.0\.0\.1:(\d+)", process.log.read_text("utf-8"))
        assert found is not None
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def is_well(self) -> bool:
        answer = self.client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS})
        return answer.status_code == 200 and len(answer.json()) == len(DOCUMENTS)


@pytest.fixture(scope="module")
def endpoint(make_database, tiny_models, tmp_path_factory):
    from pgrerank.install import schema

    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
        Source(connection).models(**tiny_models)
    options = ("--http", "127.0.0.1:0", "--no-ingest")
    environment = {"PGRERANK_HTTP_KEY": KEY}
    folder = tmp_path_factory.mktemp("http")
    with worker(dsn, folder, *options, environment=environment) as process:
        made = Endpoint(process, dsn)
        with made.client:
            yield made
        assert KEY not in process.log.read_text("utf-8")


@pytest.fixture
def client(endpoint):
    return endpoint.client


def wire_scores(endpoint: Endpoint, query: str, documents: list[str]) -> list[float]:
    request = {"call": "cross_encode", "model": "reranker", "query": query, "documents": documents}
    with psycopg.connect(endpoint.dsn) as connection, asking(connection) as ask:
        [[answer]] = ask(json.dumps({"id": 1, "request": request}))
    return json.loads(answer)["scores"]


def test_tei_clients_get_the_scores_that_postgres_gets(endpoint, client):
    wanted = wire_scores(endpoint, QUERY, DOCUMENTS)
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True}
    answer = client.post("/rerank", json=body).json()
    assert [row["score"] for row in answer] == sorted(wanted, reverse=True)
    for row in answer:
        assert row["score"] == wanted[row["index"]]
        assert row["text"] == DOCUMENTS[row["index"]]
    likely = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS}).json()
    assert [row["index"] for row in likely] == [row["index"] for row in answer]
    for row in likely:
        assert row["score"] == pytest.approx(1 / (1 + np.exp(-wanted[row["index"]])))
        assert "text" not in row


def test_coheres_own_client_reranks(endpoint, client):
    order = [
        row["index"]
        for row in client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS}).json()
    ]
    with cohere.ClientV2(api_key=KEY, base_url=endpoint.url) as official:
        answer = official.rerank(model="reranker", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [result.index for result in answer.results] == order[:2]
    assert all(0 <= result.relevance_score <= 1 for result in answer.results)
    assert answer.id


def test_jinas_shape_returns_documents(client):
    body = {
        "model": "reranker",
        "query": QUERY,
        "documents": [{"text": text} for text in DOCUMENTS],
        "return_documents": True,
    }
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert {row["index"] for row in results} == {0, 1, 2}
    assert all(row["document"] == {"text": DOCUMENTS[row["index"]]} for row in results)


def test_openais_own_client_embeds_and_lists(endpoint, client):
    with openai.OpenAI(api_key=KEY, base_url=endpoint.url + "/v1", max_retries=0) as official:
        default = official.embeddings.create(model="embedding", input=DOCUMENTS)  # in base64
        plain = official.embeddings.create(
            model="embedding", input=DOCUMENTS, encoding_format="float"
        )
        one = official.embeddings.create(model="embedding", input=DOCUMENTS[0], dimensions=32)
        with pytest.raises(openai.UnprocessableEntityError, match="makes 32 dimensions, not 16"):
            official.embeddings.create(model="embedding", input="x", dimensions=16)
        with pytest.raises(openai.NotFoundError, match='no model "gpt"'):
            official.embeddings.create(model="gpt", input="x")
        assert [model.id for model in official.models.list()] == ["embedding", "reranker"]
    vectors = np.array([one.embedding for one in default.data])
    assert vectors.shape == (3, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert np.array([one.embedding for one in plain.data]) == pytest.approx(vectors)
    assert np.array(one.data[0].embedding) == pytest.approx(vectors[0], abs=1e-5)
    assert default.usage.total_tokens > 15
    tei = client.post("/embed", json={"inputs": DOCUMENTS}).json()
    assert np.array(tei) == pytest.approx(vectors, abs=1e-5)
    body = {"model": "embedding", "input": DOCUMENTS[0], "encoding_format": "base64"}
    raw = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), "<f4") == pytest.approx(vectors[0], abs=1e-5)


def test_health_and_the_openapi_page_need_no_key_and_all_else_does(endpoint):
    with httpx.Client(base_url=endpoint.url) as stranger:
        assert stranger.get("/health").json() == {"status": "ok"}
        assert "/v2/rerank" in stranger.get("/openapi.json").json()["paths"]
        assert stranger.get("/docs").status_code == 200
        for key in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xff"):
            answer = stranger.get("/v1/models", headers={"Authorization": key.encode("latin-1")})
            assert answer.status_code == 401, key
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert stranger.post("/rerank", content=b"{").status_code == 401


GOOD = {"query": "x", "texts": ["y"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/rerank", b"{", 422, "JSON"),
        ("/rerank", b"\xff\xfe", 422, "JSON"),
        ("/rerank", b"[" * 100_000, 400, ""),
        ("/rerank", b"", 422, ""),
        ("/rerank", b"null", 422, ""),
        ("/rerank", {"query": "x", "texts": []}, 422, "texts"),
        ("/rerank", {"query": "", "texts": ["y"]}, 422, "query"),
        ("/rerank", {"query": "x"}, 422, "texts"),
        ("/rerank", {"query": "x", "texts": [1]}, 422, "texts.0"),
        ("/rerank", b'{"query": "x", "texts": ["\\ud800"]}', 422, ""),
        ("/rerank", GOOD | {"model": "tokens"}, 404, "kind cross_encoder"),
        ("/rerank", {"query": "x", "texts": ["y"] * (shapes.MOST_TEXTS + 1)}, 422, "10000"),
        ("/rerank", {"query": "x", "texts": ["y"] * 1_000_000}, 422, "10000"),
        ("/v2/rerank", b'{"model":"reranker","query":"x","documents":["y"],"top_n":NaN}', 422, ""),
        ("/v2/rerank", {"model": "reranker", "query": "x", "documents": []}, 422, "documents"),
        ("/v2/rerank", {"query": "x", "documents": ["y"]}, 422, "model"),
        ("/v2/rerank", {"model": "m", "query": "x", "documents": ["y"], "top_n": 0}, 422, "top_n"),
        ("/v1/embeddings", {"model": "embedding", "input": []}, 422, "input"),
        ("/v1/embeddings", {"model": "embedding", "input": [[1, 2]]}, 422, "input"),
        ("/v1/embeddings", {"model": "reranker", "input": "x"}, 404, "kind embedding"),
        ("/v1/chat/completions", {}, 404, ""),
    ],
)
def test_what_is_wrong_is_named_and_harms_nobody(endpoint, client, path, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["message"]
    assert answer.json()["message"] == answer.json()["error"]["message"]
    assert len(answer.content) < 2000
    assert endpoint.is_well()


@pytest.mark.parametrize("text", ["", "\x00", "🐘" * 1000, "a" * 100_000, "\u202e" * 50])
def test_any_text_is_scored_and_embedded(client, text):
    [row] = client.post("/rerank", json={"query": "x", "texts": [text]}).json()
    assert 0 <= row["score"] <= 1
    assert len(client.post("/embed", json={"inputs": text}).json()[0]) == 32


def test_a_deadline_passes_with_504_and_a_hint_when_to_try_again(client):
    body = {"query": "x", "texts": [f"{number} two three" * 50 for number in range(5000)]}
    begun = time.monotonic()
    answer = client.post("/rerank", json=body, headers={"X-Timeout-Ms": "1"})
    assert time.monotonic() - begun < 8
    assert answer.status_code in (503, 504)
    assert answer.headers["Retry-After"] == "1"
    for wrong in ("nan", "0", "-1", "1e9", "soon"):
        refused = client.post("/rerank", json=GOOD, headers={"X-Timeout-Ms": wrong})
        assert refused.status_code == 422, wrong


def head(endpoint: Endpoint, *lines: str, path: str = "/rerank") -> bytes:
    known = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*known, "Content-Type: application/json", *lines, "", ""]).encode()


def test_a_huge_body_is_refused_before_it_is_read(endpoint):
    with endpoint.connect() as raw:
        raw.sendall(head(endpoint, f"Content-Length: {10 * 2**30}"))
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_huge_body_of_unknown_length_is_cut_off(endpoint):
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    sent = 0
    with endpoint.connect() as raw:
        raw.sendall(head(endpoint, "Transfer-Encoding: chunked"))
        try:
            while sent < 4 * gatekeeper.MOST_BYTES:
                raw.sendall(piece)
                sent += 0x10000
        except OSError:
            pass
    assert sent < 2 * gatekeeper.MOST_BYTES
    assert endpoint.is_well()


def test_slow_clients_are_let_go_and_others_are_served_meanwhile(endpoint):
    """Heads that drip, a body that never ends, and a client that says nothing."""
    begun = time.monotonic()
    silent, dripping, halted = (endpoint.connect() for _ in range(3))
    with silent, dripping, halted:
        halted.sendall(head(endpoint, "Content-Length: 100") + b'{"query"')
        for letter in b"POST /rer":
            dripping.sendall(bytes([letter]))
        assert endpoint.is_well()
        for one, least in ((silent, serving.HEAD_SECONDS), (dripping, serving.HEAD_SECONDS)):
            assert gone(one)
            assert least - 1 < time.monotonic() - begun < least + 10
        halted.settimeout(60)
        assert halted.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < gatekeeper.BODY_SECONDS + 10


def gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_what_a_client_waited_for_is_dropped_when_it_leaves(endpoint):
    body = json.dumps({"query": "x", "texts": [f"{n} one two three" * 50 for n in range(3000)]})
    for _ in range(5):
        with endpoint.connect() as raw:
            raw.sendall(head(endpoint, f"Content-Length: {len(body)}") + body.encode())
            time.sleep(0.3)
    deadline = time.monotonic() + 20
    with psycopg.connect(endpoint.dsn) as connection, asking(connection) as ask:
        while (waiting := {row[0]: row[2] for row in ask("SHOW status")})["cross_encode"] != "0":
            assert time.monotonic() < deadline, waiting
            time.sleep(0.05)
    assert endpoint.is_well()
    assert "Traceback" not in endpoint.process.log.read_text("utf-8")


def test_sigterm_lets_a_running_request_finish(make_database, tiny_models, tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    from pgrerank.install import schema

    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
        Source(connection).models(**tiny_models)
    options = ("--http", "127.0.0.1:0", "--no-ingest")
    with worker(dsn, tmp_path, *options, environment={"PGRERANK_HTTP_KEY": KEY}) as process:
        endpoint = Endpoint(process, dsn)
        body = {"query": "x", "texts": [f"{n} one two three" * 5 for n in range(200)]}
        with ThreadPoolExecutor() as pool, endpoint.client:
            assert endpoint.is_well()
            running = pool.submit(endpoint.client.post, "/rerank", json=body)
            time.sleep(0.1)
            process.signal(signal.SIGTERM)
            assert len(running.result().json()) == 200
        assert process.wait(30) == 0


def test_other_machines_need_a_key():
    with pytest.raises(SettingsError, match="PGRERANK_HTTP_KEY"):
        worker_settings("", "127.0.0.1:0", "p", http="0.0.0.0:8080")
    with pytest.raises(SettingsError, match="--http is 'x': HOST:PORT expected"):
        worker_settings("", "127.0.0.1:0", "p", http="x")
    assert worker_settings("", "127.0.0.1:0", "p", http="[::1]:80").http == ("::1", 80)
    open_to_all = worker_settings("", "127.0.0.1:0", "p", http="0.0.0.0:80", http_key="k")
    assert open_to_all.http_key == "k"


def test_over_tls_our_own_loader_asks_it_too(endpoint, tmp_path, monkeypatch):
    """Both ports have the certificate; a client that does not know it is not answered."""
    cert, key = certificate(tmp_path)
    options = ("--http", "127.0.0.1:0", "--no-ingest", "--tls-cert", str(cert))
    environment = {"PGRERANK_HTTP_KEY": KEY}
    monkeypatch.setenv("PGRERANK_KEY_OURS", KEY)
    expected = wire_scores(endpoint, QUERY, DOCUMENTS)
    with worker(endpoint.dsn, tmp_path, *options, "--tls-key", str(key),
                environment=environment) as process:  # fmt: skip
        url = Endpoint(process, endpoint.dsn).url.replace("http://", "https://") + "/rerank"
        spec = ModelSpec("ours", "cross_encoder", "http", url, options={
            "dialect": "tei", "key": "OURS", "model": "reranker"})  # fmt: skip
        with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
            load_reranker(spec).score([(QUERY, text) for text in DOCUMENTS])
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        remote._tls.cache_clear()
        try:
            scores = load_reranker(spec).score([(QUERY, text) for text in DOCUMENTS])
        finally:
            remote._tls.cache_clear()
    assert scores == pytest.approx(expected, abs=1e-5)
