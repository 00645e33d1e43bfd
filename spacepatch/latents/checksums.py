"""Know that weight files are the right ones. No torch: the linear encoder needs this too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spacepatch.errors import ConfigError, EncodeError


def check_sha256(folder: Path, weights: dict[str, str], expected: Sequence[str]) -> None:
    """See that `weights` (sha256 by file name) are those expected, each of them and no others.

    Raises:
        EncodeError: a file has another sha256, or an expected one is of no file.
        ConfigError: an expected one is no sha256.
    """
    wanted = [text.strip().lower() for text in expected]
    for text in wanted:
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise ConfigError(f"--expect-sha256 {text!r}: is no sha256 (64 hex digits)")
    if not wanted:
        return
    for name, sha256 in weights.items():
        if sha256 not in wanted:
            raise EncodeError(
                f"{folder / name}: its sha256 is {sha256}, which --expect-sha256 does not name: "
                "download it again, or mend the setting"
            )
    for text in wanted:
        if text not in weights.values():
            raise EncodeError(
                f"{folder}: --expect-sha256 names {text}, which is of none of its weight files "
                f"({', '.join(weights)})"
            )
