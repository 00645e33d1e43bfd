"""Settings files, and what loading settings fails with."""

from pathlib import Path
from typing import Any

import pytest

from spacepatch.config import load_config
from spacepatch.errors import ConfigError
from spacepatch.presets import describe_preset


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


def failure(flags: dict[str, Any], **layers: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(flags, **layers)
    assert "\n" not in str(error.value)
    return str(error.value)


def needed_by(preset: str) -> dict[str, Any]:
    """What must be given beside a preset."""
    return {"encoder": "vae"} if "needs_encoder" in describe_preset(preset) else {}
