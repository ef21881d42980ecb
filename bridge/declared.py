"""What types of sources and targets declare of themselves: for `bridge sources`, and the tables of the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from bridge.model import Secret
from bridge.sources.base import Proof, SourceType
from bridge.targets.base import TargetType

PROOFS: Mapping[Proof, str] = {
    Proof.SIGNED: "a signature over the whole request",
    Proof.SHOWN: "a secret that is sent along",
    Proof.URL: "nothing but its URL, which holds a secret token",
}
NEEDED = "needed"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a section of ``bridge.toml``. *default* is written as in TOML; `NEEDED`: there is none."""

    name: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class Abilities:
    """What bridge can do with the API of a CRM, given a credential."""

    reads: bool  # single contacts, where webhooks hold too little
    lists: bool  # all contacts: backfill and reconcile
    registers: bool  # the webhooks themselves
    writes_back: bool  # an opt-out


def abilities_of(source: SourceType) -> Abilities:
    return Abilities(
        reads=source.read_base_url is not None,
        lists=source.lister is not None,
        registers=source.registrar is not None,
        writes_back=source.writer is not None,
    )


def source_as_json(source: SourceType) -> dict[str, Any]:
    able = abilities_of(source)
    return {
        "type": source.name,
        "title": source.title,
        "proof": source.proof.value,
        "reads": able.reads,
        "lists": able.lists,
        "registers": able.registers,
        "writes_back": able.writes_back,
        "manual": source.manual,
        "keys": [key_as_json(key) for key in keys_of(source.settings)],
    }


def target_as_json(target: TargetType) -> dict[str, Any]:
    return {
        "type": target.name,
        "title": target.title,
        "identities": [list(group) for group in target.identities],
        "can_opt_out": target.can_opt_out,
        "can_remove": target.can_remove,
        "rate_per_s": target.rate_per_s,
        "burst": target.burst,
        "lanes": target.lanes,
        "fields": [{"name": one.name, "kind": one.kind.value, "help": one.help} for one in target.fields],
        "keys": [key_as_json(key) for key in keys_of(target.settings)],
    }


def key_as_json(key: Key) -> dict[str, Any]:
    return {"name": key.name, "needed": key.default == NEEDED, "default": key.default, "help": key.help}


def keys_of(settings: type[Any], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a section, with those of the tables in it: ``signature.header``."""
    hints = get_type_hints(settings)
    for one in fields(settings):
        yield Key(prefix + one.name, _default(one), one.metadata.get("help", ""))
        hint = hints[one.name]
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part) and part is not Secret:
                yield from keys_of(part, f"{prefix}{one.name}.")


def _default(one: Field[Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is MISSING:
        return NEEDED
    if value is None:
        return "none"
    if is_dataclass(value):
        return "as below"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return _as_toml(value)


def _as_toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
