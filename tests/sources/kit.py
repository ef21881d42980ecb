"""What tests of sources share: each type's connection as its recordings want it, and what it is told."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bridge import config
from bridge.config import SourceConnection
from bridge.model import Change, Event, InboundRequest
from bridge.sources.base import Source

NOW = datetime(2026, 9, 21, 14, 13, 30, tzinfo=UTC)  # ten seconds after most of what the recordings tell
BASE_URL = "https://bridge.example.com"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "sources"
VECTORS = Path(__file__).parents[1] / "vectors"

HEAD = f'[bridge]\npublic_url = "{BASE_URL}"\n\n'
TARGET = """
[targets.inbox]
type = "clerk_chat"
api_key = "k"

[[routes]]
source = "crm"
target = "inbox"
fields = { phone = "phone" }
"""


@cache
def connection(kind: str, more: str = "") -> SourceConnection:
    """Return the connection of the recordings of *kind*; *more* are further lines of its section."""
    section = (FIXTURES / kind / "connection.toml").read_text("utf-8")
    return connection_of(f"{section.rstrip()}\n{more}\n")


def connection_of(section: str) -> SourceConnection:
    """Return what ``[sources.crm]`` comes to, read as any configuration is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bridge.toml"
        path.write_text(f"{HEAD}{section}{TARGET}", "utf-8")
        return config.load(path, {}).sources["crm"]


def parse(source: Source, request: InboundRequest, received_at: datetime = NOW) -> list[Event]:
    return source.parse(source.verify(source.sign(request, received_at), received_at), received_at)


def parse_body(source: Source, body: object, received_at: datetime = NOW, **headers: str) -> list[Event]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse(source, InboundRequest("POST", f"{BASE_URL}/hooks/crm", named, content), received_at)


def only(source: Source, body: object, received_at: datetime = NOW, **headers: str) -> Event:
    (event,) = parse_body(source, body, received_at, **headers)
    return event


def one_change(source: Source, body: object, received_at: datetime = NOW, **headers: str) -> Change:
    (change,) = only(source, body, received_at, **headers).changes
    return change


def vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return found
