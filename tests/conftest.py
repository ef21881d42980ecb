"""What all tests share: the same examples every time, unless somebody goes exploring."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from bridge.database import Database
from tests.databases import KINDS, Emptied, Files, Fresh, emptied
from tests.postgres import PostgresServer
from tests.postgres import migrated_postgres_url as migrated_postgres_url
from tests.postgres import migrated_template as migrated_template
from tests.postgres import postgres_server as postgres_server
from tests.postgres import postgres_url as postgres_url
from tests.stage import Stage, Template, open_stage

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)  # HYPOTHESIS_PROFILE=explore make test
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

pytest.register_assert_rewrite("tests.store_contract", "tests.engine_contract", "tests.cluster")


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """One of everything that can happen, made once for all tests of this process."""
    with open_stage() as made:
        yield made


@pytest.fixture(scope="session")
def stage(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A bridge to look at. Tests that change something use `own_stage`."""
    with template.copy(tmp_path_factory.mktemp("stage")) as served:
        yield served


@pytest.fixture
def own_stage(template: Template, tmp_path: Path) -> Iterator[Stage]:
    with template.copy(tmp_path) as served:
        yield served


@pytest.fixture(scope="session")
def emptied_postgres(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Emptied]:
    with emptied(postgres_server, migrated_template) as databases:
        yield databases


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Fresh:
    """Has the test run on each kind of database; a call makes an empty one."""
    if request.param == "sqlite":
        return Files(tmp_path)
    emptied_databases: Emptied = request.getfixturevalue("emptied_postgres")
    return emptied_databases


@pytest.fixture
def each_fresh(emptied_postgres: Emptied, tmp_path: Path) -> Mapping[str, Fresh]:
    """Both kinds, for a test that compares them."""
    return {"sqlite": Files(tmp_path), "postgres": emptied_postgres}


@pytest.fixture
def database(fresh: Fresh) -> Database:
    """An empty one; the test runs on each kind."""
    return fresh()
