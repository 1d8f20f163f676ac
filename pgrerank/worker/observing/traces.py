"""Traces: a span for each request, in the trace that its session belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pgrerank import __version__
from pgrerank.worker.observing.observer import call_of, outcome
from pgrerank.worker.requests import Encode, Envelope, Highlight, MaxSim

LONGEST = 512
"""Characters of a traceparent that are looked at."""


class Traces:
    """Makes spans, and hands them over in a thread of its own.

    What OpenTelemetry's own variables say holds: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
    OTEL_EXPORTER_OTLP_HEADERS and so on.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.version": __version__})
        if resource.attributes.get("service.name") in (None, "unknown_service"):
            resource = resource.merge(Resource({"service.name": "pgrerank"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pgrerank", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, envelope: Envelope) -> Iterator[None]:
        """Make a request's span; a traceparent that is none begins a trace of its own."""
        given = envelope.traceparent
        is_text = isinstance(given, str) and len(given) <= LONGEST
        parent = self._propagator.extract({"traceparent": given} if is_text else {})
        call = call_of(envelope)
        span = self._tracer.start_span(
            f"pgrerank {call}", parent, SpanKind.SERVER, _attributes(envelope)
        )
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            span.set_attribute("pgrerank.outcome", outcome(error))
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, outcome(error)))
            span.end()

    def batch(self, lane: str, items: int, tokens: int, seconds: float) -> None:
        """Batches are of several requests, and belong to none."""

    def close(self) -> None:
        """Hand over what there is still."""
        self._provider.shutdown()


def traces_to(url: str) -> Traces:
    """Traces that go to an OTLP/HTTP collector, such as http://127.0.0.1:4318."""
    return Traces(OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces"))


def _attributes(envelope: Envelope) -> dict[str, str | int | float | bool]:
    """What a span says of a request: sizes and names, and nothing of its texts."""
    request = envelope.request
    found: dict[str, str | int | float | bool] = {
        "pgrerank.call": call_of(envelope),
        "pgrerank.timeout_ms": envelope.timeout_ms,
        "pgrerank.background": envelope.background,
    }
    match request:
        case Encode():
            found["pgrerank.queries"] = len(request.texts)
            models = [request.embedding, request.late_interaction]
            found["pgrerank.model"] = ", ".join(name for name in models if name)
        case MaxSim():
            found["pgrerank.documents"] = len(request.documents)
        case Highlight():
            found["pgrerank.documents"] = len(request.passages)
            found["pgrerank.model"] = request.model
        case _:
            found["pgrerank.documents"] = len(request.documents)
            found["pgrerank.model"] = request.model
    return found
