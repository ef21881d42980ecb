"""What `bridge init` writes: a bridge.toml for the chosen CRMs and platforms, and the variables that it needs.

All of it comes from the registries. An adapter is offered, with its settings and what they mean, by being there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bridge.config.model import BridgeSettings
from bridge.model import Secret
from bridge.sources.base import SourceType
from bridge.targets.base import TargetType

Kind = TypeVar("Kind", SourceType, TargetType)

WIDTH = 110
HEAD = """\
# bridge.toml: which CRMs speak, which platforms listen, and by which rules.
#
# A text such as "$NAME" is an environment variable; one that is not set is an error. Secrets may stand in a file,
# too: "file:/run/secrets/name". Check what you wrote with `bridge check`; it names every mistake and its line.
# Lines that begin with # and no blank after it are settings that are not used yet: take the # away.
"""

# Target fields that any CRM has something for, by their names in small letters without underscores.
USUAL = {
    "email": "email",
    "phone": "phone",
    "mobile": "mobile",
    "firstname": "first_name",
    "lastname": "last_name",
    "name": "name",
}


@dataclass(frozen=True, slots=True)
class Chosen(Generic[Kind]):
    """A connection to be: its name in the file, and its type."""

    name: str
    type: Kind

    @property
    def prefix(self) -> str:
        """What the names of its variables begin with."""
        prefix = self.name.upper().replace("-", "_")
        return f"_{prefix}" if prefix[0].isdigit() else prefix


@dataclass
class Starter:
    """A configuration in the making. *variables*: the environment variables that it names, and what each holds."""

    lines: list[str] = field(default_factory=lambda: [HEAD])
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def toml(self) -> str:
        return "\n".join(self.lines) + "\n"

    def heading(self, text: str) -> None:
        self.lines += [f"# --- {text} ".ljust(WIDTH, "-"), ""]

    def comment(self, text: str) -> None:
        """Add *text* as a comment, in as many lines as it takes."""
        line = "#"
        for word in text.split():
            if len(line) + 1 + len(word) > WIDTH:
                self.lines.append(line)
                line = "#"
            line += f" {word}"
        self.lines.append(line)

    def section(self, path: str, shape: type[Any], prefix: str, head: Sequence[str] = (), mark: str = "") -> None:
        """Add a section with the settings of *shape*; with the *mark* ``#`` it is not used yet."""
        self.lines += [f"{mark}[{path}]", *(f"{mark}{line}" for line in head)]
        hints = get_type_hints(shape)
        inner = [(one, nested) for one in fields(shape) if (nested := _nested(hints[one.name])) is not None]
        written = {line.partition(" =")[0] for line in head}
        for one in fields(shape):
            if one.name not in written and all(one is not other for other, _ in inner):
                self._setting(one, hints[one.name], prefix, mark)
        self.lines.append("")
        for one, nested in inner:
            self._say(one)
            self.section(f"{path}.{one.name}", nested, f"{prefix}_{one.name.upper()}", mark=mark or _mark(one))

    def _setting(self, one: Field[Any], hint: Any, prefix: str, mark: str) -> None:
        needed = not _mark(one)
        self._say(one)
        # What is "rare" goes together with another key that nobody can guess, so it waits for a person.
        if needed or (_holds_secret(hint) and not one.metadata.get("rare")):
            self.lines.append(f"{mark}{one.name} = {self._value(one, hint, prefix)}{_others(hint)}")
        else:
            value = '"$…"' if _holds_secret(hint) else _toml(_default(one))
            self.lines.append(f"#{one.name} = {value}{_others(hint)}")

    def _say(self, one: Field[Any]) -> None:
        if text := one.metadata.get("help", ""):
            self.comment(text)

    def _value(self, one: Field[Any], hint: Any, prefix: str) -> str:
        """Return what a setting that is needed begins with: a variable, unless there is something better."""
        if "example" in one.metadata:
            return _toml(one.metadata["example"])
        if get_origin(hint) is Literal:
            return _toml(get_args(hint)[0])
        if get_origin(hint) in (tuple, list):
            part = get_args(hint)[0]
            shape = _nested(part)
            return f"[{self._variable(one, prefix) if shape is None else self._entry(shape, prefix)}]"
        return self._variable(one, prefix)

    def _entry(self, shape: type[Any], prefix: str) -> str:
        hints = get_type_hints(shape)
        pairs = (f"{one.name} = {self._value(one, hints[one.name], prefix)}" for one in fields(shape))
        return f"{{ {', '.join(pairs)} }}"

    def _variable(self, one: Field[Any], prefix: str) -> str:
        short = one.name.removeprefix("api_").removeprefix("base_").upper()
        name = f"{prefix}_{one.metadata.get('variable') or short.removesuffix('S')}"
        self.variables[name] = one.metadata.get("help", "")
        return f'"${name}"'

    def route(self, source: Chosen[SourceType], target: Chosen[TargetType]) -> None:
        """Add a route with rules for the fields that the two are known to share."""
        self.lines += ["[[routes]]", f'source = "{source.name}"', f'target = "{target.name}"']
        self.comment("an expression: only contacts for which it is true; without it: all")
        self.lines.append('#when = "…"')
        self.comment("false: only update contacts that exist in the target")
        self.lines.append("#create = false")
        if target.type.can_remove:
            self.comment("what a deletion in the CRM does to the target's contact")
            self.lines.append('#on_delete = "remove"')
        self.comment("true: the person said stop")
        opt_out = source.type.usual.get("opt_out", "")
        self.lines.append(f'opt_out = "{opt_out}"' if opt_out else '#opt_out = "…"')
        self.lines += [
            "",
            "# Target field = an expression over the CRM's fields. What it never mentioned is left alone.",
        ]
        self.lines.append("[routes.fields]")
        rules = rules_for(source.type, target.type)
        self.lines += [f"{_key(name)} = {_toml(rule)}" for name, rule in rules.items()]
        others = [known for known in target.type.fields if known.name not in rules]
        if others:
            self.comment("There is also:")
        for known in others:
            self.comment(f"{known.name.replace('*', '<name>')}: {known.help}")
        self.lines.append("")


