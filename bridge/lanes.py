"""Which lane does what. A contact falls into the same lane of a target for as long as their number stays."""

from __future__ import annotations

import zlib

from bridge.model import RecordKey

SLOTS = 1 << 16


def process_lane(source: str) -> str:
    return f"process:{source}"


def deliver_lane(target: str, number: int) -> str:
    return f"deliver:{target}:{number}"


def slot_of(key: RecordKey) -> int:
    """Return the contact's slot, the same for ever; lane *n* of *m* has the slots with ``slot % m == n``."""
    return zlib.crc32(f"{key.source}\x1f{key.source_id}".encode()) % SLOTS
