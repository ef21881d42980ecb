"""Who does the work now. The store says what is due; the engine sees to it that somebody does it.

Background work comes in a fixed number of lanes. A lane is run by one runner at a time, whatever happens; a wake
for now is never swallowed by one for later; a wake that is lost costs time, never work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

# Do what is due in the lane for at most a few seconds; return when to be called again, None: when woken.
Run = Callable[[str], datetime | None]


@dataclass(frozen=True)
class Chore:
    """Something to be done every *every_s* seconds, by one runner at a time.

    *do* takes a few seconds at most and says whether there is more to do at once. It is called at the start, too,
    unless another process did so within that time.
    """

    name: str
    every_s: float
    do: Callable[[], bool]


class Engine(Protocol):
    @property
    def shared(self) -> bool:
        """Whether several processes share the lanes; then each chore is done once for all of them."""
        ...

    def start(self, lanes: Sequence[str], run: Run, chores: Sequence[Chore] = ()) -> None:
        """Begin to run each of *lanes* once now, and then whenever it is woken or asked for it; begin *chores*."""
        ...

    def wake(self, lanes: Iterable[str], when: datetime | None = None) -> None:
        """Have *lanes* run at *when*, or at once. From any thread; unknown lanes are passed over."""
        ...

    def stop(self, grace_s: float) -> bool:
        """Start no new runs and wait up to *grace_s* for those under way; say whether all ended."""
        ...
