"""Versions of whatever can change a byte of the output."""

from __future__ import annotations

from functools import cache

from spacepatch.errors import MissingDependencyError
from spacepatch.packers import NEEDS_SCIPY

INSTALL = {
    "torchcodec": "torchcodec==0.13.0 (and a shared FFmpeg 4 to 8, Debian's for example)",
    "scipy": "'spacepatch[pack]'",
}
"""What to install where the name alone does not say it."""


@cache
def environment(
    resampler: str = "bicubic", decoder: str = "pyav", encoder: str = "", packer: str = ""
) -> dict[str, str]:
    """By name: spacepatch, FFmpeg and the libraries that the settings use.

    Args:
        encoder: the KIND of ``KIND:WHERE``; empty: none.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    from spacepatch import __version__
    from spacepatch.decode.opening import ffmpeg_version

    versions = {
        "spacepatch": __version__,
        "ffmpeg": ffmpeg_version(),
        **{name: version(name) for name in ("av", "numpy", "pyarrow")},
    }
    wanted = [] if decoder == "pyav" else [decoder]
    # A linear encoder computes by itself, and exactly.
    has_network = encoder not in ("", "linear")
    if resampler.startswith("torch") or decoder == "torchcodec" or has_network:
        wanted.append("torch")
    if encoder == "diffusers":
        wanted.append("diffusers")
    if packer in NEEDS_SCIPY:
        wanted.append("scipy")
    if resampler.startswith("pillow"):
        wanted.append("pillow")
    for name in wanted:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            raise MissingDependencyError(
                f"{name} is not installed: pip install {INSTALL.get(name, name)}"
            ) from None
    return versions
