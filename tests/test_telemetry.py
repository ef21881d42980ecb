"""Traces: what a collector is told, what it is not, and that bridge does as well without one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs
from werkzeug.wrappers import Request, Response

from bridge import telemetry
from bridge.config import load
from bridge.demo.fakes.server import serve
from bridge.model import utc_now
from bridge.store.protocol import Filter
from tests.platforms import Platforms, open_bench, person, serve_platforms, signed, webhook
from tests.processes import free_port

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Attributes = dict[str, object]


class Collector:
    """Takes OTLP over HTTP, as any collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.services: set[object] = set()
        self.spans: list[tuple[str, Attributes, bool]] = []  # name, attributes, whether it failed

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        assert (request.path, request.mimetype) == ("/v1/traces", "application/x-protobuf")
        body = request.get_data()
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {one.key: plain(one.value) for one in resource.resource.attributes}
            self.services.add(about["service.name"])
            for span in (one for scope in resource.scope_spans for one in scope.spans):
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                facts = {one.key: plain(one.value) for one in span.attributes}
                self.spans.append((span.name, facts, span.status.code == span.status.STATUS_CODE_ERROR))
        return Response(status=200, content_type="application/x-protobuf")(environ, start_response)


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind or "string_value")


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as running:
        yield running


def test_a_collector_is_told_of_rounds_and_pushes_and_of_no_person(
    tmp_path: Path, platforms: Platforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in platforms.environ.items():
        monkeypatch.setenv(name, value)
    ana = person(1, name="Ana", surname="Lovelace")
    collector = Collector()
    with serve(collector) as url, open_bench(tmp_path, load(platforms.write_config(tmp_path))) as bench:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        bench.worker.spans = telemetry.start()
        platforms.sms.trouble(status=422, times=1, method="POST", path="/contacts")
        bench.receive(signed(bench.config, webhook("changed", ana, utc_now()), "msg_trace"))
        bench.settle()
        bench.worker.spans.close()
        [inbound] = bench.store.inbound_page(Filter(), None, 10).items
    assert collector.services == {"bridge"}
    rounds = [facts for name, facts, _ in collector.spans if name == "bridge.process"]
    assert rounds == [{"bridge.source": "shop", "bridge.inbounds": [inbound.id]}]
    pushes = {str(facts["bridge.target"]): (facts, failed) for name, facts, failed in collector.spans[1:]}
    assert set(pushes) == set(platforms.fakes)
    assert {target for target, (_, failed) in pushes.items() if failed} == {"sms"}
    assert pushes["marketing"][0] == {
        "bridge.target": "marketing",
        "bridge.source": "shop",
        "bridge.source_id": ana["id"],
        "bridge.state": "synced",
        "bridge.calls": len(platforms.marketing.calls),
    }
    assert pushes["sms"][0]["http.response.status_code"] == 422
    assert pushes["sms"][0]["error.type"] == "invalid"
    sent = b"".join(collector.bodies)
    for personal in (ana["email"], ana["phone"], ana["name"], ana["surname"]):
        assert personal.encode() not in sent


def test_without_a_collector_nothing_is_made_or_imported() -> None:
    code = (
        "import sys, bridge.process; from bridge import telemetry;"
        "assert type(telemetry.start({})) is telemetry.Spans;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("name", telemetry.ENDPOINTS)
def test_an_installation_without_the_extra_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with capture_logs() as logged:
        spans = telemetry.start({name: "http://127.0.0.1:4318"})
        spans.add("bridge.process", time.time_ns(), {})
        spans.close()
    [told] = logged
    assert (told["event"], told["log_level"]) == ("telemetry.missing", "warning")
    assert name in told["reason"]
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in told["reason"]


def test_the_sdks_own_switch_is_heeded() -> None:
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}
    assert type(telemetry.start(away)) is telemetry.Spans


def test_a_collector_that_is_away_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with capture_logs() as logged:
        spans = telemetry.start()
        spans.add("bridge.process", time.time_ns(), {"bridge.source": "shop"})
        spans.close()
    assert {one["event"] for one in logged} == {"telemetry.trouble"}


def test_a_collector_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "LAST_S", 0.05)
    stuck = Stuck()
    spans = telemetry.OtelSpans(stuck, service="bridge")
    spans.add("bridge.process", time.time_ns(), {"bridge.source": "shop"})
    spans.close()
    assert stuck.asked.wait(5)
    assert not stuck.over.is_set()
    stuck.goes_on.set()
    assert stuck.over.wait(5)


class Stuck(SpanExporter):
    """Takes spans for as long as the test wants."""

    def __init__(self) -> None:
        self.asked, self.goes_on, self.over = threading.Event(), threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.goes_on.wait()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.over.set()
