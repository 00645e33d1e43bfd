"""Datasets of very small packs, and streams of them, for the tests of loaders."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loaded_packs import drawn_order, read_plainly
from small_runs import make_dataset

from spacepatch.loader import PackDataset, PackLoader, PackStream

WIDTH = 48
"""Values of a token of 1 x 4 x 4 pixels."""

TINY = {
    "patch": "1x4x4",
    "normalize": "clip",
    "clip_seconds": 1,
    "shard_size": "24KB",
    "workers": 1,
}

KINDS = {
    "tiny": {"fps": "8", "max_tokens_per_frame": 8, "pack_length": 128},
    "alike": {"fps": "4", "max_tokens_per_frame": 8, "pack_length": 128},
    "longer": {"fps": "4", "max_tokens_per_frame": 16, "pack_length": 192},
    "full": {
        "fps": "8",
        "max_tokens_per_frame": 8,
        "pack_length": 128,
        "index": "full",
        "drop": "static",
        "mask": "random:0.5",
        "store_mask": True,
    },
    "widths": {"fps": "4", "max_tokens_per_frame": 8, "pack_length": 64, "patch": "1x4x4,1x8x8"},
}
"""Each has several shards of several packs each, and segments of nothing but zeros."""


def tiny_dataset(base: Path, kind: str) -> Path:
    """One of `KINDS`, of the sample clips and a black picture; made once in a folder `base`."""
    out = base / f"tiny-{kind}"
    if not out.exists():
        samples = Path(__file__).resolve().parent.parent / "samples" / "clips"
        black = base / "black.png"
        black.write_bytes(black_png(32))
        make_dataset([samples, black], out, **TINY | KINDS[kind])
    return out


def black_png(side: int) -> bytes:
    """A square grey picture, all 0."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 1) * side))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


Key = tuple[str, ...]
"""A pack, by the ids of its segments."""


def key_of(segments: Sequence[dict[str, Any]]) -> Key:
    return tuple(segment["segment_id"] for segment in segments)


def keys_of(folder: Path) -> list[Key]:
    """Of each pack, in the order of the shards, by tarfile and json."""
    return [key_of(pack["pack"]["segments"]) for pack in read_plainly(folder)]


def widths_of(folder: Path) -> dict[Key, int]:
    """Values of a token of each pack."""
    return {
        key_of(pack["pack"]["segments"]): pack["tokens"].shape[1] for pack in read_plainly(folder)
    }


def batch_keys(batch: dict[str, Any]) -> list[Key]:
    return [key_of(segments) for segments in batch["segments"]]


def one_epoch(loader: PackLoader) -> list[Key]:
    """What is left of it."""
    return [key for batch in loader for key in batch_keys(batch)]


def drawn_epoch(keys: Sequence[Key], seed: int, epoch: int, width: int = WIDTH) -> list[Key]:
    """The order of an epoch of packs that are all of one width."""
    return [keys[place] for place in drawn_order(len(keys), seed, epoch, "packs", width)]


def rank_loaders(make: Any, world_size: int, **options: Any) -> list[PackLoader]:
    """A loader for each rank; `make` gives packs of their own to each."""
    return [
        PackLoader(make(), rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def epoch_steps(loaders: Sequence[PackLoader]) -> Iterator[list[dict[str, Any]]]:
    """What is left of an epoch, in lockstep: at each step the batches of all ranks."""
    yield from zip(*loaders, strict=True)


def step_keys(batches: Sequence[dict[str, Any]]) -> list[Key]:
    """The packs of a step, rank after rank."""
    return [key for batch in batches for key in batch_keys(batch)]


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def flip_pack(folder: Path, number: int) -> str:
    """Damage the tokens of one of the packs; returns the shard's name."""
    for shard in json.loads((folder / "dataset.json").read_text())["shards"]:
        if number < shard["packs"]:
            break
        number -= shard["packs"]
    path = folder / f"{shard['name']}.tar"
    content = bytearray(path.read_bytes())
    content[content.index(f"{shard['name']}-{number:06d}.tokens.npy".encode()) + 1024] ^= 1
    path.write_bytes(content)
    return str(shard["name"])


KINDS_OF_PACKS = {"dataset": PackDataset, "stream": PackStream}
