"""``python -m bridge.web``: what `bridge web` goes on as, once it has found that it can start.

gunicorn's main process only watches those that serve. It imports nothing of what they do: what it imported would
be in memory twice, since Python writes to every page that it looks at, and a written page is shared no more.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bridge import log
from bridge.environment import Environment
from bridge.web.server import THREADS, Server

if TYPE_CHECKING:
    from flask import Flask


def main(host: str, config: str | None = None) -> None:
    """Receive webhooks and serve pages and API at *host* and PORT until SIGTERM or SIGINT."""
    environment = Environment.read()
    log.configure(environment.log_level, environment.log_format)
    stack = ExitStack()

    def open_app() -> Flask:
        from bridge import process

        return process.open_web(Path(config) if config else None, host, stack)

    run: Callable[[], None] = Server(
        open_app,
        stack.close,
        bind=f"{host}:{environment.port}",
        processes=environment.web_concurrency or 1,
        threads=THREADS,
    ).run
    gc.freeze()  # the collector marks what it looks at, so that it is shared no more: it leaves out what is here
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
