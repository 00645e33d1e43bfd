"""Small datasets of every kind, to be decoded, and how they are spoiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fitted_codecs import written
from small_runs import copied, run
from spoiled_shards import Shard

from spacepatch.config import load_config
from spacepatch.inspection.decoded import Decoded
from spacepatch.inspection.decoding import decode_segments

Change = Callable[[np.ndarray], np.ndarray]


def make_codecs(folder: Path) -> dict[str, str]:
    """`--encoder` for latents and for codes, of 2 x 3 x 5 pixels each."""
    found = {}
    for kind, codebook in (("latents", None), ("codes", 64)):
        (folder / kind).mkdir()
        found[kind] = f"linear:{written(folder / kind, codebook=codebook)}"
    return found


def copy_clips(sample_clips: Path, folder: Path) -> Path:
    """Some of the sample clips, and one in a folder below."""
    (folder / "below").mkdir()
    shutil.copy(sample_clips / "landscape_640x360.mp4", folder / "below")
    names = ("square_320x320.mp4", "rotated_90_phone.mp4", "still_picture_400x300.png")
    return copied(sample_clips, folder, names)


def make_pixels(clips: Path, out: Path) -> Path:
    run([clips], out, fps="4", clip_seconds="1")
    return out


def make_latents(clips: Path, out: Path, encoder: str) -> Path:
    run([clips], out, encoder=encoder, latent_dtype="float32")
    return out


def decode(
    folder: Path, root: Path | str | None, num: int = 3, encoder: str | None = None, **more: Any
) -> Decoded:
    config = load_config({"encoder": encoder, "workers": 1} | more)
    roots = {} if root is None else {0: str(root)}
    return decode_segments(folder, num_segments=num, config=config, roots=roots)


def assert_sound(found: Decoded, num: int = 3) -> None:
    assert found.problems == []
    assert [segment.found.is_same for segment in found.segments] == [True] * num
    assert found.num_sound == found.num_same == num


def spoil(folder: Path, copy: Path, change: Change, member: str = "tokens.npy") -> Path:
    """A copy whose first pack with several segments is changed, its checksums mended."""
    shutil.copytree(folder, copy)
    shard = Shard.of(copy)
    shard.put(member, change(shard.array(member)))
    shard.seal()
    return copy


def shuffled(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).permutation(values))
