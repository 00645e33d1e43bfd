"""What the tests of packs as tensors share."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        elif name in ("keep", "restore"):
            assert len(value) == len(other[name]), name
            assert all(map(torch.equal, value, other[name])), name
        else:
            assert value == other[name], name


def segments_of(pack: dict):
    """(segment as in pack.json, slice of its tokens) for each segment."""
    borders = pack["cu_seqlens"].tolist()
    return zip(pack["segments"], map(slice, borders, borders[1:]), strict=True)


def make_ids(lengths, padding) -> torch.Tensor:
    ids = [place for place, length in enumerate(lengths, 1) for _ in range(length)]
    return torch.tensor(ids + [0] * padding, dtype=torch.int32)


def read_plainly(folder: Path, shard: str = "*") -> list[dict]:
    """Each pack by tarfile, numpy and json: from member (`tokens`) to content."""
    packs: dict[str, dict] = {}
    for path in sorted(folder.glob(f"{shard}.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, member, extension = info.name.split(".")
                content = tar.extractfile(info).read()
                read = np.load(io.BytesIO(content)) if extension == "npy" else json.loads(content)
                packs.setdefault(key, {})[member] = read
    return list(packs.values())


def drawn_order(num: int, *key: object) -> np.ndarray:
    """0 .. num - 1 in the order of the words of a Philox generator of this key."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(num)
    return np.array(sorted(range(num), key=lambda place: (words[place], place)))
