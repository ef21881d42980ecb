"""The access token of a target, which all workers on one database have in common, as if each were a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import pytest

from bridge.database import Database
from bridge.demo.fakes import sakari as fakes
from bridge.errors import Refused
from bridge.model import Secret, utc_now
from bridge.outbound import Api, new_session
from bridge.pipeline import SharedAccess
from bridge.pipeline.access import RENEWAL
from bridge.sealing import seal, unseal
from bridge.store.protocol import AccessToken, Store
from bridge.targets.sakari import Sakari, Settings
from tests.databases import readable

SECRET = "the client secret of an account"
MINUTE = timedelta(minutes=1)


class Workers:
    """Several workers, each with a store of its own, in front of one account."""

    def __init__(self, database: Database, stack: ExitStack, **switches: Any) -> None:
        self.fake = fakes.Sakari(**switches)
        self._database, self._stack = database, stack
        self._url = stack.enter_context(self.fake.serve())

    def one(self) -> Callable[[], str]:
        """Return the check of another worker, which needs a token."""
        store = self._stack.enter_context(closing(self._database.open({"sms": 1}, "worker")))
        settings = Settings(
            self.fake.account, Secret(self.fake.client_id), Secret(self.fake.client_secret), api_base=self._url
        )
        target = Sakari(settings, clock=self.fake.clock)
        access = SharedAccess(store, "sms", utc_now, threading.Event().wait)
        session = self._stack.enter_context(new_session())
        return lambda: target.check(Api(self._url, session=session, access=access))

    def asked(self) -> int:
        return len(self.fake.made("POST", "/oauth2/token"))


@pytest.fixture
def workers(database: Database) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(database, stack)


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with closing(database.open({"sms": 1}, "worker")) as opened:
        yield opened


def all_at_once(calls: list[Callable[[], str]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def access_to(store: Store, wait: Callable[[float], bool] | None = None) -> SharedAccess:
    return SharedAccess(store, "sms", utc_now, wait or threading.Event().wait)


def unasked() -> tuple[str, float]:
    raise AssertionError("nobody was to ask for a token")


def stopping(seconds: float) -> bool:
    return True


def test_workers_use_one_token_and_replace_it_once(workers: Workers) -> None:
    checks = [workers.one() for _ in range(4)]
    all_at_once(checks)
    assert workers.asked() == 1
    assert len(workers.fake.made("GET")) == 4
    workers.fake.revoke_tokens()
    all_at_once(checks)
    assert workers.asked() == 2


def test_a_worker_that_begins_uses_the_token_that_is_there(workers: Workers) -> None:
    workers.one()()
    workers.one()()
    assert workers.asked() == 1


def test_nobody_can_read_the_token_in_the_database(workers: Workers, database: Database) -> None:
    workers.one()()
    token = workers.fake.made("GET")[0].headers["Authorization"].removeprefix("Bearer ")
    kept = readable(database)
    assert b"sms" in kept
    assert token.encode() not in kept
    assert workers.fake.client_secret.encode() not in kept


def test_a_token_that_was_given_out_for_another_secret_is_replaced(store: Store) -> None:
    store.keep_access("sms", AccessToken(seal("theirs", "another secret"), utc_now() + MINUTE))
    assert access_to(store).token(lambda: ("ours", 60.0), key=SECRET) == ("ours", 60.0)
    kept = store.access_token("sms")
    assert kept is not None
    assert unseal(kept.sealed, SECRET) == "ours"


def test_a_token_is_good_for_as_long_as_it_is_left(store: Store) -> None:
    store.keep_access("sms", AccessToken(seal("first", SECRET), utc_now() + MINUTE))
    token, left_s = access_to(store).token(unasked, key=SECRET)
    assert token == "first"
    assert 50 < left_s <= 60
    store.keep_access("sms", AccessToken(seal("second", SECRET), utc_now() - MINUTE))
    assert access_to(store).token(lambda: ("third", 60.0), key=SECRET)[0] == "third"


def test_whoever_is_given_none_leaves_it_to_the_next(store: Store) -> None:
    def fail() -> tuple[str, float]:
        raise Refused("Sakari gives no access.")

    with pytest.raises(Refused):
        access_to(store).token(fail, key=SECRET)
    assert access_to(store, stopping).token(lambda: ("one", 60.0), key=SECRET)[0] == "one"
    assert store.access_token("sms") is not None


def test_a_token_that_another_worker_is_asking_for_is_waited_for(store: Store) -> None:
    now = utc_now()
    assert store.renew_access("sms", None, now, now + RENEWAL)

    def wait(seconds: float) -> bool:
        store.keep_access("sms", AccessToken(seal("theirs", SECRET), utc_now() + MINUTE))
        return False

    assert access_to(store, wait).token(unasked, key=SECRET)[0] == "theirs"


def test_a_worker_that_died_while_it_asked_is_not_waited_for(store: Store) -> None:
    then = utc_now() - RENEWAL
    assert store.renew_access("sms", None, then, then + RENEWAL)
    assert access_to(store).token(lambda: ("one", 60.0), key=SECRET)[0] == "one"


def test_a_worker_that_is_to_end_waits_for_nobody(store: Store) -> None:
    now = utc_now()
    assert store.renew_access("sms", None, now, now + RENEWAL)
    assert access_to(store, stopping).token(lambda: ("ours", 60.0), key=SECRET)[0] == "ours"
    assert store.access_token("sms") is None
