"""OpenTelemetry, where it is installed and asked for: every attempt a span, under the trace that its job was enqueued in."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from howdah.job import Attempt, Job

log = logging.getLogger("howdah.tracing")

#: Names the exporter, as for every program with OpenTelemetry: otlp, console; none, or nothing: no tracing.
VARIABLE = "OTEL_TRACES_EXPORTER"
#: The headers of W3C's trace context.
HEADERS = ("traceparent", "tracestate")


def start_tracing() -> Tracing | None:
    """Begin to trace if the environment, or the handlers' own modules, have asked for it; else None."""
    asked = os.environ.get(VARIABLE, "").strip().lower().removeprefix("none")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not (asked or "opentelemetry.sdk.trace" in sys.modules):
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415  # an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    except ImportError:
        log.warning("not traced: OpenTelemetry is not installed, pip install howdah[otel]", extra={VARIABLE: asked})
        return None
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        # Theirs: we make spans, and they decide where these go.
        return Tracing(trace.get_tracer("howdah"), None)
    provider = _provider(asked) if asked else None
    if provider is None:
        return None
    trace.set_tracer_provider(provider)
    return Tracing(trace.get_tracer("howdah"), provider)


class Tracing:
    """Makes a span of each attempt."""

    def __init__(self, tracer: Tracer, provider: TracerProvider | None) -> None:
        self._tracer = tracer
        self._provider = provider

    async def follow(
        self, job: Job[Any], context: Context, call: Coroutine[Any, Any, Attempt | None]
    ) -> Attempt | None:
        """Await the call of a handler within a span that is current in its context."""
        span = self._begin(job, context)
        try:
            outcome = await call
        except BaseException as error:
            _end(span, type(error).__name__, failed=True)
            raise
        _end(span, "completed" if outcome is None else outcome.outcome, outcome)
        return outcome

    def close(self) -> None:
        """Send off what is not sent yet; waits for the exporter."""
        if self._provider is not None:
            self._provider.shutdown()

    def _begin(self, job: Job[Any], context: Context) -> Span:
        from opentelemetry import context as current  # noqa: PLC0415  # an extra
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        # Headers are whatever somebody enqueued.
        headers = job.headers if isinstance(job.headers, dict) else {}
        carrier = {name: value for name in HEADERS if isinstance(value := headers.get(name), str)}
        span = self._tracer.start_span(
            job.kind,
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "howdah",
                "messaging.operation.type": "process",
                "messaging.destination.name": job.queue,
                "messaging.message.id": str(job.id),
                "howdah.job.id": job.id,
                "howdah.queue": job.queue,
                "howdah.attempt": job.attempt,
                **({"howdah.subject": job.subject} if job.subject is not None else {}),
            },
        )
        context.run(current.attach, set_span_in_context(span))
        return span


def _end(span: Span, outcome: str, attempt: Attempt | None = None, *, failed: bool = False) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  # an extra

    span.set_attribute("howdah.outcome", outcome)
    if attempt is not None and attempt.error is not None and outcome in {"retried", "dead"}:
        # What is stored of the error, secrets masked, and not the error itself.
        error = orjson.loads(attempt.error)
        kind, message = str(error.get("type")), str(error.get("message"))
        span.add_event("exception", {"exception.type": kind, "exception.message": message})
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}"))
    elif failed:
        span.set_status(Status(StatusCode.ERROR, outcome))
    span.end()


def _provider(asked: str) -> TracerProvider | None:
    """Make what sends spans where the environment says."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "howdah"}))
    for name in filter(None, (part.strip() for part in asked.split(","))):
        if name == "otlp":
            grpc = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf") == "grpc"
            wanted = "otlp_proto_grpc" if grpc else "otlp_proto_http"
        else:
            wanted = name
        found = list(entry_points(group="opentelemetry_traces_exporter", name=wanted))
        if not found:
            log.warning("not traced: no exporter of that name is installed", extra={VARIABLE: name})
            return None
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return provider
