"""The error tree. An error's type says what to do next; its message is shown to a person.

Messages never carry a value of a person's or a secret: they end up in the audit log's permanent facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType


class BridgeError(Exception):
    """Any error that bridge raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: where, what, and the way out."""

    where: str  # "bridge.toml:6: targets.sms.base_ulr"
    what: str  # "unknown key"
    fix: str = ""  # "did you mean 'base_url'?"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    fix: {self.fix}" if self.fix else "")


class ConfigError(BridgeError):
    """The process does not start. Holds every problem found, not only the first."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Complaints:
    """Takes several looks at some settings, so that all that is wrong with them is told at once.

    At the end of the block it raises one `ValueError`, with a line for each complaint: "key: what is wrong".
    """

    def __init__(self) -> None:
        self._said: dict[str, None] = {}  # in order, and none twice

    def unless(self, kept: bool, complaint: str) -> None:
        """Complain, unless the rule is *kept*."""
        if not kept:
            self._said[complaint] = None

    @contextmanager
    def look(self) -> Iterator[None]:
        """Take what a `ValueError` in this block says as complaints, and go on behind it."""
        try:
            yield
        except ValueError as error:
            self._said |= dict.fromkeys(str(error).splitlines())

    def __enter__(self) -> Complaints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._said:
            raise ValueError("\n".join(self._said))


class BadSignature(BridgeError):
    """Not provably from the source: 401. The message is for the audit log, never for the sender."""


class BadPayload(BridgeError):
    """Genuine, but it makes no sense: 400, kept for reprocessing."""


class StoreUnavailable(BridgeError):
    """The database cannot take this now (locked, full, gone): 503, and the sender keeps its retry."""


class Unstorable(StoreUnavailable):
    """The database works, and refuses the very data: it never takes this row, however often it is tried.

    What else was to be stored with it is stored without it, and whatever was to lead to it is ended with the
    message as its reason. A sender is told the same as of a database that is away, so that it keeps what it sent.
    """


class LostLane(BridgeError):
    """Another runner holds this lane by now; whatever this one decided is void."""


class Superseded(BridgeError):
    """Newer state arrived for what is being pushed: stop before the next call, for it is due at once."""


class SourceUnavailable(BridgeError):
    """The CRM cannot be read now. *retry_after_s* is what it asked for, else 0."""

    def __init__(self, message: str, *, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeliveryFailed(BridgeError):
    """A push did not succeed. *code* is the error class that audit and filters use, *status* HTTP's."""

    code = "failed"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.status = status


class Retryable(DeliveryFailed):
    """Later may work.

    *retry_after_s* is what the platform asked for, else 0. *maybe_done* says that the call may have had its
    effect all the same (it timed out after it was sent): a create must then be settled by a search.
    """

    code = "unavailable"  # also: "timeout", "network", "rate_limited", "nonsense"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: float = 0,
        maybe_done: bool = False,
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.retry_after_s = retry_after_s
        self.maybe_done = maybe_done


class Refused(Retryable):
    """Our key, plan or address is refused: the target is held and its deliveries wait.

    *tries* is how many times in a row the platform must say so before the target is held, for platforms that
    refuse valid keys now and then.
    """

    code = "refused"

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, tries: int = 1
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.tries = tries


class Permanent(DeliveryFailed):
    """Later cannot work: it needs a person or a new value."""

    code = "invalid"


class Ambiguous(Permanent):
    """More than one contact fits, on either side; nothing was written and a person decides."""

    code = "ambiguous"
