"""`spacepatch doctor`: what is installed, and what this machine can do."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from spacepatch.cli.options import Json

EXAMPLE = "Example:  spacepatch doctor --json"

PACKAGES = (
    "av",
    "numpy",
    "pyarrow",
    "torch",
    "webdataset",
    "einops",
    "pillow",
    "decord",
    "torchcodec",
    "safetensors",
    "diffusers",
    "scikit-learn",
    "scipy",
    "ray",
)


def command(json: Json = False) -> None:
    """Show versions of PyAV and its FFmpeg, decoders, optional packages, cores and memory."""
    from spacepatch.cli import display

    facts = _facts()
    if json:
        display.print_json(facts)
        return
    for key, value in facts.items():
        shown = " ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = "  ".join(f"{name} {entry}" for name, entry in value.items())
        typer.echo(f"{key:20} {shown}")


def _facts() -> dict[str, Any]:
    import platform
    import shutil

    import av
    from av.codec import Codec

    from spacepatch import __version__
    from spacepatch.decode.opening import CODECS, ffmpeg_version
    from spacepatch.limits import available_cores

    decoders, missing = [], []
    for name in sorted(CODECS):
        try:
            Codec(name, "r")
        except av.error.FFmpegError:
            missing.append(name)
        except ValueError:
            missing.append(name)
        else:
            decoders.append(name)
    return {
        "spacepatch": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "ffmpeg inside av": ffmpeg_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "decoders": decoders,
        "missing decoders": missing,
        "cores": available_cores(),
        "shared memory MB": _free_megabytes("/dev/shm"),
        "ffmpeg on PATH": shutil.which("ffmpeg") or "none (not needed)",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _free_megabytes(path: str) -> int | None:
    import os

    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize // 10**6
