"""The whole of a copy: rows in, in slices that an interruption does not undo, then every row compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

from bridge.model import iso, utc_now
from bridge.store.copying import source as sources
from bridge.store.copying.mark import CopyError, Mark, Progress
from bridge.store.copying.source import Source
from bridge.store.copying.tables import PARTS, Columns, Part
from bridge.store.copying.target import Target
from bridge.store.migrations import postgres as schema
from bridge.store.postgres.connections import Connections
from bridge.store.postgres.partitions import DAYS_AHEAD

ROWS_AT_ONCE = 20_000  # in one transaction, or
CHARACTERS_AT_ONCE = 8 * 1024 * 1024
TOLD_EVERY = 10_000  # rows, while they are compared
IDS_TOGETHER = 1000  # rows that differ are told by such ranges
RANGES_TOLD = 3
OLDEST_DAY = timedelta(days=400)  # of a partition of its own; what is older is together in one

COPYING, COMPARING = "copying", "comparing"
Tell = Callable[[str, int, int], None]  # which of these; how many rows of how many


@dataclass(frozen=True, slots=True)
class Proof:
    """That a table holds the same rows in both databases: how many, and a digest of all of them, in any order."""

    table: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Copied:
    """What a run did. Without proofs, an earlier run had done everything."""

    finished_at: str
    rows: int  # that this run copied
    resumed: bool = False
    proofs: Sequence[Proof] = ()


def copy(path: Path, url: str, tell: Tell = lambda step, done, total: None) -> Copied:
    """Copy the SQLite database at *path* into the PostgreSQL database at *url*, and compare both.

    No worker may run on the former; the caller sees to that. What a run before this one copied is kept, unless
    the former changed since.

    Raises:
        CopyError: it cannot be copied there, or is not the same; the message says what to do.
        StoreUnavailable: one of the databases cannot be used; what was copied so far stays.
    """
    sources.bring_up_to_date(path)
    state = sources.state_of(path)
    with (
        closing(Connections(url, max_size=1, name="bridge copy")) as connections,
        connections.bare() as connection,
        sources.opened(path) as source,
    ):
        schema.migrate(connection)
        target = Target(connection)
        before = target.mark()
        _require_ours(target, before, source)
        if before is not None and before.finished_at is not None:
            _require_unchanged_since(before, state)
            return Copied(before.finished_at, 0)
        mark = _begun(target, before, source.salt, state)
        target.make_days(_days(source))
        resumed = mark == before
        mark, rows = _copy_all(source, target, mark, tell)
        _require_unchanged(path, source, state)
        proofs = _compare_all(source, target, mark, tell)
        _require_unchanged(path, source, state)
        target.analyze()
        mark = target.finish(mark)
        return Copied(mark.finished_at or "", rows, resumed, proofs)


# --- whether it may be done ------------------------------------------------------------------------------


def _require_ours(target: Target, mark: Mark | None, source: Source) -> None:
    """Make sure that the PostgreSQL database is empty, or a copy of this very installation."""
    if mark is None:
        if used := target.in_use():
            raise CopyError(
                f"The PostgreSQL database is in use by another bridge (it has rows in {', '.join(used)}). "
                "Copy into an empty database."
            )
    elif target.salt() != source.salt:
        raise CopyError(
            "The PostgreSQL database is the copy of another SQLite database. Copy into an empty database."
        )


def _require_unchanged_since(mark: Mark, state: str) -> None:
    if mark.state != state:
        raise CopyError(
            f"The copy was complete at {mark.finished_at}, and the SQLite database was written to after that: "
            "what is newer there is not in the PostgreSQL database. If PostgreSQL is in use by now, leave it so; "
            "otherwise copy into another, empty database."
        )


def _require_unchanged(path: Path, source: Source, state: str) -> None:
    if sources.state_of(path) == state:
        return
    arrived = sources.receipts_of(path) - source.receipts
    what = f"{arrived} webhook{'s' * (arrived != 1)} arrived" if arrived > 0 else "it was written to"
    raise CopyError(
        f"The SQLite database did not stay as it was while it was copied: {what}. Stop the web process, too "
        "(senders try again later), and run the same bridge copy again; it begins anew."
    )


def _begun(target: Target, before: Mark | None, salt: bytes, state: str) -> Mark:
    """Return the mark to go on from: what an earlier run copied counts if it is still so."""
    new = Mark(began_at=iso(utc_now()), state=state)
    if before is None:
        target.begin(salt, new)
    elif before.refuted or before.state != state:
        target.begin_anew(before, new)
    else:
        return before
    return new


# --- copying ---------------------------------------------------------------------------------------------


def _days(source: Source) -> Sequence[date]:
    """Return the days of which there is something, and those that the store prepares itself."""
    today = utc_now().date()
    coming = [today + timedelta(days=days) for days in range(DAYS_AHEAD + 1)]
    return [day for day in sorted({*source.days(), *coming}) if today - OLDEST_DAY <= day <= coming[-1]]


def _copy_all(source: Source, target: Target, mark: Mark, tell: Tell) -> tuple[Mark, int]:
    """Copy what is not there yet; return how many rows that were."""
    total = sum(source.count(part) for part in PARTS)
    begun_with = done = sum(progress.rows for progress in mark.parts.values())
    for part in PARTS:
        if mark.progress(part.name).complete:
            continue
        columns = target.columns(part)
        for lines, progress in _slices(source, part, columns, mark.progress(part.name)):
            after = mark.at(part.name, progress)
            target.write(part, columns, lines, mark, after)
            mark = after
            done += len(lines)
            tell(COPYING, done, total)
    return mark, done - begun_with


def _slices(
    source: Source, part: Part, columns: Columns, progress: Progress
) -> Iterator[tuple[list[str], Progress]]:
    """Yield the lines that are left, some at a time, each with how far that is; the last may have no lines."""
    lines: list[str] = []
    size, rows, key = 0, progress.rows, progress.after
    for key, line in source.lines(part, columns, progress.after):
        lines.append(line)
        size += len(line)
        if len(lines) >= ROWS_AT_ONCE or size >= CHARACTERS_AT_ONCE:
            rows += len(lines)
            yield lines, Progress(key, rows)
            lines, size = [], 0
    yield lines, Progress(key, rows + len(lines), complete=True)


# --- comparing -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Digest:
    """Counts rows and adds up their digests, so that their order is of no account.

    That of *numbered* rows is told for each range of ids, so that it is known about where they differ.
    """

    numbered: bool
    rows: int = 0
    sums: dict[int, int] = field(default_factory=dict)

    def add(self, lines: Iterable[bytes], told: Callable[[int], None]) -> None:
        numbered, sums, rows = self.numbered, self.sums, 0
        for line in lines:
            together = int(line[: line.index(b"\t")]) // IDS_TOGETHER if numbered else 0
            one = int.from_bytes(blake2b(line, digest_size=16).digest())
            sums[together] = sums.get(together, 0) + one
            rows += 1
            if rows % TOLD_EVERY == 0:
                told(TOLD_EVERY)
        told(rows % TOLD_EVERY)
        self.rows += rows

    def __str__(self) -> str:
        return format(sum(self.sums.values()) % 2**128, "032x")

    def differs_from(self, other: _Digest) -> str:
        """Say where: "rows 2,001 to 3,000", or what is known."""
        if not self.numbered:
            return f"{self.rows:,} rows there, {other.rows:,} here"
        differing = sorted(
            place
            for place in self.sums.keys() | other.sums.keys()
            if self.sums.get(place) != other.sums.get(place)
        )
        ranges = [f"{at * IDS_TOGETHER:,} to {(at + 1) * IDS_TOGETHER - 1:,}" for at in differing[:RANGES_TOLD]]
        more = f" and {len(differing) - RANGES_TOLD} more ranges" if len(differing) > RANGES_TOLD else ""
        return f"ids {', '.join(ranges)}{more}"


def _compare_all(source: Source, target: Target, mark: Mark, tell: Tell) -> list[Proof]:
    """Read every row of both databases again, and compare.

    Raises:
        CopyError: they are not the same; the next run begins anew.
    """
    total = 2 * sum(progress.rows for progress in mark.parts.values())
    done = 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        tell(COMPARING, done, total)

    proofs, wrong = [], []
    for into, parts in _by_table().items():
        columns = target.columns(parts[0])
        numbered = parts[0].keys == [f"t.{next(iter(columns.types))}"] and columns.numbered
        ours, theirs = _Digest(numbered), _Digest(numbered)
        for part in parts:
            ours.add((line.encode() for _, line in source.lines(part, columns)), told)
        theirs.add(target.lines(parts[0], columns), told)
        if (ours.rows, str(ours)) == (theirs.rows, str(theirs)):
            proofs.append(Proof(parts[0].name, ours.rows, str(ours)))
        else:
            wrong.append(f"{into} ({ours.differs_from(theirs)})")
    if wrong:
        target.refute(mark)
        raise CopyError(
            f"The copy is not the same as the SQLite database: {'; '.join(wrong)}. Somebody wrote to "
            "the PostgreSQL database, or a disk is faulty. Run the same bridge copy again; it begins anew."
        )
    return proofs


def _by_table() -> Mapping[str, Sequence[Part]]:
    return {into: list(parts) for into, parts in groupby(PARTS, key=lambda part: part.into)}
