"""The description of the HTTP interface, made from the table and the models that serve it.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from bridge import __version__
from bridge.web.api import OPERATIONS, PREFIX, Operation
from bridge.web.queries import Input

PATH = "/api/openapi.json"
Schema = dict[str, Any]

DESCRIPTION = (
    "Bridge keeps contact data in messaging platforms equal to what the CRM says. Lists page by cursor: give the "
    "`next` of one page as `cursor` of the following. Every error is application/problem+json."
)


class ErrorItem(BaseModel):
    """One thing wrong with a request."""

    where: str = Field(description="A query parameter, or a place in the body.")
    what: str


class ProblemDetails(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str = Field(description="One sentence for a person.")
    errors: list[ErrorItem] = Field(default=[], description="Every thing that is wrong, where there are several.")


def document(public_url: str) -> Schema:
    """Return the OpenAPI document of everything that bridge serves."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        path = as_template(PREFIX + operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "bridge", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": public_url.rstrip("/") or "/"}],
        "security": [{"token": []}],
        "paths": paths | _around(),
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The value of BRIDGE_API_TOKEN."}
            },
            "schemas": _schemas(),
        },
    }


def blueprint(public_url: str) -> Blueprint:
    described = Blueprint("openapi", __name__)
    described_once = cache(lambda: json.dumps(document(public_url), indent=1))  # it takes a tenth of a second

    @described.get(PATH)
    def openapi() -> ResponseReturnValue:
        """Answer without a token: it says nothing that the source code does not."""
        return Response(described_once(), 200, content_type="application/json")

    return described


def as_template(path: str) -> str:
    """Return a path of Flask's as OpenAPI writes it: /inbound/<int:id> is /inbound/{id}."""
    return re.sub(r"<(?:[a-z]+:)?(\w+)>", r"{\1}", path)


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.handle.__name__,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation.query)],
        "responses": {
            "200": {"description": "Done.", "content": _content("application/json", operation.answer)},
            "default": {
                "description": "An error.",
                "content": _content("application/problem+json", ProblemDetails),
            },
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content("application/json", operation.body)}
    return described


def _path_parameters(path: str) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if kind == "int:" else "string"},
        }
        for kind, name in re.findall(r"<([a-z]+:)?(\w+)>", path)
    ]


def _query_parameters(query: type[Input] | None) -> list[Schema]:
    if query is None:
        return []
    schema = query.model_json_schema(ref_template="#/components/schemas/{model}")
    parameters = []
    for name, described in schema["properties"].items():
        rest = {key: value for key, value in described.items() if key not in {"title", "description"}}
        parameter: Schema = {"name": name, "in": "query", "required": False, "schema": rest}
        if "description" in described:
            parameter["description"] = described["description"]
        parameters.append(parameter)
    return parameters


def _content(media: str, model: type[BaseModel]) -> Schema:
    return {media: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _schemas() -> Schema:
    answers = {operation.answer for operation in OPERATIONS} | {ProblemDetails}
    given = {model for one in OPERATIONS for model in (one.query, one.body) if model is not None}
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "serialization") for model in sorted(answers, key=lambda one: one.__name__)),
        *((model, "validation") for model in sorted(given, key=lambda one: one.__name__)),
    ]
    _, schema = models_json_schema(models, ref_template="#/components/schemas/{model}")
    return dict(schema["$defs"])


def _around() -> dict[str, Schema]:
    """Describe what is not in the table: webhooks, health and this document."""
    source = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    token = {"name": "token", "in": "path", "required": True, "schema": {"type": "string"}}
    plain: Schema = {"security": []}
    hook = plain | {
        "summary": "A webhook, as the source sends it. What it must carry is the source's own matter.",
        "requestBody": {"required": True, "content": {"*/*": {"schema": {"type": "string"}}}},
        "responses": {
            "200": {"description": "Stored, or stored before; or the answer that the source asks for."},
            "400": {"description": "Genuine, but not what this source sends. It is kept."},
            "401": {"description": "Not provably from the source."},
            "404": {"description": "There is no such source."},
            "413": {"description": "Too large."},
            "415": {"description": "Compressed."},
            "503": {"description": "It could not be stored; send it again."},
        },
    }
    probe = plain | {
        "summary": "Some CRMs look whether the URL answers.",
        "responses": {"200": {"description": "Nothing."}, "404": {"description": "There is no such source."}},
    }
    return {
        "/hooks/{name}": {"parameters": [source], "post": hook, "get": probe},
        "/hooks/{name}/{token}": {"parameters": [source, token], "post": hook, "get": probe},
        "/healthz": {"get": plain | _said("The process is alive.")},
        "/readyz": {
            "get": plain
            | {
                "summary": "Database, worker and what is late.",
                "responses": {"200": {"description": "All well."}, "503": {"description": "Says what is not."}},
            }
        },
        "/metrics": {"get": _said("Metrics for Prometheus. Open without a token on a loopback address.")},
        PATH: {"get": plain | _said("This document.")},
    }


def _said(summary: str) -> Schema:
    return {"summary": summary, "responses": {"200": {"description": "That."}}}
