"""Traces: an attempt is a span under whoever enqueued its job, and so is what the handler does and enqueues itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue

import howdah
from howdah.tracecontext import trace_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from conftest import StartDaemon

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HANDLERS = """
from opentelemetry import trace

@handler("async")
async def in_loop(job: Job) -> None:
    with trace.get_tracer("app").start_as_current_span("inner"):
        await job.enqueue("thread", {})

@handler("thread")
def in_thread(job: Job) -> None:
    trace.get_tracer("app").start_span("inner in thread").end()

@handler("fails", max_attempts=1, secret=["token"])
async def fails(job: Job) -> None:
    raise ValueError("no such thing as " + job.payload["token"])
"""


class Collector:
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: dict[str, Any] = {}
        self.service = ""

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest()
        message.ParseFromString(await request.read())
        for resource in message.resource_spans:
            self.service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                self.spans.update({span.name: span for span in scope.spans})
        return web.Response()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


async def test_spans_of_a_daemon_go_on_where_the_enqueuing_sql_says(
    daemon: StartDaemon, connection: asyncpg.Connection, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    await daemon(HANDLERS)
    job = await enqueue(connection, "async", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}, subject="course:42")
    failing = await enqueue(connection, "fails", {"token": "s3cret"}, headers={"traceparent": 7})
    await end_of(connection, failing)
    await aeventually(lambda: {"async", "thread", "inner", "inner in thread", "fails"} <= set(collector.spans))
    spans = collector.spans
    assert collector.service == "howdah"
    assert {spans[name].trace_id.hex() for name in ("async", "inner", "thread", "inner in thread")} == {TRACE}
    assert spans["async"].parent_span_id.hex() == PARENT
    assert spans["inner"].parent_span_id == spans["async"].span_id
    # What a handler enqueues is its child, across the database.
    assert spans["thread"].parent_span_id == spans["inner"].span_id
    assert spans["inner in thread"].parent_span_id == spans["thread"].span_id
    facts = {attribute.key: attribute.value for attribute in spans["async"].attributes}
    assert (facts["howdah.job.id"].int_value, facts["howdah.outcome"].string_value) == (job, "completed")
    assert facts["howdah.subject"].string_value == "course:42"
    failed = spans["fails"]
    assert (failed.parent_span_id, failed.status.code) == (b"", 2)
    assert failed.status.message.startswith("ValueError: no such thing as")
    assert b"s3cret" not in failed.SerializeToString()


async def test_without_being_asked_a_daemon_traces_nothing_and_loads_nothing(
    daemon: StartDaemon, connection: asyncpg.Connection
) -> None:
    await daemon("""
    @handler("look")
    async def look(job: Job) -> dict[str, Any]:
        return {"loaded": sorted(name for name in sys.modules if name.startswith("opentelemetry"))}
    """)
    row = await end_of(connection, await enqueue(connection, "look", headers={"traceparent": "x"}))
    assert row["result"] == {"loaded": []}


async def test_jobs_that_the_client_enqueues_carry_the_active_span(connection: asyncpg.Connection) -> None:
    with TracerProvider().get_tracer("app").start_as_current_span("request") as span:
        one = await howdah.enqueue(connection, "work", headers={"tenant": "a"})
        many = await howdah.enqueue_many(
            connection, [{"kind": "work"}, {"kind": "work", "headers": {"traceparent": "mine"}}]
        )
        await howdah.enqueue_payloads(connection, "work", [{}])
    trace = f"00-{span.get_span_context().trace_id:032x}-{span.get_span_context().span_id:016x}-0"
    rows = await connection.fetch("select id, headers from howdah.jobs order by id")
    assert [row["id"] for row in rows][:3] == [one.id, many[0].id, many[1].id]
    carried = [row["headers"]["traceparent"][: len(trace)] for row in rows]
    assert carried == [trace, trace, "mine", trace]
    assert rows[0]["headers"]["tenant"] == "a"
    await howdah.enqueue(connection, "later")
    assert await connection.fetchval("select headers from howdah.jobs where kind = 'later'") is None


def test_the_headers_of_whoever_enqueues_carry_the_active_span_and_nothing_without_one() -> None:
    assert trace_headers() == {}
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter := InMemorySpanExporter()))
    with provider.get_tracer("app").start_as_current_span("request"):
        headers = trace_headers()
    assert trace_headers() == {}
    [span] = exporter.get_finished_spans()
    assert headers["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-0")
