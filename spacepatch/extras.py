"""Import what not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from spacepatch.errors import MissingDependencyError


def needed(module: str, package: str, *, by: str, extra: str | None = None) -> Any:
    """A module that comes with one of the extras.

    Args:
        extra: the extra's name, where one has it.

    Raises:
        MissingDependencyError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = package if extra is None else f"'spacepatch[{extra}]'"
        raise MissingDependencyError(
            f"{by} needs {package} ({error}): pip install {wanted}"
        ) from None
