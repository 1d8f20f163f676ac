"""Metrics, traces and continuous checks of a worker, through the doors that users have."""

from __future__ import annotations

import http.server
import json
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from pgrerank.errors import MissingExtraError, RequestError
from pgrerank.models.precision import has_fast_bfloat16
from pgrerank.worker.observing.observation import Observation
from pgrerank.worker.observing.observer import Observers
from pgrerank.worker.observing.serving import CLIENTS, serving_metrics
from pgrerank.worker.observing.traces import Traces
from pgrerank.worker.requests import Envelope, parse
from pgrerank.worker.settings import worker_settings
from tests.helpers.workers import WorkerProcess, asking, wait_for, worker

SEARCH = "SELECT id, degraded FROM pgrerank.documents_search(%s, top_k => 2)"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def samples(text: str) -> dict[tuple, float]:
    """Values by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics_port(process: WorkerProcess) -> int:
    [found] = re.findall(r"metrics at http://127.0.0.1:(\d+)/", process.log.read_text("utf-8"))
    return int(found)


@contextmanager
def collecting() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP/HTTP collector: its URL, and what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()


def spans_of(received: list[ExportTraceServiceRequest]) -> list:
    return [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def eventually(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_shows_its_work_and_hands_over_traces(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(timeout="20 s", log_sample=1)
    db.execute("SELECT pgrerank.feedback('documents', 'pool', 1)")
    with collecting() as (url, received):
        options = ("--metrics", "127.0.0.1:0", "--traces", url)
        with worker(dsn, tmp_path, *options) as process:
            wait_for(db, "pending = 0")
            db.execute(f"SET pgrerank.traceparent = '{PARENT}'")
            for _ in range(2):
                assert not db.execute(SEARCH, ("a pool",)).fetchone()[1]
            db.execute("SET pgrerank.traceparent = 'no''nsense\"}'")
            assert not db.execute(SEARCH, ("a cat",)).fetchone()[1]
            db.execute("SELECT pgrerank.cross_encode('reranker', 'q', '{one, two}')")
            port = metrics_port(process)
            eventually(lambda: "pgrerank_stage_seconds_bucket" in get(port))
            _check_metrics(samples(get(port)))
            _check_a_stopped_worker(process, port)
            eventually(lambda: "hnsw_recall" in get(port), 60)
        _check_spans(spans_of(received))
    rows = db.execute("SELECT measure, value, is_bad FROM pgrerank.checks").fetchall()
    found = {measure: (value, is_bad) for measure, value, is_bad in rows}
    assert found["hnsw_recall"] == (1, False)
    assert found["stale_documents"] == (0, False)


def automatic() -> str:
    return "bfloat16" if has_fast_bfloat16() else "float32"


def _check_metrics(found: dict[tuple, float]) -> None:
    assert found["pgrerank_requests_total", ("call", "cross_encode"), ("outcome", "ok")] >= 3
    assert found["pgrerank_request_seconds_count", ("call", "encode")] >= 2
    assert found["pgrerank_batch_tokens_sum", ("lane", "cross_encode")] > 0
    assert found["pgrerank_batch_items_count", ("lane", "ingest")] >= 1
    assert found["pgrerank_cache_hits_total", ("call", "cross_encode")] >= 1
    sizes = {key[1:]: size for key, size in found.items() if key[0] == "pgrerank_model_bytes"}
    assert sizes[("device", "cpu"), ("model", "reranker"), ("precision", automatic())] > 1000
    assert found["pgrerank_pending_documents", ("reranker", "documents")] == 0
    assert found[("pgrerank_database_up",)] == 1
    assert found[("pgrerank_sessions",)] >= 1
    total = (("reranker", "documents"), ("stage", "total"))
    assert found["pgrerank_stage_seconds_count", *total] >= 1
    assert found[("pgrerank_stage_seconds_bucket", ("le", "+Inf"), *total)] >= 1
    assert ("process_resident_memory_bytes",) in found


def _check_a_stopped_worker(process: WorkerProcess, port: int) -> None:
    """A scraper waits and gives up; afterwards all is as before."""
    process.signal(signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", port), 1) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)
    process.signal(signal.SIGCONT)
    assert "pgrerank_worker_info" in get(port)


def _check_spans(spans: list) -> None:
    named = [span.name for span in spans]
    assert {"pgrerank encode", "pgrerank maxsim", "pgrerank cross_encode"} >= set(named)
    ours = [span for span in spans if span.trace_id.hex() == TRACE]
    assert {span.name for span in ours} >= {"pgrerank encode", "pgrerank cross_encode"}
    assert all(span.parent_span_id.hex() == SPAN for span in ours)
    others = [span for span in spans if span.trace_id.hex() != TRACE]
    assert others
    assert all(not span.parent_span_id for span in others)
    said = {a.key: a.value for a in ours[-1].attributes}
    assert said["pgrerank.outcome"].string_value == "ok"
    assert "a pool" not in str(spans)


@pytest.mark.parametrize(
    "given", [None, 7, "", "x" * 10_000, PARENT.replace("4", "g"), f"ff-{TRACE}-{SPAN}-01", []]
)
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(given):
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    request = {"call": "cross_encode", "model": "m", "query": "secret", "documents": ["secret"]}
    statement = json.dumps({"request": request, "traceparent": given})
    with traces.request(parse(statement)):
        pass
    traces.close()
    [span] = exporter.get_finished_spans()
    assert span.parent is None
    assert span.attributes["pgrerank.documents"] == 1
    assert "secret" not in span.to_json()


def test_spans_tell_how_requests_end():
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    request = '{"request": {"call": "maxsim", "query": "", "documents": []}, "traceparent": "%s"}'
    envelope: Envelope = parse(request % PARENT)
    for sqlstate in ("53300", "PGR02", "22023"):
        with pytest.raises(RequestError), Observers(traces).request(envelope):
            raise RequestError("no", sqlstate=sqlstate)
    traces.close()
    spans = exporter.get_finished_spans()
    outcomes = [span.attributes["pgrerank.outcome"] for span in spans]
    assert outcomes == ["refused", "expired", "failed"]
    assert {span.parent.span_id for span in spans} == {int(SPAN, 16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "9187"), "--metrics is '9187': HOST:PORT expected, such as 127.0.0.1:9187"),
        (("--traces", "localhost:4318"), "the URL of an OTLP/HTTP collector expected"),
    ],
)
def test_wrong_addresses_are_refused(options, message):
    from typer.testing import CliRunner

    from pgrerank.cli import app

    result = CliRunner().invoke(app, ["worker", "--register", *options])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("package", "given", "option"),
    [
        ("prometheus_client", {"metrics": "127.0.0.1:0"}, "--metrics"),
        ("opentelemetry.sdk.trace", {"traces": "http://127.0.0.1:1"}, "--traces"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, package, given, option):
    for name in ("metrics", "traces"):
        monkeypatch.delitem(sys.modules, f"pgrerank.worker.observing.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    settings = worker_settings("", "127.0.0.1:0", "secret", **given)
    with pytest.raises(MissingExtraError, match=rf"{option} needs .*pgrerank\[observe\]"):
        Observation(settings)


def _answer(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return client.recv(10)
        except ConnectionError:
            return b""


def test_slow_and_hostile_scrapers_are_shut_out_and_others_served(caplog):
    made = []

    def render() -> bytes:
        made.append(1)
        return b"x" * 20_000_000 + b"\n"

    with serving_metrics(render, "127.0.0.1", 0) as port:
        assert len(get(port)) == 20_000_001
        begun = time.monotonic()
        for _ in range(5):
            get(port)
        assert len(made) <= 2 + time.monotonic() - begun, "a page is good for a second"
        assert "/metrics" in get(port, "/")
        for path, body in (("/nowhere", None), ("/metrics", b"")):  # with a body it is a POST
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
            with pytest.raises(urllib.error.HTTPError, match=r"40[45]"):
                urllib.request.urlopen(request, timeout=5)
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(b"\x00\xff" * 8192)
            assert client.recv(10) == b""
        slow = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CLIENTS)]
        unread = slow.pop()
        unread.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        assert _answer(port) == b"", "there are enough of them"
        begun = time.monotonic()
        for one in slow:
            assert one.recv(1) == b"", "who says nothing is hung up on"
            one.close()
        assert time.monotonic() - begun < 8
        unread.close()
        assert "/metrics" in get(port, "/")
    assert caplog.messages == []


def test_a_request_of_the_background_gives_way(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(timeout="20 s")
    with worker(dsn, tmp_path, "--no-checks"):
        wait_for(db, "pending = 0")
        with asking(db) as ask:
            lanes = lambda: {row[0]: int(row[1]) for row in ask("SHOW status")}  # noqa: E731
            before = lanes()
            db.execute("SET pgrerank.background = on")
            db.execute(SEARCH, ("pool",))
            after = lanes()
        assert after["ingest"] > before["ingest"]
        assert {k: v for k, v in after.items() if k != "ingest"} == {
            k: v for k, v in before.items() if k != "ingest"
        }
