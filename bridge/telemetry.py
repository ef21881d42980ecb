"""Traces over OpenTelemetry, for whoever has a collector: a span for each round of processing and each push.

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set; only then is OpenTelemetry imported. A span holds
ids, counts and words of ours, as a log event does, and is made only after what it tells of is over: what a
collector does or fails to do holds up no contact. Everything else is set by the SDK's own variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bridge import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
MISSING = (
    "{} is set, but this bridge was installed without OpenTelemetry, so no traces are sent. "
    "Everything else works. To have them: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
)
LAST_S = 3.0  # for a collector to take the last spans; platforms give a process ten seconds to end

Fact = str | int | Sequence[int]


class Spans:
    """Takes spans and does nothing with them: tracing is off."""

    def add(self, name: str, began_ns: int, facts: Mapping[str, Fact], *, failure: str = "") -> None:
        """Tell of something that began at *began_ns* (Unix time) and is over now. *failure*: an error's class."""

    def close(self) -> None:
        """Send what is left; wait for it no longer than `LAST_S`."""


def start(environ: Mapping[str, str] | None = None) -> Spans:
    """Return where spans go: to the collector that the environment names, otherwise nowhere."""
    given = os.environ if environ is None else environ
    endpoint = next((name for name in ENDPOINTS if given.get(name, "").strip()), "")
    if not endpoint or given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Spans()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        log.event("telemetry.missing", level="warning", reason=MISSING.format(endpoint))
        return Spans()
    return OtelSpans(OTLPSpanExporter(), service=given.get("OTEL_SERVICE_NAME", "").strip() or "bridge")


class OtelSpans(Spans):
    """Hands spans in batches to *exporter*, in a thread of its own; what it cannot get rid of is dropped."""

    def __init__(self, exporter: SpanExporter, service: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        _listen()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("bridge")

    def add(self, name: str, began_ns: int, facts: Mapping[str, Fact], *, failure: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self._tracer.start_span(name, attributes=facts, start_time=began_ns)
        if failure:
            span.set_attribute("error.type", failure)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        # The SDK itself would wait for half a minute.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(LAST_S)


class _Events(logging.Handler):
    """The SDK's own complaints as events of ours: what it says, without the values that it says it of."""

    def emit(self, record: logging.LogRecord) -> None:
        log.event("telemetry.trouble", level=record.levelname.lower(), message=str(record.msg))


def _listen() -> None:
    theirs = logging.getLogger("opentelemetry")
    if not any(isinstance(one, _Events) for one in theirs.handlers):
        theirs.addHandler(_Events(logging.WARNING))
        theirs.propagate = False
