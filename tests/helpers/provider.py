"""A small provider of models over HTTP that speaks the published formats, and lies when told to.

Texts score by the words that they share with the query, and are encoded by a hash of each word, so
that every answer can be computed beside it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIMS = 16
Lie = int | bytes | Callable[["Handler"], None]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def logit(query: str, text: str) -> float:
    """The score of a text: what its words have in common with the query's, from -2 up."""
    return len(set(words(query)) & set(words(text))) - 2.0


def relevance(query: str, text: str) -> float:
    return 1 / (1 + math.exp(-logit(query, text)))


def embedding(text: str) -> list[float]:
    found = [1e-3] * DIMS
    for word in words(text):
        found[zlib.crc32(word.encode()) % DIMS] += 1.0
    return found


def token_vectors(text: str) -> list[list[float]]:
    return [embedding(word) for word in words(text) or ["nothing"]]


def _placed(values: list[Any], name: str) -> list[dict[str, Any]]:
    """Values with their places, the last text first."""
    return [{"index": place, name: value} for place, value in enumerate(values)][::-1]


def order(asked: dict[str, Any]) -> list[int]:
    """The numbers of documents, by what they have in common with the query; equal ones as given."""
    documents = sorted(asked["documents"], key=lambda one: -logit(asked["query"], one["text"]))
    return [one["number"] for one in documents]


def chat(content: str) -> dict[str, Any]:
    """A chat endpoint's answer."""
    return {
        "usage": {"prompt_tokens": 100, "completion_tokens": 5},
        "choices": [{"message": {"role": "assistant", "content": content}}],
    }


def answer(path: str, body: dict[str, Any]) -> Any:
    """What a provider answers to a request at a path, which begins with the provider's name."""
    provider, call = path.strip("/").split("/", 1)
    if call == "chat/completions":
        return chat(json.dumps({"order": order(json.loads(body["messages"][1]["content"]))}))
    texts = next(body[name] for name in ("documents", "texts", "input", "inputs") if name in body)
    if call == "rerank":
        query = body["query"]
        if provider == "tei":
            return _placed([logit(query, text) for text in texts], "score")
        ranks = _placed([relevance(query, text) for text in texts], "relevance_score")
        return {"data": ranks} if provider == "voyage" else {"results": ranks, "model": "m"}
    vectors = [embedding(text) for text in texts]
    match provider, call:
        case "tei", _:
            return vectors
        case "cohere", _:
            return {"embeddings": {"float": vectors}}
        case _, "tokens":
            name = "embeddings" if provider == "jina" else "data"
            return {"data": _placed([token_vectors(text) for text in texts], name)}
    return {"object": "list", "data": _placed(vectors, "embedding")}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        provider: Provider = self.server
        with provider.lock:
            provider.asked.append((self.path, self.body, dict(self.headers)))
            lie = provider.lies.pop(0) if provider.lies else provider.always
        if callable(lie):
            lie(self)
        elif isinstance(lie, int):
            self.answer({"error": {"message": f"no, {self.headers['Authorization']}"}}, lie)
        else:
            self.answer(answer(self.path, self.body) if lie is None else lie)

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        made = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(made))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(made)

    def log_message(self, *_arguments: object) -> None:
        pass


class Provider(ThreadingHTTPServer):
    """`asked`: paths, bodies and headers. `lies`: answers of the next requests, in place of the
    true ones: a status, a body, or what a handler does; `always`: that of all others.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.lies: list[Lie] = []
        self.always: Lie | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


@contextlib.contextmanager
def provider() -> Iterator[Provider]:
    with Provider() as server:
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