def start(sources: Sequence[Chosen[SourceType]], targets: Sequence[Chosen[TargetType]]) -> Starter:
    """Return a configuration with these connections, and a route from each source to each target."""
    made = Starter()
    made.section("bridge", BridgeSettings, "BRIDGE", head=['public_url = "$PUBLIC_URL"'])
    made.heading("sources: CRMs")
    for source in sources:
        made.section(
            f"sources.{source.name}", source.type.settings, source.prefix, [f'type = "{source.type.name}"']
        )
    made.heading("targets: messaging platforms")
    for target in targets:
        made.section(
            f"targets.{target.name}", target.type.settings, target.prefix, [f'type = "{target.type.name}"']
        )
    made.heading("routes: from a source to a target, with rules")
    for source in sources:
        for target in targets:
            made.route(source, target)
    return made


def rules_for(source: SourceType, target: TargetType) -> Mapping[str, str]:
    """Return the rules to begin with: for what both are known to have, and for what contacts are told apart by."""
    names = [known.name for known in target.fields]
    usual = source.usual
    found: dict[str, str] = {}
    for name in names:
        meant = USUAL.get(name.replace("_", "").lower())
        if meant and (rule := _rule(meant, usual, {USUAL.get(other.lower()) for other in names})):
            found[name] = rule
    if not any(all(name in found for name in group) for group in target.identities):
        found |= {name: name for name in target.identities[0] if name not in found}
    return found


def _rule(meant: str, usual: Mapping[str, str], taken: set[str | None]) -> str:
    """Return the expression for what a target field means; *taken*: all that the target's fields mean."""
    rule = usual.get(meant, "")
    if meant in {"phone", "mobile"}:
        # Either number will do where there is a place for one only.
        other = "mobile" if meant == "phone" else "phone"
        spare = "" if other in taken else usual.get(other, "")
        return " or ".join(part for part in (rule, spare) if part)
    if meant == "name" and not rule:
        first, last = (usual.get(part, "") for part in ("first_name", "last_name"))
        return f"(({first} or '') ~ ' ' ~ ({last} or '')) | trim" if first and last else first or last
    return f"{rule} | trim" if rule and meant.endswith("_name") else rule


# --- settings ------------------------------------------------------------------------------------------------


def _mark(one: Field[Any]) -> str:
    """Return how a setting begins that need not be there: as a comment."""
    return "" if one.default is MISSING and one.default_factory is MISSING else "#"


def _default(one: Field[Any]) -> Any:
    if "example" in one.metadata:
        return one.metadata["example"]
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _nested(hint: Any) -> type[Any] | None:
    """Return the settings class that a setting is a section of, if it is."""
    shapes = (part for part in _parts(hint) if isinstance(part, type) and is_dataclass(part))
    return next((shape for shape in shapes if shape is not Secret), None)


def _parts(hint: Any) -> Iterator[Any]:
    """Yield what a setting may be."""
    yield from get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _holds_secret(hint: Any) -> bool:
    if hint is Secret:
        return True
    inner = get_type_hints(hint).values() if is_dataclass(hint) else get_args(hint)
    return any(_holds_secret(part) for part in inner)


def _others(hint: Any) -> str:
    """Return a comment with the words that may stand there, where they are known."""
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return f"    # {', '.join(map(_toml, words[:-1]))} or {_toml(words[-1])}" if len(words) > 1 else ""


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def _toml(value: Any) -> str:
    """Return *value* as TOML writes it; None has no form there, and stands for what is to be filled in."""
    if value is None:
        return '"…"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
