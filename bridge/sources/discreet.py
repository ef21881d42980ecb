"""Calls that hold a secret beside their headers: nothing of them is kept but that they were made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bridge.outbound import Api

NOT_KEPT = "(not kept)"


@contextmanager
def discreetly(api: Api) -> Iterator[None]:
    """Keep neither the queries nor the bodies of the calls that are made in this block."""
    before = len(api.exchanges)
    try:
        yield
    finally:
        api.exchanges[before:] = [
            replace(
                one,
                url=one.url.partition("?")[0],
                request_body=NOT_KEPT if one.request_body else "",
                response_body=NOT_KEPT if one.response_body else "",
            )
            for one in api.exchanges[before:]
        ]
