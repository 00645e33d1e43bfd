"""Lay settings over each other: flags over a file over a preset over the defaults."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spacepatch.config.settings import (
    CAN_BE_NONE,
    COMPANIONS,
    CONTRADICTIONS,
    EXCLUSIVE,
    RunConfig,
)
from spacepatch.errors import ConfigError
from spacepatch.presets import load_preset, read_toml


def load_config(
    flags: dict[str, Any], *, file: Path | None = None, preset: str | None = None
) -> RunConfig:
    """Layer the settings: `flags` over the TOML `file` over the `preset` over the defaults.

    Args:
        flags: only those that were given; None values count as not given.

    Raises:
        ConfigError: an unknown key (with the nearest one), a bad value, or a contradiction.
    """
    merged: dict[str, Any] = {}
    layers = [("preset " + preset, load_preset(preset))] if preset else []
    if file is not None:
        layers.append((str(file), read_toml(file)))
    layers.append(("settings", {key: value for key, value in flags.items() if value is not None}))
    for where, layer in layers:
        for key in layer:
            if key not in RunConfig.model_fields:
                near = difflib.get_close_matches(key, RunConfig.model_fields, 1, 0.4)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"{where}: unknown setting {key}{hint}")
        layer = _unset_none(layer)
        displaced = {
            key
            for group in EXCLUSIVE
            if any(layer.get(key) for key in group)
            for key in group
            if merged.pop(key, None) and not layer.get(key)
        }
        for companion, hosts in COMPANIONS.items():
            # A preset's crop goes with the preset's short_side, and its window with its packer.
            if displaced.intersection(hosts):
                merged.pop(companion, None)
        for key, contradicts in CONTRADICTIONS.items():
            if key in merged and contradicts(merged[key], layer):
                merged.pop(key)
        merged.update(layer)
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None


def _unset_none(layer: dict[str, Any]) -> dict[str, Any]:
    """`none` takes back what a lower layer asked for, of settings that are off by default."""
    return {
        key: None if value == "none" and key in CAN_BE_NONE else value
        for key, value in layer.items()
    }


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"{problem['loc'][0]}: {message} (got {problem['input']!r})"
