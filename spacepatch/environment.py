"""Versions of whatever can change a byte of the output."""

from __future__ import annotations

from functools import cache


@cache
def environment(resampler: str = "bicubic") -> dict[str, str]:
    """By name: spacepatch, FFmpeg and the libraries that the settings use."""
    from importlib.metadata import version

    from spacepatch import __version__
    from spacepatch.decode.opening import ffmpeg_version

    versions = {
        "spacepatch": __version__,
        "ffmpeg": ffmpeg_version(),
        **{name: version(name) for name in ("av", "numpy", "pyarrow")},
    }
    if resampler.startswith("torch"):
        versions["torch"] = version("torch")
    return versions
