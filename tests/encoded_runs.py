"""Datasets of latents and codes, and the way to their clips that packs nothing."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fitted_codecs import blocks_of, video

from spacepatch.latents.fitting import fit_codec
from spacepatch.latents.linear import codec_bytes
from spacepatch.shards import ShardReader
from spacepatch.token_dtypes import from_stored
from spacepatch.tubelets import join_tubelets

WHOLE = {"pack_length": 2**20, "normalize": "unit"}


@cache
def _content(
    block: tuple[int, int, int], channels: int, codebook: int | None, stages: int
) -> bytes:
    blocks = blocks_of(video(24, 64, 96), block)
    codec, _ = fit_codec(
        blocks, block=block, channels=channels, codebook=codebook, residual=stages, seed=0
    )
    return codec_bytes(codec)


def codec(
    folder: Path,
    block: tuple[int, int, int] = (4, 8, 8),
    *,
    channels: int = 6,
    codebook: int | None = None,
    stages: int = 1,
) -> str:
    """Write a linear codec; what `--encoder` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'x'.join(map(str, block))}-{codebook}.safetensors"
    path.write_bytes(_content(block, channels, codebook, stages))
    return f"linear:{path}"


def stored_clips(out: Path) -> dict[tuple[str, int], tuple[dict[str, Any], np.ndarray]]:
    """By source and clip: the row of pack.json, and the cells of a segment of whole tokens, as
    ``(T, H, W, C)`` in the numbers that they stand for; of one patch of layout `c t p q`."""
    found = {}
    for tar in sorted(out.glob("*.tar")):
        with ShardReader(tar) as reader:
            for number in range(len(reader)):
                pack = reader.read(number)
                for row, segment in zip(
                    pack.segments.tolist(), pack.document["segments"], strict=True
                ):
                    tokens = pack.tokens[row[0] : row[0] + row[1]]
                    cells = join_tubelets(
                        tokens,
                        grid_thw=tuple(row[2:5]),
                        tubelet_size=row[5],
                        patch_size=(row[6], row[7]),
                    )
                    numbers = from_stored(cells, reader.receipt.token_dtype)
                    found[segment["source"], segment["clip"]] = segment, numbers
    return found
