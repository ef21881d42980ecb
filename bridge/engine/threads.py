"""Threads that lanes run on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

# Deep JSON recurses in C as far as Python's own limit lets it, and Python 3.13 lets it go further: with 1 MiB the
# process died of it. Memory is taken only as far as the stack is used.
STACK_BYTES = 8 * 1024 * 1024

_starting = threading.Lock()  # the size of stacks is the whole process's setting


def start_thread(target: Callable[..., None], *args: Any, name: str) -> threading.Thread:
    """Run *target* in a thread with a deep stack that does not keep the process alive."""
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    return thread
