"""The ``WHERE`` of a statement, put together of terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bridge.model import iso


@dataclass
class Conditions:
    """Terms that all hold, and their values."""

    terms: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, term: str, *values: Any) -> None:
        self.terms.append(term)
        self.values += values

    def extend(self, other: Conditions) -> None:
        self.terms += other.terms
        self.values += other.values

    def equal(self, columns: Mapping[str, Any]) -> None:
        """Narrow each column to its value, where there is one."""
        for column, value in columns.items():
            if value is not None:
                self.add(f"{column} = ?", value)

    def between(self, column: str, since: datetime | None, until: datetime | None) -> None:
        """Narrow to *since* (included) … *until* (excluded)."""
        if since is not None:
            self.add(f"{column} >= ?", iso(since))
        if until is not None:
            self.add(f"{column} < ?", iso(until))

    @property
    def sql(self) -> str:
        return " AND ".join(self.terms) or "TRUE"

    def __bool__(self) -> bool:
        return bool(self.terms)
