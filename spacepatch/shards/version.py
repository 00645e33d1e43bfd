"""The version of the format, and who may read what."""

from typing import Any

from spacepatch.errors import ShardError

FORMAT_VERSION = 1
"""In dataset.json, every receipt, every plan.json and every pack.json."""


def check_version(document: dict[str, Any], where: str) -> None:
    """Refuse what a later spacepatch wrote.

    Raises:
        ShardError: the version is missing or newer than ours.
    """
    version = document.get("format_version")
    if not isinstance(version, int):
        raise ShardError(f"{where}: no format_version: not written by spacepatch")
    if version > FORMAT_VERSION:
        raise ShardError(
            f"{where}: format version {version}, this spacepatch reads up to {FORMAT_VERSION}; "
            "upgrade spacepatch"
        )
