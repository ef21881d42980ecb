"""As much of GraphQL as the fakes of monday.com and Shopify need to refuse what their schemas do not have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Type: its fields, and of what type those are; "" is a plain value.
Schema = Mapping[str, Mapping[str, str]]
Resolve = Callable[[str, Mapping[str, Any]], Any]

_TOKEN = re.compile(r'\.\.\.|[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+|"[^"]*"|[{}()\[\]:!$=]')
KIND = "__typename"  # in what a resolver gives: which of several types it is


class Invalid(Exception):
    """The document is not one that the schema allows."""


@dataclass
class Field:
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    chosen: list[Field] = field(default_factory=list)
    on: str = ""  # a fragment: of this type only


@dataclass
class Document:
    kind: str
    declared: dict[str, bool]  # variable: it is needed
    chosen: list[Field]


def execute(text: str, variables: Mapping[str, Any], schema: Schema, resolve: Resolve) -> dict[str, Any]:
    """Return the data of a document.

    Raises:
        Invalid: the schema has no such field, a variable is missing or too many, or it is no document.
    """
    found = _Parser(text, variables).document()
    if missing := {name for name, needed in found.declared.items() if needed and variables.get(name) is None}:
        raise Invalid(f"variables are missing: {missing}")
    if unknown := variables.keys() - found.declared.keys():
        raise Invalid(f"variables are not declared: {unknown}")
    root = {"query": "Query", "mutation": "Mutation"}[found.kind]
    for one in found.chosen:
        _check(one, root, schema)
    return {
        one.name: _shown(resolve(one.name, one.arguments), one, schema[root][one.name], schema)
        for one in found.chosen
    }


def fields_chosen(text: str) -> set[str]:
    """Return the names of all fields that a document asks for."""

    def names(chosen: Sequence[Field]) -> Iterator[str]:
        for one in chosen:
            yield from [] if one.on else [one.name]
            yield from names(one.chosen)

    return set(names(_Parser(text, {}).document().chosen))


def _check(one: Field, type_: str, schema: Schema) -> None:
    if one.on:
        if one.on not in schema:
            raise Invalid(f"there is no type {one.on}")
        of = one.on
    else:
        if one.name not in schema[type_]:
            raise Invalid(f"{type_} has no field {one.name}")
        of = schema[type_][one.name]
    if bool(of) != bool(one.chosen):
        raise Invalid(f"the fields of {one.name or one.on} must be chosen if it has any, and only then")
    for inner in one.chosen:
        _check(inner, of, schema)


def _shown(value: Any, chosen: Field, type_: str, schema: Schema) -> Any:
    if isinstance(value, list) and type_:
        return [_shown(entry, chosen, type_, schema) for entry in value]
    if not isinstance(value, dict) or not type_:
        return value
    shown: dict[str, Any] = {}
    for one in chosen.chosen:
        if one.on:
            if value.get(KIND) == one.on:
                shown |= _shown(value, one, one.on, schema)
        else:
            shown[one.name] = _shown(_chosen_by_id(value.get(one.name), one), one, schema[type_][one.name], schema)
    return shown


def _chosen_by_id(value: Any, one: Field) -> Any:
    """Return those of a list whose ids an argument names."""
    if not isinstance(value, list) or "ids" not in one.arguments:
        return value
    return [entry for entry in value if entry["id"] in (one.arguments["ids"] or ())]


class _Parser:
    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        self.tokens = _TOKEN.findall(text)
        self.variables = variables
        self.used: set[str] = set()

    def document(self) -> Document:
        kind = self._next()
        declared: dict[str, bool] = {}
        if self._peek() == "(":
            self._next()
            while self._peek() != ")":
                self._want("$")
                name = self._next()
                self._want(":")
                declared[name] = self._type().endswith("!")
            self._next()
        chosen = self._chosen()
        if self.tokens or kind not in {"query", "mutation"}:
            raise Invalid("it is no document")
        if self.used != declared.keys():
            raise Invalid(f"variables are declared and not used, or the other way: {self.used ^ declared.keys()}")
        return Document(kind, declared, chosen)

    def _type(self) -> str:
        text = self._next()
        while self._peek() in {"!", "]"} or text[-1] == "[":
            text += self._next()
        return text

    def _chosen(self) -> list[Field]:
        self._want("{")
        chosen = []
        while self._peek() != "}":
            if self._peek() == "...":
                self._next()
                self._want("on")
                chosen.append(Field("", on=self._next(), chosen=self._chosen()))
                continue
            one = Field(self._next())
            if self._peek() == "(":
                self._next()
                while self._peek() != ")":
                    name = self._next()
                    self._want(":")
                    one.arguments[name] = self._value()
                self._next()
            if self._peek() == "{":
                one.chosen = self._chosen()
            chosen.append(one)
        self._next()
        return chosen

    def _value(self) -> Any:
        token = self._next()
        if token == "$":
            name = self._next()
            self.used.add(name)
            return self.variables.get(name)
        if re.fullmatch(r"-?[0-9]+", token):
            return int(token)
        return {"true": True, "false": False, "null": None}.get(token, token.strip('"'))

    def _peek(self) -> str:
        if not self.tokens:
            raise Invalid("the document breaks off")
        return str(self.tokens[0])

    def _next(self) -> str:
        token = self._peek()
        self.tokens.pop(0)
        return token

    def _want(self, token: str) -> None:
        if self._next() != token:
            raise Invalid(f"there is no {token} where there should be one")
