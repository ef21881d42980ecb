"""What an adapter learns of its account from one push to the next: nothing of it is about a person."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from bridge.errors import Refused
from bridge.targets.sakari.account import NO_ADDRESS, Account

CATALOGUE_LIFE_S = 900.0
CATALOGUE_PAUSE_S = 60.0  # an unknown attribute does not cost a call with every contact


class Catalogue:
    """The attributes that the account defines. The platform drops or refuses any other.

    https://developer.sakari.io/api-reference/accounts/fetch-account-attributes
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._names: frozenset[str] | None = None  # None: the account does not say
        self._read_at: float | None = None

    def unknown(self, account: Account, wanted: set[str]) -> set[str]:
        """Return those of *wanted* that the account does not have."""
        with self._lock:
            age_s = math.inf if self._read_at is None else self._clock() - self._read_at
            stale = age_s >= CATALOGUE_LIFE_S
            doubtful = age_s >= CATALOGUE_PAUSE_S and self._names is not None and not wanted <= self._names
            if wanted and (stale or doubtful):
                self._read(account)
            return set() if self._names is None else wanted - self._names

    def changed(self, account: Account) -> bool:
        """Read it again, if the last time was a while ago, and say whether it is another now."""
        with self._lock:
            if self._read_at is None or self._clock() - self._read_at < CATALOGUE_PAUSE_S:
                return False
            before = self._names
            self._read(account)
            return self._names != before

    def _read(self, account: Account) -> None:
        names = set()
        try:
            for row in account.pages("/attributes/contacts", {}, doing="reading the account's attributes"):
                if isinstance(row.get("name"), str):
                    names.add(row["name"])
        except Refused as error:
            if error.code != NO_ADDRESS:
                raise
            self._names = None  # an account without this list: the platform has to sort them out
        else:
            self._names = frozenset(names)
        self._read_at = self._clock()


class Learnt:
    """See the module's docstring. It is used by all threads that push to the account."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.attributes = Catalogue(clock)
        self.digits_found = False  # the filter was seen to find digits without the plus
        self.integrations: set[str] = set()  # that were warned of
