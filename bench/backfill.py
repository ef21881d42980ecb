"""A backfill of a whole CRM while people go on working: ``python -m bench backfill``, or ``backfill100k``.

The worker is killed three times on the way. HubSpot and ActiveCampaign are the strict fakes, in one process with
what measures: the more contacts there are, the more of the time is theirs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.running import resident_mb
from tests.backfilling import open_account, run_and_kill
from tests.platforms import Platforms
from tests.processes import Processes

MANY, VERY_MANY = 5_000, 100_000
KILLS = 3


def run(platforms: Platforms, folder: Path, many: int = MANY) -> None:
    """Print how long it takes, how long those wait who come live, and what the worker holds in memory."""
    restarted: list[float] = []
    live: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as own, open_account(platforms, Path(own)) as account:
        account.fill(many)

        def each(processes: Processes) -> None:
            restarted.append(account.say_live(processes, len(restarted) + len(live)))
            live.append(account.say_live(processes, len(restarted) + len(live)))
            memory.append(resident_mb(processes.running["worker"].pid))

        began = time.monotonic()
        run_and_kill(account, many, KILLS, each)
        seconds = time.monotonic() - began
        people = [one["email"] for one in platforms.marketing.people()]
        calls = len(platforms.marketing.calls)
    assert len(people) == len(set(people)) == many + 2 * KILLS
    print(
        f"backfill: {many:,} contacts of HubSpot into ActiveCampaign, the worker killed {KILLS} times: "
        f"{seconds:.0f} s, {many / seconds:,.0f} contacts/s, {calls / many:.1f} calls a contact, everybody once"
    )
    print(f"  until somebody who comes live is at the target: {listed(live, 2)} s (aim 1)")
    print(f"  the same with a restart of the worker: {listed(restarted, 2)} s; its memory: {listed(memory, 0)} MB")


def listed(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{one:.{digits}f}" for one in values)
