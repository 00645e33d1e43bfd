"""Import what not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from spacepatch.errors import MissingDependencyError


def needed(module: str, package: str, *, by: str) -> Any:
    """A module that comes with one of the extras.

    Raises:
        MissingDependencyError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{by} needs {package} ({error}): pip install {package}"
        ) from None
