"""All of bridge behind PgBouncer in transaction mode: a session of the server is lent for one transaction."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from bridge.config import load
from tests.cluster import PATIENCE_S, Stream, assert_all_arrived, at_rest, start_cluster
from tests.platforms import Platforms, serve_platforms
from tests.postgres import PostgresServer
from tests.processes import free_port, until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer on this machine")

SESSIONS = 4  # of the server, for all processes together


@contextmanager
def pooler(server: PostgresServer, database: str) -> Iterator[str]:
    """Give the URL of *database* behind a pooler with few sessions, and none for anybody's own."""
    port, place, folder = free_port(), urlsplit(server.url(database)), Path(tempfile.mkdtemp())
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n{database} = host=127.0.0.1 port={place.port} user=postgres\n"
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\n"
        f"listen_port = {port}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {SESSIONS}\n"
        "max_client_conn = 100\nignore_startup_parameters = extra_float_digits\n"
    )
    file.chmod(0o644)
    folder.chmod(0o755)
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to be root
    assert PROGRAM is not None
    with (folder / "pgbouncer.log").open("wb") as out:
        process = subprocess.Popen([PROGRAM, str(file)], stdout=out, stderr=out, user=user)
    url = f"postgresql://postgres@127.0.0.1:{port}/{database}"
    try:
        until(lambda: answers(url), seconds=PATIENCE_S, what="the pooler")
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        shutil.rmtree(folder)


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


def test_all_of_it_works_behind_a_pooler_that_lends_sessions_for_a_transaction(
    platforms: Platforms, postgres_server: PostgresServer, migrated_postgres_url: str, tmp_path: Path
) -> None:
    path = platforms.write_config(tmp_path, settle_s=1, routed=["marketing", "sms"])
    config = load(path, platforms.environ)
    database = urlsplit(migrated_postgres_url).path.lstrip("/")
    with (
        pooler(postgres_server, database) as url,
        start_cluster(path, platforms.environ, url, webs=2, workers=2) as cluster,
    ):
        with Stream(config, cluster.urls) as stream:
            stream.wait_for_everybody()
            stream.wait_for_everybody()
        until(lambda: at_rest(cluster.api), seconds=PATIENCE_S, what="all deliveries at rest")
        log = cluster.events()
    assert stream.statuses() == {200}
    assert_all_arrived(platforms, stream, migrated_postgres_url)
    assert [event for event in log if event["level"] == "error"] == []
