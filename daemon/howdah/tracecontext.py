"""W3C's trace context as headers of a job, for whoever enqueues."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def trace_headers() -> dict[str, str]:
    """Give the headers that carry the current span to a job; none without one.

    Costs nothing in a program that has no OpenTelemetry: it is only looked for where somebody has imported it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415  # an extra

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def traced(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give enqueue's options with the current span in their headers; what the caller put there stands."""
    headers, given = trace_headers(), options.get("headers")
    if not headers or not isinstance(given, Mapping | None):
        return options
    return {**options, "headers": {**headers, **(given or {})}}
