"""Errors of object stores in our words: what fsspec and its stores raise is known here alone."""

from __future__ import annotations

import errno

from spacepatch.errors import StoreError


def is_about_credentials(error: Exception) -> bool:
    """Of botocore, google.auth and azure.identity, whose errors are no OSErrors."""
    return "credential" in f"{type(error).__name__} {line_of(error)}".lower()


def told(error: Exception, where: str) -> Exception:
    """A foreign error in our words, and in one line."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object or bucket", where)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "is there already", where)
    if is_about_credentials(error):
        return StoreError(
            f"{where}: no credentials ({line_of(error)}): docs/stores.md says where they go"
        )
    if isinstance(error, PermissionError):
        return StoreError(
            f"{where}: denied ({line_of(error)}): give credentials that may, or another place"
        )
    return StoreError(
        f"{where}: the store does not answer as it should ({line_of(error)}); what is done is "
        "kept: start again"
    )


def let_go(error: BaseException | None) -> None:
    """Leave errors without their frames, which fsspec makes a cycle of: through it they would keep
    alive what our callers hold, such as tokens in an arena that is to be closed."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def line_of(error: Exception) -> str:
    """The first line of what it says."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
