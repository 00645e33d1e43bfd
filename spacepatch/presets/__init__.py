"""Presets: named settings as TOML files, and how such files are read."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from spacepatch.errors import ConfigError


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset that comes with the package.

    Raises:
        ConfigError: there is none of that name.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"preset: no preset {name!r}{hint} (there are: {', '.join(names)})")
    return read_toml(_PRESETS / f"{name}.toml")


_PRESETS = Path(__file__).parent


def preset_names() -> list[str]:
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from None
