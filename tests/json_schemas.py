"""Hold what `--json` prints against docs/schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
SHARED = "common"
"""Parts of the others."""


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """By name, that of a command or a part of one."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


@cache
def _registry() -> Registry[Any]:
    named = [(f"{name}.json", Resource.from_contents(text)) for name, text in schemas().items()]
    return Registry().with_resources(named)


def faults_of(name: str, document: Any) -> list[str]:
    """What is in a document and not in its schema, or the other way round."""
    validator = Draft202012Validator({"$ref": f"{name}.json"}, registry=_registry())
    return [
        f"{fault.json_path}: {fault.message}"
        for error in validator.iter_errors(document)
        for fault in (error.context or [error])
    ]


def parts_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in a schema, itself among them."""
    if isinstance(schema, dict):
        yield schema
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            yield from parts_of(value)
