"""Deployed as docs/deploying.md says: the files for it, and a life behind a proxy that ends with SIGTERM."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import process

ROOT = Path(__file__).parents[1]


# --- disks --------------------------------------------------------------------------------------------------


def ephemeral(database: str, **environ: str) -> str:
    found = process.ephemeral_host(environ, Path(database))
    return found.title if found else ""


def test_only_a_disk_that_was_attached_keeps_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {Path("/"), Path("/data"), Path("/tmp")}
    monkeypatch.setattr(Path, "is_mount", lambda path: path in mounts)
    assert ephemeral("data/bridge.db", FLY_APP_NAME="bridge") == "Fly.io"
    assert ephemeral("/app/data/bridge.db", RENDER="true") == "Render"
    assert ephemeral("/data/new/bridge.db", RENDER="true") == ""
    assert ephemeral("/tmp/bridge.db", RENDER="true") == "Render"
    assert ephemeral("/data/bridge.db", DYNO="web.1") == "Heroku"
    assert ephemeral("data/bridge.db", HOME="/root") == ""
