"""Folders that `spacepatch unpack` wrote, read by Pillow, PyAV, numpy and pyarrow alone."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from spacepatch.config import load_config
from spacepatch.unpack import Unpacked, unpack


def unpacked(folder: Path, out: Path, *, encoder: str | None = None, **more: Any) -> Unpacked:
    config = load_config({"encoder": encoder, "workers": 1})
    return unpack(folder, out=out, config=config, **more)


def table_of(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out / "unpacked.parquet").to_pylist()


def pictures_in(folder: Path) -> dict[int, np.ndarray]:
    """The PNGs of a segment by their numbers."""
    return {int(path.stem): np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def film_in(folder: Path) -> tuple[np.ndarray, list[Fraction], Fraction]:
    """The frames of an MP4 as RGB, when each begins, and when the last one ends."""
    with av.open(str(folder / "frames.mp4")) as container:
        stream = container.streams.video[0]
        end = stream.duration * stream.time_base
        frames = list(container.decode(stream))
        times = [frame.pts * frame.time_base for frame in frames]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times, end


def tree_of(out: Path) -> dict[str, str]:
    """sha256 of every file but locks."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".spacepatch" not in path.parts
    }
