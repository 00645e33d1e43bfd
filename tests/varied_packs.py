"""Small datasets of references, and their segments as they are varied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loaded_packs import segments_of

from spacepatch.config import load_config
from spacepatch.loader import PackDataset
from spacepatch.pipeline import tokenize

SETTINGS = {
    "fps": "4",
    "patch": "1x16x16",
    "max_tokens_per_frame": 96,
    "clip_seconds": "1",
    "pack_length": 512,
    "shard_size": "2MB",
    "workers": 2,
}
"""Several shards of several packs."""

ALL = {
    "random_crop": "uniform:0.3..1",
    "resolution": "uniform:64..200",
    "fps": "uniform:1..6",
    "patch": "1x16x16,2x16x16,1x32x32",
    "drop": "random:uniform:0..0.5",
}


def written(sources: Path | list[Path], out: Path, **settings: Any) -> Path:
    names = map(str, sources if isinstance(sources, list) else [sources])
    tokenize(list(names), out=out, config=load_config(SETTINGS | settings))
    return out


Segments = dict[str, tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]]


def segments_in(packs: PackDataset, *epochs: int) -> Iterator[Segments]:
    """Of each epoch by id: what is said of a segment, its tokens, positions and seconds."""
    for epoch in epochs:
        packs.set_epoch(epoch)
        yield {
            segment["segment_id"]: (segment, *(pack[name][own] for name in NAMES))
            for pack in packs
            for segment, own in segments_of(pack)
        }


NAMES = ("tokens", "positions", "seconds")
