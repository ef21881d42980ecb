"""Who sent a request that came through a proxy: needed to slow down whoever tries passwords and tokens.

Nothing else is believed of a proxy. What senders sign is checked against the configured public URL, and so is made
whatever the pages link to, so that no header of a request decides on either.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def client_address(environ: WSGIEnvironment, trusted_proxies: int) -> str:
    """Return the address that the outermost of so many trusted proxies was called from.

    Each proxy appends to ``X-Forwarded-For`` whom it was called by, so entries count from the right: what stands
    further left was in the request already, and anybody can write there what he likes. Where there are fewer
    entries, or the one that counts is no address, the peer of the connection is returned.
    """
    peer = str(environ.get("REMOTE_ADDR") or "")
    entries = str(environ.get("HTTP_X_FORWARDED_FOR", "")).split(",")
    if not 0 < trusted_proxies <= len(entries):
        return peer
    return _address(entries[-trusted_proxies].strip()) or peer


def _address(entry: str) -> str:
    """Return *entry* without the port that some proxies add, "" where it is no address."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return str(ipaddress.ip_address(entry))
    except ValueError:
        return ""
