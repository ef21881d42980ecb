"""Whose a contact method is: the external ids by which bridge knows its own again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bridge.model import RecordKey
from bridge.outbound import segment
from bridge.targets.artu.method import Method


@dataclass(frozen=True, slots=True)
class Owner:
    """One record of a source, as the owner of contact methods. *types*: what some fields become at Artu."""

    prefix: str
    key: RecordKey
    types: Mapping[str, str]

    @property
    def mark(self) -> str:
        """What stands for the record in Artu. Its parts are encoded, so a colon in one is none of ours."""
        return f"{self._source}{segment(self.key.source_id)}"

    @property
    def _source(self) -> str:
        return f"{self.prefix}:{segment(self.key.source)}:"

    def external_id(self, name: str) -> str:
        return f"{self.mark}:{name}"

    def type_of(self, name: str) -> str:
        return self.types.get(name, name)

    def has(self, method: Method) -> bool:
        """Say whether bridge made *method* for this very record."""
        return method.external_id.startswith(self.mark + ":")

    def may_write(self, method: Method) -> bool:
        """Say whether bridge made *method* for this source.

        A client has one record of each source (the link sees to it, and `is_free`), so at the record's own client
        a method of another record is that of one which was merged into it.
        """
        return method.external_id.startswith(self._source)

    def is_free(self, methods: Iterable[Method]) -> bool:
        """Say whether a client with *methods* belongs to no other record of this source."""
        return all(self.has(method) or not self.may_write(method) for method in methods)

    def rows(self, name: str, methods: Sequence[Method]) -> list[Method]:
        """Return bridge's methods for the field *name*, the one to keep first."""
        exact = self.external_id(name)
        found = [one for one in methods if self.may_write(one) and one.external_id.endswith(f":{name}")]
        return sorted(found, key=lambda one: (one.external_id != exact, not one.is_primary, one.id))
