"""Presets: named settings as TOML files, and how such files are read.

A preset is data: ``[about]`` says what it reproduces, from which source, and, where its tokens are
latents or codes, which kind of encoder it needs; ``[settings]`` are keys of `RunConfig`.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from spacepatch.errors import ConfigError

_PRESETS = Path(__file__).parent


def preset_names() -> list[str]:
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset that comes with the package.

    Raises:
        ConfigError: there is none of that name.
    """
    settings: dict[str, Any] = _read_preset(name)["settings"]
    return settings


def describe_preset(name: str) -> dict[str, Any]:
    """What a preset is: ``reproduces`` and ``source``, a line each.

    Where it needs an encoder, also ``needs_encoder``: ``kind`` (codes or latents), ``stride``
    (frames x height x width in pixels of one latent cell) and an ``example`` of one.

    Raises:
        ConfigError: there is none of that name.
    """
    about: dict[str, Any] = _read_preset(name)["about"]
    return about


def _read_preset(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"preset: no preset {name!r}{hint} (there are: {', '.join(names)})")
    return read_toml(_PRESETS / f"{name}.toml")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from None
