"""Structured events: one per unit of work, with ids and no persons.

``event("delivery.attempted", delivery=..., status=429)`` is all there is to it. Values that are secrets do not
print (`model.Secret`); values that are personal are not handed over in the first place.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

from bridge.errors import BridgeError

# structlog imports rich where it is installed, for tracebacks, which `bug` writes in its own way: 5 MB in every
# process. None is Python's word for a module that is not to be found.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich

_log: structlog.stdlib.BoundLogger = structlog.get_logger("bridge")


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Write events of *level* and above to *stream*. *form*: ``json``, ``text``, or ``auto`` (by terminal)."""
    out = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not out.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def event(name: str, *, level: str = "info", **facts: Any) -> None:
    """Log that *name* happened, with ids, counts and durations; never a value of a person's."""
    _log.log(logging.getLevelNamesMapping()[level.upper()], name, **facts)


def bug(name: str, error: BaseException, **facts: Any) -> None:
    """Log an error that nobody foresaw, with its traceback.

    Only the places in the code are kept: an exception's own text may quote a person's data. Our own errors never
    do, and theirs is the sentence that helps.
    """
    if isinstance(error, BridgeError):
        facts["reason"] = str(error)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    event(name, level="error", error=type(error).__name__, trace=frames[-12:], **facts)
